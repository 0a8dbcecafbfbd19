//! What is known of the models that are scaled: what their status says.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
};

use crds::resource::ScalingStatus;

use super::Reason;
use crate::cache::Key;

/// What the status says of the scaling.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outcome {
    /// The last step, if there was one in this process's time.
    pub step: Option<ScalingStatus>,
    /// How it stands.
    pub state: State,
    /// The last reason that has lasted; none before one has.
    pub lasting: Option<Reason>,
}

/// How it stands with a model that is scaled.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum State {
    /// The number follows the load.
    Active,
    /// It would be larger than the bounds allow.
    LimitedByMax,
    /// It stays, for want of numbers.
    Stale,
    /// It stays, for there is no pod that could tell.
    NoReplicaReady,
    /// It stays, for the API server does not take another one. What it says.
    CannotWrite(String),
}

/// What is known of the models that are scaled. Cheap to clone; all clones see the same.
#[derive(Debug, Clone, Default)]
pub struct Outcomes(Arc<Mutex<HashMap<Key, Outcome>>>);

impl Outcomes {
    /// What is known of one; nothing before its first decision.
    #[must_use]
    pub fn of(&self, namespace: &str, name: &str) -> Option<Outcome> {
        let outcomes = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        outcomes.get(&(namespace.to_owned(), name.to_owned())).cloned()
    }

    /// Whether it was something else before. Nothing is put, and nothing new, for whoever is followed no more.
    pub(super) fn put(&self, key: &Key, outcome: Outcome, is_followed: impl Fn() -> bool) -> bool {
        let mut outcomes = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        is_followed() && outcomes.insert(key.clone(), outcome.clone()) != Some(outcome)
    }

    pub(super) fn forget(&self, key: &Key) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(key);
    }
}
