//! How much of something there was over time. Pure: `now` is an argument.

use std::time::Instant;

/// A number that changes in steps (samples that wait, samples that run), and its integral over time. The integral is a whole
/// number of nanoseconds, so nothing is lost however long it runs, and it never falls: a moment before the last one counts as
/// that one.
#[derive(Debug, Default)]
pub struct Integral {
    level: usize,
    /// Up to here it is summed up; `None` before the first step, when there is nothing to sum up.
    until: Option<Instant>,
    /// Level times nanoseconds.
    sum: u128,
}

/// What there is, and the integral of it.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Reading {
    /// Now.
    pub level: usize,
    /// Level times seconds, from the first step to now.
    pub seconds: f64,
}

impl Integral {
    /// What there is since the last step.
    #[must_use]
    pub fn level(&self) -> usize {
        self.level
    }

    /// From now on there is that much.
    pub fn set(&mut self, level: usize, now: Instant) {
        self.advance(now);
        self.level = level;
    }

    /// What there is, with its integral up to now.
    pub fn read(&mut self, now: Instant) -> Reading {
        self.advance(now);
        Reading { level: self.level, seconds: self.sum as f64 / 1e9 }
    }

    fn advance(&mut self, now: Instant) {
        let time = self.until.map_or_else(Default::default, |until| now.saturating_duration_since(until));
        self.sum += time.as_nanos() * self.level as u128;
        self.until = self.until.max(Some(now));
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        /// Steps in order, with readings in between: the integral is what adding up level times time gives.
        #[test]
        fn it_is_the_sum_of_level_times_time(
            steps in prop::collection::vec((0_u64..5_000_000_000, 0_usize..1000, any::<bool>()), 0..50),
        ) {
            let (mut integral, mut now) = (Integral::default(), Instant::now());
            let (mut level, mut sum) = (0, 0);
            for (nanos, next, is_read) in steps {
                now += Duration::from_nanos(nanos);
                sum += u128::from(nanos) * level as u128;
                if is_read {
                    prop_assert_eq!(integral.read(now), Reading { level, seconds: sum as f64 / 1e9 });
                } else {
                    integral.set(next, now);
                    level = next;
                }
            }
            prop_assert_eq!(integral.sum, sum);
            prop_assert_eq!(integral.level(), level);
        }

        /// Threads look at the clock before they have the lock, so their moments may come out of order.
        #[test]
        fn it_never_falls(steps in prop::collection::vec((0_u64..5_000, 0_usize..1000), 0..50)) {
            let (mut integral, began) = (Integral::default(), Instant::now());
            let mut last = 0.0;
            for (micros, next) in steps {
                let now = began + Duration::from_micros(micros);
                let read = integral.read(now).seconds;
                integral.set(next, now);
                prop_assert!(read >= last, "{} after {}", read, last);
                last = read;
            }
        }
    }

    #[test]
    fn the_part_since_the_last_step_is_in_a_reading() {
        let (mut integral, now) = (Integral::default(), Instant::now());
        assert_eq!(integral.read(now), Reading::default());
        integral.set(3, now);
        assert_eq!(integral.read(now + Duration::from_secs(2)), Reading { level: 3, seconds: 6.0 });
        integral.set(1, now + Duration::from_secs(4));
        assert_eq!(integral.read(now + Duration::from_secs(5)), Reading { level: 1, seconds: 13.0 });
    }
}
