//! Whether there is room: the bounds of a queue, and what counts against them.

use std::time::{Duration, Instant};

use smallvec::SmallVec;

use super::{Queue, as_u32, choice};
use crate::{integral::Integral, times::BucketTimes};

/// Requests whose bodies are still on their way, for each sample that may wait. They are no work yet and take no place in the
/// queue, so that senders who stall shut nobody out; each costs some memory, so that there is a bound.
const INCOMING_PER_PLACE: usize = 16;

/// How much may wait, and how batches are made of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Longest predicted time from admission to answer; a wait of two runs of the largest bucket is always let in.
    pub max_wait: Duration,
    /// Most samples.
    pub samples: usize,
    /// Most bytes of samples.
    pub bytes: usize,
    /// Largest batch, in samples.
    pub batch_size: usize,
    /// Whether a batch gets rows that are nobody's, up to the size of a bucket; else it takes the less time the fewer it has.
    pub is_padded: bool,
    /// Longest that an idle instance waits for company.
    pub batch_timeout: Duration,
    /// Latency that the choice of the bucket is to keep.
    pub latency_objective: Option<Duration>,
    /// A run that takes longer is ended, and nobody in it answered.
    pub run_timeout: Duration,
}

/// Why a job was not let in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refused {
    /// The bound that it would have crossed.
    pub bound: Bound,
    /// When there will be room again, by the measured rate at which the queue drains.
    pub retry_after: Duration,
}

/// The bounds of a queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bound {
    /// The predicted wait, with the run that ends it.
    Wait {
        /// What was predicted.
        predicted: Duration,
        /// What is allowed.
        limit: Duration,
    },
    /// The same, where it is something else that has to be waited for first.
    Before {
        /// What was predicted.
        predicted: Duration,
        /// What is allowed.
        limit: Duration,
    },
    /// The number of samples.
    Samples(usize),
    /// The number of requests whose bodies are still on their way.
    Incoming(usize),
    /// The bytes of samples.
    Bytes(usize),
    /// The same, by one request alone: it will never have room.
    Request {
        /// The bytes that it needs.
        bytes: usize,
        /// What is allowed.
        limit: usize,
    },
}

/// What was let in and has not left.
#[derive(Debug, Default)]
pub(super) struct Admitted {
    pub(super) samples: Integral,
    pub(super) bytes: usize,
    /// What the waiting jobs will take, by the times known when they came.
    work: Duration,
    /// Requests that asked for a place and have not been let in yet.
    reserved: usize,
    /// Those of them that are complete: work that is certain to come.
    pub(super) complete: Integral,
    held: usize,
    /// How many were refused.
    refused: u32,
    /// Requests that asked for a place since it began.
    asked: u64,
    /// Samples that came in since it began.
    entered: u64,
    /// Most samples that waited since somebody looked.
    deepest: usize,
}

/// What has come to a queue since it began. None of it ever falls.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Passed {
    /// Requests that asked for a place.
    pub asked: u64,
    /// Samples that were let in.
    pub entered: u64,
    /// Samples that left, whatever the reason.
    pub left: u64,
}

impl Admitted {
    pub(super) fn enter(&mut self, samples: usize, bytes: usize, cost: Duration, now: Instant) {
        self.samples.set(self.samples.level() + samples, now);
        self.entered += samples as u64;
        self.deepest = self.deepest.max(self.samples.level());
        self.bytes += bytes;
        self.work += cost;
    }

    pub(super) fn leave(&mut self, samples: usize, bytes: usize, cost: Duration, now: Instant) {
        self.samples.set(self.samples.level() - samples, now);
        self.bytes -= bytes;
        self.work = self.work.saturating_sub(cost);
    }

    /// All that waited is gone; places that are reserved stay.
    pub(super) fn empty(&mut self, now: Instant) {
        self.samples.set(0, now);
        (self.bytes, self.work) = (0, Duration::ZERO);
    }
}

impl<T> Queue<T> {
    /// What has come to it since it began.
    #[must_use]
    pub fn passed(&self) -> Passed {
        let Admitted { asked, entered, ref samples, .. } = self.admitted;
        Passed { asked, entered, left: entered - samples.level() as u64 }
    }

    /// Most samples that waited at once since this was asked last.
    pub fn take_deepest(&mut self) -> usize {
        std::mem::replace(&mut self.admitted.deepest, self.admitted.samples.level())
    }

    /// How long a job that came now would wait, by the measured times.
    #[must_use]
    pub fn predicted_wait(&self, now: Instant) -> Duration {
        // A request whose body is still on its way is no work yet; slow senders must not shut others out.
        let queued = self.admitted.work.saturating_add(self.groups.beyond() + self.usual_cost(self.decoding()));
        // What should have ended and has not may hang: as long again is expected, the more the longer it does.
        let time_to = |end: Instant| if end > now { end - now } else { now - end };
        let busy_for = |busy: &Option<Instant>| busy.map_or(Duration::ZERO, time_to);
        begun_after(self.working().map(busy_for).collect(), self.pace.of(queued))
    }

    /// Lets a request begin whose body is not read yet, so that a full queue refuses on the headers alone. It has its place once
    /// it is [complete](Self::complete). To be ended by [`Self::release`].
    ///
    /// # Errors
    /// [`Refused`] where the predicted wait, the number of samples or that of bodies on their way is over its bound.
    pub fn reserve(&mut self, now: Instant) -> Result<(), Refused> {
        self.admitted.asked += 1;
        self.admit_wait(0, now)?;
        self.admit_samples(1)?;
        let limit = self.limits.samples.saturating_mul(INCOMING_PER_PLACE);
        if self.admitted.reserved - self.decoding() >= limit {
            return Err(self.refused(Bound::Incoming(limit), Duration::ZERO));
        }
        self.admitted.reserved += 1;
        Ok(())
    }

    /// Holds room for more bytes of a request that holds some already, so that bodies on their way are bounded like those
    /// that wait. Give it back by [`Self::release`].
    ///
    /// # Errors
    /// [`Refused`] where the bytes are over their bound.
    pub fn hold(&mut self, bytes: usize, held_by_it: usize) -> Result<(), Refused> {
        self.admit_bytes(bytes, held_by_it)?;
        self.admitted.held += bytes;
        Ok(())
    }

    /// A request that was let begin has come in whole, and holds a place from now on. The bounds are judged once more, for its body
    /// may have taken long, and what is refused now need not be decoded.
    ///
    /// # Errors
    /// [`Refused`] where the predicted wait or the number of samples is over its bound by now.
    pub fn complete(&mut self, now: Instant) -> Result<(), Refused> {
        self.admit_wait(0, now)?;
        self.admit_samples(1)?;
        self.admitted.complete.set(self.decoding() + 1, now);
        Ok(())
    }

    /// Judges the wait of a request that has to wait so long for something else before it comes into the queue. What waits there
    /// goes on meanwhile, and was judged by itself: the longer one of the two waits counts.
    ///
    /// # Errors
    /// [`Refused`] where that wait, with the run that ends it, is over the bound on waits.
    pub fn admit_after(&mut self, wait: Duration) -> Result<(), Refused> {
        let (run, limit) = self.bound();
        let predicted = wait.saturating_add(run);
        if predicted <= limit {
            return Ok(());
        }
        Err(self.refused(Bound::Before { predicted, limit }, predicted - limit))
    }

    /// Ends what [`Self::reserve`] began: gives the place back, and the bytes that were held.
    pub fn release(&mut self, held: usize, complete: bool, now: Instant) {
        let admitted = &mut self.admitted;
        admitted.reserved = admitted.reserved.saturating_sub(1);
        if complete {
            admitted.complete.set(admitted.complete.level().saturating_sub(1), now);
        }
        admitted.held = admitted.held.saturating_sub(held);
    }

    /// The longest [predicted wait](Self::predicted_wait) with which a job is let in, by the measured times.
    #[must_use]
    pub fn longest_wait(&self) -> Duration {
        let (run, limit) = self.bound();
        self.pace.longest_within(limit.saturating_sub(run), run)
    }

    /// How long a run takes, and the bound on a wait with what it may take beyond its mean and with the run that ends it.
    pub(super) fn bound(&self) -> (Duration, Duration) {
        let run = self.best_run();
        (run, self.bound_of(run))
    }

    fn best_run(&self) -> Duration {
        self.pace.of(self.of_recent(BucketTimes::best))
    }

    /// Never less than what is asked for.
    fn bound_of(&self, run: Duration) -> Duration {
        let least = self.pace.of(self.of_recent(BucketTimes::largest) * 2);
        // Two runs may always wait, else there were no full batches where a run takes as long as the bound.
        self.limits.max_wait.max(least + self.pace.spread(least, run) + run)
    }

    /// Whether the predicted wait is within its bound for a request, `further` samples beyond its first included. Where
    /// nothing else waits, those do not count; else a request that costs more than the whole bound could never get in.
    pub(super) fn admit_wait(&mut self, further: usize, now: Instant) -> Result<(), Refused> {
        let run = self.best_run();
        // Not those that are decoded: of several that cost so much each would be refused on account of the others.
        let others_wait = self.samples() > 0;
        let further = if others_wait { self.drain_time(further) } else { Duration::ZERO };
        let wait = self.predicted_wait(now) + further;
        // It may be the first of the run that answers it: those before it have others, and all of that run is still to come.
        let predicted = wait + self.pace.spread(wait, run) + run;
        // Most requests need not know more of the bound.
        if predicted <= self.limits.max_wait {
            return Ok(());
        }
        let limit = self.bound_of(run);
        if predicted <= limit {
            return Ok(());
        }
        Err(self.refused(Bound::Wait { predicted, limit }, predicted - limit))
    }

    pub(super) fn admit_samples(&mut self, samples: usize) -> Result<(), Refused> {
        let wanted = self.samples() + self.decoding() + samples;
        if wanted <= self.limits.samples {
            return Ok(());
        }
        let over = self.drain_time(wanted - self.limits.samples);
        Err(self.refused(Bound::Samples(self.limits.samples), over))
    }

    pub(super) fn admit_bytes(&mut self, bytes: usize, held_by_it: usize) -> Result<(), Refused> {
        let limit = self.limits.bytes;
        let wanted = held_by_it.saturating_add(bytes);
        // Trying again would not help it: there is never more room than all of it.
        if wanted > limit {
            return Err(Refused { bound: Bound::Request { bytes: wanted, limit }, retry_after: Duration::ZERO });
        }
        let known = self.admitted.bytes + self.admitted.held;
        if known.saturating_add(bytes) <= limit {
            return Ok(());
        }
        let over = self.drain_time(self.samples() + self.decoding());
        Err(self.refused(Bound::Bytes(limit), over))
    }

    /// Room comes when the excess has drained, but by whole runs. Those who were refused together are spread over one more,
    /// else they came back together.
    fn refused(&mut self, bound: Bound, excess: Duration) -> Refused {
        const TURNS: u32 = 8;
        let turn = self.admitted.refused % TURNS;
        self.admitted.refused = self.admitted.refused.wrapping_add(1);
        let run = self.best_run();
        Refused { bound, retry_after: excess.max(run) + run * turn / TURNS }
    }

    /// How long that many samples take by the measured times.
    fn drain_time(&self, samples: usize) -> Duration {
        self.shared(self.pace.of(self.usual_cost(samples)))
    }

    /// When each instance that works is expected to be free.
    pub(super) fn working(&self) -> impl Iterator<Item = &Option<Instant>> {
        self.busy_until.iter().zip(&self.lost).filter(|(_, lost)| !**lost).map(|(busy_until, _)| busy_until)
    }

    /// What the instances that work need together for what one would need so long for.
    fn shared(&self, alone: Duration) -> Duration {
        alone / as_u32(self.working().count().max(1))
    }

    fn usual_cost(&self, samples: usize) -> Duration {
        self.of_recent(BucketTimes::best_per_sample).saturating_mul(as_u32(samples))
    }

    /// Something of the times that ran last and of the most samples that a batch may have; nothing where none did.
    fn of_recent<R: Default>(&self, tell: impl FnOnce(&BucketTimes, usize) -> R) -> R {
        let most = |times| choice::allowed(times, &self.limits);
        self.times.recent().map_or_else(R::default, |times| tell(times, most(times)))
    }
}

/// When instances that are busy for so long have begun all that waits, each with what is next as soon as it is free.
fn begun_after(mut busy_for: SmallVec<[Duration; 8]>, waiting: Duration) -> Duration {
    busy_for.sort_unstable();
    let (mut sum, mut after) = (waiting, waiting);
    for (count, busy) in (1..).zip(&busy_for) {
        // Those that are busy for longer take nothing of it.
        if count > 1 && *busy >= after {
            break;
        }
        sum = sum.saturating_add(*busy);
        after = sum / count;
    }
    after
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_instance_that_is_free_takes_what_waits_however_long_the_others_are_busy() {
        let begun = |busy: &[u64], waiting| {
            begun_after(busy.iter().copied().map(Duration::from_millis).collect(), Duration::from_millis(waiting))
                .as_millis()
        };
        assert_eq!(begun(&[0, 3000], 2), 2, "the other one comes too late to help");
        assert_eq!(begun(&[3000, 40, 20], 0), 20, "the first that is free");
        assert_eq!(begun(&[10, 30], 100), 70, "both, once both are free");
        assert_eq!(begun(&[10, 30, 500], 100), 70);
        assert_eq!(begun(&[], 7), 7);
    }
}
