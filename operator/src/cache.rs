//! What the API server has of one kind, kept up to date by a watch and sorted by a label: by the InferenceModel that it belongs
//! to, or by what a namespace has it for.
//!
//! A reconcile reads these and asks the API server nothing. Deletions count as changes: a child that is gone must be
//! made again.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    fmt::Debug,
    sync::{Arc, PoisonError, RwLock},
};

use futures::{StreamExt as _, pin_mut};
use k8s_openapi::NamespaceResourceScope;
use kube::{
    Api, Client, Resource, ResourceExt,
    runtime::{
        WatchStreamExt as _,
        watcher::{self, Event, watcher},
    },
};
use serde::{Serialize, de::DeserializeOwned};
use tokio::sync::{mpsc, watch};

use crate::{
    causes::chain,
    kept::Kept,
    metrics::Metrics,
    waiting::{Change, Marks},
};

/// Namespace and value of the label by which objects are sorted; of an InferenceModel, its namespace and name.
pub type Key = (String, String);

/// Who is told of changes.
#[derive(Clone)]
pub enum Audience {
    /// The InferenceModel that an object belongs to. When the queue is full, the watch waits.
    Models(mpsc::Sender<Change>),
    /// The namespace that an object is in.
    Namespaces(Marks),
}

impl Audience {
    /// Whether anybody listens still.
    async fn tell(&self, key: Key) -> bool {
        match self {
            Self::Models(changed) => changed.send(Change::from(key)).await.is_ok(),
            Self::Namespaces(marks) => {
                marks.add(&key.0);
                true
            }
        }
    }
}

/// The objects of one kind. Cheap to clone; all clones see the same.
pub struct Cache<K> {
    label: &'static str,
    is_optional: bool,
    trim: fn(&mut K),
    keep: fn(K) -> Kept<K>,
    objects: Arc<RwLock<Objects<K>>>,
    ready: watch::Sender<bool>,
}

/// The objects, and for each of them, by namespace and name, whose label it carries: one whose label is changed belongs to
/// another from then on.
struct Objects<K> {
    of: HashMap<Key, BTreeMap<String, Kept<K>>>,
    labels: HashMap<(String, String), String>,
}

impl<K> Clone for Cache<K> {
    fn clone(&self) -> Self {
        let Self { label, is_optional, trim, keep, .. } = *self;
        Self { label, is_optional, trim, keep, objects: Arc::clone(&self.objects), ready: self.ready.clone() }
    }
}

impl<K> Cache<K> {
    /// Nothing yet of the objects that carry this label.
    #[must_use]
    pub fn by(label: &'static str) -> Self {
        let (objects, ready) = (Arc::default(), watch::Sender::new(false));
        Self { label, is_optional: false, trim: |_| {}, keep: Kept::whole, objects, ready }
    }

    /// The same, of objects from which `trim` takes what nobody here reads: there may be tens of thousands.
    #[must_use]
    pub fn trimmed(self, trim: fn(&mut K)) -> Self {
        Self { trim, ..self }
    }

    /// The same, of objects that are read now and then, and take less memory as JSON.
    #[must_use]
    pub fn packed(self) -> Self
    where
        K: Resource<DynamicType = ()> + Serialize + DeserializeOwned,
    {
        Self { keep: Kept::packed, ..self }
    }

    /// The same, of a kind that the cluster may lack.
    #[must_use]
    pub fn of_optional(label: &'static str) -> Self {
        Self { is_optional: true, ..Self::by(label) }
    }
}

impl<K> Default for Objects<K> {
    fn default() -> Self {
        Self { of: HashMap::new(), labels: HashMap::new() }
    }
}

impl<K> Cache<K>
where
    K: Resource<DynamicType = (), Scope = NamespaceResourceScope>,
    K: Clone + Debug + Serialize + DeserializeOwned + Send + Sync + 'static,
{
    /// The objects whose label has this value, by name.
    #[must_use]
    pub fn of(&self, namespace: &str, value: &str) -> BTreeMap<String, Arc<K>> {
        let of_value = {
            let objects = self.objects.read().unwrap_or_else(PoisonError::into_inner);
            objects.of.get(&(namespace.to_owned(), value.to_owned())).cloned().unwrap_or_default()
        };
        of_value.into_iter().filter_map(|(name, kept)| Some((name, kept.object()?))).collect()
    }

    /// The namespaces that have such objects.
    #[must_use]
    pub fn namespaces(&self) -> HashSet<String> {
        let objects = self.objects.read().unwrap_or_else(PoisonError::into_inner);
        objects.of.keys().map(|(namespace, _)| namespace.clone()).collect()
    }

    /// The uids of all objects.
    #[must_use]
    pub fn uids(&self) -> HashSet<String> {
        let objects = self.objects.read().unwrap_or_else(PoisonError::into_inner);
        objects.of.values().flat_map(BTreeMap::values).filter_map(|kept| kept.object()?.meta().uid.clone()).collect()
    }

    /// Waits until everything that was there at the start has been read.
    pub async fn wait_until_ready(&self) {
        // The sender is ours, so it is there.
        let _ = self.ready.subscribe().wait_for(|ready| *ready).await;
    }

    /// Whether everything that was there at the start has been read.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        *self.ready.borrow()
    }

    /// Whether it has been filled, and changes with that.
    #[must_use]
    pub fn subscribe(&self) -> watch::Receiver<bool> {
        self.ready.subscribe()
    }

    /// Forgets everything: the kind is not served any more.
    pub fn forget(&self) {
        *self.objects.write().unwrap_or_else(PoisonError::into_inner) = Objects::default();
        self.ready.send_replace(false);
    }

    /// Follows the API server for ever, or, where the cluster may lack the kind, until it does.
    pub async fn follow(self, scope: Scope, audience: Audience, metrics: Arc<Metrics>) {
        let api: Api<K> = scope.api();
        let config = watcher::Config::default().labels(self.label).page_size(500);
        let kind = K::kind(&()).into_owned();
        let events = watcher(api, config).default_backoff();
        pin_mut!(events);
        let mut listed: HashSet<(Key, String)> = HashSet::new();
        while let Some(event) = events.next().await {
            let begun = self.is_ready();
            let event = match event {
                Ok(event) => event,
                Err(error) if self.is_optional && is_not_served(&error) => return,
                Err(error) => {
                    tracing::warn!(kind, error = chain(&error), "a watch is begun again");
                    metrics.watch_restarted(&kind);
                    continue;
                }
            };
            // Its first event comes before the API server is asked.
            if !matches!(event, Event::Init) {
                metrics.watch_moved(&kind);
            }
            for key in self.take(event, &mut listed) {
                // Every InferenceModel is looked at once all caches are ready; nobody listens before.
                if begun && !audience.tell(key).await {
                    return;
                }
            }
        }
    }

    /// Takes an event; returns whom it concerns.
    fn take(&self, event: Event<K>, listed: &mut HashSet<(Key, String)>) -> Vec<Key> {
        match event {
            Event::Init => {
                listed.clear();
                Vec::new()
            }
            Event::InitApply(object) => {
                let key = self.key_of(&object);
                if let Some(key) = &key {
                    listed.insert((key.clone(), object.name_any()));
                }
                self.put(object)
            }
            Event::InitDone => {
                let gone = self.keep_only(listed);
                self.ready.send_replace(true);
                gone
            }
            Event::Apply(object) => self.put(object),
            Event::Delete(object) => {
                let key = self.key_of(&object);
                if let Some(key) = &key {
                    self.remove(key, &object.name_any());
                }
                key.into_iter().collect()
            }
        }
    }

    /// Returns whom it concerns: the one whose label it carries, and the one whose label it carried before.
    fn put(&self, mut object: K) -> Vec<Key> {
        object.meta_mut().managed_fields = None;
        (self.trim)(&mut object);
        let Some(key) = self.key_of(&object) else { return Vec::new() };
        let name = object.name_any();
        let kept = (self.keep)(object);
        let mut objects = self.objects.write().unwrap_or_else(PoisonError::into_inner);
        let before = objects.labels.insert((key.0.clone(), name.clone()), key.1.clone());
        let before = before.filter(|model| *model != key.1).map(|model| (key.0.clone(), model));
        if let Some(before) = &before {
            objects.take_out(before, &name);
        }
        objects.of.entry(key.clone()).or_default().insert(name, kept);
        before.into_iter().chain([key]).collect()
    }

    fn key_of(&self, object: &K) -> Option<Key> {
        let value = object.labels().get(self.label)?;
        Some((object.namespace()?, value.clone()))
    }

    fn remove(&self, key: &Key, name: &str) {
        let mut objects = self.objects.write().unwrap_or_else(PoisonError::into_inner);
        objects.take_out(key, name);
        objects.labels.remove(&(key.0.clone(), name.to_owned()));
    }

    /// What a new list lacks was deleted while nobody watched.
    fn keep_only(&self, listed: &HashSet<(Key, String)>) -> Vec<Key> {
        let known: Vec<(Key, String)> = {
            let objects = self.objects.read().unwrap_or_else(PoisonError::into_inner);
            objects.of.iter().flat_map(|(key, of)| of.keys().map(|name| (key.clone(), name.clone()))).collect()
        };
        let gone: Vec<(Key, String)> = known.into_iter().filter(|object| !listed.contains(object)).collect();
        for (key, name) in &gone {
            self.remove(key, name);
        }
        gone.into_iter().map(|(key, _)| key).collect()
    }
}

/// Whether the API server does not know the kind, or not any more.
fn is_not_served(error: &watcher::Error) -> bool {
    match error {
        watcher::Error::InitialListFailed(kube::Error::Api(status))
        | watcher::Error::WatchStartFailed(kube::Error::Api(status)) => status.code == 404,
        _ => false,
    }
}

impl<K> Objects<K> {
    fn take_out(&mut self, key: &Key, name: &str) {
        if let Some(of_value) = self.of.get_mut(key) {
            of_value.remove(name);
            if of_value.is_empty() {
                self.of.remove(key);
            }
        }
    }
}

/// Where the operator looks: everywhere, or in one namespace.
#[derive(Clone)]
pub struct Scope {
    client: Client,
    namespace: Option<String>,
}

impl Scope {
    /// One namespace, or all where none is given.
    #[must_use]
    pub fn new(client: Client, namespace: Option<String>) -> Self {
        Self { client, namespace }
    }

    /// The objects of a kind in it.
    #[must_use]
    pub fn api<K: Resource<DynamicType = (), Scope = NamespaceResourceScope>>(&self) -> Api<K> {
        match &self.namespace {
            Some(namespace) => Api::namespaced(self.client.clone(), namespace),
            None => Api::all(self.client.clone()),
        }
    }
}
