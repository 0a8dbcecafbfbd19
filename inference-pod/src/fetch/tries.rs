//! How often a download is tried again, and after which pause.

use std::{fmt, time::Duration};

/// The pause after the first failure; it doubles with each.
const FIRST_PAUSE: Duration = Duration::from_millis(500);

/// No pause of our own choice is longer.
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// A server that asks for more patience than this is asked again all the same.
const LONGEST_WISH: Duration = Duration::from_secs(120);

/// A try that got the file on by as much has shown that trying pays: the count of failures begins anew.
const PROGRESS_BYTES: u64 = 1 << 20;

/// The tries made for one file.
#[derive(Debug, Clone)]
pub struct Tries {
    retries: u32,
    made: u32,
    in_vain: u32,
    furthest: u64,
}

impl Tries {
    /// No try yet; that many in a row may fail without progress before the last.
    #[must_use]
    pub fn new(retries: u32) -> Self {
        Self { retries, made: 0, in_vain: 0, furthest: 0 }
    }

    /// Another try begins.
    pub fn begin(&mut self) {
        self.made += 1;
    }

    /// How many were made.
    #[must_use]
    pub fn made(&self) -> Made {
        Made(self.made)
    }

    /// Counts a failure with the file at that length; the pause before the next try, none where there is no next.
    ///
    /// Progress is measured from the furthest point ever reached: a server that starts over each time makes none.
    /// `wish` is what the server asked for, `share` between 0 and 1 spreads the tries of many pods.
    pub fn failed(&mut self, bytes: u64, wish: Option<Duration>, share: f64) -> Option<Duration> {
        if bytes >= self.furthest + PROGRESS_BYTES {
            self.in_vain = 0;
        }
        self.furthest = self.furthest.max(bytes);
        self.in_vain += 1;
        if self.in_vain > self.retries {
            return None;
        }
        let doubled = FIRST_PAUSE.saturating_mul(1 << (self.in_vain - 1).min(16)).min(LONGEST_PAUSE);
        let own = doubled.mul_f64(0.5 + share / 2.0);
        Some(own.max(wish.unwrap_or_default().min(LONGEST_WISH)))
    }
}

/// A number of tries, for people.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Made(pub u32);

impl fmt::Display for Made {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.0, if self.0 == 1 { "try" } else { "tries" })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pauses(tries: &mut Tries, bytes: u64) -> Vec<Duration> {
        std::iter::from_fn(|| tries.failed(bytes, None, 1.0)).take(100).collect()
    }

    #[test]
    fn pauses_double_up_to_a_bound_and_end() {
        let millis: Vec<u128> = pauses(&mut Tries::new(8), 0).iter().map(Duration::as_millis).collect();
        assert_eq!(millis, [500, 1000, 2000, 4000, 8000, 16000, 30000, 30000]);
        assert!(pauses(&mut Tries::new(0), 0).is_empty());
        assert_eq!(pauses(&mut Tries::new(100), 0).last(), Some(&LONGEST_PAUSE), "no overflow");
    }

    #[test]
    fn jitter_halves_a_pause_at_most() {
        assert_eq!(Tries::new(1).failed(0, None, 0.0), Some(FIRST_PAUSE / 2));
    }

    #[test]
    fn a_servers_wish_is_kept_within_reason() {
        let pause = |seconds| Tries::new(1).failed(0, Some(Duration::from_secs(seconds)), 1.0).unwrap().as_secs();
        assert_eq!((pause(7), pause(86_400)), (7, 120));
        assert_eq!(Tries::new(1).failed(0, Some(Duration::ZERO), 1.0), Some(FIRST_PAUSE));
    }

    #[test]
    fn progress_starts_the_count_anew_but_starting_over_is_no_progress() {
        let mut tries = Tries::new(2);
        assert_eq!(pauses(&mut tries.clone(), 0).len(), 2);
        tries.failed(0, None, 1.0);
        tries.failed(0, None, 1.0);
        assert_eq!(tries.failed(PROGRESS_BYTES, None, 1.0), Some(FIRST_PAUSE));
        assert_eq!(pauses(&mut tries, PROGRESS_BYTES).len(), 1, "the same megabyte again");
    }
}
