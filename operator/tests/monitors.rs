//! What an InferenceModel is told of the objects that it shares with others, and what that means for the model itself.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::{collections::BTreeMap, sync::Arc};

use crds::resource::conditions::{READY, accepted, monitoring_ready};
use k8s_openapi::api::core::v1::Pod;
use ortolan_operator::{
    apply::Applied,
    observe::Observed,
    rollout::{Plan, Stage},
    shared::{Place, Places},
    status::{Facts, find, status},
    validate::Refusal,
};
use serde_json::{Value, json};

/// A model that serves, with one pod.
fn observed(monitoring: Value, shared: Places) -> Observed {
    let model = json!({
        "apiVersion": "ortolan.dev/v1alpha1",
        "kind": "InferenceModel",
        "metadata": {"name": "espresso", "namespace": "coffee", "uid": "6ad4", "generation": 3},
        "spec": {"models": [{"name": "a", "source": {"uri": "file:///a.onnx"}}], "monitoring": monitoring},
    });
    let pod: Pod = serde_json::from_value(json!({
        "metadata": {"name": "espresso-abc-x", "labels": {"ortolan.dev/revision": "abc"}},
        "spec": {"nodeName": "node", "containers": [{"name": "server"}]},
        "status": {"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]},
    }))
    .unwrap();
    Observed {
        pods: BTreeMap::from([("espresso-abc-x".to_owned(), Arc::new(pod))]),
        shared,
        ..Observed::bare(Arc::new(serde_json::from_value(model).unwrap()))
    }
}

/// Status, reason and message of a condition.
fn told(monitoring: Value, service_monitor: Place, rules: Place, type_: &str) -> (String, String, String) {
    let observed = observed(monitoring, Places { service_monitor, rules });
    let plan = Plan {
        replicas: BTreeMap::from([("abc".to_owned(), 1)]),
        without_active: BTreeMap::new(),
        weights: BTreeMap::new(),
        active: "abc".to_owned(),
        stage: Stage::Complete,
        is_overdue: false,
        records: BTreeMap::new(),
        look_again: None,
    };
    let status = status(&Facts {
        observed: &observed,
        findings: &BTreeMap::new(),
        refusal: None,
        revisions: &BTreeMap::new(),
        plan: Some(&plan),
        target: Some("abc"),
        applied: &Applied::default(),
        failure: None,
    });
    let condition = find(&status, type_).unwrap();
    (condition.status.clone(), condition.reason.clone(), condition.message.clone())
}

fn monitoring(monitoring: Value, service_monitor: Place, rules: Place) -> (String, String, String) {
    told(monitoring, service_monitor, rules, monitoring_ready::TYPE)
}

fn is(told: &(String, String, String), status: &str, reason: &str) {
    assert_eq!((told.0.as_str(), told.1.as_str()), (status, reason), "{}", told.2);
}

fn there() -> Place {
    Place::There(None)
}

fn enabled() -> Value {
    json!({"serviceMonitor": "Enabled"})
}

#[test]
fn objects_that_are_there_are_configured_and_so_is_a_model_that_wants_none() {
    is(&monitoring(json!({}), there(), there()), "True", "Configured");
    let none = json!({"serviceMonitor": "Disabled", "rules": "Disabled"});
    is(&monitoring(none, Place::NotInstalled, Place::NotInstalled), "True", "Configured");
}

#[test]
fn a_missing_definition_is_a_reason_and_only_for_enabled_a_failure() {
    let auto = monitoring(json!({}), Place::NotInstalled, Place::NotInstalled);
    is(&auto, "True", "CrdNotInstalled");
    assert!(
        auto.2.contains("servicemonitors.monitoring") && auto.2.contains("prometheusrules.monitoring"),
        "{}",
        auto.2
    );
    is(&told(json!({}), Place::NotInstalled, Place::NotInstalled, READY), "True", "AllServes");
    is(&monitoring(enabled(), Place::NotInstalled, there()), "False", "CrdNotInstalled");
    is(&told(enabled(), Place::NotInstalled, there(), READY), "False", "CrdNotInstalled");
}

#[test]
fn the_worst_of_both_objects_is_told() {
    let why = || Place::There(Some("no Prometheus selects it any more".to_owned()));
    is(&monitoring(json!({}), there(), why()), "True", "NotSelected");
    is(&monitoring(enabled(), why(), Place::NotInstalled), "False", "NotSelected");
    is(&monitoring(enabled(), Place::Missing(None), why()), "Unknown", "Pending");
}

#[test]
fn what_is_not_there_yet_keeps_only_enabled_from_being_ready() {
    let tried = || Place::Missing(Some("no answer".to_owned()));
    let auto = monitoring(json!({}), tried(), Place::Missing(None));
    is(&auto, "True", "Configured");
    assert!(auto.2.contains("no answer"), "{}", auto.2);
    let required = monitoring(enabled(), tried(), there());
    is(&required, "Unknown", "Pending");
    assert!(required.2.contains("no answer"), "{}", required.2);
}

#[test]
fn an_object_of_somebody_else_is_a_conflict_of_those_that_need_it() {
    let refusal = Refusal { reason: accepted::NAME_CONFLICT, message: "it is theirs".to_owned() };
    let taken = || Place::Refused(refusal.clone());
    is(&told(enabled(), taken(), there(), accepted::TYPE), "False", "NameConflict");
    is(&told(json!({}), taken(), there(), accepted::TYPE), "True", "Accepted");
    is(&told(json!({}), taken(), there(), READY), "True", "AllServes");
    let auto = monitoring(json!({}), taken(), there());
    is(&auto, "True", "NameConflict");
    assert!(auto.2.contains("it is theirs"), "{}", auto.2);
    is(&told(json!({"serviceMonitor": "Disabled"}), taken(), there(), accepted::TYPE), "True", "Accepted");
}
