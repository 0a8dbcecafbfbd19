//! What was read and decided lately: all that a decision needs of the past.

use std::{
    collections::{BTreeMap, VecDeque},
    time::Duration,
};

use super::{
    Decision, Reason,
    decide::Refusals,
    load::is_refusing,
    policy::{BLIND_KEPT, Policy, replicas},
};

/// Steps and readings are remembered for so long at least: what may go within a minute depends on what went, and a slow model takes
/// that long to answer a few requests.
pub(super) const MINUTE: Duration = Duration::from_secs(60);

/// A load has gone when only this part of the replicas is left that it took, a third: those that go back and forth by a few are no
/// return.
const LEFT: u32 = 3;

/// Share of the samples that must wait to be a queue: some are in one for a moment even where there is room.
pub(super) const WAITING: f64 = 0.1;

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
    /// Samples that waited, on average over the span: in the queue, to be decoded, or while they were.
    pub queued: f64,
    /// Those of them that waited for others: in the queue, or to be decoded.
    pub in_queue: f64,
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

impl Reading {
    /// Ready pods whose numbers are missing.
    #[must_use]
    pub fn silent(&self) -> f64 {
        f64::from(self.ready.saturating_sub(self.counted))
    }

    /// Whether there is a queue. What is being decoded is in none: with an idle model it may be most of what there is.
    #[must_use]
    pub fn has_queue(&self) -> bool {
        self.in_queue > WAITING * self.load
    }
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
    pub(super) const FEWEST: u64 = 10;

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
    /// The same for the smallest of what was asked for: what is recommended to have something to spare is kept, but not added.
    least_asked_for: VecDeque<(Duration, u32)>,
    steps: VecDeque<Step>,
    last_up: Option<Duration>,
    last_down: Option<Down>,
    last_blind: Option<Duration>,
    last_burst: Option<Duration>,
    /// When a load was last back that had gone.
    last_return: Option<Duration>,
    last_whole: Duration,
    /// Since when there have been as many ready as were wanted, without a break.
    whole_since: Option<Duration>,
    begin: Begin,
    was_soon: bool,
    overloads: Vec<Overload>,
    /// The last step for refusals, until it is taken back or none are refused any more.
    for_refusals: Option<ForRefusals>,
    last_refused: Option<Duration>,
    wanted: u32,
}

/// What was there when the history began.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Begin {
    at: Duration,
    replicas: u32,
    /// Samples that ran in the first window; none before that is over.
    running: Option<f64>,
}

impl Begin {
    /// For so long it counts that whoever led before may have had reasons for the number of replicas.
    const COUNTS_FOR: Duration = Duration::from_secs(600);
}

/// A step up for requests that were refused.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ForRefusals {
    /// When.
    pub at: Duration,
    /// Replicas before it.
    pub from: u32,
    /// Replicas since.
    pub to: u32,
    /// Requests that were answered in a second before it.
    pub answered: f64,
    /// For so long it says what another step would bring.
    counts_for: Duration,
}

impl ForRefusals {
    /// Requests do not stay the same.
    const COUNTS_FOR: Duration = Duration::from_secs(600);

    /// Where a step that was in vain is tried again, and again in vain, so many times as long passes before the next one: a client
    /// that is always too much for one pod does not take a replica every ten minutes.
    const COUNTS_LONGER: u32 = 6;

    /// Where more replicas answer less than this part of the requests, those that come are others, which take longer.
    const FEWER: f64 = 0.8;

    /// Whether it still says so. Where there is no room for another step it always does.
    pub fn counts(&self, at: Duration, wanted: u32, policy: &Policy) -> bool {
        at < self.at + self.counts_for || wanted >= policy.max
    }

    /// Whether so many replicas have not brought half of the answers that the step was to bring. More of the same would not either: it
    /// is one pod that gets too much, as from a client with a single connection, or something else than replicas that is short.
    pub(super) fn was_in_vain(&self, refusals: &Refusals, wanted: u32) -> bool {
        let aimed_at = (self.answered * f64::from(self.to) / f64::from(self.from)).min(refusals.came);
        wanted >= self.to && refusals.answered < f64::midpoint(self.answered, aimed_at)
    }
}

/// What there was before a step down.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Down {
    at: Duration,
    running: f64,
    /// Requests that came in a second.
    came: f64,
}

/// How many samples ran in so many replicas when they were too few.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Overload {
    at: Duration,
    replicas: u32,
    running: f64,
    /// The same of those that are enough for it: fewer, for batches are smaller and shorter where there are more replicas.
    running_in_enough: f64,
}

impl Overload {
    /// A step up within this time after a step down shows that what was left was too few.
    const UNDONE_WITHIN: Duration = Duration::from_secs(600);

    /// At least this share of what ran counts as about as much.
    const ALIKE: f64 = 0.8;

    /// A replica that runs more than this share of the most that one ran has a queue again and again.
    const FULL: f64 = 0.85;

    /// Where so many times as much comes as before the step down, it was not that step which was too much.
    const MORE: f64 = 1.5;
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
            smallest: only.clone(),
            least_asked_for: only,
            steps: VecDeque::new(),
            last_up: None,
            last_down: None,
            last_blind: None,
            last_burst: None,
            last_return: None,
            last_whole: at,
            whole_since: None,
            begin: Begin { at, replicas: wanted, running: None },
            was_soon: false,
            overloads: Vec::new(),
            for_refusals: None,
            last_refused: None,
            wanted,
        }
    }

    /// Adds a reading, and forgets those before `window`, or before a minute where this is more.
    pub fn read(&mut self, reading: Reading, window: Duration) {
        let first = reading.at.saturating_sub(window.max(MINUTE));
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

    /// The readings within the window before the last one, the last one first.
    pub fn of_window(&self, window: Duration) -> impl Iterator<Item = &Reading> {
        let last = self.last().map(|last| last.at).unwrap_or_default();
        self.backwards().take_while(move |reading| reading.at + window > last)
    }

    /// Samples that run, on average over the window.
    #[must_use]
    pub fn running(&self, window: Duration) -> f64 {
        let (mut count, mut sum) = (0.0, 0.0);
        for reading in self.of_window(window) {
            count += 1.0;
            sum += reading.load - reading.queued;
        }
        sum / f64::max(count, 1.0)
    }

    /// Requests that come in a second, on average over the window.
    fn came(&self, window: Duration) -> f64 {
        let (mut seconds, mut sum) = (0.0, 0);
        for reading in self.of_window(window) {
            seconds += reading.span.as_secs_f64();
            sum += reading.answered + reading.refused;
        }
        sum as f64 / f64::max(seconds, 1e-3)
    }

    /// Remembers what was decided at that time, when so many were wanted.
    pub fn decided(&mut self, at: Duration, wanted: u32, decision: &Decision, policy: &Policy) {
        // Somebody else has changed the number: it counts as recommended, and what comes next goes from there.
        if wanted != self.wanted {
            self.recommend(at, wanted, wanted);
        }
        if decision.reason.is_of_readings() && self.is_return(at, decision.recommended.min(policy.max), policy) {
            self.last_return = Some(at);
        }
        let asked_for = if decision.desired > wanted || decision.reason.is_rise() {
            decision.recommended
        } else {
            decision.recommended.min(wanted)
        };
        self.recommend(at, decision.recommended, asked_for);
        let first = at.saturating_sub(policy.longest_stabilization().max(policy.stable_window));
        for recommendations in [&mut self.largest, &mut self.smallest, &mut self.least_asked_for] {
            while recommendations.front().is_some_and(|(time, _)| *time < first) {
                recommendations.pop_front();
            }
        }
        if decision.is_burst {
            self.last_burst = Some(at);
        }
        if self.last().is_some_and(|last| last.ready >= wanted) {
            self.last_whole = at;
            self.whole_since.get_or_insert(at);
        } else {
            self.whole_since = None;
        }
        self.was_soon = decision.soon;
        self.remember_begin(at, decision, policy);
        self.remember_refusals(at, wanted, decision, policy);
        if decision.desired > wanted {
            self.whole_since = None;
            // What a bound or a latency asks for says nothing of what so many replicas can carry.
            if matches!(decision.reason, Reason::Load | Reason::Burst | Reason::Refusals) {
                self.remember_overload(at, decision.reason, policy);
            }
            self.last_up = Some(at);
            if decision.reason.is_blind() {
                self.last_blind = Some(at);
            }
        }
        if decision.desired < wanted {
            let (running, came) = (self.running(policy.stable_window), self.came(policy.stable_window));
            self.last_down = Some(Down { at, running, came });
        }
        if decision.desired != wanted {
            self.steps.push_back(Step { at, from: wanted, to: decision.desired });
        }
        while self.steps.front().is_some_and(|step| step.at + MINUTE < at) {
            self.steps.pop_front();
        }
        self.wanted = decision.desired;
    }

    fn remember_begin(&mut self, at: Duration, decision: &Decision, policy: &Policy) {
        let is_seen = at >= self.begin.at + policy.stable_window && decision.reason.is_of_readings();
        if self.begin.running.is_none() && is_seen {
            self.begin.running = Some(self.running(policy.stable_window));
        }
    }

    fn remember_refusals(&mut self, at: Duration, wanted: u32, decision: &Decision, policy: &Policy) {
        if self.last().is_some_and(is_refusing) {
            self.last_refused = Some(at);
        }
        let are_over = self.last_refused.is_none_or(|last| at > last + policy.down_stabilization * BLIND_KEPT);
        let refusals = Refusals::of(self);
        let ready = self.last().map_or(0, |last| last.ready);
        let is_of_another_load = |step: &ForRefusals| {
            ready >= step.to && refusals.is_some_and(|it| it.answered < ForRefusals::FEWER * step.answered)
        };
        self.for_refusals =
            self.for_refusals.filter(|step| !are_over && decision.desired >= wanted && !is_of_another_load(step));
        if let Some(refusals) = refusals.filter(|_| decision.reason == Reason::Refusals)
            && decision.desired > wanted
        {
            let in_vain = self.for_refusals.filter(|step| step.was_in_vain(&refusals, wanted));
            self.for_refusals = Some(ForRefusals {
                at,
                from: wanted,
                to: decision.desired,
                answered: refusals.answered,
                counts_for: in_vain.map_or(ForRefusals::COUNTS_FOR, |it| it.counts_for * ForRefusals::COUNTS_LONGER),
            });
        }
    }

    /// Remembers it where the last step down is undone so soon. Samples wait then: what runs is all that so many replicas can run.
    fn remember_overload(&mut self, at: Duration, reason: Reason, policy: &Policy) {
        self.overloads.retain(|it| at < it.at + policy.too_few_kept);
        let is_undone = |down: &Down| at < down.at + Overload::UNDONE_WITHIN && self.last_up < Some(down.at);
        let Some(down) = self.last_down.filter(is_undone) else { return };
        let Some(last) = self.readings.back().filter(|last| last.has_queue()) else { return };
        let running = last.load - last.queued;
        // What is more because there are fewer replicas is told from what is more because more comes. In a burst the window is of the
        // time before it.
        let more = (self.came(policy.stable_window) / f64::max(down.came, 1e-3)).max(1.0);
        let is_another_load = reason == Reason::Burst || more > Overload::MORE;
        let running_in_enough = if is_another_load { running } else { running.min(down.running * more) };
        let overload = Overload { at, replicas: last.ready, running, running_in_enough };
        self.overloads.retain(|it| it.replicas != overload.replicas);
        self.overloads.push(overload);
    }

    /// Replicas that must stay for what runs now: one more than were too few lately for about as much, and so many that each runs
    /// less than those did that could run no more.
    #[must_use]
    pub fn more_than_too_few(&self, at: Duration, running: f64, policy: &Policy) -> u32 {
        let kept = || self.overloads.iter().filter(|it| at < it.at + policy.too_few_kept);
        let is_alike = |it: &&Overload| running > Overload::ALIKE * it.running_in_enough;
        let one_more = kept().filter(is_alike).map(|it| it.replicas + 1).max().unwrap_or_default();
        let most = kept().map(|it| it.running / f64::from(it.replicas)).fold(0.0, f64::max);
        let by_most = if most > 0.0 { replicas(running / (Overload::FULL * most)) } else { 0 };
        one_more.max(by_most)
    }

    /// Replicas below which nothing is known yet: at the begin, those that were there, or fewer where less runs than did then. Whoever
    /// led before may have seen that fewer are too few.
    #[must_use]
    pub fn not_known_below(&self, at: Duration, running: f64) -> u32 {
        if at >= self.begin.at + Begin::COUNTS_FOR {
            return 0;
        }
        let by_running = |before: f64| {
            let each = before / f64::from(self.begin.replicas);
            // Where nothing ran nothing is known that could be too few.
            if each > 0.0 { replicas(running / (Overload::FULL * each)) } else { 1 }
        };
        self.begin.running.map_or(self.begin.replicas, by_running).min(self.begin.replicas)
    }

    /// Whether as many are recommended again as were some time ago, after most of them were not: they would have been let go in
    /// between, and only a longer time would have kept them.
    fn is_return(&self, at: Duration, recommended: u32, policy: &Policy) -> bool {
        let first = at.saturating_sub(policy.return_stabilization);
        let again = self.largest_since(first).min(recommended);
        let Some((last, _)) = self.largest.iter().rfind(|(_, before)| *before >= again) else { return false };
        let fewest = self.smallest_since(*last);
        at > *last + policy.down_stabilization && fewest.saturating_mul(LEFT) <= again
    }

    fn recommend(&mut self, at: Duration, recommended: u32, asked_for: u32) {
        while self.largest.back().is_some_and(|(_, before)| *before <= recommended) {
            self.largest.pop_back();
        }
        self.largest.push_back((at, recommended));
        for (smallest, replicas) in [(&mut self.smallest, recommended), (&mut self.least_asked_for, asked_for)] {
            while smallest.back().is_some_and(|(_, before)| *before >= replicas) {
                smallest.pop_back();
            }
            smallest.push_back((at, replicas));
        }
    }

    /// The largest recommendation since then. The last one counts however old it is, for a window may be shorter than the time
    /// between two readings.
    #[must_use]
    pub fn largest_since(&self, since: Duration) -> u32 {
        self.first_since(&self.largest, since)
    }

    /// The smallest recommendation since then, or the last one.
    #[must_use]
    pub fn smallest_since(&self, since: Duration) -> u32 {
        self.first_since(&self.smallest, since)
    }

    /// The least that was asked for since then, or last.
    #[must_use]
    pub fn least_asked_for_since(&self, since: Duration) -> u32 {
        self.first_since(&self.least_asked_for, since)
    }

    fn first_since(&self, recommendations: &VecDeque<(Duration, u32)>, since: Duration) -> u32 {
        let found = recommendations.iter().find(|(at, _)| *at >= since).or(recommendations.back());
        found.map_or(self.wanted, |(_, replicas)| *replicas)
    }

    /// The number of so long ago, of at most a minute, and how many have gone since.
    #[must_use]
    pub fn gone_within(&self, period: Duration, now: Duration) -> (u32, u32) {
        let recent = self.steps.iter().filter(|step| step.at + period > now);
        let gone = recent.clone().map(|step| step.from.saturating_sub(step.to)).sum();
        (recent.map(|step| step.from).next().unwrap_or(self.wanted), gone)
    }

    /// Since when there have been as many ready replicas as are wanted.
    #[must_use]
    pub fn whole_since(&self) -> Option<Duration> {
        self.whole_since
    }

    /// When it begins.
    #[must_use]
    pub fn began(&self) -> Duration {
        self.begin.at
    }

    /// Whether the last reading came early, to see whether there is a burst.
    #[must_use]
    pub fn was_soon(&self) -> bool {
        self.was_soon
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

    /// The last step up for refusals, while it stands and requests are refused all the same.
    #[must_use]
    pub fn for_refusals(&self) -> Option<ForRefusals> {
        self.for_refusals
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

    /// When a load was last back that had gone.
    #[must_use]
    pub fn last_return(&self) -> Option<Duration> {
        self.last_return
    }
}
