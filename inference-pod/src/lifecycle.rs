//! From start to exit: what the process is doing, as seen by connections, probes and handlers.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, Instant},
};

use jiff::Timestamp;
use tokio::sync::watch;

/// The serving loop proves that it moves this often.
pub const HEARTBEAT: Duration = Duration::from_millis(250);

/// A serving loop that has not moved for so long is stuck, not busy: nothing on it may block for a fraction of it.
const STUCK_AFTER: Duration = Duration::from_secs(15);

/// What the process is doing. Later ones are never followed by earlier ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    /// It serves, or will once its models are loaded.
    Serving,
    /// It was told to stop: not ready any more, but everything is still served, while load balancers turn away.
    Draining,
    /// The listeners are closed; accepted requests finish.
    Closing,
}

/// The phase, and the pulse of the serving loop.
pub struct Lifecycle {
    phase: watch::Sender<Phase>,
    started: Instant,
    started_at: Timestamp,
    /// Milliseconds from `started` to the last beat.
    beat: AtomicU64,
}

impl Default for Lifecycle {
    fn default() -> Self {
        Self {
            phase: watch::Sender::new(Phase::Serving),
            started: Instant::now(),
            started_at: crate::clock::timestamp(),
            beat: AtomicU64::new(0),
        }
    }
}

impl Lifecycle {
    /// What the process is doing.
    #[must_use]
    pub fn phase(&self) -> Phase {
        *self.phase.borrow()
    }

    /// Goes on to a later phase.
    pub fn enter(&self, phase: Phase) {
        self.phase.send_if_modified(|current| {
            let later = phase > *current;
            *current = phase.max(*current);
            later
        });
    }

    /// Sees every phase from now on.
    #[must_use]
    pub fn subscribe(&self) -> watch::Receiver<Phase> {
        self.phase.subscribe()
    }

    /// When the process began.
    #[must_use]
    pub fn started(&self) -> Instant {
        self.started
    }

    /// The same by the clock on the wall, as it was then: it tells one process from the next.
    #[must_use]
    pub fn started_at(&self) -> Timestamp {
        self.started_at
    }

    /// The serving loop moves.
    pub fn beat(&self) {
        let elapsed = u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.beat.store(elapsed, Ordering::Relaxed);
    }

    /// Beats for as long as it is polled by the serving loop.
    pub async fn keep_beating(&self) {
        let mut interval = tokio::time::interval(HEARTBEAT);
        loop {
            interval.tick().await;
            self.beat();
        }
    }

    /// How long the serving loop has not moved, where that is too long.
    #[must_use]
    pub fn stuck_for(&self) -> Option<Duration> {
        let last = Duration::from_millis(self.beat.load(Ordering::Relaxed));
        let still = self.started.elapsed().saturating_sub(last);
        (still > STUCK_AFTER).then_some(still)
    }
}
