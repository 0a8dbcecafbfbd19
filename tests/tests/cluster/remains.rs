//! What is left behind: nothing, whoever ended the cluster and however.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use k8s_openapi::api::core::v1::Namespace;
use kube::api::Api;
use ortolan_tests::cluster::{Cluster, Options, clusters_folder};

use crate::fixture::{Failure, Fixture, Outcome, probe_archive, tell};
use crate::node::create_server;

/// The command under test.
const CLUSTER: &str = env!("CARGO_BIN_EXE_cluster");

pub(crate) async fn side_by_side(fixture: &Fixture) -> Outcome {
    let first = fixture.node().await?;
    let before = Machine::without("test-second")?;
    let second = Cluster::up(&Options::named("test-second")).await?;
    assert_ne!(first.machine_address()?, second.machine_address()?);
    second.run_kubectl(&["create", "namespace", "only-in-the-second"]).await?;
    let namespaces: Api<Namespace> = Api::all(first.client());
    assert!(namespaces.get_opt("only-in-the-second").await?.is_none());
    second.import_image(&probe_archive()?).await?;
    // Both have the first address of their pod ranges, and a pod of the same name.
    create_server(&second, "twin", "second").await?;
    create_server(first, "twin", "first").await?;
    let members = members("test-second")?;
    let names: BTreeSet<&str> = members.iter().map(|member| member.name.as_str()).collect();
    assert!(names.is_superset(&["kubelet", "containerd-shim", "program"].into()), "found only {members:?}");
    second.down()?;
    let answer = first.run_kubectl(&["exec", "twin", "--", "/program", "get", "http://127.0.0.1:8080/"]).await?;
    assert_eq!(answer, "first");
    crate::node::delete_pod(first, "twin").await?;
    assert_nothing_left("test-second", &members, &before)
}

/// Kills the harness at several points on its way up, and once when it is done.
pub(crate) async fn killed_harness(_: &Fixture) -> Outcome {
    let before = Machine::without("test-killed")?;
    for delay in [50, 150, 300, 1000, 4500].map(Duration::from_millis) {
        let mut harness = up_command("test-killed").stdout(Stdio::null()).stderr(Stdio::null()).spawn()?;
        tokio::time::sleep(delay).await;
        harness.kill()?;
        harness.wait()?;
        tell(&format!("killed after {delay:?}, {} processes left", members("test-killed")?.len()));
    }
    let status = up_command("test-killed").status()?;
    assert!(status.success(), "cluster up after a killed one: {status}");
    let members = members("test-killed")?;
    let cluster = Cluster::open(&clusters_folder(), "test-killed", ortolan_tests::report::Report::silent()).await?;
    cluster.run_kubectl(&["get", "nodes"]).await?;
    let status = Command::new(CLUSTER).args(["down", "--name", "test-killed"]).status()?;
    assert!(status.success(), "cluster down: {status}");
    assert_nothing_left("test-killed", &members, &before)
}

fn up_command(name: &str) -> Command {
    let mut command = Command::new(CLUSTER);
    command.args(["up", "--name", name]);
    command
}

fn assert_nothing_left(name: &str, members: &BTreeSet<Member>, before: &Machine) -> Outcome {
    let still_there: Vec<_> = members.iter().filter(|member| Member::of(member.pid).as_ref() == Some(member)).collect();
    assert!(still_there.is_empty(), "processes are left: {still_there:?}");
    assert!(self::members(name)?.is_empty());
    assert!(!clusters_folder().join(name).exists(), "the folder is left");
    assert!(!clusters_folder().join(name).with_extension("lock").exists(), "the lock is left");
    let after = Machine::now(name)?;
    assert_eq!(*before, after);
    Ok(())
}

/// What a cluster could change on the machine, beside its processes and its folder.
#[derive(Debug, PartialEq, Eq)]
struct Machine {
    links: BTreeSet<String>,
    routes: String,
    rules: String,
    mounts: BTreeSet<String>,
    groups: BTreeSet<PathBuf>,
    fixed_paths: Vec<&'static str>,
    settings: Vec<String>,
}

impl Machine {
    /// Before the cluster of this name comes. A run of the tests that was killed may have left one.
    fn without(name: &str) -> Result<Self, Failure> {
        Cluster::remove(&clusters_folder(), name)?;
        Self::now(name)
    }

    /// With the groups of the cluster of this name; others may come and go beside it.
    fn now(name: &str) -> Result<Self, Failure> {
        let settings = ["vm/overcommit_memory", "vm/panic_on_oom", "kernel/panic", "kernel/panic_on_oops"];
        let settings =
            settings.iter().map(|setting| fs::read_to_string(format!("/proc/sys/{setting}")).unwrap_or_default());
        let fixed = [
            "/var/lib/kubelet",
            "/var/lib/cni",
            "/var/lib/containerd",
            "/run/containerd",
            "/run/netns/cni",
            "/var/log/pods",
            "/var/log/containers",
            "/opt/containerd",
        ];
        Ok(Self {
            links: links()?,
            routes: output("ip", &["route", "show", "table", "all"])?,
            rules: output("nft", &["list", "ruleset"])?,
            mounts: fs::read_to_string("/proc/self/mounts")?.lines().map(str::to_owned).collect(),
            groups: groups(Path::new("/sys/fs/cgroup"), &format!("ortolan-{name}-"), 2),
            fixed_paths: fixed.into_iter().filter(|path| Path::new(path).exists()).collect(),
            settings: settings.collect(),
        })
    }
}

/// Those of this process's network; /sys may show another's.
fn links() -> Result<BTreeSet<String>, Failure> {
    let table = fs::read_to_string("/proc/self/net/dev")?;
    Ok(table.lines().filter_map(|line| Some(line.split_once(':')?.0.trim().to_owned())).collect())
}

fn names_in(folder: &str) -> Result<BTreeSet<String>, Failure> {
    Ok(fs::read_dir(folder)?.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned()).collect())
}

/// The groups whose names begin so, wherever the hierarchies are mounted.
fn groups(folder: &Path, beginning: &str, depth: usize) -> BTreeSet<PathBuf> {
    let mut found = BTreeSet::new();
    for entry in fs::read_dir(folder).into_iter().flatten().flatten().filter(|entry| entry.path().is_dir()) {
        if entry.file_name().to_string_lossy().starts_with(beginning) {
            found.insert(entry.path());
        } else if depth > 1 {
            found.extend(groups(&entry.path(), beginning, depth - 1));
        }
    }
    found
}

fn output(program: &str, arguments: &[&str]) -> Result<String, Failure> {
    Ok(String::from_utf8_lossy(&Command::new(program).args(arguments).output()?.stdout).into_owned())
}

/// A process of a cluster: one that carries its mark, lives in the process namespace of one that does, or belongs to a pod.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Member {
    pid: u32,
    started: String,
    name: String,
}

impl Member {
    fn of(pid: u32) -> Option<Self> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        let (head, fields) = stat.rsplit_once(')')?;
        let fields: Vec<&str> = fields.split_whitespace().collect();
        let (state, started) = (*fields.first()?, (*fields.get(19)?).to_owned());
        // Z: it has ended, and its parent has not looked yet.
        (state != "Z").then_some(())?;
        Some(Self { pid, started, name: head.split_once('(')?.1.to_owned() })
    }
}

fn members(name: &str) -> Result<BTreeSet<Member>, Failure> {
    let mark = format!("ORTOLAN_CLUSTER={}", clusters_folder().join(name).display());
    let own = fs::read_link("/proc/self/ns/pid")?;
    let pids: Vec<u32> = names_in("/proc")?.iter().filter_map(|name| name.parse().ok()).collect();
    let marked = |pid: &u32| {
        let environment = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
        environment.split(|byte| *byte == 0).any(|variable| variable == mark.as_bytes())
    };
    let marked: Vec<u32> = pids.iter().copied().filter(marked).collect();
    let namespaces: BTreeSet<_> =
        marked.iter().filter_map(|pid| namespace_of(*pid)).filter(|space| *space != own).collect();
    let group = format!("/ortolan-{name}-");
    let in_pod = |pid: &u32| fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default().contains(&group);
    let in_namespace = |pid: &u32| namespace_of(*pid).is_some_and(|space| namespaces.contains(&space));
    let inside = pids.iter().filter(|pid| marked.contains(pid) || in_namespace(pid) || in_pod(pid));
    Ok(inside.filter_map(|pid| Member::of(*pid)).collect())
}

/// Nothing of a process that has ended by now, nor of one that this process may not look into.
fn namespace_of(pid: u32) -> Option<PathBuf> {
    fs::read_link(format!("/proc/{pid}/ns/pid")).ok()
}
