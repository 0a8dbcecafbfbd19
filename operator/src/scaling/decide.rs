//! How many replicas: a pure function of what was read, what was decided and the time.
//!
//! ```text
//! up    burst     load of the last half second ≥ 2x what the ready ones should carry, or over it and refused ▸ what it takes, at once
//!       load      average of the stable window over the target ▸ what it takes
//!       refusals  in three readings ▸ one step, once all that were asked for are ready
//!       latency   too few answers in time in three readings, and a queue ▸ one step, once all are ready
//! down  the most that was recommended within the window, a few a minute; not during a rollout, not after a burst or a step up
//!       until that had time to show, not while answers are late
//! ```
//!
//! Numbers that are missing or old change nothing. A ready pod that tells nothing counts as idle on the way up and as full on the
//! way down. A pod that is not ready carries nothing, and is waited for: what one step at a time adds is added only once the
//! last step's pods are there, so a device that is not to be had winds nothing up.

use std::{fmt, time::Duration};

use super::{
    History, Reading, Share,
    policy::{BLIND_KEPT, Policy, replicas},
};

/// Readings that must agree that requests are refused or late: one alone may be chance.
const AGREEING: usize = 3;

/// A replica that has not come after this time, and so many times what loading takes, does not come.
const STUCK_AFTER: Duration = Duration::from_secs(60);
const STUCK_LOAD_TIMES: u32 = 3;

/// What is added where the load does not say how much it takes: a quarter, at least one.
const BLIND_STEP: u32 = 4;

/// What the decision depends on besides the history.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Now {
    /// The time, from the same beginning as the readings'.
    pub at: Duration,
    /// Replicas that are asked for.
    pub wanted: u32,
    /// New pods replace old ones.
    pub in_rollout: bool,
    /// Time that a new pod takes to load its models.
    pub load_time: Duration,
}

/// What was decided.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Decision {
    /// Replicas that there should be.
    pub desired: u32,
    /// What the numbers ask for, whatever holds it back.
    pub recommended: u32,
    /// Why.
    pub reason: Reason,
    /// More are asked for than `max`.
    pub is_limited: bool,
    /// There is a burst.
    pub is_burst: bool,
    /// It looks like a burst: the next reading should come soon.
    pub soon: bool,
}

/// Why there should be so many replicas.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Reason {
    /// The number is right.
    Steady,
    /// More, or fewer, than the bounds allow.
    Bounds,
    /// The load has risen.
    Load,
    /// There is a burst.
    Burst,
    /// Requests were refused.
    Refusals,
    /// Answers are late.
    Latency,
    /// The load has fallen.
    Idle,
    /// Fewer would do, but the load was higher a moment ago.
    Stabilizing,
    /// Fewer would do, but there was a burst a moment ago.
    AfterBurst,
    /// Fewer would do, but replicas that came last have not shown yet what they carry.
    Settling,
    /// Fewer would do, but answers are late.
    Late,
    /// Fewer would do, but new pods are replacing old ones.
    Rollout,
    /// No replica is ready.
    NoReplicaReady,
    /// Numbers are missing or too old.
    Stale,
}

impl Reason {
    /// All of them.
    pub const ALL: [Self; 14] = [
        Self::Steady,
        Self::Bounds,
        Self::Load,
        Self::Burst,
        Self::Refusals,
        Self::Latency,
        Self::Idle,
        Self::Stabilizing,
        Self::AfterBurst,
        Self::Settling,
        Self::Late,
        Self::Rollout,
        Self::NoReplicaReady,
        Self::Stale,
    ];

    /// Whether the load says nothing about it.
    #[must_use]
    pub fn is_blind(self) -> bool {
        matches!(self, Self::Refusals | Self::Latency)
    }

    /// The label's value in metrics.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Steady => "steady",
            Self::Bounds => "bounds",
            Self::Load => "load",
            Self::Burst => "burst",
            Self::Refusals => "refusals",
            Self::Latency => "latency",
            Self::Idle => "idle",
            Self::Stabilizing => "stabilizing",
            Self::AfterBurst => "after_burst",
            Self::Settling => "settling",
            Self::Late => "late",
            Self::Rollout => "rollout",
            Self::NoReplicaReady => "no_replica_ready",
            Self::Stale => "stale",
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Steady => "the load is what the replicas should carry",
            Self::Bounds => "minReplicas and maxReplicas allow no other number",
            Self::Load => "the load is over the target",
            Self::Burst => "the load is far over the target",
            Self::Refusals => "requests were refused because queues were full",
            Self::Latency => "too few requests are answered within the target, and there is a queue",
            Self::Idle => "fewer replicas carry the load",
            Self::Stabilizing => "fewer replicas carry the load, but a moment ago it was higher",
            Self::AfterBurst => "fewer replicas carry the load, but there was a burst a moment ago",
            Self::Settling => {
                "fewer replicas carry the load, but those that came last have not shown yet what they carry"
            }
            Self::Late => "fewer replicas carry the load, but too few requests are answered within the target",
            Self::Rollout => "fewer replicas carry the load, but new pods are replacing old ones",
            Self::NoReplicaReady => "no replica is ready",
            Self::Stale => "the pods' numbers are missing or too old",
        })
    }
}

/// Decides.
#[must_use]
pub fn decide(history: &History, policy: &Policy, now: &Now) -> Decision {
    let hold = |reason| Decision {
        desired: now.wanted,
        recommended: now.wanted,
        reason,
        is_limited: false,
        is_burst: false,
        soon: false,
    };
    let bounded = now.wanted.clamp(policy.min, policy.max);
    if bounded != now.wanted {
        return Decision { desired: bounded, recommended: bounded, ..hold(Reason::Bounds) };
    }
    let Some(last) = history.last() else { return hold(Reason::Stale) };
    if last.ready == 0 {
        return hold(Reason::NoReplicaReady);
    }
    if now.at.saturating_sub(last.at) > policy.stale_after || last.counted * 2 < last.ready {
        return hold(Reason::Stale);
    }
    let rise = Rise::of(history, last, policy, now);
    let enough = enough(history, policy);
    let recommended = rise.wanted.max(enough);
    let is_limited = rise.wanted > policy.max;
    let decision = Decision { recommended, is_limited, is_burst: rise.is_burst, soon: rise.soon, ..hold(rise.reason) };
    if rise.wanted > now.wanted {
        let desired = rise.held_back(history, policy, now);
        return Decision { desired, ..decision };
    }
    match fall(history, policy, now, recommended) {
        Ok(desired) if desired < now.wanted => Decision { desired, reason: Reason::Idle, ..decision },
        Ok(_) => Decision { reason: Reason::Steady, ..decision },
        Err(reason) => Decision { reason, ..decision },
    }
}

/// What asks for more replicas than there are.
struct Rise {
    /// None asks for 0.
    wanted: u32,
    reason: Reason,
    is_burst: bool,
    soon: bool,
}

impl Rise {
    fn of(history: &History, last: &Reading, policy: &Policy, now: &Now) -> Self {
        let mut rise = Self { wanted: 0, reason: Reason::Steady, is_burst: false, soon: false };
        let burst = Load::over(history, policy.panic_window, Missing::Idle, policy).replicas(policy);
        let is_far_over = |load: f64| load >= policy.panic_threshold * f64::from(last.ready);
        let is_over = burst > f64::from(last.ready) * (1.0 + policy.tolerance);
        rise.is_burst = is_far_over(burst) || (last.refused > 0 && is_over);
        if rise.is_burst {
            rise.at_least(replicas(burst.min(most_of_burst(last))), Reason::Burst);
        }
        let stable = Load::over(history, policy.stable_window, Missing::Idle, policy);
        let load = stable.replicas(policy);
        if stable.is_of_half(policy.stable_window) && load > f64::from(now.wanted) * (1.0 + policy.tolerance) {
            rise.at_least(replicas(load), Reason::Load);
        }
        // The reading in which a burst begins is of the time before it, too: the next one says how large it is.
        let is_new = history.last_burst().is_none_or(|before| now.at > before + policy.stable_window);
        rise.soon = if rise.is_burst { is_new } else { is_far_over(Load::at(last).replicas(policy)) };
        if are_all_ready(history, now) {
            let step = now.wanted + (now.wanted / BLIND_STEP).max(1);
            if are_refused(history) {
                rise.at_least(step, Reason::Refusals);
            }
            if is_late_with_queue(history, policy, now) {
                rise.at_least(step, Reason::Latency);
            }
        }
        rise
    }

    fn at_least(&mut self, replicas: u32, reason: Reason) {
        if replicas > self.wanted {
            (self.wanted, self.reason) = (replicas, reason);
        }
    }

    fn held_back(&self, history: &History, policy: &Policy, now: &Now) -> u32 {
        let least = if policy.up_stabilization.is_zero() {
            None
        } else {
            history.smallest_since(now.at.saturating_sub(policy.up_stabilization))
        };
        let agreed = least.map_or(self.wanted, |least| self.wanted.min(least.max(now.wanted)));
        agreed.min(now.wanted + policy.step_up(now.wanted)).min(policy.max)
    }
}

/// What a burst asks for at most: without refusals twice what is ready.
///
/// Requests that come more than twice as fast as they are answered fill the queues, which are bounded in time, within a reading or
/// so; where nothing was refused since the last one, fewer came, however much waits.
fn most_of_burst(last: &Reading) -> f64 {
    if last.refused == 0 { 2.0 * f64::from(last.ready) } else { f64::INFINITY }
}

/// Samples that would run and wait if none were refused.
///
/// A full queue says that there is too little and not how much: it is as long for a load that is a little too high as for one that
/// is ten times too high. Requests that came ÷ requests that were answered says it, and what waits only because there is too little is
/// left out. Clients that ask again at once make more of the requests, so it is never more than what is really there.
fn offered(reading: &Reading, policy: &Policy) -> f64 {
    if reading.refused == 0 || reading.answered == 0 {
        return reading.load;
    }
    let share = (reading.refused + reading.answered) as f64 / reading.answered as f64;
    // A target above what a replica runs at once means that some may wait.
    let aimed_at = policy.inflight_per_replica.unwrap_or_default() * f64::from(reading.ready);
    let carried = f64::max(reading.load - reading.queued, aimed_at);
    (carried * share).min(reading.load)
}

/// Whether what was asked for last has been there for a whole reading.
fn are_all_ready(history: &History, now: &Now) -> bool {
    let mut last_two = history.backwards().take(2).peekable();
    last_two.peek().is_some() && last_two.all(|reading| reading.ready >= now.wanted)
}

fn are_refused(history: &History) -> bool {
    agreeing(history).is_some_and(|last| last.iter().all(|reading| reading.refused > 0))
}

fn is_late_with_queue(history: &History, policy: &Policy, now: &Now) -> bool {
    let is_waiting = |reading: &&Reading| reading.ready >= now.wanted && reading.queued > 0.0;
    let Some(quantile) = policy.latency_quantile else { return false };
    agreeing(history).is_some_and(|last| last.iter().all(is_waiting) && is_late(&last, quantile))
}

/// The readings that must agree, once there are so many.
fn agreeing(history: &History) -> Option<Vec<&Reading>> {
    let last: Vec<&Reading> = history.backwards().take(AGREEING).collect();
    (last.len() == AGREEING).then_some(last)
}

/// Whether too few of the answers to some model were in time.
fn is_late(readings: &[&Reading], quantile: f64) -> bool {
    let models = readings.iter().flat_map(|reading| reading.answers.keys());
    models.into_iter().any(|model| {
        let of_model = readings.iter().filter_map(|reading| reading.answers.get(model));
        let sum = of_model.fold(Share::default(), |sum, share| Share {
            answered: sum.answered + share.answered,
            within: sum.within + share.within,
        });
        sum.is_late(quantile)
    })
}

/// Replicas that carry the load with something to spare, so that a load at the edge does not go back and forth over it.
fn enough(history: &History, policy: &Policy) -> u32 {
    let load = Load::over(history, policy.stable_window, Missing::Full, policy).replicas(policy);
    replicas(load / (1.0 - policy.tolerance.min(0.9))).clamp(policy.min, policy.max)
}

/// Whether replicas have been missing for longer than they take to come: they wait for a device, and to ask for fewer of them
/// saves nothing, while the load of those that are there swings with their queues.
fn is_stuck(history: &History, now: &Now) -> bool {
    now.at > history.last_whole() + STUCK_AFTER.max(now.load_time * STUCK_LOAD_TIMES)
}

/// How many stay of more than are needed, or what keeps all of them.
fn fall(history: &History, policy: &Policy, now: &Now, recommended: u32) -> Result<u32, Reason> {
    if recommended >= now.wanted || (policy.inflight_per_replica, policy.queue_per_replica) == (None, None) {
        return Ok(now.wanted);
    }
    let ago = |time: Option<Duration>, length| time.is_some_and(|time| now.at < time + length);
    let recent: Vec<&Reading> = history.backwards().take_while(|it| it.at + policy.stable_window > now.at).collect();
    if now.in_rollout {
        return Err(Reason::Rollout);
    }
    if ago(history.last_burst(), policy.stable_window) {
        return Err(Reason::AfterBurst);
    }
    if ago(history.last_up(), now.load_time.mul_f64(policy.load_times)) {
        return Err(Reason::Settling);
    }
    if ago(history.last_blind(), policy.down_stabilization * BLIND_KEPT) {
        return Err(Reason::Settling);
    }
    if policy.latency_quantile.is_some_and(|quantile| is_late(&recent, quantile)) {
        return Err(Reason::Late);
    }
    let since = now.at.saturating_sub(policy.down_stabilization);
    let most = history.largest_since(since).unwrap_or(now.wanted).max(recommended);
    if most >= now.wanted {
        return Err(Reason::Stabilizing);
    }
    let would_not_go = |last: &Reading| most >= last.ready && most > policy.min;
    if is_stuck(history, now) && history.last().is_some_and(would_not_go) {
        return Err(Reason::Settling);
    }
    let (a_minute_ago, gone) = history.last_minute(now.at);
    let may_go = policy.step_down(a_minute_ago).saturating_sub(gone);
    Ok(most.max(now.wanted.saturating_sub(may_go)))
}

/// Samples in all pods.
#[derive(Debug, Clone, Copy, Default)]
struct Load {
    load: f64,
    queued: f64,
    /// Pods that count as full.
    full: f64,
    /// The time that this is the average of.
    seconds: f64,
}

/// What ready pods count as whose numbers are missing.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Missing {
    /// They carry nothing.
    Idle,
    /// They carry all that a replica should.
    Full,
}

impl Load {
    fn at(reading: &Reading) -> Self {
        Self { load: reading.load_now, queued: reading.queued_now, ..Self::default() }
    }

    /// The average over the last readings that make up the window, or at least over the last one.
    fn over(history: &History, window: Duration, missing: Missing, policy: &Policy) -> Self {
        let (mut seconds, mut sum) = (0.0, Self::default());
        for reading in history.backwards() {
            if seconds > 0.0 && seconds >= window.as_secs_f64() {
                break;
            }
            // A first reading has no span, and counts for a moment.
            let weight = reading.span.as_secs_f64().max(1e-3);
            seconds += weight;
            sum.load += offered(reading, policy) * weight;
            sum.queued += reading.queued * weight;
        }
        let weight = f64::max(seconds, 1e-3);
        // Who is silent now is so from now on, whatever it told before.
        let silent = history.last().map_or(0, |last| last.ready.saturating_sub(last.counted));
        let full = if missing == Missing::Full { f64::from(silent) } else { 0.0 };
        Self { load: sum.load / weight, queued: sum.queued / weight, full, seconds }
    }

    /// Whether it is of enough time to say something about so much: who has just begun has seen little.
    fn is_of_half(self, window: Duration) -> bool {
        self.seconds >= window.as_secs_f64() / 2.0
    }

    /// Replicas that carry it.
    fn replicas(self, policy: &Policy) -> f64 {
        let by = |samples: f64, target: Option<f64>| target.map_or(0.0, |target| samples / target);
        let carried = by(self.load, policy.inflight_per_replica).max(by(self.queued, policy.queue_per_replica));
        carried + self.full
    }
}
