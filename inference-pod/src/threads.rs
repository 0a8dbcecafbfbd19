//! How the kernel shares cores among our threads. What is asked for here matters where a model's thread and the serving loop
//! share a core; where each has its own, and where the kernel refuses, nothing changes.

/// Shortest time that the kernel takes into account, and the longest that a waking serving loop should have to wait.
const PROMPT_SLICE_NS: u64 = 100_000;

/// How much a thread that runs a model is nice to the others, from 0 to 19. The kernel lets a waking thread take a core only
/// from one that has had more than its share, and next to one that runs models all the time the serving loop would often have
/// to wait for the next tick of the kernel's clock.
const NICE: libc::c_int = 5;

/// Time slice of a thread that runs a model. A waking thread interrupts one that has just begun only if its own slice is the shorter one,
/// and a thread takes its slice after the thread that started it.
const LONG_SLICE_NS: u64 = 10_000_000;

/// Makes the calling thread, one that runs a model, stand back: it starts only when those that are at work are done, so whoever
/// brings the first request of a burst can go on to bring the others, and they share a batch; and it lets itself be
/// interrupted by them.
pub fn start_after_others() {
    // sched(7): a thread of policy SCHED_BATCH never takes the core from another by waking up.
    if !share(libc::SCHED_BATCH, NICE, LONG_SLICE_NS) {
        tracing::debug!(error = %std::io::Error::last_os_error(), "the kernel does not let a thread stand back");
    }
}

/// Makes the calling thread, one that answers requests or probes, interrupt a long run when there is something to answer.
pub fn interrupt_others() {
    if !share(libc::SCHED_OTHER, 0, PROMPT_SLICE_NS) {
        tracing::debug!(error = %std::io::Error::last_os_error(), "the kernel takes no time slice for a thread");
    }
}

/// Linux, sched_setattr(2). From 6.12 on `sched_runtime` of an ordinary thread is its time slice, and a waking thread with a shorter one
/// goes first; earlier kernels change nothing by it.
#[expect(unsafe_code, reason = "there is no safe binding to it")]
fn share(policy: libc::c_int, nice: libc::c_int, slice_ns: u64) -> bool {
    #[repr(C)]
    #[derive(Default)]
    struct SchedAttr {
        size: u32,
        policy: u32,
        flags: u64,
        nice: i32,
        priority: u32,
        runtime: u64,
        deadline: u64,
        period: u64,
    }
    let attributes = SchedAttr {
        size: u32::try_from(size_of::<SchedAttr>()).unwrap_or(0),
        policy: policy.cast_unsigned(),
        // Whoever started the process with less priority meant it, and to take it back needs a privilege.
        nice: nice.max(niceness()),
        runtime: slice_ns,
        ..SchedAttr::default()
    };
    // SAFETY: `attributes` is laid out as the kernel's first version of its struct, says its own size, and lives through the
    // call, which reads it; 0 means the calling thread, and no flags are given.
    unsafe { libc::syscall(libc::SYS_sched_setattr, 0, &raw const attributes, 0) == 0 }
}

/// Linux, getpriority(2): there each thread has a niceness of its own, and 0 means the calling one.
#[expect(unsafe_code, reason = "there is no safe binding to it")]
fn niceness() -> libc::c_int {
    // SAFETY: takes and returns plain numbers.
    unsafe { libc::getpriority(libc::PRIO_PROCESS, 0) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[cfg(target_os = "linux")]
    fn an_ordinary_process_may_ask_for_all_of_it() {
        let thread = std::thread::spawn(|| {
            let prompt = (share(libc::SCHED_OTHER, 0, PROMPT_SLICE_NS), niceness());
            (prompt, share(libc::SCHED_BATCH, NICE, LONG_SLICE_NS), niceness() - prompt.1.max(NICE))
        });
        let ((prompt, _), batch, nicer_than_asked) = thread.join().unwrap();
        assert_eq!((prompt, batch, nicer_than_asked), (true, true, 0));
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn one_that_runs_a_model_keeps_no_short_slice_of_the_thread_that_started_it() {
        let slices = || {
            interrupt_others();
            let started = std::thread::spawn(|| {
                start_after_others();
                slice()
            });
            (slice(), started.join().unwrap())
        };
        // Only a kernel that is built for it tells, and one before 6.12 has no such slices.
        if let (Some(prompt), Some(long)) = std::thread::spawn(slices).join().unwrap() {
            assert!(prompt < long || prompt == long && prompt > PROMPT_SLICE_NS, "{prompt} and {long}");
        }
    }

    /// As the kernel tells it of the calling thread.
    fn slice() -> Option<u64> {
        let told = std::fs::read_to_string("/proc/thread-self/sched").ok()?;
        let line = told.lines().find(|line| line.starts_with("se.slice"))?;
        line.rsplit(' ').next()?.parse().ok()
    }
}
