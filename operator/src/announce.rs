//! Events: what `kubectl describe` shows of the past.

use crds::resource::{
    InferenceModel, InferenceModelStatus, ScalingStatus,
    conditions::{READY, available, model_loaded, rolled_out},
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::{
    Resource as _, ResourceExt as _,
    runtime::events::{Event, EventType, Recorder},
};

use serde_json::Value;

use crate::{apply::Applied, autoscalers, causes::chain, digest::digest, status::find};

/// An Event's note has at most this many bytes.
const LONGEST_NOTE_BYTES: usize = 1024;

/// Reason of the Event about children that were written though the spec had not changed.
const REPAIRED: &str = "Repaired";

/// Reason of the Event about another number of replicas.
const SCALED: &str = "Scaled";

/// Stages that pass by themselves.
const ON_THE_WAY: [&str; 9] = [
    model_loaded::PREPARING,
    model_loaded::FETCHING,
    model_loaded::LOADING,
    rolled_out::SURGING,
    rolled_out::TERMINATING_FIRST,
    available::SUSPENDED,
    available::NO_REPLICA_READY,
    crds::resource::conditions::PENDING,
    crds::resource::conditions::ALL_SERVES,
];

/// Tells what has changed between two statuses, and what was repaired.
pub async fn announce(recorder: &Recorder, model: &InferenceModel, status: &InferenceModelStatus, applied: &Applied) {
    let before = model.status.clone().unwrap_or_default();
    let mut events: Vec<Event> = [READY, rolled_out::TYPE]
        .iter()
        .filter_map(|type_| changed(find(&before, type_), find(status, type_)?))
        .collect();
    // Both speak of the same: one is enough.
    events.dedup_by(|later, earlier| later.reason == earlier.reason);
    events.extend(scaled(&before, status));
    events.extend(repaired(&before, status, applied));
    // Events with the same action and reason are counted together under the first one's note, so each revision has its own.
    let action = status.active_revision.clone().unwrap_or_else(|| "Reconcile".to_owned());
    for event in events {
        let action = if event.action.is_empty() { action.clone() } else { event.action };
        let event = Event { action, ..event };
        if let Err(error) = recorder.publish(&event, &model.object_ref(&())).await {
            let (namespace, inference_model) = (model.namespace(), model.name_any());
            let error = chain(&error);
            tracing::warn!(namespace, inference_model, reason = event.reason, error, "an event is lost");
        }
    }
}

fn changed(before: Option<&Condition>, now: &Condition) -> Option<Event> {
    if before.is_some_and(|before| before.status == now.status && before.reason == now.reason) {
        return None;
    }
    let passes = now.status == "True" || ON_THE_WAY.contains(&now.reason.as_str());
    let type_ = if passes { EventType::Normal } else { EventType::Warning };
    Some(event(type_, &now.reason, &now.message))
}

/// Another number of replicas was decided on.
fn scaled(before: &InferenceModelStatus, now: &InferenceModelStatus) -> Option<Event> {
    let (before, now) = (before.scaling.as_ref(), now.scaling.as_ref()?);
    let is_news = now.last_scale_time.is_some() && before.is_none_or(|before| is_another_step(before, now));
    is_news.then(|| {
        let event = event(EventType::Normal, SCALED, &format!("{} replicas: {}", now.desired, now.reason));
        // For minutes, Events with the same action are told by the first one's note: steps that are told by other words have another.
        let words = digest(&Value::from(now.reason.as_str()), 4);
        Event { action: format!("ScaleTo{}-{words}", now.desired), ..event }
    })
}

/// Whether it is not the step that was told before. Two of the operator's may be of the same second; what an autoscaler tells, and the
/// number that it goes by, change without a step of its own.
fn is_another_step(before: &ScalingStatus, now: &ScalingStatus) -> bool {
    let is_ours = !now.reason.starts_with(autoscalers::KIND);
    before.last_scale_time != now.last_scale_time || (is_ours && before != now)
}

/// Children that were written at rest: somebody else had changed or deleted them.
fn repaired(before: &InferenceModelStatus, now: &InferenceModelStatus, applied: &Applied) -> Option<Event> {
    let rested = |status: &InferenceModelStatus| find(status, rolled_out::TYPE).is_some_and(|it| it.status == "True");
    let at_rest = before.observed_generation == now.observed_generation && rested(before) && rested(now);
    let written = applied.written.join(", ");
    (at_rest && !written.is_empty()).then(|| {
        event(EventType::Normal, REPAIRED, &format!("written again, because it was not as it should be: {written}"))
    })
}

fn event(type_: EventType, reason: &str, note: &str) -> Event {
    let mut note = note.to_owned();
    note.truncate(note.floor_char_boundary(LONGEST_NOTE_BYTES));
    Event { type_, reason: reason.to_owned(), note: Some(note), action: String::new(), secondary: None }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

    use super::*;

    /// A step to so many, at that second of the epoch.
    fn stepped(desired: i32, reason: &str, second: i64) -> InferenceModelStatus {
        let at = k8s_openapi::jiff::Timestamp::from_second(second).unwrap();
        let step = ScalingStatus { desired, reason: reason.to_owned(), last_scale_time: Some(Time(at)) };
        InferenceModelStatus { scaling: Some(step), ..InferenceModelStatus::default() }
    }

    #[test]
    fn each_step_has_an_event_with_its_own_words() {
        let steps = [
            stepped(3, "the load is far over the target (there were 1)", 7),
            stepped(5, "the load is far over the target (there were 3)", 7),
            stepped(3, "fewer replicas carry the load (there were 5)", 90),
            stepped(3, "the load is over the target (there were 2)", 90),
        ];
        let mut before = InferenceModelStatus::default();
        let mut actions = Vec::new();
        for step in steps {
            actions.extend(scaled(&before, &step).map(|event| event.action));
            assert!(scaled(&step, &step).is_none(), "nothing is new");
            before = step;
        }
        assert!(actions.iter().all(|action| action.starts_with("ScaleTo") && action.len() < 128));
        actions.sort();
        actions.dedup();
        assert_eq!(actions.len(), 4, "{actions:?}");
    }

    #[test]
    fn what_an_autoscaler_tells_without_a_step_is_none() {
        let before = stepped(3, "HorizontalPodAutoscaler espresso scales", 7);
        assert!(scaled(&before, &stepped(4, "HorizontalPodAutoscaler espresso: too many are wanted", 7)).is_none());
        assert!(scaled(&before, &stepped(3, "HorizontalPodAutoscaler espresso scales", 8)).is_some());
    }
}
