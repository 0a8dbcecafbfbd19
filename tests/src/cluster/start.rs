//! Starts a cluster step by step.

use std::fs::{self, File};
use std::io;
use std::net::{Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use kube::Client;

use super::config::{self, CONTAINERD_SOCKET, PAUSE_IMAGE};
use super::folder::{Folder, FolderError, Place, State};
use super::network::Network;
use super::parts::{self, Addresses, Part};
use super::process::{self, MARK, Process};
use super::space::Space;
use super::{Cluster, ClusterError, Host, Machinery, Options, blocking, cgroups, client_of, image, ready};
use crate::programs::Programs;
use crate::report::Report;
use crate::requirements::{Missing, RequirementError};
use crate::run;

/// How much of a log is shown when a part fails.
const TAIL_LINES: usize = 15;

/// The environment variable that tells one start of a part from all others.
const LAUNCH: &str = "ORTOLAN_LAUNCH";

/// The PATH of all parts, whatever that of the harness: containerd finds its shim and runc by it.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// How far the parts' memory may grow before garbage is collected, in percent: a hundred megabytes more save a tenth of the API
/// server's time, and processors are what is scarce.
const GARBAGE: &str = "400";

/// Starts the cluster in a folder that is not there yet. If it fails, the caller removes what there is by then.
pub(crate) async fn start(options: &Options, folder: &Folder, programs: Programs) -> Result<Cluster, ClusterError> {
    let report = options.report;
    let step = report.step("keys and configuration");
    folder.create(&["config/cni", "log/pods", "pki", "process", "containerd", "kubelet"])?;
    let place = if options.node { place_in_space(folder, &programs)? } else { place_on_loopback()? };
    folder.save(&State { profile: options.profile.name.to_owned(), place })?;
    config::write_access(folder, &Addresses::of(&place))?;
    if let Some(policy) = &options.audit {
        folder.write(parts::AUDIT_POLICY, &policy.to_string())?;
    }
    step.done();
    let kubeconfig = folder.join("admin.kubeconfig");
    let client = client_of(&kubeconfig).await?;
    let machinery =
        Machinery { folder: folder.clone(), place, profile: options.profile, programs, owned: AtomicBool::new(false) };
    start_control_plane(&machinery, &client, report).await?;
    if let Place::Space { network, .. } = place {
        start_node(&machinery, &client, network, report).await?;
    }
    machinery.owned.store(true, Ordering::Relaxed);
    Ok(Cluster { client, kubeconfig, host: Host::Ours(Box::new(machinery)), report })
}

async fn start_control_plane(machinery: &Machinery, client: &Client, report: Report) -> Result<(), ClusterError> {
    let step = report.step("etcd and kube-apiserver");
    machinery.launch(Part::Etcd)?;
    machinery.launch(Part::ApiServer)?;
    if let Place::Space { space, network } = machinery.place {
        // containerd does not need the API: it starts, and gets the pause image, while the API does.
        let cni_folder = parts::cni_folder().ok_or_else(no_cni)?;
        config::write_node(&machinery.folder, network, &cni_folder)?;
        machinery.launch(Part::Containerd)?;
        tokio::try_join!(ready::api(machinery, client), import_pause(machinery, space))?;
    } else {
        ready::api(machinery, client).await?;
    }
    step.done();
    let step = report.step("kube-controller-manager and kube-scheduler");
    machinery.launch(Part::ControllerManager)?;
    machinery.launch(Part::Scheduler)?;
    if machinery.place.has_node() {
        // The node takes its time too, and then both are waited for together.
        machinery.launch(Part::Kubelet)?;
        machinery.launch(Part::KubeProxy)?;
    }
    ready::controllers(machinery, client).await?;
    step.done();
    Ok(())
}

async fn start_node(
    machinery: &Machinery,
    client: &Client,
    network: Network,
    report: Report,
) -> Result<(), ClusterError> {
    let step = report.step("kubelet");
    ready::node(machinery, client).await?;
    step.done();
    let step = report.step("kube-proxy and coredns");
    ready::introduce_dns(client, network).await?;
    machinery.launch(Part::CoreDns)?;
    ready::dns(machinery, network).await?;
    step.done();
    Ok(())
}

/// Starts a part, and writes down which process it is.
///
/// It is no child of this process: one that this process never waited for would linger after its end, and keep the namespaces from
/// ending with it. So a command in between starts it and ends; the first process inside takes it over, or that of the machine.
pub(crate) fn launch(folder: &Folder, place: &Place, programs: &Programs, part: Part) -> Result<Process, ClusterError> {
    let program = match part {
        Part::Containerd => PathBuf::from("containerd"),
        _ => programs.path(part.name())?.to_owned(),
    };
    let launch = unique(part);
    let mut command = in_own_session(folder, &["--fork"], &program);
    command.args(part.arguments(folder, place)).env(LAUNCH, &launch);
    let error = |source| ClusterError::Start { part, source };
    let log = open_log(&folder.log(part.name())).map_err(error)?;
    command.stdout(log.try_clone().map_err(error)?).stderr(log);
    match place {
        Place::Loopback { .. } => command.status(),
        Place::Space { space, .. } => space.enter(|| command.status())?,
    }
    .map_err(error)?;
    let process = process::leader_born_with(LAUNCH, &launch).ok_or_else(|| ended(folder, part))?;
    folder.save_process(part, process)?;
    Ok(process)
}

/// Names a part that does not run, with the end of its log.
pub(crate) fn ended(folder: &Folder, part: Part) -> ClusterError {
    let log = folder.log(part.name());
    ClusterError::Ended { part, tail: tail_of(&log), log }
}

/// Different for each start of a part on this machine.
fn unique(part: Part) -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    format!("{part}-{}-{}", std::process::id(), now.as_nanos())
}

/// A command that does not end with the terminal, and carries the cluster's mark and nothing else of this process's environment.
fn in_own_session(folder: &Folder, how: &[&str], program: &Path) -> Command {
    let mut command = Command::new("setsid");
    command.args(how).arg(program).stdin(Stdio::null());
    command.env_clear().env("PATH", PATH).env("HOME", folder.path()).env(MARK, folder.path()).env("GOGC", GARBAGE);
    command
}

fn place_on_loopback() -> Result<Place, ClusterError> {
    let error = |source| ClusterError::Start { part: Part::ApiServer, source };
    // All are held before one is let go, so they differ.
    let held = [(); 3].map(|()| TcpListener::bind((Ipv4Addr::LOCALHOST, 0)));
    let mut ports = Vec::new();
    for listener in &held {
        let listener = listener.as_ref().map_err(|source| error(source.kind().into()))?;
        ports.push(listener.local_addr().map_err(error)?.port());
    }
    Ok(Place::Loopback { api: ports[0], etcd: ports[1], etcd_peer: ports[2] })
}

fn place_in_space(folder: &Folder, programs: &Programs) -> Result<Place, ClusterError> {
    cgroups::create(&folder.cgroup())?;
    let mut first = in_own_session(folder, &[], programs.path("pause")?);
    // Seen in a list of processes, it tells which cluster it holds.
    let space = Space::create(folder.path(), first.arg(folder.name()))?;
    let network = Network::connect(&space, folder.path())?;
    Ok(Place::Space { space, network })
}

async fn import_pause(machinery: &Machinery, space: Space) -> Result<(), ClusterError> {
    let archive = machinery.folder.join("pause.tar");
    image::of_one_program(&archive, PAUSE_IMAGE, machinery.programs.path("pause")?)?;
    ready::containerd(machinery, space).await?;
    blocking(move || import(&space, &archive)).await.map(drop)
}

/// Asks containerd something by its own command.
pub(crate) fn ctr(space: &Space, arguments: &[&str], stdin: Stdio) -> Result<String, ClusterError> {
    let mut command = Command::new("ctr");
    command.args(["--address", CONTAINERD_SOCKET, "--namespace", "k8s.io"]).args(arguments).stdin(stdin);
    Ok(space.enter(|| run::output(&mut command))??)
}

/// Imports what is in `archive` and returns the names of the images.
pub(crate) fn import(space: &Space, archive: &Path) -> Result<Vec<String>, ClusterError> {
    let file_error = |source| FolderError::File { attempt: "read", path: archive.to_owned(), source };
    // Handed over open: inside, some folders of the machine are hidden.
    let file = File::open(archive).map_err(file_error)?;
    let said = ctr(space, &["images", "import", "-"], file.into())?;
    // One line for each image: unpacking NAME (DIGEST)...done
    let names = said.lines().filter_map(|line| line.strip_prefix("unpacking ")?.split(' ').next());
    let names: Vec<String> = names.map(str::to_owned).collect();
    if names.is_empty() { Err(ClusterError::NamelessImage(archive.to_owned())) } else { Ok(names) }
}

/// Opened for appending, so that a part that is started again goes on where it stopped.
fn open_log(path: &Path) -> io::Result<File> {
    File::options().create(true).append(true).open(path)
}

/// The last lines of a log; empty if there is none.
pub(crate) fn tail_of(log: &Path) -> String {
    let bytes = fs::read(log).unwrap_or_default();
    let text = String::from_utf8_lossy(&bytes);
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(TAIL_LINES)..].join("\n")
}

fn no_cni() -> ClusterError {
    RequirementError::Missing(vec![Missing::Package("containernetworking-plugins")]).into()
}
