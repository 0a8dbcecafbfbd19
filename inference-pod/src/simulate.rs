//! What the scheduler makes of given arrivals, by a clock that only this moves: the measure that a serving process is held
//! against. The queue is the real one; a run takes what was measured for its bucket, or what the line between two of them says.

use std::time::{Duration, Instant};

use crate::{
    queue::{Limits, NewJob, Queue, Run, Shape, Taken, Waiting},
    times::{LengthClass, Times},
};

/// Requests of one sample each, and what serves them.
#[derive(Debug, Clone)]
pub struct Simulation {
    /// When each request comes, from the start, in order.
    pub arrivals: Vec<Duration>,
    /// Measured times.
    pub times: Times,
    /// Length of the samples.
    pub length: usize,
    /// Bounds of the queue.
    pub limits: Limits,
    /// Instances.
    pub instances: usize,
    /// What a request has until its answer is of no more use.
    pub request_timeout: Duration,
}

/// How the requests fared.
#[derive(Debug, Default, Clone, PartialEq)]
pub struct Fared {
    /// From arrival to the end of the run, of each that was answered, shortest first.
    pub latencies: Vec<Duration>,
    /// Requests that were not let in.
    pub refused: usize,
    /// Requests that could not make their deadline.
    pub expired: usize,
    /// Runs.
    pub runs: usize,
}

impl Fared {
    /// The latency that a share of the answered requests did not exceed. Zero where none was answered.
    #[must_use]
    pub fn quantile(&self, share: f64) -> Duration {
        let at = (self.latencies.len() as f64 * share).ceil() as usize;
        self.latencies.get(at.clamp(1, self.latencies.len().max(1)) - 1).copied().unwrap_or_default()
    }
}

/// An instance at work.
struct Busy {
    until: Instant,
    run: Run,
    came: Vec<Instant>,
}

struct World {
    queue: Queue<Instant>,
    instances: Vec<Option<Busy>>,
    times: Times,
    is_padded: bool,
    /// When an idle instance that waits for company gives up waiting.
    wake: Option<Instant>,
    fared: Fared,
}

/// Plays the arrivals to the end.
#[must_use]
pub fn simulate(simulation: &Simulation) -> Fared {
    let Simulation { arrivals, times, length, limits, instances, request_timeout } = simulation;
    let start = Instant::now();
    let mut world = World {
        queue: Queue::new(*limits, times.clone(), *instances),
        instances: (0..*instances).map(|_| None).collect(),
        times: times.clone(),
        is_padded: limits.is_padded,
        wake: None,
        fared: Fared::default(),
    };
    let mut arrivals = arrivals.iter().map(|offset| start + *offset).peekable();
    loop {
        let ends = world.instances.iter().flatten().map(|busy| busy.until);
        let Some(now) = ends.chain(world.wake).chain(arrivals.peek().copied()).min() else { break };
        world.finish(now);
        while let Some(came) = arrivals.next_if(|came| *came <= now) {
            world.arrive(came, *length, *request_timeout);
        }
        world.start(now);
    }
    world.fared.latencies.sort_unstable();
    world.fared
}

impl World {
    fn arrive(&mut self, came: Instant, length: usize, timeout: Duration) {
        let job = NewJob { samples: 1, bytes: 0, shape: Shape::new(), length, deadline: came + timeout, payload: came };
        self.fared.refused += usize::from(self.queue.push(vec![job], came).is_err());
    }

    fn finish(&mut self, now: Instant) {
        for slot in &mut self.instances {
            if let Some(busy) = slot.take_if(|busy| busy.until <= now) {
                self.queue.finished(busy.run);
                self.fared.runs += 1;
                self.fared.latencies.extend(busy.came.iter().map(|came| busy.until - *came));
            }
        }
    }

    fn start(&mut self, now: Instant) {
        self.wake = None;
        for instance in 0..self.instances.len() {
            if self.instances[instance].is_none() {
                let taken = self.queue.take(instance, now);
                self.run(instance, taken, now);
            }
        }
    }

    fn run(&mut self, instance: usize, taken: Taken<Instant>, now: Instant) {
        let Taken { batch, expired, wait_until } = taken;
        self.fared.expired += expired.len();
        self.wake = self.wake.into_iter().chain(wait_until).min();
        let Some(length) = batch.iter().map(Waiting::length).max() else { return };
        let samples = batch.iter().map(|job| job.samples).sum();
        let times = self.times.class(LengthClass::of(length));
        let time = if self.is_padded { times.of(samples) } else { times.unpadded(samples) };
        let came = batch.into_iter().map(|job| job.payload).collect();
        self.instances[instance] = Some(Busy { until: now + time, run: Run { instance, samples, length, time }, came });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::times::BucketTimes;

    fn simulation(arrivals: &[u64]) -> Simulation {
        let mut times = BucketTimes::default();
        [(1, 10), (2, 12), (4, 16)].iter().for_each(|(size, millis)| times.set(*size, Duration::from_millis(*millis)));
        Simulation {
            arrivals: arrivals.iter().map(|millis| Duration::from_millis(*millis)).collect(),
            times: Times::warmed_up(1, times),
            length: 1,
            limits: Limits {
                max_wait: Duration::from_millis(100),
                samples: 1000,
                bytes: 1000,
                batch_size: 4,
                is_padded: false,
                batch_timeout: Duration::ZERO,
                latency_objective: None,
                run_timeout: Duration::MAX,
            },
            instances: 1,
            request_timeout: Duration::from_secs(1),
        }
    }

    fn millis(fared: &Fared) -> Vec<u128> {
        fared.latencies.iter().map(Duration::as_millis).collect()
    }

    #[test]
    fn who_comes_during_a_run_shares_the_next() {
        let fared = simulate(&simulation(&[0, 1, 2, 100]));
        assert_eq!((millis(&fared), fared.runs), (vec![10, 10, 20, 21], 3));
        assert_eq!(fared.quantile(0.5), Duration::from_millis(10));
        assert_eq!(fared.quantile(1.0), Duration::from_millis(21));
    }

    #[test]
    fn two_instances_work_side_by_side() {
        let two = Simulation { instances: 2, ..simulation(&[0, 1, 2]) };
        assert_eq!(millis(&simulate(&two)), [10, 10, 18]);
    }

    #[test]
    fn more_than_can_be_served_is_refused() {
        let burst: Vec<u64> = vec![0; 200];
        let fared = simulate(&simulation(&burst));
        assert_eq!(
            (fared.latencies.len(), fared.refused),
            (22, 178),
            "100 ms less a run of 16, at 4 ms a sample, and one"
        );
        assert_eq!(simulate(&simulation(&[])).quantile(0.99), Duration::ZERO);
    }
}
