//! Where those who bring work meet those who do it: one lock, one wake-up, and an end.
//!
//! Knows nothing of jobs, so that every order in which threads can run is tried on it: see `tests/meeting.rs`, which builds
//! this file against a model of concurrency.

use std::time::{Duration, Instant};

use super::sync::{Condvar, Mutex, MutexGuard, PoisonError};

/// What a worker finds.
pub enum Found<W> {
    /// Something to do, and whether there is more.
    Work(W, bool),
    /// Nothing, until somebody brings something.
    Nothing,
    /// Nothing until then, unless somebody brings something before.
    NothingUntil(Instant),
}

struct Place<Q> {
    queue: Q,
    is_open: bool,
    /// Workers that wait. Waking costs a call of the system, even where nobody does.
    waiting: usize,
}

/// A queue that several bring work to and several take work from.
pub struct Meeting<Q> {
    place: Mutex<Place<Q>>,
    wake: Condvar,
}

/// A worker does not poison the lock by panicking inside; were it to, the data is still whole.
fn whole<T>(result: Result<T, PoisonError<T>>) -> T {
    result.unwrap_or_else(PoisonError::into_inner)
}

impl<Q> Meeting<Q> {
    /// A meeting over a queue.
    pub fn new(queue: Q) -> Self {
        Self { place: Mutex::new(Place { queue, is_open: true, waiting: 0 }), wake: Condvar::new() }
    }

    fn place(&self) -> MutexGuard<'_, Place<Q>> {
        whole(self.place.lock())
    }

    /// Does something with the queue that brings no work.
    pub fn with<R>(&self, act: impl FnOnce(&mut Q) -> R) -> R {
        act(&mut self.place().queue)
    }

    /// Brings work, and wakes a worker for it, who wakes the next where it leaves some. `None` once the meeting is over: what came after
    /// would never be done.
    pub fn bring<R>(&self, put: impl FnOnce(&mut Q) -> R) -> Option<R> {
        let (put, waiting) = {
            let mut place = self.place();
            (place.is_open.then(|| put(&mut place.queue))?, place.waiting)
        };
        if waiting > 0 {
            self.wake.notify_one();
        }
        Some(put)
    }

    /// Blocks until there is something to do. `None` once the meeting is over. Whoever leaves something wakes another: that one may wait
    /// for company of what was just taken.
    pub fn next<W>(&self, mut look: impl FnMut(&mut Q) -> Found<W>) -> Option<W> {
        let mut place = self.place();
        while place.is_open {
            place = match look(&mut place.queue) {
                Found::Work(work, is_more) => {
                    if is_more && place.waiting > 0 {
                        self.wake.notify_one();
                    }
                    return Some(work);
                }
                Found::Nothing => {
                    place.waiting += 1;
                    whole(self.wake.wait(place))
                }
                Found::NothingUntil(until) => {
                    place.waiting += 1;
                    self.wait_until(place, until)
                }
            };
            place.waiting -= 1;
        }
        None
    }

    fn wait_until<'a>(&self, place: MutexGuard<'a, Place<Q>>, until: Instant) -> MutexGuard<'a, Place<Q>> {
        let time = until.saturating_duration_since(Instant::now());
        if time == Duration::ZERO { place } else { whole(self.wake.wait_timeout(place, time)).0 }
    }

    /// Ends the meeting: whoever waits leaves, whoever comes finds it closed. What is left in the queue is cleared by
    /// `clear`, under the lock, so that nothing is brought in between.
    pub fn end<R>(&self, clear: impl FnOnce(&mut Q) -> R) -> R {
        let left = {
            let mut place = self.place();
            place.is_open = false;
            clear(&mut place.queue)
        };
        self.wake.notify_all();
        left
    }

    /// Whether it has ended.
    pub fn is_over(&self) -> bool {
        !self.place().is_open
    }
}
