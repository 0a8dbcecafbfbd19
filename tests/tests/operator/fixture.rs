//! What the tests share: a runtime, one cluster with a node, what it takes to serve models there, and one operator.

use std::path::Path;
use std::time::Instant;

use ortolan_tests::cluster::{Cluster, Options};
use ortolan_tests::images;
use ortolan_tests::probe;
use ortolan_tests::programs;
use ortolan_tests::report::{Report, chain};
use ortolan_tests::requirements;
use tokio::runtime::Runtime;
use tokio::sync::{Mutex, MutexGuard, OnceCell, RwLock};

use crate::access::{self, Access};
use crate::audit;
use crate::operator::{self, Launch, Operator};
use crate::space::Space;

pub(crate) use crate::outcome::{Failure, LIMIT, Outcome, repository, tell, tell_time};

/// The image of clients and of the web server of models.
pub(crate) const PROBE: &str = probe::IMAGE;

/// Beside whom a test runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Beside {
    /// Any other: it leaves the operator and the node alone.
    Others,
    /// Nobody: it ends operators.
    Nobody,
    /// Nobody, on a cluster of their own: it changes which kinds the cluster serves. There is no node, so no pod ever runs.
    Apart,
}

/// What the tests share. It is started when the first of them asks for it.
pub(crate) struct Fixture {
    runtime: Runtime,
    stage: OnceCell<Outcome<Stage>>,
    apart: OnceCell<Outcome<Stage>>,
}

impl Fixture {
    pub(crate) fn new() -> Self {
        Self { runtime: Runtime::new().expect("a runtime"), stage: OnceCell::new(), apart: OnceCell::new() }
    }

    /// `None` if the tests can run.
    pub(crate) fn reason_to_leave_out() -> Option<&'static str> {
        if std::env::var_os("CONTEXT").is_some() {
            return Some("the operator under test runs on this machine, and CONTEXT names a cluster elsewhere");
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
            let stage = match beside {
                Beside::Apart => self.apart.get_or_init(Stage::start_apart).await,
                Beside::Others | Beside::Nobody => self.stage.get_or_init(Stage::start).await,
            };
            let stage = stage.as_ref().map_err(Failure::clone)?;
            let _turn = stage.turn(beside).await?;
            let space = Space::create(stage, namespace).await?;
            test(&space).await.inspect_err(|error| tell(&format!("{namespace}: {error}")))?;
            space.end().await
        })
    }

    /// Ends what was started; the logs stay if a test failed.
    pub(crate) fn end(&self, failed: bool) -> Outcome {
        let stages = [&self.stage, &self.apart];
        let stages = stages.into_iter().filter_map(|stage| stage.get()?.as_ref().ok());
        let ends = stages.map(|stage| {
            self.runtime.block_on(stage.operator.lock()).take();
            stage.cluster.end(failed).inspect_err(|error| tell(&chain(error)))
        });
        // Each is ended, whether or not another could be.
        ends.collect::<Vec<_>>().into_iter().collect::<Result<(), _>>()?;
        Ok(())
    }
}

/// The cluster with everything in place.
pub(crate) struct Stage {
    pub(crate) cluster: Cluster,
    pub(crate) access: Access,
    turns: RwLock<()>,
    operator: Mutex<Option<Operator>>,
}

/// Held by a test for as long as it runs.
pub(crate) enum Turn<'a> {
    Shared(#[allow(dead_code, reason = "held, never read")] tokio::sync::RwLockReadGuard<'a, ()>),
    Alone(#[allow(dead_code, reason = "held, never read")] tokio::sync::RwLockWriteGuard<'a, ()>),
}

impl Stage {
    async fn start() -> Outcome<Self> {
        let begun = Instant::now();
        operator::binary()?;
        let pod = images::build_with_compiled(&images::POD, &|step| tell(step))?;
        let options = Options { audit: Some(audit::policy()), ..Options::named(crate::CLUSTER) };
        let cluster = Cluster::up(&options).await?;
        for archive in [&pod.archive, &probe::archive(Report::to_stderr())?] {
            cluster.import_image(archive).await?;
        }
        let access = access::install(&cluster).await?;
        let stage = Self { cluster, access, turns: RwLock::default(), operator: Mutex::default() };
        stage.operate(&Launch::usual()).await?;
        stage.start_models_and_customer().await?;
        tell(&format!(
            "cluster, operator and web server of models are up after {:.1} s",
            begun.elapsed().as_secs_f64()
        ));
        Ok(stage)
    }

    /// A control plane alone, which knows nothing of Prometheus, and an operator.
    async fn start_apart() -> Outcome<Self> {
        let begun = Instant::now();
        operator::binary()?;
        let options = Options { audit: Some(audit::policy()), ..Options::named(&format!("{}-apart", crate::CLUSTER)) };
        let cluster = Cluster::up(&options.control_plane_alone()).await?;
        let access = access::install(&cluster).await?;
        let stage = Self { cluster, access, turns: RwLock::default(), operator: Mutex::default() };
        stage.operate(&Launch::usual()).await?;
        tell(&format!("control plane and operator are up after {:.1} s", begun.elapsed().as_secs_f64()));
        Ok(stage)
    }

    async fn turn(&self, beside: Beside) -> Outcome<Turn<'_>> {
        if beside == Beside::Others {
            return Ok(Turn::Shared(self.turns.read().await));
        }
        let turn = Turn::Alone(self.turns.write().await);
        // A test before may have failed and left another one.
        self.operate(&Launch::usual()).await?;
        Ok(turn)
    }

    /// The operator that runs, if one does. Only for tests that run alone.
    pub(crate) async fn operator(&self) -> MutexGuard<'_, Option<Operator>> {
        self.operator.lock().await
    }

    /// Makes an operator like this one run and lead, and no other that this holds.
    pub(crate) async fn operate(&self, launch: &Launch) -> Outcome {
        let mut operator = self.operator.lock().await;
        if operator.as_mut().is_some_and(|operator| operator.is(launch) && operator.runs()) {
            return Ok(());
        }
        if let Some(former) = operator.take() {
            former.terminate()?;
        }
        let started = Operator::start(self, launch).await?;
        started.until_it_leads().await?;
        *operator = Some(started);
        Ok(())
    }

    /// A web server with the models of the cache, and a client with the photos of the repository.
    async fn start_models_and_customer(&self) -> Outcome {
        let models = programs::cache_folder().join("models").canonicalize()?;
        if !models.join("efficientnet-lite0/model.onnx").exists() {
            return Err(Failure::new("there are no models: run `make models`"));
        }
        self.apply_manifest("models.yaml", "/var/lib/ortolan/models", &models).await?;
        let photos = repository().join("deploy/samples/photos").canonicalize()?;
        self.apply_manifest("customer.yaml", "/var/lib/ortolan/photos", &photos).await?;
        let cluster = &self.cluster;
        cluster.run_kubectl(&["rollout", "status", "deployment/models", "-n", "models", "--timeout=60s"]).await?;
        cluster.run_kubectl(&["wait", "pod/customer", "--for=condition=Ready", "--timeout=60s"]).await?;
        Ok(())
    }

    /// Applies a manifest with a folder of this machine in place of the one that it names.
    async fn apply_manifest(&self, manifest: &str, named: &str, folder: &Path) -> Outcome {
        let text = std::fs::read_to_string(repository().join("deploy/manifests").join(manifest))?;
        assert!(text.contains(named), "{manifest} names another folder");
        let file = self.cluster.kubeconfig().with_file_name(manifest);
        std::fs::write(&file, text.replace(named, &folder.display().to_string()))?;
        self.cluster.run_kubectl(&["apply", "-f", &file.display().to_string()]).await?;
        Ok(())
    }
}
