//! All objects of an InferenceModel.

use std::collections::{BTreeMap, BTreeSet};

use crds::resource::{InferenceModel, Toggle};
use k8s_openapi::{
    api::{
        apps::v1::{Deployment, DeploymentSpec, DeploymentStrategy, RollingUpdateDeployment},
        core::v1::{ConfigMap, PodTemplateSpec, Service, ServicePort, ServiceSpec},
    },
    apimachinery::pkg::{
        apis::meta::v1::{LabelSelector, ObjectMeta, OwnerReference},
        util::intstr::IntOrString,
    },
};
use kube::{Resource as _, ResourceExt as _};

use super::{Revision, Revisions, Scaler, monitoring, revision, unit};
use crate::{names, observe::Observed, rollout::Plan};

/// Everything that should be there, in the order in which it is needed.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Objects {
    /// One for each revision. Pods mount them.
    pub config_maps: Vec<ConfigMap>,
    /// What clients use, and what scrapers do.
    pub services: Vec<Service>,
    /// One for each revision, first that which is worked towards.
    pub deployments: Vec<Deployment>,
    /// Replicas of the others, by the names of their Deployments, should the first one be refused.
    pub without_first: BTreeMap<String, i32>,
    /// What Grafana shows of it, if that is wanted. No pod needs it, so it goes last.
    pub dashboards: Vec<ConfigMap>,
    /// Services and ConfigMaps that are there and stay as they are, by name: what the spec says of them now cannot be acted on.
    pub as_they_are: BTreeSet<String>,
    /// What scales it, besides the operator.
    pub scaler: Scaler,
}

/// Builds the objects of the revisions that are kept. Who scales is not decided here: what does so stays.
#[must_use]
pub fn build(model: &InferenceModel, revisions: &Revisions, plan: &Plan) -> Objects {
    let mut kept = kept(model, revisions, plan);
    kept.sort_by_key(|revision| revision.hash != plan.active);
    Objects {
        config_maps: kept.iter().map(|revision| config_map(model, revision, plan)).collect(),
        services: vec![service(model), headless_service(model)],
        deployments: kept.iter().map(|revision| deployment(model, revision, plan)).collect(),
        without_first: plan
            .without_active
            .iter()
            .filter_map(|(hash, replicas)| {
                Some((names::revision(&model.name_any(), hash), i32::try_from(*replicas).ok()?))
            })
            .collect(),
        dashboards: model.spec.monitoring.dashboard.then(|| monitoring::dashboard(model)).into_iter().collect(),
        as_they_are: BTreeSet::new(),
        scaler: Scaler::AsBefore,
    }
}

/// The same for a spec that cannot be acted on: of what is there only the revisions go on as planned, and none is let go of. What the spec
/// would open to the world stays closed, and a Service that is lost comes back as one inside the cluster.
#[must_use]
pub fn build_of_refused(observed: &Observed, revisions: &Revisions, plan: &Plan) -> Objects {
    let mut model = InferenceModel::clone(&observed.model);
    model.spec.service = crds::resource::Service::default();
    model.spec.rollout.history_limit = u32::MAX;
    let objects = build(&model, revisions, plan);
    let (lost, there): (Vec<_>, Vec<_>) =
        objects.services.into_iter().partition(|service| !observed.services.contains_key(&service.name_any()));
    let dashboard = Some(names::dashboard(&observed.name)).filter(|name| observed.config_maps.contains_key(name));
    Objects {
        services: lost,
        dashboards: Vec::new(),
        as_they_are: there.iter().map(kube::ResourceExt::name_any).chain(dashboard).collect(),
        ..objects
    }
}

/// Those that have or get pods, those that a rollout may need, and the newest `historyLimit` of the rest.
fn kept<'a>(model: &InferenceModel, revisions: &'a Revisions, plan: &Plan) -> Vec<&'a Revision> {
    let record = |hash: &str| plan.records.get(hash).cloned().unwrap_or_default();
    let rank = |hash: &str| {
        let record = record(hash);
        (record.target_since, record.completed)
    };
    let mut newest: Vec<&Revision> = revisions.values().collect();
    newest.sort_by_key(|revision| std::cmp::Reverse(rank(&revision.hash)));
    let served = newest.iter().filter(|it| rank(&it.hash).1.is_some());
    let last_proven = served.max_by_key(|it| (record(&it.hash).failed.is_none(), rank(&it.hash).1));
    let last_proven = last_proven.map(|revision| revision.hash.clone());
    let needed = |index: usize, revision: &Revision| {
        let has_pods = plan.replicas.get(&revision.hash).is_some_and(|replicas| *replicas > 0)
            || plan.weights.get(&revision.hash).is_some_and(|weight| *weight > 0);
        // The newest is the target.
        index == 0 || has_pods || revision.hash == plan.active || Some(&revision.hash) == last_proven.as_ref()
    };
    let mut history = model.spec.rollout.history_limit;
    let kept = newest.into_iter().enumerate().filter(|(index, revision)| {
        needed(*index, revision) || history.checked_sub(1).inspect(|left| history = *left).is_some()
    });
    kept.map(|(_, revision)| revision).collect()
}

fn config_map(model: &InferenceModel, revision: &Revision, plan: &Plan) -> ConfigMap {
    let record = plan.records.get(&revision.hash).unwrap_or(&revision.record);
    let mut metadata = metadata(model, &names::revision(&model.name_any(), &revision.hash), Some(&revision.hash));
    metadata.annotations = Some(revision::annotations(record));
    let data = [(names::CONFIG_KEY, &revision.config), (names::TEMPLATE_KEY, &revision.template)];
    ConfigMap {
        metadata,
        data: Some(data.map(|(key, text)| (key.to_owned(), text.clone())).into()),
        immutable: Some(true),
        ..ConfigMap::default()
    }
}

fn deployment(model: &InferenceModel, revision: &Revision, plan: &Plan) -> Deployment {
    let name = model.name_any();
    let replicas = plan.replicas.get(&revision.hash).copied().unwrap_or_default();
    let mut metadata = metadata(model, &names::revision(&name, &revision.hash), Some(&revision.hash));
    let kept = [(names::CONFIG_ANNOTATION, &revision.config), (names::TEMPLATE_ANNOTATION, &revision.template)];
    let mut annotations = revision::annotations(plan.records.get(&revision.hash).unwrap_or(&revision.record));
    annotations.extend(kept.map(|(key, text)| (key.to_owned(), text.clone())));
    metadata.annotations = Some(annotations);
    let selected = [(names::MODEL_LABEL, name.as_str()), (names::REVISION_LABEL, revision.hash.as_str())];
    // Written by ourselves, or by the API server.
    let template: PodTemplateSpec = serde_json::from_str(&revision.template).unwrap_or_default();
    Deployment {
        metadata,
        spec: DeploymentSpec {
            replicas: i32::try_from(replicas).ok(),
            revision_history_limit: Some(0),
            selector: LabelSelector {
                match_labels: Some(selected.map(|(key, value)| (key.to_owned(), value.to_owned())).into()),
                ..LabelSelector::default()
            },
            // A template never changes inside of a revision; if somebody changes it, the way back needs no more devices.
            strategy: Some(DeploymentStrategy {
                type_: Some("RollingUpdate".to_owned()),
                rolling_update: Some(RollingUpdateDeployment {
                    max_surge: Some(IntOrString::Int(0)),
                    max_unavailable: Some(IntOrString::Int(1)),
                }),
            }),
            template,
            ..DeploymentSpec::default()
        },
        ..Deployment::default()
    }
}

/// What clients use.
fn service(model: &InferenceModel) -> Service {
    let mut metadata = metadata(model, &model.name_any(), None);
    metadata.annotations = Some(model.spec.service.annotations.clone()).filter(|annotations| !annotations.is_empty());
    Service {
        metadata,
        spec: Some(ServiceSpec {
            type_: Some(model.spec.service.type_.as_str().to_owned()),
            selector: Some(selector(model)),
            ports: Some(vec![port("http", 80), port("grpc", 8081)]),
            ..ServiceSpec::default()
        }),
        ..Service::default()
    }
}

/// The pods one by one, for scrapers and for clients that balance by themselves.
fn headless_service(model: &InferenceModel) -> Service {
    let mut metadata = metadata(model, &names::headless(&model.name_any()), None);
    if model.spec.monitoring.service_monitor != Toggle::Disabled {
        let label = (names::SCRAPED_LABEL.to_owned(), names::SHARED.to_owned());
        metadata.labels.get_or_insert_default().extend([label]);
    }
    Service {
        metadata,
        spec: Some(ServiceSpec {
            type_: Some("ClusterIP".to_owned()),
            cluster_ip: Some("None".to_owned()),
            selector: Some(selector(model)),
            ports: Some(unit::ports().map(|(name, number)| port(name, number)).to_vec()),
            ..ServiceSpec::default()
        }),
        ..Service::default()
    }
}

fn selector(model: &InferenceModel) -> BTreeMap<String, String> {
    BTreeMap::from([(names::MODEL_LABEL.to_owned(), model.name_any())])
}

fn port(name: &str, number: i32) -> ServicePort {
    ServicePort {
        name: Some(name.to_owned()),
        port: number,
        protocol: Some("TCP".to_owned()),
        target_port: Some(IntOrString::String(name.to_owned())),
        ..ServicePort::default()
    }
}

pub(super) fn metadata(model: &InferenceModel, name: &str, revision: Option<&str>) -> ObjectMeta {
    let mut labels = unit::labels(&model.name_any());
    labels.extend(revision.map(|hash| (names::REVISION_LABEL.to_owned(), hash.to_owned())));
    ObjectMeta {
        name: Some(name.to_owned()),
        namespace: model.namespace(),
        labels: Some(labels),
        owner_references: Some(vec![owner(model)]),
        ..ObjectMeta::default()
    }
}

fn owner(model: &InferenceModel) -> OwnerReference {
    OwnerReference { controller: Some(true), ..shared_owner(model) }
}

/// One of several owners. Without `blockOwnerDeletion`: nobody has to wait for the children to be gone.
#[must_use]
pub fn shared_owner(model: &InferenceModel) -> OwnerReference {
    OwnerReference {
        api_version: InferenceModel::api_version(&()).into_owned(),
        kind: InferenceModel::kind(&()).into_owned(),
        name: model.name_any(),
        uid: model.uid().unwrap_or_default(),
        controller: None,
        block_owner_deletion: None,
    }
}
