//! Events about pods that have a node but do not start: a volume that cannot be mounted says so nowhere else.
//!
//! Listed for one pod at a time, in the background, at most every [`INTERVAL`] and for few pods at once: the API server reads all Events
//! of a namespace for each list, and when a registry fails there are many pods to ask for.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use crds::resource::InferenceModel;
use k8s_openapi::{
    api::core::v1::{Event, Pod},
    jiff::Timestamp,
};
use kube::{Api, Client, ResourceExt as _, api::ListParams, runtime::reflector::ObjectRef};
use tokio::sync::{Semaphore, mpsc};

use crate::{
    causes::{chain, lasting},
    diagnose,
    waiting::Change,
};

/// How long the Events of one pod are not listed again.
const INTERVAL: Duration = Duration::from_secs(10);

/// Lists under way at once.
const CONCURRENT: usize = 4;

/// A list that takes longer has failed.
const TIMEOUT: Duration = Duration::from_secs(10);

/// Volumes and images often take a moment; who starts within it needs no explanation.
const PATIENCE: Duration = Duration::from_secs(3);

/// The kubelet tries a mount again every two minutes or sooner.
const REPEATED_WITHIN: Duration = Duration::from_secs(180);

/// Warnings about pods. Cheap to clone.
#[derive(Clone)]
pub struct Stuck {
    client: Client,
    seen: Arc<Mutex<HashMap<String, Seen>>>,
    changed: mpsc::Sender<Change>,
    permits: Arc<Semaphore>,
}

struct Seen {
    /// When its Events were listed last; `None` while they are to be.
    asked: Option<Instant>,
    warning: Option<Warning>,
}

/// What an Event says that warns of a pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Warning {
    /// Which container it is about, if it says so.
    pub container: Option<String>,
    /// Its reason and its message.
    pub text: String,
}

impl Stuck {
    /// Nothing is known yet; whom a warning concerns is told through `changed`.
    #[must_use]
    pub fn new(client: Client, changed: mpsc::Sender<Change>) -> Self {
        Self { client, seen: Arc::default(), changed, permits: Arc::new(Semaphore::new(CONCURRENT)) }
    }

    /// The last warning about a pod, as far as it is known; it is looked for again if that is long ago.
    #[must_use]
    pub fn of(&self, pod: &Pod, model: &ObjectRef<InferenceModel>) -> Option<Warning> {
        let uid = pod.uid()?;
        let mut all = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let warning = all.get(&uid).and_then(|seen| seen.warning.clone());
        let is_recent = |seen: &Seen| seen.asked.is_none_or(|asked| asked.elapsed() < INTERVAL);
        if !all.get(&uid).is_some_and(is_recent) {
            all.insert(uid.clone(), Seen { asked: None, warning: warning.clone() });
            let (stuck, namespace, model) = (self.clone(), pod.namespace().unwrap_or_default(), model.clone());
            tokio::spawn(async move { stuck.look(uid, &namespace, model).await });
        }
        warning
    }

    /// Forgets pods that are gone.
    pub fn keep_only(&self, is_there: impl Fn(&str) -> bool) {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).retain(|uid, _| is_there(uid));
    }

    async fn look(&self, uid: String, namespace: &str, model: ObjectRef<InferenceModel>) {
        let found = self.list(&uid, namespace, &model.name).await;
        let changed = {
            let mut all = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
            // Gone in the meantime.
            let Some(seen) = all.get_mut(&uid) else { return };
            seen.asked = Some(Instant::now());
            found.is_some_and(|warning| std::mem::replace(&mut seen.warning, warning.clone()) != warning)
        };
        if changed {
            // The other end is gone when the process ends.
            let _ = self.changed.send(Change::of(model)).await;
        }
    }

    /// What warns of a pod now, if anything does; `None` where it is not known.
    async fn list(&self, uid: &str, namespace: &str, model: &str) -> Option<Option<Warning>> {
        let _permit = self.permits.acquire().await.ok()?;
        let events: Api<Event> = Api::namespaced(self.client.clone(), namespace);
        let about = ListParams::default().fields(&format!("involvedObject.uid={uid}"));
        let listed = tokio::time::timeout(TIMEOUT, events.list(&about)).await.ok()?;
        let mut events = listed
            .inspect_err(|error| {
                let error = chain(error);
                tracing::debug!(namespace, inference_model = model, error, "the events of a pod cannot be listed");
            })
            .ok()?;
        events.items.sort_by_key(|event| event.metadata.resource_version.clone().and_then(|it| it.parse::<u64>().ok()));
        Some(current(&events.items, crate::clock::now()).map(Warning::of))
    }
}

/// The last warning that still holds, of the Events about a pod that has a node, in their order.
fn current(events: &[Event], now: Timestamp) -> Option<&Event> {
    // Attach succeeded for volume "pvc-1", Multi-Attach error for volume "pvc-1" …
    let volume = |event: &Event| event.message.as_deref()?.split('"').nth(1).map(str::to_owned);
    let is_attached_later = |at: usize, event: &Event| {
        let of_same =
            |later: &Event| later.reason.as_deref() == Some("SuccessfulAttachVolume") && volume(later) == volume(event);
        events[at..].iter().any(of_same)
    };
    let holds = |at: usize, event: &Event| match event.reason.as_deref() {
        // What the scheduler said is no longer true, and an image may come without its Secrets.
        Some("FailedScheduling" | "FailedToRetrieveImagePullSecret") => false,
        // Told once, however long it lasts.
        Some("FailedAttachVolume") => !is_attached_later(at, event),
        _ => {
            let last =
                event.last_timestamp.as_ref().map(|time| time.0).or(event.event_time.as_ref().map(|time| time.0));
            last.is_none_or(|last| now.duration_since(last).unsigned_abs() < REPEATED_WITHIN)
        }
    };
    let warnings = events.iter().enumerate().rev().filter(|(_, event)| event.type_.as_deref() == Some("Warning"));
    warnings.filter(|(at, event)| holds(*at, event)).map(|(_, event)| event).next()
}

impl Warning {
    fn of(event: &Event) -> Self {
        // spec.containers{server}, spec.initContainers{fetch-tiny}: there is no other field that tells the container.
        let part = event.involved_object.field_path.as_deref();
        let container = part.and_then(|path| Some(path.split_once('{')?.1.strip_suffix('}')?.to_owned()));
        let reason = event.reason.as_deref().unwrap_or("Warning");
        Self { container, text: format!("{reason}: {}", lasting(event.message.as_deref().unwrap_or_default())) }
    }
}

/// Whether it is time to ask what keeps a pod from starting.
#[must_use]
pub fn is_stuck(pod: &Pod, now: Timestamp) -> bool {
    let started = pod.status.as_ref().and_then(|status| status.start_time.as_ref());
    is_silent(pod) && started.is_some_and(|started| now.duration_since(started.0).unsigned_abs() >= PATIENCE)
}

/// Whether a pod has a node, but neither its server nor what comes before it runs, ran or says why it does not.
#[must_use]
pub fn is_silent(pod: &Pod) -> bool {
    let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
    let has_node = pod.spec.as_ref().is_some_and(|spec| spec.node_name.is_some());
    let untold = diagnose::steps(pod).all(diagnose::is_untold);
    has_node && untold && phase == Some("Pending") && pod.metadata.deletion_timestamp.is_none()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may panic")]

    use serde_json::json;

    use super::*;

    #[test]
    fn a_warning_names_its_container() {
        let of = |field_path: Option<&str>| {
            let event = json!({
                "metadata": {}, "involvedObject": {"fieldPath": field_path}, "reason": "Failed", "message": "no Secret",
            });
            Warning::of(&serde_json::from_value(event).unwrap())
        };
        assert_eq!(of(Some("spec.initContainers{fetch-tiny}")).container.as_deref(), Some("fetch-tiny"));
        assert_eq!(of(Some("spec")).container, None);
        assert_eq!(of(None), Warning { container: None, text: "Failed: no Secret".to_owned() });
    }

    #[test]
    fn a_warning_that_was_not_repeated_has_healed_but_not_one_that_is_told_once() {
        let now: Timestamp = "2026-01-01T12:00:00Z".parse().unwrap();
        let event = |type_: &str, reason: &str, minutes: i64| -> Event {
            let at = now - Duration::from_secs(minutes.unsigned_abs() * 60);
            let event = json!({"metadata": {}, "involvedObject": {}, "type": type_, "reason": reason, "lastTimestamp": at.to_string()});
            serde_json::from_value(event).unwrap()
        };
        let told = |events: &[Event]| current(events, now).and_then(|event| event.reason.clone());
        assert_eq!(told(&[event("Warning", "FailedMount", 5)]), None);
        assert_eq!(
            told(&[event("Warning", "FailedMount", 1), event("Normal", "Pulling", 0)]).as_deref(),
            Some("FailedMount")
        );
        assert_eq!(told(&[event("Warning", "FailedScheduling", 0)]), None);
        let attach = event("Warning", "FailedAttachVolume", 30);
        let secrets = event("Warning", "FailedToRetrieveImagePullSecret", 0);
        assert_eq!(told(&[attach.clone(), secrets]).as_deref(), Some("FailedAttachVolume"));
        let of = |event: Event, volume: &str| Event { message: Some(format!("for volume \"{volume}\"")), ..event };
        let attached = event("Normal", "SuccessfulAttachVolume", 1);
        assert_eq!(told(&[of(attach.clone(), "a"), of(attached.clone(), "a")]), None);
        assert_eq!(told(&[of(attach, "a"), of(attached, "b")]).as_deref(), Some("FailedAttachVolume"));
    }
}
