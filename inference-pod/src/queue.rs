//! The queue of a model: bounded, ordered by deadline, and the place where jobs become batches.
//!
//! Pure: `now` is an argument, nothing waits here. [`crate::worker`] puts a lock and a wake-up around it.
//! Bounded three times: in time (a job whose predicted wait is too long is refused), in samples and in bytes.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use crate::times::BucketTimes;

/// How much may wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Longest predicted wait; at least two runs of the largest bucket are always let in.
    pub max_wait: Duration,
    /// Most samples.
    pub samples: usize,
    /// Most bytes of samples.
    pub bytes: usize,
    /// Largest batch, in samples.
    pub batch_size: usize,
}

/// A job that asks to be let in.
#[derive(Debug)]
pub struct NewJob<T> {
    /// Its samples, at most the batch size.
    pub samples: usize,
    /// Their bytes.
    pub bytes: usize,
    /// Only jobs of equal shapes share a batch.
    pub shapes: Vec<Vec<usize>>,
    /// When its answer is of no more use.
    pub deadline: Instant,
    /// What the worker needs.
    pub payload: T,
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
    /// The predicted wait.
    Wait {
        /// What was predicted.
        predicted: Duration,
        /// What is allowed.
        limit: Duration,
    },
    /// The number of samples.
    Samples(usize),
    /// The bytes of samples.
    Bytes(usize),
}

/// Names a waiting job. Jobs are ordered by deadline, then by arrival.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Key {
    deadline: Instant,
    arrival: u64,
}

/// A job in the queue.
#[derive(Debug)]
pub struct Waiting<T> {
    /// Its samples.
    pub samples: usize,
    /// When it was let in.
    pub entered: Instant,
    /// What the worker needs.
    pub payload: T,
    bytes: usize,
    shapes: Vec<Vec<usize>>,
}

/// What an instance gets when it is free.
#[derive(Debug)]
pub struct Taken<T> {
    /// The jobs to run together, in the order of their rows.
    pub batch: Vec<Waiting<T>>,
    /// Jobs that can no longer make their deadline. They are to be answered, not run.
    pub expired: Vec<Waiting<T>>,
}

/// The waiting jobs of a model, and what is known of its instances.
#[derive(Debug)]
pub struct Queue<T> {
    limits: Limits,
    times: BucketTimes,
    waiting: BTreeMap<Key, Waiting<T>>,
    samples: usize,
    bytes: usize,
    reserved: usize,
    /// Reserved places whose request is complete: work that is certain to come.
    complete: usize,
    held: usize,
    arrivals: u64,
    /// When each instance is expected to be free; `None` while it is.
    busy_until: Vec<Option<Instant>>,
}

impl<T> Queue<T> {
    /// An empty queue for that many instances.
    #[must_use]
    pub fn new(limits: Limits, times: BucketTimes, instances: usize) -> Self {
        Self {
            limits,
            times,
            waiting: BTreeMap::new(),
            samples: 0,
            bytes: 0,
            reserved: 0,
            complete: 0,
            held: 0,
            arrivals: 0,
            busy_until: vec![None; instances.max(1)],
        }
    }

    /// Samples that wait.
    #[must_use]
    pub fn samples(&self) -> usize {
        self.samples
    }

    /// Bytes of the samples that wait.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Measured time of each bucket.
    #[must_use]
    pub fn times(&self) -> &BucketTimes {
        &self.times
    }

    /// When the job that has waited longest came in.
    #[must_use]
    pub fn oldest(&self) -> Option<Instant> {
        self.waiting.values().map(|job| job.entered).min()
    }

    /// How long a job that came now would wait, by the measured times.
    #[must_use]
    pub fn predicted_wait(&self, now: Instant) -> Duration {
        // A request whose body is still on its way is no work yet; slow senders must not shut others out.
        let ahead = self.samples + self.complete;
        let idle = self.busy_until.iter().any(Option::is_none);
        if ahead == 0 && idle {
            return Duration::ZERO;
        }
        let running: Duration = self.busy_until.iter().flatten().map(|end| end.saturating_duration_since(now)).sum();
        let instances = u32::try_from(self.busy_until.len()).unwrap_or(u32::MAX);
        let queued = self.times.best_per_sample().saturating_mul(u32::try_from(ahead).unwrap_or(u32::MAX));
        running.saturating_add(queued) / instances
    }

    /// Holds a place for a request whose body is not read yet, so that admission needs the headers alone.
    /// Give it back by [`Self::release`].
    ///
    /// # Errors
    /// [`Refused`] where the predicted wait or the number of samples is over its bound.
    pub fn reserve(&mut self, now: Instant) -> Result<(), Refused> {
        self.admit(1, 0, now)?;
        self.reserved += 1;
        Ok(())
    }

    /// Holds room for bytes of a body that is about to be read, so that bodies on their way are bounded like those that
    /// wait. Give it back by [`Self::release`].
    ///
    /// # Errors
    /// [`Refused`] where the bytes are over their bound; a body larger than the whole bound gets in alone.
    pub fn hold(&mut self, bytes: usize) -> Result<(), Refused> {
        self.admit_bytes(bytes)?;
        self.held += bytes;
        Ok(())
    }

    /// The request of a reserved place has come in whole.
    pub fn complete(&mut self) {
        self.complete += 1;
    }

    /// Gives a reserved place back, with the bytes that were held for it.
    pub fn release(&mut self, held: usize, complete: bool) {
        self.reserved = self.reserved.saturating_sub(1);
        self.complete = self.complete.saturating_sub(usize::from(complete));
        self.held = self.held.saturating_sub(held);
    }

    /// Lets the jobs of one request in, all or none. A place reserved for the request must be released before.
    ///
    /// # Errors
    /// The jobs come back with [`Refused`] where a bound would be crossed. Nothing was let in.
    pub fn push(&mut self, jobs: Vec<NewJob<T>>, now: Instant) -> Result<Vec<Key>, (Refused, Vec<NewJob<T>>)> {
        let samples = jobs.iter().map(|job| job.samples).sum();
        let bytes = jobs.iter().map(|job| job.bytes).sum();
        if let Err(refused) = self.admit(samples, bytes, now) {
            return Err((refused, jobs));
        }
        self.samples += samples;
        self.bytes += bytes;
        Ok(jobs.into_iter().map(|job| self.insert(job, now)).collect())
    }

    fn insert(&mut self, job: NewJob<T>, now: Instant) -> Key {
        let key = Key { deadline: job.deadline, arrival: self.arrivals };
        self.arrivals += 1;
        let NewJob { samples, bytes, shapes, payload, deadline: _ } = job;
        self.waiting.insert(key, Waiting { samples, entered: now, payload, bytes, shapes });
        key
    }

    fn admit(&self, samples: usize, bytes: usize, now: Instant) -> Result<(), Refused> {
        let predicted = self.predicted_wait(now);
        let limit = self.limits.max_wait.max(self.times.largest() * 2);
        if predicted > limit {
            return Err(Refused { bound: Bound::Wait { predicted, limit }, retry_after: predicted - limit });
        }
        let wanted = self.samples + self.reserved + samples;
        if wanted > self.limits.samples {
            let retry_after = self.drain_time(wanted - self.limits.samples);
            return Err(Refused { bound: Bound::Samples(self.limits.samples), retry_after });
        }
        self.admit_bytes(bytes)
    }

    fn admit_bytes(&self, bytes: usize) -> Result<(), Refused> {
        let known = self.bytes + self.held;
        // A request larger than the whole bound gets in when nothing else is there; else it never could.
        if known > 0 && known.saturating_add(bytes) > self.limits.bytes {
            let retry_after = self.drain_time(self.samples + self.reserved);
            return Err(Refused { bound: Bound::Bytes(self.limits.bytes), retry_after });
        }
        Ok(())
    }

    /// How long that many samples take by the measured times.
    fn drain_time(&self, samples: usize) -> Duration {
        let instances = u32::try_from(self.busy_until.len()).unwrap_or(u32::MAX);
        self.times.best_per_sample().saturating_mul(u32::try_from(samples).unwrap_or(u32::MAX)) / instances
    }

    /// Takes a job out whose caller left. `None` where an instance already has it.
    pub fn remove(&mut self, key: Key) -> Option<Waiting<T>> {
        let job = self.waiting.remove(&key)?;
        self.samples -= job.samples;
        self.bytes -= job.bytes;
        Some(job)
    }

    /// Takes the jobs of the next batch for a free instance, earliest deadline first, and leaves the rest.
    ///
    /// Called when an instance is free, never before: a batch is as large as it can be without anyone having waited for
    /// it. Jobs that can no longer make their deadline come back as expired and cost no run.
    pub fn take(&mut self, instance: usize, now: Instant) -> Taken<T> {
        let mut taken = Taken { batch: Vec::new(), expired: Vec::new() };
        while let Some((&first, job)) = self.waiting.first_key_value() {
            let least = job.samples;
            let alike = self.alike(first);
            let Some(size) = self.batch_size_for(least, alike, first.deadline, now) else {
                if first.deadline > now {
                    self.times.doubt(least);
                }
                taken.expired.extend(self.remove(first));
                continue;
            };
            taken.batch = self.take_alike(first, size);
            let samples = taken.batch.iter().map(|job| job.samples).sum();
            self.busy_until[instance] = Some(now + self.times.of(samples));
            break;
        }
        taken
    }

    /// Samples that wait in the shapes of that job, counted no further than a batch goes.
    fn alike(&self, first: Key) -> usize {
        let Some(shapes) = self.waiting.get(&first).map(|job| &job.shapes) else { return 0 };
        let mut samples = 0;
        for job in self.waiting.values().filter(|job| job.shapes == *shapes) {
            samples += job.samples;
            if samples >= self.limits.batch_size {
                break;
            }
        }
        samples.min(self.limits.batch_size)
    }

    /// How large the batch is to be, or `None` where the first job cannot make its deadline in any.
    fn batch_size_for(&self, least: usize, alike: usize, deadline: Instant, now: Instant) -> Option<usize> {
        let left = deadline.checked_duration_since(now)?;
        if self.times.is_empty() {
            return Some(alike.max(least));
        }
        if self.times.of(least) > left {
            return None;
        }
        Some(self.times.best_filled_by(alike, left).unwrap_or(least).max(least))
    }

    fn take_alike(&mut self, first: Key, size: usize) -> Vec<Waiting<T>> {
        let Some(shapes) = self.waiting.get(&first).map(|job| job.shapes.clone()) else { return Vec::new() };
        let mut room = size;
        let mut keys = Vec::new();
        for (key, job) in &self.waiting {
            if job.samples <= room && job.shapes == shapes {
                room -= job.samples;
                keys.push(*key);
            }
            if room == 0 {
                break;
            }
        }
        keys.into_iter().filter_map(|key| self.remove(key)).collect()
    }

    /// An instance has finished a run of that many samples.
    pub fn finished(&mut self, instance: usize, samples: usize, time: Duration) {
        self.busy_until[instance] = None;
        self.times.record(samples, time);
    }

    /// Takes everything out; for a server that stops.
    pub fn clear(&mut self) -> Vec<Waiting<T>> {
        self.samples = 0;
        self.bytes = 0;
        std::mem::take(&mut self.waiting).into_values().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BATCH_SIZE: usize = 8;

    fn limits() -> Limits {
        Limits { max_wait: Duration::from_millis(100), samples: 50, bytes: 1000, batch_size: BATCH_SIZE }
    }

    /// 5 ms for one, 2.5 ms a sample at 8.
    fn measured_times() -> BucketTimes {
        let mut times = BucketTimes::default();
        for (size, millis) in [(1, 5), (2, 7), (4, 12), (8, 20)] {
            times.set(size, Duration::from_millis(millis));
        }
        times
    }

    fn job(name: &'static str, samples: usize, deadline: Instant) -> NewJob<&'static str> {
        NewJob { samples, bytes: samples * 4, shapes: vec![vec![4]], deadline, payload: name }
    }

    fn queue() -> (Queue<&'static str>, Instant) {
        (Queue::new(limits(), measured_times(), 1), Instant::now())
    }

    fn push(queue: &mut Queue<&'static str>, job: NewJob<&'static str>, now: Instant) -> Key {
        queue.push(vec![job], now).unwrap()[0]
    }

    fn names(jobs: &[Waiting<&'static str>]) -> Vec<&'static str> {
        jobs.iter().map(|job| job.payload).collect()
    }

    fn later(now: Instant, millis: u64) -> Instant {
        now + Duration::from_millis(millis)
    }

    #[test]
    fn an_idle_instance_starts_a_lone_job_at_once() {
        let (mut queue, now) = queue();
        push(&mut queue, job("only", 1, later(now, 1000)), now);
        let taken = queue.take(0, now);
        assert_eq!(names(&taken.batch), ["only"]);
        assert_eq!((queue.samples(), queue.bytes()), (0, 0));
    }

    #[test]
    fn the_earliest_deadline_goes_first_and_arrival_decides_among_equals() {
        let (mut queue, now) = queue();
        push(&mut queue, job("late", 1, later(now, 900)), now);
        push(&mut queue, job("early", 1, later(now, 300)), now);
        push(&mut queue, job("late too", 1, later(now, 900)), now);
        assert_eq!(names(&queue.take(0, now).batch), ["early", "late"], "two of three, for 3 fill the bucket of 2");
        assert_eq!(names(&queue.take(0, now).batch), ["late too"]);
    }

    #[test]
    fn other_shapes_wait_for_a_batch_of_their_own() {
        let (mut queue, now) = queue();
        push(&mut queue, job("a", 1, later(now, 500)), now);
        let wide = NewJob { shapes: vec![vec![5]], ..job("wide", 1, later(now, 501)) };
        push(&mut queue, wide, now);
        push(&mut queue, job("b", 1, later(now, 502)), now);
        assert_eq!(names(&queue.take(0, now).batch), ["a", "b"]);
        assert_eq!(names(&queue.take(0, now).batch), ["wide"]);
    }

    #[test]
    fn a_job_of_many_samples_is_never_split_and_never_starves() {
        let (mut queue, now) = queue();
        push(&mut queue, job("three", 3, later(now, 500)), now);
        assert_eq!(names(&queue.take(0, now).batch), ["three"]);
        push(&mut queue, job("seven", 7, later(now, 500)), now);
        push(&mut queue, job("two", 2, later(now, 501)), now);
        push(&mut queue, job("one", 1, later(now, 502)), now);
        assert_eq!(names(&queue.take(0, now).batch), ["seven", "one"]);
        assert_eq!(names(&queue.take(0, now).batch), ["two"]);
    }

    #[test]
    fn a_job_that_cannot_make_its_deadline_costs_no_run() {
        let (mut queue, now) = queue();
        push(&mut queue, job("hopeless", 1, later(now, 4)), now);
        push(&mut queue, job("tight", 1, later(now, 6)), now);
        push(&mut queue, job("easy", 1, later(now, 500)), now);
        let taken = queue.take(0, now);
        assert_eq!(names(&taken.expired), ["hopeless"]);
        assert_eq!(names(&taken.batch), ["tight"], "a batch of two would make it late");
        assert_eq!(names(&queue.take(0, later(now, 5)).batch), ["easy"]);
    }

    #[test]
    fn a_job_whose_caller_left_is_gone_and_its_room_is_free() {
        let (mut queue, now) = queue();
        let key = push(&mut queue, job("left", 2, later(now, 500)), now);
        push(&mut queue, job("stays", 1, later(now, 500)), now);
        assert_eq!(queue.remove(key).map(|job| job.payload), Some("left"));
        assert!(queue.remove(key).is_none());
        assert_eq!((queue.samples(), queue.bytes()), (1, 4));
        assert_eq!(names(&queue.take(0, now).batch), ["stays"]);
    }

    #[test]
    fn the_queue_is_bounded_in_time_first() {
        let (mut queue, now) = queue();
        let mut let_in = 0;
        let refused = loop {
            match queue.push(vec![job("x", 1, later(now, 60_000))], now) {
                Ok(_) => let_in += 1,
                Err((refused, back)) => break (refused, back),
            }
        };
        assert_eq!(let_in, 41, "100 ms at 2.5 ms a sample, and the one that finds exactly 100 ms ahead");
        assert_eq!(refused.1.len(), 1, "a refused job comes back");
        let Bound::Wait { predicted, limit } = refused.0.bound else { panic!("{:?}", refused.0) };
        assert_eq!((predicted, limit), (Duration::from_micros(102_500), Duration::from_millis(100)));
        assert_eq!(refused.0.retry_after, Duration::from_micros(2_500));
    }

    #[test]
    fn at_least_two_runs_of_the_largest_bucket_are_let_in() {
        let slow = Limits { max_wait: Duration::from_millis(1), ..limits() };
        let now = Instant::now();
        let mut queue: Queue<()> = Queue::new(slow, measured_times(), 1);
        let new = || NewJob { samples: 1, bytes: 0, shapes: vec![], deadline: later(now, 9_000), payload: () };
        let let_in = (0..100).take_while(|_| queue.push(vec![new()], now).is_ok()).count();
        assert_eq!(let_in, 17, "40 ms at 2.5 ms a sample");
    }

    #[test]
    fn a_running_batch_counts_in_the_predicted_wait() {
        let (mut queue, now) = queue();
        assert_eq!(queue.predicted_wait(now), Duration::ZERO);
        push(&mut queue, job("runs", 8, later(now, 500)), now);
        queue.take(0, now);
        assert_eq!(queue.predicted_wait(now), Duration::from_millis(20));
        assert_eq!(queue.predicted_wait(later(now, 15)), Duration::from_millis(5));
        queue.finished(0, 8, Duration::from_millis(20));
        assert_eq!(queue.predicted_wait(now), Duration::ZERO);
    }

    #[test]
    fn samples_and_bytes_are_hard_bounds_where_no_times_are_known() {
        let now = Instant::now();
        let mut queue: Queue<&'static str> = Queue::new(limits(), BucketTimes::default(), 1);
        for _ in 0..50 {
            push(&mut queue, job("x", 1, later(now, 500)), now);
        }
        let (refused, _) = queue.push(vec![job("x", 1, later(now, 500))], now).unwrap_err();
        assert_eq!(refused.bound, Bound::Samples(50));
        queue.clear();
        let big = |bytes| NewJob { bytes, ..job("big", 1, later(now, 500)) };
        push(&mut queue, big(5_000), now);
        let (refused, _) = queue.push(vec![big(1)], now).unwrap_err();
        assert_eq!(refused.bound, Bound::Bytes(1000));
    }

    #[test]
    fn the_jobs_of_one_request_come_in_together_or_not_at_all() {
        let now = Instant::now();
        let mut queue: Queue<&'static str> = Queue::new(limits(), BucketTimes::default(), 1);
        push(&mut queue, job("x", 8, later(now, 500)), now);
        let many: Vec<_> = (0..6).map(|_| job("y", 8, later(now, 500))).collect();
        let (_, back) = queue.push(many, now).unwrap_err();
        assert_eq!((back.len(), queue.samples()), (6, 8));
    }

    #[test]
    fn reserved_places_count_until_they_are_released() {
        let now = Instant::now();
        let mut queue: Queue<&'static str> = Queue::new(limits(), BucketTimes::default(), 1);
        for _ in 0..50 {
            queue.reserve(now).unwrap();
        }
        assert!(queue.reserve(now).is_err());
        queue.release(0, false);
        assert!(queue.reserve(now).is_ok());
    }

    #[test]
    fn a_slow_sender_is_no_work_until_its_request_is_complete() {
        let (mut queue, now) = queue();
        for _ in 0..40 {
            queue.reserve(now).unwrap();
        }
        assert_eq!(queue.predicted_wait(now), Duration::ZERO);
        queue.complete();
        assert_eq!(queue.predicted_wait(now), Duration::from_micros(2_500));
        queue.release(0, true);
        assert_eq!(queue.predicted_wait(now), Duration::ZERO);
    }

    #[test]
    fn an_estimate_that_lets_nothing_run_is_given_up() {
        let mut times = BucketTimes::default();
        times.set(1, Duration::from_secs(1));
        let now = Instant::now();
        let mut queue: Queue<&'static str> = Queue::new(Limits { batch_size: 1, ..limits() }, times, 1);
        let tries = (0..100).position(|_| {
            push(&mut queue, job("x", 1, later(now, 100)), now);
            !queue.take(0, now).batch.is_empty()
        });
        assert_eq!(tries, Some(11), "0.8 to the power of 11 is under a tenth");
    }

    #[test]
    fn bodies_on_their_way_are_bounded_in_bytes() {
        let now = Instant::now();
        let mut queue: Queue<&'static str> = Queue::new(limits(), BucketTimes::default(), 1);
        queue.reserve(now).unwrap();
        queue.hold(900).unwrap();
        assert_eq!(queue.hold(101).unwrap_err().bound, Bound::Bytes(1000));
        assert!(queue.push(vec![NewJob { bytes: 101, ..job("x", 1, later(now, 500)) }], now).is_err());
        queue.release(900, false);
        queue.hold(5_000).unwrap();
    }
}
