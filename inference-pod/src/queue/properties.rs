//! What holds of the queue whatever comes, in whatever order.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::*;
use crate::times::BucketTimes;

/// One thing that happens, some time after the one before.
#[derive(Debug, Clone)]
enum Happening {
    /// A request of jobs: samples, length, milliseconds until its deadline; and which of three shapes.
    Request(Vec<(usize, usize)>, u64, usize),
    /// Such a request with a place that was held for it, and milliseconds that it takes to decode.
    Held(Vec<(usize, usize)>, u64, usize, u64),
    /// The caller of a job leaves: one of those that came, counted from the last.
    Leave(usize),
    /// An instance asks for work.
    Ask(usize),
    /// An instance's run ends, after that many milliseconds.
    End(usize, u64),
    /// An instance is given up, with what runs on it. Never the first.
    Lose(usize),
}

const BATCH_SIZE: usize = 8;
const INSTANCES: usize = 3;

fn happenings() -> impl Strategy<Value = Vec<(u64, Happening)>> {
    let jobs = || prop::collection::vec((1..=BATCH_SIZE, 1_usize..300), 1..4);
    let happening = prop_oneof![
        3 => (jobs(), 0_u64..3000, 0_usize..3).prop_map(|(jobs, deadline, shape)| Happening::Request(jobs, deadline, shape)),
        2 => (jobs(), 0_u64..3000, 0_usize..3, 0_u64..20)
            .prop_map(|(jobs, deadline, shape, millis)| Happening::Held(jobs, deadline, shape, millis)),
        1 => (0_usize..10).prop_map(Happening::Leave),
        4 => (0..INSTANCES).prop_map(Happening::Ask),
        3 => (0..INSTANCES, 1_u64..200).prop_map(|(instance, millis)| Happening::End(instance, millis)),
        1 => (1..INSTANCES * 8).prop_map(Happening::Lose),
    ];
    prop::collection::vec((0_u64..40, happening), 1..120)
}

fn limits() -> impl Strategy<Value = Limits> {
    let objective = prop::option::of(1_u64..300);
    (1_u64..500, 1_usize..60, 100_usize..4000, prop::bool::ANY, 0_u64..50, objective, 1_u64..300).prop_map(
        |(max_wait, samples, bytes, is_padded, batch_timeout, objective, run_timeout)| Limits {
            max_wait: Duration::from_millis(max_wait),
            samples,
            bytes,
            batch_size: BATCH_SIZE,
            is_padded,
            batch_timeout: Duration::from_millis(batch_timeout),
            latency_objective: objective.map(Duration::from_millis),
            run_timeout: Duration::from_millis(run_timeout),
        },
    )
}

fn times() -> impl Strategy<Value = Times> {
    prop::collection::vec(1_u64..120, 0..=4).prop_map(|millis| {
        let mut times = BucketTimes::default();
        [1, 2, 4, 8].into_iter().zip(millis).for_each(|(size, millis)| times.set(size, Duration::from_millis(millis)));
        Times::warmed_up(16, times)
    })
}

/// The queue, and what is known of each job from outside.
struct World {
    queue: Queue<usize>,
    limits: Limits,
    now: Instant,
    /// Every job let in: its key and its facts.
    keys: Vec<Key>,
    facts: Vec<(usize, usize, Shape)>,
    deadlines: Vec<Instant>,
    waiting: BTreeSet<usize>,
    answered: BTreeMap<usize, &'static str>,
    running: [Option<(usize, usize)>; INSTANCES],
    lost: [bool; INSTANCES],
    /// Milliseconds that samples have waited, one by one.
    waited: u64,
    /// Milliseconds that requests were decoded.
    decoded: u64,
}

impl World {
    fn passes(&mut self, millis: u64) {
        self.now += Duration::from_millis(millis);
        self.waited += millis * self.samples_waiting() as u64;
    }

    fn samples_waiting(&self) -> usize {
        self.waiting.iter().map(|at| self.facts[*at].0).sum()
    }

    fn happens(&mut self, happening: Happening) {
        match happening {
            Happening::Request(jobs, deadline, shape) => self.request(&jobs, deadline, shape),
            Happening::Held(jobs, deadline, shape, millis) => self.held(&jobs, deadline, shape, millis),
            Happening::Leave(back) => self.leave(back),
            Happening::Ask(instance) => self.ask(instance),
            Happening::End(instance, millis) => self.end(instance, Duration::from_millis(millis)),
            Happening::Lose(instance) => self.lose(instance),
        }
        self.bounds_hold();
    }

    fn held(&mut self, jobs: &[(usize, usize)], deadline: u64, shape: usize, millis: u64) {
        if self.queue.reserve(self.now).is_err() {
            return;
        }
        if self.queue.complete(self.now).is_err() {
            self.queue.release(0, false, self.now);
            return;
        }
        self.passes(millis);
        self.decoded += millis;
        self.queue.release(0, true, self.now);
        self.request(jobs, deadline, shape);
    }

    fn lose(&mut self, instance: usize) {
        if instance < INSTANCES {
            self.queue.lost(instance);
            (self.lost[instance], self.running[instance]) = (true, None);
        }
    }

    fn request(&mut self, jobs: &[(usize, usize)], deadline: u64, shape: usize) {
        let first = self.facts.len();
        let new = |(at, (samples, length)): (usize, &(usize, usize))| NewJob {
            samples: *samples,
            bytes: samples * 10,
            shape: Shape::from_slice(&[shape]),
            length: *length,
            deadline: self.now + Duration::from_millis(deadline),
            payload: first + at,
        };
        let new: Vec<_> = jobs.iter().enumerate().map(new).collect();
        let (samples, had_bytes) = (jobs.iter().map(|job| job.0).sum::<usize>(), self.queue.bytes());
        match self.queue.push(new, self.now) {
            Ok(keys) => {
                assert_eq!(keys.len(), jobs.len());
                assert!(self.queue.samples() <= self.limits.samples, "the bound in samples");
                assert!(self.queue.bytes() <= self.limits.bytes, "the bound in bytes");
                self.waiting.extend(first..first + jobs.len());
                let facts = jobs.iter().map(|(samples, length)| (*samples, *length, Shape::from_slice(&[shape])));
                self.facts.extend(facts);
                self.deadlines.resize(self.facts.len(), self.now + Duration::from_millis(deadline));
                self.keys.extend(keys);
            }
            Err((refused, back)) => {
                assert_eq!(back.len(), jobs.len(), "all or none");
                assert_eq!(self.queue.bytes(), had_bytes);
                let over = match refused.bound {
                    Bound::Wait { predicted, limit } => predicted > limit && limit >= self.limits.max_wait,
                    Bound::Samples(limit) => self.queue.samples() + samples > limit,
                    Bound::Incoming(_) | Bound::Before { .. } => false,
                    Bound::Bytes(limit) => had_bytes + samples * 10 > limit,
                    Bound::Request { bytes, limit } => bytes == samples * 10 && bytes > limit,
                };
                assert!(over, "{refused:?}");
            }
        }
    }

    fn leave(&mut self, back: usize) {
        let Some(at) = self.keys.len().checked_sub(1 + back) else { return };
        let removed = self.queue.remove(self.keys[at], self.now).map(|job| job.payload);
        assert_eq!(removed, self.waiting.remove(&at).then_some(at), "found exactly if it waits");
        if removed.is_some() {
            self.answer(at, "left");
        }
    }

    fn ask(&mut self, instance: usize) {
        if self.running[instance].is_some() || self.lost[instance] {
            return;
        }
        let earliest = self.waiting.iter().copied().min_by_key(|at| self.keys[*at]);
        let taken = self.queue.take(instance, self.now);
        for job in &taken.expired {
            self.leaves_once(job.payload, "expired");
        }
        if let Some(until) = taken.wait_until {
            assert!(taken.batch.is_empty() && until > self.now, "it waits, or it works");
            let oldest = self.queue.oldest().unwrap();
            assert!(until <= oldest + self.limits.batch_timeout, "nobody waits longer than allowed");
        } else if taken.batch.is_empty() {
            assert!(self.waiting.is_empty(), "an instance idles while jobs wait");
        }
        self.batch_is_right(&taken, earliest);
        let samples = taken.batch.iter().map(|job| job.samples).sum::<usize>();
        let longest = taken.batch.iter().map(Waiting::length).max();
        self.running[instance] = longest.map(|longest| (samples, longest));
        taken.batch.iter().for_each(|job| self.leaves_once(job.payload, "ran"));
    }

    fn batch_is_right(&self, taken: &Taken<usize>, earliest: Option<usize>) {
        let Some(head) = taken.batch.first() else { return };
        assert!(taken.batch.iter().map(|job| job.samples).sum::<usize>() <= BATCH_SIZE, "the batch size");
        for job in &taken.batch {
            let (samples, length, shape) = &self.facts[job.payload];
            assert_eq!((job.samples, job.length()), (*samples, *length));
            assert_eq!(*shape, self.facts[head.payload].2, "equal shapes");
            assert!(self.deadlines[job.payload] >= self.now, "nobody runs after their deadline");
        }
        assert!(taken.batch.is_sorted_by_key(|job| self.keys[job.payload]), "in order");
        let first_left = taken.expired.first().unwrap_or(head);
        assert_eq!(Some(first_left.payload), earliest, "what is due first goes first");
    }

    fn end(&mut self, instance: usize, time: Duration) {
        if let Some((samples, length)) = self.running[instance].take() {
            self.queue.finished(Run { instance, samples, length, time });
        }
    }

    fn leaves_once(&mut self, at: usize, how: &'static str) {
        assert!(self.waiting.remove(&at), "job {at} left the queue twice");
        self.answer(at, how);
    }

    fn answer(&mut self, at: usize, how: &'static str) {
        assert_eq!(self.answered.insert(at, how), None, "job {at} was answered twice");
    }

    fn bounds_hold(&self) {
        let samples = self.samples_waiting();
        assert_eq!((self.queue.samples(), self.queue.bytes()), (samples, samples * 10));
        assert_eq!(self.queue.jobs(), self.waiting.len());
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    /// No job is lost or answered twice; order, bounds and deadlines are kept; nobody idles while jobs wait.
    #[test]
    fn whatever_happens_every_job_leaves_once_and_for_a_reason(
        happenings in happenings(), limits in limits(), times in times(),
    ) {
        let queue = Queue::new(limits, times, INSTANCES);
        let mut world = World {
            queue, limits, now: Instant::now(), keys: Vec::new(), facts: Vec::new(), deadlines: Vec::new(), waiting: BTreeSet::new(),
            answered: BTreeMap::new(), running: [None; INSTANCES],
            lost: [false; INSTANCES], waited: 0, decoded: 0,
        };
        for (millis, happening) in happenings {
            world.passes(millis);
            world.happens(happening);
        }
        // To the end: whatever still waits is taken, sooner or later.
        for _ in 0..10_000 {
            if world.waiting.is_empty() {
                break;
            }
            world.passes(5);
            world.end(0, Duration::from_millis(5));
            world.ask(0);
        }
        prop_assert!(world.waiting.is_empty(), "left behind: {:?}", world.waiting);
        prop_assert_eq!(world.answered.len(), world.facts.len());
        let waited = world.queue.samples_over_time(world.now);
        prop_assert_eq!(waited, Reading { level: 0, seconds: world.waited as f64 / 1e3 });
        let decoded = world.queue.decoding_over_time(world.now);
        prop_assert_eq!(decoded, Reading { level: 0, seconds: world.decoded as f64 / 1e3 });
        (0..INSTANCES).for_each(|instance| world.end(instance, Duration::from_millis(5)));
        prop_assert_eq!(world.queue.predicted_wait(world.now), Duration::ZERO);
    }
}
