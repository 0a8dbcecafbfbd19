//! The resource `InferenceModel`, version `v1alpha1`: what a user asks for, and what the operator answers.
//!
//! ```text
//! kubectl apply ──▸ schema and CEL rules (API server) ──▸ InferenceModelSpec ──▸ not_implemented, invalid_options
//!                                                                  │
//! kubectl get   ◂── InferenceModelStatus ◂── conditions ◂──────── operator
//! ```
//!
//! Three lines of defence, each for what the one before it cannot say: the schema (types, bounds, defaults), the CEL
//! rules (fields that do not go together), and the two functions, which the operator reports in the condition
//! `Accepted`. Whatever passes the first can be read into these types, but for open fields that are nested too deep.
//!
//! The schema is derived from the types; [`definition`] is what is installed. Deliberately absent: a webhook.

mod accelerator;
mod as_written;
mod borrowed;
pub mod conditions;
mod definition;
mod duration;
mod exposure;
mod model;
mod not_implemented;
mod reference;
mod rollout;
mod rules;
mod scaling;
mod server;
mod status;
mod upkeep;

pub use accelerator::{Accelerator, Claim};
pub use as_written::AsWritten;
pub use definition::{DefinitionError, definition, definition_yaml};
pub use duration::{Duration, NoDuration};
pub use exposure::{NetworkPolicy, ParentRef, Route, Service, ServiceType};
pub use model::{Batching, ImageSource, Model, ModelFile, PullPolicy, PvcSource, SecretRef, Source};
pub use not_implemented::{invalid_options, not_implemented};
pub use reference::reference;
pub use rollout::{Rollout, RolloutStrategy};
pub use scaling::{Behavior, LatencyTarget, Panic, ScaleDown, ScaleUp, Scaling, ScalingMode, Targets};
pub use server::{EnvironmentVariable, Server};
pub use status::{InferenceModelStatus, ModelError, ModelState, ModelStatus, RevisionStatus, ScalingStatus};
pub use upkeep::{Availability, Cache, Monitoring, Toggle};

use k8s_openapi::api::core::v1::ResourceRequirements;
use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::serving::Fault;

/// One or more ONNX models, served together by the same pods.
#[allow(clippy::duplicated_attributes, reason = "each column has a type, and several have the same")]
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema, CustomResource)]
#[serde(rename_all = "camelCase")]
#[kube(
    group = "ortolan.dev",
    version = "v1alpha1",
    kind = "InferenceModel",
    plural = "inferencemodels",
    shortname = "infm",
    category = "all",
    category = "ortolan",
    namespaced,
    doc = "ONNX models to serve, and how.",
    status = "InferenceModelStatus",
    derive = "PartialEq",
    scale(
        spec_replicas_path = ".spec.replicas",
        status_replicas_path = ".status.replicas",
        label_selector_path = ".status.selector"
    ),
    printcolumn(
        name = "Ready",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Ready\")].status",
        description = "Whether all of the spec serves."
    ),
    printcolumn(
        name = "Replicas",
        type_ = "integer",
        json_path = ".status.readyReplicas",
        description = "Pods that are ready."
    ),
    printcolumn(
        name = "Revision",
        type_ = "string",
        json_path = ".status.activeRevision",
        description = "The revision that serves or is about to."
    ),
    printcolumn(
        name = "URL",
        type_ = "string",
        json_path = ".status.url",
        description = "Where the models can be reached from inside the cluster."
    ),
    printcolumn(
        name = "Reason",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Ready\")].reason",
        description = "Why it is ready or not."
    ),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
pub struct InferenceModelSpec {
    /// The models, each name once.
    #[schemars(
        length(min = 1, max = 16),
        extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"])
    )]
    pub models: Vec<Model>,
    /// The server that every pod runs.
    #[serde(default)]
    pub server: Server,
    /// The devices that each pod gets, and the nodes that have them.
    #[serde(default)]
    pub accelerator: Accelerator,
    /// CPU and memory of the server's container: requests and limits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "borrowed::resources")]
    pub resources: Option<ResourceRequirements>,
    /// ServiceAccount of the pods. They get no token of it.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub service_account_name: Option<String>,
    /// Pods that serve. Leave it out of manifests where something scales: autoscalers write it.
    #[serde(default = "default_replicas")]
    #[schemars(range(min = 0, max = 1000))]
    pub replicas: i32,
    /// Who changes the number of replicas, between which bounds, and by what.
    #[serde(default)]
    pub scaling: Scaling,
    /// How the pods of a new revision replace those of the old one.
    #[serde(default)]
    pub rollout: Rollout,
    /// The Service that clients use.
    #[serde(default)]
    pub service: Service,
    /// An HTTPRoute of the Gateway API. Not built yet: refused.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub route: Option<Route>,
    /// A NetworkPolicy for the pods. Not built yet: refused.
    #[serde(default)]
    pub network_policy: NetworkPolicy,
    /// Objects of monitoring tools.
    #[serde(default)]
    pub monitoring: Monitoring,
    /// What keeps some pods serving while nodes come and go.
    #[serde(default)]
    pub availability: Availability,
    /// Where fetched models are kept for the next pod. Not built yet: refused.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cache: Option<Cache>,
    /// A PodTemplateSpec that is merged into that of the pods last: affinity, volumes, annotations and the like. Host
    /// namespaces, privileges, the labels of the selector, the server's ports, command and mounts, and claims that the
    /// pods have already are not its to set.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "borrowed::pod_template")]
    pub pod_template: Option<Value>,
    /// Takes all pods down and keeps everything else.
    #[serde(default)]
    pub suspend: bool,
    /// What could not be read of it; then the rest is all that is known. No field of the resource.
    #[serde(skip)]
    #[schemars(skip)]
    pub unread: Vec<Fault>,
}

fn default_replicas() -> i32 {
    1
}

/// What the schema fills in, without models.
impl Default for InferenceModelSpec {
    fn default() -> Self {
        Self {
            models: Vec::new(),
            server: Server::default(),
            accelerator: Accelerator::default(),
            resources: None,
            service_account_name: None,
            replicas: default_replicas(),
            scaling: Scaling::default(),
            rollout: Rollout::default(),
            service: Service::default(),
            route: None,
            network_policy: NetworkPolicy::default(),
            monitoring: Monitoring::default(),
            availability: Availability::default(),
            cache: None,
            pod_template: None,
            suspend: false,
            unread: Vec::new(),
        }
    }
}
