//! The two kinds of the Prometheus Operator that we write, as far as we write and read them. Nothing else of them is known here,
//! and all of it may be absent, so that no object can end the watch of the others.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use kube::CustomResource;
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// Group and version of both.
pub const API_VERSION: &str = "monitoring.coreos.com/v1";

/// Which Services are scraped, and how.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, CustomResource)]
#[kube(
    group = "monitoring.coreos.com",
    version = "v1",
    kind = "ServiceMonitor",
    namespaced,
    schema = "disabled",
    status = "Bound",
    derive = "PartialEq"
)]
#[serde(rename_all = "camelCase", default)]
pub struct ServiceMonitorSpec {
    /// Label of the Service whose value becomes the label `job`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub job_label: Option<String>,
    /// Labels of the pods that become labels of all of their series.
    pub pod_target_labels: Vec<String>,
    /// Selects Services.
    pub selector: LabelSelector,
    /// Ports of the Services.
    pub endpoints: Vec<Endpoint>,
}

/// A port of a Service.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Endpoint {
    /// Its name.
    pub port: String,
    /// What is asked for.
    pub path: String,
    /// Whether labels of the series win over those of the target.
    pub honor_labels: bool,
}

/// Recording rules and alerts.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, CustomResource)]
#[kube(
    group = "monitoring.coreos.com",
    version = "v1",
    kind = "PrometheusRule",
    namespaced,
    schema = "disabled",
    status = "Bound",
    derive = "PartialEq"
)]
#[serde(default)]
pub struct PrometheusRuleSpec {
    /// Groups as Prometheus reads them.
    pub groups: Vec<Value>,
}

/// What the Prometheus Operator tells of a ServiceMonitor or PrometheusRule, where its feature `StatusForConfigurationResources`
/// is on; without it there is no status at all.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Bound {
    /// One for each Prometheus, agent or ruler that selects it. Absent where none ever did, empty where none does any more.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bindings: Option<Vec<Binding>>,
}

/// A Prometheus, agent or ruler that selects it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Binding {
    /// Its kind, in the plural and lower case.
    pub resource: String,
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// What it makes of it.
    pub conditions: Vec<BindingCondition>,
}

/// What a Prometheus makes of it. Not the condition type of Kubernetes: fields of that may be absent here.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct BindingCondition {
    /// `Accepted`.
    #[serde(rename = "type")]
    pub type_: String,
    /// `True`, `False` or `Unknown`.
    pub status: String,
    /// One word.
    pub reason: String,
    /// A sentence, where it is not accepted.
    pub message: String,
    /// The generation that this speaks of.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
}

/// Both of our kinds tell the same.
pub trait Told {
    /// What the Prometheus Operator tells of it.
    fn bound(&self) -> Option<&Bound>;
}

impl Told for ServiceMonitor {
    fn bound(&self) -> Option<&Bound> {
        self.status.as_ref()
    }
}

impl Told for PrometheusRule {
    fn bound(&self) -> Option<&Bound> {
        self.status.as_ref()
    }
}

/// Why an object is of no use to any Prometheus that tells: one refuses it, or the last that had selected it does not any
/// more. Nothing is told by a Prometheus Operator without the feature, nor by one that never selected it.
#[must_use]
pub fn not_selected(bound: &Bound, generation: Option<i64>) -> Option<String> {
    let bindings = bound.bindings.as_ref()?;
    if bindings.is_empty() {
        return Some("no Prometheus selects it any more".to_owned());
    }
    let refused = |binding: &Binding| {
        let speaks_of_it = |condition: &&BindingCondition| {
            let of_now = condition.observed_generation.is_none_or(|observed| Some(observed) == generation);
            condition.type_ == "Accepted" && condition.status == "False" && of_now
        };
        let condition = binding.conditions.iter().find(speaks_of_it)?;
        let Binding { resource, namespace, name, .. } = binding;
        let BindingCondition { reason, message, .. } = condition;
        Some(format!("{resource} {namespace}/{name} does not take it: {reason}: {message}"))
    };
    let refusals: Vec<String> = bindings.iter().filter_map(refused).collect();
    (!refusals.is_empty()).then(|| refusals.join("; "))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn bound(status: Value) -> Bound {
        serde_json::from_value(status).unwrap()
    }

    fn binding(name: &str, status: &str, observed: i64) -> Value {
        json!({
            "group": "monitoring.coreos.com", "resource": "prometheuses", "namespace": "watch", "name": name,
            "conditions": [{
                "type": "Accepted", "status": status, "observedGeneration": observed, "lastTransitionTime": "2026-01-01T00:00:00Z",
                "reason": "InvalidConfiguration", "message": "it accesses the file system",
            }],
        })
    }

    #[test]
    fn without_bindings_nothing_is_known_and_with_none_left_nobody_selects_it() {
        assert_eq!(not_selected(&bound(json!({})), Some(1)), None);
        assert_eq!(
            not_selected(&bound(json!({"bindings": []})), Some(1)).as_deref(),
            Some("no Prometheus selects it any more")
        );
    }

    #[test]
    fn a_prometheus_that_refuses_it_is_named_with_its_reason() {
        let taken = bound(json!({"bindings": [binding("main", "True", 2)]}));
        assert_eq!(not_selected(&taken, Some(2)), None);
        let refused = bound(json!({"bindings": [binding("main", "True", 2), binding("strict", "False", 2)]}));
        assert_eq!(
            not_selected(&refused, Some(2)).as_deref(),
            Some("prometheuses watch/strict does not take it: InvalidConfiguration: it accesses the file system")
        );
        assert_eq!(not_selected(&refused, Some(3)), None, "what it said of an earlier generation");
    }

    #[test]
    fn an_object_of_any_form_is_read() {
        let monitor = json!({"metadata": {"name": "a"}, "spec": {"endpoints": [{"interval": "5s"}], "x": 1}, "status": {"bindings": [{}]}});
        let monitor: ServiceMonitor = serde_json::from_value(monitor).unwrap();
        assert_eq!(monitor.spec.endpoints, [Endpoint::default()]);
    }
}
