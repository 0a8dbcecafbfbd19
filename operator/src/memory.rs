//! How much memory this process has, and how much it may have.

use std::fs;

use crate::health::Memory;

const OF_PROCESS: &str = "/proc/self/status";

/// A container sees its own control group there; version 2 of them, which every supported node has.
const LIMIT: &str = "/sys/fs/cgroup/memory.max";

/// As the system tells it; none where it does not.
#[must_use]
pub fn read() -> Option<Memory> {
    let resident_bytes = resident(&fs::read_to_string(OF_PROCESS).ok()?)?;
    Some(Memory { resident_bytes, limit_bytes: fs::read_to_string(LIMIT).ok().and_then(|text| limit(&text)) })
}

fn resident(status: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kibibytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kibibytes << 10)
}

/// `max` where there is none.
fn limit(text: &str) -> Option<u64> {
    text.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_kernel_writes_is_read() {
        assert_eq!(resident("Name:\toperator\nVmRSS:\t   20480 kB\nThreads:\t3\n"), Some(20 << 20));
        assert_eq!(resident("Name:\toperator\n"), None);
        assert_eq!((limit("536870912\n"), limit("max\n")), (Some(512 << 20), None));
    }
}
