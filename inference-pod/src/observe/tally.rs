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
    fmt, mem,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Instant,
};

use super::{End, Example, Outcome, numbers::Ends, window::Window};

/// So many are counted in one go: few enough to stay near the processor.
const RECENT: usize = 32;

/// The requests of a model that have ended. Its lock and what is next to it begin a line of the processor's cache, which is one of the
/// two that a request writes to.
#[repr(align(64))]
pub struct Tally(Mutex<Counted>);

/// All of them, counted.
#[repr(C)]
pub struct Counted {
    recent: Recent,
    /// Whether any were counted that nobody has asked for by [`Counted::have_changed`].
    changed: bool,
    /// For metrics.
    pub ends: Ends,
    /// For health and autoscaling.
    pub window: Window,
}

/// Those that are not counted yet.
struct Recent {
    length: usize,
    ends: Box<[Line; RECENT]>,
}

/// Each has one.
#[derive(Clone, Copy)]
#[repr(align(64))]
struct Line(End);

impl fmt::Debug for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Tally")
    }
}

impl Counted {
    fn count(&mut self) {
        let Recent { length, ends } = &mut self.recent;
        let recent = &ends[..mem::take(length)];
        self.changed |= !recent.is_empty();
        for Line(end) in recent {
            let latency = end.latency();
            self.ends.count(end, latency, None);
            self.window.ended(end.outcome, latency, end.at);
        }
    }

    /// Whether any have ended since this was asked last.
    pub fn have_changed(&mut self) -> bool {
        mem::take(&mut self.changed)
    }
}

impl Tally {
    /// None yet.
    #[must_use]
    pub fn new(ends: Ends, window: Window) -> Self {
        let now = Instant::now();
        let none = Line(End { outcome: Outcome::ok, began: now, at: now, decode_time: None });
        let recent = Recent { length: 0, ends: Box::new([none; RECENT]) };
        Self(Mutex::new(Counted { recent, changed: false, ends, window }))
    }

    /// A request has ended.
    pub fn ended(&self, end: End) {
        let mut counted = self.lock();
        let Recent { length, ends } = &mut counted.recent;
        ends[*length] = Line(end);
        *length += 1;
        if *length == RECENT {
            counted.count();
        }
    }

    /// One that is traced, and may be an example.
    pub fn ended_traced(&self, end: End, example: Option<Example>) {
        let mut counted = self.counted();
        let latency = end.latency();
        counted.ends.count(&end, latency, example);
        counted.window.ended(end.outcome, latency, end.at);
        counted.changed = true;
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
                model.metrics().ended(End::after(Outcome::ok, 3 * MILLIS, at));
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
        let end = |seconds| End::after(Outcome::ok, MILLIS, began + Duration::from_secs(seconds));
        (0..3).for_each(|_| model.metrics().ended(end(0)));
        let redactor = Arc::clone(Events::quiet().redactor());
        model.metrics().ended_traced(end(50), Some(Example { trace: TraceId(10), request_id: None, redactor }));
        assert_eq!(model.seen(began + Duration::from_secs(65)).answered, 1);
        assert_eq!(model.answered(None).total, 4);
    }

    #[test]
    fn an_end_that_is_counted_late_counts_as_of_when_it_was() {
        let (observer, model) = model();
        let at = Instant::now();
        model.metrics().ended(End::after(Outcome::ok, 7 * MILLIS, at));
        let later = at + Duration::from_secs(400);
        assert_eq!((model.seen(later).answered, model.answered(None).total), (0, 1));
        let longest = |now, seconds: &str| {
            model.metrics().stands(Standing::default(), now);
            let line = format!("ortolan_request_latency_max_seconds{{model=\"espresso\"}} {seconds}");
            let text = observer.metrics.prometheus_text();
            assert!(text.lines().any(|seen| seen == line), "expected {line} in\n{text}");
        };
        longest(later, "0.0");
        model.metrics().ended(End::after(Outcome::ok, 9 * MILLIS, later));
        longest(later, "0.009");
    }
}
