//! What monitoring tools are given: a ServiceMonitor and a PrometheusRule that the models of a namespace share, and a dashboard
//! for each model that wants one. Rules and dashboards are part of this program, so they fit what its pods export.

use std::{collections::BTreeMap, sync::LazyLock};

use crds::resource::InferenceModel;
use k8s_openapi::{
    api::core::v1::ConfigMap,
    apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta, OwnerReference},
};
use kube::ResourceExt as _;
use serde_json::{Value, json};

use super::{objects::metadata, promql, unit};
use crate::{
    digest::digest,
    names,
    prometheus::{Endpoint, PrometheusRule, PrometheusRuleSpec, ServiceMonitor, ServiceMonitorSpec},
};

/// A test sees that they can be read.
static RULES: LazyLock<Value> =
    LazyLock::new(|| serde_saphyr::from_str(include_str!("../../../deploy/rules/models.yaml")).unwrap_or_default());

/// See [`RULES`].
static DASHBOARD: LazyLock<Value> =
    LazyLock::new(|| serde_json::from_str(include_str!("../../../deploy/dashboards/model.json")).unwrap_or_default());

/// Label whose value becomes the label `job` of all series: one for all models, where it would else be the Service's name.
const JOB_LABEL: &str = "app.kubernetes.io/name";

/// By this label Grafana's sidecar finds dashboards.
const DASHBOARD_LABEL: (&str, &str) = ("grafana_dashboard", "1");

/// Labels of shared objects by which a Prometheus selects them, besides ours.
pub type Labels = BTreeMap<String, String>;

/// Scrapes the pods of all models of a namespace that want it. How often is left to Prometheus.
#[must_use]
pub fn service_monitor(namespace: &str, owners: &[OwnerReference], labels: &Labels) -> ServiceMonitor {
    let spec = ServiceMonitorSpec {
        job_label: Some(JOB_LABEL.to_owned()),
        pod_target_labels: [names::MODEL_LABEL, names::REVISION_LABEL].map(str::to_owned).to_vec(),
        selector: LabelSelector {
            match_labels: Some(BTreeMap::from([(names::SCRAPED_LABEL.to_owned(), names::SHARED.to_owned())])),
            ..LabelSelector::default()
        },
        endpoints: vec![Endpoint { port: "metrics".to_owned(), path: "/metrics".to_owned(), honor_labels: false }],
    };
    let metadata = shared(namespace, owners, labels);
    ServiceMonitor { metadata, spec, status: None }
}

/// Records and alerts for all models of a namespace.
#[must_use]
pub fn prometheus_rule(namespace: &str, owners: &[OwnerReference], labels: &Labels) -> PrometheusRule {
    let mut groups = RULES["groups"].as_array().cloned().unwrap_or_default();
    for rule in groups.iter_mut().filter_map(|group| group["rules"].as_array_mut()).flatten() {
        rule["expr"] = promql::within(rule["expr"].as_str().unwrap_or_default(), namespace).into();
    }
    PrometheusRule { metadata: shared(namespace, owners, labels), spec: PrometheusRuleSpec { groups }, status: None }
}

/// Nobody controls what is shared: it is gone when the last of its owners is.
fn shared(namespace: &str, owners: &[OwnerReference], labels: &Labels) -> ObjectMeta {
    let mut labels = labels.clone();
    labels.extend(unit::common_labels());
    labels.insert(names::SHARED_LABEL.to_owned(), names::SHARED.to_owned());
    ObjectMeta {
        name: Some(names::SHARED.to_owned()),
        namespace: Some(namespace.to_owned()),
        labels: Some(labels),
        owner_references: Some(owners.to_vec()),
        ..ObjectMeta::default()
    }
}

/// A dashboard of one InferenceModel, in the form that Grafana's sidecar reads.
#[must_use]
pub fn dashboard(model: &InferenceModel) -> ConfigMap {
    let (namespace, name) = (model.namespace().unwrap_or_default(), model.name_any());
    let mut metadata = metadata(model, &names::dashboard(&name), None);
    let label = (DASHBOARD_LABEL.0.to_owned(), DASHBOARD_LABEL.1.to_owned());
    metadata.labels.get_or_insert_default().extend([label]);
    let text = serde_json::to_string(&dashboard_of(&namespace, &name)).unwrap_or_default();
    // Dashboards of all namespaces may end up in one folder; a namespace has no dot.
    let file = format!("ortolan-{namespace}.{name}.json");
    ConfigMap { metadata, data: Some(BTreeMap::from([(file, text)])), ..ConfigMap::default() }
}

/// The dashboard that is part of this program, with a name of its own and with this model chosen.
fn dashboard_of(namespace: &str, name: &str) -> Value {
    let mut dashboard = DASHBOARD.clone();
    // Grafana refuses a second dashboard of the same uid, and a uid of more than 40 characters.
    dashboard["uid"] = format!("ortolan-{}", digest(&json!([namespace, name]), 12)).into();
    let title = dashboard["title"].as_str().unwrap_or_default();
    dashboard["title"] = format!("{title} {namespace}/{name}").into();
    for variable in dashboard["templating"]["list"].as_array_mut().into_iter().flatten() {
        let chosen = match variable["name"].as_str() {
            Some("namespace") => namespace,
            Some("inference_model") => name,
            _ => continue,
        };
        variable["current"] = json!({"selected": true, "text": chosen, "value": chosen});
    }
    dashboard
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rules_and_the_dashboard_that_are_included_can_be_read() {
        let groups = RULES["groups"].as_array().unwrap();
        let rules: Vec<&Value> = groups.iter().flat_map(|group| group["rules"].as_array().unwrap()).collect();
        assert!(!rules.is_empty());
        assert!(rules.iter().all(|rule| rule["expr"].is_string()), "{rules:?}");
        assert!(DASHBOARD["title"].is_string() && DASHBOARD["panels"].is_array());
    }

    #[test]
    fn every_rule_of_a_namespace_speaks_of_that_namespace_alone() {
        let rule = prometheus_rule("coffee", &[], &Labels::new());
        for rule in rule.spec.groups.iter().flat_map(|group| group["rules"].as_array().unwrap()) {
            let expression = rule["expr"].as_str().unwrap();
            assert!(expression.contains("namespace=\"coffee\""), "{expression}");
        }
    }

    #[test]
    fn what_is_shared_has_the_labels_that_a_prometheus_selects_by_and_ours() {
        let labels = Labels::from([("release".to_owned(), "watch".to_owned())]);
        let of = [
            service_monitor("coffee", &[], &labels).metadata.labels.unwrap(),
            prometheus_rule("coffee", &[], &labels).metadata.labels.unwrap(),
        ];
        for of in of {
            assert_eq!(of["release"], "watch");
            assert_eq!(of[names::SHARED_LABEL], names::SHARED);
            assert_eq!(of["app.kubernetes.io/managed-by"], "ortolan");
        }
    }

    #[test]
    fn dashboards_of_two_models_do_not_get_in_each_others_way() {
        let (one, two) = (dashboard_of("coffee", "espresso"), dashboard_of("coffee", "ristretto"));
        assert_ne!(one["uid"], two["uid"]);
        assert_ne!(one["title"], two["title"]);
        assert!(one["uid"].as_str().unwrap().len() <= 40);
    }
}
