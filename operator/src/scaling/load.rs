//! The load of all pods, on average over some time, and how many replicas it asks for.

use std::time::Duration;

use super::{
    History, Reading,
    history::WAITING,
    policy::{Policy, replicas},
};

/// A smaller share of the requests that is refused may be chance.
pub(super) const REFUSED: f64 = 0.01;

/// Where no larger share of the samples waits, none can be said to: some do for a moment even where there is room.
const CALM: f64 = 0.01;

/// Where a larger share of the samples waits, the load may grow faster than the replicas become fewer: batches are larger and take
/// longer, and more waits for them.
const BUSY: f64 = 0.25;

/// A queue that has fallen to this part of what it was within the last reading is gone within ten seconds: before any pod is there.
const WORKED_OFF: f64 = 0.9;

/// Samples in all pods.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Load {
    load: f64,
    queued: f64,
    /// Those of them that waited for others.
    in_queue: f64,
    /// Replicas that the queue asks for.
    by_queue: f64,
    /// Replicas that are ready.
    ready: f64,
    /// Requests that were refused.
    refused: u64,
    /// Requests that were answered.
    answered: u64,
    /// Pods that count as full.
    full: f64,
    /// The time that this is the average of.
    seconds: f64,
}

/// What ready pods count as whose numbers are missing.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Missing {
    /// They carry nothing.
    Idle,
    /// They carry all that a replica should.
    Full,
}

impl Load {
    pub fn at(reading: &Reading) -> Self {
        Self { load: reading.load_now, queued: reading.queued_now, ..Self::default() }
    }

    /// The average over the last readings that make up the window, or at least over the last one.
    pub fn over(history: &History, window: Duration, missing: Missing, policy: &Policy) -> Self {
        let (mut seconds, mut sum) = (0.0, Self::default());
        let at = history.last().map(|last| last.at).unwrap_or_default();
        for reading in history.backwards() {
            let is_old = reading.at + window < at;
            if seconds > 0.0 && (is_old || seconds >= window.as_secs_f64()) {
                break;
            }
            // A first reading has no span, and counts for a moment.
            let weight = reading.span.as_secs_f64().max(1e-3);
            seconds += weight;
            sum.load += offered(reading, policy) * weight;
            sum.queued += reading.queued * weight;
            sum.in_queue += reading.in_queue * weight;
            sum.by_queue += by(reading.queued, policy.queue_per_replica).min(most_of_queue(reading)) * weight;
            sum.ready += f64::from(reading.ready) * weight;
            sum.refused += reading.refused;
            sum.answered += reading.answered;
            sum.full += reading.silent() * weight;
        }
        let weight = f64::max(seconds, 1e-3);
        // Who is silent now is so from now on, whatever it told before; and who was before has told nothing of that time.
        let silent = history.last().map_or(0.0, Reading::silent).max(sum.full / weight);
        let full = if missing == Missing::Full { silent } else { 0.0 };
        // What is there at one moment may be chance, and counts for long where what was recommended least is gone by.
        let is_worked_off = |last: &&Reading| policy.up_stabilization.is_zero() && is_worked_off(last);
        let worked_off = history.last().filter(is_worked_off).map_or(f64::INFINITY, |last| f64::from(last.ready));
        let by_queue = (sum.by_queue / weight).min(worked_off);
        Self {
            load: sum.load / weight,
            queued: sum.queued / weight,
            by_queue,
            in_queue: sum.in_queue / weight,
            ready: sum.ready / weight,
            full,
            seconds,
            ..sum
        }
    }

    /// Whether so much waited that fewer replicas may have more than their share of it.
    pub fn is_busy(self) -> bool {
        self.in_queue > BUSY * self.load
    }

    /// Whether nothing waited or was refused.
    pub fn is_calm(self) -> bool {
        self.refused == 0 && self.in_queue <= CALM * self.load
    }

    /// Replicas that run all that comes, each so much less busy than those that are there, whatever the target asks for: see
    /// [`HURRIED_SHARE`].
    ///
    /// [`HURRIED_SHARE`]: super::policy::HURRIED_SHARE
    pub fn hurried(self, policy: &Policy) -> f64 {
        self.ready * came_by_answered(self.refused, self.answered) / policy.hurried_share
    }

    /// Whether it is of enough time to say something about so much: who has just begun has seen little.
    pub fn is_of_half(self, window: Duration) -> bool {
        self.seconds >= window.as_secs_f64() / 2.0
    }

    /// Replicas in which it would be on target.
    pub fn replicas(self, policy: &Policy) -> f64 {
        by(self.load, policy.inflight_per_replica).max(by(self.queued, policy.queue_per_replica)) + self.full
    }

    /// Replicas that carry it: fewer, where a queue is long and little more comes than is answered.
    pub fn asked_for(self, policy: &Policy) -> f64 {
        by(self.load, policy.inflight_per_replica).max(self.by_queue) + self.full
    }
}

/// Replicas with so many samples each.
fn by(samples: f64, target: Option<f64>) -> f64 {
    target.map_or(0.0, |target| samples / target)
}

/// Replicas that are asked for at most where none or hardly any requests are refused: twice those that are ready.
///
/// Requests that come more than twice as fast as they are answered fill the queues, which are bounded in time, within a reading or
/// so; where nothing was refused since the last one, fewer came, however much waits.
pub(super) fn most_without_refusals(last: &Reading) -> f64 {
    2.0 * f64::from(last.ready)
}

/// Requests that came ÷ requests that were answered.
fn came_by_answered(refused: u64, answered: u64) -> f64 {
    match (refused, answered) {
        (0, _) => 1.0,
        (_, 0) => f64::INFINITY,
        (refused, answered) => (refused + answered) as f64 / answered as f64,
    }
}

/// Whether samples wait: a load that fits into what the replicas run at once hurts nobody, and there is no hurry.
pub(super) fn is_waiting(reading: &Reading) -> bool {
    is_refusing(reading) || reading.queued > WAITING * reading.load
}

/// Whether a share of the requests is refused that cannot be overlooked.
pub(super) fn is_refusing(reading: &Reading) -> bool {
    reading.refused > 0 && reading.refused as f64 >= REFUSED * (reading.refused + reading.answered) as f64
}

/// Whether replicas are short: a part of the samples is in a queue, or of the requests refused.
pub(super) fn is_short(reading: &Reading) -> bool {
    is_refusing(reading) || reading.has_queue()
}

/// What a queue asks for at most: as many as are ready, times what came by what was answered.
///
/// It is as long when a little too much comes as when ten times too much does. What has gathered is worked off with the replicas that
/// come for what comes.
fn most_of_queue(reading: &Reading) -> f64 {
    if !is_refusing(reading) || reading.answered == 0 {
        return most_without_refusals(reading);
    }
    f64::from(replicas(f64::from(reading.ready) * came_by_answered(reading.refused, reading.answered)))
}

/// Whether the queue will soon be gone without more replicas.
fn is_worked_off(reading: &Reading) -> bool {
    reading.refused == 0 && reading.queued_now < WORKED_OFF * reading.queued
}

/// Samples that would run and wait if none were refused.
///
/// A full queue says that there is too little and not how much: it is as long for a load that is a little too high as for one that
/// is ten times too high. Requests that came ÷ requests that were answered says it, and what waits only because there is too little is
/// left out. Clients that ask again at once make more of the requests, so it is never more than what is really there.
fn offered(reading: &Reading, policy: &Policy) -> f64 {
    if reading.refused == 0 || reading.answered == 0 {
        return reading.load;
    }
    // A target above what a replica runs at once means that some may wait.
    let aimed_at = policy.inflight_per_replica.unwrap_or_default() * f64::from(reading.ready);
    let carried = f64::max(reading.load - reading.queued, aimed_at);
    (carried * came_by_answered(reading.refused, reading.answered)).min(reading.load)
}
