//! Processes, each known by its pid and its time of start together, so that a recycled pid is never mistaken for it.

use std::ffi::OsStr;
use std::fs;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use serde::{Deserialize, Serialize};

/// The environment variable that every process of a cluster is born with. Its value is the cluster's folder.
pub(crate) const MARK: &str = "ORTOLAN_CLUSTER";

/// How often nothing must be found before there is nothing, and how long between: an exec takes a fraction of it.
const LOOKS: u32 = 5;
const BETWEEN_LOOKS: Duration = Duration::from_millis(5);

/// 2 s: a large program comes from a busy disk, and one that really has ended is told of soon enough.
const LONGEST_EXEC: Duration = Duration::from_secs(2);

/// A process that lives, or did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(crate) struct Process {
    pid: i32,
    /// Clock ticks from the machine's start to the process's.
    started: u64,
}

/// A signal could not be sent, for another reason than that the process is gone.
#[derive(Debug, thiserror::Error)]
#[error("cannot send a signal to process {pid}")]
pub struct SignalError {
    pid: i32,
    #[source]
    source: rustix::io::Errno,
}

impl Process {
    /// The process that has this pid now.
    pub(crate) fn with_pid(pid: i32) -> Option<Self> {
        Stat::of(pid).map(|stat| Self { pid, started: stat.started })
    }

    pub(crate) fn pid(self) -> i32 {
        self.pid
    }

    /// Whether it runs. One that has ended and waits for its parent to notice does not.
    pub(crate) fn is_alive(self) -> bool {
        Stat::of(self.pid).is_some_and(|stat| stat.started == self.started && !stat.has_ended())
    }

    /// Whether it is stopped by a signal.
    pub(crate) fn is_frozen(self) -> bool {
        Stat::of(self.pid).is_some_and(|stat| stat.started == self.started && stat.state == 'T')
    }

    fn leads_a_session(self) -> bool {
        Stat::of(self.pid).is_some_and(|stat| stat.session == self.pid)
    }

    /// Sends `signal`; `false` says that the process had gone already.
    pub(crate) fn signal(self, signal: Signal) -> Result<bool, SignalError> {
        let Some(descriptor) = self.open()? else { return Ok(false) };
        match pidfd_send_signal(descriptor, signal) {
            Ok(()) => Ok(true),
            Err(rustix::io::Errno::SRCH) => Ok(false),
            Err(source) => Err(SignalError { pid: self.pid, source }),
        }
    }

    /// A descriptor that means this process, whatever becomes of its pid.
    pub(crate) fn open(self) -> Result<Option<OwnedFd>, SignalError> {
        let Some(pid) = Pid::from_raw(self.pid) else { return Ok(None) };
        match pidfd_open(pid, PidfdFlags::empty()) {
            // Compared after opening: from here on the descriptor cannot come to mean another process.
            Ok(descriptor) => Ok(self.is_alive().then_some(descriptor)),
            Err(rustix::io::Errno::SRCH) => Ok(None),
            Err(source) => Err(SignalError { pid: self.pid, source }),
        }
    }
}

/// Every living process that was born with the mark of the cluster in `folder`.
///
/// Whatever a killed harness did not write down is found here: the mark is inherited, and nothing else carries it.
pub(crate) fn marked(folder: &Path) -> Vec<Process> {
    for _ in 1..LOOKS {
        let found: Vec<Process> = born_with(MARK, folder.as_os_str()).collect();
        if !found.is_empty() {
            return found;
        }
        thread::sleep(BETWEEN_LOOKS);
    }
    born_with(MARK, folder.as_os_str()).collect()
}

/// Waits for the process that was born with `variable` set to `value` to lead a session of its own. `None` if it has ended before.
///
/// The variable's value is given to one process alone, which may have children.
pub(crate) fn leader_born_with(variable: &str, value: &str) -> Option<Process> {
    // A process in the middle of an exec shows no environment: looks that find nothing are no proof until that must be over.
    let mut seen = Instant::now();
    while seen.elapsed() < LONGEST_EXEC {
        let found: Vec<Process> = born_with(variable, OsStr::new(value)).collect();
        if let Some(leader) = found.iter().find(|process| process.leads_a_session()) {
            return Some(*leader);
        }
        if !found.is_empty() {
            seen = Instant::now();
        }
        thread::sleep(BETWEEN_LOOKS);
    }
    None
}

fn born_with(variable: &str, value: &OsStr) -> impl Iterator<Item = Process> {
    let wanted = [variable.as_bytes(), b"=", value.as_encoded_bytes()].concat();
    all_pids().filter_map(Process::with_pid).filter(move |process| process.is_alive() && carries(*process, &wanted))
}

fn carries(process: Process, wanted: &[u8]) -> bool {
    // A process that ended meanwhile, or that belongs to somebody else, cannot be read and is not ours.
    let environment = fs::read(format!("/proc/{}/environ", process.pid)).unwrap_or_default();
    environment.split(|byte| *byte == 0).any(|variable| variable == wanted)
}

fn all_pids() -> impl Iterator<Item = i32> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok())
}

/// What is read of `/proc/PID/stat`.
struct Stat {
    state: char,
    session: i32,
    threads: u32,
    started: u64,
}

impl Stat {
    /// The first thread of a process may be gone before the others are, which hold its files and ports until then.
    fn has_ended(&self) -> bool {
        matches!(self.state, 'Z' | 'X') && self.threads <= 1
    }

    fn of(pid: i32) -> Option<Self> {
        Self::parse(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
    }

    fn parse(line: &str) -> Option<Self> {
        // The name stands in brackets and may hold anything, brackets too; the fields begin after the last one.
        let (_, fields) = line.rsplit_once(')')?;
        let mut fields = fields.split_whitespace();
        let state = fields.next()?.chars().next()?;
        // The state was field 3 of the line; the session is field 6, the number of threads field 20, the time of start field 22.
        let session = fields.nth(2)?.parse().ok()?;
        let threads = fields.nth(13)?.parse().ok()?;
        let started = fields.nth(1)?.parse().ok()?;
        Some(Self { state, session, threads, started })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_with_brackets_and_spaces_does_not_shift_the_fields() {
        let line = "42 (a) b (c)) S 1 42 41 0 -1 4194560 1 0 0 0 0 0 0 0 20 0 1 0 777 1 1";
        let stat = Stat::parse(line).unwrap();
        assert_eq!((stat.state, stat.session, stat.threads, stat.started), ('S', 41, 1, 777));
    }

    #[test]
    fn a_process_has_ended_when_its_last_thread_has() {
        let ended = |state, threads| Stat { state, session: 1, threads, started: 1 }.has_ended();
        assert!(ended('Z', 0) && ended('Z', 1));
        assert!(!ended('Z', 7) && !ended('S', 1));
    }

    #[test]
    fn a_recycled_pid_is_another_process() {
        let this = Process::with_pid(std::process::id().try_into().unwrap()).unwrap();
        let earlier = Process { started: this.started - 1, ..this };
        assert!(this.is_alive());
        assert!(!earlier.is_alive());
        assert!(!earlier.signal(Signal::KILL).unwrap());
    }
}
