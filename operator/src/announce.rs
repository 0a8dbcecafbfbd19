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

use crate::{apply::Applied, causes::chain, status::find};

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
    let since = |scaling: &ScalingStatus| scaling.last_scale_time.clone();
    let is_news = since(now).is_some() && before.and_then(since) != since(now);
    is_news.then(|| {
        let event = event(EventType::Normal, SCALED, &format!("{} replicas: {}", now.desired, now.reason));
        Event { action: format!("ScaleTo{}", now.desired), ..event }
    })
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
