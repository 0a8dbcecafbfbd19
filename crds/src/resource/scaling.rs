//! How many replicas there are: `spec.scaling`.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Duration, rules};

/// Who changes the number of replicas, between which bounds, and by what.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
#[schemars(extend("x-kubernetes-validations" = rules::of_scaling()))]
pub struct Scaling {
    /// Who scales. Left out: Operator where maxReplicas is set, else nobody.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mode: Option<ScalingMode>,
    /// Never fewer replicas than this.
    #[schemars(range(min = 1, max = 1000))]
    pub min_replicas: i32,
    /// Never more replicas than this.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1000))]
    pub max_replicas: Option<i32>,
    /// The load that one replica should carry.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub targets: Option<Targets>,
    /// How fast replicas come and go.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub behavior: Option<Behavior>,
    /// When a burst is answered at once.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub panic: Option<Panic>,
    /// Numbers older than this are not acted on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stale_after: Option<Duration>,
}

impl Default for Scaling {
    fn default() -> Self {
        Self {
            mode: None,
            min_replicas: 1,
            max_replicas: None,
            targets: None,
            behavior: None,
            panic: None,
            stale_after: None,
        }
    }
}

impl Scaling {
    /// Who scales, with what the schema leaves open filled in: nobody, unless a mode or `maxReplicas` is set.
    #[must_use]
    pub fn effective_mode(&self) -> Option<ScalingMode> {
        self.mode.or(self.max_replicas.map(|_| ScalingMode::Operator))
    }

    /// Replicas that there should be where `replicas` are asked for: at least `minReplicas` wherever the spec has somebody scale,
    /// so that a new model does not begin with fewer. None at all stays none, which is how a person stops every autoscaler. Too
    /// many stay too: going down is the autoscaler's, at its pace.
    #[must_use]
    pub fn at_least_min(&self, replicas: i32) -> i32 {
        match self.effective_mode() {
            Some(ScalingMode::Operator | ScalingMode::Hpa | ScalingMode::Keda) if replicas > 0 => {
                replicas.max(self.min_replicas)
            }
            _ => replicas,
        }
    }
}

/// Who changes the number of replicas.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum ScalingMode {
    /// The operator, by what the pods tell it; needs nothing installed.
    Operator,
    /// A HorizontalPodAutoscaler that the operator makes.
    #[serde(rename = "HPA")]
    Hpa,
    /// A ScaledObject of KEDA that the operator makes.
    #[serde(rename = "KEDA")]
    Keda,
    /// Somebody else, through the scale subresource.
    External,
}

impl ScalingMode {
    /// The name that the resource uses.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Operator => "Operator",
            Self::Hpa => "HPA",
            Self::Keda => "KEDA",
            Self::External => "External",
        }
    }
}

/// The load that one replica should carry. With several, the one that asks for most replicas counts.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Targets {
    /// Samples in a replica, running and waiting.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1_000_000))]
    pub inflight_per_replica: Option<u32>,
    /// Samples that wait in a replica.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1_000_000))]
    pub queue_per_replica: Option<u32>,
    /// Latency of requests. May add replicas and keep them, never remove them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub latency: Option<LatencyTarget>,
}

/// A latency that most requests should keep.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = rules::of_latency()))]
pub struct LatencyTarget {
    /// Share of the requests that should keep it.
    #[serde(default = "default_quantile")]
    #[schemars(range(min = 0.5, max = 0.999))]
    pub quantile: f64,
    /// The latency.
    pub target: Duration,
}

fn default_quantile() -> f64 {
    0.95
}

/// How fast replicas come and go.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Behavior {
    /// On the way up.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub scale_up: Option<ScaleUp>,
    /// On the way down.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub scale_down: Option<ScaleDown>,
    /// Differences from the target below this share of it change nothing, in percent.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(max = 100))]
    pub tolerance_percent: Option<u32>,
}

/// How fast replicas come.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = rules::of_stabilization()))]
pub struct ScaleUp {
    /// The least that was recommended within this time is done.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stabilization: Option<Duration>,
    /// Most replicas added in one step.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1000))]
    pub max_per_step: Option<u32>,
}

/// How fast replicas go.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = rules::of_stabilization()))]
pub struct ScaleDown {
    /// The most that was recommended within this time is kept.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stabilization: Option<Duration>,
    /// Most replicas removed in one minute.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1000))]
    pub max_per_minute: Option<u32>,
}

/// When a burst is answered at once.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = rules::of_panic()))]
pub struct Panic {
    /// The load is averaged over this time.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub window: Option<Duration>,
    /// It is a burst when the load is this share of what the replicas should carry, in percent.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 100, max = 1000))]
    pub threshold_percent: Option<u32>,
}
