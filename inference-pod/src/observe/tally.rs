//! What is counted of the requests of a model that have ended: for its metrics, for health, and for autoscaling.
//!
//! ```text
//! a request ends ▸ recent ends ─┬─▸ counters and histograms    once they are many, or somebody asks
//!                               └─▸ window
//! ```
//!
//! Whoever asks finds all of them counted. A place in each of several histograms takes longest to find where other work has been done
//! since the last request; so a request only writes down how it ended, and a few are counted in one go.

use std::{
    fmt,
    sync::{Mutex, MutexGuard, PoisonError},
};

use super::{End, Example, numbers::Ends, window::Window};

/// So many are counted in one go: few enough to stay near the processor.
const RECENT: usize = 16;

/// The requests of a model that have ended.
pub struct Tally(Mutex<Counted>);

/// All of them, counted.
pub struct Counted {
    recent: Vec<End>,
    /// For metrics.
    pub ends: Ends,
    /// For health and autoscaling.
    pub window: Window,
}

impl fmt::Debug for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Tally")
    }
}

impl Counted {
    fn count(&mut self) {
        for end in self.recent.drain(..) {
            self.ends.count(&end, None);
            self.window.ended(&end);
        }
    }
}

impl Tally {
    /// None yet.
    #[must_use]
    pub fn new(ends: Ends, window: Window) -> Self {
        Self(Mutex::new(Counted { recent: Vec::with_capacity(RECENT), ends, window }))
    }

    /// A request has ended; an example of it is kept where there is one.
    pub fn ended(&self, end: End, example: Option<Example>) {
        let mut counted = self.lock();
        if example.is_some() {
            counted.count();
            counted.ends.count(&end, example);
            counted.window.ended(&end);
            return;
        }
        counted.recent.push(end);
        if counted.recent.len() == RECENT {
            counted.count();
        }
    }

    /// All that have ended. Nobody ends meanwhile.
    pub fn counted(&self) -> MutexGuard<'_, Counted> {
        let mut counted = self.lock();
        counted.count();
        counted
    }

    fn lock(&self) -> MutexGuard<'_, Counted> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::{
        sync::Arc,
        time::{Duration, Instant},
    };

    use super::*;
    use crate::observe::{Bounds, ModelObserver, Observer, Outcome, Standing, events::Events, span::TraceId};

    fn model() -> (Observer, ModelObserver) {
        let observer = Observer::quiet("1.31.1");
        let bounds = Bounds { batch_size: 8, max_wait: Duration::from_millis(500), latency_objective: None };
        let model = observer.model("espresso", &bounds);
        (observer, model)
    }

    const MILLIS: Duration = Duration::from_millis(1);

    #[test]
    fn whoever_asks_finds_every_end_counted_however_many_there_were_since_the_last_time() {
        let (observer, model) = model();
        let (at, mut count) = (Instant::now(), 0);
        for more in [1, RECENT - 1, RECENT, 1, 2 * RECENT + 1] {
            for _ in 0..more {
                let end = End { outcome: Outcome::ok, latency: 3 * MILLIS, decode_time: None, at };
                model.metrics().ended(end, None);
            }
            count += more as u64;
            if count % 2 == 0 {
                let line = format!("ortolan_requests_total{{model=\"espresso\",outcome=\"ok\"}} {count}");
                let text = observer.metrics.prometheus_text();
                assert!(text.lines().any(|seen| seen == line), "expected {line} in\n{text}");
            }
            assert_eq!((model.answered(None).total, model.seen(at).answered), (count, count));
        }
    }

    #[test]
    fn an_example_counts_none_that_ended_before_it_as_of_its_own_time() {
        let (_, model) = model();
        let began = Instant::now();
        let end = |seconds| {
            let at = began + Duration::from_secs(seconds);
            End { outcome: Outcome::ok, latency: MILLIS, decode_time: None, at }
        };
        (0..3).for_each(|_| model.metrics().ended(end(0), None));
        let redactor = Arc::clone(Events::quiet().redactor());
        model.metrics().ended(end(50), Some(Example { trace: TraceId(10), request_id: None, redactor }));
        assert_eq!(model.seen(began + Duration::from_secs(65)).answered, 1);
        assert_eq!(model.answered(None).total, 4);
    }

    #[test]
    fn an_end_that_is_counted_late_counts_as_of_when_it_was() {
        let (observer, model) = model();
        let at = Instant::now();
        model.metrics().ended(End { outcome: Outcome::ok, latency: 7 * MILLIS, decode_time: None, at }, None);
        let later = at + Duration::from_secs(400);
        assert_eq!((model.seen(later).answered, model.answered(None).total), (0, 1));
        let longest = |now, seconds: &str| {
            model.metrics().stands(Standing::default(), now);
            let line = format!("ortolan_request_latency_max_seconds{{model=\"espresso\"}} {seconds}");
            let text = observer.metrics.prometheus_text();
            assert!(text.lines().any(|seen| seen == line), "expected {line} in\n{text}");
        };
        longest(later, "0.0");
        model.metrics().ended(End { outcome: Outcome::ok, latency: 9 * MILLIS, decode_time: None, at: later }, None);
        longest(later, "0.009");
    }
}
