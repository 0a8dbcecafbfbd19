//! The files that the parts read: who they are to the API, and what they cannot be told by flags.

use std::net::Ipv4Addr;
use std::path::Path;

use serde_json::{Value, json};

use super::folder::{Folder, FolderError};
use super::network::Network;
use super::parts::{Addresses, NODE};
use super::pki::{Authority, Identity, PkiError};
use super::space::INSIDE;

/// The pause image: what holds the namespaces of a pod.
pub(crate) const PAUSE_IMAGE: &str = "localhost/ortolan-pause:1";

/// containerd's socket as the node sees it.
pub(crate) const CONTAINERD_SOCKET: &str = "/run/containerd.sock";

/// Users that reach the API with a kubeconfig: file, user, group.
const USERS: [(&str, &str, Option<&str>); 6] = [
    ("admin", "admin", Some("system:masters")),
    ("kube-controller-manager", "system:kube-controller-manager", None),
    ("kube-scheduler", "system:kube-scheduler", None),
    ("kube-proxy", "system:kube-proxy", None),
    ("coredns", "coredns", None),
    ("kubelet", "system:node:node0", Some("system:nodes")),
];

/// Makes all keys and certificates, and a kubeconfig for each user.
pub(crate) fn write_access(folder: &Folder, addresses: &Addresses) -> Result<(), AccessError> {
    let authority = Authority::create(&folder.join("pki"))?;
    let api_names = ["localhost", "kubernetes", "kubernetes.default", "kubernetes.default.svc"];
    let api_addresses = [Ipv4Addr::LOCALHOST, addresses.api_service, addresses.api_host];
    let api =
        Identity { file: "api", user: "kube-apiserver", group: None, names: &api_names, addresses: &api_addresses };
    authority.issue(&api)?;
    let proxy = Identity { file: "front-proxy", user: "front-proxy-client", ..api };
    authority.issue(&Identity { names: &[], addresses: &[], ..proxy })?;
    for (file, user, group) in USERS {
        // The kubelet serves logs with the certificate that it shows to the API.
        authority.issue(&Identity { file, user, group, names: &[NODE], addresses: &[addresses.api_host] })?;
        let path = if file == "admin" { "admin.kubeconfig".to_owned() } else { format!("config/{file}.kubeconfig") };
        folder.write(&path, &kubeconfig(folder, addresses, file).to_string())?;
    }
    Ok(())
}

/// Why the parts have nothing to show to the API.
#[derive(Debug, thiserror::Error)]
pub enum AccessError {
    /// Keys and certificates.
    #[error(transparent)]
    Pki(#[from] PkiError),
    /// Their files.
    #[error(transparent)]
    Folder(#[from] FolderError),
}

/// Writes what the parts of the node read.
pub(crate) fn write_node(folder: &Folder, network: Network, cni_folder: &Path) -> Result<(), FolderError> {
    folder.write("config/containerd.toml", &containerd(cni_folder))?;
    folder.write("config/cni/10-pods.conflist", &cni(network).to_string())?;
    folder.write("config/kubelet.json", &kubelet(folder, network).to_string())?;
    folder.write("config/kube-proxy.json", &kube_proxy(folder, network).to_string())?;
    folder.write("config/Corefile", &corefile(folder))?;
    // Given to the pods that take over the node's own resolver: they find nothing, and do not wait for it.
    folder.write("config/resolv.conf", "options attempts:1 timeout:1\n")
}

fn kubeconfig(folder: &Folder, addresses: &Addresses, user: &str) -> Value {
    let context = format!("ortolan-{}", folder.name());
    let file = |name: &str| folder.join(&format!("pki/{name}"));
    json!({
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{
            "name": context,
            "cluster": {"server": addresses.api_url(), "certificate-authority": file("ca.crt")},
        }],
        "users": [{
            "name": user,
            "user": {
                "client-certificate": file(&format!("{user}.crt")),
                "client-key": file(&format!("{user}.key")),
            },
        }],
        "contexts": [{"name": context, "context": {"cluster": context, "user": user}}],
        "current-context": context,
    })
}

/// `restrict_oom_score_adj`: where the harness lacks `CAP_SYS_RESOURCE`, as in many containers, no pod could start without it.
fn containerd(cni_folder: &Path) -> String {
    let cni_folder = cni_folder.display();
    format!(
        r#"version = 2
root = "{INSIDE}/containerd"
state = "/run/containerd"
disabled_plugins = ["io.containerd.snapshotter.v1.aufs", "io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.devmapper", "io.containerd.snapshotter.v1.zfs", "io.containerd.tracing.processor.v1.otlp", "io.containerd.internal.v1.tracing"]

[grpc]
address = "{CONTAINERD_SOCKET}"

[plugins."io.containerd.internal.v1.opt"]
path = "{INSIDE}/containerd/opt"

[plugins."io.containerd.grpc.v1.cri"]
restrict_oom_score_adj = true
sandbox_image = "{PAUSE_IMAGE}"

[plugins."io.containerd.grpc.v1.cri".containerd]
snapshotter = "overlayfs"

[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"

[plugins."io.containerd.grpc.v1.cri".cni]
bin_dir = "{cni_folder}"
conf_dir = "{INSIDE}/config/cni"
"#
    )
}

/// Each pod has a cable of its own to the node instead of a place on a common bridge: so all packets pass the node's rules, also
/// those between two pods, and whether the machine has bridge filtering does not matter.
fn cni(network: Network) -> Value {
    json!({
        "cniVersion": "0.4.0",
        "name": "pods",
        "plugins": [{
            "type": "ptp",
            "ipMasq": false,
            "ipam": {
                "type": "host-local",
                "dataDir": "/run/cni",
                "ranges": [[{"subnet": network.pods()}]],
                "routes": [{"dst": "0.0.0.0/0"}],
            },
        }],
    })
}

fn kubelet(folder: &Folder, network: Network) -> Value {
    json!({
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "address": network.node(),
        "authentication": {
            "anonymous": {"enabled": false},
            "webhook": {"enabled": true},
            "x509": {"clientCAFile": folder.join("pki/ca.crt")},
        },
        "authorization": {"mode": "Webhook"},
        "tlsCertFile": folder.join("pki/kubelet.crt"),
        "tlsPrivateKeyFile": folder.join("pki/kubelet.key"),
        "cgroupDriver": "cgroupfs",
        "cgroupRoot": format!("/{}", folder.cgroup()),
        "containerRuntimeEndpoint": format!("unix://{CONTAINERD_SOCKET}"),
        "clusterDomain": "cluster.local",
        "clusterDNS": [network.dns_service()],
        "resolvConf": folder.join("config/resolv.conf"),
        "podLogsDir": format!("{INSIDE}/log/pods"),
        "volumePluginDir": format!("{INSIDE}/kubelet/volume-plugins"),
        "makeIPTablesUtilChains": false,
        "failSwapOn": false,
        "failCgroupV1": false,
        // Images come from an archive, and one that is removed to make room would not come back.
        "imageGCHighThresholdPercent": 100,
        "evictionHard": {"memory.available": "100Mi", "nodefs.available": "1%", "imagefs.available": "1%"},
        "maxPods": 250,
        "serializeImagePulls": false,
        "nodeStatusUpdateFrequency": "5s",
        "nodeLeaseDurationSeconds": 20,
        // 5 s: how soon a changed ConfigMap is seen in a pod.
        "syncFrequency": "5s",
        // A watch that is begun before the API server has linked the pod to this node is forbidden, and tried again later each time:
        // under load pods waited half a minute for their volumes.
        "configMapAndSecretChangeDetectionStrategy": "Get",
    })
}

fn kube_proxy(folder: &Folder, network: Network) -> Value {
    json!({
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
        "kind": "KubeProxyConfiguration",
        "clientConnection": {"kubeconfig": folder.join("config/kube-proxy.kubeconfig")},
        "mode": "nftables",
        "clusterCIDR": network.pods(),
        "hostnameOverride": NODE,
        // Limits of the whole machine, which are not ours to change.
        "conntrack": {"maxPerCore": 0, "min": 0, "tcpEstablishedTimeout": "0s", "tcpCloseWaitTimeout": "0s"},
    })
}

/// Names are answered from the cluster alone. A question for any other name is refused at once, so a pod that reaches for the world
/// fails fast.
fn corefile(folder: &Folder) -> String {
    let kubeconfig = folder.join("config/coredns.kubeconfig");
    format!(
        ".:53 {{\n  errors\n  ready :8181\n  kubernetes cluster.local in-addr.arpa {{\n    kubeconfig {}\n    ttl 1\n  }}\n}}\n",
        kubeconfig.display()
    )
}
