//! prometheus-adapter: shows what Prometheus knows of pods under `custom.metrics.k8s.io`, by the rules that this repository has for it.

use std::net::IpAddr;
use std::path::PathBuf;

use ortolan_tests::cluster::Cluster;
use ortolan_tests::programs::{self, Profile, Purpose};
use ortolan_tests::report::Report;
use serde_json::{Value, json};

use crate::fixture::{Outcome, repository};
use crate::installed::aggregated::Aggregated;
use crate::installed::server::{self, Account, Launch, Server};

const NAME: &str = "prometheus-adapter";
const NAMESPACE: &str = "monitoring";
const ACCOUNT: Account = Account { namespace: NAMESPACE, name: NAME };
const API: Aggregated = Aggregated { namespace: NAMESPACE, service: NAME, api: "v1beta1.custom.metrics.k8s.io" };

/// Installs it and waits until the API shows what it serves.
pub(crate) async fn start(cluster: &Cluster, prometheus: &str) -> Outcome<Server> {
    let programs = programs::ensure(Profile::newest(), &[Purpose::PrometheusAdapter], Report::to_stderr())?;
    let address = cluster.machine_address()?;
    let port = server::free_port(IpAddr::V4(address))?;
    let mut objects = permissions();
    objects.extend(API.objects(address, port));
    objects.push(api_service());
    server::apply(cluster, &objects).await?;
    let kubeconfig = ACCOUNT.kubeconfig(cluster).await?.display().to_string();
    let launch = Launch {
        name: NAME,
        program: programs.path(NAME)?.to_owned(),
        arguments: vec![
            format!("--bind-address={address}"),
            format!("--secure-port={port}"),
            format!("--cert-dir={}", server::folder(cluster, NAME)?.display()),
            format!("--config={}", rules(cluster)?.display()),
            format!("--prometheus-url={prometheus}"),
            // How soon a series is seen that was not there before; the usual minutes would be waited for.
            "--metrics-relist-interval=2s".to_owned(),
            "--metrics-max-age=10s".to_owned(),
            format!("--lister-kubeconfig={kubeconfig}"),
            format!("--authentication-kubeconfig={kubeconfig}"),
            format!("--authorization-kubeconfig={kubeconfig}"),
        ],
        environment: Vec::new(),
    };
    let mut server = Server::start(cluster, &launch)?;
    API.until_available(cluster, &mut server).await?;
    Ok(server)
}

/// The rules of this repository, which are values of the adapter's chart, as that chart hands them on.
fn rules(cluster: &Cluster) -> Outcome<PathBuf> {
    let values = std::fs::read_to_string(repository().join("deploy/rules/prometheus-adapter.yaml"))?;
    let values: Value = serde_saphyr::from_str(&values)?;
    let file = server::folder(cluster, NAME)?.join("rules.json");
    std::fs::write(&file, json!({"rules": values["rules"]["custom"]}).to_string())?;
    Ok(file)
}

/// What its own manifests give it, and what they give to the autoscaler of Kubernetes.
fn permissions() -> Vec<Value> {
    let account = json!({"kind": "ServiceAccount", "name": NAME, "namespace": NAMESPACE});
    let autoscaler = json!({"kind": "ServiceAccount", "name": "horizontal-pod-autoscaler", "namespace": "kube-system"});
    vec![
        json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}}),
        json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": NAME, "namespace": NAMESPACE}}),
        role(NAME, "", &["nodes", "namespaces", "pods", "services"], &["get", "list", "watch"]),
        role("custom-metrics-server-resources", "custom.metrics.k8s.io", &["*"], &["*"]),
        binding(NAME, NAME, &account),
        binding("prometheus-adapter-delegator", "system:auth-delegator", &account),
        binding("hpa-controller-custom-metrics", "custom-metrics-server-resources", &autoscaler),
        json!({
            "apiVersion": "rbac.authorization.k8s.io/v1",
            "kind": "RoleBinding",
            "metadata": {"name": "prometheus-adapter-auth-reader", "namespace": "kube-system"},
            "roleRef": {
                "apiGroup": "rbac.authorization.k8s.io",
                "kind": "Role",
                "name": "extension-apiserver-authentication-reader",
            },
            "subjects": [account],
        }),
    ]
}

fn role(name: &str, group: &str, resources: &[&str], verbs: &[&str]) -> Value {
    json!({
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "ClusterRole",
        "metadata": {"name": name},
        "rules": [{"apiGroups": [group], "resources": resources, "verbs": verbs}],
    })
}

fn binding(name: &str, role: &str, subject: &Value) -> Value {
    json!({
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "ClusterRoleBinding",
        "metadata": {"name": name},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": role},
        "subjects": [subject],
    })
}

/// Its certificate is one that it makes for itself, so the API server cannot check it.
fn api_service() -> Value {
    json!({
        "apiVersion": "apiregistration.k8s.io/v1",
        "kind": "APIService",
        "metadata": {"name": API.api},
        "spec": {
            "group": "custom.metrics.k8s.io",
            "version": "v1beta1",
            "groupPriorityMinimum": 100,
            "versionPriority": 100,
            "insecureSkipTLSVerify": true,
            "service": {"name": API.service, "namespace": API.namespace},
        },
    })
}
