//! The queue of a model: bounded, in order, and the place where jobs become batches.
//!
//! Pure: `now` is an argument, nothing waits here. [`crate::worker`] puts a lock and a wake-up around it, and
//! [`crate::simulate`] a clock that only it moves.
//!
//! ```text
//! admission    is there room? bounded in time first, then in samples and in bytes
//! push, take   in by the request, out by the instance that is free
//! choice       which jobs share the run, and whether company is worth a wait
//! groups       which of the waiting jobs can share runs, and what it costs that others cannot
//! ```

mod admission;
mod arrivals;
mod choice;
mod groups;
mod pace;
#[cfg(test)]
mod properties;
#[cfg(test)]
mod tests;

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use smallvec::SmallVec;

pub use self::admission::{Bound, Limits, Passed, Refused};
use self::{admission::Admitted, arrivals::Arrivals, choice::Choice, groups::Groups, pace::Pace};
use crate::{
    integral::Reading,
    times::{LengthClass, Times},
};

/// What must be equal for jobs to share a batch: the dimensions of each input, without the batch's and without one that is
/// padded, one input after the other.
pub type Shape = SmallVec<[usize; 8]>;

/// A job that asks to be let in.
#[derive(Debug)]
pub struct NewJob<T> {
    /// Its samples, at most the batch size.
    pub samples: usize,
    /// Their bytes.
    pub bytes: usize,
    /// Only jobs of equal shapes share a batch.
    pub shape: Shape,
    /// What a sample costs grows with it: tokens, or elements. A batch costs as if each sample were as long as its longest.
    pub length: usize,
    /// When its answer is of no more use.
    pub deadline: Instant,
    /// What the worker needs.
    pub payload: T,
}

/// Names a waiting job. Jobs are ordered by when they are due, then by arrival.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Key {
    /// Its deadline; or the end of the wait that is asked for, where this is earlier. Who is in no hurry is overtaken for so long, and not
    /// for as long as others come who are. Nothing that is measured is in it: who came earlier would be due later than who comes now.
    due: Instant,
    arrival: u64,
}

/// A job in the queue.
#[derive(Debug)]
pub struct Waiting<T> {
    /// Its samples.
    pub samples: usize,
    /// When it was let in.
    pub entered: Instant,
    /// When its answer is of no more use.
    deadline: Instant,
    /// What the worker needs.
    pub payload: T,
    bytes: usize,
    shape: Shape,
    length: usize,
    /// What it adds to the wait of those behind it.
    cost: Duration,
}

/// What an instance gets when it is free.
#[derive(Debug)]
pub struct Taken<T> {
    /// The jobs to run together, in the order of their rows.
    pub batch: Vec<Waiting<T>>,
    /// Jobs that can no longer make their deadline. They are to be answered, not run.
    pub expired: Vec<Waiting<T>>,
    /// The instance has reason to wait for company until then, unless somebody comes before.
    pub wait_until: Option<Instant>,
}

/// A batch that ran.
#[derive(Debug, Clone, Copy)]
pub struct Run {
    /// The instance it ran on.
    pub instance: usize,
    /// Samples in it.
    pub samples: usize,
    /// Length of its longest sample.
    pub length: usize,
    /// Time it took.
    pub time: Duration,
}

/// The waiting jobs of a model, and what is known of its instances.
#[derive(Debug)]
pub struct Queue<T> {
    limits: Limits,
    times: Times,
    waiting: BTreeMap<Key, Waiting<T>>,
    admitted: Admitted,
    groups: Groups,
    arrivals: Arrivals,
    arrived: u64,
    pace: Pace,
    /// When each instance is expected to be free; `None` while it is.
    busy_until: Vec<Option<Instant>>,
    /// Instances that were given up.
    lost: Vec<bool>,
}

impl<T> Queue<T> {
    /// An empty queue for that many instances.
    #[must_use]
    pub fn new(limits: Limits, times: Times, instances: usize) -> Self {
        Self {
            limits,
            times,
            waiting: BTreeMap::new(),
            admitted: Admitted::default(),
            groups: Groups::default(),
            arrivals: Arrivals::default(),
            arrived: 0,
            pace: Pace::new(instances.max(1)),
            busy_until: vec![None; instances.max(1)],
            lost: vec![false; instances.max(1)],
        }
    }

    /// Samples that wait.
    #[must_use]
    pub fn samples(&self) -> usize {
        self.admitted.samples.level()
    }

    /// Samples that wait, with their integral over time up to now.
    pub fn samples_over_time(&mut self, now: Instant) -> Reading {
        self.admitted.samples.read(now)
    }

    /// Requests that are [complete](Self::complete) and not let in yet: their bodies are decoded, or wait for that.
    #[must_use]
    pub fn decoding(&self) -> usize {
        self.admitted.complete.level()
    }

    /// Those requests, with their integral over time up to now.
    pub fn decoding_over_time(&mut self, now: Instant) -> Reading {
        self.admitted.complete.read(now)
    }

    /// Bytes of the samples that wait.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.admitted.bytes
    }

    /// Jobs that wait.
    #[must_use]
    pub fn jobs(&self) -> usize {
        self.waiting.len()
    }

    /// Measured times.
    #[must_use]
    pub fn times(&self) -> &Times {
        &self.times
    }

    /// When the job that has waited longest came in.
    #[must_use]
    pub fn oldest(&self) -> Option<Instant> {
        self.waiting.values().map(|job| job.entered).min()
    }

    /// Whether there is a latency to keep.
    #[must_use]
    pub fn has_objective(&self) -> bool {
        self.limits.latency_objective.is_some()
    }

    /// The largest bucket that keeps the latency objective; `None` where there is no objective, or none keeps it.
    #[must_use]
    pub fn objective_bucket(&self) -> Option<usize> {
        choice::objective_bucket(self.times.recent()?, self.limits.latency_objective?)
    }

    /// Lets the jobs of one request in, all or none. A place reserved for the request must be released before.
    ///
    /// # Errors
    /// The jobs come back with [`Refused`] where a bound would be crossed. Nothing was let in.
    pub fn push(&mut self, jobs: Vec<NewJob<T>>, now: Instant) -> Result<Vec<Key>, (Refused, Vec<NewJob<T>>)> {
        let samples: usize = jobs.iter().map(|job| job.samples).sum();
        let bytes = jobs.iter().map(|job| job.bytes).sum();
        let admitted = self.admit_wait(samples.saturating_sub(1), now);
        if let Err(refused) =
            admitted.and_then(|()| self.admit_samples(samples)).and_then(|()| self.admit_bytes(bytes, 0))
        {
            return Err((refused, jobs));
        }
        self.arrivals.record(samples, now);
        Ok(jobs.into_iter().map(|job| self.insert(job, now)).collect())
    }

    fn insert(&mut self, job: NewJob<T>, now: Instant) -> Key {
        let key = Key { due: job.deadline.min(now + self.limits.max_wait), arrival: self.arrived };
        self.arrived += 1;
        let NewJob { samples, bytes, shape, length, payload, deadline } = job;
        let times = self.times.class(LengthClass::of(length));
        let cost = times.best_per_sample(choice::allowed(times, &self.limits)) * as_u32(samples);
        self.admitted.enter(samples, bytes, cost, now);
        let (limits, times) = (self.limits, &mut self.times);
        self.groups.enter(&shape, samples, length, |samples, length| beyond_shares(limits, times, samples, length));
        self.waiting.insert(key, Waiting { samples, entered: now, deadline, payload, bytes, shape, length, cost });
        key
    }

    /// Takes a job out whose caller left. `None` where an instance already has it.
    pub fn remove(&mut self, key: Key, now: Instant) -> Option<Waiting<T>> {
        let job = self.waiting.remove(&key)?;
        self.admitted.leave(job.samples, job.bytes, job.cost, now);
        let (limits, times) = (self.limits, &mut self.times);
        self.groups.leave(&job.shape, job.samples, |samples, length| beyond_shares(limits, times, samples, length));
        Some(job)
    }

    /// Takes the jobs of the next batch for a free instance, what is due first, and leaves the rest.
    ///
    /// Called when an instance is free, never before: a batch is as large as it can be without anyone having waited for
    /// it. Jobs that can no longer make their deadline come back as expired and cost no run. Where company is on its way
    /// and worth a wait, nothing is taken, and the instance is told how long to wait at most.
    pub fn take(&mut self, instance: usize, now: Instant) -> Taken<T> {
        let mut taken = Taken { batch: Vec::new(), expired: Vec::new(), wait_until: None };
        while let Some((&first, _)) = self.waiting.first_key_value() {
            match self.choose(first, now) {
                Choice::TooLate => taken.expired.extend(self.remove(first, now)),
                Choice::Wait(until) => {
                    taken.wait_until = Some(until);
                    break;
                }
                Choice::Run(keys, time) => {
                    taken.batch = keys.into_iter().filter_map(|key| self.remove(key, now)).collect();
                    self.busy_until[instance] = Some(now + time);
                    self.pace.begins(instance, now, time);
                    break;
                }
            }
        }
        if taken.batch.is_empty() {
            self.pace.rests(instance);
        }
        taken
    }

    /// An instance has finished a run.
    pub fn finished(&mut self, run: Run) {
        self.busy_until[run.instance] = None;
        if self.waiting.is_empty() {
            // What it takes next comes when it comes.
            self.pace.rests(run.instance);
        }
        self.learns(run);
    }

    /// A batch has run, on an instance that is not free yet.
    pub fn learns(&mut self, run: Run) {
        self.times.record(LengthClass::of(run.length), run.samples, run.time);
    }

    /// An instance has ended a run from whose time nothing can be learned.
    pub fn gave_up(&mut self, instance: usize) {
        self.busy_until[instance] = None;
        self.pace.rests(instance);
    }

    /// An instance runs the jobs of a batch that failed once more, in parts, the longest of that length. With one bad job among them
    /// that takes as long as two batches.
    pub fn runs_again(&mut self, instance: usize, jobs: usize, length: usize, now: Instant) {
        let times = self.times.class(LengthClass::of(length));
        let again = (times.of(jobs) * 2).min(times.of(1) * as_u32(jobs));
        self.away(instance, now + again);
    }

    /// An instance is away until about then.
    pub fn away(&mut self, instance: usize, until: Instant) {
        self.busy_until[instance] = Some(until);
        self.pace.rests(instance);
    }

    /// An instance was given up for good: nobody waits for it any more.
    pub fn lost(&mut self, instance: usize) {
        self.lost[instance] = true;
        self.gave_up(instance);
    }

    /// Takes everything out; for a server that stops.
    pub fn clear(&mut self, now: Instant) -> Vec<Waiting<T>> {
        self.admitted.empty(now);
        self.groups.empty();
        std::mem::take(&mut self.waiting).into_values().collect()
    }
}

impl<T> Waiting<T> {
    /// What a sample costs grows with it; see [`NewJob::length`].
    #[must_use]
    pub fn length(&self) -> usize {
        self.length
    }
}

/// What the last of the runs of so many samples, which is not full, takes beyond the shares that its samples have of a full one.
fn beyond_shares(limits: Limits, times: &mut Times, samples: usize, length: usize) -> Duration {
    let times = times.class(LengthClass::of(length));
    let most = choice::allowed(times, &limits);
    let left_over = samples % times.best_size(most);
    let takes = if limits.is_padded { times.of(left_over) } else { times.unpadded(left_over) };
    if left_over == 0 { Duration::ZERO } else { takes.saturating_sub(times.best_per_sample(most) * as_u32(left_over)) }
}

fn as_u32(count: usize) -> u32 {
    u32::try_from(count).unwrap_or(u32::MAX)
}
