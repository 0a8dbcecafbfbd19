//! The definition of the resource, and the account of the operator with exactly the permissions that the chart gives it.

use std::path::PathBuf;

use ortolan_tests::cluster::{Cluster, wait};
use ortolan_tests::programs::Profile;
use serde_json::{Value, json};

use crate::fixture::{LIMIT, Outcome, repository};

/// Where the chart is installed, and where the Lease is.
pub(crate) const NAMESPACE: &str = "ortolan-system";

/// The chart's name of the account, and of the Lease.
pub(crate) const ACCOUNT: &str = "ortolan-operator";

/// The account's name to the API server.
pub(crate) fn user() -> String {
    format!("system:serviceaccount:{NAMESPACE}:{ACCOUNT}")
}

/// How operators of this machine reach the API.
pub(crate) struct Access {
    api: Value,
    folder: PathBuf,
}

/// Puts in place what the chart has besides the operator's Deployment.
pub(crate) async fn install(cluster: &Cluster) -> Outcome<Access> {
    let chart = repository().join("charts/ortolan").display().to_string();
    // Without a cluster's version, helm takes one of long ago.
    let version = Profile::newest().name;
    let mut template = vec!["template", "ortolan", &chart, "--namespace", NAMESPACE, "--kube-version", version];
    for file in ["templates/rbac.yaml", "templates/serviceaccount.yaml"] {
        template.extend(["--show-only", file]);
    }
    let rendered = cluster.kubeconfig().with_file_name("access.yaml");
    std::fs::write(&rendered, cluster.run_helm(&template).await?)?;
    cluster.run_kubectl(&["create", "namespace", NAMESPACE]).await?;
    let definition = repository().join("crds/generated/inferencemodels.ortolan.dev.yaml");
    for file in [rendered, definition] {
        cluster.run_kubectl(&["apply", "-f", &file.display().to_string()]).await?;
    }
    let listed = async || cluster.run_kubectl(&["get", "infm", "--all-namespaces"]).await;
    wait::until("InferenceModels to be served", LIMIT, listed).await?;
    let config = cluster.run_kubectl(&["config", "view", "--raw", "--flatten", "-o", "json"]).await?;
    let config: Value = serde_json::from_str(&config)?;
    let folder = cluster.kubeconfig().with_file_name("config");
    Ok(Access { api: config["clusters"][0]["cluster"].clone(), folder })
}

impl Access {
    /// A kubeconfig with a new token of the account, for the operator of this name.
    pub(crate) async fn kubeconfig(&self, cluster: &Cluster, name: &str) -> Outcome<PathBuf> {
        let token = cluster.run_kubectl(&["create", "token", ACCOUNT, "-n", NAMESPACE, "--duration=24h"]).await?;
        let config = json!({
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "test", "cluster": self.api}],
            "users": [{"name": ACCOUNT, "user": {"token": token.trim()}}],
            "contexts": [{"name": "test", "context": {"cluster": "test", "user": ACCOUNT}}],
            "current-context": "test",
        });
        let file = self.folder.join(format!("{name}.kubeconfig"));
        std::fs::write(&file, config.to_string())?;
        Ok(file)
    }
}
