//! What stands beside the pods: `spec.monitoring`, `spec.availability`, `spec.cache`.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::PvcSource;

/// Whether something is made.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Toggle {
    /// Where it makes sense and the cluster knows the kind.
    #[default]
    Auto,
    /// Yes; it is a failure if it cannot be made.
    Enabled,
    /// No.
    Disabled,
}

/// Objects of monitoring tools, where the cluster has them. The models of a namespace share one ServiceMonitor and one
/// PrometheusRule, both named ortolan-models, which are there as long as one of them wants them.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Monitoring {
    /// A ServiceMonitor of the Prometheus Operator, by which the pods are scraped. With Disabled they are left out.
    pub service_monitor: Toggle,
    /// A PrometheusRule with recording rules and alerts for the models of the namespace.
    pub rules: Toggle,
    /// A ConfigMap with a dashboard of this model for Grafana, labelled grafana_dashboard.
    pub dashboard: bool,
}

/// What keeps some pods serving while nodes come and go.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Availability {
    /// A PodDisruptionBudget. Not built yet: with Auto there is none, and anything else is refused.
    pub pdb: Toggle,
    /// Pods spread over zones and nodes. Not built yet: with Auto nothing is set, and anything else is refused.
    pub spread: Toggle,
}

/// Where fetched models are kept for the next pod.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Cache {
    /// A volume that pods of several nodes can mount.
    pub pvc: PvcSource,
}
