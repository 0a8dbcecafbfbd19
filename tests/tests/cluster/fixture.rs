//! What the tests share: a runtime, one cluster with a node, one control plane alone, and an image to run.

use std::future::Future;
use std::io::Write;
use std::path::PathBuf;
use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use kube::api::Api;
use ortolan_tests::cluster::{Cluster, Options, wait};
use ortolan_tests::probe;
use ortolan_tests::report::{Report, chain};
use ortolan_tests::requirements;
use tokio::runtime::Runtime;
use tokio::sync::OnceCell;

use crate::Needs;

/// The longest that any state is waited for.
pub(crate) const LIMIT: Duration = Duration::from_secs(60);

/// The image that pods run.
pub(crate) const PROBE: &str = probe::IMAGE;

/// How a test ends: any error fails it.
pub(crate) type Outcome = Result<(), Failure>;

/// Why a test failed, with all causes.
#[derive(Debug)]
pub(crate) struct Failure(String);

impl<E: std::error::Error> From<E> for Failure {
    fn from(error: E) -> Self {
        Self(chain(&error))
    }
}

impl From<Failure> for libtest_mimic::Failed {
    fn from(failure: Failure) -> Self {
        Self::from(failure.0)
    }
}

/// What the tests share. Each cluster is started when the first test asks for it.
pub(crate) struct Fixture {
    runtime: Runtime,
    node: OnceCell<Cluster>,
    control_plane: OnceCell<Cluster>,
}

impl Fixture {
    pub(crate) fn new() -> Self {
        let runtime = Runtime::new().expect("a runtime");
        Self { runtime, node: OnceCell::new(), control_plane: OnceCell::new() }
    }

    pub(crate) fn run(&self, test: impl Future<Output = Outcome>) -> Outcome {
        self.runtime.block_on(test)
    }

    /// `None` if a test with these needs can run.
    pub(crate) fn reason_to_leave_out(&self, needs: Needs) -> Option<&'static str> {
        let foreign = std::env::var_os("CONTEXT").is_some();
        match needs {
            Needs::AnyNode | Needs::AnyApi if foreign => None,
            Needs::OurNode | Needs::OurApi if foreign => {
                Some("it needs parts of our own, and CONTEXT names another cluster")
            }
            _ if !cfg!(target_os = "linux") => Some("the parts of a cluster need Linux"),
            Needs::AnyNode | Needs::OurNode if !requirements::is_root() => Some("a node needs root"),
            _ => None,
        }
    }

    /// The cluster with a node, which has the probe's image.
    pub(crate) async fn node(&self) -> Result<&Cluster, Failure> {
        self.node.get_or_try_init(start_node).await
    }

    /// The control plane alone.
    pub(crate) async fn control_plane(&self) -> Result<&Cluster, Failure> {
        let start = async || Ok(Cluster::from_environment(&Options::named("test-alone").control_plane_alone()).await?);
        self.control_plane.get_or_try_init(start).await
    }

    /// Ends what was started; the logs stay if a test failed.
    pub(crate) fn end(&self, failed: bool) -> Outcome {
        for cluster in [&self.node, &self.control_plane].into_iter().filter_map(OnceCell::get) {
            if let Err(error) = cluster.end(failed) {
                tell(&chain(&error));
                return Err(error.into());
            }
        }
        Ok(())
    }
}

async fn start_node() -> Result<Cluster, Failure> {
    let cluster = Cluster::from_environment(&Options::named("test-node")).await?;
    let archive = probe_archive()?;
    if cluster.is_ours() {
        assert_eq!(cluster.import_image(&archive).await?, [PROBE]);
    } else {
        tell(&format!("the cluster of CONTEXT must have the image {PROBE} from {}", archive.display()));
    }
    Ok(cluster)
}

/// The archive of the probe's image.
pub(crate) fn probe_archive() -> Result<PathBuf, Failure> {
    Ok(probe::archive(Report::to_stderr())?)
}

/// Waits until the pod is ready and returns it as it was then.
pub(crate) async fn ready_pod(pods: &Api<Pod>, name: &str) -> Result<Pod, Failure> {
    let (pod, _) = wait::until(&format!("the pod {name} to be ready"), LIMIT, async || {
        let pod = pods.get(name).await.map_err(|error| error.to_string())?;
        let status = pod.status.clone().unwrap_or_default();
        let ready = |condition: &k8s_openapi::api::core::v1::PodCondition| {
            condition.type_ == "Ready" && condition.status == "True"
        };
        if status.conditions.iter().flatten().any(ready) { Ok(pod) } else { Err(format!("{status:?}")) }
    })
    .await?;
    Ok(pod)
}

/// Prints a line that shows whether or not the test fails.
pub(crate) fn tell(line: &str) {
    let _ = writeln!(std::io::stderr(), "  {line}");
}
