//! The queue by example.

mod batches;
mod company;
mod room;
mod waits;

use super::*;
use crate::times::BucketTimes;

const BATCH_SIZE: usize = 8;

fn limits() -> Limits {
    Limits {
        max_wait: Duration::from_millis(100),
        samples: 50,
        bytes: 1000,
        batch_size: BATCH_SIZE,
        is_padded: false,
        batch_timeout: Duration::ZERO,
        latency_objective: None,
        run_timeout: Duration::from_secs(60),
    }
}

/// 5 ms for one, 2.5 ms a sample at 8.
fn measured_times() -> Times {
    let mut times = BucketTimes::default();
    for (size, millis) in [(1, 5), (2, 7), (4, 12), (8, 20)] {
        times.set(size, Duration::from_millis(millis));
    }
    Times::warmed_up(4, times)
}

fn job(name: &'static str, samples: usize, deadline: Instant) -> NewJob<&'static str> {
    NewJob { samples, bytes: samples * 4, shape: Shape::from_slice(&[4]), length: 4, deadline, payload: name }
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
