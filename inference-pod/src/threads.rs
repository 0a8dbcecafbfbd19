//! How the kernel shares cores among our threads. What is asked for here matters where a model's thread and the serving loop
//! share a core; where each has its own, and where the kernel refuses, nothing changes.
//!
//! | thread | slice | nice |
//! |---|---|---|
//! | admin | 0.1 ms | as the process |
//! | serving loop | 2 ms | as the process |
//! | decoders, consumers of events | 5 ms | 5 |
//! | a model's threads | 10 ms | 10 |
//!
//! Linux 6.12 and later: a waking thread goes before one at work whose slice is longer, and else often has to wait for the next
//! tick of the kernel's clock. Earlier kernels know no slice of a single thread. A thread takes after the one that starts it,
//! its slice included, so each kind says all of it.

use std::cell::Cell;

/// What a kind of thread asks for.
#[derive(Debug, Clone, Copy)]
struct Share {
    policy: libc::c_int,
    /// From 0 to 19. A thread that is nicer already stays so: to take niceness back needs a privilege.
    nice: libc::c_int,
    /// Nanoseconds; the kernel takes 0.1 to 100 ms.
    slice_ns: u64,
}

/// Answers within the shortest time that the kernel takes into account, and has little to do.
const ADMIN: Share = Share { policy: libc::SCHED_OTHER, nice: 0, slice_ns: 100_000 };

/// 2 ms: long enough to bring a burst of requests in without a break, so that they share a batch.
const LOOP: Share = Share { policy: libc::SCHED_OTHER, nice: 0, slice_ns: 2_000_000 };

/// What is decoded is what the models run next, and what is to be told waits in bounded channels.
const BEHIND_THE_LOOP: Share = Share { policy: libc::SCHED_BATCH, nice: 5, slice_ns: 5_000_000 };

/// The kernel lets a waking thread take a core only from one that has had more than its share: next to one that runs models
/// all the time the serving loop would often have to wait were that one not nice.
const MODEL: Share = Share { policy: libc::SCHED_BATCH, nice: 10, slice_ns: 10_000_000 };

/// Makes the calling thread, one that runs a model, stand back: it starts only when those that are at work are done, so whoever
/// brings the first request of a burst can go on to bring the others, and they share a batch; and it lets itself be
/// interrupted by them.
pub fn start_after_others() {
    ask_for(MODEL);
}

/// Makes the calling thread, one that decodes, stand back behind the serving loop, but not behind the models. A thread is
/// asked once, however many jobs it does.
pub fn decode_behind_the_loop() {
    thread_local!(static ASKED: Cell<bool> = const { Cell::new(false) });
    if !ASKED.replace(true) {
        ask_for(BEHIND_THE_LOOP);
    }
}

/// Makes the calling thread, one that tells of events, stand back behind the serving loop, but not behind the models.
pub fn tell_behind_the_loop() {
    ask_for(BEHIND_THE_LOOP);
}

/// Makes the calling thread, one that serves connections, interrupt a run when there is something to answer.
pub fn serve_before_models() {
    ask_for(LOOP);
}

/// Makes the calling thread, one that answers probes, interrupt all others.
pub fn interrupt_others() {
    ask_for(ADMIN);
}

fn ask_for(share: Share) {
    if !set(share) {
        tracing::debug!(error = %std::io::Error::last_os_error(), ?share, "the kernel shares cores as it likes");
    }
}

/// Linux, sched_setattr(2): all in one call, for policy and niceness set by themselves leave the slice as it was. A thread of
/// policy SCHED_BATCH never takes the core from another by waking up.
#[expect(unsafe_code, reason = "there is no safe binding to it")]
fn set(share: Share) -> bool {
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
        policy: share.policy.cast_unsigned(),
        nice: share.nice.max(niceness()),
        runtime: share.slice_ns,
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
#[cfg(target_os = "linux")]
mod tests {
    use super::*;

    /// What the kernel says of the calling thread; none where it does not say.
    fn slice() -> Option<u64> {
        let text = std::fs::read_to_string("/proc/thread-self/sched").ok()?;
        let line = text.lines().find(|line| line.starts_with("se.slice"))?;
        line.rsplit(':').next()?.trim().parse().ok()
    }

    #[test]
    fn an_ordinary_process_may_ask_for_all_of_it() {
        let ask = || [ADMIN, LOOP, BEHIND_THE_LOOP, MODEL].map(set);
        assert_eq!(std::thread::spawn(ask).join().unwrap(), [true; 4]);
    }

    #[test]
    fn a_thread_that_was_started_by_the_loop_has_the_slice_of_its_own_kind() {
        let thread = std::thread::spawn(|| {
            interrupt_others();
            if slice() != Some(ADMIN.slice_ns) {
                // An earlier kernel, or one that does not say.
                return;
            }
            serve_before_models();
            let started = std::thread::spawn(|| {
                let inherited = slice();
                decode_behind_the_loop();
                let decoder = slice();
                start_after_others();
                [inherited, decoder, slice()]
            });
            assert_eq!(started.join().unwrap(), [LOOP, BEHIND_THE_LOOP, MODEL].map(|share| Some(share.slice_ns)));
        });
        thread.join().unwrap();
    }
}
