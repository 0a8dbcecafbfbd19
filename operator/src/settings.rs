//! How the operator is told what to do: flags, each also an environment variable.

use std::net::SocketAddr;

use clap::Parser;

/// Turns InferenceModels into pods that serve them.
#[derive(Debug, Clone, Parser)]
#[command(name = "ortolan-operator", version)]
pub struct Settings {
    /// Namespace of the Lease by which one of several operators leads.
    #[arg(long, env = "POD_NAMESPACE", default_value = "default")]
    pub namespace: String,
    /// Name of this process in the Lease, different from that of every other.
    #[arg(long, env = "POD_NAME")]
    pub identity: String,
    /// The only namespace to act in; empty: all.
    #[arg(long, env = "WATCH_NAMESPACE", default_value = "")]
    pub watch_namespace: String,
    /// Image of the server, for models without an NVIDIA accelerator.
    #[arg(long, env = "POD_IMAGE")]
    pub pod_image: String,
    /// Image of the server, for models with one.
    #[arg(long, env = "POD_IMAGE_CUDA")]
    pub pod_image_cuda: String,
    /// When nodes pull these images.
    #[arg(long, env = "POD_IMAGE_PULL_POLICY", default_value = "IfNotPresent", value_parser = ["Always", "IfNotPresent", "Never"])]
    pub pod_image_pull_policy: String,
    /// Address of Prometheus as KEDA reaches it, for scaling in mode KEDA; empty: that mode is refused.
    #[arg(long, env = "PROMETHEUS_URL", default_value = "", value_parser = address)]
    pub prometheus_url: String,
    /// Name of the Lease.
    #[arg(long, env = "LEASE_NAME", default_value = "ortolan-operator")]
    pub lease_name: String,
    /// Address of /health, /ready and /metrics.
    #[arg(long, env = "LISTEN", default_value = "0.0.0.0:9090")]
    pub listen: SocketAddr,
    /// A level (info) or a filter (info,ortolan_operator=debug).
    #[arg(long, env = "LOG_LEVEL", default_value = "info")]
    pub log_level: String,
    /// Form of a log line.
    #[arg(long, env = "LOG_FORMAT", default_value = "json", value_parser = ["json", "plain"])]
    pub log_format: String,
}

impl Settings {
    /// The only namespace to act in, if there is one.
    #[must_use]
    pub fn only_namespace(&self) -> Option<String> {
        Some(self.watch_namespace.clone()).filter(|namespace| !namespace.is_empty())
    }

    /// The address of Prometheus, if one was told.
    #[must_use]
    pub fn prometheus(&self) -> Option<String> {
        Some(self.prometheus_url.clone()).filter(|url| !url.is_empty())
    }
}

/// KEDA puts the path of the question behind it.
fn address(text: &str) -> Result<String, String> {
    if text.is_empty() || text.starts_with("http://") || text.starts_with("https://") {
        return Ok(text.trim_end_matches('/').to_owned());
    }
    Err("expected an address that begins with http:// or https://".to_owned())
}
