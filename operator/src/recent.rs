//! What happened within the last minutes, for `/health/detailed`: counters say how often, but not since when.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use crate::metrics::ReconcileResult;

/// Reconciles are remembered for so long.
pub const WINDOW: Duration = Duration::from_secs(300);

/// They are counted together for so long.
const STEP: Duration = Duration::from_secs(10);

/// A watch that has had no error for so long works, though nothing may have happened: it is begun again at least every 30 s
/// while it fails.
const WATCH_HEALS_AFTER: Duration = Duration::from_secs(90);

/// What happened lately.
#[derive(Debug, Default)]
pub struct Recent {
    reconciles: Mutex<VecDeque<Count>>,
    watches: Mutex<BTreeMap<String, Failing>>,
}

#[derive(Debug)]
struct Count {
    began: Instant,
    reconciles: Reconciles,
}

/// How reconciles ended.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Reconciles {
    /// Well.
    pub ok: u32,
    /// In an error.
    pub errors: u32,
}

/// A watch that has failed and brought nothing since.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Failing {
    /// The first failure.
    pub since: Instant,
    /// The last one.
    pub last: Instant,
    /// How many.
    pub times: u32,
}

impl Recent {
    /// A reconcile has ended.
    pub fn reconciled(&self, result: ReconcileResult, now: Instant) {
        let mut counts = self.reconciles.lock().unwrap_or_else(PoisonError::into_inner);
        while counts.front().is_some_and(|count| now.duration_since(count.began) > WINDOW) {
            counts.pop_front();
        }
        if counts.back().is_none_or(|count| now.duration_since(count.began) >= STEP) {
            counts.push_back(Count { began: now, reconciles: Reconciles::default() });
        }
        let Some(Count { reconciles, .. }) = counts.back_mut() else { return };
        match result {
            ReconcileResult::ok => reconciles.ok += 1,
            ReconcileResult::error => reconciles.errors += 1,
        }
    }

    /// The reconciles of the last [`WINDOW`].
    #[must_use]
    pub fn reconciles(&self, now: Instant) -> Reconciles {
        let counts = self.reconciles.lock().unwrap_or_else(PoisonError::into_inner);
        let recent = counts.iter().filter(|count| now.duration_since(count.began) <= WINDOW);
        recent.fold(Reconciles::default(), |sum, count| Reconciles {
            ok: sum.ok + count.reconciles.ok,
            errors: sum.errors + count.reconciles.errors,
        })
    }

    /// The watch of a kind has failed, and is begun again.
    pub fn watch_failed(&self, kind: &str, now: Instant) {
        let mut watches = self.watches.lock().unwrap_or_else(PoisonError::into_inner);
        watches.retain(|_, failing| now.duration_since(failing.last) < WATCH_HEALS_AFTER);
        let failing = watches.entry(kind.to_owned()).or_insert(Failing { since: now, last: now, times: 0 });
        failing.last = now;
        failing.times += 1;
    }

    /// The watch of a kind has brought something.
    pub fn watch_moved(&self, kind: &str) {
        self.watches.lock().unwrap_or_else(PoisonError::into_inner).remove(kind);
    }

    /// The watches that have failed and brought nothing since.
    #[must_use]
    pub fn failing_watches(&self, now: Instant) -> BTreeMap<String, Failing> {
        let watches = self.watches.lock().unwrap_or_else(PoisonError::into_inner);
        let failing = watches.iter().filter(|(_, failing)| now.duration_since(failing.last) < WATCH_HEALS_AFTER);
        failing.map(|(kind, failing)| (kind.clone(), *failing)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reconciles_are_forgotten_after_the_window() {
        let (recent, began) = (Recent::default(), Instant::now());
        for second in 0..300 {
            recent.reconciled(ReconcileResult::error, began + Duration::from_secs(second));
        }
        assert_eq!(recent.reconciles(began + Duration::from_secs(300)).errors, 300);
        for second in 300..600 {
            recent.reconciled(ReconcileResult::ok, began + Duration::from_secs(second));
        }
        let later = recent.reconciles(began + Duration::from_secs(600));
        assert_eq!((later.ok, later.errors), (300, 0), "those of the last five minutes");
        assert_eq!(recent.reconciles(began + Duration::from_secs(1000)), Reconciles::default());
    }

    #[test]
    fn a_watch_fails_until_it_brings_something_or_has_been_quiet_for_long() {
        let (recent, began) = (Recent::default(), Instant::now());
        for second in [0, 20, 50] {
            recent.watch_failed("Pod", began + Duration::from_secs(second));
        }
        recent.watch_failed("Service", began);
        recent.watch_moved("Service");
        let failing = recent.failing_watches(began + Duration::from_secs(60));
        assert_eq!(failing.keys().collect::<Vec<_>>(), ["Pod"]);
        assert_eq!((failing["Pod"].since, failing["Pod"].times), (began, 3));
        assert!(recent.failing_watches(began + Duration::from_secs(150)).is_empty());
        recent.watch_failed("Pod", began + Duration::from_secs(150));
        assert_eq!(recent.failing_watches(began + Duration::from_secs(150))["Pod"].times, 1, "that is another failure");
    }
}
