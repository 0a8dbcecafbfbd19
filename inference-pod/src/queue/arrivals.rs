//! How often samples come.

use std::time::{Duration, Instant};

/// Weight of a new gap. Large: one long pause must end the belief that somebody comes soon.
const WEIGHT: f64 = 0.25;

/// The mean gap between samples, recent ones counting most.
#[derive(Debug, Default)]
pub(super) struct Arrivals {
    last: Option<Instant>,
    /// Seconds; `None` until two have come.
    gap: Option<f64>,
}

impl Arrivals {
    /// That many samples came together.
    pub(super) fn record(&mut self, samples: usize, now: Instant) {
        if let Some(last) = self.last {
            let seen = now.saturating_duration_since(last).as_secs_f64() / samples.max(1) as f64;
            self.gap = Some(self.gap.map_or(seen, |gap| gap + WEIGHT * (seen - gap)));
        }
        self.last = Some(now);
    }

    /// How long it will be until that many have come. `None` where too little is known to say.
    pub(super) fn time_for(&self, samples: usize, now: Instant) -> Option<Duration> {
        let silence = now.saturating_duration_since(self.last?).as_secs_f64();
        // Who has been silent for longer than usual is no more expected as often as usual.
        let gap = self.gap?.max(silence);
        Some(Duration::from_secs_f64(gap * samples as f64))
    }

    /// When that many should have come, and one more: who has not come by then fails to come. `None` where too little is
    /// known to say.
    pub(super) fn overdue(&self, samples: usize) -> Option<Instant> {
        self.last?.checked_add(Duration::from_secs_f64(self.gap? * (samples + 1) as f64))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_expected_before_two_have_come() {
        let now = Instant::now();
        let mut arrivals = Arrivals::default();
        assert_eq!(arrivals.time_for(1, now), None);
        arrivals.record(1, now);
        assert_eq!(arrivals.time_for(1, now), None);
    }

    #[test]
    fn those_who_come_as_often_as_usual_are_overdue_one_gap_after_they_should_have_come() {
        let now = Instant::now();
        let after = |millis| now + Duration::from_millis(millis);
        let mut arrivals = Arrivals::default();
        arrivals.record(1, now);
        assert_eq!(arrivals.overdue(1), None);
        arrivals.record(1, after(10));
        assert_eq!([1, 3].map(|samples| arrivals.overdue(samples)), [30, 50].map(|millis| Some(after(millis))));
    }

    #[test]
    fn a_pause_ends_the_belief_that_somebody_comes_soon() {
        let now = Instant::now();
        let after = |millis| now + Duration::from_millis(millis);
        let mut arrivals = Arrivals::default();
        (0..100).for_each(|millis| arrivals.record(1, after(millis)));
        let soon = arrivals.time_for(3, after(99)).unwrap();
        assert!(soon.abs_diff(Duration::from_millis(3)) < Duration::from_micros(1), "{soon:?}");
        assert!(arrivals.time_for(1, after(199)).unwrap() >= Duration::from_millis(100), "silent for 100 ms");
        arrivals.record(1, after(1099));
        assert!(arrivals.time_for(1, after(1099)).unwrap() > Duration::from_millis(200), "one pause of a second");
    }
}
