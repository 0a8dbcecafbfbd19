//! What the tests share: a runtime, and one cluster with everything in place.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use ortolan_tests::cluster::{Cluster, Options};
use ortolan_tests::images;
use ortolan_tests::programs;
use ortolan_tests::report::chain;
use ortolan_tests::requirements;
use tokio::runtime::Runtime;
use tokio::sync::{OnceCell, RwLock};

pub(crate) use crate::outcome::{Failure, LIMIT, Outcome, repository, tell, tell_time};
use crate::prometheus::{self, Prometheus};
use crate::space::Space;

/// Where our operator is.
pub(crate) const OPERATOR_NAMESPACE: &str = "ortolan-system";

/// Beside whom a test runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Beside {
    /// Any other: it leaves the operator and Prometheus alone.
    Others,
    /// Nobody.
    Nobody,
}

/// What the tests share. It is started when the first of them asks for it.
pub(crate) struct Fixture {
    runtime: Runtime,
    stage: OnceCell<Outcome<Stage>>,
}

/// The cluster with everything in place.
pub(crate) struct Stage {
    pub(crate) cluster: Cluster,
    /// As anybody would make it.
    pub(crate) main: Prometheus,
    /// With rules at a quicker pace.
    pub(crate) fast: Prometheus,
    /// The alerts that have fired and ended.
    pub(crate) seen: Mutex<BTreeSet<String>>,
    turns: RwLock<()>,
}

impl Fixture {
    pub(crate) fn new() -> Self {
        Self { runtime: Runtime::new().expect("a runtime"), stage: OnceCell::new() }
    }

    /// `None` if the tests can run.
    pub(crate) fn reason_to_leave_out() -> Option<&'static str> {
        if std::env::var_os("CONTEXT").is_some() {
            return Some("its causes are produced in the parts of a cluster, and CONTEXT names one elsewhere");
        }
        if !cfg!(target_os = "linux") {
            return Some("the parts of a cluster need Linux");
        }
        (!requirements::is_root()).then_some("a node needs root")
    }

    /// Runs a test in a namespace of its own.
    pub(crate) fn run(
        &'static self,
        beside: Beside,
        namespace: &'static str,
        test: impl AsyncFnOnce(&Space) -> Outcome,
    ) -> Outcome {
        self.runtime.block_on(async {
            // Kept as a failure too: what does not start for one test does not start for the next.
            let stage = self.stage.get_or_init(Stage::start).await.as_ref().map_err(Failure::clone)?;
            // One of the two is held while the test runs.
            let (mut shared, mut alone) = (None, None);
            match beside {
                Beside::Others => shared = Some(stage.turns.read().await),
                Beside::Nobody => alone = Some(stage.turns.write().await),
            }
            let space = Space::create(stage, namespace).await?;
            let tested = test(&space).await.inspect_err(|error| tell(&format!("{namespace}: {error}")));
            drop((shared, alone));
            tested?;
            space.end().await
        })
    }

    /// Ends what was started; the logs stay if a test failed.
    pub(crate) fn end(&self, failed: bool) -> Outcome {
        let Some(Ok(stage)) = self.stage.get() else { return Ok(()) };
        Ok(stage.cluster.end(failed).inspect_err(|error| tell(&chain(error)))?)
    }
}

impl Stage {
    async fn start() -> Outcome<Self> {
        let begun = Instant::now();
        let models = programs::cache_folder().join("models");
        for model in ["obedient", "slow", "tiny", "worn-out"] {
            if !models.join(model).join("model.onnx").exists() {
                let make = "deploy/models/make.py tiny slow obedient worn-out";
                return Err(Failure::new(format!("the model {model} is not there: run `python3 {make}`")));
            }
        }
        let mut archives = prometheus::archives()?;
        for spec in [&images::POD, &images::OPERATOR] {
            archives.push(images::build(spec, &|step| tell(step))?.archive);
        }
        let cluster = Cluster::up(&Options::named("accept")).await?;
        for archive in &archives {
            cluster.import_image(archive).await?;
        }
        prometheus::install_operator(&cluster).await?;
        let chart = repository().join("charts/ortolan").display().to_string();
        let install = ["install", "ortolan", &chart, "--namespace", OPERATOR_NAMESPACE, "--create-namespace"];
        cluster.run_helm(&[&install[..], &["--wait", "--timeout", "2m"]].concat()).await?;
        let (main, fast) = prometheus::install(&cluster).await?;
        tell(&format!("cluster, operators and Prometheus are up after {:.1} s", begun.elapsed().as_secs_f64()));
        Ok(Self { cluster, main, fast, seen: Mutex::default(), turns: RwLock::default() })
    }

    /// Applies objects that are no resource of ours.
    pub(crate) async fn apply(&self, name: &str, object: &serde_json::Value) -> Outcome {
        apply(&self.cluster, name, object).await
    }

    pub(crate) fn saw(&self, alert: &str) {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).insert(alert.to_owned());
    }
}

/// Applies objects by way of a file of that name.
pub(crate) async fn apply(cluster: &Cluster, name: &str, object: &serde_json::Value) -> Outcome {
    apply_text(cluster, name, &object.to_string()).await
}

/// See [`apply`].
pub(crate) async fn apply_text(cluster: &Cluster, name: &str, text: &str) -> Outcome {
    let file = cluster.kubeconfig().parent().unwrap_or(Path::new(".")).join(format!("{name}.yaml"));
    std::fs::write(&file, text)?;
    // Applied by the server: what kubectl would note of large objects is longer than an annotation may be.
    let file = file.display().to_string();
    cluster.run_kubectl(&["apply", "--server-side", "--force-conflicts", "-f", &file]).await?;
    Ok(())
}
