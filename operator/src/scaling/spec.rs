//! What an InferenceModel's spec and its state mean for who writes the number of replicas.

use crds::resource::{ScalingMode, conditions::scaling_active};
use kube::ResourceExt as _;

use super::scaler::{Scaler, Target};
use crate::{
    apply::{ApplyError, Scale, Writer},
    autoscalers,
    observe::Observed,
    rollout::{Plan, Stage},
    status::find,
};

/// Tells the scaler what the spec says. While that is not acted on, a model that is scaled is scaled by what it was before, whatever the
/// mode is now. Where that is not known, as after a restart, it is scaled by what the spec says, for no field of mode Operator can be
/// the reason; but none begins to be.
pub fn follow(scaler: &Scaler, observed: &Observed, plan: Option<&Plan>, is_refused: bool) {
    let key = (observed.namespace.clone(), observed.name.clone());
    let target = plan.and_then(|plan| scaled(observed, plan));
    let is_scaled = || scaler.scales(&key, &observed.model.uid().unwrap_or_default());
    match plan {
        Some(plan) if is_refused && may_scale(observed) && is_scaled() => {
            scaler.goes_on(&key, wanted(observed), is_rolling_out(plan));
        }
        _ => scaler.follow(&key, target.filter(|_| !is_refused || was_scaled(observed))),
    }
}

/// Whether somebody of ours scaled it, as far as its status tells.
fn was_scaled(observed: &Observed) -> bool {
    let told = observed.model.status.as_ref().and_then(|status| find(status, scaling_active::TYPE));
    told.is_some_and(|told| ![scaling_active::OFF, scaling_active::EXTERNAL_OWNER].contains(&told.reason.as_str()))
}

/// What the operator scales the model by, if it does: not beside another that writes the same number, be it one of a mode before,
/// and not where none are wanted.
fn scaled(observed: &Observed, plan: &Plan) -> Option<Target> {
    let spec = &observed.model.spec;
    let scales = spec.scaling.effective_mode() == Some(ScalingMode::Operator) && may_scale(observed);
    let latency = spec.scaling.targets.as_ref().and_then(|targets| targets.latency.as_ref());
    scales.then(|| Target {
        uid: observed.model.uid().unwrap_or_default(),
        policy: (&spec.scaling).into(),
        within: latency.map(|latency| latency.target.length()),
        wanted: wanted(observed),
        in_rollout: is_rolling_out(plan),
    })
}

fn may_scale(observed: &Observed) -> bool {
    autoscalers::is_clear(observed) && !observed.model.spec.suspend && !autoscalers::is_off(observed)
}

fn wanted(observed: &Observed) -> u32 {
    u32::try_from(observed.model.spec.replicas).unwrap_or_default()
}

/// Whether new pods replace old ones. One that does not get on is given up in time, but not while the spec cannot be acted on: then it
/// keeps replicas for no longer than it would have taken.
fn is_rolling_out(plan: &Plan) -> bool {
    let is_under_way = matches!(plan.stage, Stage::Surging | Stage::WaitingForCapacity | Stage::TerminatingFirst);
    is_under_way && !plan.is_overdue
}

/// Writes `minReplicas` where fewer are asked for and nobody is there to do it, as where KEDA is not: so many there are, and so many
/// are to be there when the mode ends. In the other modes there is always one.
///
/// # Errors
/// See [`Writer::write_scale`].
pub async fn raise_to_min(observed: &Observed, writer: &Writer) -> Result<(), ApplyError> {
    let (spec, uid) = (&observed.model.spec, observed.model.uid().unwrap_or_default());
    let to = u32::try_from(spec.scaling.at_least_min(spec.replicas)).unwrap_or_default();
    let from = wanted(observed);
    let is_alone = spec.scaling.effective_mode() == Some(ScalingMode::Keda) && autoscalers::wanted(observed).is_none();
    if to > from && is_alone && may_scale(observed) && !autoscalers::is_paused(observed) {
        writer.write_scale(&observed.namespace, &observed.name, &Scale { uid: &uid, from, to }).await?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeMap, sync::Arc};

    use crds::resource::InferenceModel;

    use super::*;

    fn model(replicas: i32) -> InferenceModel {
        let model = serde_json::json!({
            "apiVersion": "ortolan.dev/v1alpha1",
            "kind": "InferenceModel",
            "metadata": {"name": "espresso", "namespace": "coffee"},
            "spec": {
                "models": [{"name": "a", "source": {"uri": "file:///a.onnx"}}],
                "replicas": replicas,
                "scaling": {"minReplicas": 2, "maxReplicas": 7},
            },
        });
        serde_json::from_value(model).unwrap()
    }

    fn observed(model: InferenceModel) -> Observed {
        Observed::bare(Arc::new(model))
    }

    fn plan(stage: Stage) -> Plan {
        Plan {
            replicas: BTreeMap::new(),
            without_active: BTreeMap::new(),
            weights: BTreeMap::new(),
            active: "abc".to_owned(),
            stage,
            is_overdue: false,
            records: BTreeMap::new(),
            look_again: None,
        }
    }

    #[test]
    fn a_model_is_scaled_unless_none_are_wanted() {
        let plan = plan(Stage::Complete);
        assert_eq!(scaled(&observed(model(1)), &plan).map(|target| target.wanted), Some(1));
        assert_eq!(scaled(&observed(model(0)), &plan), None);
    }

    #[test]
    fn a_rollout_that_is_overdue_keeps_no_replicas() {
        let in_rollout = |plan| scaled(&observed(model(1)), &plan).is_some_and(|target| target.in_rollout);
        assert!(!in_rollout(plan(Stage::Complete)) && in_rollout(plan(Stage::Surging)));
        assert!(!in_rollout(Plan { is_overdue: true, ..plan(Stage::Surging) }));
    }
}
