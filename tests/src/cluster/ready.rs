//! Waits until each part does its work, and gives the API what the node needs of it.

use std::time::Duration;

use k8s_openapi::api::core::v1::{Node, Service, ServiceAccount};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::rbac::v1::{ClusterRole, ClusterRoleBinding};
use kube::Client;
use kube::api::{Api, ListParams, Patch, PatchParams, PostParams};
use serde_json::{Value, json};
use tokio::task::JoinSet;

use super::network::Network;
use super::parts::{KWOK_ANNOTATION, NODE, Part};
use super::space::Space;
use super::wait::{self, WaitError};
use super::{ClusterError, Machinery, api_error, blocking, dns, start};

/// 60 s: ten times what a busy machine takes.
const LIMIT: Duration = Duration::from_secs(60);

/// The API answers, and has made what every cluster begins with.
pub(crate) async fn api(machinery: &Machinery, client: &Client) -> Result<(), ClusterError> {
    let parts = [Part::Etcd, Part::ApiServer];
    reach(machinery, &parts, "the API to be ready", async || {
        let request = http::Request::get("/readyz").body(Vec::new()).map_err(|error| error.to_string())?;
        client.request_text(request).await.map(drop).map_err(|error| error.to_string())
    })
    .await
}

/// The controllers work: without this account, which they make, no pod could be created.
pub(crate) async fn controllers(machinery: &Machinery, client: &Client) -> Result<(), ClusterError> {
    let accounts: Api<ServiceAccount> = Api::namespaced(client.clone(), "default");
    let parts = [Part::ApiServer, Part::ControllerManager, Part::Scheduler];
    reach(machinery, &parts, "the service account `default`", async || {
        accounts.get("default").await.map(drop).map_err(|error| error.to_string())
    })
    .await
}

/// containerd answers.
pub(crate) async fn containerd(machinery: &Machinery, space: Space) -> Result<(), ClusterError> {
    reach(machinery, &[Part::Containerd], "containerd to answer", async || {
        let version = blocking(move || start::ctr(&space, &["version"], std::process::Stdio::null())).await;
        version.map(drop).map_err(|error| crate::report::chain(&error))
    })
    .await
}

/// The node is ready for pods.
pub(crate) async fn node(machinery: &Machinery, client: &Client) -> Result<(), ClusterError> {
    let nodes: Api<Node> = Api::all(client.clone());
    reach(machinery, &[Part::ApiServer, Part::Containerd, Part::Kubelet], "the node to be ready", async || {
        let node = nodes.get(NODE).await.map_err(|error| error.to_string())?;
        if is_ready(&node) { Ok(()) } else { Err("a node that is not ready".to_owned()) }
    })
    .await
}

/// Pods' names are resolved: a question to the Service of the DNS server passes kube-proxy's rules and comes back answered.
pub(crate) async fn dns(machinery: &Machinery, network: Network) -> Result<(), ClusterError> {
    let parts = [Part::ApiServer, Part::KubeProxy, Part::CoreDns];
    reach(machinery, &parts, "an answer of the DNS server", async || {
        let name = "kubernetes.default.svc.cluster.local";
        match blocking(move || dns::ask(network.dns_service(), name)).await {
            Ok(Some(address)) if address == network.api_service() => Ok(()),
            Ok(answer) => Err(format!("{answer:?} for {name}, where {} was expected", network.api_service())),
            Err(error) => Err(error.to_string()),
        }
    })
    .await
}

/// Whether the node's condition says so.
fn is_ready(node: &Node) -> bool {
    let conditions = node.status.iter().filter_map(|status| status.conditions.as_ref()).flatten();
    conditions.into_iter().any(|condition| condition.type_ == "Ready" && condition.status == "True")
}

/// The Service that the pods' resolvers ask, with the server on the node behind it, and the server's right to know the Services.
pub(crate) async fn introduce_dns(client: &Client, network: Network) -> Result<(), ClusterError> {
    let error = || api_error("introduce the DNS server");
    let how = PatchParams::apply("ortolan-tests").force();
    let roles: Api<ClusterRole> = Api::all(client.clone());
    roles.patch("ortolan:coredns", &how, &Patch::Apply(dns_role())).await.map_err(error())?;
    let bindings: Api<ClusterRoleBinding> = Api::all(client.clone());
    bindings.patch("ortolan:coredns", &how, &Patch::Apply(dns_role_binding())).await.map_err(error())?;
    let services: Api<Service> = Api::namespaced(client.clone(), "kube-system");
    services.patch("kube-dns", &how, &Patch::Apply(dns_service(network))).await.map_err(error())?;
    let slices: Api<EndpointSlice> = Api::namespaced(client.clone(), "kube-system");
    slices.patch("kube-dns", &how, &Patch::Apply(dns_endpoint(network))).await.map_err(error())?;
    Ok(())
}

fn dns_role() -> Value {
    json!({
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "ClusterRole",
        "metadata": {"name": "ortolan:coredns"},
        "rules": [
            {"apiGroups": [""], "resources": ["namespaces", "pods", "services"], "verbs": ["list", "watch"]},
            {"apiGroups": ["discovery.k8s.io"], "resources": ["endpointslices"], "verbs": ["list", "watch"]},
        ],
    })
}

fn dns_role_binding() -> Value {
    json!({
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "ClusterRoleBinding",
        "metadata": {"name": "ortolan:coredns"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "ortolan:coredns"},
        "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": "coredns"}],
    })
}

fn dns_service(network: Network) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": "kube-dns", "labels": {"k8s-app": "kube-dns", "kubernetes.io/name": "CoreDNS"}},
        "spec": {
            "clusterIP": network.dns_service(),
            "ports": [
                {"name": "dns", "port": 53, "protocol": "UDP"},
                {"name": "dns-tcp", "port": 53, "protocol": "TCP"},
            ],
        },
    })
}

fn dns_endpoint(network: Network) -> Value {
    json!({
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {"name": "kube-dns", "labels": {"kubernetes.io/service-name": "kube-dns"}},
        "addressType": "IPv4",
        "endpoints": [{"addresses": [network.node()], "conditions": {"ready": true}}],
        "ports": [
            {"name": "dns", "port": 53, "protocol": "UDP"},
            {"name": "dns-tcp", "port": 53, "protocol": "TCP"},
        ],
    })
}

/// Makes the nodes that are not there yet, and waits until kwok has made all of them ready.
pub(crate) async fn add_kwok_nodes(machinery: &Machinery, client: &Client, count: usize) -> Result<(), ClusterError> {
    let nodes: Api<Node> = Api::all(client.clone());
    create_kwok_nodes(&nodes, count, machinery.place.has_node()).await?;
    let played = ListParams::default().labels("type=kwok");
    // 200 ms for each: what a machine with two busy processors takes, three times over.
    let limit = LIMIT + Duration::from_millis(200) * u32::try_from(count).unwrap_or(u32::MAX);
    reach_within(limit, machinery, &[Part::ApiServer, Part::Kwok], "the played nodes to be ready", async || {
        let list = nodes.list(&played).await.map_err(|error| error.to_string())?;
        let ready = list.iter().filter(|node| is_ready(node)).count();
        if ready >= count { Ok(()) } else { Err(format!("{ready} of {count} ready")) }
    })
    .await
}

/// Each of a few tasks makes every so manieth node: one alone would wait for the API most of the time.
async fn create_kwok_nodes(nodes: &Api<Node>, count: usize, beside_a_real_one: bool) -> Result<(), ClusterError> {
    const TASKS: usize = 8;
    let mut tasks = JoinSet::new();
    for first in 0..TASKS.min(count) {
        let nodes = nodes.clone();
        tasks.spawn(async move {
            for number in (first..count).step_by(TASKS) {
                let node = kwok_node(number, beside_a_real_one);
                created(nodes.create(&PostParams::default(), &node).await).map_err(api_error("create a node"))?;
            }
            Ok(())
        });
    }
    tasks.join_all().await.into_iter().collect()
}

/// Success too if it was there already.
fn created<T>(result: Result<T, kube::Error>) -> Result<(), kube::Error> {
    match result {
        Err(kube::Error::Api(status)) if status.code == 409 => Ok(()),
        other => other.map(drop),
    }
}

fn kwok_node(number: usize, beside_a_real_one: bool) -> Node {
    let name = format!("kwok-{number}");
    let (annotation, value) = KWOK_ANNOTATION;
    let mut node = Node::default();
    node.metadata.name = Some(name.clone());
    node.metadata.annotations = Some([(annotation.to_owned(), value.to_owned())].into());
    let labels = [("kubernetes.io/hostname", name.as_str()), ("kubernetes.io/os", "linux"), ("type", "kwok")];
    node.metadata.labels = Some(labels.map(|(key, value)| (key.to_owned(), value.to_owned())).into());
    if beside_a_real_one {
        let taint = k8s_openapi::api::core::v1::Taint {
            key: annotation.to_owned(),
            value: Some(value.to_owned()),
            effect: "NoSchedule".to_owned(),
            ..Default::default()
        };
        node.spec.get_or_insert_default().taints = Some(vec![taint]);
    }
    node
}

/// Waits for a state that `parts` bring about, and stops at once if one of them has ended.
async fn reach(
    machinery: &Machinery,
    parts: &[Part],
    what: &str,
    look: impl AsyncFnMut() -> Result<(), String>,
) -> Result<(), ClusterError> {
    reach_within(LIMIT, machinery, parts, what, look).await
}

async fn reach_within(
    limit: Duration,
    machinery: &Machinery,
    parts: &[Part],
    what: &str,
    mut look: impl AsyncFnMut() -> Result<(), String>,
) -> Result<(), ClusterError> {
    let looked = wait::until(what, limit, async || {
        let dead = parts.iter().find(|part| !matches!(machinery.living(**part), Ok(Some(_))));
        match dead {
            Some(part) => Ok(Err(machinery.ended(*part))),
            None => look().await.map(Ok),
        }
    })
    .await;
    match looked {
        Ok((result, _)) => result,
        Err(source) => Err(not_ready(machinery, parts, source)),
    }
}

fn not_ready(machinery: &Machinery, parts: &[Part], source: WaitError) -> ClusterError {
    let mut logs = String::new();
    for part in parts {
        let log = machinery.folder.log(part.name());
        logs.push_str(&format!("\nthe end of {}:\n{}", log.display(), start::tail_of(&log)));
    }
    ClusterError::NotReady { source, logs }
}
