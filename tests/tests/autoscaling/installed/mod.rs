//! What a team may run already, and the modes HPA and KEDA build on: Prometheus, prometheus-adapter and KEDA, each the real one.
//!
//! They run on this machine beside the cluster. What they serve to the API server is found through Services with one endpoint outside.

mod aggregated;
mod keda;
mod prometheus;
mod prometheus_adapter;
mod server;

use ortolan_tests::cluster::Cluster;
use tokio::sync::{Mutex, MutexGuard, OnceCell};

use crate::fixture::{Failure, Outcome, tell_time};
use crate::operator::Launch;
use crate::space::Space;
use keda::Keda;
use prometheus::Prometheus;
use server::Server;

/// What is started when the first test asks for it, and ends with the cluster.
#[derive(Default)]
pub(crate) struct Installed {
    prometheus: OnceCell<Outcome<Mutex<Prometheus>>>,
    adapter: OnceCell<Outcome<Server>>,
    keda: OnceCell<Outcome<Keda>>,
}

impl Installed {
    /// A Prometheus that runs, whatever an earlier test did to it.
    pub(crate) async fn prometheus(&self, cluster: &Cluster) -> Outcome<MutexGuard<'_, Prometheus>> {
        let start = async || Ok(Mutex::new(Prometheus::start(cluster).await?));
        let prometheus = self.prometheus.get_or_init(start).await.as_ref().map_err(Failure::clone)?;
        let mut prometheus = prometheus.lock().await;
        prometheus.resume(cluster).await?;
        Ok(prometheus)
    }

    /// prometheus-adapter before that Prometheus.
    pub(crate) async fn adapter(&self, cluster: &Cluster) -> Outcome {
        let url = self.prometheus(cluster).await?.url();
        let begun = std::time::Instant::now();
        let start = async || prometheus_adapter::start(cluster, &url).await;
        let adapter = self.adapter.get_or_init(start).await;
        tell_time("until prometheus-adapter served", begun.elapsed());
        adapter.as_ref().map(drop).map_err(Failure::clone)
    }

    /// KEDA.
    pub(crate) async fn keda(&self, cluster: &Cluster) -> Outcome {
        let begun = std::time::Instant::now();
        let keda = self.keda.get_or_init(async || Keda::start(cluster).await).await;
        tell_time("until KEDA served", begun.elapsed());
        keda.as_ref().map(drop).map_err(Failure::clone)
    }

    /// Makes an operator run that tells KEDA of this Prometheus.
    pub(crate) async fn operate_with_prometheus(&self, space: &Space) -> Outcome {
        let prometheus_url = self.prometheus(space.cluster()).await?.url();
        space.stage.operate(&Launch { prometheus_url, ..Launch::usual() }).await
    }
}
