//! Refusals have a rate: saying no must leave the models time to say yes.

use std::{
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

/// A refusal costs what reading a request costs. Clients that ask again at once whenever they are refused would leave the
/// models as little of a core as the scheduler lets them; at this distance they leave most of one. Models on more cores have more
/// clients: each core makes the distance shorter.
const DISTANCE: Duration = Duration::from_micros(250);

/// So much of a body counts as another refusal, for it is read and thrown away. 4,005 refusals a second of 600 KB each took two thirds
/// of a core: 16 µs for each of these and the refusal itself alike.
const LIKE_ANOTHER_BYTES: u64 = 64 << 10;

/// Most clients have stopped by then, for they are told that their connection ends; a single one must not make all others wait.
const MOST_COUNTED_BYTES: u64 = 16 << 20;

/// Refusals that come together are told at once up to this: 80 of them for each core, of requests with small bodies.
const BURST: Duration = Duration::from_millis(20);

/// Nobody waits longer to be refused. So many clients as take longer than this to be refused once are too many.
const LONGEST_WAIT: Duration = Duration::from_millis(250);

/// When the next refusal is due: the generic cell rate algorithm (ITU-T I.371), with a bound on the wait.
#[derive(Debug)]
pub struct Refusals {
    distance: Duration,
    due: Mutex<Option<Instant>>,
}

impl Refusals {
    /// Of a process whose models have so many cores.
    #[must_use]
    pub fn new(cores: usize) -> Self {
        let cores = u32::try_from(cores.max(1)).unwrap_or(u32::MAX);
        Self { distance: DISTANCE / cores, due: Mutex::default() }
    }

    /// Waits for the turn to refuse a request with so large a body, no longer than until then. Where there are few of them that is now.
    pub async fn turn(&self, body_bytes: u64, latest: Instant) {
        let now = Instant::now();
        let wait = self.reserve(body_bytes, now).min(latest.saturating_duration_since(now));
        if !wait.is_zero() {
            tokio::time::sleep(wait).await;
        }
    }

    fn reserve(&self, body_bytes: u64, now: Instant) -> Duration {
        let refusals = 1.0 + body_bytes.min(MOST_COUNTED_BYTES) as f64 / LIKE_ANOTHER_BYTES as f64;
        let mut due = self.due.lock().unwrap_or_else(PoisonError::into_inner);
        let latest = now + BURST + LONGEST_WAIT;
        let mine = due.map_or(now, |due| due.clamp(now, latest));
        *due = Some(mine + self.distance.mul_f64(refusals));
        mine.saturating_duration_since(now + BURST)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn few_are_told_at_once_and_many_have_to_wait_but_not_for_long() {
        let refusals = Refusals::new(1);
        let now = Instant::now();
        let waits: Vec<Duration> = (0..2000).map(|_| refusals.reserve(0, now)).collect();
        assert_eq!(waits[..=80], [Duration::ZERO; 81]);
        assert_eq!(waits[84], DISTANCE * 4);
        assert_eq!(waits[1999], LONGEST_WAIT);
        assert_eq!(refusals.reserve(0, now + Duration::from_secs(1)), Duration::ZERO);
    }

    #[test]
    fn large_bodies_count_as_several_up_to_a_bound() {
        for (bytes, as_many) in
            [(0, 1), (LIKE_ANOTHER_BYTES, 2), (1 << 20, 17), (MOST_COUNTED_BYTES, 257), (u64::MAX, 257)]
        {
            let refusals = Refusals::new(1);
            let now = Instant::now();
            // What is told at once, and then one.
            (0..=80_u32.div_ceil(as_many)).for_each(|_| _ = refusals.reserve(bytes, now));
            let wait = refusals.reserve(bytes, now);
            let expected = DISTANCE * as_many * (80_u32.div_ceil(as_many) + 1);
            assert_eq!(wait, expected.saturating_sub(BURST), "{bytes}");
        }
    }

    #[test]
    fn below_the_rate_nobody_waits_however_long_it_goes_on_and_more_cores_have_more_of_it() {
        for cores in [1, 4] {
            let refusals = Refusals::new(cores as usize);
            let now = Instant::now();
            let waits = (0..100_000_u32).map(|index| refusals.reserve(0, now + DISTANCE * index / cores));
            assert_eq!(waits.max(), Some(Duration::ZERO), "{cores}");
        }
    }
}
