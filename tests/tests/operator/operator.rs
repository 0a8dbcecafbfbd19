//! The operator as a process of this machine, which can be killed, ended in order, and started with other flags.

use std::fs::{self, File};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use k8s_openapi::api::coordination::v1::Lease;
use kube::api::Api;
use ortolan_tests::cluster::{Cluster, wait};
use ortolan_tests::{compiled, images};
use rustix::process::{Pid, Signal, kill_process};

use crate::access::{ACCOUNT, NAMESPACE};
use crate::fixture::{Failure, LIMIT, Outcome, Stage, tell};
use crate::web;

/// How an operator is started.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Launch {
    /// Its name in the Lease: two at once need two.
    pub(crate) identity: &'static str,
    /// The server's image for new revisions.
    pub(crate) pod_image: String,
    /// Where it tells KEDA that Prometheus is.
    pub(crate) prometheus_url: String,
}

impl Launch {
    /// The operator of all tests that start no other.
    pub(crate) fn usual() -> Self {
        let prometheus_url = "http://prometheus.watch.svc:9090".to_owned();
        Self { identity: "operator-0", pod_image: images::POD.reference(), prometheus_url }
    }

    /// An operator of another build, which renders other pods: it has another name for the same image.
    pub(crate) fn upgraded() -> Self {
        let image = images::POD.reference();
        let short = image.strip_prefix("docker.io/").unwrap_or(&image).to_owned();
        assert_ne!(short, image, "both names are the same");
        Self { pod_image: short, ..Self::usual() }
    }
}

/// An operator that runs, until it is dropped.
pub(crate) struct Operator {
    launch: Launch,
    child: Child,
    port: u16,
    log: PathBuf,
    leases: Api<Lease>,
}

/// The operator that was built last.
pub(crate) fn binary() -> Outcome<PathBuf> {
    Ok(compiled::find("ortolan-operator")?)
}

impl Operator {
    pub(crate) async fn start(stage: &Stage, launch: &Launch) -> Outcome<Self> {
        static STARTS: AtomicU32 = AtomicU32::new(0);
        let start = STARTS.fetch_add(1, Ordering::Relaxed);
        let name = format!("{}-{start}", launch.identity);
        let kubeconfig = stage.access.kubeconfig(&stage.cluster, &name).await?;
        let log = log_folder(&stage.cluster)?.join(format!("{name}.log"));
        // Free a moment ago, and so it is now, unless somebody is very quick.
        let port = TcpListener::bind(("127.0.0.1", 0))?.local_addr()?.port();
        let mut command = Command::new(binary()?);
        // Without colours, which stand between a field's name and its value.
        command.env_clear().env("KUBECONFIG", kubeconfig).env("NO_COLOR", "1");
        stage.cluster.adopt(&mut command)?;
        let settings = [
            ("namespace", NAMESPACE),
            ("lease-name", ACCOUNT),
            ("identity", launch.identity),
            ("pod-image", &launch.pod_image),
            ("pod-image-cuda", &images::POD_CUDA.reference()),
            ("prometheus-url", &launch.prometheus_url),
            ("listen", &format!("127.0.0.1:{port}")),
            ("log-level", "info,ortolan_operator=debug"),
            ("log-format", "plain"),
        ];
        command.args(settings.map(|(name, value)| format!("--{name}={value}")));
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(File::create(&log)?);
        let child = command.spawn()?;
        let leases = Api::namespaced(stage.cluster.client(), NAMESPACE);
        Ok(Self { launch: launch.clone(), child, port, log, leases })
    }

    /// Whether it was started like this.
    pub(crate) fn is(&self, launch: &Launch) -> bool {
        self.launch == *launch
    }

    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    pub(crate) fn runs(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// Waits until it may write. Returns how long that took.
    pub(crate) async fn until_it_leads(&self) -> Outcome<Duration> {
        let what = format!("{} to lead", self.launch.identity);
        let ((), time) = wait::until(&what, LIMIT, async || {
            let leads = self.number("ortolan_operator_leader").map_err(|error| error.to_string())?;
            if leads == 1.0 { Ok(()) } else { Err("it stands by".to_owned()) }
        })
        .await?;
        Ok(time)
    }

    /// Waits until it has read all there is. Returns how long that took.
    pub(crate) async fn until_it_is_ready(&self) -> Outcome<Duration> {
        let what = format!("{} to be ready", self.launch.identity);
        let ((), time) = wait::until(&what, LIMIT, async || {
            let answer = web::get(("127.0.0.1", self.port), "/ready").map_err(|error| error.to_string())?;
            if answer.status == 200 { Ok(()) } else { Err(answer.text()) }
        })
        .await?;
        Ok(time)
    }

    /// Who holds the Lease.
    pub(crate) async fn holder(&self) -> Outcome<String> {
        let spec = self.leases.get(ACCOUNT).await?.spec.unwrap_or_default();
        Ok(spec.holder_identity.unwrap_or_default())
    }

    /// What it answers to a question by HTTP.
    pub(crate) fn ask(&self, path: &str) -> Outcome<web::Answer> {
        Ok(web::get(("127.0.0.1", self.port), path)?)
    }

    /// What it exports, in the older form and as OpenMetrics.
    pub(crate) fn metrics(&self) -> Outcome<[String; 2]> {
        let ask = |accept: &str| {
            web::Connection::open(("127.0.0.1", self.port))?.ask_with(&[("accept", accept)], "GET", "/metrics", b"")
        };
        Ok([ask("text/plain")?.text(), ask("application/openmetrics-text; version=1.0.0")?.text()])
    }

    /// What it has logged.
    pub(crate) fn log(&self) -> Outcome<String> {
        Ok(fs::read_to_string(&self.log)?)
    }

    /// The sum of all series of a metric; 0 while there is none.
    pub(crate) fn number(&self, metric: &str) -> Outcome<f64> {
        let text = web::get(("127.0.0.1", self.port), "/metrics")?.text();
        let is_of = |line: &&str| line.strip_prefix(metric).is_some_and(|rest| rest.starts_with([' ', '{']));
        let values = text.lines().filter(is_of).filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok());
        Ok(values.sum())
    }

    /// Ends it as a crash would.
    pub(crate) fn kill(mut self) -> Outcome {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }

    /// Asks it to end, and waits until it has. Returns how it ended, and how long that took.
    pub(crate) fn terminate(mut self) -> Outcome<(ExitStatus, Duration)> {
        let begun = Instant::now();
        if let Some(pid) = Pid::from_raw(self.child.id().cast_signed()) {
            kill_process(pid, Signal::TERM)?;
        }
        while begun.elapsed() < Duration::from_secs(20) {
            if let Some(status) = self.child.try_wait()? {
                return Ok((status, begun.elapsed()));
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        Err(Failure::new("the operator does not end by SIGTERM"))
    }
}

impl Drop for Operator {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn log_folder(cluster: &Cluster) -> Outcome<PathBuf> {
    Ok(cluster.audit_log()?.parent().unwrap_or(Path::new(".")).to_owned())
}

/// The last lines of all operators' logs that speak of a namespace, or of trouble.
pub(crate) fn tell_logs(cluster: &Cluster, namespace: &str) {
    const LINES: usize = 30;
    let files = log_folder(cluster).ok().and_then(|folder| fs::read_dir(folder).ok());
    for entry in files.into_iter().flatten().flatten() {
        if !entry.file_name().to_string_lossy().starts_with("operator-") {
            continue;
        }
        let text = fs::read_to_string(entry.path()).unwrap_or_default();
        let matters = |line: &&str| line.contains(namespace) || line.contains("ERROR") || line.contains("panicked");
        let lines: Vec<&str> = text.lines().filter(matters).collect();
        tell(&format!("the end of {}:", entry.path().display()));
        lines[lines.len().saturating_sub(LINES)..].iter().for_each(|line| tell(line));
    }
}
