//! A real Kubernetes on this machine, without a registry and without Docker.
//!
//! ```text
//! control plane alone                      with a node
//!
//! etcd ◂ kube-apiserver ◂ controllers      namespaces: network, mounts, processes
//!        127.0.0.1:port                    ┌───────────────────────────────────────────────┐
//!                                          │ etcd ◂ kube-apiserver ◂ controllers, coredns  │
//! plain processes, no root needed          │        ▴ kubelet ▸ containerd ▸ pods          │
//!                                          │        ▴ kube-proxy ▸ nftables                │
//!                                          └──────── cable ▸ machine ──────────────────────┘
//! ```
//! Any number of clusters run side by side; each has a *name*, a *folder* with all its files, and *parts*, which are processes that
//! can be killed, frozen and started again. With a node, all of it lives in namespaces of its own: their first process is killed and
//! the kernel takes the rest away. The control plane alone is a few processes on ports of 127.0.0.1.
//!
//! Nothing is remembered by a server: whatever a command must know is in the folder or in the processes themselves. So a harness may
//! be killed at any moment; the next that uses the name, or `cluster down`, finds what is left and removes it.
//!
//! Deliberately absent: a way from the pods to the world outside the machine, host ports, several real nodes (kwok plays those).

mod cgroups;
mod config;
mod dns;
mod error;
mod faults;
mod folder;
pub mod image;
mod network;
mod parts;
mod pki;
mod process;
mod ready;
mod remains;
mod space;
mod start;
pub mod wait;

use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::sync::atomic::{AtomicBool, Ordering};

use k8s_openapi::api::core::v1::Node;
use kube::Client;
use kube::api::{Api, Patch, PatchParams};
use serde_json::{Value, json};

use crate::programs::{self, Profile, Programs, Purpose};
use crate::report::Report;
use crate::requirements;
use crate::run;
pub use error::ClusterError;
use error::api_error;
use folder::{Folder, Place, State};
pub(crate) use parts::CNI_FOLDERS;
pub use parts::{NODE, Part, UnknownPart};
use process::Process;

/// What a cluster should be like.
#[derive(Debug, Clone)]
pub struct Options {
    /// Distinguishes it from others: a to z, 0 to 9 and `-`.
    pub name: String,
    /// The versions it is made of.
    pub profile: &'static Profile,
    /// Whether it has a node that runs pods, for which root is needed.
    pub node: bool,
    /// Where the folders of clusters are.
    pub base: PathBuf,
    /// Where the steps are told.
    pub report: Report,
    /// What the API server writes into its audit log, as a `Policy` of `audit.k8s.io/v1`; without one, nothing.
    pub audit: Option<Value>,
}

impl Options {
    /// A cluster with a node, of the newest versions, among the others of this user.
    pub fn named(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            profile: Profile::newest(),
            node: true,
            base: clusters_folder(),
            report: Report::to_stderr(),
            audit: None,
        }
    }

    /// The same without a node.
    pub fn control_plane_alone(self) -> Self {
        Self { node: false, ..self }
    }

    fn purposes(&self) -> Vec<Purpose> {
        if self.node { vec![Purpose::ControlPlane, Purpose::Node] } else { vec![Purpose::ControlPlane] }
    }
}

/// Where the folders of clusters are if nothing else is said: in the cache, beside the programs.
pub fn clusters_folder() -> PathBuf {
    programs::cache_folder().join("clusters")
}

/// A cluster that runs.
///
/// One that [`Cluster::up`] made ends when it is dropped, unless it was left running.
pub struct Cluster {
    client: Client,
    kubeconfig: PathBuf,
    host: Host,
    report: Report,
}

/// Who runs the cluster.
enum Host {
    Ours(Box<Machinery>),
    /// A cluster that was there before, by the name of its context.
    Foreign(String),
}

/// What runs on this machine for a cluster.
struct Machinery {
    folder: Folder,
    place: Place,
    profile: &'static Profile,
    programs: Programs,
    /// Whether the cluster ends with this value.
    owned: AtomicBool,
}

/// A cluster that may or may not run, as `cluster list` shows it.
#[derive(Debug)]
pub struct Listed {
    /// Its name.
    pub name: String,
    /// Where its API is, if it ever had one.
    pub api: Option<String>,
    /// The parts that run.
    pub running: Vec<Part>,
}

impl Cluster {
    /// Starts a cluster and waits until it is ready: the API answers and, with a node, pods can be run and names are resolved.
    ///
    /// What an earlier cluster of the same name has left, running or not, is removed first.
    ///
    /// # Errors
    /// Says what the machine lacks, or which part failed, with the end of its log. The logs are kept, everything else is removed.
    pub async fn up(options: &Options) -> Result<Self, ClusterError> {
        let programs = prepare(options).await?;
        let folder = Folder::of(&options.base, &options.name)?;
        let _lock = folder.lock()?;
        if remains::exist(&folder) {
            let step = options.report.step(format!("remove what is left of an earlier cluster `{}`", options.name));
            remove(&folder, false)?;
            step.done();
        }
        match start::start(options, &folder, programs).await {
            Ok(cluster) => Ok(cluster),
            Err(error) => {
                remove(&folder, true)?;
                Err(error)
            }
        }
    }

    /// For commands that start a cluster of their own.
    ///
    /// # Errors
    /// If the environment variable `CONTEXT` names another one: whoever set it would wait for the wrong cluster.
    pub fn must_be_ours(attempt: &'static str) -> Result<(), ClusterError> {
        match std::env::var("CONTEXT") {
            Ok(context) => Err(ClusterError::NotOurs(attempt, format!("unset it, or use `{context}` as it is"))),
            Err(_) => Ok(()),
        }
    }

    /// The cluster that tests should use: that of the environment variable `CONTEXT` if it is set, else one that is started.
    ///
    /// # Errors
    /// As [`Cluster::up`] and [`Cluster::of_context`].
    pub async fn from_environment(options: &Options) -> Result<Self, ClusterError> {
        match std::env::var("CONTEXT") {
            Ok(context) => Self::of_context(&context, options.report).await,
            Err(_) => Self::up(options).await,
        }
    }

    /// A cluster that runs already, by a context of the user's kubeconfig. Nothing is started, and nothing will be ended.
    ///
    /// # Errors
    /// If there is no such context, or no kubeconfig.
    pub async fn of_context(context: &str, report: Report) -> Result<Self, ClusterError> {
        let error = |source| ClusterError::Kubeconfig {
            from: format!("for the context `{context}`"),
            source: Box::new(source),
        };
        let options = kube::config::KubeConfigOptions { context: Some(context.to_owned()), ..Default::default() };
        let config = kube::Config::from_kubeconfig(&options).await.map_err(error)?;
        let client = Client::try_from(config).map_err(api_error("make a client"))?;
        let kubeconfig = std::env::var_os("KUBECONFIG").map_or_else(default_kubeconfig, PathBuf::from);
        Ok(Self { client, kubeconfig, host: Host::Foreign(context.to_owned()), report })
    }

    /// The cluster `name` that another command has started. It goes on when this value is dropped.
    ///
    /// # Errors
    /// [`ClusterError::Absent`] if it was never started.
    pub async fn open(base: &Path, name: &str, report: Report) -> Result<Self, ClusterError> {
        let folder = Folder::of(base, name)?;
        let absent = || ClusterError::Absent { name: name.to_owned(), base: base.to_owned() };
        let State { profile, place } = folder.load()?.ok_or_else(absent)?;
        let options = Options {
            name: name.to_owned(),
            profile: Profile::named(&profile)?,
            node: place.has_node(),
            base: base.to_owned(),
            report,
            audit: None,
        };
        let programs = prepare(&options).await?;
        let kubeconfig = folder.join("admin.kubeconfig");
        let client = client_of(&kubeconfig).await?;
        let machinery = Machinery { folder, place, profile: options.profile, programs, owned: AtomicBool::new(false) };
        Ok(Self { client, kubeconfig, host: Host::Ours(Box::new(machinery)), report })
    }

    /// Every cluster with a folder in `base`.
    ///
    /// # Errors
    /// If the folder cannot be read.
    pub fn list(base: &Path) -> Result<Vec<Listed>, ClusterError> {
        Folder::all(base)?.iter().map(listed).collect()
    }

    /// Ends the cluster `name` and removes all of it, whoever started it; also what is left of one whose harness was killed.
    ///
    /// # Errors
    /// Says what could not be removed.
    pub fn remove(base: &Path, name: &str) -> Result<(), ClusterError> {
        let folder = Folder::of(base, name)?;
        let _lock = folder.lock()?;
        remove(&folder, false)
    }

    /// Ends the cluster and removes all of it. A cluster that is not ours is left as it is.
    ///
    /// # Errors
    /// Says what could not be removed.
    pub fn down(self) -> Result<(), ClusterError> {
        self.end(false)
    }

    /// Ends the cluster while others may still hold this value, as a fixture that tests share does; with `keep_logs` the logs of its
    /// parts stay, and their ends are shown, since somebody will ask why.
    ///
    /// # Errors
    /// Says what could not be removed.
    pub fn end(&self, keep_logs: bool) -> Result<(), ClusterError> {
        let Host::Ours(machinery) = &self.host else { return Ok(()) };
        machinery.owned.store(false, Ordering::Relaxed);
        for log in
            Part::ALL.map(|part| machinery.folder.log(part.name())).iter().filter(|log| keep_logs && log.exists())
        {
            self.report.say(&format!("the end of {}:\n{}", log.display(), start::tail_of(log)));
        }
        let _lock = machinery.folder.lock()?;
        // Another run may have ended this one and started its own by the same name.
        let is_anothers = matches!(machinery.folder.load(), Ok(Some(state)) if state.place != machinery.place);
        if is_anothers { Ok(()) } else { remove(&machinery.folder, keep_logs) }
    }

    /// Lets the cluster run on after this value, until `cluster down`.
    pub fn leave_running(self) {
        if let Host::Ours(machinery) = &self.host {
            machinery.owned.store(false, Ordering::Relaxed);
        }
    }

    /// A client with all rights.
    pub fn client(&self) -> Client {
        self.client.clone()
    }

    /// The file that gives all rights.
    pub fn kubeconfig(&self) -> &Path {
        &self.kubeconfig
    }

    /// `kubectl` for this cluster, to which arguments can be added.
    ///
    /// # Errors
    /// None so far as the cluster is ours: it was built with it.
    pub fn kubectl(&self) -> Result<Command, ClusterError> {
        match &self.host {
            Host::Ours(machinery) => Ok(self.directly(machinery.programs.path("kubectl")?)),
            Host::Foreign(context) => {
                let mut command = Command::new("kubectl");
                command.args(["--context", context]);
                Ok(command)
            }
        }
    }

    /// A client of this cluster that asks no proxy: the cluster is on this machine.
    fn directly(&self, program: &Path) -> Command {
        let mut command = Command::new(program);
        command.arg("--kubeconfig").arg(&self.kubeconfig);
        for proxy in ["HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"] {
            command.env_remove(proxy).env_remove(proxy.to_lowercase());
        }
        command
    }

    /// Runs `kubectl` and returns what it wrote.
    ///
    /// # Errors
    /// With what it said, if it failed.
    pub async fn run_kubectl(&self, arguments: &[&str]) -> Result<String, ClusterError> {
        let mut command = self.kubectl()?;
        command.args(arguments);
        Ok(blocking(move || run::output(&mut command)).await?)
    }

    /// `helm` for this cluster, to which arguments can be added. It is built if it was not yet.
    ///
    /// # Errors
    /// If it cannot be built.
    pub async fn helm(&self) -> Result<Command, ClusterError> {
        match &self.host {
            Host::Ours(machinery) => {
                let (profile, report) = (machinery.profile, self.report);
                let programs = blocking(move || programs::ensure(profile, &[Purpose::Helm], report)).await?;
                Ok(self.directly(programs.path("helm")?))
            }
            Host::Foreign(context) => {
                let mut command = Command::new("helm");
                command.args(["--kube-context", context]);
                Ok(command)
            }
        }
    }

    /// Runs `helm` and returns what it wrote.
    ///
    /// # Errors
    /// With what it said, if it failed.
    pub async fn run_helm(&self, arguments: &[&str]) -> Result<String, ClusterError> {
        let mut command = self.helm().await?;
        command.args(arguments);
        Ok(blocking(move || run::output(&mut command)).await?)
    }

    /// Whether the parts of the cluster can be reached: it is ours, and not only by a context.
    pub fn is_ours(&self) -> bool {
        matches!(self.host, Host::Ours(_))
    }

    /// Under which address the pods reach servers of this machine.
    ///
    /// # Errors
    /// If the cluster is not ours or has no node.
    pub fn machine_address(&self) -> Result<Ipv4Addr, ClusterError> {
        match self.ours("tell the machine's address")?.place {
            Place::Space { network, .. } => Ok(network.machine()),
            Place::Loopback { .. } => Err(ClusterError::NoNode("tell the machine's address")),
        }
    }

    /// Brings an image, or several, from an archive in OCI's or Docker's format to the node. Returns their names.
    ///
    /// # Errors
    /// If the archive cannot be read or names no image; for a cluster that is not ours, says how its images come to it.
    pub async fn import_image(&self, archive: &Path) -> Result<Vec<String>, ClusterError> {
        let remedy = format!(
            "bring the image there by its own means, for instance `kind load image-archive {}`",
            archive.display()
        );
        let machinery = match &self.host {
            Host::Ours(machinery) => machinery,
            Host::Foreign(_) => return Err(ClusterError::NotOurs("import an image", remedy)),
        };
        machinery.import(archive).await
    }

    /// The file that a part writes its log to.
    ///
    /// # Errors
    /// If the cluster is not ours.
    pub fn log(&self, part: Part) -> Result<PathBuf, ClusterError> {
        Ok(self.ours("find a log")?.folder.log(part.name()))
    }

    /// The audit log, if the cluster was started with a policy for one: one JSON object a line.
    ///
    /// # Errors
    /// If the cluster is not ours.
    pub fn audit_log(&self) -> Result<PathBuf, ClusterError> {
        Ok(self.ours("find the audit log")?.folder.join(parts::AUDIT_LOG))
    }

    /// Makes a process that `command` starts one of the cluster's: it ends with the cluster at the latest, also where the one who
    /// started it was killed.
    ///
    /// # Errors
    /// If the cluster is not ours.
    pub fn adopt(&self, command: &mut Command) -> Result<(), ClusterError> {
        command.env(process::MARK, self.ours("adopt a process")?.folder.path());
        Ok(())
    }

    /// Starts a command inside the cluster's namespaces, where the parts are: it sees their network, and ends with them.
    ///
    /// # Errors
    /// If the cluster is not ours or has no node, or the command does not start.
    pub fn spawn_inside(&self, mut command: Command) -> Result<Child, ClusterError> {
        let attempt = "start a command inside";
        self.adopt(&mut command)?;
        let Place::Space { space, .. } = self.ours(attempt)?.place else { return Err(ClusterError::NoNode(attempt)) };
        let program = command.get_program().to_string_lossy().into_owned();
        space.enter(|| command.spawn())?.map_err(|source| ClusterError::Inside { program, source })
    }

    /// Adds nodes that kwok plays, `kwok-0` and so on, and waits until all are ready.
    ///
    /// Beside a real node they keep ordinary pods off by the taint `kwok.x-k8s.io/node`.
    ///
    /// # Errors
    /// If kwok cannot be built or started, or the nodes do not get ready.
    pub async fn add_kwok_nodes(&self, count: usize) -> Result<(), ClusterError> {
        let machinery = self.ours("play nodes")?;
        let step = self.report.step(format!("{count} nodes played by kwok"));
        if machinery.living(Part::Kwok)?.is_none() {
            // Built in a thread of its own, for that may take minutes the first time.
            let (profile, report) = (machinery.profile, self.report);
            blocking(move || programs::ensure(profile, &[Purpose::Kwok], report)).await?;
            machinery.launch(Part::Kwok)?;
        }
        ready::add_kwok_nodes(machinery, &self.client, count).await?;
        step.done();
        Ok(())
    }

    /// Gives the real node `count` of a resource that it does not have, such as `nvidia.com/gpu`; 0 takes it away again.
    ///
    /// # Errors
    /// If the API refuses.
    pub async fn set_extended_resource(&self, resource: &str, count: u32) -> Result<(), ClusterError> {
        let nodes: Api<Node> = Api::all(self.client());
        let amount = json!({ resource: count.to_string() });
        let patch = Patch::Merge(json!({"status": {"capacity": amount, "allocatable": amount}}));
        let node = self.node_name().await?;
        nodes
            .patch_status(&node, &PatchParams::default(), &patch)
            .await
            .map_err(api_error("change the node's resources"))?;
        Ok(())
    }

    /// The real node: ours, or the first of a cluster that is not ours.
    async fn node_name(&self) -> Result<String, ClusterError> {
        if self.is_ours() {
            return Ok(NODE.to_owned());
        }
        let nodes: Api<Node> = Api::all(self.client());
        let list = nodes.list(&Default::default()).await.map_err(api_error("list nodes"))?;
        list.items
            .into_iter()
            .find_map(|node| node.metadata.name)
            .ok_or(ClusterError::NoNode("change a node's resources"))
    }

    fn ours(&self, attempt: &'static str) -> Result<&Machinery, ClusterError> {
        match &self.host {
            Host::Ours(machinery) => Ok(machinery),
            Host::Foreign(_) => Err(ClusterError::NotOurs(attempt, "its parts run elsewhere".to_owned())),
        }
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        let owned = matches!(&self.host, Host::Ours(machinery) if machinery.owned.load(Ordering::Relaxed));
        if owned && let Err(error) = self.end(std::thread::panicking()) {
            self.report.say(&crate::report::chain(&error));
        }
    }
}

impl Machinery {
    fn launch(&self, part: Part) -> Result<Process, ClusterError> {
        if part != Part::Kwok {
            return start::launch(&self.folder, &self.place, &self.programs, part);
        }
        // Few clusters want it, so it is not among the programs of each.
        let programs = programs::ensure(self.profile, &[Purpose::Kwok], Report::silent())?;
        let stages = run::output(&mut Command::new(programs.path("kwok-stages")?))?;
        self.folder.write("config/kwok.yaml", &stages)?;
        start::launch(&self.folder, &self.place, &programs, part)
    }

    async fn import(&self, archive: &Path) -> Result<Vec<String>, ClusterError> {
        let Place::Space { space, .. } = self.place else { return Err(ClusterError::NoNode("import an image")) };
        let archive = archive.to_owned();
        blocking(move || start::import(&space, &archive)).await
    }
}

impl Place {
    fn has_node(&self) -> bool {
        matches!(self, Self::Space { .. })
    }
}

/// Checks the machine and builds what is needed.
async fn prepare(options: &Options) -> Result<Programs, ClusterError> {
    let (purposes, profile, report) = (options.purposes(), options.profile, options.report);
    blocking(move || {
        requirements::ensure(&purposes, report)?;
        Ok(programs::ensure(profile, &purposes, report)?)
    })
    .await
}

async fn client_of(kubeconfig: &Path) -> Result<Client, ClusterError> {
    let error = |source| ClusterError::Kubeconfig { from: kubeconfig.display().to_string(), source: Box::new(source) };
    let read = kube::config::Kubeconfig::read_from(kubeconfig).map_err(error)?;
    let mut config = kube::Config::from_custom_kubeconfig(read, &Default::default()).await.map_err(error)?;
    // The cluster is on this machine, whatever proxy the environment names for others.
    config.proxy_url = None;
    Client::try_from(config).map_err(api_error("make a client"))
}

fn default_kubeconfig() -> PathBuf {
    PathBuf::from(std::env::var_os("HOME").unwrap_or_default()).join(".kube/config")
}

fn listed(folder: &Folder) -> Result<Listed, ClusterError> {
    let api = folder.load()?.map(|state| parts::Addresses::of(&state.place).api_url());
    let mut running = Vec::new();
    for part in Part::ALL {
        if folder.load_process(part)?.is_some_and(Process::is_alive) {
            running.push(part);
        }
    }
    Ok(Listed { name: folder.name().to_owned(), api, running })
}

fn remove(folder: &Folder, keep_logs: bool) -> Result<(), ClusterError> {
    remains::remove(folder, keep_logs)
        .map_err(|source| ClusterError::Remains { name: folder.name().to_owned(), source })
}

/// Runs what takes long and does not await on a thread where nothing waits for it.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        // The work panicked; this is the same panic, carried on.
        Err(error) => std::panic::resume_unwind(error.into_panic()),
    }
}
