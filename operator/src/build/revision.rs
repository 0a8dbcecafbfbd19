//! Revisions: what a spec's hash covers, what is stored of it, and what is remembered.

use std::{collections::BTreeMap, time::Duration};

use crds::{
    resource::{InferenceModel, InferenceModelSpec, Model},
    serving::ServerConfig,
};
use k8s_openapi::{
    DeepMerge as _,
    api::core::v1::{ConfigMap, PodSecurityContext, PodSpec, PodTemplateSpec, SeccompProfile, Toleration},
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
    jiff::Timestamp,
};
use kube::ResourceExt as _;
use serde_json::{Value, json};

use super::{
    config,
    unit::{Images, ServingUnit, labels},
};
use crate::{
    digest::digest,
    names,
    observe::Observed,
    rollout::{Failure, Record},
    validate::Checked,
};

/// What was rendered when the revision was born, and what has become of it.
#[derive(Debug, Clone, PartialEq)]
pub struct Revision {
    /// Eight hexadecimal digits.
    pub hash: String,
    /// The serving config, text.
    pub config: String,
    /// The pod template, JSON.
    pub template: String,
    /// What is remembered.
    pub record: Record,
}

/// Revisions by their hash.
pub type Revisions = BTreeMap<String, Revision>;

impl Revision {
    /// Renders the revision that a spec asks for.
    #[must_use]
    pub fn born(model: &InferenceModel, checked: &Checked<'_>, images: &Images) -> Self {
        let hash = hash(model);
        let template = template(model, checked, images, &hash);
        Self {
            // Types of Kubernetes can always be written.
            template: serde_json::to_string(&template).unwrap_or_default(),
            config: checked.config.clone(),
            hash,
            record: Record::default(),
        }
    }

    /// The image of its server.
    #[must_use]
    pub fn image(&self) -> String {
        let template: PodTemplateSpec = serde_json::from_str(&self.template).unwrap_or_default();
        let mut containers = template.spec.into_iter().flat_map(|spec| spec.containers);
        containers.find(|it| it.name == names::SERVER_CONTAINER).and_then(|it| it.image).unwrap_or_default()
    }

    fn stored(config_map: &ConfigMap) -> Option<Self> {
        let data = config_map.data.as_ref()?;
        Some(Self {
            hash: config_map.labels().get(names::REVISION_LABEL)?.clone(),
            config: data.get(names::CONFIG_KEY)?.clone(),
            template: data.get(names::TEMPLATE_KEY)?.clone(),
            record: record(config_map.annotations()),
        })
    }
}

/// The revisions that are there. One whose ConfigMap was lost is put together again from its Deployment, so that a
/// repair changes no pod.
#[must_use]
pub fn known(observed: &Observed) -> Revisions {
    let stored = observed.config_maps.values().filter_map(|config_map| Revision::stored(config_map));
    let mut revisions: Revisions = stored.map(|revision| (revision.hash.clone(), revision)).collect();
    for deployment in observed.deployments.values() {
        let Some(hash) = deployment.labels().get(names::REVISION_LABEL) else { continue };
        if revisions.contains_key(hash) {
            continue;
        }
        let annotations = deployment.annotations();
        let Some(config) = annotations.get(names::CONFIG_ANNOTATION) else { continue };
        // What runs says the same, but with the API server's defaults, and perhaps with what somebody has changed in it.
        let template = annotations.get(names::TEMPLATE_ANNOTATION).cloned();
        let running = || serde_json::to_string(&deployment.spec.template).unwrap_or_default();
        let revision = Revision {
            hash: hash.clone(),
            config: config.clone(),
            template: template.unwrap_or_else(running),
            record: record(annotations),
        };
        revisions.insert(hash.clone(), revision);
    }
    revisions
}

/// Hash of what a user can change in the pods. A field that is at its default does not count, so that a field which a
/// later version adds makes no new revision of every object.
#[must_use]
pub fn hash(model: &InferenceModel) -> String {
    let InferenceModelSpec { server, accelerator, resources, service_account_name, pod_template, .. } = &model.spec;
    let default = InferenceModelSpec::default();
    let covered = json!({
        "models": model.spec.models.iter().map(of_model).collect::<Vec<_>>(),
        "server": config::changed(server, &default.server),
        "accelerator": config::changed(accelerator, &default.accelerator),
        "resources": resources,
        "serviceAccountName": service_account_name,
        "podTemplate": pod_template,
        "restart": model.annotations().get(names::RESTART_ANNOTATION),
    });
    digest(&covered, 4)
}

fn of_model(model: &Model) -> Value {
    let least: Option<Model> = serde_json::from_value(json!({"name": model.name, "source": {}})).ok();
    let mut changed = least.map(|least| config::changed(model, &least)).unwrap_or_default();
    changed["name"] = model.name.as_str().into();
    changed
}

fn template(model: &InferenceModel, checked: &Checked<'_>, images: &Images, hash: &str) -> PodTemplateSpec {
    let spec = checked.spec;
    let name = model.name_any();
    let unit = ServingUnit::new(checked, images, &names::revision(&name, hash));
    let mut labels = labels(&name);
    labels.insert(names::REVISION_LABEL.to_owned(), hash.to_owned());
    let mut template = PodTemplateSpec {
        metadata: Some(ObjectMeta { labels: Some(labels), ..ObjectMeta::default() }),
        spec: Some(PodSpec {
            init_containers: Some(unit.init_containers).filter(|containers| !containers.is_empty()),
            containers: vec![unit.container],
            volumes: Some(unit.volumes),
            service_account_name: spec.service_account_name.clone(),
            automount_service_account_token: Some(false),
            enable_service_links: Some(false),
            termination_grace_period_seconds: Some(grace_seconds(&checked.server)),
            runtime_class_name: spec.accelerator.runtime_class_name.clone(),
            node_selector: Some(spec.accelerator.node_selector.clone()).filter(|selector| !selector.is_empty()),
            tolerations: Some(tolerations(spec)).filter(|tolerations| !tolerations.is_empty()),
            security_context: Some(PodSecurityContext {
                run_as_non_root: Some(true),
                seccomp_profile: Some(SeccompProfile {
                    type_: "RuntimeDefault".to_owned(),
                    ..SeccompProfile::default()
                }),
                ..PodSecurityContext::default()
            }),
            ..PodSpec::default()
        }),
    };
    if let Some(overlay) = checked.overlay.clone() {
        lay_over(&mut template, overlay);
    }
    template
}

/// Lists and maps that Kubernetes replaces as a whole are added to instead: a toleration of the user's must not cost that
/// of the device.
fn lay_over(template: &mut PodTemplateSpec, mut overlay: PodTemplateSpec) {
    // Init containers begin one after the other, and what fetches models may need a proxy beside it: sidecars that the user has put before
    // all else stay there.
    let before = overlay.spec.iter().flat_map(|spec| spec.init_containers.iter().flatten());
    let first = before.take_while(|it| it.restart_policy.as_deref() == Some("Always"));
    let first: Vec<String> = first.map(|it| it.name.clone()).collect();
    let above = overlay.spec.as_mut();
    let (tolerations, selector) =
        above.map(|spec| (spec.tolerations.take(), spec.node_selector.take())).unwrap_or_default();
    template.merge_from(overlay);
    let Some(spec) = template.spec.as_mut() else { return };
    if let Some(before) = &mut spec.init_containers {
        before.sort_by_key(|it| !first.contains(&it.name));
    }
    if let Some(tolerations) = tolerations {
        spec.tolerations.get_or_insert_default().extend(tolerations);
    }
    for (label, value) in selector.into_iter().flatten() {
        spec.node_selector.get_or_insert_default().entry(label).or_insert(value);
    }
}

/// The drain, and five seconds for what comes before and after it.
pub fn grace_seconds(server: &ServerConfig) -> i64 {
    let drain_ms = server.drain_delay_ms + server.drain_timeout_ms;
    i64::try_from(drain_ms.div_ceil(1000)).unwrap_or(i64::MAX - 5) + 5
}

/// Those of the spec, and those of the device's taints: nodes with slices of NVIDIA's devices have the taint of whole ones.
fn tolerations(spec: &InferenceModelSpec) -> Vec<Toleration> {
    let accelerator = &spec.accelerator;
    let whole = config::is_cuda(spec).then_some(NVIDIA);
    let named = Some(accelerator.resource_name.as_str()).filter(|name| accelerator.count > 0 && whole != Some(*name));
    // Whatever the taint does.
    let device = |key: &str| Toleration {
        key: Some(key.to_owned()),
        operator: Some("Exists".to_owned()),
        ..Toleration::default()
    };
    let devices = whole.into_iter().chain(named).map(device);
    devices.chain(accelerator.tolerations.iter().cloned()).collect()
}

/// The taint of nodes with NVIDIA's devices.
const NVIDIA: &str = "nvidia.com/gpu";

fn record(annotations: &BTreeMap<String, String>) -> Record {
    let time = |key: &str| annotations.get(key)?.parse::<Timestamp>().ok();
    Record {
        target_since: time(names::TARGET_SINCE_ANNOTATION),
        began: time(names::BEGAN_ANNOTATION),
        completed: time(names::COMPLETED_ANNOTATION),
        failed: time(names::FAILED_ANNOTATION).map(|at| Failure {
            at,
            cause: annotations.get(names::CAUSE_ANNOTATION).cloned().unwrap_or_default(),
            deadline: annotations
                .get(names::DEADLINE_ANNOTATION)
                .and_then(|seconds| seconds.parse().ok())
                .and_then(|seconds| Duration::try_from_secs_f64(seconds).ok()),
        }),
        terminating_first: time(names::TERMINATING_FIRST_ANNOTATION),
        room_since: time(names::ROOM_SINCE_ANNOTATION),
        places: annotations.get(names::PLACES_ANNOTATION).and_then(|number| number.parse().ok()),
    }
}

/// The annotations that keep a record.
#[must_use]
pub fn annotations(record: &Record) -> BTreeMap<String, String> {
    let failed = record.failed.as_ref();
    let kept = [
        (names::TARGET_SINCE_ANNOTATION, record.target_since.map(|time| time.to_string())),
        (names::BEGAN_ANNOTATION, record.began.map(|time| time.to_string())),
        (names::COMPLETED_ANNOTATION, record.completed.map(|time| time.to_string())),
        (names::FAILED_ANNOTATION, failed.map(|failure| failure.at.to_string())),
        (names::CAUSE_ANNOTATION, failed.map(|failure| failure.cause.clone())),
        (
            names::DEADLINE_ANNOTATION,
            failed.and_then(|failure| failure.deadline).map(|deadline| deadline.as_secs_f64().to_string()),
        ),
        (names::TERMINATING_FIRST_ANNOTATION, record.terminating_first.map(|time| time.to_string())),
        (names::ROOM_SINCE_ANNOTATION, record.room_since.map(|time| time.to_string())),
        (names::PLACES_ANNOTATION, record.places.map(|places| places.to_string())),
    ];
    kept.into_iter().filter_map(|(key, value)| Some((key.to_owned(), value?))).collect()
}
