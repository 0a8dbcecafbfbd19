//! How the kernel shares cores among our threads. What is asked for here matters where a model's thread and the serving loop
//! share a core; where each has its own, and where the kernel refuses, nothing changes.

/// Shortest time that the kernel takes into account, and the longest that a waking serving loop should have to wait.
const PROMPT_SLICE_NS: u64 = 100_000;

/// How much a thread that runs a model is nice to the others, from 0 to 19. The kernel lets a waking thread take a core only
/// from one that has had more than its share, and next to one that runs models all the time the serving loop would often have
/// to wait for the next tick of the kernel's clock.
const NICE: libc::c_int = 5;

/// Makes the calling thread, one that runs a model, stand back: it starts only when those that are at work are done, so whoever
/// brings the first request of a burst can go on to bring the others, and they share a batch; and it lets itself be
/// interrupted by them.
pub fn start_after_others() {
    if !(set_batch_policy() && set_niceness(NICE)) {
        tracing::debug!(error = %std::io::Error::last_os_error(), "the kernel does not let a thread stand back");
    }
}

/// Makes the calling thread, one that answers requests or probes, interrupt a long run when there is something to answer.
pub fn interrupt_others() {
    if !set_slice(PROMPT_SLICE_NS) {
        tracing::debug!(error = %std::io::Error::last_os_error(), "the kernel takes no time slice for a thread");
    }
}

/// Linux, sched(7): a thread of policy SCHED_BATCH never takes the core from another by waking up.
#[expect(unsafe_code, reason = "there is no safe binding to it")]
fn set_batch_policy() -> bool {
    let priority = libc::sched_param { sched_priority: 0 };
    // SAFETY: `priority` lives through the call, which reads it; 0 means the calling thread.
    unsafe { libc::sched_setscheduler(0, libc::SCHED_BATCH, &raw const priority) == 0 }
}

/// Linux, setpriority(2): there each thread has a niceness of its own, and 0 means the calling one.
#[expect(unsafe_code, reason = "there is no safe binding to it")]
fn set_niceness(nice: libc::c_int) -> bool {
    // SAFETY: takes and returns plain numbers.
    unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, nice) == 0 }
}

/// Linux 6.12 and later: `sched_runtime` of an ordinary thread is its time slice, and a waking thread with a shorter one
/// goes first. Earlier kernels take the call and change nothing.
#[expect(unsafe_code, reason = "there is no safe binding to it")]
fn set_slice(nanoseconds: u64) -> bool {
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
        policy: libc::SCHED_OTHER.cast_unsigned(),
        runtime: nanoseconds,
        ..SchedAttr::default()
    };
    // SAFETY: `attributes` is laid out as the kernel's first version of its struct, says its own size, and lives through the
    // call, which reads it; 0 means the calling thread, and no flags are given.
    unsafe { libc::syscall(libc::SYS_sched_setattr, 0, &raw const attributes, 0) == 0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[cfg(target_os = "linux")]
    fn an_ordinary_process_may_ask_for_all_of_it() {
        let thread = std::thread::spawn(|| (set_slice(PROMPT_SLICE_NS), set_batch_policy(), set_niceness(NICE)));
        assert_eq!(thread.join().unwrap(), (true, true, true));
    }
}
