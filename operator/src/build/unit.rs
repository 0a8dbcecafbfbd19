//! What serves: init containers, a container and volumes, which know nothing of a Deployment.

use std::collections::BTreeMap;

use crds::{
    resource::{InferenceModelSpec, Model},
    serving::ServerConfig,
};
use k8s_openapi::{
    api::core::v1::{
        Capabilities, ConfigMapVolumeSource, Container, ContainerPort, EmptyDirVolumeSource, EnvVar, EnvVarSource,
        HTTPGetAction, ImageVolumeSource, ObjectFieldSelector, PersistentVolumeClaimVolumeSource, Probe,
        ResourceRequirements, SecurityContext, Volume, VolumeMount,
    },
    apimachinery::pkg::{api::resource::Quantity, util::intstr::IntOrString},
};

use super::config::{self, MODELS_FOLDER, VOLUMES_FOLDER};
use crate::{names, validate::Checked};

/// The server's images, where a spec names none.
#[derive(Debug, Clone)]
pub struct Images {
    /// For models without an NVIDIA accelerator.
    pub cpu: String,
    /// For models with one.
    pub cuda: String,
    /// When nodes pull them.
    pub pull_policy: String,
}

/// What serves.
#[derive(Debug, Clone, PartialEq)]
pub struct ServingUnit {
    /// Bring the models, one after another.
    pub init_containers: Vec<Container>,
    /// Serves them.
    pub container: Container,
    /// What both need.
    pub volumes: Vec<Volume>,
}

const CONFIG_VOLUME: &str = "ortolan-config";
const MODELS_VOLUME: &str = "ortolan-models";
const VOLUME_PREFIX: &str = "model-";
const CONFIG_FOLDER: &str = "/etc/ortolan";

/// Whether a volume of this name is the operator's.
#[must_use]
pub fn is_our_volume(name: &str) -> bool {
    name == CONFIG_VOLUME || name == MODELS_VOLUME || name.starts_with(VOLUME_PREFIX)
}

/// The server's ports, by name.
#[must_use]
pub fn ports() -> [(&'static str, i32); 3] {
    let server = ServerConfig::default();
    [("http", server.port.into()), ("grpc", server.grpc_port.into()), ("metrics", server.metrics_port.into())]
}

impl ServingUnit {
    /// What serves the models of a spec, with the config in the ConfigMap of this name.
    #[must_use]
    pub fn new(checked: &Checked<'_>, images: &Images, config_map: &str) -> Self {
        let spec = checked.spec;
        let server = server(spec, images);
        let fetched = spec.models.iter().filter(|model| config::is_fetched(model));
        let init_containers = fetched.map(|model| fetch(spec, &server, model)).collect();
        Self { init_containers, container: server, volumes: volumes(spec, config_map) }
    }
}

/// Image of the server, and when nodes pull it.
fn image(spec: &InferenceModelSpec, images: &Images) -> (String, Option<String>) {
    match &spec.server.image {
        // As Kubernetes decides: by the tag.
        Some(image) => (image.clone(), None),
        None if config::is_cuda(spec) => (images.cuda.clone(), Some(images.pull_policy.clone())),
        None => (images.cpu.clone(), Some(images.pull_policy.clone())),
    }
}

fn server(spec: &InferenceModelSpec, images: &Images) -> Container {
    let (image, image_pull_policy) = image(spec, images);
    let port = |(name, number): (&str, i32)| ContainerPort {
        name: Some(name.to_owned()),
        container_port: number,
        ..ContainerPort::default()
    };
    Container {
        name: names::SERVER_CONTAINER.to_owned(),
        image: Some(image),
        image_pull_policy,
        args: Some(["serve", "--config", "/etc/ortolan/config.yaml"].map(str::to_owned).to_vec()),
        env: Some(environment(spec)),
        ports: Some(ports().map(port).to_vec()),
        resources: Some(resources(spec)),
        security_context: Some(restricted()),
        // A model that takes long is no failure until the rollout says so.
        startup_probe: Some(probe("/ready", 1, deadline_seconds(spec).max(SLOWEST_START_SECONDS))),
        readiness_probe: Some(probe("/ready", 1, 1)),
        liveness_probe: Some(probe("/health", 5, 6)),
        volume_mounts: Some(mounts(spec)),
        ..Container::default()
    }
}

/// What does not start within an hour, or within a longer deadline of the rollout, hangs: the kubelet begins it anew. The deadline
/// alone would not do, for it may be raised while the pods are there.
const SLOWEST_START_SECONDS: i32 = 3600;

fn deadline_seconds(spec: &InferenceModelSpec) -> i32 {
    let seconds = spec.rollout.progress_deadline.length().as_secs_f64().ceil();
    // At most a day, which the schema sees to.
    (seconds as i32).max(1)
}

fn probe(path: &str, period_seconds: i32, failure_threshold: i32) -> Probe {
    Probe {
        http_get: Some(HTTPGetAction {
            path: Some(path.to_owned()),
            port: IntOrString::String("metrics".to_owned()),
            ..HTTPGetAction::default()
        }),
        period_seconds: Some(period_seconds),
        failure_threshold: Some(failure_threshold),
        ..Probe::default()
    }
}

fn environment(spec: &InferenceModelSpec) -> Vec<EnvVar> {
    let variable =
        |name: &str, value: &str| EnvVar { name: name.to_owned(), value: Some(value.to_owned()), ..EnvVar::default() };
    // A library that reports its use to its makers is told not to, whatever image it comes in.
    let telemetry = variable("ORT_DISABLE_TELEMETRY", "1");
    let given = spec.server.env.iter().map(|given| variable(&given.name, &given.value));
    // What the server tells about itself says which revision it is of.
    let label = format!("metadata.labels['{}']", names::REVISION_LABEL);
    let field_ref = Some(ObjectFieldSelector { field_path: label, ..ObjectFieldSelector::default() });
    let revision = EnvVar {
        name: "ORTOLAN_REVISION".to_owned(),
        value_from: Some(EnvVarSource { field_ref, ..EnvVarSource::default() }),
        ..EnvVar::default()
    };
    let has = |name: &str| spec.server.env.iter().any(|given| given.name == name);
    let ours: Vec<EnvVar> = [telemetry, revision].into_iter().filter(|ours| !has(&ours.name)).collect();
    ours.into_iter().chain(given).collect()
}

/// What the spec asks for, and the devices.
fn resources(spec: &InferenceModelSpec) -> ResourceRequirements {
    let mut resources = spec.resources.clone().unwrap_or_default();
    let accelerator = &spec.accelerator;
    if accelerator.count > 0 {
        let limits = resources.limits.get_or_insert_default();
        limits.insert(accelerator.resource_name.clone(), Quantity(accelerator.count.to_string()));
    }
    resources
}

fn fetch(spec: &InferenceModelSpec, server: &Container, model: &Model) -> Container {
    let uri = model.source.uri.clone().unwrap_or_default();
    let to = format!("{MODELS_FOLDER}/{}", model.name);
    let mut args = ["fetch", "--model", &model.name, "--uri", &uri, "--to", &to].map(str::to_owned).to_vec();
    args.extend(model.sha256.iter().flat_map(|sha256| ["--sha256".to_owned(), sha256.clone()]));
    let file = |file: &crds::resource::ModelFile| ["--file".to_owned(), format!("{}={}", file.path, file.sha256)];
    args.extend(model.files.iter().flat_map(file));
    Container {
        name: names::fetch_container(&model.name),
        image: server.image.clone(),
        image_pull_policy: server.image_pull_policy.clone(),
        args: Some(args),
        env: Some(environment(spec)),
        // What the server may use is there for the fetch too, but no device.
        resources: spec.resources.clone(),
        security_context: Some(restricted()),
        volume_mounts: Some(vec![VolumeMount {
            name: MODELS_VOLUME.to_owned(),
            mount_path: MODELS_FOLDER.to_owned(),
            ..VolumeMount::default()
        }]),
        ..Container::default()
    }
}

fn mounts(spec: &InferenceModelSpec) -> Vec<VolumeMount> {
    let read_only = |name: String, mount_path: String| VolumeMount {
        name,
        mount_path,
        read_only: Some(true),
        ..VolumeMount::default()
    };
    let mut mounts = vec![read_only(CONFIG_VOLUME.to_owned(), CONFIG_FOLDER.to_owned())];
    if spec.models.iter().any(config::is_fetched) {
        mounts.push(read_only(MODELS_VOLUME.to_owned(), MODELS_FOLDER.to_owned()));
    }
    let on_volumes = spec.models.iter().filter(|model| model.source.uri.is_none());
    let volume = |model: &Model| volume_name(first_on_volume(spec, model));
    mounts.extend(on_volumes.map(|model| read_only(volume(model), format!("{VOLUMES_FOLDER}/{}", model.name))));
    mounts
}

fn volumes(spec: &InferenceModelSpec, config_map: &str) -> Vec<Volume> {
    let config = ConfigMapVolumeSource { name: config_map.to_owned(), ..ConfigMapVolumeSource::default() };
    let mut volumes = vec![Volume { name: CONFIG_VOLUME.to_owned(), config_map: Some(config), ..Volume::default() }];
    if spec.models.iter().any(config::is_fetched) {
        let empty_dir = Some(EmptyDirVolumeSource::default());
        volumes.push(Volume { name: MODELS_VOLUME.to_owned(), empty_dir, ..Volume::default() });
    }
    let first = spec.models.iter().filter(|model| std::ptr::eq(first_on_volume(spec, model), *model));
    volumes.extend(first.filter_map(model_volume));
    volumes
}

/// The first model that lies on the same claim: they share its volume. The kubelet of Kubernetes 1.34 and of those before never starts a
/// pod that has a claim in two, and says nothing of it (<https://github.com/kubernetes/kubernetes/pull/122140>).
fn first_on_volume<'a>(spec: &'a InferenceModelSpec, model: &'a Model) -> &'a Model {
    let same = |other: &&Model| claim(other).is_some() && claim(other) == claim(model);
    spec.models.iter().find(same).unwrap_or(model)
}

fn claim(model: &Model) -> Option<&str> {
    model.source.pvc.as_ref().map(|pvc| pvc.claim_name.as_str())
}

/// The volume of a model that is the first on it.
#[must_use]
pub fn volume_name(model: &Model) -> String {
    format!("{VOLUME_PREFIX}{}", model.name)
}

fn model_volume(model: &Model) -> Option<Volume> {
    let volume = Volume { name: volume_name(model), ..Volume::default() };
    if let Some(pvc) = &model.source.pvc {
        let claim = PersistentVolumeClaimVolumeSource { claim_name: pvc.claim_name.clone(), read_only: Some(true) };
        return Some(Volume { persistent_volume_claim: Some(claim), ..volume });
    }
    let image = model.source.image.as_ref()?;
    let source = ImageVolumeSource {
        reference: Some(image.reference.clone()),
        pull_policy: image.pull_policy.map(|policy| policy.as_str().to_owned()),
    };
    Some(Volume { image: Some(source), ..volume })
}

/// What the level `restricted` of the pod security standards asks of a container.
fn restricted() -> SecurityContext {
    SecurityContext {
        allow_privilege_escalation: Some(false),
        read_only_root_filesystem: Some(true),
        capabilities: Some(Capabilities { drop: Some(vec!["ALL".to_owned()]), ..Capabilities::default() }),
        ..SecurityContext::default()
    }
}

/// Labels that the pods of an InferenceModel share.
#[must_use]
pub fn labels(model: &str) -> BTreeMap<String, String> {
    let mut labels = common_labels();
    labels.insert(names::MODEL_LABEL.to_owned(), model.to_owned());
    labels
}

/// Labels of everything that the operator makes.
#[must_use]
pub fn common_labels() -> BTreeMap<String, String> {
    BTreeMap::from([
        ("app.kubernetes.io/managed-by".to_owned(), "ortolan".to_owned()),
        ("app.kubernetes.io/name".to_owned(), "inference-pod".to_owned()),
    ])
}
