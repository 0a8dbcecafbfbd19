//! Which events a consumer is told of.

use std::{
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use crds::serving::{EVENTS, EventRule};

use super::Kind;

/// What a consumer wants, by kind of event.
#[derive(Debug)]
pub struct Rules {
    by_kind: [Option<Wanted>; EVENTS.len()],
    written: Vec<EventRule>,
}

#[derive(Debug)]
struct Wanted {
    sample: f64,
    limit: Option<Limit>,
}

impl Rules {
    /// The first rule that fits an event decides; where none does, the consumer does not get it. Kinds that one rule speaks of
    /// have the rule's rate each.
    #[must_use]
    pub fn new(rules: Vec<EventRule>) -> Self {
        let wanted = |rule: &EventRule| Wanted { sample: rule.sample, limit: rule.per_second.map(Limit::new) };
        let by_kind = EVENTS.map(|event| rules.iter().find(|rule| rule.fits(event)).map(wanted));
        Self { by_kind, written: rules }
    }

    /// The rules as they were written.
    #[must_use]
    pub fn written(&self) -> &[EventRule] {
        &self.written
    }

    /// A bit for each kind of which any event may be wanted.
    #[must_use]
    pub fn kinds(&self) -> u32 {
        let is_wanted = |wanted: &Option<Wanted>| wanted.as_ref().is_some_and(|wanted| wanted.sample > 0.0);
        self.by_kind.iter().zip(0..).map(|(wanted, index)| u32::from(is_wanted(wanted)) << index).sum()
    }

    /// Whether this one is wanted.
    #[must_use]
    pub fn take(&self, kind: Kind, now: Instant) -> bool {
        let Some(wanted) = &self.by_kind[kind as usize] else { return false };
        (wanted.sample >= 1.0 || fastrand::f64() < wanted.sample)
            && wanted.limit.as_ref().is_none_or(|limit| limit.allows(now))
    }
}

/// So many a second, and as many at once as come in a second: the generic cell rate algorithm (ITU-T I.371).
#[derive(Debug)]
struct Limit {
    distance: Duration,
    burst: Duration,
    due: Mutex<Option<Instant>>,
}

impl Limit {
    fn new(per_second: f64) -> Self {
        let distance = Duration::from_secs_f64(1.0 / per_second);
        Self { distance, burst: Duration::from_secs(1).saturating_sub(distance), due: Mutex::default() }
    }

    fn allows(&self, now: Instant) -> bool {
        let mut due = self.due.lock().unwrap_or_else(PoisonError::into_inner);
        let mine = due.map_or(now, |due| due.max(now));
        let allowed = mine <= now + self.burst;
        if allowed {
            *due = Some(mine + self.distance);
        }
        allowed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(events: &str, sample: f64, per_second: Option<f64>) -> EventRule {
        EventRule { events: events.to_owned(), sample, per_second }
    }

    #[test]
    fn the_first_rule_that_fits_decides() {
        let rules =
            Rules::new(vec![rule("request.failed", 1.0, None), rule("request.*", 0.0, None), rule("*", 1.0, None)]);
        let now = Instant::now();
        assert!(rules.take(Kind::RequestFailed, now) && rules.take(Kind::ModelLoaded, now));
        assert!(!rules.take(Kind::RequestCompleted, now) && rules.kinds() & Kind::RequestCompleted.bit() == 0);
        assert!(!Rules::new(Vec::new()).take(Kind::RequestFailed, now));
    }

    #[test]
    fn a_rate_lets_a_second_of_events_through_at_once_and_then_its_own_number() {
        let rules = Rules::new(vec![rule("request.failed", 1.0, Some(10.0))]);
        let now = Instant::now();
        let taken = |from: u64, to: u64| {
            (from..to).filter(|millis| rules.take(Kind::RequestFailed, now + Duration::from_millis(*millis))).count()
        };
        assert_eq!((taken(0, 100), taken(100, 1100), taken(1100, 11_100)), (10, 10, 100));
    }

    #[test]
    fn a_rate_of_less_than_one_a_second_lets_single_ones_through() {
        let rules = Rules::new(vec![rule("*", 1.0, Some(0.1))]);
        let now = Instant::now();
        let taken = (0..100).filter(|second| rules.take(Kind::BatchRun, now + Duration::from_secs(*second))).count();
        assert_eq!(taken, 10);
    }

    #[test]
    fn a_share_is_taken() {
        let rules = Rules::new(vec![rule("request.*", 0.25, None)]);
        let now = Instant::now();
        let taken = (0..10_000).filter(|_| rules.take(Kind::RequestCompleted, now)).count();
        assert!((2000..3000).contains(&taken), "{taken}");
    }
}
