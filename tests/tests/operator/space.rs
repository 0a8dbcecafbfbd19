//! The namespace of one test, and what tests do and wait for in it.
//!
//! Every namespace enforces the level `restricted` of the pod security standards: whatever the operator makes must pass.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::net::IpAddr;
use std::path::Path;
use std::time::Duration;

use crds::resource::InferenceModel;
use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{ConfigMap, Namespace, PersistentVolume, PersistentVolumeClaim, Pod, Service};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::api::{Api, DeleteParams, ListParams, Patch, PatchParams, PostParams};
use kube::runtime::{WatchStreamExt as _, watcher};
use kube::{Resource, ResourceExt};
use ortolan_tests::cluster::{Cluster, wait};
use ortolan_tests::programs;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use crate::fixture::{Failure, LIMIT, Outcome, Stage};
use crate::models::{self, CLAIM};
use crate::operator::tell_logs;
use crate::web;

/// What the operator puts on all that belongs to an InferenceModel.
pub(crate) const MODEL_LABEL: &str = "ortolan.dev/inference-model";

/// See [`MODEL_LABEL`].
pub(crate) const REVISION_LABEL: &str = "ortolan.dev/revision";

/// A namespace, until the test is over.
pub(crate) struct Space {
    pub(crate) stage: &'static Stage,
    pub(crate) namespace: String,
    /// Whether the test has ended well.
    is_over: bool,
}

/// What a condition should say.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Verdict {
    pub(crate) type_: &'static str,
    pub(crate) status: &'static str,
    pub(crate) reason: &'static str,
}

/// A condition that is False for that reason.
pub(crate) const fn no(type_: &'static str, reason: &'static str) -> Verdict {
    Verdict { type_, status: "False", reason }
}

/// A condition that is True for that reason.
pub(crate) const fn yes(type_: &'static str, reason: &'static str) -> Verdict {
    Verdict { type_, status: "True", reason }
}

impl Space {
    pub(crate) async fn create(stage: &'static Stage, namespace: &str) -> Outcome<Self> {
        let labels = json!({"pod-security.kubernetes.io/enforce": "restricted"});
        let object = json!({"metadata": {"name": namespace, "labels": labels}});
        let namespaces: Api<Namespace> = Api::all(stage.cluster.client());
        namespaces.create(&PostParams::default(), &serde_json::from_value(object)?).await?;
        Ok(Self { stage, namespace: namespace.to_owned(), is_over: false })
    }

    /// Removes the namespace, without waiting for it.
    pub(crate) async fn end(mut self) -> Outcome {
        self.is_over = true;
        let namespaces: Api<Namespace> = Api::all(self.cluster().client());
        namespaces.delete(&self.namespace, &DeleteParams::default()).await?;
        Ok(())
    }

    pub(crate) fn cluster(&self) -> &'static Cluster {
        &self.stage.cluster
    }

    pub(crate) fn api<K>(&self) -> Api<K>
    where
        K: Resource<DynamicType = (), Scope = NamespaceResourceScope>,
    {
        Api::namespaced(self.cluster().client(), &self.namespace)
    }

    pub(crate) fn models(&self) -> Api<InferenceModel> {
        self.api()
    }

    /// `kubectl` in this namespace.
    pub(crate) async fn kubectl(&self, arguments: &[&str]) -> Outcome<String> {
        Ok(self.cluster().run_kubectl(&[&["-n", &self.namespace], arguments].concat()).await?)
    }

    /// Applies an InferenceModel as a user does.
    pub(crate) async fn apply(&self, model: &Value) -> Outcome<InferenceModel> {
        let name = model["metadata"]["name"].as_str().unwrap_or_default();
        let params = PatchParams::apply("a-user").force();
        Ok(self.models().patch(name, &params, &Patch::Apply(model)).await?)
    }

    /// Makes any other object as somebody does who knows nothing of the operator.
    pub(crate) async fn create_object<K>(&self, object: Value) -> Outcome<K>
    where
        K: Resource<DynamicType = (), Scope = NamespaceResourceScope> + Clone + Debug + DeserializeOwned + Serialize,
    {
        Ok(self.api::<K>().create(&PostParams::default(), &serde_json::from_value(object)?).await?)
    }

    /// Deletes an object, and waits until it is gone.
    pub(crate) async fn delete<K>(&self, name: &str) -> Outcome<Duration>
    where
        K: Resource<DynamicType = (), Scope = NamespaceResourceScope> + Clone + Debug + DeserializeOwned,
    {
        let api = self.api::<K>();
        let uid = api.get(name).await?.uid();
        api.delete(name, &DeleteParams::background()).await?;
        let ((), time) = wait::until(&format!("{name} to be gone"), LIMIT, async || match api.get_opt(name).await {
            Ok(left) if left.as_ref().is_none_or(|left| left.uid() != uid) => Ok(()),
            Ok(_) => Err("it is still there".to_owned()),
            Err(error) => Err(error.to_string()),
        })
        .await?;
        Ok(time)
    }

    /// Makes a claim on a volume with all models of the cache.
    pub(crate) async fn claim_models(&self) -> Outcome {
        self.claim(&programs::cache_folder().join("models").canonicalize()?).await
    }

    /// Makes a claim on a volume that is a folder of this machine.
    pub(crate) async fn claim(&self, folder: &Path) -> Outcome {
        let volume = format!("models-{}", self.namespace);
        let both = json!({"accessModes": ["ReadOnlyMany"], "storageClassName": ""});
        let mut spec = both.clone();
        spec["capacity"] = json!({"storage": "1Gi"});
        spec["hostPath"] = json!({"path": folder});
        spec["claimRef"] = json!({"namespace": self.namespace, "name": CLAIM});
        let volumes: Api<PersistentVolume> = Api::all(self.cluster().client());
        let object = serde_json::from_value(json!({"metadata": {"name": volume}, "spec": spec}))?;
        volumes.create(&PostParams::default(), &object).await?;
        let mut spec = both;
        spec["volumeName"] = volume.into();
        spec["resources"] = json!({"requests": {"storage": "1Gi"}});
        self.create_object::<PersistentVolumeClaim>(json!({"metadata": {"name": CLAIM}, "spec": spec})).await?;
        Ok(())
    }

    /// Waits until the InferenceModel is as `look` wants it; it says what it sees instead.
    pub(crate) async fn until<T>(
        &self,
        name: &str,
        what: &str,
        mut look: impl FnMut(&InferenceModel) -> Result<T, String>,
    ) -> Outcome<(T, Duration)> {
        let only = watcher::Config::default().fields(&format!("metadata.name={name}"));
        let states = watcher(self.models(), only).default_backoff().applied_objects();
        let look = |model: Result<InferenceModel, watcher::Error>| match model {
            Ok(model) => look(&model).map_err(|seen| format!("{seen}; {}", summary(&model))),
            Err(error) => Err(error.to_string()),
        };
        Ok(wait::until_seen(&format!("{}/{name} {what}", self.namespace), LIMIT, states, look).await?)
    }

    /// Waits until a condition says this of the spec as it is now.
    pub(crate) async fn shows(&self, name: &str, wanted: Verdict) -> Outcome<(Condition, Duration)> {
        let Verdict { type_, status, reason } = wanted;
        self.until(name, &format!("to show {type_}={status} {reason}"), |model| {
            let found = condition(model, type_).filter(|found| found.observed_generation == model.metadata.generation);
            match found {
                Some(found) if found.status == status && found.reason == reason => Ok(found.clone()),
                _ => Err("it does not".to_owned()),
            }
        })
        .await
    }

    /// Waits until all of the spec serves.
    pub(crate) async fn ready(&self, name: &str) -> Outcome<(InferenceModel, Duration)> {
        self.until(name, "to be ready", |model| {
            let ready = condition(model, "Ready")
                .is_some_and(|ready| ready.status == "True" && ready.observed_generation == model.metadata.generation);
            if ready { Ok(model.clone()) } else { Err("it is not".to_owned()) }
        })
        .await
    }

    /// Applies it and waits until all of it serves.
    pub(crate) async fn apply_until_ready(&self, model: &Value) -> Outcome<(InferenceModel, Duration)> {
        let name = self.apply(model).await?.name_any();
        self.ready(&name).await
    }

    /// The revision that serves.
    pub(crate) async fn active_revision(&self, name: &str) -> Outcome<String> {
        let status = self.models().get(name).await?.status.unwrap_or_default();
        status.active_revision.ok_or_else(|| Failure::new(format!("{name} has no active revision")))
    }

    /// The objects of an InferenceModel.
    pub(crate) async fn of<K>(&self, name: &str) -> Outcome<Vec<K>>
    where
        K: Resource<DynamicType = (), Scope = NamespaceResourceScope> + Clone + Debug + DeserializeOwned,
    {
        let labelled = ListParams::default().labels(&format!("{MODEL_LABEL}={name}"));
        Ok(self.api::<K>().list(&labelled).await?.items)
    }

    /// The pods of an InferenceModel that were not told to end.
    pub(crate) async fn pods(&self, name: &str) -> Outcome<Vec<Pod>> {
        let mut pods = self.of::<Pod>(name).await?;
        pods.retain(|pod| pod.metadata.deletion_timestamp.is_none());
        Ok(pods)
    }

    /// Waits until a pod of the InferenceModel is as `look` wants it.
    pub(crate) async fn until_a_pod<T>(
        &self,
        name: &str,
        what: &str,
        mut look: impl FnMut(&Pod) -> Option<T>,
    ) -> Outcome<(T, Duration)> {
        let what = format!("a pod of {}/{name} {what}", self.namespace);
        let look = async || {
            let pods = self.pods(name).await.map_err(|error| error.to_string())?;
            let seen = || pods.iter().map(|pod| format!("{:?}", pod.status)).collect::<Vec<_>>().join("\n");
            pods.iter().find_map(&mut look).ok_or_else(seen)
        };
        Ok(wait::until(&what, LIMIT, look).await?)
    }

    /// The children by kind and name, as they should be: what is owned by the operator, and nothing that changes by itself.
    pub(crate) async fn children(&self, name: &str) -> Outcome<BTreeMap<String, Value>> {
        let mut children = BTreeMap::new();
        for child in self.of::<ConfigMap>(name).await? {
            children.insert(format!("ConfigMap {}", child.name_any()), as_wanted(&child)?);
        }
        for child in self.of::<Service>(name).await? {
            children.insert(format!("Service {}", child.name_any()), as_wanted(&child)?);
        }
        for child in self.of::<Deployment>(name).await? {
            children.insert(format!("Deployment {}", child.name_any()), as_wanted(&child)?);
        }
        Ok(children)
    }

    /// The address of a Service inside the cluster, which this machine reaches too.
    pub(crate) async fn address(&self, service: &str) -> Outcome<(IpAddr, u16)> {
        let spec = self.api::<Service>().get(service).await?.spec.unwrap_or_default();
        let address = spec.cluster_ip.unwrap_or_default();
        let port = spec.ports.unwrap_or_default().first().map_or(0, |port| port.port);
        Ok((address.parse()?, port.try_into()?))
    }

    /// Asks the model `tiny` through the Service, until there is an answer: a change takes a moment to reach the node's rules.
    pub(crate) async fn numbers(&self, name: &str) -> Outcome<Vec<f64>> {
        let address = self.address(name).await?;
        let what = format!("an answer of {}/{name}", self.namespace);
        let (answer, _) =
            wait::until(&what, LIMIT, async || match web::post(address, models::QUESTION_PATH, &models::question()) {
                Ok(answer) if answer.status == 200 => Ok(answer.json()),
                Ok(answer) => Err(answer.text()),
                Err(error) => Err(error.to_string()),
            })
            .await?;
        Ok(models::numbers(&answer))
    }
}

impl Drop for Space {
    fn drop(&mut self) {
        if self.is_over {
            return;
        }
        for arguments in [
            &["get", "infm,deployments,pods,services,configmaps,quota", "-o", "wide"][..],
            &[
                "get",
                "infm",
                "-o",
                "jsonpath={range .items[*].status.conditions[*]}{.type}={.status} {.reason}: {.message}{\"\\n\"}{end}",
            ],
            &["get", "events", "--sort-by=.lastTimestamp"],
        ] {
            let output = self
                .cluster()
                .kubectl()
                .map(|mut kubectl| kubectl.args(["-n", &self.namespace]).args(arguments).output());
            if let Ok(Ok(output)) = output {
                crate::fixture::tell(&String::from_utf8_lossy(&output.stdout));
            }
        }
        tell_logs(self.cluster(), &self.namespace);
    }
}

pub(crate) fn condition<'a>(model: &'a InferenceModel, type_: &str) -> Option<&'a Condition> {
    model.status.iter().flat_map(|status| &status.conditions).find(|condition| condition.type_ == type_)
}

/// The conditions in short, for messages.
fn summary(model: &InferenceModel) -> String {
    let conditions = model.status.iter().flat_map(|status| &status.conditions);
    let generation = model.metadata.generation.unwrap_or_default();
    let lines = conditions.map(|it| {
        let of = it.observed_generation.unwrap_or_default();
        format!("{}={} {} (generation {of} of {generation}): {}", it.type_, it.status, it.reason, it.message)
    });
    lines.collect::<Vec<_>>().join("\n    ")
}

/// An object without what is different each time it is made, and without what others keep in it.
pub(crate) fn as_wanted<K: Serialize>(object: &K) -> Outcome<Value> {
    let mut object = serde_json::to_value(object)?;
    let all = object.as_object_mut().ok_or_else(|| Failure::new("no object"))?;
    all.remove("status");
    let passing = ["creationTimestamp", "generation", "managedFields", "resourceVersion", "uid"];
    for key in passing {
        remove(&mut object["metadata"], key);
    }
    remove(&mut object["metadata"]["annotations"], "deployment.kubernetes.io/revision");
    for key in ["clusterIP", "clusterIPs"] {
        if object["spec"][key] != json!("None") && object["spec"][key] != json!(["None"]) {
            remove(&mut object["spec"], key);
        }
    }
    Ok(object)
}

fn remove(object: &mut Value, key: &str) {
    if let Some(object) = object.as_object_mut() {
        object.remove(key);
    }
}
