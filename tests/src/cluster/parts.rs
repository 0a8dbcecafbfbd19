//! The parts of a cluster: what each one is started with.

use std::fmt;
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use super::folder::{Folder, Place};
use super::space::INSIDE;

/// The name of the one real node.
pub const NODE: &str = "node0";

/// What the API server writes into its audit log, in the cluster's folder; there is no such log without it.
pub(crate) const AUDIT_POLICY: &str = "config/audit.json";

/// The API server's audit log, in the cluster's folder.
pub(crate) const AUDIT_LOG: &str = "log/audit.log";

/// Nodes with this annotation are played by kwok.
pub(crate) const KWOK_ANNOTATION: (&str, &str) = ("kwok.x-k8s.io/node", "fake");

/// A process of the cluster that can be killed, frozen and started again by its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Part {
    /// The database of the API.
    Etcd,
    /// The API.
    ApiServer,
    /// The controllers of Kubernetes itself.
    ControllerManager,
    /// Finds a node for each pod.
    Scheduler,
    /// Runs containers.
    Containerd,
    /// Runs the pods of the node.
    Kubelet,
    /// Makes the addresses of Services work.
    KubeProxy,
    /// Answers the pods' questions for names.
    CoreDns,
    /// Plays nodes.
    Kwok,
}

/// No part has this name.
#[derive(Debug, thiserror::Error)]
#[error("there is no part `{name}`; the parts are: {}", Part::ALL.map(Part::name).join(", "))]
pub struct UnknownPart {
    name: String,
}

impl Part {
    /// Every part, in the order of their start.
    pub const ALL: [Self; 9] = [
        Self::Etcd,
        Self::ApiServer,
        Self::Containerd,
        Self::ControllerManager,
        Self::Scheduler,
        Self::Kubelet,
        Self::KubeProxy,
        Self::CoreDns,
        Self::Kwok,
    ];

    /// The name of the part, of its program, and of its log.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Etcd => "etcd",
            Self::ApiServer => "kube-apiserver",
            Self::ControllerManager => "kube-controller-manager",
            Self::Scheduler => "kube-scheduler",
            Self::Containerd => "containerd",
            Self::Kubelet => "kubelet",
            Self::KubeProxy => "kube-proxy",
            Self::CoreDns => "coredns",
            Self::Kwok => "kwok",
        }
    }

    /// Whether it is there only where pods really run.
    pub(crate) const fn belongs_to_a_node(self) -> bool {
        matches!(self, Self::Containerd | Self::Kubelet | Self::KubeProxy | Self::CoreDns)
    }

    /// What the part is started with.
    pub(crate) fn arguments(self, folder: &Folder, place: &Place) -> Vec<String> {
        let plan = Plan { folder, addresses: Addresses::of(place) };
        match self {
            Self::Etcd => plan.etcd(),
            Self::ApiServer => plan.apiserver(place),
            Self::ControllerManager => plan.controller_manager(place),
            Self::Scheduler => plan.scheduler(),
            Self::Containerd => vec![format!("--config={}", plan.path("config/containerd.toml"))],
            Self::Kubelet => plan.kubelet(),
            Self::KubeProxy => vec![format!("--config={}", plan.path("config/kube-proxy.json"))],
            Self::CoreDns => vec!["-conf".to_owned(), plan.path("config/Corefile")],
            Self::Kwok => plan.kwok(place),
        }
    }
}

impl fmt::Display for Part {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.name())
    }
}

impl FromStr for Part {
    type Err = UnknownPart;

    fn from_str(name: &str) -> Result<Self, UnknownPart> {
        Self::ALL.into_iter().find(|part| part.name() == name).ok_or_else(|| UnknownPart { name: name.to_owned() })
    }
}

/// The addresses that the control plane is started with.
#[derive(Debug, Clone)]
pub(crate) struct Addresses {
    pub(crate) api_host: Ipv4Addr,
    pub(crate) api_port: u16,
    pub(crate) api_service: Ipv4Addr,
    pub(crate) services: String,
    etcd_port: u16,
    etcd_peer_port: u16,
}

impl Addresses {
    pub(crate) fn of(place: &Place) -> Self {
        match *place {
            Place::Loopback { api, etcd, etcd_peer } => Self {
                api_host: Ipv4Addr::LOCALHOST,
                api_port: api,
                // Nothing is behind a Service of a cluster that has no node, so the range may be the same in all of them.
                api_service: Ipv4Addr::new(10, 96, 0, 1),
                services: "10.96.0.0/16".to_owned(),
                etcd_port: etcd,
                etcd_peer_port: etcd_peer,
            },
            Place::Space { network, .. } => Self {
                api_host: network.node(),
                api_port: 6443,
                api_service: network.api_service(),
                services: network.services(),
                etcd_port: 2379,
                etcd_peer_port: 2380,
            },
        }
    }

    /// Where clients find the API.
    pub(crate) fn api_url(&self) -> String {
        format!("https://{}:{}", self.api_host, self.api_port)
    }
}

struct Plan<'a> {
    folder: &'a Folder,
    addresses: Addresses,
}

impl Plan<'_> {
    fn path(&self, name: &str) -> String {
        self.folder.join(name).display().to_string()
    }

    fn etcd(&self) -> Vec<String> {
        let client = format!("http://127.0.0.1:{}", self.addresses.etcd_port);
        let peer = format!("http://127.0.0.1:{}", self.addresses.etcd_peer_port);
        vec![
            "--name=etcd".to_owned(),
            format!("--data-dir={}", self.path("etcd")),
            format!("--listen-client-urls={client}"),
            format!("--advertise-client-urls={client}"),
            format!("--listen-peer-urls={peer}"),
            format!("--initial-advertise-peer-urls={peer}"),
            format!("--initial-cluster=etcd={peer}"),
            // What a crash of the machine would lose is of no use after it.
            "--unsafe-no-fsync".to_owned(),
            // Each batch is written to a file, ten times a second by default.
            "--backend-batch-interval=1s".to_owned(),
            "--log-level=warn".to_owned(),
        ]
    }

    fn apiserver(&self, place: &Place) -> Vec<String> {
        let Addresses { api_host, api_port, services, etcd_port, .. } = &self.addresses;
        let (bind, endpoints) = match place {
            // The API refuses to announce a loopback address as its endpoint.
            Place::Loopback { .. } => ("127.0.0.1", "none"),
            Place::Space { .. } => ("0.0.0.0", "lease"),
        };
        let mut arguments = vec![
            format!("--bind-address={bind}"),
            format!("--secure-port={api_port}"),
            format!("--advertise-address={api_host}"),
            format!("--endpoint-reconciler-type={endpoints}"),
            format!("--service-cluster-ip-range={services}"),
            format!("--etcd-servers=http://127.0.0.1:{etcd_port}"),
        ];
        arguments.extend(self.keys_of_the_api());
        arguments.extend(
            [
                "--authorization-mode=Node,RBAC",
                "--enable-admission-plugins=NodeRestriction",
                "--allow-privileged=true",
                "--service-account-issuer=https://kubernetes.default.svc",
                // Logs and exec go to the node's address, since its name is known nowhere.
                "--kubelet-preferred-address-types=InternalIP",
                "--requestheader-allowed-names=front-proxy-client",
                "--requestheader-extra-headers-prefix=X-Remote-Extra-",
                "--requestheader-group-headers=X-Remote-Group",
                "--requestheader-username-headers=X-Remote-User",
                "--enable-aggregator-routing=true",
                "--feature-gates=HPAScaleToZero=true",
                "--profiling=false",
            ]
            .map(str::to_owned),
        );
        if self.folder.join(AUDIT_POLICY).exists() {
            arguments.push(format!("--audit-policy-file={}", self.path(AUDIT_POLICY)));
            arguments.push(format!("--audit-log-path={}", self.path(AUDIT_LOG)));
        }
        arguments
    }

    fn keys_of_the_api(&self) -> Vec<String> {
        [
            ("tls-cert-file", "pki/api.crt"),
            ("tls-private-key-file", "pki/api.key"),
            ("client-ca-file", "pki/ca.crt"),
            ("service-account-key-file", "pki/sa.pub"),
            ("service-account-signing-key-file", "pki/sa.key"),
            ("kubelet-certificate-authority", "pki/ca.crt"),
            ("kubelet-client-certificate", "pki/admin.crt"),
            ("kubelet-client-key", "pki/admin.key"),
            ("requestheader-client-ca-file", "pki/ca.crt"),
            ("proxy-client-cert-file", "pki/front-proxy.crt"),
            ("proxy-client-key-file", "pki/front-proxy.key"),
        ]
        .map(|(flag, file)| format!("--{flag}={}", self.path(file)))
        .to_vec()
    }

    fn controller_manager(&self, place: &Place) -> Vec<String> {
        let mut arguments = self.access("kube-controller-manager");
        arguments.extend([
            format!("--service-account-private-key-file={}", self.path("pki/sa.key")),
            format!("--root-ca-file={}", self.path("pki/ca.crt")),
            format!("--cluster-signing-cert-file={}", self.path("pki/ca.crt")),
            format!("--cluster-signing-key-file={}", self.path("pki/ca.key")),
        ]);
        arguments.extend(
            [
                "--use-service-account-credentials=true",
                "--allocate-node-cidrs=false",
                "--feature-gates=HPAScaleToZero=true",
                // 2 s: a test of scaling should not wait for the usual 15.
                "--horizontal-pod-autoscaler-sync-period=2s",
                "--node-monitor-period=2s",
            ]
            .map(str::to_owned),
        );
        arguments.push(format!("--node-monitor-grace-period={}s", node_grace(place).as_secs()));
        arguments
    }

    fn scheduler(&self) -> Vec<String> {
        self.access("kube-scheduler")
    }

    /// What a controller needs to work alone, quickly, and without a port of its own.
    fn access(&self, name: &str) -> Vec<String> {
        let kubeconfig = self.path(&format!("config/{name}.kubeconfig"));
        let mut arguments: Vec<String> = [
            "--leader-elect=false",
            "--secure-port=0",
            "--profiling=false",
            "--kube-api-qps=500",
            "--kube-api-burst=1000",
        ]
        .map(str::to_owned)
        .to_vec();
        for flag in ["kubeconfig", "authentication-kubeconfig", "authorization-kubeconfig"] {
            arguments.push(format!("--{flag}={kubeconfig}"));
        }
        arguments
    }

    fn kubelet(&self) -> Vec<String> {
        vec![
            format!("--config={}", self.path("config/kubelet.json")),
            format!("--kubeconfig={}", self.path("config/kubelet.kubeconfig")),
            format!("--hostname-override={NODE}"),
            format!("--node-ip={}", self.addresses.api_host),
            format!("--root-dir={INSIDE}/kubelet"),
            format!("--cert-dir={INSIDE}/kubelet/pki"),
        ]
    }

    fn kwok(&self, place: &Place) -> Vec<String> {
        let (key, value) = KWOK_ANNOTATION;
        vec![
            format!("--kubeconfig={}", self.path("admin.kubeconfig")),
            format!("--config={}", self.path("config/kwok.yaml")),
            "--manage-all-nodes=false".to_owned(),
            format!("--manage-nodes-with-annotation-selector={key}={value}"),
            // Addresses that no pod of the real node has.
            "--cidr=10.128.0.0/9".to_owned(),
            // A lease is renewed after a quarter of its time, so twice before the node is given up.
            format!("--node-lease-duration-seconds={}", 2 * node_grace(place).as_secs()),
        ]
    }
}

/// How long a node may be silent before it is given up.
fn node_grace(place: &Place) -> Duration {
    match place {
        // Nodes here are played and never fall silent; a thousand that renew their leases often would be all the load there is.
        Place::Loopback { .. } => Duration::from_secs(300),
        // The kubelet renews its lease every 5 s, and a busy machine may miss two of them.
        Place::Space { .. } => Duration::from_secs(20),
    }
}

/// The directories in which CNI plugins are looked for: Debian's and that of the plugins' own releases.
pub(crate) const CNI_FOLDERS: [&str; 3] = ["/usr/lib/cni", "/opt/cni/bin", "/usr/libexec/cni"];

/// Where the CNI plugin that is used lies.
pub(crate) fn cni_folder() -> Option<PathBuf> {
    CNI_FOLDERS.into_iter().map(PathBuf::from).find(|folder| folder.join("ptp").exists())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_is_found_by_the_name_it_shows() {
        for part in Part::ALL {
            assert_eq!(part.to_string().parse::<Part>().unwrap(), part);
        }
    }

    #[test]
    fn an_unknown_part_lists_the_known() {
        let error = "kubelett".parse::<Part>().unwrap_err().to_string();
        assert!(error.contains("`kubelett`") && error.contains("kubelet, "), "{error}");
    }
}
