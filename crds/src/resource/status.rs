//! What the operator tells: `status`.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::borrowed;

/// What has become of the spec. Holds nothing that changes by the second: such numbers are metrics.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct InferenceModelStatus {
    /// The generation of the spec that the rest speaks of.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0))]
    pub observed_generation: Option<i64>,
    /// Accepted, Scheduled, ModelLoaded, RolledOut, Available, ScalingActive, MonitoringReady, Ready, Reconciling and
    /// Stalled, each with a reason.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "borrowed::conditions")]
    pub conditions: Vec<Condition>,
    /// Pods of all revisions.
    pub replicas: i32,
    /// Pods that are ready.
    pub ready_replicas: i32,
    /// Selects the pods, as text for autoscalers.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 256))]
    pub selector: Option<String>,
    /// Where the models can be reached from inside the cluster.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 256))]
    pub url: Option<String>,
    /// Name of the revision that serves or is about to.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 63))]
    pub active_revision: Option<String>,
    /// The revisions that are kept, newest first.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"]))]
    pub revisions: Vec<RevisionStatus>,
    /// The models of the active revision.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"]))]
    pub models: Vec<ModelStatus>,
    /// The last decision on the number of replicas.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub scaling: Option<ScalingStatus>,
}

/// One revision: an immutable pod template.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct RevisionStatus {
    /// Name of its Deployment and its ConfigMap.
    #[schemars(length(max = 63))]
    pub name: String,
    /// Hash of what the user can change, eight digits.
    #[schemars(length(max = 16))]
    pub hash: String,
    /// Image of its server.
    #[schemars(length(max = 512))]
    pub image: String,
    /// Its pods.
    pub replicas: i32,
    /// Its share of the requests, in percent.
    #[schemars(range(min = 0, max = 100))]
    pub weight: i32,
}

/// One model.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ModelStatus {
    /// Its name in the spec.
    #[schemars(length(max = 40))]
    pub name: String,
    /// How far the pod has come that has come least far.
    pub state: ModelState,
    /// What is served: sha256 of the model file.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 128))]
    pub digest: Option<String>,
    /// Size of the model file.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bytes: Option<i64>,
    /// Time that loading and warming up took, in seconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub load_seconds: Option<f64>,
    /// Where it really runs.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64))]
    pub provider: Option<String>,
    /// What went wrong, until it is right.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_error: Option<ModelError>,
}

/// How far a model has come.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
pub enum ModelState {
    /// It cannot be served; see lastError.
    Failed,
    /// No pod has begun with it.
    #[default]
    Pending,
    /// It is on its way into a pod.
    Fetching,
    /// A server is loading it.
    Loading,
    /// It is served.
    Loaded,
}

/// Why a model is not served.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ModelError {
    /// A reason of the condition ModelLoaded.
    #[schemars(length(min = 1, max = 128))]
    pub reason: String,
    /// Cause and remedy.
    #[schemars(length(max = 4096))]
    pub message: String,
    /// The pod that it happened in.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 253))]
    pub pod: Option<String>,
    /// The container that it happened in.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 63))]
    pub container: Option<String>,
}

/// A decision on the number of replicas.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ScalingStatus {
    /// Replicas that were decided on.
    pub desired: i32,
    /// Why.
    #[schemars(length(max = 1024))]
    pub reason: String,
    /// When the number last changed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "borrowed::time")]
    pub last_scale_time: Option<Time>,
}
