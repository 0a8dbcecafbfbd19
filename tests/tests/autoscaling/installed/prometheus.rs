//! A plain Prometheus that finds the pods by their labels, set up as docs/observability.md says.

use std::net::{IpAddr, Ipv4Addr};

use ortolan_tests::cluster::Cluster;
use ortolan_tests::programs::{self, Profile, Purpose};
use ortolan_tests::report::Report;
use serde_json::{Value, json};

use crate::fixture::Outcome;
use crate::installed::server::{self, Launch, Server};
use crate::web;

/// A Prometheus, which may be stopped for a while.
pub(crate) struct Prometheus {
    port: u16,
    /// `None` while it is stopped.
    server: Option<Server>,
}

impl Prometheus {
    pub(crate) async fn start(cluster: &Cluster) -> Outcome<Self> {
        let port = server::free_port(IpAddr::V4(Ipv4Addr::LOCALHOST))?;
        let mut prometheus = Self { port, server: None };
        prometheus.resume(cluster).await?;
        Ok(prometheus)
    }

    /// Where programs of this machine find it.
    pub(crate) fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// Ends it. What it knows stays on the disk.
    pub(crate) fn stop(&mut self) -> Outcome {
        self.server.take().map_or(Ok(()), Server::terminate)
    }

    /// Starts it again, if it does not run.
    pub(crate) async fn resume(&mut self, cluster: &Cluster) -> Outcome {
        if self.server.is_some() {
            return Ok(());
        }
        let mut server = Server::start(cluster, &self.launch(cluster)?)?;
        let port = self.port;
        server
            .until("to be ready", async || match web::get(("127.0.0.1", port), "/-/ready") {
                Ok(answer) if answer.status == 200 => Ok(()),
                Ok(answer) => Err(answer.text()),
                Err(error) => Err(error.to_string()),
            })
            .await?;
        self.server = Some(server);
        Ok(())
    }

    fn launch(&self, cluster: &Cluster) -> Outcome<Launch> {
        let programs = programs::ensure(Profile::newest(), &[Purpose::Prometheus], Report::to_stderr())?;
        let folder = server::folder(cluster, "prometheus")?;
        let config = folder.join("prometheus.json");
        std::fs::write(&config, config_of(cluster).to_string())?;
        Ok(Launch {
            name: "prometheus",
            program: programs.path("prometheus")?.to_owned(),
            arguments: vec![
                format!("--config.file={}", config.display()),
                format!("--storage.tsdb.path={}", folder.join("data").display()),
                format!("--web.listen-address=127.0.0.1:{}", self.port),
            ],
            environment: Vec::new(),
        })
    }
}

/// JSON, which is YAML too.
fn config_of(cluster: &Cluster) -> Value {
    let keep = |label: &str, regex: &str| json!({"source_labels": [label], "regex": regex, "action": "keep"});
    let set = |label: &str, target: &str| json!({"source_labels": [label], "target_label": target});
    json!({
        // 2 s: a test should not wait for the usual 15.
        "global": {"scrape_interval": "2s", "scrape_timeout": "2s"},
        "scrape_configs": [{
            "job_name": "ortolan-pods",
            "kubernetes_sd_configs": [{"role": "pod", "kubeconfig_file": cluster.kubeconfig()}],
            "relabel_configs": [
                keep("__meta_kubernetes_pod_label_ortolan_dev_inference_model", ".+"),
                keep("__meta_kubernetes_pod_container_port_name", "metrics"),
                set("__meta_kubernetes_namespace", "namespace"),
                set("__meta_kubernetes_pod_name", "pod"),
                set("__meta_kubernetes_pod_label_ortolan_dev_inference_model", "ortolan_dev_inference_model"),
                set("__meta_kubernetes_pod_label_ortolan_dev_revision", "ortolan_dev_revision"),
            ],
        }],
    })
}
