//! What was read and decided lately: all that a decision needs of the past.

use std::{
    collections::{BTreeMap, VecDeque},
    time::Duration,
};

use super::Decision;

/// Steps are remembered for so long: what may go within a minute depends on what went.
const MINUTE: Duration = Duration::from_secs(60);

/// What the pods of a model told at one moment.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Reading {
    /// The time, from whatever beginning the caller has chosen.
    pub at: Duration,
    /// The time that the averages are of; zero where there is nothing before it.
    pub span: Duration,
    /// Pods that are ready.
    pub ready: u32,
    /// Those of them whose numbers are known.
    pub counted: u32,
    /// Samples that ran and waited in these, on average over the span.
    pub load: f64,
    /// Samples that waited, on average over the span.
    pub queued: f64,
    /// Samples that run and wait at this moment.
    pub load_now: f64,
    /// Samples that wait at this moment.
    pub queued_now: f64,
    /// Requests that were refused within the span because queues were full.
    pub refused: u64,
    /// Requests that were answered within the span.
    pub answered: u64,
    /// Those of them whose latency was counted, by model.
    pub answers: BTreeMap<String, Share>,
}

/// Requests, and how many of them were answered within the latency that is aimed at.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Share {
    /// All that were answered.
    pub answered: u64,
    /// Those in time.
    pub within: u64,
}

impl Share {
    /// Fewer say nothing about a share of them.
    const FEWEST: u64 = 10;

    /// Whether too few were in time.
    #[must_use]
    pub fn is_late(&self, quantile: f64) -> bool {
        self.answered >= Self::FEWEST && (self.within as f64) < self.answered as f64 * quantile
    }
}

/// A change of the number that was decided on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Step {
    at: Duration,
    from: u32,
    to: u32,
}

/// Readings and decisions of one model.
#[derive(Debug, Clone)]
pub struct History {
    readings: VecDeque<Reading>,
    /// Recommendations that may still be the largest within some window: each larger than all after it.
    largest: VecDeque<(Duration, u32)>,
    /// The same for the smallest.
    smallest: VecDeque<(Duration, u32)>,
    steps: VecDeque<Step>,
    last_up: Option<Duration>,
    last_blind: Option<Duration>,
    last_burst: Option<Duration>,
    last_whole: Duration,
    wanted: u32,
}

impl History {
    /// Nothing is known but how many replicas there are: who begins takes that for what was recommended, so that nothing goes
    /// before a whole window was seen.
    #[must_use]
    pub fn begin(at: Duration, wanted: u32) -> Self {
        let only = VecDeque::from([(at, wanted)]);
        Self {
            readings: VecDeque::new(),
            largest: only.clone(),
            smallest: only,
            steps: VecDeque::new(),
            last_up: None,
            last_blind: None,
            last_burst: None,
            last_whole: at,
            wanted,
        }
    }

    /// Adds a reading, and forgets those before `window`.
    pub fn read(&mut self, reading: Reading, window: Duration) {
        let first = reading.at.saturating_sub(window);
        self.readings.push_back(reading);
        // The last two stay however old they are: whether numbers are old is for the decision to say.
        while self.readings.len() > 2 && self.readings.front().is_some_and(|reading| reading.at < first) {
            self.readings.pop_front();
        }
    }

    /// The last reading.
    #[must_use]
    pub fn last(&self) -> Option<&Reading> {
        self.readings.back()
    }

    /// The readings, the last one first.
    pub fn backwards(&self) -> impl Iterator<Item = &Reading> {
        self.readings.iter().rev()
    }

    /// Remembers what was decided at that time, when so many were wanted.
    pub fn decided(&mut self, at: Duration, wanted: u32, decision: &Decision, window: Duration) {
        // Somebody else has changed the number: it counts as recommended, and what comes next goes from there.
        if wanted != self.wanted {
            self.recommend(at, wanted);
        }
        self.recommend(at, decision.recommended);
        let first = at.saturating_sub(window);
        for recommendations in [&mut self.largest, &mut self.smallest] {
            while recommendations.front().is_some_and(|(time, _)| *time < first) {
                recommendations.pop_front();
            }
        }
        if decision.is_burst {
            self.last_burst = Some(at);
        }
        if self.last().is_some_and(|last| last.ready >= wanted) {
            self.last_whole = at;
        }
        if decision.desired > wanted {
            self.last_up = Some(at);
            if decision.reason.is_blind() {
                self.last_blind = Some(at);
            }
        }
        if decision.desired != wanted {
            self.steps.push_back(Step { at, from: wanted, to: decision.desired });
        }
        while self.steps.front().is_some_and(|step| step.at + MINUTE < at) {
            self.steps.pop_front();
        }
        self.wanted = decision.desired;
    }

    fn recommend(&mut self, at: Duration, replicas: u32) {
        while self.largest.back().is_some_and(|(_, before)| *before <= replicas) {
            self.largest.pop_back();
        }
        while self.smallest.back().is_some_and(|(_, before)| *before >= replicas) {
            self.smallest.pop_back();
        }
        self.largest.push_back((at, replicas));
        self.smallest.push_back((at, replicas));
    }

    /// The largest recommendation since then.
    #[must_use]
    pub fn largest_since(&self, since: Duration) -> Option<u32> {
        self.largest.iter().find(|(at, _)| *at >= since).map(|(_, replicas)| *replicas)
    }

    /// The smallest recommendation since then.
    #[must_use]
    pub fn smallest_since(&self, since: Duration) -> Option<u32> {
        self.smallest.iter().find(|(at, _)| *at >= since).map(|(_, replicas)| *replicas)
    }

    /// The number of a minute ago, and how many have gone since.
    #[must_use]
    pub fn last_minute(&self, now: Duration) -> (u32, u32) {
        let recent = self.steps.iter().filter(|step| step.at + MINUTE > now);
        let gone = recent.clone().map(|step| step.from.saturating_sub(step.to)).sum();
        (recent.map(|step| step.from).next().unwrap_or(self.wanted), gone)
    }

    /// When replicas were last added.
    #[must_use]
    pub fn last_up(&self) -> Option<Duration> {
        self.last_up
    }

    /// When replicas were last added that the load does not explain.
    #[must_use]
    pub fn last_blind(&self) -> Option<Duration> {
        self.last_blind
    }

    /// When there were last as many ready replicas as were wanted.
    #[must_use]
    pub fn last_whole(&self) -> Duration {
        self.last_whole
    }

    /// When there was last a burst.
    #[must_use]
    pub fn last_burst(&self) -> Option<Duration> {
        self.last_burst
    }
}
