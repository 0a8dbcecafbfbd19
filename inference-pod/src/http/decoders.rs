//! The threads for what keeps a core busy: images and large bodies.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use tokio::sync::Semaphore;

use super::error::ApiError;
use crate::threads;

/// Jobs that may wait for each thread, however long they take: as in a queue, where a wait of two runs is always let in.
const ALWAYS: usize = 2;

/// Share of a job's time in the mean, as one part of so many: what a job takes follows a change of the load within some jobs.
const PARTS: u64 = 8;

/// A job that takes longer counts as so many means: a single huge picture must not shut those out that come after it.
const OUTLIER: u64 = 8;

/// Does what keeps a core busy away from the loop that serves connections, no more at a time than there are threads, and knows how
/// long one would wait for its turn. Those who wait get theirs in the order in which they came.
#[derive(Debug)]
pub struct Decoders {
    threads: usize,
    permits: Arc<Semaphore>,
    waiting: AtomicUsize,
    /// Nanoseconds that a job takes, by those that came last; 0 before the first.
    mean: Arc<AtomicU64>,
}

/// One that waits. Dropping it ends that, also where its caller left.
struct Waiting<'a>(&'a AtomicUsize);

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Decoders {
    /// As many threads.
    #[must_use]
    pub fn new(threads: usize) -> Self {
        let threads = threads.max(1);
        let permits = Arc::new(Semaphore::new(threads));
        Self { threads, permits, waiting: AtomicUsize::default(), mean: Arc::default() }
    }

    /// Jobs that it does at once.
    #[must_use]
    pub fn threads(&self) -> usize {
        self.threads
    }

    /// How long a job that came now would wait for its turn, by the measured times; nothing while fewer than two for each thread
    /// wait.
    #[must_use]
    pub fn wait(&self) -> Duration {
        let waiting = self.waiting.load(Ordering::Relaxed);
        if waiting < ALWAYS * self.threads {
            return Duration::ZERO;
        }
        let turns = u64::try_from((waiting + 1).div_ceil(self.threads)).unwrap_or(u64::MAX);
        Duration::from_nanos(self.mean.load(Ordering::Relaxed).saturating_mul(turns))
    }

    /// Does a job when its turn comes.
    ///
    /// # Errors
    /// Those of the job, 500 where it panicked, 503 where the server stops.
    pub async fn run<T: Send + 'static>(
        &self,
        job: impl FnOnce() -> Result<T, ApiError> + Send + 'static,
    ) -> Result<T, ApiError> {
        self.waiting.fetch_add(1, Ordering::Relaxed);
        let waiting = Waiting(&self.waiting);
        let permit = Arc::clone(&self.permits).acquire_owned().await;
        let permit = permit.map_err(|_| ApiError::not_ready("the server is stopping"))?;
        drop(waiting);
        let mean = Arc::clone(&self.mean);
        let timed = move || {
            threads::decode_behind_the_loop();
            let began = Instant::now();
            let result = job();
            took(&mean, began.elapsed());
            drop(permit);
            result
        };
        tokio::task::spawn_blocking(timed).await?
    }
}

/// Two that end at once may lose one of their times: it is a mean of many.
fn took(mean: &AtomicU64, time: Duration) {
    let time = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
    let before = mean.load(Ordering::Relaxed);
    let after = match before {
        0 => time,
        _ => before - before / PARTS + time.min(before.saturating_mul(OUTLIER)) / PARTS,
    };
    mean.store(after, Ordering::Relaxed);
}

#[cfg(test)]
mod tests {
    use std::{
        pin::Pin,
        sync::{Mutex, mpsc},
        task::{Context, Waker},
    };

    use super::*;

    fn begin(job: &mut Pin<Box<impl Future>>) {
        assert!(job.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
    }

    #[tokio::test]
    async fn a_wait_is_told_by_those_who_wait_and_what_a_job_takes() {
        let decoders = Decoders::new(2);
        assert!(decoders.run(|| Ok(())).await.is_ok());
        decoders.mean.store(30_000_000, Ordering::Relaxed);
        let (let_go, gate) = mpsc::sync_channel::<()>(1);
        let gate = Arc::new(Mutex::new(gate));
        let job = || {
            let gate = Arc::clone(&gate);
            Box::pin(
                decoders
                    .run(move || gate.lock().map(|gate| _ = gate.recv()).map_err(|_| ApiError::internal("poisoned"))),
            )
        };
        let mut jobs: Vec<_> = (0..5).map(|_| job()).collect();
        jobs.iter_mut().for_each(begin);
        assert_eq!(decoders.wait(), Duration::ZERO, "three wait, and four always may");
        jobs.extend((0..3).map(|_| job()));
        jobs.iter_mut().skip(5).for_each(begin);
        assert_eq!(
            decoders.wait(),
            Duration::from_millis(120),
            "the seventh has its turn after three others of its thread"
        );
        jobs.truncate(6);
        assert_eq!(decoders.wait(), Duration::from_millis(90), "those who leave are not waited for");
        drop(let_go);
        for job in jobs {
            assert!(job.await.is_ok());
        }
        assert_eq!(decoders.wait(), Duration::ZERO);
    }

    #[test]
    fn a_mean_follows_what_jobs_take() {
        let mean = AtomicU64::default();
        took(&mean, Duration::from_millis(80));
        assert_eq!(mean.load(Ordering::Relaxed), 80_000_000, "the first is all that is known");
        took(&mean, Duration::ZERO);
        assert_eq!(mean.load(Ordering::Relaxed), 70_000_000);
        (0..100).for_each(|_| took(&mean, Duration::from_millis(8)));
        assert!((7_900_000..8_100_000).contains(&mean.load(Ordering::Relaxed)), "{mean:?}");
        took(&mean, Duration::from_secs(10));
        assert!(mean.load(Ordering::Relaxed) < 16_000_000, "one huge picture: {mean:?}");
        (0..20).for_each(|_| took(&mean, Duration::from_secs(10)));
        assert!(mean.load(Ordering::Relaxed) > 5_000_000_000, "they all are: {mean:?}");
    }
}
