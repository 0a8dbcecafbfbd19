//! How long runs really take, one after the other, beside what their measured times promise.

use std::time::{Duration, Instant};

/// Least and greatest weight of one run.
const WEIGHTS: (f64, f64) = (0.05, 0.25);

/// One run says no more than this: a stalled one must not shut the queue.
const BOUNDS: (f64, f64) = (0.5, 2.0);

/// Of what is spread normally, one in a hundred is above the mean by so many mean deviations: 2.33 times the standard deviation,
/// which is 1.25 times the mean one.
const ONE_IN_A_HUNDRED: f64 = 2.9;

/// A batch that an instance took.
#[derive(Debug, Clone, Copy)]
struct Begun {
    at: Instant,
    expected: Duration,
}

/// The time from one batch to the next of an instance that always has one, divided by the time that its run was expected to
/// take: a mean, moving with the last runs.
///
/// The expected time is a median, which long runs do not move, and which knows nothing of what is done between runs. A sum of
/// such times, which the wait at the end of a queue is, comes out too short by both. How full the batches are is no part of it.
#[derive(Debug)]
pub(super) struct Pace {
    factor: f64,
    /// How far off this factor single runs are, in the mean.
    deviation: f64,
    /// The last batch of each instance that has not been idle since.
    last: Vec<Option<Begun>>,
}

impl Pace {
    pub(super) fn new(instances: usize) -> Self {
        Self { factor: 1.0, deviation: 0.0, last: vec![None; instances] }
    }

    /// An instance takes a batch.
    pub(super) fn begins(&mut self, instance: usize, now: Instant, expected: Duration) {
        let last = self.last[instance].replace(Begun { at: now, expected });
        if let Some(Begun { at, expected }) = last.filter(|last| !last.expected.is_zero()) {
            let ratio = (now - at).as_secs_f64() / expected.as_secs_f64();
            // Of long runs a few are all that a queue lives through, so each says more: what a second of them shows is learnt.
            let weight = expected.as_secs_f64().clamp(WEIGHTS.0, WEIGHTS.1);
            let off = ratio.clamp(BOUNDS.0, BOUNDS.1) - self.factor;
            self.deviation += weight * (off.abs() - self.deviation);
            self.factor += weight * off;
        }
    }

    /// An instance has nothing to do, or is away: when it begins again says nothing about how fast it is.
    pub(super) fn rests(&mut self, instance: usize) {
        self.last[instance] = None;
    }

    /// How long that takes which was expected to take so long.
    pub(super) fn of(&self, expected: Duration) -> Duration {
        expected.mul_f64(self.factor)
    }

    /// How much longer than predicted a wait of such runs turns out to be once in a hundred times. Each run is off by its own, so
    /// that they make up for each other the more, the more they are.
    pub(super) fn spread(&self, wait: Duration, run: Duration) -> Duration {
        let of_one = ONE_IN_A_HUNDRED * self.deviation;
        Duration::from_secs_f64(of_one * (wait.as_secs_f64() * run.as_secs_f64()).sqrt())
    }

    /// The longest wait that is within a bound together with its [spread](Self::spread).
    pub(super) fn longest_within(&self, bound: Duration, run: Duration) -> Duration {
        let half = ONE_IN_A_HUNDRED * self.deviation * run.as_secs_f64().sqrt() / 2.0;
        let root = (half * half + bound.as_secs_f64()).sqrt() - half;
        bound.saturating_sub(Duration::from_secs_f64(2.0 * half * root))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RUN: Duration = Duration::from_millis(10);

    #[test]
    fn what_runs_take_beyond_their_time_is_learnt_from_batches_without_a_pause() {
        let mut pace = Pace::new(1);
        let mut now = Instant::now();
        for _ in 0..200 {
            pace.begins(0, now, RUN);
            now += RUN.mul_f64(1.5);
        }
        assert!((pace.factor - 1.5).abs() < 0.01, "{pace:?}");
        let learnt = pace.of(RUN);
        pace.rests(0);
        now += RUN * 1000;
        pace.begins(0, now, RUN);
        assert_eq!(pace.of(RUN), learnt, "a pause is no slow run");
    }

    #[test]
    fn long_runs_are_learnt_from_sooner() {
        let mut pace = Pace::new(1);
        let (now, run) = (Instant::now(), Duration::from_millis(200));
        for count in 0..6 {
            pace.begins(0, now + run.mul_f64(1.5) * count, run);
        }
        assert!(pace.factor > 1.3, "{pace:?}");
    }

    #[test]
    fn what_waits_may_take_beyond_their_mean_is_learnt_and_grows_less_than_they_do() {
        let mut pace = Pace::new(1);
        let mut now = Instant::now();
        assert_eq!(pace.spread(RUN * 100, RUN), Duration::ZERO);
        for count in 0..400 {
            pace.begins(0, now, RUN);
            now += RUN.mul_f64(if count % 2 == 0 { 0.9 } else { 1.1 });
        }
        let (one, hundred) = (pace.spread(RUN, RUN), pace.spread(RUN * 100, RUN));
        assert!(
            (Duration::from_micros(2_600)..Duration::from_micros(3_200)).contains(&one),
            "{one:?}: a tenth, 2.9 times"
        );
        assert!((hundred.as_secs_f64() / one.as_secs_f64() - 10.0).abs() < 0.01, "{hundred:?}");
        let within = pace.longest_within(RUN * 100 + hundred, RUN);
        assert!(within.abs_diff(RUN * 100) < Duration::from_micros(10), "{within:?}");
    }

    #[test]
    fn one_stalled_run_counts_for_little_and_one_without_a_time_for_nothing() {
        let mut pace = Pace::new(2);
        let now = Instant::now();
        pace.begins(0, now, RUN);
        pace.begins(0, now + RUN * 1000, Duration::ZERO);
        assert_eq!(pace.of(RUN), RUN.mul_f64(1.05), "{pace:?}");
        pace.begins(0, now + RUN * 2000, RUN);
        pace.begins(1, now, RUN);
        assert_eq!(pace.of(RUN), RUN.mul_f64(1.05), "{pace:?}");
    }
}
