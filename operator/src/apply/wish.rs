//! A child as it should be, and whether it is.

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
};

use kube::{Resource, ResourceExt as _};
use serde::Serialize;
use serde_json::Value;

use crate::{
    digest::{digest, says_nothing},
    names,
};

/// Enough that two states of a child never meet.
const DIGEST_BYTES: usize = 8;

/// A child as it should be, and the digest of it.
pub(super) struct Wish {
    pub object: Value,
    digest: String,
}

impl Wish {
    pub fn of<K: Serialize>(child: &K) -> Self {
        // Types of Kubernetes can always be written.
        let mut object = serde_json::to_value(child).unwrap_or_default();
        let digest = digest(&object, DIGEST_BYTES);
        object["metadata"]["annotations"][names::APPLIED_ANNOTATION] = digest.as_str().into();
        Self { object, digest }
    }
}

/// What a child looked like right after it was written: the API server may write a value in another way than we do
/// (`1` for `1000m`), and others may add to lists.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Written {
    wanted: String,
    stored: String,
}

/// The children that do not look as they were written, by their owner and name.
#[derive(Debug, Default)]
pub(super) struct Memory(Mutex<HashMap<String, Written>>);

impl Memory {
    /// Whether a child already has everything that is wanted, and nothing of ours that is wanted no more.
    pub fn is_in_place<K: Resource + Serialize>(&self, key: &str, wanted: &Wish, live: &K) -> bool {
        if live.annotations().get(names::APPLIED_ANNOTATION) != Some(&wanted.digest) {
            return false;
        }
        let live = serde_json::to_value(live).unwrap_or_default();
        contains(&live, &wanted.object) || {
            let written = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            written.get(key) == Some(&Written { wanted: wanted.digest.clone(), stored: seen(&live, &wanted.object) })
        }
    }

    /// Remembers what the API server made of it, where that is not the same.
    pub fn remember<K: Serialize>(&self, key: String, wanted: &Wish, stored: &K) {
        let stored = serde_json::to_value(stored).unwrap_or_default();
        if contains(&stored, &wanted.object) {
            return;
        }
        let written = Written { wanted: wanted.digest.clone(), stored: seen(&stored, &wanted.object) };
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(key, written);
    }

    /// Forgets the children of those who are gone. A key begins with the owner.
    pub fn keep_only(&self, is_there: impl Fn(&str) -> bool) {
        let mut written = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        written.retain(|key, _| key.split_once(' ').is_some_and(|(owner, _)| is_there(owner)));
    }
}

/// Maps that have one owner as a whole: a further label in a selector selects other pods.
const WHOLE_MAPS: [&str; 2] = ["selector", "nodeSelector"];

/// Whether all that is wanted is there; what else is there does not matter, but for the items of lists.
fn contains(live: &Value, wanted: &Value) -> bool {
    match (live, wanted) {
        (Value::Object(live), Value::Object(wanted)) => wanted.iter().all(|(key, wanted)| match live.get(key) {
            Some(live) if WHOLE_MAPS.contains(&key.as_str()) => live == wanted,
            Some(live) => contains(live, wanted),
            None => says_nothing(wanted),
        }),
        (Value::Array(live), Value::Array(wanted)) => {
            live.len() == wanted.len() && live.iter().zip(wanted).all(|(live, wanted)| contains(live, wanted))
        }
        _ => live == wanted,
    }
}

/// Digest of what is there where something is wanted.
fn seen(live: &Value, wanted: &Value) -> String {
    fn project(live: &Value, wanted: &Value) -> Value {
        match (live, wanted) {
            (Value::Object(live), Value::Object(wanted)) => {
                let seen = wanted.iter().filter_map(|(key, wanted)| Some((key, project(live.get(key)?, wanted))));
                Value::Object(seen.map(|(key, value)| (key.clone(), value)).collect())
            }
            _ => live.clone(),
        }
    }
    digest(&project(live, wanted), DIGEST_BYTES)
}
