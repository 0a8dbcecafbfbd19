//! `/health/detailed`: what speaks for and against this process, each with the threshold that it is judged by. A pure function of
//! what was seen.

use std::{collections::BTreeMap, time::Duration};

use k8s_openapi::jiff::Timestamp;
use serde::Serialize;

use crate::recent::Reconciles;

/// Caches that are not filled by then are a failure: 50,000 objects take less.
const FILLED_WITHIN: Duration = Duration::from_secs(60);

/// Failures of one watch in a row; one or two happen whenever an API server restarts.
const WATCH_FAILURES: u32 = 3;

/// A watch that has failed for so long is a failure of the operator: it acts on what was true then.
const WATCH_FAILS_FOR: Duration = Duration::from_secs(300);

/// Fewer errors than this say nothing.
const FEW_ERRORS: u32 = 5;

/// Share of reconciles that end in an error.
const ERROR_SHARE: (f64, f64) = (0.1, 0.5);

/// Time that a change waits for its reconcile.
const DELAY: (Duration, Duration) = (Duration::from_secs(10), Duration::from_secs(60));

/// Share of the memory that the process may have.
const MEMORY_SHARE: (f64, f64) = (0.8, 0.95);

/// What was seen of the process.
#[derive(Debug, Clone, Default)]
pub struct Seen {
    /// Whether it may write.
    pub leads: bool,
    /// Whether everything that was there at the start has been read.
    pub is_filled: bool,
    /// Time since its start.
    pub uptime: Duration,
    /// Watches that fail: for how long, and how often in a row.
    pub failing_watches: BTreeMap<String, (Duration, u32)>,
    /// The reconciles of the last five minutes.
    pub reconciles: Reconciles,
    /// InferenceModels with a change that was not looked at, and how long the first of them has waited.
    pub waiting: (usize, Duration),
    /// Its memory, where the system tells.
    pub memory: Option<Memory>,
    /// Definitions that the cluster lacks, which is no fault.
    pub missing_crds: Vec<&'static str>,
}

/// Memory of the process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Memory {
    /// What it has.
    pub resident_bytes: u64,
    /// What it may have at most; none without a limit.
    pub limit_bytes: Option<u64>,
}

/// How well something is, the worst last.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// As it should be.
    Ok,
    /// Worth a look.
    Warning,
    /// It does not do what it is for.
    Error,
}

/// One of the checks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Check {
    /// How well it is.
    pub status: Status,
    /// What was seen.
    pub message: String,
    /// When it is a warning, and when an error.
    pub threshold: String,
}

/// The answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Health {
    /// That of the worst check.
    pub status: Status,
    /// The version of this program.
    pub version: &'static str,
    /// Time since the start.
    pub uptime_seconds: u64,
    /// The moment of the answer.
    pub timestamp: String,
    /// Definitions that the cluster lacks. Where a model's monitoring is Auto it does without them.
    pub missing_crds: Vec<&'static str>,
    /// By name.
    pub checks: BTreeMap<&'static str, Check>,
}

/// Judges what was seen.
#[must_use]
pub fn judge(seen: &Seen, now: Timestamp) -> Health {
    let checks = BTreeMap::from([
        ("caches", caches(seen)),
        ("leader", leader(seen)),
        ("memory", memory(seen)),
        ("queue", queue(seen)),
        ("reconciles", reconciles(seen)),
        ("watches", watches(seen)),
    ]);
    Health {
        status: checks.values().map(|check| check.status).max().unwrap_or(Status::Ok),
        version: env!("CARGO_PKG_VERSION"),
        uptime_seconds: seen.uptime.as_secs(),
        timestamp: now.to_string(),
        missing_crds: seen.missing_crds.clone(),
        checks,
    }
}

fn caches(seen: &Seen) -> Check {
    let (status, message) = match (seen.is_filled, seen.uptime > FILLED_WITHIN) {
        (true, _) => (Status::Ok, "all that is watched has been read"),
        (false, false) => (Status::Warning, "the objects of the cluster have not been read yet"),
        (false, true) => (Status::Error, "the objects of the cluster have not been read yet"),
    };
    let threshold = format!("warning until they are filled, error after {} s", FILLED_WITHIN.as_secs());
    Check { status, message: message.to_owned(), threshold }
}

fn leader(seen: &Seen) -> Check {
    let message = if seen.leads { "this operator leads" } else { "this operator stands by with warm caches" };
    Check { status: Status::Ok, message: message.to_owned(), threshold: "none: both are as it should be".to_owned() }
}

fn watches(seen: &Seen) -> Check {
    let failing: Vec<_> = seen.failing_watches.iter().filter(|(_, (_, times))| *times >= WATCH_FAILURES).collect();
    let longest = failing.iter().map(|(_, (time, _))| *time).max();
    let status = match longest {
        None => Status::Ok,
        Some(time) if time >= WATCH_FAILS_FOR => Status::Error,
        Some(_) => Status::Warning,
    };
    let told =
        failing.iter().map(|(kind, (time, times))| format!("{kind} failed {times} times in {} s", time.as_secs()));
    let told: Vec<String> = told.collect();
    let message = if told.is_empty() { "all watches move".to_owned() } else { told.join(", ") };
    let threshold = format!(
        "warning from {WATCH_FAILURES} failures in a row without an event in between, error after {} s of them",
        WATCH_FAILS_FOR.as_secs()
    );
    Check { status, message, threshold }
}

fn reconciles(seen: &Seen) -> Check {
    let Reconciles { ok, errors } = seen.reconciles;
    let share = if errors < FEW_ERRORS { 0.0 } else { f64::from(errors) / f64::from(ok + errors) };
    let (warning, error) = ERROR_SHARE;
    let threshold = format!(
        "warning from {FEW_ERRORS} errors on that are {:.0} % or more, error from {:.0} %",
        warning * 1e2,
        error * 1e2
    );
    let message = format!("{errors} of {} reconciles of the last 5 min ended in an error", ok + errors);
    Check { status: graded(share >= warning, share >= error), message, threshold }
}

fn queue(seen: &Seen) -> Check {
    let (length, delay) = seen.waiting;
    let (warning, error) = DELAY;
    let message = match length {
        0 => "nothing waits".to_owned(),
        _ => format!("{length} InferenceModels wait, the first for {:.1} s", delay.as_secs_f64()),
    };
    let threshold = format!("warning from a wait of {} s, error from {} s", warning.as_secs(), error.as_secs());
    Check { status: graded(delay >= warning, delay >= error), message, threshold }
}

fn memory(seen: &Seen) -> Check {
    let (warning, error) = MEMORY_SHARE;
    let threshold = format!("warning from {:.0} % of the limit, error from {:.0} %", warning * 1e2, error * 1e2);
    let mebibytes = |bytes: u64| bytes as f64 / f64::from(1 << 20);
    let (status, message) = match seen.memory {
        None => (Status::Ok, "the system does not tell".to_owned()),
        Some(Memory { resident_bytes, limit_bytes: None }) => {
            (Status::Ok, format!("{:.0} MiB, without a limit", mebibytes(resident_bytes)))
        }
        Some(Memory { resident_bytes, limit_bytes: Some(limit) }) => {
            let share = resident_bytes as f64 / limit as f64;
            let message = format!("{:.0} MiB of {:.0} MiB", mebibytes(resident_bytes), mebibytes(limit));
            (graded(share >= warning, share >= error), message)
        }
    };
    Check { status, message, threshold }
}

fn graded(warning: bool, error: bool) -> Status {
    match (warning, error) {
        (_, true) => Status::Error,
        (true, false) => Status::Warning,
        (false, false) => Status::Ok,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn well() -> Seen {
        Seen { leads: true, is_filled: true, uptime: Duration::from_secs(3600), ..Seen::default() }
    }

    fn status_of(seen: &Seen, check: &str) -> (Status, Status) {
        let health = judge(seen, Timestamp::UNIX_EPOCH);
        (health.status, health.checks[check].status)
    }

    fn all(status: Status) -> (Status, Status) {
        (status, status)
    }

    #[test]
    fn an_operator_at_rest_is_well_whether_it_leads_or_stands_by() {
        for leads in [true, false] {
            let health = judge(&Seen { leads, missing_crds: vec!["a.b"], ..well() }, Timestamp::UNIX_EPOCH);
            assert_eq!(health.status, Status::Ok, "{health:?}");
            assert!(health.checks.values().all(|check| !check.message.is_empty() && !check.threshold.is_empty()));
            assert_eq!((health.missing_crds, health.timestamp.as_str()), (vec!["a.b"], "1970-01-01T00:00:00Z"));
        }
    }

    #[test]
    fn caches_may_take_a_minute() {
        let seen = |seconds| Seen { is_filled: false, uptime: Duration::from_secs(seconds), ..well() };
        assert_eq!(status_of(&seen(5), "caches"), all(Status::Warning));
        assert_eq!(status_of(&seen(90), "caches"), all(Status::Error));
    }

    #[test]
    fn a_watch_that_fails_again_and_again_is_named() {
        let seen = |seconds, times| {
            let failing = BTreeMap::from([("Pod".to_owned(), (Duration::from_secs(seconds), times))]);
            Seen { failing_watches: failing, ..well() }
        };
        assert_eq!(status_of(&seen(1, 2), "watches"), all(Status::Ok));
        assert_eq!(status_of(&seen(30, 3), "watches"), all(Status::Warning));
        assert_eq!(status_of(&seen(300, 12), "watches"), all(Status::Error));
        let health = judge(&seen(30, 3), Timestamp::UNIX_EPOCH);
        assert_eq!(health.checks["watches"].message, "Pod failed 3 times in 30 s");
    }

    #[test]
    fn errors_count_by_their_share_and_only_if_they_are_several() {
        let seen = |ok, errors| Seen { reconciles: Reconciles { ok, errors }, ..well() };
        assert_eq!(status_of(&seen(0, 4), "reconciles"), all(Status::Ok));
        assert_eq!(status_of(&seen(95, 5), "reconciles"), all(Status::Ok));
        assert_eq!(status_of(&seen(40, 5), "reconciles"), all(Status::Warning));
        assert_eq!(status_of(&seen(5, 5), "reconciles"), all(Status::Error));
    }

    #[test]
    fn a_queue_is_judged_by_the_time_that_its_first_has_waited() {
        let seen = |length, seconds| Seen { waiting: (length, Duration::from_secs(seconds)), ..well() };
        assert_eq!(status_of(&seen(10_000, 3), "queue"), all(Status::Ok));
        assert_eq!(status_of(&seen(1, 10), "queue"), all(Status::Warning));
        assert_eq!(status_of(&seen(1, 61), "queue"), all(Status::Error));
    }

    #[test]
    fn memory_is_judged_by_its_limit_if_there_is_one() {
        let seen = |used: u64, limit_bytes| {
            let memory = Memory { resident_bytes: used << 20, limit_bytes };
            Seen { memory: Some(memory), ..well() }
        };
        assert_eq!(status_of(&seen(10_000, None), "memory"), all(Status::Ok));
        assert_eq!(status_of(&seen(100, Some(512 << 20)), "memory"), all(Status::Ok));
        assert_eq!(status_of(&seen(410, Some(512 << 20)), "memory"), all(Status::Warning));
        assert_eq!(status_of(&seen(500, Some(512 << 20)), "memory"), all(Status::Error));
    }
}
