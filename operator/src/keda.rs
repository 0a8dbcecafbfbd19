//! KEDA's ScaledObject, as far as we write and read it. Nothing else of it is known here, and all of it may be absent, so that no
//! object can end the watch of the others.

use std::collections::BTreeMap;

use k8s_openapi::api::autoscaling::v2::HorizontalPodAutoscalerBehavior;
use kube::CustomResource;
use serde::{Deserialize, Serialize};

/// Group and version.
pub const API_VERSION: &str = "keda.sh/v1alpha1";

/// The kind.
pub const KIND: &str = "ScaledObject";

/// The type of its condition that is False where KEDA cannot act on it.
pub const READY: &str = "Ready";

/// The type of its condition that is True while a trigger fails and replicas are what `fallback` says.
pub const FALLBACK: &str = "Fallback";

/// The type of its condition that is True while a person has it paused.
pub const PAUSED: &str = "Paused";

/// The annotation by which a person pauses it as it is; a truth value as Go reads it.
const PAUSED_ANNOTATION: &str = "autoscaling.keda.sh/paused";
/// What Go reads as false. What it cannot read pauses as well.
const FALSE: [&str; 6] = ["0", "f", "F", "false", "False", "FALSE"];
/// The annotation by which a person pauses it at a number.
const PAUSED_AT_ANNOTATION: &str = "autoscaling.keda.sh/paused-replicas";

impl ScaledObject {
    /// Whether a person has it paused: KEDA, which has no autoscaler for it then, writes the number that was asked for at the most.
    #[must_use]
    pub fn is_paused(&self) -> bool {
        let annotation = |key: &str| self.metadata.annotations.as_ref().and_then(|annotations| annotations.get(key));
        let is_so = annotation(PAUSED_ANNOTATION).is_some_and(|value| !FALSE.contains(&value.as_str()));
        is_so || annotation(PAUSED_AT_ANNOTATION).is_some()
    }
}

/// What is scaled, between which bounds, and by what.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, CustomResource)]
#[kube(
    group = "keda.sh",
    version = "v1alpha1",
    kind = "ScaledObject",
    namespaced,
    schema = "disabled",
    status = "ScaledObjectStatus",
    derive = "PartialEq"
)]
#[serde(rename_all = "camelCase", default)]
pub struct ScaledObjectSpec {
    /// What has the scale subresource.
    pub scale_target_ref: ScaleTarget,
    /// Seconds between two looks at the triggers, for what KEDA itself does.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub polling_interval: Option<i32>,
    /// Never fewer replicas than this.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub min_replica_count: Option<i32>,
    /// Never more replicas than this.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_replica_count: Option<i32>,
    /// What KEDA's HorizontalPodAutoscaler is like.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub advanced: Option<Advanced>,
    /// What is done while a trigger fails.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fallback: Option<Fallback>,
    /// The numbers.
    pub triggers: Vec<Trigger>,
}

/// What has the scale subresource.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ScaleTarget {
    /// Group and version.
    pub api_version: String,
    /// Kind.
    pub kind: String,
    /// Name.
    pub name: String,
}

/// What KEDA's HorizontalPodAutoscaler is like.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Advanced {
    /// See [`Advanced`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub horizontal_pod_autoscaler_config: Option<AutoscalerConfig>,
}

/// See [`Advanced`].
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct AutoscalerConfig {
    /// How fast replicas come and go.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub behavior: Option<HorizontalPodAutoscalerBehavior>,
}

/// What is done while a trigger fails.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Fallback {
    /// After more failures in a row than this.
    pub failure_threshold: i32,
    /// Replicas then.
    pub replicas: i32,
    /// How `replicas` is meant.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub behavior: Option<String>,
}

/// A number that replicas follow.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Trigger {
    /// Where it comes from.
    #[serde(rename = "type")]
    pub type_: String,
    /// Its name among those of the object.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// How it is compared with its target.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub metric_type: Option<String>,
    /// What its type wants to know.
    pub metadata: BTreeMap<String, String>,
}

/// What KEDA tells.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ScaledObjectStatus {
    /// Ready, Active, Fallback, Paused.
    pub conditions: Vec<ScaledObjectCondition>,
}

/// Not the condition type of Kubernetes: fields of that may be absent here.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ScaledObjectCondition {
    /// See [`ScaledObjectStatus`].
    #[serde(rename = "type")]
    pub type_: String,
    /// `True`, `False` or `Unknown`.
    pub status: String,
    /// One word.
    pub reason: String,
    /// A sentence.
    pub message: String,
}

impl ScaledObject {
    /// What KEDA tells under this type.
    #[must_use]
    pub fn condition(&self, type_: &str) -> Option<&ScaledObjectCondition> {
        self.status.iter().flat_map(|status| &status.conditions).find(|condition| condition.type_ == type_)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn an_object_of_any_form_is_read() {
        let object = json!({
            "metadata": {"name": "a"},
            "spec": {"triggers": [{"type": "cpu"}], "scaleTargetRef": {"name": "web"}, "idleReplicaCount": 0},
            "status": {"conditions": [{"type": "Ready", "status": "True"}], "lastActiveTime": "2026-01-01T00:00:00Z"},
        });
        let object: ScaledObject = serde_json::from_value(object).unwrap();
        assert_eq!(object.spec.scale_target_ref.name, "web");
        assert_eq!(object.condition("Ready").unwrap().status, "True");
        assert_eq!(object.condition(FALLBACK), None);
    }
}
