//! The control groups under which the kubelet keeps its pods.
//!
//! They are the one thing that does not go away with the namespaces, so they are made and removed by name: one group per cluster,
//! in every hierarchy that the machine has mounted (version 1, version 2 or both).

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// A group could not be made or removed.
#[derive(Debug, thiserror::Error)]
#[error("cannot {attempt} the control group {}", path.display())]
pub struct CgroupError {
    attempt: &'static str,
    path: PathBuf,
    #[source]
    source: io::Error,
}

/// How much processor time the pods get where others want it too, in the terms of version 1 and of version 2: as much as eight
/// busy threads that are in no group. A node has its machine for itself; this one shares it with the tests, and with one thread's
/// share for all pods together their probes would time out.
const SHARES: (&str, &str) = ("cpu.shares", "8192");
const WEIGHT: (&str, &str) = ("cpu.weight", "800");

/// Makes the group `name` everywhere.
pub(crate) fn create(name: &str) -> Result<(), CgroupError> {
    for root in hierarchies() {
        let path = root.join(name);
        match fs::create_dir(&path) {
            Err(source) if source.kind() != io::ErrorKind::AlreadyExists => {
                return Err(CgroupError { attempt: "create", path, source });
            }
            _ => allow_children(&root, &path),
        }
    }
    Ok(())
}

/// Removes the group `name` everywhere, with all below. Its processes must have ended.
pub(crate) fn remove(name: &str) -> Result<(), CgroupError> {
    for path in existing(name) {
        remove_tree(&path).map_err(|source| CgroupError { attempt: "remove", path, source })?;
    }
    Ok(())
}

/// Where the group `name` is.
pub(crate) fn existing(name: &str) -> Vec<PathBuf> {
    hierarchies().into_iter().map(|root| root.join(name)).filter(|path| path.exists()).collect()
}

/// Everything that a group needs before it may have members and groups below, and its share of the processors.
///
/// What cannot be written here is not there on this machine, and the kubelet says what it misses.
fn allow_children(root: &Path, group: &Path) {
    // Version 1: a group of this hierarchy takes no process until it knows its processors and its memory.
    for setting in ["cpuset.cpus", "cpuset.mems"] {
        if let Ok(value) = fs::read(root.join(setting)) {
            let _ = fs::write(group.join(setting), value);
        }
    }
    // Of the one that does not exist here, there is no file to write to.
    for (setting, value) in [SHARES, WEIGHT] {
        let _ = fs::write(group.join(setting), value);
    }
    // Version 2: a controller works below a group only if the group hands it down.
    for parent in [root, group] {
        for controller in fs::read_to_string(parent.join("cgroup.controllers")).unwrap_or_default().split_whitespace() {
            let _ = fs::write(parent.join("cgroup.subtree_control"), format!("+{controller}"));
        }
    }
}

fn remove_tree(group: &Path) -> io::Result<()> {
    for entry in fs::read_dir(group)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            remove_tree(&entry.path())?;
        }
    }
    fs::remove_dir(group)
}

fn hierarchies() -> Vec<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    mounts.lines().filter_map(mount_point_of_cgroup).collect()
}

fn mount_point_of_cgroup(line: &str) -> Option<PathBuf> {
    let mut fields = line.split(' ').skip(1);
    let path = fields.next()?;
    matches!(fields.next()?, "cgroup" | "cgroup2").then(|| PathBuf::from(path))
}
