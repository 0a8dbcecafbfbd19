//! Writes what was decided, in order; chooses nothing but whether a write is needed at all.
//!
//! Every child is written by server-side apply with one field manager that owns all of its fields. A child that already
//! has them is left alone, so that nothing is written while nothing changes. One that belongs to somebody else is never
//! touched, but named.

mod answer;
mod wish;

use std::{
    collections::{BTreeMap, HashSet},
    fmt::Debug,
    sync::Arc,
};

use crds::resource::InferenceModel;
use k8s_openapi::NamespaceResourceScope;
use kube::{
    Api, Client, Resource, ResourceExt as _,
    api::{DeleteParams, ListParams, Patch, PatchParams, Preconditions},
    core::PartialObjectMeta,
};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Value, json};

pub use self::answer::reason_of_refusal;
use self::{
    answer::{ends_with_its_namespace, is_about_spec, is_another, refused, without_volumes},
    wish::{Memory, Wish},
};
use crate::{
    build::{Objects, Scaler},
    leader::{Leadership, NotLeading},
    metrics::{Metrics, WriteResult},
    names,
    observe::{Observed, is_owned_by},
    owner::{NAMESPACE_PREFIX, Owner},
    salvage::Salvaged,
    validate::Refusal,
};

/// Writes to the API server, as long as this process leads.
pub struct Writer {
    client: Client,
    leadership: Leadership,
    metrics: Arc<Metrics>,
    written: Memory,
}

/// What came of it.
#[derive(Debug, Default)]
pub struct Applied {
    /// What the API server does not take, or what belongs to somebody else.
    pub refusals: Vec<Refusal>,
    /// Children that were written: kind and name.
    pub written: Vec<String>,
}

/// Another number of replicas.
#[derive(Debug, Clone, Copy)]
pub struct Scale<'a> {
    /// Which InferenceModel of the name it is for.
    pub uid: &'a str,
    /// The number that it was decided from. From 0 nothing is written: the API server's Scale leaves 0 out, so the test of that
    /// number cannot pass, and at 0 nobody scales.
    pub from: u32,
    /// The number that there should be.
    pub to: u32,
}

impl Scale<'_> {
    fn patch(&self) -> Result<Patch<()>, kube::Error> {
        const REPLICAS: &str = "/spec/replicas";
        let is_same = [("/metadata/uid", self.uid.into()), (REPLICAS, self.from.into())];
        only_if(&is_same, REPLICAS, &self.to.into())
    }
}

/// Why a write is to be tried again.
#[derive(Debug, thiserror::Error)]
pub enum ApplyError {
    /// Somebody else may write.
    #[error(transparent)]
    NotLeading(#[from] NotLeading),
    /// The API server could not be reached, or was not ready for it.
    #[error("cannot {action} {kind} {name}")]
    Api {
        /// What was tried.
        action: &'static str,
        /// On what.
        kind: String,
        /// See `kind`.
        name: String,
        /// What the API server said.
        source: Box<kube::Error>,
    },
    /// An InferenceModel of this name was deleted, and its children are about to be.
    #[error("{kind} {name} of a deleted InferenceModel is still there")]
    StillThere {
        /// What is still there.
        kind: String,
        /// See `kind`.
        name: String,
    },
    /// The namespace is on its way out, or gone, and everything in it.
    #[error("the namespace is being deleted")]
    NamespaceEnds,
}

impl Writer {
    /// A writer that asks `leadership` before every write.
    #[must_use]
    pub fn new(client: Client, leadership: Leadership, metrics: Arc<Metrics>) -> Self {
        Self { client, leadership, metrics, written: Memory::default() }
    }

    /// Brings the children to what `objects` says and removes those that it does not name.
    ///
    /// # Errors
    /// [`ApplyError`] for the first write that is worth another try. What the API server refuses for good is no error
    /// but part of the answer.
    pub async fn apply(&self, objects: Objects, observed: &Observed) -> Result<Applied, ApplyError> {
        // No `..`: a kind that is added and forgotten here does not compile.
        let Objects { config_maps, services, deployments, without_first, dashboards, as_they_are, scaler } = objects;
        let mut applied = Applied::default();
        let owner = Owner::Model(&observed.model);
        let wanted = Wanted {
            config_maps: names(&config_maps).into_iter().chain(names(&dashboards)).chain(as_they_are.clone()).collect(),
            services: names(&services).into_iter().chain(as_they_are).collect(),
            deployments: names(&deployments),
        };
        // Pods mount the config, so it goes first. Services are there before the first pod is ready.
        let mut without_config = HashSet::new();
        for config_map in config_maps {
            let (name, refusals) = (config_map.name_any(), applied.refusals.len());
            self.put(config_map, &observed.config_maps, owner, &mut applied).await?;
            if applied.refusals.len() > refusals {
                without_config.insert(name);
            }
        }
        for service in services {
            self.put(service, &observed.services, owner, &mut applied).await?;
        }
        let mut first_is_refused = false;
        for (index, mut deployment) in deployments.into_iter().enumerate() {
            let refusals = applied.refusals.len();
            if first_is_refused && let Some(replicas) = without_first.get(&deployment.name_any()) {
                deployment.spec.replicas = Some(*replicas);
            }
            // A revision's ConfigMap and Deployment have one name. No pod runs with a config that somebody else wrote.
            let has_config = !without_config.contains(&deployment.name_any());
            if has_config {
                self.put(deployment, &observed.deployments, owner, &mut applied).await?;
            }
            // The first is the one that is worked towards. While it cannot be had, no other makes room for it.
            first_is_refused |= index == 0 && (!has_config || applied.refusals.len() > refusals);
        }
        for dashboard in dashboards {
            self.put(dashboard, &observed.config_maps, owner, &mut applied).await?;
        }
        self.let_scale(scaler, observed, &mut applied).await?;
        self.prune(&observed.deployments, &wanted.deployments).await?;
        self.prune(&observed.services, &wanted.services).await?;
        self.prune(&observed.config_maps, &wanted.config_maps).await?;
        Ok(applied)
    }

    /// What is wanted no more goes first: two autoscalers must not meet.
    async fn let_scale(&self, scaler: Scaler, observed: &Observed, applied: &mut Applied) -> Result<(), ApplyError> {
        let owner = Owner::Model(&observed.model);
        let (autoscalers, scaled_objects) = (&observed.horizontal_pod_autoscalers, &observed.scaled_objects);
        match scaler {
            Scaler::AsBefore => Ok(()),
            Scaler::Nothing => {
                self.prune(autoscalers, &HashSet::new()).await?;
                self.prune(scaled_objects, &HashSet::new()).await
            }
            Scaler::Hpa(autoscaler) => {
                self.prune(scaled_objects, &HashSet::new()).await?;
                self.prune(autoscalers, &HashSet::from([autoscaler.name_any()])).await?;
                self.put(*autoscaler, autoscalers, owner, applied).await
            }
            Scaler::Keda(scaled_object) => {
                self.prune(autoscalers, &HashSet::new()).await?;
                self.prune(scaled_objects, &HashSet::from([scaled_object.name_any()])).await?;
                self.put(*scaled_object, scaled_objects, owner, applied).await
            }
        }
    }

    /// Brings what a namespace has of one kind, in `live`, to what is wanted, if anything is.
    ///
    /// # Errors
    /// See [`Writer::apply`].
    pub async fn share<K>(
        &self,
        namespace: &str,
        wanted: Option<K>,
        live: &BTreeMap<String, Arc<K>>,
    ) -> Result<Applied, ApplyError>
    where
        K: Resource<DynamicType = (), Scope = NamespaceResourceScope>,
        K: Clone + Debug + Serialize + DeserializeOwned,
    {
        let mut applied = Applied::default();
        let names = wanted.iter().map(kube::ResourceExt::name_any).collect();
        if let Some(object) = wanted {
            self.put(object, live, Owner::Namespace(namespace), &mut applied).await?;
        }
        self.prune(live, &names).await?;
        Ok(applied)
    }

    /// Writes the status.
    ///
    /// # Errors
    /// [`ApplyError`] where it should be tried again.
    pub async fn write_status(&self, model: &InferenceModel, status: &Value) -> Result<(), ApplyError> {
        let api: Api<Salvaged> = self.api(&model.namespace().unwrap_or_default());
        let name = model.name_any();
        let is_same = [("/metadata/uid", model.uid().into())];
        let patch = only_if(&is_same, "/status", status);
        let patch = patch.map_err(|source| self.failed::<InferenceModel>("write the status of", &name, source))?;
        let params = PatchParams { field_manager: Some(names::STATUS_MANAGER.to_owned()), ..PatchParams::default() };
        self.leadership.check()?;
        match api.patch_status(&name, &params, &patch).await {
            Ok(_) => {
                self.metrics.wrote("InferenceModel", WriteResult::ok);
                Ok(())
            }
            // Deleted in the meantime, or made anew: there is nothing to tell it.
            Err(kube::Error::Api(status)) if status.is_not_found() || is_another(&status) => Ok(()),
            Err(source) => Err(self.failed::<InferenceModel>("write the status of", &name, source)),
        }
    }

    /// Writes how many replicas an InferenceModel should have, and tells whether it did: not where another one has the name now,
    /// nor where somebody has written another number than the one that was decided from.
    ///
    /// # Errors
    /// [`ApplyError`] where it is not known to be written.
    pub async fn write_scale(&self, namespace: &str, name: &str, scale: &Scale<'_>) -> Result<bool, ApplyError> {
        self.leadership.check()?;
        let api: Api<InferenceModel> = self.api(namespace);
        // A server-side apply of the scale of a custom resource fails in the API server ("failed to create manager for existing
        // fields"); this names its manager as well, and takes the field over from whoever had it.
        let params = PatchParams { field_manager: Some(names::SCALER_MANAGER.to_owned()), ..PatchParams::default() };
        let patch = scale.patch().map_err(|source| self.failed::<InferenceModel>("scale", name, source))?;
        match api.patch_scale(name, &params, &patch).await {
            Ok(_) => {
                self.metrics.wrote("InferenceModel", WriteResult::ok);
                Ok(true)
            }
            Err(kube::Error::Api(status)) if status.is_not_found() || is_another(&status) => Ok(false),
            Err(source) => Err(self.failed::<InferenceModel>("scale", name, source)),
        }
    }

    /// Forgets children of InferenceModels, by their uid, that are gone. What namespaces share is little.
    pub fn keep_only(&self, is_there: impl Fn(&str) -> bool) {
        self.written.keep_only(|owner| owner.starts_with(NAMESPACE_PREFIX) || is_there(owner));
    }

    fn api<K: Resource<DynamicType = (), Scope = NamespaceResourceScope>>(&self, namespace: &str) -> Api<K> {
        Api::namespaced(self.client.clone(), namespace)
    }

    async fn put<K>(
        &self,
        child: K,
        live: &BTreeMap<String, Arc<K>>,
        owner: Owner<'_>,
        applied: &mut Applied,
    ) -> Result<(), ApplyError>
    where
        K: Resource<DynamicType = (), Scope = NamespaceResourceScope>,
        K: Clone + Debug + Serialize + DeserializeOwned,
    {
        let (kind, name) = (K::kind(&()), child.name_any());
        let key = format!("{} {kind}/{name}", owner.key());
        let wanted = Wish::of(&child);
        let mut known = live.get(&name).map(|live| K::clone(live));
        if known.as_ref().is_some_and(|live| live.meta().deletion_timestamp.is_some()) {
            // It is made again when it is gone.
            return Ok(());
        }
        if known.as_ref().is_some_and(|live| self.written.is_in_place(&key, &wanted, live)) {
            return Ok(());
        }
        if known.is_none() {
            known = self.look_for::<K>(owner, &name).await?;
        }
        if let Some(found) = known.as_ref().filter(|found| !owner.has(*found)) {
            if owner.had(found) {
                return Err(ApplyError::StillThere { kind: kind.into_owned(), name });
            }
            applied.refusals.push(owner.belongs_to_another(&kind, found));
            return Ok(());
        }
        if let (Owner::Model(model), Some(found)) = (owner, &known)
            && !is_owned_by(found.meta(), &model.uid().unwrap_or_default())
            && !self.lives(model).await?
        {
            // It was kept on purpose, and would go with the InferenceModel.
            return Ok(());
        }
        match self.write(&wanted, known.as_ref(), owner).await {
            Ok(stored) => {
                match without_volumes(&kind, &name, &wanted.object, &stored) {
                    // Not remembered: it is written again and again, until it stays.
                    Some(refusal) => applied.refusals.push(refusal),
                    None => {
                        self.written.remember(key, &wanted, &stored);
                        applied.written.push(format!("{kind} {name}"));
                    }
                }
                Ok(())
            }
            Err(kube::Error::Api(status)) if reason_of_refusal(&status).is_some() => {
                self.metrics.wrote(&kind, WriteResult::refused);
                applied.refusals.push(refused(&kind, &name, &status));
                Ok(())
            }
            Err(source) => Err(self.failed::<K>("apply", &name, source)),
        }
    }

    async fn write<K>(&self, wanted: &Wish, known: Option<&K>, owner: Owner<'_>) -> Result<K, kube::Error>
    where
        K: Resource<DynamicType = (), Scope = NamespaceResourceScope> + Clone + Debug + DeserializeOwned,
    {
        let mut patch = wanted.object.clone();
        patch["apiVersion"] = K::api_version(&()).into();
        patch["kind"] = K::kind(&()).into();
        let mut params = PatchParams::apply(names::FIELD_MANAGER);
        if let Some(known) = known {
            // If it was deleted and made again by somebody else, this fails instead of taking it over.
            patch["metadata"]["uid"] = known.uid().into();
            params = params.force();
        }
        self.permit()?;
        let api: Api<K> = self.api(&owner.namespace());
        let name = patch["metadata"]["name"].as_str().unwrap_or_default().to_owned();
        let apply = Patch::Apply(&patch);
        let stored = match api.patch(&name, &params, &apply).await {
            Err(kube::Error::Api(status)) if known.is_some() && is_about_spec(&status) => {
                self.take_over(&api, &patch).await?;
                let mut unfinished = patch.clone();
                unfinished["metadata"]["annotations"][names::APPLIED_ANNOTATION] = "".into();
                self.permit()?;
                let stored = api.patch(&name, &params, &Patch::Apply(&unfinished)).await?;
                self.metrics.wrote(&K::kind(&()), WriteResult::ok);
                self.own_alone(&api, stored).await?;
                self.permit()?;
                api.patch(&name, &params, &apply).await?
            }
            answer => answer?,
        };
        self.metrics.wrote(&K::kind(&()), WriteResult::ok);
        // One that was ended in the middle of that has left it to us.
        if before_first_apply(&stored).is_some() { self.own_alone(&api, stored).await } else { Ok(stored) }
    }

    /// Where nobody is known to own a field, the API server lets a manager of its own have all that is there as soon as one applies: what
    /// we no longer name would stay for ever as that manager's. It is taken off again.
    async fn own_alone<K>(&self, api: &Api<K>, mut stored: K) -> Result<K, kube::Error>
    where
        K: Resource<DynamicType = (), Scope = NamespaceResourceScope> + Clone + Debug + DeserializeOwned,
    {
        // Others write meanwhile; they may stand in front of it then.
        for _ in 0..TRIES {
            let Some(place) = before_first_apply(&stored) else { return Ok(stored) };
            let path = format!("/metadata/managedFields/{place}");
            let is_same = json!([
                {"op": "test", "path": "/metadata/uid", "value": stored.uid()},
                {"op": "test", "path": format!("{path}/manager"), "value": BEFORE},
                {"op": "remove", "path": path},
            ]);
            let patch = serde_json::from_value(is_same).map(Patch::Json::<()>).map_err(kube::Error::SerdeError)?;
            self.permit()?;
            match api.patch(&stored.name_any(), &PatchParams::default(), &patch).await {
                // Children are listed: nothing here needs the right to get one.
                Err(kube::Error::Api(status)) if is_another(&status) => {
                    let named = ListParams::default().fields(&format!("metadata.name={}", stored.name_any()));
                    let Some(found) = api.list(&named).await?.items.into_iter().next() else { return Ok(stored) };
                    stored = found;
                }
                answer => {
                    let alone = answer?;
                    self.metrics.wrote(&K::kind(&()), WriteResult::ok);
                    return Ok(alone);
                }
            }
        }
        Ok(stored)
    }

    /// Replaces the lists of a child of ours, and forgets who owned their items. An item that somebody else has put there
    /// is not ours to take out by an apply, and may be what stands in the way: a port whose number was changed is another
    /// item, with the name of ours.
    async fn take_over<K>(&self, api: &Api<K>, wanted: &Value) -> Result<(), kube::Error>
    where
        K: Resource<DynamicType = (), Scope = NamespaceResourceScope> + Clone + Debug + DeserializeOwned,
    {
        let name = wanted["metadata"]["name"].as_str().unwrap_or_default();
        // One empty entry is how the API server is told to forget them all.
        // Whoever comes in between finds by its digest that it is not done.
        let annotations = json!({names::APPLIED_ANNOTATION: ""});
        let uid = &wanted["metadata"]["uid"];
        let metadata = json!({"uid": uid, "annotations": annotations, "managedFields": [{}]});
        let patch = json!({"metadata": metadata, "spec": wanted["spec"]});
        self.permit()?;
        api.patch(name, &PatchParams::default(), &Patch::Merge(&patch)).await?;
        self.metrics.wrote(&K::kind(&()), WriteResult::ok);
        Ok(())
    }

    /// Whether the InferenceModel is there, and not about to go. Asked before it gets back what nobody owns: where it is deleted and its
    /// children are kept, that they lost their owner may be seen before that it goes.
    async fn lives(&self, model: &InferenceModel) -> Result<bool, ApplyError> {
        let api: Api<InferenceModel> = self.api(&model.namespace().unwrap_or_default());
        let name = model.name_any();
        let named = ListParams::default().fields(&format!("metadata.name={name}"));
        let list = api.list_metadata(&named).await;
        let list = list.map_err(|source| self.failed::<InferenceModel>("look for", &name, source))?;
        let is_it =
            |found: &PartialObjectMeta<_>| found.uid() == model.uid() && found.metadata.deletion_timestamp.is_none();
        Ok(list.items.iter().any(is_it))
    }

    /// What the cache does not show may be there all the same: it carries no label of ours, or is younger than the cache.
    async fn look_for<K>(&self, owner: Owner<'_>, name: &str) -> Result<Option<K>, ApplyError>
    where
        K: Resource<DynamicType = (), Scope = NamespaceResourceScope> + Clone + Debug + DeserializeOwned,
    {
        let api: Api<K> = self.api(&owner.namespace());
        let named = ListParams::default().fields(&format!("metadata.name={name}"));
        let list = api.list(&named).await.map_err(|source| self.failed::<K>("look for", name, source))?;
        Ok(list.items.into_iter().next())
    }

    async fn prune<K>(&self, live: &BTreeMap<String, Arc<K>>, wanted: &HashSet<String>) -> Result<(), ApplyError>
    where
        K: Resource<DynamicType = (), Scope = NamespaceResourceScope> + Clone + Debug + DeserializeOwned,
    {
        for (name, child) in live {
            if wanted.contains(name) || child.meta().deletion_timestamp.is_some() {
                continue;
            }
            self.leadership.check()?;
            let api: Api<K> = self.api(&child.namespace().unwrap_or_default());
            let same = Preconditions { uid: child.uid(), resource_version: None };
            let params = DeleteParams { preconditions: Some(same), ..DeleteParams::background() };
            match api.delete(name, &params).await {
                Ok(_) => self.metrics.wrote(&K::kind(&()), WriteResult::ok),
                Err(kube::Error::Api(status)) if status.is_not_found() || status.is_conflict() => {}
                Err(source) => return Err(self.failed::<K>("delete", name, source)),
            }
        }
        Ok(())
    }

    /// Asked right before each request that writes.
    fn permit(&self) -> Result<(), kube::Error> {
        self.leadership.check().map_err(|error| kube::Error::Service(Box::new(error)))
    }

    fn failed<K: Resource<DynamicType = ()>>(
        &self,
        action: &'static str,
        name: &str,
        source: kube::Error,
    ) -> ApplyError {
        if let kube::Error::Service(source) = &source
            && source.is::<NotLeading>()
        {
            return NotLeading.into();
        }
        if let kube::Error::Api(status) = &source
            && ends_with_its_namespace(status)
        {
            return ApplyError::NamespaceEnds;
        }
        let kind = K::kind(&());
        self.metrics.wrote(&kind, WriteResult::error);
        ApplyError::Api { action, kind: kind.into_owned(), name: name.to_owned(), source: Box::new(source) }
    }
}

/// The manager that the API server gives all fields to that nobody is known to own.
const BEFORE: &str = "before-first-apply";

/// Its place among the managers of an object.
fn before_first_apply<K: Resource>(object: &K) -> Option<usize> {
    let mut managers = object.meta().managed_fields.iter().flatten();
    managers.position(|entry| entry.manager.as_deref() == Some(BEFORE))
}

/// So often a thing is tried that another writer may come in between of.
const TRIES: u32 = 3;

struct Wanted {
    config_maps: HashSet<String>,
    services: HashSet<String>,
    deployments: HashSet<String>,
}

fn names<K: Resource>(objects: &[K]) -> HashSet<String> {
    objects.iter().map(kube::ResourceExt::name_any).collect()
}

/// A patch of one value that only an object takes that has these values: the API server does not look at the uid of a custom
/// resource's status or scale that is applied or merged.
fn only_if(is_same: &[(&str, Value)], path: &str, value: &Value) -> Result<Patch<()>, kube::Error> {
    let tests = is_same.iter().map(|(path, value)| json!({"op": "test", "path": path, "value": value}));
    let operations: Value = tests.chain([json!({"op": "add", "path": path, "value": value})]).collect();
    serde_json::from_value(operations).map(Patch::Json).map_err(kube::Error::SerdeError)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_is_written_only_over_the_one_that_it_was_decided_from() {
        let patch = Scale { uid: "6ad4", from: 3, to: 5 }.patch().unwrap();
        let operations = json!([
            {"op": "test", "path": "/metadata/uid", "value": "6ad4"},
            {"op": "test", "path": "/spec/replicas", "value": 3},
            {"op": "add", "path": "/spec/replicas", "value": 5},
        ]);
        let Patch::Json::<()>(patch) = patch else { panic!("{patch:?}") };
        assert_eq!(serde_json::to_value(patch).unwrap(), operations);
    }
}
