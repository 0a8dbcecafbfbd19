//! What was counted and timed in the last minute or so, and the latencies of all that was answered since the process began.

use std::time::{Duration, Instant};

use hdrhistogram::{Counter, Histogram};

use super::Outcome;

/// The window moves on in so many steps, so what is shown covers it to a sixth.
const SLOTS: u32 = 6;

/// An hour, in microseconds.
const LONGEST: u64 = 3_600_000_000;

/// Two digits: quantiles are right to 1 %.
const DIGITS: u8 = 2;

/// Latencies and ends of requests in a window that moves with the clock. What it has moved past is still counted, by latency.
#[derive(Debug)]
pub struct Window {
    began: Instant,
    step: Duration,
    slots: Vec<Slot>,
    current: Current,
    /// Microseconds of the requests that were answered in steps that no slot holds any more.
    past: Histogram<u64>,
    /// Requests that passed their deadline since the process began.
    expired: u64,
}

/// The slot that is filled, and when its step ends.
#[derive(Debug)]
struct Current {
    slot: usize,
    ends: Instant,
}

#[derive(Debug)]
struct Slot {
    /// Number of the step that it holds.
    step: u64,
    /// Microseconds of the requests that were answered.
    latencies: Histogram<u32>,
    late_or_failed: u64,
    refused: u64,
}

impl Slot {
    fn new() -> Self {
        Self { step: 0, latencies: empty(), late_or_failed: 0, refused: 0 }
    }

    fn begin(&mut self, step: u64, past: &mut Histogram<u64>) {
        self.step = step;
        for latency in self.latencies.iter_recorded() {
            // It grows as it has to, and has the same digits, so that each comes into a place of the same bounds.
            let _ = past.record_n(latency.value_iterated_to(), latency.count_at_value().into());
        }
        self.latencies.reset();
        (self.late_or_failed, self.refused) = (0, 0);
    }
}

fn empty<T: Counter>() -> Histogram<T> {
    // The digits are right, so it cannot fail.
    #[expect(clippy::expect_used, reason = "a constant that the library takes")]
    Histogram::new(DIGITS).expect("two digits")
}

/// Requests that were answered since the process began. Neither number ever falls.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Answered {
    /// All of them.
    pub total: u64,
    /// Those within the latency that was named, right to 1 % of it; `None` where none was.
    pub within: Option<u64>,
    /// Requests that passed their deadline.
    pub expired: u64,
}

/// What a window holds.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Seen {
    /// Time that it covers.
    pub covers: Duration,
    /// Requests that were answered.
    pub answered: u64,
    /// Requests that failed, or were too late.
    pub late_or_failed: u64,
    /// Requests that were refused.
    pub refused: u64,
    /// Latency of those that were answered.
    pub latency: Option<Quantiles>,
}

/// Latencies. The quantiles are right to 1 %.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Quantiles {
    /// Mean.
    pub mean: Duration,
    /// 50 %.
    pub p50: Duration,
    /// 95 %.
    pub p95: Duration,
    /// 99 %.
    pub p99: Duration,
    /// The longest.
    pub max: Duration,
}

impl Seen {
    /// Share of the requests that failed or were too late, among all but those that were refused or wrong.
    #[must_use]
    pub fn error_rate(&self) -> f64 {
        match self.answered + self.late_or_failed {
            0 => 0.0,
            all => self.late_or_failed as f64 / all as f64,
        }
    }
}

/// What a window holds, before anybody has looked closer.
pub struct Last {
    covers: Duration,
    all: Slot,
}

impl Last {
    /// The numbers of it.
    #[must_use]
    pub fn seen(self) -> Seen {
        let Self { covers, all } = self;
        Seen {
            covers,
            answered: all.latencies.len(),
            late_or_failed: all.late_or_failed,
            refused: all.refused,
            latency: quantiles(&all.latencies),
        }
    }
}

impl Window {
    /// A window over the last `length`.
    #[must_use]
    pub fn new(length: Duration, now: Instant) -> Self {
        let slots = (0..SLOTS).map(|_| Slot::new()).collect();
        let step = length / SLOTS;
        Self { began: now, step, slots, current: Current { slot: 0, ends: now + step }, past: empty(), expired: 0 }
    }

    /// A request has ended. One that ended in a step before the last one counts as of that.
    pub fn ended(&mut self, outcome: Outcome, latency: Duration, at: Instant) {
        if at >= self.current.ends {
            self.move_on(at);
        }
        let slot = &mut self.slots[self.current.slot];
        match outcome {
            Outcome::ok => {
                // It grows as it has to; longer than that no request may take.
                let _ = slot.latencies.record(micros(latency));
            }
            Outcome::expired => {
                slot.late_or_failed += 1;
                self.expired += 1;
            }
            Outcome::failed => slot.late_or_failed += 1,
            Outcome::rejected => slot.refused += 1,
            Outcome::cancelled | Outcome::invalid => {}
        }
    }

    fn move_on(&mut self, now: Instant) {
        let step = self.step_of(now);
        let slot = (step % u64::from(SLOTS)) as usize;
        self.slots[slot].begin(step, &mut self.past);
        self.current = Current { slot, ends: self.began + self.since_began(step + 1) };
    }

    /// What the window holds now.
    #[must_use]
    pub fn last(&self, now: Instant) -> Last {
        let step = self.step_of(now);
        let first = (step + 1).saturating_sub(u64::from(SLOTS));
        let mut all = Slot::new();
        for slot in &self.slots {
            if slot.step >= first {
                // Both are of the same kind, and grow as they have to.
                let _ = all.latencies.add(&slot.latencies);
                all.late_or_failed += slot.late_or_failed;
                all.refused += slot.refused;
            }
        }
        Last { covers: now.saturating_duration_since(self.began).saturating_sub(self.since_began(first)), all }
    }

    /// Requests that were answered since the process began; where a latency is named, also how many of them `within` it.
    #[must_use]
    pub fn answered(&self, within: Option<Duration>) -> Answered {
        let slots = || self.slots.iter().map(|slot| &slot.latencies);
        let total = self.past.len() + slots().map(Histogram::len).sum::<u64>();
        let within = within.map(micros).map(|most| {
            self.past.count_between(0, most) + slots().map(|slot| slot.count_between(0, most)).sum::<u64>()
        });
        Answered { total, within, expired: self.expired }
    }

    /// When a step begins.
    fn since_began(&self, step: u64) -> Duration {
        self.step * u32::try_from(step).unwrap_or(u32::MAX)
    }

    fn step_of(&self, now: Instant) -> u64 {
        let nanos = now.saturating_duration_since(self.began).as_nanos() / self.step.as_nanos().max(1);
        u64::try_from(nanos).unwrap_or(u64::MAX)
    }
}

fn micros(latency: Duration) -> u64 {
    u64::try_from(latency.as_micros()).unwrap_or(LONGEST).min(LONGEST)
}

fn quantiles(latencies: &Histogram<u32>) -> Option<Quantiles> {
    let at = |quantile| Duration::from_micros(latencies.value_at_quantile(quantile));
    (!latencies.is_empty()).then(|| Quantiles {
        mean: Duration::from_secs_f64(latencies.mean() / 1e6),
        p50: at(0.5),
        p95: at(0.95),
        p99: at(0.99),
        max: at(1.0),
    })
}

/// The largest number of the last minute, whoever looks and however often.
#[derive(Debug)]
pub struct Maximum {
    began: Instant,
    slots: [Largest; SLOTS as usize + 1],
    /// That of the last step, and when the step ends.
    current: Largest,
    ends: Instant,
}

/// The largest number of a step.
#[derive(Debug, Clone, Copy, Default)]
struct Largest {
    step: u64,
    number: u64,
}

/// A maximum is remembered for so long, and up to a sixth longer.
const MAXIMUM_STEP: Duration = Duration::from_secs(10);

impl Maximum {
    /// Nothing yet.
    #[must_use]
    pub fn new(now: Instant) -> Self {
        let none = Largest::default();
        Self { began: now, slots: [none; SLOTS as usize + 1], current: none, ends: now + MAXIMUM_STEP }
    }

    /// A number came up.
    pub fn record(&mut self, number: u64, now: Instant) {
        // It is hardly ever the largest.
        if number <= self.current.number && now < self.ends {
            return;
        }
        let step = self.step_of(now);
        let slot = &mut self.slots[(step % (u64::from(SLOTS) + 1)) as usize];
        if slot.step < step {
            *slot = Largest { step, number };
        } else if slot.step == step {
            slot.number = slot.number.max(number);
        }
        if self.current.step <= step {
            self.current = *slot;
            self.ends = self.began + MAXIMUM_STEP * u32::try_from(step + 1).unwrap_or(u32::MAX);
        }
    }

    /// The largest of the last minute.
    #[must_use]
    pub fn get(&self, now: Instant) -> u64 {
        let first = self.step_of(now).saturating_sub(u64::from(SLOTS));
        self.slots.iter().filter(|slot| slot.step >= first).map(|slot| slot.number).max().unwrap_or_default()
    }

    fn step_of(&self, now: Instant) -> u64 {
        now.saturating_duration_since(self.began).as_secs() / MAXIMUM_STEP.as_secs()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const LENGTH: Duration = Duration::from_secs(60);

    #[test]
    fn quantiles_are_right_to_one_percent() {
        let now = Instant::now();
        let mut window = Window::new(LENGTH, now);
        for millis in 1..=1000 {
            window.ended(Outcome::ok, Duration::from_millis(millis), now);
        }
        let latency = window.last(now).seen().latency.unwrap();
        let close = |got: Duration, wanted: u64| (got.as_secs_f64() * 1e3 / wanted as f64 - 1.0).abs() < 0.01;
        assert!(close(latency.p50, 500) && close(latency.p95, 950) && close(latency.p99, 990), "{latency:?}");
        assert!(close(latency.max, 1000) && close(latency.mean, 500), "{latency:?}");
    }

    #[test]
    fn what_is_older_than_the_window_is_forgotten_and_what_is_younger_is_not() {
        let began = Instant::now();
        let mut window = Window::new(LENGTH, began);
        for second in 0..=300 {
            window.ended(Outcome::ok, Duration::from_millis(1), began + Duration::from_secs(second));
        }
        let seen = window.last(began + Duration::from_secs(300)).seen();
        assert_eq!((seen.answered, seen.covers), (51, Duration::from_secs(50)), "the sixth slot has just begun");
        assert_eq!(window.last(began + Duration::from_secs(309)).seen().answered, 51);
        // Late to be counted: as of the step that is filled.
        window.ended(Outcome::ok, Duration::from_millis(1), began + Duration::from_secs(100));
        assert_eq!(window.last(began + Duration::from_secs(309)).seen().answered, 52);
        assert_eq!(window.answered(None).total, 302);
        assert_eq!(
            window.last(began + Duration::from_secs(400)).seen(),
            Seen { covers: Duration::from_secs(50), ..Seen::default() }
        );
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 50, failure_persistence: None, ..ProptestConfig::default() })]

        /// Whatever has moved out of the window, and whenever one looks.
        #[test]
        fn answers_are_counted_for_good_and_by_latency_right_to_one_percent(
            answers in prop::collection::vec((0_u64..30_000, 3.0_f64..8.8), 1..80), bound in 1_u64..=600_000,
        ) {
            let began = Instant::now();
            let mut window = Window::new(LENGTH, began);
            let (mut now, mut before) = (began, Answered { within: Some(0), ..Answered::default() });
            let mut latencies = Vec::new();
            for (millis, power) in answers {
                now += Duration::from_millis(millis);
                // From 1 ms to 10 min, as many short ones as long ones.
                let latency = Duration::from_micros(10_f64.powf(power) as u64);
                window.ended(Outcome::ok, latency, now);
                latencies.push(latency.as_secs_f64() * 1e3);
                let answered = window.answered(Some(Duration::from_millis(bound)));
                let at_most = |most: f64| latencies.iter().filter(|latency| **latency <= most).count() as u64;
                let within = answered.within.unwrap();
                prop_assert_eq!(answered.total, latencies.len() as u64);
                prop_assert!(at_most(bound as f64) <= within && within <= at_most(bound as f64 * 1.01), "{:?}", answered);
                prop_assert!(answered.total > before.total && answered.within >= before.within, "it fell");
                before = answered;
            }
        }
    }

    #[test]
    fn refusals_and_wrong_requests_are_no_errors() {
        let now = Instant::now();
        let mut window = Window::new(LENGTH, now);
        for outcome in
            [Outcome::ok, Outcome::ok, Outcome::failed, Outcome::expired, Outcome::rejected, Outcome::invalid]
        {
            window.ended(outcome, Duration::from_millis(1), now);
        }
        let seen = window.last(now).seen();
        assert_eq!((seen.answered, seen.late_or_failed, seen.refused), (2, 2, 1));
        assert!((seen.error_rate() - 0.5).abs() < 1e-9);
    }

    #[test]
    fn a_maximum_is_remembered_for_a_minute() {
        let began = Instant::now();
        let mut maximum = Maximum::new(began);
        for (number, seconds) in [(6, 0), (7, 0), (5, 0), (3, 30), (2, 30)] {
            maximum.record(number, began + Duration::from_secs(seconds));
        }
        assert_eq!(maximum.get(began + Duration::from_secs(60)), 7);
        assert_eq!(maximum.get(began + Duration::from_secs(75)), 3);
        assert_eq!(maximum.get(began + Duration::from_secs(500)), 0);
        // In the place of the first, and less than it was.
        maximum.record(1, began + Duration::from_secs(70));
        assert_eq!(maximum.get(began + Duration::from_secs(120)), 1);
        maximum.record(9, began + Duration::from_secs(120));
        // Told late: of a step that is over.
        maximum.record(8, began + Duration::from_secs(115));
        maximum.record(10, began + Duration::from_secs(50));
        assert_eq!(maximum.get(began + Duration::from_secs(120)), 9);
        assert_eq!(maximum.get(began + Duration::from_secs(175)), 9);
        assert_eq!(maximum.get(began + Duration::from_secs(190)), 0);
    }
}
