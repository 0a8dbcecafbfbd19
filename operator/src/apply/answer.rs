//! What the API server's answers to a write mean.

use crds::resource::conditions::accepted;
use kube::core::{Status, response::StatusCause};
use serde::Serialize;
use serde_json::Value;

use crate::{causes::lasting, validate::Refusal};

/// Whether the API server finds a fault in the spec of an object, which what somebody else has put there may be the reason of.
pub(super) fn is_about_spec(status: &Status) -> bool {
    let causes = status.details.iter().flat_map(|details| &details.causes);
    status.code == 422 && causes.clone().any(|cause| cause.field.starts_with("spec."))
}

/// Whether nothing can be made because the namespace is about to go, or has gone.
pub(super) fn ends_with_its_namespace(status: &Status) -> bool {
    let details = status.details.as_ref();
    let is_cause = |cause: &StatusCause| cause.reason == "NamespaceTerminating";
    details.is_some_and(|it| it.causes.iter().any(is_cause) || (status.is_not_found() && it.kind == "namespaces"))
}

/// Whether a patch found another object than the one that it was meant for, or another number: a test did not pass, which the API
/// server answers without a word on what was wrong. An object that the schema refuses is named, and so is a webhook.
pub(super) fn is_another(status: &Status) -> bool {
    status.code == 422
        && status.details.as_ref().is_none_or(|it| it.name.is_empty() && it.causes.is_empty())
        && !status.message.starts_with("admission webhook ")
}

/// A reason of the condition Accepted where the API server will not take the object however often it is asked.
#[must_use]
pub fn reason_of_refusal(status: &Status) -> Option<&'static str> {
    match status.code {
        403 if ends_with_its_namespace(status) => None,
        // The operator's own rights are missing: an error of whoever installed it, not of the spec.
        403 if status.message.contains("User \"") && status.message.contains("cannot ") => None,
        403 if status.message.contains("exceeded quota") => Some(accepted::QUOTA_EXCEEDED),
        400 | 403 | 422 => Some(accepted::ADMISSION_DENIED),
        _ => None,
    }
}

/// Why pods would not start: the API server has dropped volumes of theirs without a word, as it does with images where those
/// are switched off (Kubernetes, feature gate ImageVolume).
pub(super) fn without_volumes<K: Serialize>(kind: &str, name: &str, wanted: &Value, stored: &K) -> Option<Refusal> {
    const VOLUMES: &str = "/spec/template/spec/volumes";
    fn names(object: &Value) -> Vec<&str> {
        let volumes = object.pointer(VOLUMES).and_then(Value::as_array);
        volumes.into_iter().flatten().filter_map(|volume| volume["name"].as_str()).collect()
    }
    let wanted = names(wanted);
    if wanted.is_empty() {
        return None;
    }
    let stored = serde_json::to_value(stored).unwrap_or_default();
    let stored = names(&stored);
    let dropped = wanted.into_iter().find(|name| !stored.contains(name))?;
    let message = format!(
        "{kind} {name}: the API server has dropped the volume {dropped}. Switch its feature gate ImageVolume on, there and in the \
         kubelets, if the model's source is an image; or give source.uri or source.pvc"
    );
    Some(Refusal { reason: accepted::ADMISSION_DENIED, message })
}

/// What the API server does not take, and what to do about it.
pub(super) fn refused(kind: &str, name: &str, status: &Status) -> Refusal {
    let reason = reason_of_refusal(status).unwrap_or(accepted::ADMISSION_DENIED);
    let remedy = match reason {
        accepted::QUOTA_EXCEEDED => "Raise the namespace's ResourceQuota, or ask for less",
        _ => "Change the spec so that it is allowed, or the policy that forbids it",
    };
    Refusal { reason, message: format!("{kind} {name} is refused: {}. {remedy}", lasting(&status.message)) }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_volume_that_was_dropped_without_a_word_is_named() {
        let of = |names: &[&str]| {
            let volumes: Vec<_> = names.iter().map(|name| json!({"name": name})).collect();
            json!({"spec": {"template": {"spec": {"volumes": volumes}}}})
        };
        let dropped = |wanted: &[&str], stored: &[&str]| without_volumes("Deployment", "m-1", &of(wanted), &of(stored));
        assert_eq!(dropped(&["config", "model-m"], &["model-m", "token", "config"]), None);
        let refusal = dropped(&["config", "model-m"], &["config"]).unwrap();
        assert!(
            refusal.message.starts_with("Deployment m-1: the API server has dropped the volume model-m."),
            "{refusal:?}"
        );
        assert_eq!(without_volumes("Service", "m", &json!({"spec": {}}), &json!({})), None);
    }

    #[test]
    fn only_a_fault_in_the_spec_may_be_what_somebody_else_has_put_there() {
        let status = |field: &str| -> Status {
            let causes = [json!({"reason": "FieldValueInvalid", "field": field})];
            let details = json!({"name": "espresso", "causes": causes});
            serde_json::from_value(json!({"status": "Failure", "code": 422, "message": "no", "details": details}))
                .unwrap()
        };
        assert!(is_about_spec(&status("spec.ports[1].name")));
        assert!(!is_about_spec(&status("metadata.annotations")));
    }

    #[test]
    fn a_test_that_does_not_pass_is_told_from_an_object_that_is_refused() {
        let status = |details: Value| -> Status {
            serde_json::from_value(json!({"status": "Failure", "code": 422, "message": "no", "details": details}))
                .unwrap()
        };
        assert!(is_another(&status(Value::Null)));
        assert!(is_another(&status(json!({}))));
        assert!(!is_another(&status(json!({"name": "espresso", "causes": [{"reason": "FieldValueInvalid"}]}))));
        let denied = Status {
            message: "admission webhook \"freeze.example.com\" denied the request: no".to_owned(),
            ..status(Value::Null)
        };
        assert!(!is_another(&denied));
    }
}
