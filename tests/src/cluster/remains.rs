//! Ends a cluster and removes what is left of one, whoever started it and however far it came.
//!
//! Nothing here relies on an orderly end before. Processes are found by their mark and, with a node, by the first process of their
//! namespaces; groups by their name; the rest lies in the folder.

use std::collections::BTreeSet;
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::Signal;

use super::cgroups::{self, CgroupError};
use super::folder::{Folder, FolderError, Place};
use super::network::NetworkError;
use super::process::{self, Process, SignalError};
use crate::run::RunError;

/// 20 s: the kernel takes hundreds of containers down in less.
const LIMIT: Duration = Duration::from_secs(20);
const PAUSE: Duration = Duration::from_millis(10);

/// What could not be removed.
#[derive(Debug, thiserror::Error)]
pub enum RemainsError {
    /// Killed, and still there.
    #[error("processes {} do not end although they were killed", pids(.0))]
    Processes(Vec<i32>),
    /// Not even killed.
    #[error(transparent)]
    Signal(#[from] SignalError),
    /// The cable.
    #[error("cannot take the cluster's cable away")]
    Network(#[from] NetworkError),
    /// A group.
    #[error(transparent)]
    Cgroup(#[from] CgroupError),
    /// The folder.
    #[error(transparent)]
    Folder(#[from] FolderError),
}

impl From<RunError> for RemainsError {
    fn from(error: RunError) -> Self {
        Self::Network(error.into())
    }
}

/// Whether anything of the cluster is there.
pub(crate) fn exist(folder: &Folder) -> bool {
    folder.path().exists()
        || !cgroups::existing(&folder.cgroup()).is_empty()
        || !process::marked(folder.path()).is_empty()
}

/// Removes everything of the cluster; with `keep_logs` all but its logs. Does nothing if there is nothing.
pub(crate) fn remove(folder: &Folder, keep_logs: bool) -> Result<(), RemainsError> {
    // A state that cannot be read is no reason to leave its processes running.
    let place = folder.load().ok().flatten().map(|state| state.place);
    end_processes(folder, place.as_ref())?;
    if let Some(Place::Space { network, .. }) = place {
        network.disconnect()?;
    }
    within_the_limit(|| cgroups::remove(&folder.cgroup()))?;
    // A folder that was mounted inside is let go of a moment after the last process has ended.
    within_the_limit(|| folder.remove(keep_logs))?;
    Ok(())
}

fn end_processes(folder: &Folder, place: Option<&Place>) -> Result<(), RemainsError> {
    let begun = Instant::now();
    let mut killed = BTreeSet::new();
    loop {
        // One that is ending shows no mark any more: it is waited for because it was killed.
        killed.retain(|process: &Process| process.is_alive());
        let mut left = living(folder, place);
        left.extend(killed.iter().filter(|process| !left.contains(process)).copied().collect::<Vec<_>>());
        if left.is_empty() {
            return Ok(());
        }
        if begun.elapsed() > LIMIT {
            return Err(RemainsError::Processes(left.iter().map(|process| process.pid()).collect()));
        }
        // Again in every round: one of them may have started another meanwhile.
        for process in left {
            process.signal(Signal::KILL)?;
            killed.insert(process);
        }
        thread::sleep(PAUSE);
    }
}

/// The first process of the namespaces comes first, because its death takes the others along.
fn living(folder: &Folder, place: Option<&Place>) -> Vec<Process> {
    let mut processes = process::marked(folder.path());
    if let Some(Place::Space { space, .. }) = place {
        processes.retain(|process| *process != space.first());
        if space.first().is_alive() {
            processes.insert(0, space.first());
        }
    }
    processes
}

fn within_the_limit<E>(mut attempt: impl FnMut() -> Result<(), E>) -> Result<(), E> {
    let begun = Instant::now();
    loop {
        match attempt() {
            Err(_) if begun.elapsed() < LIMIT => thread::sleep(PAUSE),
            result => return result,
        }
    }
}

fn pids(pids: &[i32]) -> String {
    pids.iter().map(i32::to_string).collect::<Vec<_>>().join(", ")
}
