//! What is counted of the requests of a model that have ended: for its metrics, for health, and for autoscaling.
//!
//! ```text
//! a request ends ▸ recent ends ─┬─▸ counters and histograms    once they are many, or somebody asks
//!                               └─▸ window
//! ```
//!
//! Whoever asks finds all of them counted. A place in each of four histograms takes longest to find where other work has been done
//! since the last request; so a request only writes down how it ended, and a few are counted in one go.

use std::{
    fmt,
    sync::{Mutex, MutexGuard, PoisonError},
};

use super::{End, Example, numbers::Ends, window::Window};

/// So many are counted in one go: few enough to stay beside the processor, a line of its cache each.
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
    use std::time::{Duration, Instant};

    use super::*;
    use crate::observe::{Bounds, Observer, Outcome};

    #[test]
    fn whoever_asks_finds_every_end_counted_however_few_there_are() {
        let observer = Observer::quiet("1.31.1");
        let bounds = Bounds { batch_size: 8, max_wait: Duration::from_millis(500), latency_objective: None };
        let model = observer.model("espresso", &bounds);
        let (at, latency) = (Instant::now(), Duration::from_millis(3));
        for count in 1..=3 * RECENT as u64 {
            model.metrics().ended(End { outcome: Outcome::ok, latency, decode_time: None, at }, None);
            if count % 5 == 0 {
                let line = format!("ortolan_requests_total{{model=\"espresso\",outcome=\"ok\"}} {count}");
                let text = observer.metrics.prometheus_text();
                assert!(text.lines().any(|seen| seen == line), "expected {line} in\n{text}");
            }
            if count % 7 == 0 {
                assert_eq!((model.answered(None).total, model.seen(at).answered), (count, count));
            }
        }
    }
}
