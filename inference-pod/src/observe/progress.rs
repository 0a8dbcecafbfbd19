//! How far a request has come. Whoever works on it writes here, so that this is known of one that failed or was too late as well.

use std::{
    sync::{Mutex, MutexGuard, OnceLock, PoisonError},
    time::{Duration, Instant},
};

use super::{events::Timings, span::Span};

/// Where the time of one request went so far.
#[derive(Debug)]
pub struct Progress {
    began: Instant,
    /// When that began, and how long it took.
    decode: OnceLock<(Instant, Duration)>,
    known: Mutex<Known>,
}

#[derive(Debug, Default)]
struct Known {
    entered: Option<Instant>,
    /// Jobs that have not left the queue for a run.
    waiting: usize,
    /// The longest wait of those that have.
    waited: Duration,
    /// A run that has not come back, and its samples.
    running: Option<(Instant, usize)>,
    /// The longest that has.
    run: Option<Run>,
}

/// A run that came back.
#[derive(Debug, Clone, Copy)]
pub struct Run {
    /// How long it took.
    pub time: Duration,
    /// Samples that shared it.
    pub samples: usize,
    /// Its own span, where any of its jobs is traced.
    pub span: Option<Span>,
}

impl Progress {
    /// Of a request that came then.
    #[must_use]
    pub fn new(began: Instant) -> Self {
        Self { began, decode: OnceLock::new(), known: Mutex::default() }
    }

    /// It was read into samples since then; how long that took.
    pub fn decoded(&self, since: Instant) -> Duration {
        self.decode.get_or_init(|| (since, since.elapsed())).1
    }

    /// How long it took to read it into samples, where it has been.
    #[must_use]
    pub fn decode_time(&self) -> Option<Duration> {
        self.decode.get().map(|(_, time)| *time)
    }

    /// It came into the queue as so many jobs.
    pub fn entered(&self, jobs: usize, at: Instant) {
        let mut known = self.known();
        (known.entered, known.waiting) = (Some(at), jobs);
    }

    /// One of its jobs was taken out of the queue to be run.
    pub fn waited(&self, time: Duration) {
        let mut known = self.known();
        known.waiting = known.waiting.saturating_sub(1);
        known.waited = known.waited.max(time);
    }

    /// A run of that many samples began, one of its jobs among them.
    pub fn run_began(&self, samples: usize, at: Instant) {
        self.known().running = Some((at, samples));
    }

    /// That run came back, with whatever.
    pub fn run_ended(&self, run: Run) {
        let mut known = self.known();
        known.running = None;
        if known.run.is_none_or(|longest| longest.time < run.time) {
            known.run = Some(run);
        }
    }

    /// Where its time went up to now; what waits or runs still counts up to now.
    #[must_use]
    pub fn timings(&self, now: Instant) -> Timings {
        let since = |moment: Instant| moment.saturating_duration_since(self.began);
        let until_now = |moment: Instant| now.saturating_duration_since(moment);
        let known = self.known();
        let wait = |entered| if known.waiting > 0 { until_now(entered) } else { known.waited };
        let run = match known.running {
            Some((began, samples)) => Some(Run { time: until_now(began), samples, span: None }),
            None => known.run,
        };
        Timings {
            decode: self.decode.get().map(|(began, time)| (since(*began), *time)),
            queue: known.entered.map(|entered| (since(entered), wait(entered))),
            run: run.map(|run| run.time),
            batch_samples: run.map(|run| run.samples),
            batch: run.and_then(|run| run.span),
        }
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn ms(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    #[test]
    fn what_never_ran_has_waited_up_to_now_and_what_hangs_has_run_up_to_now() {
        let began = Instant::now();
        let progress = Progress::new(began);
        assert_eq!(progress.timings(began + ms(9)), Timings::default());
        progress.entered(1, began + ms(2));
        let waiting = Timings { queue: Some((ms(2), ms(7))), ..Timings::default() };
        assert_eq!(progress.timings(began + ms(9)), waiting);
        progress.waited(ms(3));
        progress.run_began(8, began + ms(5));
        let running =
            Timings { queue: Some((ms(2), ms(3))), run: Some(ms(4)), batch_samples: Some(8), ..Timings::default() };
        assert_eq!(progress.timings(began + ms(9)), running);
        progress.run_ended(Run { time: ms(1), samples: 8, span: None });
        assert_eq!(progress.timings(began + ms(9)).run, Some(ms(1)));
    }

    #[test]
    fn of_several_jobs_the_longest_wait_and_run_are_told() {
        let began = Instant::now();
        let progress = Progress::new(began);
        progress.entered(2, began);
        for (wait, time, samples) in [(ms(6), ms(5), 4), (ms(1), ms(2), 3)] {
            progress.waited(wait);
            progress.run_began(samples, began);
            progress.run_ended(Run { time, samples, span: None });
        }
        let timings = progress.timings(began + ms(99));
        assert_eq!((timings.queue, timings.run, timings.batch_samples), (Some((ms(0), ms(6))), Some(ms(5)), Some(4)));
    }
}
