//! Who scales in the modes HPA and KEDA: an object that another program acts on, with the numbers that our pods export.
//!
//! Both follow the same two numbers of each pod, in samples: what runs and waits in it, and what waits, of its models the one that
//! has most. Both write the scale subresource of the InferenceModel and never a Deployment.

use std::collections::BTreeMap;

use crds::resource::{Behavior, Duration, InferenceModel, Scaling, ScalingMode, Targets};
use k8s_openapi::{
    api::autoscaling::v2::{
        CrossVersionObjectReference, HPAScalingPolicy, HPAScalingRules, HorizontalPodAutoscaler,
        HorizontalPodAutoscalerBehavior, HorizontalPodAutoscalerSpec, MetricIdentifier, MetricSpec, MetricTarget,
        PodsMetricSource,
    },
    apimachinery::pkg::api::resource::Quantity,
};
use kube::{Resource as _, ResourceExt as _};

use super::objects::metadata;
use crate::{
    autoscalers,
    keda::{Advanced, AutoscalerConfig, Fallback, ScaleTarget, ScaledObject, ScaledObjectSpec, Trigger},
    observe::Observed,
    validate::Checked,
};

/// Samples that run and wait in a pod, as the rules for prometheus-adapter name it.
pub const LOAD_METRIC: &str = "ortolan_pod_load_samples";

/// Samples that wait in a pod, likewise.
pub const QUEUE_METRIC: &str = "ortolan_pod_queue_samples";

/// The gauges of the pods that these are made of.
const DECODING: &str = "ortolan_decoding_requests";
const WAITING: &str = "ortolan_queue_depth";
const RUNNING: &str = "ortolan_inflight_samples";

/// The step in which a HorizontalPodAutoscaler looks, if nobody has set another.
const STEP_SECONDS: i32 = 15;

/// Replicas added in a step, and, where that is more, in percent: a burst is met within a few steps.
const UP_PODS: i32 = 4;
/// See [`UP_PODS`].
const UP_PERCENT: i32 = 100;

/// How long replicas are kept that were wanted not long ago: loading a model costs more than a pod that idles for minutes.
const DOWN_WINDOW_SECONDS: i32 = 300;

/// Replicas removed in a minute, in percent: a load that comes back finds half of them.
const DOWN_PERCENT: i32 = 50;

/// Failures in a row after which KEDA holds the replicas by itself and says so; before, its HorizontalPodAutoscaler holds them.
const FALLBACK_AFTER: i32 = 3;

/// What should scale, besides the operator itself.
#[derive(Debug, Clone, Default, PartialEq)]
pub enum Scaler {
    /// What does so now: the spec cannot be acted on.
    #[default]
    AsBefore,
    /// Nothing of ours, or not yet: of the mode before something is left, or somebody else scales.
    Nothing,
    /// This one.
    Hpa(Box<HorizontalPodAutoscaler>),
    /// This one.
    Keda(Box<ScaledObject>),
}

/// Decides on what should scale now. Two autoscalers never meet: one that is new waits until those of a mode before are gone, and
/// is not made beside that of somebody else.
#[must_use]
pub fn scaler(observed: &Observed, checked: Option<&Checked<'_>>) -> Scaler {
    let Some(checked) = checked else { return Scaler::AsBefore };
    let model = &observed.model;
    let is_clear = autoscalers::is_clear(observed);
    // KEDA brings a number below its smallest back to that, 0 as well, unless it is paused. A HorizontalPodAutoscaler lets 0 be.
    let is_off = autoscalers::is_off(observed) && !autoscalers::is_paused(observed);
    match (checked.spec.scaling.effective_mode(), checked.prometheus) {
        (Some(ScalingMode::Hpa), _) if is_clear || !observed.horizontal_pod_autoscalers.is_empty() => {
            Scaler::Hpa(Box::new(horizontal_pod_autoscaler(model)))
        }
        (Some(ScalingMode::Keda), Some(prometheus))
            if observed.has_keda && !is_off && (is_clear || !observed.scaled_objects.is_empty()) =>
        {
            Scaler::Keda(Box::new(scaled_object(model, prometheus)))
        }
        _ => Scaler::Nothing,
    }
}

/// The HorizontalPodAutoscaler of an InferenceModel in mode HPA.
#[must_use]
pub fn horizontal_pod_autoscaler(model: &InferenceModel) -> HorizontalPodAutoscaler {
    let (name, scaling) = (model.name_any(), &model.spec.scaling);
    let (min, max) = bounds(scaling);
    let metrics = targets(scaling).into_iter().map(|(number, target)| pods_metric(number.metric(), target));
    HorizontalPodAutoscaler {
        metadata: metadata(model, &name, None),
        spec: HorizontalPodAutoscalerSpec {
            scale_target_ref: CrossVersionObjectReference {
                api_version: Some(InferenceModel::api_version(&()).into_owned()),
                kind: InferenceModel::kind(&()).into_owned(),
                name,
            },
            min_replicas: Some(min),
            max_replicas: max,
            metrics: Some(metrics.collect()),
            behavior: Some(behavior(scaling)),
        },
        status: None,
    }
}

/// The ScaledObject of an InferenceModel in mode KEDA, which asks the Prometheus at this address.
#[must_use]
pub fn scaled_object(model: &InferenceModel, prometheus: &str) -> ScaledObject {
    let (name, scaling) = (model.name_any(), &model.spec.scaling);
    let (min, max) = bounds(scaling);
    let namespace = model.namespace().unwrap_or_default();
    let query = |number: Number, target: u32| number.query(&namespace, &name, target);
    let targets = targets(scaling).into_iter();
    let triggers = targets.map(|(number, target)| trigger(prometheus, number, query(number, target), target)).collect();
    let config = AutoscalerConfig { behavior: Some(behavior(scaling)) };
    ScaledObject {
        metadata: metadata(model, &name, None),
        spec: ScaledObjectSpec {
            scale_target_ref: ScaleTarget {
                api_version: InferenceModel::api_version(&()).into_owned(),
                kind: InferenceModel::kind(&()).into_owned(),
                name,
            },
            polling_interval: Some(STEP_SECONDS),
            min_replica_count: Some(min),
            max_replica_count: Some(max),
            advanced: Some(Advanced { horizontal_pod_autoscaler_config: Some(config) }),
            // What there is stays: a Prometheus that is away says nothing of the load.
            fallback: Some(Fallback {
                failure_threshold: FALLBACK_AFTER,
                replicas: min,
                behavior: Some("currentReplicasIfHigher".to_owned()),
            }),
            triggers,
        },
        status: None,
    }
}

/// A number of a pod that replicas follow.
#[derive(Debug, Clone, Copy)]
enum Number {
    Load,
    Queue,
}

impl Number {
    fn name(self) -> &'static str {
        match self {
            Self::Load => "load",
            Self::Queue => "queue",
        }
    }

    fn metric(self) -> &'static str {
        match self {
            Self::Load => LOAD_METRIC,
            Self::Queue => QUEUE_METRIC,
        }
    }

    /// All pods of an InferenceModel together. A pod that does not answer counts as one that carries the target, as far as that keeps
    /// replicas, and as idle where more are wanted: the rule by which a HorizontalPodAutoscaler counts pods without numbers.
    fn query(self, namespace: &str, model: &str, target: u32) -> String {
        let selector = format!("{{namespace=\"{namespace}\",ortolan_dev_inference_model=\"{model}\"}}");
        let samples = match self {
            Self::Load => [DECODING, WAITING, RUNNING].map(|gauge| format!("{gauge}{selector}")).join(" + "),
            Self::Queue => [DECODING, WAITING].map(|gauge| format!("{gauge}{selector}")).join(" + "),
        };
        let (told, pods) = (format!("sum(max by (pod) ({samples}))"), format!("max by (pod) (up{selector})"));
        let silent = format!("(count({pods} == 0) or vector(0))");
        format!("clamp_min(clamp_max({told} + {target} * {silent}, scalar({target} * count({pods}))), scalar({told}))")
    }
}

fn targets(scaling: &Scaling) -> Vec<(Number, u32)> {
    // The latency is refused in these modes.
    let Targets { inflight_per_replica, queue_per_replica, latency: _ } = scaling.targets.clone().unwrap_or_default();
    let targets = [(Number::Load, inflight_per_replica), (Number::Queue, queue_per_replica)];
    targets.into_iter().filter_map(|(number, target)| Some((number, target?))).collect()
}

/// The schema has these modes set maxReplicas.
fn bounds(scaling: &Scaling) -> (i32, i32) {
    (scaling.min_replicas, scaling.max_replicas.unwrap_or(scaling.min_replicas))
}

fn pods_metric(name: &str, target: u32) -> MetricSpec {
    MetricSpec {
        type_: "Pods".to_owned(),
        pods: Some(PodsMetricSource {
            metric: MetricIdentifier { name: name.to_owned(), selector: None },
            target: MetricTarget {
                type_: "AverageValue".to_owned(),
                average_value: Some(quantity(target)),
                ..MetricTarget::default()
            },
        }),
        ..MetricSpec::default()
    }
}

fn trigger(prometheus: &str, number: Number, query: String, target: u32) -> Trigger {
    let metadata = [
        ("serverAddress", prometheus.to_owned()),
        ("query", query),
        ("threshold", target.to_string()),
        // No answer is no load of 0.
        ("ignoreNullValues", "false".to_owned()),
    ];
    Trigger {
        type_: "prometheus".to_owned(),
        name: Some(number.name().to_owned()),
        metric_type: Some("AverageValue".to_owned()),
        metadata: metadata.map(|(key, value)| (key.to_owned(), value)).into_iter().collect::<BTreeMap<_, _>>(),
    }
}

fn behavior(scaling: &Scaling) -> HorizontalPodAutoscalerBehavior {
    let Behavior { scale_up, scale_down, tolerance_percent } = scaling.behavior.clone().unwrap_or_default();
    let (up, down) = (scale_up.unwrap_or_default(), scale_down.unwrap_or_default());
    let up_policies = up.max_per_step.map_or_else(
        || vec![policy("Percent", UP_PERCENT, STEP_SECONDS), policy("Pods", UP_PODS, STEP_SECONDS)],
        |most| vec![policy("Pods", count(most), STEP_SECONDS)],
    );
    let down_policies = down
        .max_per_minute
        .map_or_else(|| vec![policy("Percent", DOWN_PERCENT, 60)], |most| vec![policy("Pods", count(most), 60)]);
    let rules = |window: i32, policies: Vec<HPAScalingPolicy>| HPAScalingRules {
        stabilization_window_seconds: Some(window),
        select_policy: Some("Max".to_owned()),
        policies: Some(policies),
        tolerance: tolerance_percent.map(percent),
    };
    HorizontalPodAutoscalerBehavior {
        scale_up: Some(rules(up.stabilization.map_or(0, seconds), up_policies)),
        scale_down: Some(rules(down.stabilization.map_or(DOWN_WINDOW_SECONDS, seconds), down_policies)),
    }
}

fn policy(type_: &str, value: i32, period_seconds: i32) -> HPAScalingPolicy {
    HPAScalingPolicy { type_: type_.to_owned(), value, period_seconds }
}

fn count(number: u32) -> i32 {
    i32::try_from(number).unwrap_or(i32::MAX)
}

/// Rounded up: who wants a window gets one.
fn seconds(duration: Duration) -> i32 {
    i32::try_from(duration.as_millis().div_ceil(1000)).unwrap_or(i32::MAX)
}

/// A whole number as the API server would write it, so that what is stored is what was wanted.
fn quantity(number: u32) -> Quantity {
    let (mut number, mut suffixes) = (number, ["", "k", "M", "G"].into_iter());
    let mut suffix = suffixes.next().unwrap_or_default();
    while number > 0 && number.is_multiple_of(1000) {
        number /= 1000;
        suffix = suffixes.next().unwrap_or_default();
    }
    Quantity(format!("{number}{suffix}"))
}

/// A share, likewise.
fn percent(percent: u32) -> Quantity {
    if percent.is_multiple_of(100) { quantity(percent / 100) } else { Quantity(format!("{}m", percent * 10)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_written_as_the_api_server_writes_them() {
        for (number, text) in [(0, "0"), (8, "8"), (1000, "1k"), (1500, "1500"), (20_000, "20k"), (1_000_000, "1M")] {
            assert_eq!(quantity(number).0, text);
        }
        for (share, text) in [(0, "0"), (5, "50m"), (10, "100m"), (100, "1")] {
            assert_eq!(percent(share).0, text);
        }
    }
}
