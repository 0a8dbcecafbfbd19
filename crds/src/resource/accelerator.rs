//! GPUs and where pods go: `spec.accelerator`.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::Toleration;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{borrowed, rules};

/// The devices that each pod gets, and the nodes that have them.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
#[schemars(extend("x-kubernetes-validations" = rules::of_accelerator()))]
pub struct Accelerator {
    /// Devices of each pod. Above 0 with an nvidia.com resource, pods run the cuda image.
    #[schemars(range(max = 16))]
    pub count: u32,
    /// Extended resource that a device is counted as; its taint is tolerated where count is above 0.
    #[schemars(length(min = 1, max = 253))]
    pub resource_name: String,
    /// A part of a GPU by its MIG profile, for example 1g.5gb; the resource is then nvidia.com/mig-1g.5gb. Not built
    /// yet: refused.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 32), regex(pattern = r"^[1-9]g\.[0-9]{1,3}gb(\.[a-z]+)*$"))]
    pub mig: Option<String>,
    /// Devices by dynamic resource allocation, in place of count. Not built yet: refused.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 8), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"]))]
    pub claims: Vec<Claim>,
    /// RuntimeClass of the pods.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub runtime_class_name: Option<String>,
    /// Labels that a node must have.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(schema_with = "borrowed::node_selector")]
    pub node_selector: BTreeMap<String, String>,
    /// Taints that the pods tolerate, besides that of the GPU.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "borrowed::tolerations")]
    pub tolerations: Vec<Toleration>,
}

impl Default for Accelerator {
    fn default() -> Self {
        Self {
            count: 0,
            resource_name: "nvidia.com/gpu".to_owned(),
            mig: None,
            claims: Vec::new(),
            runtime_class_name: None,
            node_selector: BTreeMap::new(),
            tolerations: Vec::new(),
        }
    }
}

/// A claim of dynamic resource allocation: exactly one of the two names.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = rules::of_claim()))]
pub struct Claim {
    /// Name of the claim within the pod.
    #[schemars(length(min = 1, max = 63), regex(pattern = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"))]
    pub name: String,
    /// A ResourceClaim that all pods share.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub resource_claim_name: Option<String>,
    /// A ResourceClaimTemplate, from which each pod gets a claim of its own.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub resource_claim_template_name: Option<String>,
}
