//! What waits to be looked at: InferenceModels, and since when; and namespaces.

use std::{
    collections::{BTreeSet, HashMap},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use crds::resource::InferenceModel;
use kube::runtime::reflector::ObjectRef;
use tokio::sync::Notify;

use crate::cache::Key;

/// Something has changed that concerns an InferenceModel.
#[derive(Debug, Clone)]
pub struct Change {
    /// Whom it concerns.
    pub model: ObjectRef<InferenceModel>,
    /// When it was seen.
    pub seen: Instant,
}

impl Change {
    /// A change that was seen right now.
    #[must_use]
    pub fn of(model: ObjectRef<InferenceModel>) -> Self {
        Self { model, seen: Instant::now() }
    }
}

impl From<Key> for Change {
    fn from((namespace, name): Key) -> Self {
        Self::of(ObjectRef::new(&name).within(&namespace))
    }
}

/// The InferenceModels with a change that no reconcile has looked at. One waits once, however much changes.
#[derive(Debug, Default)]
pub struct Waiting(Mutex<HashMap<ObjectRef<InferenceModel>, Instant>>);

impl Waiting {
    /// A change waits from the moment at which it was seen.
    pub fn enters(&self, change: &Change) {
        let mut waiting = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        waiting.entry(change.model.clone()).or_insert(change.seen);
    }

    /// Its reconcile begins, or it is gone. Returns since when a change has waited; none if it is looked at for another
    /// reason, as time that has passed.
    pub fn leaves(&self, model: &ObjectRef<InferenceModel>) -> Option<Instant> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(model)
    }

    /// How many wait, and how long the first of them has.
    #[must_use]
    pub fn seen(&self, now: Instant) -> (usize, Duration) {
        let waiting = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let first = waiting.values().min();
        (waiting.len(), first.map(|since| now.saturating_duration_since(*since)).unwrap_or_default())
    }
}

/// Namespaces that are to be looked at. Cheap to clone; all clones see the same.
#[derive(Debug, Clone, Default)]
pub struct Marks {
    namespaces: Arc<Mutex<BTreeSet<String>>>,
    woken: Arc<Notify>,
}

impl Marks {
    /// A namespace is to be looked at.
    pub fn add(&self, namespace: &str) {
        self.namespaces.lock().unwrap_or_else(PoisonError::into_inner).insert(namespace.to_owned());
        self.woken.notify_one();
    }

    /// Waits until one is to be looked at.
    pub async fn wake(&self) {
        self.woken.notified().await;
    }

    /// All of them; none of them is any more.
    #[must_use]
    pub fn take(&self) -> BTreeSet<String> {
        std::mem::take(&mut *self.namespaces.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_waits_from_its_first_change_until_its_reconcile_begins() {
        let (waiting, began) = (Waiting::default(), Instant::now());
        let change = |name: &str, second: u64| Change {
            model: ObjectRef::new(name).within("coffee"),
            seen: began + Duration::from_secs(second),
        };
        waiting.enters(&change("espresso", 1));
        waiting.enters(&change("espresso", 3));
        waiting.enters(&change("ristretto", 2));
        assert_eq!(waiting.seen(began + Duration::from_secs(5)), (2, Duration::from_secs(4)));
        assert_eq!(waiting.leaves(&change("espresso", 0).model), Some(began + Duration::from_secs(1)));
        assert_eq!(waiting.leaves(&change("espresso", 0).model), None);
        assert_eq!(waiting.seen(began + Duration::from_secs(5)), (1, Duration::from_secs(3)));
    }
}
