//! Reads every fact that a decision needs, once: from the caches, and from what pods and the API server were asked.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use crds::resource::InferenceModel;
use k8s_openapi::{
    api::{
        apps::v1::Deployment,
        autoscaling::v2::HorizontalPodAutoscaler,
        core::v1::{ConfigMap, Container, Pod, PodSpec, Service, Volume},
    },
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
    jiff::Timestamp,
};
use kube::{ResourceExt as _, runtime::reflector::ObjectRef};
use tokio::time;

use crate::{
    autoscalers::{Autoscaler, Autoscalers, Maker, Target},
    cache::Cache,
    info::{Info, Infos},
    keda::ScaledObject,
    kinds::{Kinds, OptionalKind},
    names,
    owner::is_uncontrolled,
    scaling::{Outcome, Outcomes},
    shared::{Place, Places, Shared},
    stuck::{Stuck, Warning},
};

/// What is there of one InferenceModel.
#[derive(Debug, Clone)]
pub struct Observed {
    /// The InferenceModel itself.
    pub model: Arc<InferenceModel>,
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// ConfigMaps that it owns, by name. What one of its name has left is its own here, and in all that follows.
    pub config_maps: BTreeMap<String, Arc<ConfigMap>>,
    /// Deployments that it owns, by name.
    pub deployments: BTreeMap<String, Arc<Deployment>>,
    /// Services that it owns, by name.
    pub services: BTreeMap<String, Arc<Service>>,
    /// HorizontalPodAutoscalers that scale it or the Deployments of its revisions, whoever made them, and those that it owns; by name.
    pub autoscalers: Vec<Arc<Autoscaler>>,
    /// HorizontalPodAutoscalers that it owns, by name, without their status.
    pub horizontal_pod_autoscalers: BTreeMap<String, Arc<HorizontalPodAutoscaler>>,
    /// ScaledObjects that it owns, by name.
    pub scaled_objects: BTreeMap<String, Arc<ScaledObject>>,
    /// Whether the cluster serves ScaledObjects.
    pub has_keda: bool,
    /// Pods with its label, by name.
    pub pods: BTreeMap<String, Arc<Pod>>,
    /// What ready pods tell, by the pod's name.
    pub infos: BTreeMap<String, Arc<Info>>,
    /// The last warning about a pod that does not get on, by the pod's name.
    pub warnings: BTreeMap<String, Warning>,
    /// What has become of the objects that it shares with others of its namespace.
    pub shared: Places,
    /// How it stands with its scaling, where the operator scales.
    pub scaling: Option<Outcome>,
    /// The time of the observation.
    pub now: Timestamp,
}

impl Observed {
    /// An InferenceModel of which nothing is there yet, and nothing is wrong with what it shares, in 1970.
    #[must_use]
    pub fn bare(model: Arc<InferenceModel>) -> Self {
        Self {
            namespace: model.namespace().unwrap_or_default(),
            name: model.name_any(),
            model,
            config_maps: BTreeMap::new(),
            deployments: BTreeMap::new(),
            services: BTreeMap::new(),
            autoscalers: Vec::new(),
            horizontal_pod_autoscalers: BTreeMap::new(),
            scaled_objects: BTreeMap::new(),
            has_keda: false,
            pods: BTreeMap::new(),
            infos: BTreeMap::new(),
            warnings: BTreeMap::new(),
            shared: Places { service_monitor: Place::There(None), rules: Place::There(None) },
            scaling: None,
            now: Timestamp::UNIX_EPOCH,
        }
    }
}

/// Where facts come from.
#[derive(Clone)]
pub struct Sources {
    /// ConfigMaps with our label.
    pub config_maps: Cache<ConfigMap>,
    /// Deployments with our label.
    pub deployments: Cache<Deployment>,
    /// Services with our label.
    pub services: Cache<Service>,
    /// HorizontalPodAutoscalers that concern InferenceModels.
    pub autoscalers: Autoscalers,
    /// ScaledObjects with our label.
    pub scaled_objects: Cache<ScaledObject>,
    /// What the cluster serves.
    pub kinds: Kinds,
    /// Pods with our label.
    pub pods: Cache<Pod>,
    /// What pods tell.
    pub infos: Infos,
    /// Warnings about pods that do not get on.
    pub stuck: Stuck,
    /// What the InferenceModels of a namespace share.
    pub shared: Shared,
    /// How it stands with what the operator scales.
    pub scaling: Outcomes,
}

/// Objects of kinds that the cluster may lack are waited for so long at the start.
const OPTIONAL_WITHIN: Duration = Duration::from_secs(10);

impl Sources {
    /// Waits until everything that was there at the start has been read.
    pub async fn wait_until_ready(&self) {
        self.config_maps.wait_until_ready().await;
        self.deployments.wait_until_ready().await;
        self.services.wait_until_ready().await;
        self.pods.wait_until_ready().await;
        self.autoscalers.wait_until_ready().await;
        let scaled_objects = async {
            self.kinds.wait_until_known().await;
            if self.kinds.is_served(OptionalKind::ScaledObject) {
                self.scaled_objects.wait_until_ready().await;
            }
        };
        if time::timeout(OPTIONAL_WITHIN, scaled_objects).await.is_err() {
            tracing::warn!("ScaledObjects cannot be read; models are served all the same");
        }
        self.shared.wait_until_ready(OPTIONAL_WITHIN).await;
    }

    /// Whether everything that was there at the start has been read.
    #[must_use]
    pub fn are_ready(&self) -> bool {
        let has_children = self.config_maps.is_ready() && self.deployments.is_ready() && self.services.is_ready();
        has_children && self.pods.is_ready() && self.autoscalers.is_ready()
    }
}

/// Observes one InferenceModel.
#[must_use]
pub fn observe(model: Arc<InferenceModel>, sources: &Sources, now: Timestamp) -> Observed {
    let (name, namespace) = (model.name_any(), model.namespace().unwrap_or_default());
    let uid = model.uid().unwrap_or_default();
    let deployments = owned(sources.deployments.of(&namespace, &name), &uid, &name);
    let pods = of_this_life(sources.pods.of(&namespace, &name), &model, &deployments);
    let reference = ObjectRef::from_obj(&*model);
    let ready = pods.iter().filter(|(_, pod)| ready_since(pod).is_some());
    let infos = ready.filter_map(|(name, pod)| Some((name.clone(), sources.infos.of(pod, &reference)?))).collect();
    let stuck = pods.iter().filter(|(_, pod)| crate::stuck::is_stuck(pod, now));
    let warnings = stuck.filter_map(|(name, pod)| Some((name.clone(), sources.stuck.of(pod, &reference)?))).collect();
    let has_keda = sources.kinds.is_served(OptionalKind::ScaledObject);
    let scaled_objects = if has_keda { sources.scaled_objects.of(&namespace, &name) } else { BTreeMap::new() };
    Observed {
        autoscalers: concerning(sources.autoscalers.of(&namespace, &name), &name, &deployments),
        horizontal_pod_autoscalers: sources.autoscalers.owned(&namespace, &name, &uid),
        scaled_objects: owned(scaled_objects, &uid, &name),
        has_keda,
        config_maps: owned(sources.config_maps.of(&namespace, &name), &uid, &name),
        deployments,
        services: owned(sources.services.of(&namespace, &name), &uid, &name),
        pods,
        infos,
        warnings,
        shared: sources.shared.of(&namespace),
        scaling: sources.scaling.of(&namespace, &name),
        now,
        model,
        namespace,
        name,
    }
}

/// Pods that are older than the InferenceModel are those of a deleted one of its name, on their way out, and must not make it ready;
/// unless its Deployments are as old, which were kept when theirs was deleted.
fn of_this_life(
    mut pods: BTreeMap<String, Arc<Pod>>,
    model: &InferenceModel,
    deployments: &BTreeMap<String, Arc<Deployment>>,
) -> BTreeMap<String, Arc<Pod>> {
    let births = deployments.values().filter_map(|it| it.creation_timestamp()).chain(model.creation_timestamp());
    if let Some(since) = births.map(|birth| birth.0).min() {
        pods.retain(|_, pod| pod.creation_timestamp().is_none_or(|birth| birth.0 >= since));
    }
    pods
}

/// A Deployment that is only named like a revision of ours is none of our business.
fn concerning(
    autoscalers: Vec<Arc<Autoscaler>>,
    model: &str,
    deployments: &BTreeMap<String, Arc<Deployment>>,
) -> Vec<Arc<Autoscaler>> {
    let concerns = |autoscaler: &Arc<Autoscaler>| match &autoscaler.target {
        Target::Model(name) if name == model => true,
        Target::Deployment(name) if deployments.contains_key(name) => true,
        _ => autoscaler.maker(model) == Maker::Operator,
    };
    autoscalers.into_iter().filter(concerns).collect()
}

/// What the InferenceModel owns, with what one of its name has left: were that not seen, revisions that nobody knows went on serving
/// beside its own, and for ever. What carries our label but belongs to somebody else is none of our business.
fn owned<K: kube::Resource>(objects: BTreeMap<String, Arc<K>>, uid: &str, model: &str) -> BTreeMap<String, Arc<K>> {
    let is_ours = |object: &K| is_owned_by(object.meta(), uid) || is_left_to(object, model);
    objects.into_iter().filter(|(_, object)| is_ours(object)).collect()
}

/// Whether the object's controller is the InferenceModel with this uid.
#[must_use]
pub fn is_owned_by(metadata: &ObjectMeta, uid: &str) -> bool {
    metadata.owner_references.iter().flatten().any(|owner| owner.controller == Some(true) && owner.uid == uid)
}

/// Whether one that we wrote for an InferenceModel of this name has no owner any more: its InferenceModel was deleted and its children
/// kept, or somebody took the reference off. A copy under a name that we give nothing is its maker's.
#[must_use]
pub fn is_left_to<K: kube::Resource>(object: &K, model: &str) -> bool {
    let (name, revision) = (object.name_any(), object.labels().get(names::REVISION_LABEL));
    let has_name_of_ours = match revision {
        Some(hash) => name == names::revision(model, hash),
        None => name == model || name == names::headless(model) || name == names::dashboard(model),
    };
    is_uncontrolled(object)
        && has_name_of_ours
        && object.labels().get(names::MODEL_LABEL).is_some_and(|label| label == model)
}

/// Since when a pod is ready; none if it is not, or if it has ended.
#[must_use]
pub fn ready_since(pod: &Pod) -> Option<Timestamp> {
    let conditions = pod.status.as_ref()?.conditions.as_ref()?;
    let ready = conditions.iter().find(|condition| condition.type_ == "Ready" && condition.status == "True")?;
    Some(ready.last_transition_time.as_ref().map_or(Timestamp::MIN, |time| time.0))
}

/// Takes from a pod what nobody here reads: of what it was asked to be its node, and its containers' names and resources, are left.
/// The rest is 11 KiB of each pod in memory, and its Deployment has it as well.
pub fn trim(pod: &mut Pod) {
    let Some(spec) = pod.spec.take() else { return };
    let bare = |containers: Vec<Container>| -> Vec<Container> {
        let bare = |Container { name, resources, restart_policy, .. }| Container {
            name,
            resources,
            restart_policy,
            ..Container::default()
        };
        containers.into_iter().map(bare).collect()
    };
    let of_images = |volumes: Vec<Volume>| volumes.into_iter().filter(|volume| volume.image.is_some()).collect();
    pod.spec = Some(PodSpec {
        node_name: spec.node_name,
        volumes: spec.volumes.map(of_images),
        containers: bare(spec.containers),
        init_containers: spec.init_containers.map(bare),
        scheduling_gates: spec.scheduling_gates,
        ..PodSpec::default()
    });
}

/// Whether a pod will never run again, as one that was evicted.
#[must_use]
pub fn has_ended(pod: &Pod) -> bool {
    let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
    matches!(phase, Some("Failed" | "Succeeded"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn born<K: serde::de::DeserializeOwned>(name: &str, second: u32) -> (String, Arc<K>) {
        let metadata = serde_json::json!({"name": name, "creationTimestamp": format!("2026-01-02T03:04:{second:02}Z")});
        let spec = serde_json::json!({"models": [], "containers": [], "selector": {}, "template": {}});
        let object = serde_json::json!({"metadata": metadata, "spec": spec});
        (name.to_owned(), Arc::new(serde_json::from_value(object).unwrap()))
    }

    #[test]
    fn a_trimmed_pod_has_its_node_and_what_its_containers_may_use() {
        let container = serde_json::json!({
            "name": "server",
            "image": "server:1",
            "env": [{"name": "A", "value": "b"}],
            "resources": {"limits": {"memory": "1Gi"}},
        });
        let spec = |container: &serde_json::Value| {
            serde_json::json!({
                "nodeName": "n",
                "containers": [container],
                "initContainers": [{"name": "proxy", "restartPolicy": "Always"}],
                "schedulingGates": [{"name": "kueue.x-k8s.io/admission"}],
            })
        };
        let mut pod: Pod = serde_json::from_value(serde_json::json!({
            "metadata": {"name": "p"},
            "spec": spec(&container),
            "status": {"podIP": "10.0.0.1"},
        }))
        .unwrap();
        let whole = pod.clone();
        trim(&mut pod);
        let left = serde_json::json!({"name": "server", "resources": {"limits": {"memory": "1Gi"}}});
        assert_eq!(pod.spec, Some(serde_json::from_value(spec(&left)).unwrap()));
        assert_eq!((pod.metadata, pod.status), (whole.metadata, whole.status));
    }

    #[test]
    fn what_is_left_is_told_from_copies_and_from_what_others_own() {
        let is_left = |change: serde_json::Value| {
            let mut object = serde_json::json!({"metadata": {
                "name": "espresso-0a1b2c3d",
                "labels": {names::MODEL_LABEL: "espresso", names::REVISION_LABEL: "0a1b2c3d"},
                "annotations": {names::APPLIED_ANNOTATION: "a digest"},
            }});
            change.as_object().unwrap().iter().for_each(|(key, value)| object["metadata"][key] = value.clone());
            is_left_to(&serde_json::from_value::<ConfigMap>(object).unwrap(), "espresso")
        };
        assert!(is_left(serde_json::json!({})));
        for name in ["espresso", "espresso-pods"] {
            assert!(is_left(serde_json::json!({"name": name, "labels": {names::MODEL_LABEL: "espresso"}})), "{name}");
        }
        let owner = serde_json::json!([{"apiVersion": "v1", "kind": "X", "name": "x", "uid": "x", "controller": true}]);
        for others in [
            serde_json::json!({"name": "espresso-copy"}),
            serde_json::json!({"labels": {names::MODEL_LABEL: "lungo", names::REVISION_LABEL: "0a1b2c3d"}}),
            serde_json::json!({"annotations": {}}),
            serde_json::json!({"ownerReferences": owner}),
        ] {
            assert!(!is_left(others.clone()), "{others}");
        }
    }

    #[test]
    fn pods_of_a_deleted_model_of_the_same_name_are_not_the_new_ones() {
        let (_, model) = born::<InferenceModel>("phoenix", 20);
        let pods = BTreeMap::from([born("former", 10), born("own", 20), born("later", 30)]);
        let counted = |deployments: &[(&str, u32)]| -> Vec<String> {
            let deployments = deployments.iter().map(|(name, second)| born(name, *second)).collect();
            of_this_life(pods.clone(), &model, &deployments).into_keys().collect()
        };
        assert_eq!(counted(&[]), ["later", "own"]);
        assert_eq!(counted(&[("made-again", 25)]), ["later", "own"], "its pods were kept when it was deleted");
        assert_eq!(counted(&[("adopted", 5)]), ["former", "later", "own"]);
    }
}
