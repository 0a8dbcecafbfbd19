//! What the kernel knows of this process and of the room around it.

use std::{
    fs,
    path::Path,
    sync::LazyLock,
    time::{Duration, SystemTime},
};

use procfs::process::{LimitValue, Process};
use rustix::time::{ClockId, clock_gettime};

/// What the kernel knows of this process.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct ProcessFacts {
    /// Processor time, user and system together.
    pub cpu_seconds: f64,
    /// Memory that is really there.
    pub resident_bytes: u64,
    /// Addresses taken.
    pub virtual_bytes: u64,
    /// Seconds of the epoch.
    pub start_seconds: f64,
    /// Files and sockets.
    pub open_files: u64,
    /// Most of them.
    pub max_files: u64,
    /// Threads.
    pub threads: u64,
}

/// When somebody asked first, which is when the process sets itself up.
static STARTED: LazyLock<f64> = LazyLock::new(|| {
    crate::clock::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64())
});

/// Of this process; `None` where there is no procfs.
#[must_use]
pub fn process_facts() -> Option<ProcessFacts> {
    let process = Process::myself().ok()?;
    let status = process.status().ok()?;
    // In kB, whatever the size of a page; the clock of the process is in seconds, whatever a tick is.
    let bytes = |kilobytes: Option<u64>| kilobytes.unwrap_or_default() << 10;
    let cpu = clock_gettime(ClockId::ProcessCPUTime);
    let max_files = match process.limits().ok()?.max_open_files.soft_limit {
        LimitValue::Value(most) => most,
        LimitValue::Unlimited => u64::MAX,
    };
    Some(ProcessFacts {
        cpu_seconds: cpu.tv_sec as f64 + cpu.tv_nsec as f64 / 1e9,
        resident_bytes: bytes(status.vmrss),
        virtual_bytes: bytes(status.vmsize),
        start_seconds: *STARTED,
        open_files: process.fd_count().ok()? as u64,
        max_files,
        threads: status.threads,
    })
}

/// Memory that the process may take: the least of its cgroups' limits (v2, v1) and of what the machine has.
#[must_use]
pub fn memory_limit() -> Option<u64> {
    let machine = procfs::Current::current().ok().map(|memory: procfs::Meminfo| memory.mem_total);
    let limits = ["/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"];
    let of_cgroup = limits.iter().filter_map(|path| fs::read_to_string(path).ok()?.trim().parse().ok());
    of_cgroup.chain(machine).min()
}

/// What is known of the disk that is written to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Disk {
    /// What is left and all of it, in bytes; none where nothing is known.
    pub room: Option<(u64, u64)>,
    /// How long ago that was so; a disk that hangs says nothing new.
    pub age: Duration,
}

/// Room on the disk of a path: what is left, and all of it, in bytes. Waits as long as the disk does.
#[must_use]
pub fn disk(path: &Path) -> Option<(u64, u64)> {
    let folder = path.ancestors().find(|folder| folder.is_dir())?;
    let room = rustix::fs::statvfs(folder).ok()?;
    Some((room.f_bavail * room.f_frsize, room.f_blocks * room.f_frsize))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[cfg(target_os = "linux")]
    fn this_process_has_memory_threads_and_files_within_what_it_may_take() {
        let facts = process_facts().unwrap();
        assert!(facts.resident_bytes > 1 << 20 && facts.resident_bytes < facts.virtual_bytes, "{facts:?}");
        assert!(facts.threads >= 1 && facts.open_files >= 3 && facts.open_files < facts.max_files, "{facts:?}");
        assert!(facts.start_seconds > 1.6e9, "{facts:?}");
        assert!(memory_limit().unwrap() > facts.resident_bytes);
        let (free, all) = disk(Path::new("/nowhere/at/all")).unwrap();
        assert!(free <= all && all > 0);
    }
}
