//! What the InferenceModels of a namespace share: one ServiceMonitor and one PrometheusRule, there as long as one of them wants it.
//!
//! ```text
//! InferenceModels, shared objects, kinds, leadership ─▸ marks ─▸ rounds ─▸ build ▸ apply ─▸ places ─▸ the InferenceModels' status
//! ```
//!
//! A namespace, and no InferenceModel, is what is reconciled here: of ten thousand models that appear at once, one round writes what
//! all of them share. Each object is owned by the InferenceModels that want it, so that the cluster itself removes it with the last
//! of them, the operator present or not. [`MOST_OWNERS`] of them are enough for that: more would make an object grow, and be
//! written anew, with each model.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    fmt::Debug,
    sync::{Arc, Mutex, PoisonError, RwLock},
    time::Duration,
};

use crds::resource::{
    InferenceModel, Monitoring, Toggle,
    conditions::accepted::{self, INVALID_OPTIONS, INVALID_OVERLAY, NOT_IMPLEMENTED},
};
use futures::{StreamExt as _, stream};
use k8s_openapi::{NamespaceResourceScope, apimachinery::pkg::apis::meta::v1::OwnerReference};
use kube::{
    Resource, ResourceExt as _,
    runtime::reflector::{ObjectRef, Store},
};
use serde::{Serialize, de::DeserializeOwned};
use tokio::{
    sync::{mpsc, watch},
    time,
};

use crate::{
    apply::{ApplyError, Writer},
    build::{self, monitoring},
    cache::{Audience, Cache, Key, Scope},
    causes::{chain, lasting},
    kinds::{Kinds, OptionalKind, Served},
    leader::Leadership,
    names,
    owner::is_uncontrolled,
    prometheus::{PrometheusRule, ServiceMonitor, Told, not_selected},
    validate::Refusal,
    waiting::{Change, Marks},
};

/// Owners of a shared object, the oldest of those that want it. While the operator is down, the object outlives the deletion of
/// all but one of them.
const MOST_OWNERS: usize = 16;

/// Changes within this time are looked at together.
const TOGETHER: Duration = Duration::from_millis(250);

/// Namespaces at once; more would only queue up at the API server.
const CONCURRENT: usize = 8;

/// A write that takes longer has failed.
const SHARE_TIMEOUT: Duration = Duration::from_secs(30);

/// Pauses between tries after errors and refusals, twice as long after each.
const SHORTEST_PAUSE: Duration = Duration::from_secs(1);
/// See [`SHORTEST_PAUSE`].
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// What has become of the two objects of a namespace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Places {
    /// Of the ServiceMonitor.
    pub service_monitor: Place,
    /// Of the PrometheusRule.
    pub rules: Place,
}

/// What has become of a shared object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// The cluster does not serve its kind.
    NotInstalled,
    /// It is not there yet; with what went wrong, if it was tried.
    Missing(Option<String>),
    /// The API server does not take it, or its name belongs to somebody else.
    Refused(Refusal),
    /// It is there; with why no Prometheus has a use for it, if one tells.
    There(Option<String>),
}

impl Places {
    /// What stands in the way of the objects that must be there; with Auto a model is as good without.
    pub fn refusals<'a>(&'a self, wanted: &Monitoring) -> impl Iterator<Item = &'a Refusal> {
        let wanted = [wanted.service_monitor, wanted.rules];
        let places = wanted.into_iter().zip([&self.service_monitor, &self.rules]);
        places.filter(|(toggle, _)| *toggle == Toggle::Enabled).filter_map(|(_, place)| match place {
            Place::Refused(refusal) => Some(refusal),
            _ => None,
        })
    }
}

/// What is known of the shared objects. Cheap to clone; all clones see the same.
#[derive(Clone)]
pub struct Shared {
    kinds: Kinds,
    service_monitors: Cache<ServiceMonitor>,
    rules: Cache<PrometheusRule>,
    marks: Marks,
    /// What of an InferenceModel matters here: a status that changes does not.
    gists: Arc<Mutex<HashMap<Key, Gist>>>,
    /// What the InferenceModels of a namespace are told.
    places: Arc<RwLock<HashMap<String, Places>>>,
}

/// What of an InferenceModel decides on shared objects.
#[derive(Debug, Clone, PartialEq)]
struct Gist {
    owner: OwnerReference,
    wants: Wants,
}

/// What an InferenceModel wants.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Wants {
    /// What its spec says.
    This(Monitoring),
    /// What it had before: its spec cannot be acted on, or was not looked at yet.
    AsBefore,
    /// Nothing any more.
    Nothing,
}

impl Gist {
    fn of(model: &InferenceModel) -> Self {
        Self { owner: build::shared_owner(model), wants: Wants::of(model) }
    }
}

impl Wants {
    fn of(model: &InferenceModel) -> Self {
        if model.metadata.deletion_timestamp.is_some() {
            return Self::Nothing;
        }
        let conditions = model.status.iter().flat_map(|status| &status.conditions);
        let accepted = conditions.into_iter().find(|condition| condition.type_ == accepted::TYPE);
        let refusals = [NOT_IMPLEMENTED, INVALID_OPTIONS, INVALID_OVERLAY];
        match accepted {
            Some(accepted)
                if model.spec.unread.is_empty()
                    && accepted.observed_generation == model.metadata.generation
                    && !refusals.contains(&accepted.reason.as_str()) =>
            {
                Self::This(model.spec.monitoring.clone())
            }
            _ => Self::AsBefore,
        }
    }

    fn includes(&self, toggle: impl Fn(&Monitoring) -> Toggle, had: bool) -> bool {
        match self {
            Self::This(monitoring) => toggle(monitoring) != Toggle::Disabled,
            Self::AsBefore => had,
            Self::Nothing => false,
        }
    }
}

/// The owners of what `toggle` speaks of: the oldest of those that want it.
fn owners<K: Resource>(
    models: &[Arc<InferenceModel>],
    live: &BTreeMap<String, Arc<K>>,
    toggle: impl Fn(&Monitoring) -> Toggle,
) -> Vec<OwnerReference> {
    let had = |model: &InferenceModel| {
        let owners = live.values().flat_map(|live| live.meta().owner_references.iter().flatten());
        owners.into_iter().any(|owner| Some(&owner.uid) == model.metadata.uid.as_ref())
    };
    let wanting = models.iter().filter(|model| Wants::of(model).includes(&toggle, had(model)));
    let mut wanting: Vec<&InferenceModel> = wanting.map(|model| &**model).collect();
    wanting.sort_by_key(|model| (model.creation_timestamp().map(|time| time.0), model.uid()));
    wanting.into_iter().take(MOST_OWNERS).map(build::shared_owner).collect()
}

/// What a round needs besides.
pub struct Rounds<'a> {
    /// The InferenceModels.
    pub models: Store<InferenceModel>,
    /// Where writes go.
    pub writer: &'a Writer,
    /// Whether this process may write.
    pub leadership: &'a Leadership,
    /// Where InferenceModels are told that something has changed for them.
    pub changed: mpsc::Sender<Change>,
    /// What a Prometheus selects by, besides our labels.
    pub labels: &'a monitoring::Labels,
}

impl Shared {
    /// Nothing is known yet.
    #[must_use]
    pub fn new(kinds: Kinds) -> Self {
        Self {
            kinds,
            service_monitors: Cache::of_optional(names::SHARED_LABEL),
            rules: Cache::of_optional(names::SHARED_LABEL),
            marks: Marks::default(),
            gists: Arc::default(),
            places: Arc::default(),
        }
    }

    /// Follows the objects for ever.
    pub fn follow(&self, scope: &Scope) {
        let audience = Audience::Namespaces(self.marks.clone());
        let (kinds, monitors, rules) = (self.kinds.clone(), self.service_monitors.clone(), self.rules.clone());
        tokio::spawn(self.kinds.clone().follow_objects(
            OptionalKind::ServiceMonitor,
            monitors,
            scope.clone(),
            audience.clone(),
        ));
        tokio::spawn(kinds.follow_objects(OptionalKind::PrometheusRule, rules, scope.clone(), audience));
    }

    /// Waits until it is known what the cluster serves and what is there of it, but not for long: no model waits for its
    /// monitoring.
    pub async fn wait_until_ready(&self, at_most: Duration) {
        let filled = async {
            self.kinds.wait_until_known().await;
            if self.kinds.is_served(OptionalKind::ServiceMonitor) {
                self.service_monitors.wait_until_ready().await;
            }
            if self.kinds.is_served(OptionalKind::PrometheusRule) {
                self.rules.wait_until_ready().await;
            }
        };
        if time::timeout(at_most, filled).await.is_err() {
            tracing::warn!("the objects for Prometheus cannot be read; models are served without");
        }
    }

    /// What an InferenceModel of this namespace is told.
    #[must_use]
    pub fn of(&self, namespace: &str) -> Places {
        let places = self.places.read().unwrap_or_else(PoisonError::into_inner);
        places.get(namespace).cloned().unwrap_or_else(|| self.seen(namespace))
    }

    /// An InferenceModel is there, or has changed.
    pub fn noticed(&self, model: &InferenceModel) {
        let (namespace, gist) = (model.namespace().unwrap_or_default(), Gist::of(model));
        let mut gists = self.gists.lock().unwrap_or_else(PoisonError::into_inner);
        if gists.insert(key_of(model), gist.clone()) != Some(gist) {
            self.marks.add(&namespace);
        }
    }

    /// An InferenceModel is gone.
    pub fn lost(&self, model: &InferenceModel) {
        let key = key_of(model);
        self.gists.lock().unwrap_or_else(PoisonError::into_inner).remove(&key);
        self.marks.add(&key.0);
    }

    /// All InferenceModels have been listed. Before the first reconcile this says what is there, so that an operator that starts
    /// anew tells each of them what it was told last.
    pub fn listed(&self, models: &Store<InferenceModel>) {
        let mut gists = self.gists.lock().unwrap_or_else(PoisonError::into_inner);
        *gists = models.state().iter().map(|model| (key_of(model), Gist::of(model))).collect();
        let namespaces: BTreeSet<&String> = gists.keys().map(|(namespace, _)| namespace).collect();
        let mut places = self.places.write().unwrap_or_else(PoisonError::into_inner);
        for namespace in namespaces {
            places.entry(namespace.clone()).or_insert_with(|| self.seen(namespace));
            self.marks.add(namespace);
        }
    }

    /// What the caches show, whatever has been tried.
    fn seen(&self, namespace: &str) -> Places {
        Places {
            service_monitor: self.place(OptionalKind::ServiceMonitor, &ours(&self.service_monitors, namespace)),
            rules: self.place(OptionalKind::PrometheusRule, &ours(&self.rules, namespace)),
        }
    }

    fn place<K: Resource + Told>(&self, kind: OptionalKind, live: &BTreeMap<String, Arc<K>>) -> Place {
        match live.get(names::SHARED) {
            _ if !self.kinds.is_served(kind) => Place::NotInstalled,
            Some(object) => Place::There(why_not_selected(&**object)),
            None => Place::Missing(None),
        }
    }

    /// Brings about what is wanted, in rounds, until `stop` turns true.
    pub async fn run(&self, rounds: Rounds<'_>, mut stop: watch::Receiver<bool>) {
        let mut causes = Causes::of(self, rounds.leadership);
        let failures = Failures::default();
        loop {
            tokio::select! {
                _ = stop.wait_for(|stop| *stop) => return,
                () = self.marks.wake() => {}
                () = causes.happen() => self.mark_all(),
            }
            time::sleep(TOGETHER).await;
            let marked = self.marks.take();
            if !marked.is_empty() {
                self.round(&rounds, marked, &failures).await;
            }
        }
    }

    fn mark_all(&self) {
        let gists = self.gists.lock().unwrap_or_else(PoisonError::into_inner);
        let with_models = gists.keys().map(|(namespace, _)| namespace.clone());
        // The last InferenceModel of some may be gone while their objects are not.
        let with_objects = self.service_monitors.namespaces().into_iter().chain(self.rules.namespaces());
        with_models.chain(with_objects).for_each(|namespace| self.marks.add(&namespace));
    }

    async fn round(&self, rounds: &Rounds<'_>, marked: BTreeSet<String>, failures: &Failures) {
        // A definition that is being removed takes our objects with it, which must not be made again then.
        self.kinds.look().await;
        let mut models: BTreeMap<String, Vec<Arc<InferenceModel>>> = BTreeMap::new();
        for model in rounds.models.state() {
            let namespace = model.namespace().unwrap_or_default();
            if marked.contains(&namespace) {
                models.entry(namespace).or_default().push(model);
            }
        }
        let (models, none) = (&models, &Vec::new());
        let each = marked.into_iter().map(|namespace| async move {
            let models = models.get(&namespace).unwrap_or(none);
            let (places, failed) = self.bring_about(&namespace, models, rounds).await;
            self.retry(&namespace, failed, failures);
            self.tell(&namespace, models, places, &rounds.changed).await;
        });
        stream::iter(each).buffer_unordered(CONCURRENT).collect::<()>().await;
    }

    async fn bring_about(
        &self,
        namespace: &str,
        models: &[Arc<InferenceModel>],
        rounds: &Rounds<'_>,
    ) -> (Places, bool) {
        let live = ours(&self.service_monitors, namespace);
        let monitor = Case {
            kind: OptionalKind::ServiceMonitor,
            namespace,
            owners: owners(models, &live, |monitoring| monitoring.service_monitor),
            build: monitoring::service_monitor,
            is_filled: self.service_monitors.is_ready(),
            live,
        };
        let live = ours(&self.rules, namespace);
        let rule = Case {
            kind: OptionalKind::PrometheusRule,
            namespace,
            owners: owners(models, &live, |monitoring| monitoring.rules),
            build: monitoring::prometheus_rule,
            is_filled: self.rules.is_ready(),
            live,
        };
        let (service_monitor, monitor_failed) = self.bring(monitor, rounds).await;
        let (rules, rules_failed) = self.bring(rule, rounds).await;
        (Places { service_monitor, rules }, monitor_failed || rules_failed)
    }

    /// What becomes of one object, and whether that is to be tried again.
    async fn bring<K>(&self, case: Case<'_, K>, rounds: &Rounds<'_>) -> (Place, bool)
    where
        K: Resource<DynamicType = (), Scope = NamespaceResourceScope>,
        K: Clone + Debug + Serialize + DeserializeOwned + Told,
    {
        let Case { kind, namespace, owners, build, is_filled, live } = case;
        let seen = self.place(kind, &live);
        if seen == Place::NotInstalled || !is_filled || rounds.leadership.check().is_err() {
            return (seen, false);
        }
        let wanted = (!owners.is_empty()).then(|| build(namespace, &owners, rounds.labels));
        let (is_wanted, is_there) = (wanted.is_some(), live.contains_key(names::SHARED));
        let applied = match time::timeout(SHARE_TIMEOUT, rounds.writer.share(namespace, wanted, &live)).await {
            Ok(Ok(applied)) => applied,
            Ok(Err(ApplyError::NotLeading(_) | ApplyError::NamespaceEnds)) => return (seen, false),
            Ok(Err(error)) => return self.failed(kind, namespace, &error, seen).await,
            Err(_) => {
                tracing::warn!(namespace, "a shared object is not written within {SHARE_TIMEOUT:?} and is tried again");
                return (seen, true);
            }
        };
        for object in &applied.written {
            tracing::info!(namespace, object, "written");
        }
        match applied.refusals.into_iter().next() {
            Some(refusal) => (Place::Refused(refusal), true),
            None if is_there && is_wanted => (seen, false),
            None if is_wanted => (Place::There(None), false),
            None => (Place::Missing(None), false),
        }
    }

    /// That a definition is gone is no error, though it is found out by one.
    async fn failed(&self, kind: OptionalKind, namespace: &str, error: &ApplyError, seen: Place) -> (Place, bool) {
        self.kinds.look().await;
        if !self.kinds.is_served(kind) {
            return (Place::NotInstalled, false);
        }
        let text = lasting(&chain(error));
        tracing::warn!(namespace, error = text, "a shared object cannot be written and is tried again");
        let place = if matches!(seen, Place::There(_)) { seen } else { Place::Missing(Some(text)) };
        (place, true)
    }

    fn retry(&self, namespace: &str, failed: bool, failures: &Failures) {
        let mut failures = failures.lock().unwrap_or_else(PoisonError::into_inner);
        if !failed {
            failures.remove(namespace);
            return;
        }
        let Some(pause) = failures.entry(namespace.to_owned()).or_default().again(time::Instant::now()) else { return };
        let (marks, namespace) = (self.marks.clone(), namespace.to_owned());
        tokio::spawn(async move {
            time::sleep(pause).await;
            marks.add(&namespace);
        });
    }

    /// Lets the InferenceModels of a namespace be looked at, if something is new for them.
    async fn tell(
        &self,
        namespace: &str,
        models: &[Arc<InferenceModel>],
        places: Places,
        changed: &mpsc::Sender<Change>,
    ) {
        let before = {
            let mut all = self.places.write().unwrap_or_else(PoisonError::into_inner);
            if models.is_empty() {
                all.remove(namespace);
                return;
            }
            all.insert(namespace.to_owned(), places.clone())
        };
        if before == Some(places) {
            return;
        }
        for model in models {
            // The other end is gone when the process ends.
            let _ = changed.send(Change::of(ObjectRef::from_obj(&**model))).await;
        }
    }
}

/// What could not be written, by namespace.
type Failures = Mutex<HashMap<String, Failing>>;

/// Something that could not be written, several times in a row.
#[derive(Debug, Default)]
struct Failing {
    times: u32,
    /// When it is tried again.
    next: Option<time::Instant>,
}

impl Failing {
    /// After which pause it is to be tried again, unless that is settled already: other causes for a round come in between.
    fn again(&mut self, now: time::Instant) -> Option<Duration> {
        if self.next.is_some_and(|next| now < next) {
            return None;
        }
        let pause = SHORTEST_PAUSE.saturating_mul(1 << self.times.min(16)).min(LONGEST_PAUSE);
        self.times += 1;
        self.next = Some(now + pause);
        Some(pause)
    }
}

/// What a namespace should have of one kind, and what it has.
struct Case<'a, K> {
    kind: OptionalKind,
    namespace: &'a str,
    /// Nothing is wanted where there are none.
    owners: Vec<OwnerReference>,
    build: fn(&str, &[OwnerReference], &monitoring::Labels) -> K,
    live: BTreeMap<String, Arc<K>>,
    /// Whether it is known what is there.
    is_filled: bool,
}

/// What concerns every namespace.
struct Causes {
    kinds: watch::Receiver<Option<Served>>,
    service_monitors: watch::Receiver<bool>,
    rules: watch::Receiver<bool>,
    leads: watch::Receiver<bool>,
}

impl Causes {
    fn of(shared: &Shared, leadership: &Leadership) -> Self {
        Self {
            kinds: shared.kinds.subscribe(),
            service_monitors: shared.service_monitors.subscribe(),
            rules: shared.rules.subscribe(),
            leads: leadership.subscribe(),
        }
    }

    /// Waits for the next. The senders are ours, so they are there.
    async fn happen(&mut self) {
        tokio::select! {
            _ = self.kinds.changed() => {}
            _ = self.service_monitors.changed() => {}
            _ = self.rules.changed() => {}
            _ = self.leads.changed() => {}
        }
    }
}

/// What carries the label but was made by somebody else is none of our business, nor is a copy of ours under another name.
fn ours<K>(cache: &Cache<K>, namespace: &str) -> BTreeMap<String, Arc<K>>
where
    K: Resource<DynamicType = (), Scope = NamespaceResourceScope>,
    K: Clone + Debug + Serialize + DeserializeOwned + Send + Sync + 'static,
{
    let live = cache.of(namespace, names::SHARED).into_iter();
    live.filter(|(name, object)| name == names::SHARED && is_uncontrolled(&**object)).collect()
}

fn why_not_selected<K: Resource + Told>(object: &K) -> Option<String> {
    not_selected(object.bound()?, object.meta().generation)
}

fn key_of(model: &InferenceModel) -> Key {
    (model.namespace().unwrap_or_default(), model.name_any())
}

#[cfg(test)]
mod tests;
