//! The models of the process: known by name from the start, there once they are loaded.

use std::{
    collections::BTreeMap,
    sync::{Arc, OnceLock},
    time::Instant,
};

use crate::{
    model::Model,
    worker::{self, Shared},
};

/// What a name leads to.
pub enum Found {
    /// A model that serves.
    Ready(Arc<Model>),
    /// A model that the config names and that is not loaded yet.
    Loading,
    /// No model of that name.
    Unknown,
}

/// All models that the config names.
pub struct Registry {
    slots: BTreeMap<String, OnceLock<Arc<Model>>>,
}

impl Registry {
    /// A place for each name.
    pub fn new(names: impl IntoIterator<Item = String>) -> Self {
        Self { slots: names.into_iter().map(|name| (name, OnceLock::new())).collect() }
    }

    /// Puts a loaded model into its place.
    pub fn insert(&self, model: Model) {
        if let Some(slot) = self.slots.get(&model.name) {
            // Each name is loaded once.
            let _ = slot.set(Arc::new(model));
        }
    }

    /// What a name leads to.
    #[must_use]
    pub fn find(&self, name: &str) -> Found {
        match self.slots.get(name).map(OnceLock::get) {
            None => Found::Unknown,
            Some(None) => Found::Loading,
            Some(Some(model)) => Found::Ready(Arc::clone(model)),
        }
    }

    /// The models that are loaded, by name.
    pub fn loaded(&self) -> impl Iterator<Item = &Arc<Model>> {
        self.slots.values().filter_map(OnceLock::get)
    }

    /// Names of the models that are still to be loaded.
    #[must_use]
    pub fn missing(&self) -> Vec<&str> {
        self.slots.iter().filter(|(_, slot)| slot.get().is_none()).map(|(name, _)| name.as_str()).collect()
    }

    /// Ends runs that take too long, and sees overloads end. To be called now and then.
    pub fn watch(&self, now: Instant) {
        for model in self.loaded() {
            model.shared().watch(now);
            model.observer.watch(now);
        }
    }

    /// Ends the worker threads.
    pub fn stop(&self) {
        let models: Vec<&Shared> = self.loaded().map(|model| &**model.shared()).collect();
        worker::stop(&models);
    }
}
