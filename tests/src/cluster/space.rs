//! The namespaces that a cluster with a node lives in: network, mounts and processes of its own.
//!
//! Their first process holds them open. When it is killed the kernel ends everything inside, containers and their shims too, and
//! with the last process go the mounts, the interfaces and the firewall rules. So a cluster ends completely by the death of one
//! process, whatever became of the harness.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, setns, unshare};
use serde::{Deserialize, Serialize};

use super::process::{Process, SignalError};
use crate::run::{self, RunError};

/// Where the cluster's folder is seen inside. Short, because the path of a socket may have 107 bytes and no more.
pub(crate) const INSIDE: &str = "/run/ortolan";

/// Settings of the whole machine that a kubelet writes. Inside, copies lie over them.
const SHIELDED: [&str; 6] = [
    "/proc/sys/vm/overcommit_memory",
    "/proc/sys/vm/panic_on_oom",
    "/proc/sys/kernel/panic",
    "/proc/sys/kernel/panic_on_oops",
    "/proc/sys/kernel/keys/root_maxkeys",
    "/proc/sys/kernel/keys/root_maxbytes",
];

/// Why there are no namespaces, or no way into them.
#[derive(Debug, thiserror::Error)]
pub enum SpaceError {
    /// A call to the kernel.
    #[error("cannot {attempt}")]
    Kernel {
        /// What was attempted.
        attempt: &'static str,
        /// What the kernel said.
        #[source]
        source: nix::Error,
    },
    /// A mount.
    #[error("cannot mount {what} on {}", on.display())]
    Mount {
        /// The source or type.
        what: String,
        /// The mount point.
        on: PathBuf,
        /// What the kernel said.
        #[source]
        source: nix::Error,
    },
    /// A file or folder.
    #[error("cannot {attempt} {}", path.display())]
    File {
        /// What was attempted.
        attempt: &'static str,
        /// On what.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// A command that sets the space up.
    #[error("a command inside the namespaces failed")]
    Command(#[from] RunError),
    /// The first process could not be looked at.
    #[error(transparent)]
    Signal(#[from] SignalError),
    /// The process that holds the namespaces has ended, and they with it.
    #[error("the cluster's namespaces are gone: their first process (pid {0}) has ended")]
    Gone(i32),
    /// The thread that was to work inside ended early.
    #[error("the thread that works inside the namespaces panicked")]
    Panicked,
}

/// The namespaces, known by their first process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Space {
    first: Process,
}

impl Space {
    /// Makes the namespaces, with `folder` seen at [`INSIDE`]. `first` is the command of the process that holds them.
    pub(crate) fn create(folder: &Path, first: &mut Command) -> Result<Self, SpaceError> {
        let child = on_a_thread(|| {
            leave_the_machines_namespaces()?;
            arrange_mounts(folder)?;
            start(first)
        })??;
        let pid = child.id().cast_signed();
        let first = Process::with_pid(pid);
        // Not on the thread that has moved: the kernel lets it start no other thread.
        reap(child);
        let first = first.ok_or(SpaceError::Gone(pid))?;
        let space = Self { first };
        space.enter(finish_inside)??;
        Ok(space)
    }

    /// The process whose death ends everything.
    pub(crate) fn first(&self) -> Process {
        self.first
    }

    /// Does `work` on a thread inside. Processes that it starts are inside too, and children of this process.
    pub(crate) fn enter<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T, SpaceError> {
        let descriptor = self.first.open()?.ok_or(SpaceError::Gone(self.first.pid()))?;
        let namespaces = CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWPID;
        on_a_thread(move || {
            // Threads share their root and working folder, and a thread that shares them may not change its mounts.
            unshare(CloneFlags::CLONE_FS).map_err(kernel_error("leave the process's working folder"))?;
            setns(descriptor, namespaces).map_err(kernel_error("enter the cluster's namespaces"))?;
            Ok(work())
        })?
    }
}

/// A thread may move to other namespaces without taking the process along; it must end there.
fn on_a_thread<T: Send>(work: impl FnOnce() -> T + Send) -> Result<T, SpaceError> {
    thread::scope(|scope| scope.spawn(work).join().map_err(|_| SpaceError::Panicked))
}

fn leave_the_machines_namespaces() -> Result<(), SpaceError> {
    let namespaces = CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWPID;
    unshare(namespaces).map_err(kernel_error("make namespaces"))
}

/// Mounts made from here on are seen inside only.
fn arrange_mounts(folder: &Path) -> Result<(), SpaceError> {
    let root = Path::new("/");
    put(None, root, None, MsFlags::MS_REC | MsFlags::MS_PRIVATE)?;
    // Shared among the mount namespaces of the pods, which volumes with mount propagation ask for.
    put(None, root, None, MsFlags::MS_REC | MsFlags::MS_SHARED)?;
    for hidden in ["/run", "/var/log"] {
        put(Some("tmpfs"), Path::new(hidden), Some("tmpfs"), MsFlags::empty())?;
    }
    fs::create_dir(INSIDE).map_err(file_error("create", INSIDE))?;
    put(folder.to_str(), Path::new(INSIDE), None, MsFlags::MS_BIND)?;
    cover(Path::new("/var/lib"))
}

/// Lets `folder` be seen as it is, and keeps what is written into it inside: kubelet and containerd write to some fixed paths there.
fn cover(folder: &Path) -> Result<(), SpaceError> {
    let layers = ["/run/cover/written", "/run/cover/work"];
    for layer in layers {
        fs::create_dir_all(layer).map_err(file_error("create", layer))?;
    }
    let [written, work] = layers;
    let options = format!("lowerdir={},upperdir={written},workdir={work}", folder.display());
    mount(Some("overlay"), folder, Some("overlay"), MsFlags::empty(), Some(options.as_str()))
        .map_err(|source| SpaceError::Mount { what: "overlay".to_owned(), on: folder.to_owned(), source })
}

fn start(command: &mut Command) -> Result<Child, SpaceError> {
    let path = PathBuf::from(command.get_program());
    let silent = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    silent.spawn().map_err(file_error("start", &path))
}

/// Waits for a child on a thread of its own: one that has ended and that nobody waited for would keep its namespaces from ending.
fn reap(mut child: Child) {
    thread::spawn(move || child.wait());
}

/// What can only be done from inside.
fn finish_inside() -> Result<(), SpaceError> {
    // By a command, since a mount of /proc shows the processes of its maker, and this thread has not moved in that respect.
    run::output(Command::new("mount").args(["-t", "proc", "proc", "/proc"]))?;
    shield_settings()?;
    let path = "/proc/sys/net/ipv4/ip_forward";
    fs::write(path, "1").map_err(file_error("write", path))
}

fn shield_settings() -> Result<(), SpaceError> {
    for (number, setting) in SHIELDED.iter().enumerate() {
        if let Ok(value) = fs::read(setting) {
            let copy = format!("/run/setting-{number}");
            fs::write(&copy, value).map_err(file_error("write", &copy))?;
            put(Some(&copy), Path::new(setting), None, MsFlags::MS_BIND)?;
        }
    }
    Ok(())
}

fn put(what: Option<&str>, on: &Path, kind: Option<&str>, flags: MsFlags) -> Result<(), SpaceError> {
    mount(what, on, kind, flags, None::<&str>).map_err(|source| SpaceError::Mount {
        what: what.unwrap_or("nothing new").to_owned(),
        on: on.to_owned(),
        source,
    })
}

fn kernel_error(attempt: &'static str) -> impl FnOnce(nix::Error) -> SpaceError {
    move |source| SpaceError::Kernel { attempt, source }
}

fn file_error(attempt: &'static str, path: impl AsRef<Path>) -> impl FnOnce(io::Error) -> SpaceError {
    let path = path.as_ref().to_owned();
    move |source| SpaceError::File { attempt, path, source }
}
