//! The HorizontalPodAutoscalers that concern an InferenceModel, whoever made them, and which of them may be there.
//!
//! Those of others carry no label of ours, so all of the cluster are watched. What concerns no InferenceModel is dropped at once, and of
//! the rest only what a decision needs is kept: the numbers that an autoscaler notes each few seconds are none of that, so they
//! wake nobody.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    fmt,
    sync::{Arc, PoisonError, RwLock},
};

use crds::resource::{InferenceModel, ScalingMode};
use futures::{StreamExt as _, pin_mut};
use k8s_openapi::{
    api::autoscaling::v2::{CrossVersionObjectReference, HorizontalPodAutoscaler, HorizontalPodAutoscalerCondition},
    apimachinery::pkg::apis::meta::v1::{OwnerReference, Time},
};
use kube::{
    Resource as _, ResourceExt as _,
    runtime::{
        WatchStreamExt as _,
        watcher::{self, Event, watcher},
    },
};
use tokio::sync::{mpsc, watch};

use crate::{
    cache::{Key, Scope},
    causes::chain,
    keda,
    metrics::Metrics,
    names,
    observe::{Observed, is_left_to, is_owned_by},
    owner::is_uncontrolled,
    waiting::Change,
};

/// The kind.
pub const KIND: &str = "HorizontalPodAutoscaler";

/// A HorizontalPodAutoscaler, as far as a decision needs it.
#[derive(Debug, Clone, PartialEq)]
pub struct Autoscaler {
    /// Its name.
    pub name: String,
    /// What it scales.
    pub target: Target,
    /// Who controls it.
    pub owner: Option<OwnerReference>,
    /// It is one of ours that has outlived its InferenceModel, which may be there again.
    pub is_left: bool,
    /// The InferenceModel of its label. KEDA gives its autoscalers the labels of the ScaledObject.
    pub label: Option<String>,
    /// Whether it has a tolerance of its own, which older clusters drop.
    pub has_tolerance: bool,
    /// Replicas that it decided on.
    pub desired: i32,
    /// When it last changed them.
    pub last_scale_time: Option<Time>,
    /// What it tells of itself.
    pub conditions: Vec<Told>,
}

/// What a HorizontalPodAutoscaler scales.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// The InferenceModel of this name.
    Model(String),
    /// The Deployment of this name, perhaps a revision's.
    Deployment(String),
    /// Something else.
    Other,
}

/// A condition of a HorizontalPodAutoscaler, without its times.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Told {
    /// AbleToScale, ScalingActive or ScalingLimited.
    pub type_: String,
    /// `True`, `False` or `Unknown`.
    pub status: String,
    /// One word.
    pub reason: String,
    /// A sentence.
    pub message: String,
}

/// Who made an autoscaler.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Maker {
    /// The operator, in mode HPA.
    Operator,
    /// KEDA, for the ScaledObject that the operator makes in mode KEDA.
    Keda,
    /// Anybody else.
    Other,
}

impl Autoscaler {
    fn of(object: &HorizontalPodAutoscaler) -> Self {
        let status = object.status.as_ref();
        Self {
            name: object.name_any(),
            target: Target::of(&object.spec.scale_target_ref),
            owner: controller(object).cloned(),
            is_left: is_uncontrolled(object),
            label: object.labels().get(names::MODEL_LABEL).cloned(),
            has_tolerance: object.spec.behavior.iter().flat_map(|it| &it.scale_up).any(|up| up.tolerance.is_some()),
            desired: status.map(|status| status.desired_replicas).unwrap_or_default(),
            last_scale_time: status.and_then(|status| status.last_scale_time.clone()),
            conditions: status.iter().flat_map(|it| it.conditions.iter().flatten()).map(Told::of).collect(),
        }
    }

    /// Who made it, as seen from the InferenceModel of this name.
    #[must_use]
    pub fn maker(&self, model: &str) -> Maker {
        match &self.owner {
            Some(owner) if is_model(&owner.api_version, &owner.kind) && owner.name == model => Maker::Operator,
            Some(owner) if is_scaled_object(owner) && owner.name == model && self.label.as_deref() == Some(model) => {
                Maker::Keda
            }
            None if self.is_left && self.name == model && self.label.as_deref() == Some(model) => Maker::Operator,
            _ => Maker::Other,
        }
    }

    /// What it tells under this type.
    #[must_use]
    pub fn condition(&self, type_: &str) -> Option<&Told> {
        self.conditions.iter().find(|condition| condition.type_ == type_)
    }
}

impl fmt::Display for Autoscaler {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{KIND} {}", self.name)?;
        match &self.owner {
            Some(owner) => write!(formatter, " of {} {}", owner.kind, owner.name),
            None => Ok(()),
        }
    }
}

impl Target {
    fn of(reference: &CrossVersionObjectReference) -> Self {
        let CrossVersionObjectReference { api_version, kind, name } = reference;
        let api_version = api_version.as_deref().unwrap_or_default();
        match (group(api_version), kind.as_str()) {
            _ if is_model(api_version, kind) => Self::Model(name.clone()),
            ("apps", "Deployment") => Self::Deployment(name.clone()),
            _ => Self::Other,
        }
    }

    /// The InferenceModel that this is, or whose revision it may be.
    fn model(&self) -> Option<&str> {
        match self {
            Self::Model(name) => Some(name),
            Self::Deployment(name) => names::model_of_revision(name),
            Self::Other => None,
        }
    }
}

impl Told {
    fn of(condition: &HorizontalPodAutoscalerCondition) -> Self {
        let HorizontalPodAutoscalerCondition { type_, status, reason, message, .. } = condition.clone();
        Self { type_, status, reason: reason.unwrap_or_default(), message: message.unwrap_or_default() }
    }
}

fn controller(object: &HorizontalPodAutoscaler) -> Option<&OwnerReference> {
    object.metadata.owner_references.iter().flatten().find(|owner| owner.controller == Some(true))
}

fn group(api_version: &str) -> &str {
    api_version.split_once('/').map(|(group, _)| group).unwrap_or_default()
}

/// Whether this is the kind InferenceModel, and not that of another group.
#[must_use]
pub fn is_model(api_version: &str, kind: &str) -> bool {
    group(api_version) == InferenceModel::group(&()) && kind == InferenceModel::kind(&())
}

fn is_scaled_object(owner: &OwnerReference) -> bool {
    group(&owner.api_version) == group(keda::API_VERSION) && owner.kind == keda::KIND
}

/// Those that write the replicas although the spec does not want it. A revision's Deployment is the operator's in every mode.
#[must_use]
pub fn conflicting(observed: &Observed) -> Vec<&Autoscaler> {
    let is_external = mode(observed) == Some(ScalingMode::External);
    let others = observed.autoscalers.iter().filter(|it| it.maker(&observed.name) == Maker::Other);
    others.filter(|it| !is_external || matches!(it.target, Target::Deployment(_))).map(|it| &**it).collect()
}

/// What a mode before has left and is about to go, by kind and name.
#[must_use]
pub fn leaving(observed: &Observed) -> Vec<String> {
    let mode = mode(observed);
    let is_left = |autoscaler: &&Arc<Autoscaler>| match autoscaler.maker(&observed.name) {
        Maker::Operator => mode != Some(ScalingMode::Hpa),
        Maker::Keda => mode != Some(ScalingMode::Keda),
        Maker::Other => false,
    };
    let scaled_objects = observed.scaled_objects.keys().filter(|_| mode != Some(ScalingMode::Keda));
    let left = observed.autoscalers.iter().filter(is_left).map(|it| format!("{KIND} {}", it.name));
    scaled_objects.map(|name| format!("{} {name}", keda::KIND)).chain(left).collect()
}

/// Whether nobody but whom the spec wants can write the replicas: until then, nobody else may begin to.
#[must_use]
pub fn is_clear(observed: &Observed) -> bool {
    conflicting(observed).is_empty() && leaving(observed).is_empty()
}

/// Whether nobody scales although the spec names a mode: of no replicas there should be none, until the spec asks for one.
#[must_use]
pub fn is_off(observed: &Observed) -> bool {
    let replicas = observed.model.spec.replicas;
    replicas == 0 && matches!(mode(observed), Some(ScalingMode::Operator | ScalingMode::Hpa | ScalingMode::Keda))
}

/// Whether a person has KEDA's scaling paused, perhaps at a number of theirs: it stays as it is until they go on.
#[must_use]
pub fn is_paused(observed: &Observed) -> bool {
    mode(observed) == Some(ScalingMode::Keda) && observed.scaled_objects.values().any(|it| it.is_paused())
}

/// The autoscaler that the spec wants, if it is there.
#[must_use]
pub fn wanted(observed: &Observed) -> Option<&Autoscaler> {
    let maker = match mode(observed) {
        Some(ScalingMode::Hpa) => Maker::Operator,
        Some(ScalingMode::Keda) => Maker::Keda,
        Some(ScalingMode::Operator | ScalingMode::External) | None => return None,
    };
    observed.autoscalers.iter().find(|it| it.maker(&observed.name) == maker).map(|it| &**it)
}

fn mode(observed: &Observed) -> Option<ScalingMode> {
    observed.model.spec.scaling.effective_mode()
}

/// The HorizontalPodAutoscalers that concern InferenceModels. Cheap to clone; all clones see the same.
#[derive(Clone)]
pub struct Autoscalers {
    all: Arc<RwLock<All>>,
    ready: watch::Sender<bool>,
}

#[derive(Default)]
struct All {
    /// By namespace and name.
    entries: HashMap<Key, Entry>,
    /// The names of those that concern an InferenceModel.
    of: HashMap<Key, BTreeSet<String>>,
}

/// What is kept of one; while that stays the same, nobody is told.
#[derive(Clone, PartialEq)]
struct Entry {
    seen: Arc<Autoscaler>,
    /// All but its status, where an InferenceModel controls it or did: such are written.
    object: Option<Arc<HorizontalPodAutoscaler>>,
    concerns: BTreeSet<String>,
}

impl Entry {
    fn of(mut object: HorizontalPodAutoscaler) -> Self {
        let seen = Autoscaler::of(&object);
        let owner = seen.owner.as_ref().filter(|owner| is_model(&owner.api_version, &owner.kind));
        let models = owner.map(|owner| owner.name.as_str()).into_iter().chain(seen.target.model());
        let concerns = models.map(str::to_owned).collect();
        object.status = None;
        object.metadata.managed_fields = None;
        object.metadata.resource_version = None;
        let object = (owner.is_some() || seen.is_left).then(|| Arc::new(object));
        Self { seen: Arc::new(seen), object, concerns }
    }
}

impl Default for Autoscalers {
    fn default() -> Self {
        Self { all: Arc::default(), ready: watch::Sender::new(false) }
    }
}

impl Autoscalers {
    /// Those that scale an InferenceModel, or a Deployment that is named like one of its revisions; by name.
    #[must_use]
    pub fn of(&self, namespace: &str, model: &str) -> Vec<Arc<Autoscaler>> {
        self.entries(namespace, model).into_iter().map(|entry| entry.seen).collect()
    }

    /// Those that the InferenceModel with this uid controls, or that one of its name has left, by name, without their status.
    #[must_use]
    pub fn owned(&self, namespace: &str, model: &str, uid: &str) -> BTreeMap<String, Arc<HorizontalPodAutoscaler>> {
        let objects = self.entries(namespace, model).into_iter().filter_map(|entry| entry.object);
        objects
            .filter(|it| is_owned_by(&it.metadata, uid) || is_left_to(&**it, model))
            .map(|it| (it.name_any(), it))
            .collect()
    }

    fn entries(&self, namespace: &str, model: &str) -> Vec<Entry> {
        let all = self.all.read().unwrap_or_else(PoisonError::into_inner);
        let names = all.of.get(&(namespace.to_owned(), model.to_owned()));
        let entries = names.into_iter().flatten().map(|name| (namespace.to_owned(), name.clone()));
        entries.filter_map(|key| all.entries.get(&key).cloned()).collect()
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

    /// Follows the API server for ever.
    pub async fn follow(self, scope: Scope, changed: mpsc::Sender<Change>, metrics: Arc<Metrics>) {
        let api = scope.api::<HorizontalPodAutoscaler>();
        let events = watcher(api, watcher::Config::default().page_size(500)).default_backoff();
        pin_mut!(events);
        let mut listed: HashSet<Key> = HashSet::new();
        while let Some(event) = events.next().await {
            let begun = self.is_ready();
            let event = match event {
                Ok(event) => event,
                Err(error) => {
                    tracing::warn!(kind = KIND, error = chain(&error), "a watch is begun again");
                    metrics.watch_restarted(KIND);
                    continue;
                }
            };
            // Its first event comes before the API server is asked.
            if !matches!(event, Event::Init) {
                metrics.watch_moved(KIND);
            }
            for key in self.take(event, &mut listed) {
                // Every InferenceModel is looked at once all caches are ready; nobody listens before.
                if begun && changed.send(Change::from(key)).await.is_err() {
                    return;
                }
            }
        }
    }

    /// Takes an event; returns whom it concerns.
    fn take(&self, event: Event<HorizontalPodAutoscaler>, listed: &mut HashSet<Key>) -> Vec<Key> {
        let mut all = self.all.write().unwrap_or_else(PoisonError::into_inner);
        match event {
            Event::Init => {
                listed.clear();
                Vec::new()
            }
            Event::InitApply(object) => {
                listed.insert(key_of(&object));
                all.put(object)
            }
            Event::InitDone => {
                // What a new list lacks was deleted while nobody watched.
                let gone: Vec<Key> = all.entries.keys().filter(|key| !listed.contains(key)).cloned().collect();
                let concerned = gone.iter().flat_map(|key| all.remove(key)).collect();
                self.ready.send_replace(true);
                concerned
            }
            Event::Apply(object) => all.put(object),
            Event::Delete(object) => all.remove(&key_of(&object)),
        }
    }
}

impl All {
    /// Returns whom it concerns now, and whom it concerned before; nobody where nothing is new.
    fn put(&mut self, object: HorizontalPodAutoscaler) -> Vec<Key> {
        let (key, entry) = (key_of(&object), Entry::of(object));
        if self.entries.get(&key) == Some(&entry) {
            return Vec::new();
        }
        let before = self.remove(&key);
        let now = models(&key, &entry);
        for model in &now {
            self.of.entry(model.clone()).or_default().insert(key.1.clone());
        }
        if !now.is_empty() {
            self.entries.insert(key, entry);
        }
        before.into_iter().filter(|model| !now.contains(model)).chain(now.clone()).collect()
    }

    fn remove(&mut self, key: &Key) -> Vec<Key> {
        let Some(entry) = self.entries.remove(key) else { return Vec::new() };
        let models = models(key, &entry);
        for model in &models {
            if let Some(of_model) = self.of.get_mut(model) {
                of_model.remove(&key.1);
                if of_model.is_empty() {
                    self.of.remove(model);
                }
            }
        }
        models
    }
}

fn models(key: &Key, entry: &Entry) -> Vec<Key> {
    entry.concerns.iter().map(|model| (key.0.clone(), model.clone())).collect()
}

fn key_of(object: &HorizontalPodAutoscaler) -> Key {
    (object.namespace().unwrap_or_default(), object.name_any())
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn object(name: &str, target: Value, owner: Value) -> HorizontalPodAutoscaler {
        serde_json::from_value(json!({
            "metadata": {"name": name, "namespace": "coffee", "uid": format!("uid-{name}"), "ownerReferences": owner},
            "spec": {"scaleTargetRef": target, "maxReplicas": 3},
        }))
        .unwrap()
    }

    fn infm(name: &str) -> Value {
        json!({"apiVersion": "ortolan.dev/v1alpha1", "kind": "InferenceModel", "name": name})
    }

    fn deployment(name: &str) -> Value {
        json!({"apiVersion": "apps/v1", "kind": "Deployment", "name": name})
    }

    fn take(autoscalers: &Autoscalers, event: Event<HorizontalPodAutoscaler>) -> Vec<String> {
        let concerned = autoscalers.take(event, &mut HashSet::new());
        concerned.into_iter().map(|(_, model)| model).collect()
    }

    fn names(autoscalers: &Autoscalers, model: &str) -> Vec<String> {
        autoscalers.of("coffee", model).iter().map(|it| it.name.clone()).collect()
    }

    #[test]
    fn those_of_an_inference_model_and_of_its_revisions_are_kept_and_no_others() {
        let all = Autoscalers::default();
        assert_eq!(take(&all, Event::Apply(object("a", infm("espresso"), json!([])))), ["espresso"]);
        assert_eq!(take(&all, Event::Apply(object("b", deployment("espresso-0a1b2c3d"), json!([])))), ["espresso"]);
        let other_group = json!({"apiVersion": "other.dev/v1", "kind": "InferenceModel", "name": "espresso"});
        for foreign in [deployment("espresso-front"), deployment("espresso"), other_group] {
            assert_eq!(take(&all, Event::Apply(object("c", foreign, json!([])))), Vec::<String>::new());
        }
        assert_eq!(names(&all, "espresso"), ["a", "b"]);
        assert_eq!(all.all.read().unwrap().entries.len(), 2);
    }

    #[test]
    fn one_that_turns_to_another_target_concerns_both() {
        let all = Autoscalers::default();
        take(&all, Event::Apply(object("a", infm("espresso"), json!([]))));
        assert_eq!(take(&all, Event::Apply(object("a", infm("ristretto"), json!([])))), ["espresso", "ristretto"]);
        assert_eq!(names(&all, "espresso"), Vec::<String>::new());
        assert_eq!(take(&all, Event::Apply(object("a", deployment("web"), json!([])))), ["ristretto"]);
        assert!(all.all.read().unwrap().entries.is_empty());
    }

    #[test]
    fn numbers_that_are_noted_each_few_seconds_wake_nobody_and_a_decision_does() {
        let all = Autoscalers::default();
        let with = |status: Value| {
            let mut object = object("a", infm("espresso"), json!([]));
            object.metadata.resource_version = Some(status.to_string());
            object.status = serde_json::from_value(status).unwrap();
            Event::Apply(object)
        };
        let noted = |average: &str| {
            let current = json!({"averageValue": average});
            json!([{"type": "Pods", "pods": {"metric": {"name": "x"}, "current": current}}])
        };
        take(&all, with(json!({"desiredReplicas": 1, "currentMetrics": noted("1")})));
        assert!(take(&all, with(json!({"desiredReplicas": 1, "currentMetrics": noted("2")}))).is_empty());
        assert_eq!(take(&all, with(json!({"desiredReplicas": 2, "currentMetrics": noted("2")}))), ["espresso"]);
    }

    #[test]
    fn one_that_was_deleted_while_nobody_watched_is_gone() {
        let all = Autoscalers::default();
        let mut listed = HashSet::new();
        for name in ["a", "b"] {
            all.take(Event::InitApply(object(name, infm("espresso"), json!([]))), &mut listed);
        }
        all.take(Event::InitDone, &mut listed);
        all.take(Event::Init, &mut listed);
        all.take(Event::InitApply(object("b", infm("espresso"), json!([]))), &mut listed);
        let concerned = all.take(Event::InitDone, &mut listed);
        assert_eq!(concerned, [("coffee".to_owned(), "espresso".to_owned())]);
        assert_eq!(names(&all, "espresso"), ["b"]);
        assert_eq!(take(&all, Event::Delete(object("b", infm("espresso"), json!([])))), ["espresso"]);
        assert!(names(&all, "espresso").is_empty());
    }

    #[test]
    fn one_of_ours_that_has_outlived_its_inference_model_is_ours_again() {
        let all = Autoscalers::default();
        let mut left = object("espresso", infm("espresso"), json!([]));
        take(&all, Event::Apply(left.clone()));
        assert_eq!(all.of("coffee", "espresso")[0].maker("espresso"), Maker::Other);
        left.metadata.annotations = Some(BTreeMap::from([(names::APPLIED_ANNOTATION.to_owned(), "0a1b".to_owned())]));
        left.metadata.labels = Some(BTreeMap::from([(names::MODEL_LABEL.to_owned(), "espresso".to_owned())]));
        take(&all, Event::Apply(left));
        assert_eq!(all.of("coffee", "espresso")[0].maker("espresso"), Maker::Operator);
        assert_eq!(all.of("coffee", "espresso")[0].maker("ristretto"), Maker::Other);
        assert_eq!(all.owned("coffee", "espresso", "new").into_keys().collect::<Vec<_>>(), ["espresso"]);
    }

    #[test]
    fn one_that_an_inference_model_controls_is_kept_whatever_it_was_turned_to() {
        let all = Autoscalers::default();
        let owner = json!([{
            "apiVersion": "ortolan.dev/v1alpha1", "kind": "InferenceModel", "name": "espresso", "uid": "6ad4", "controller": true,
        }]);
        take(&all, Event::Apply(object("espresso", deployment("web"), owner)));
        assert_eq!(all.owned("coffee", "espresso", "6ad4").into_keys().collect::<Vec<_>>(), ["espresso"]);
        assert!(all.owned("coffee", "espresso", "of-another").is_empty());
        assert_eq!(all.of("coffee", "espresso")[0].maker("espresso"), Maker::Operator);
    }
}
