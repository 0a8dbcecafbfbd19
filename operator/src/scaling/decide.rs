//! How many replicas: a pure function of what was read, what was decided and the time.
//!
//! ```text
//! up    burst     load of the last half second ≥ 2x what the ready ones should carry, and a tenth of it waits; or more than they
//!                 should carry, and a hundredth is refused ▸ what runs all that comes, at once
//!       load      averages of the stable window and of a minute over the target ▸ what it takes; where samples wait, what runs all that
//!                 comes by the first of them alone
//!       refusals  of a hundredth, in three readings ▸ one step, once all that were asked for are ready; another one if that has helped
//!       latency   too few answers in time, and a queue in three readings ▸ one step, once all are ready
//! down  the most that was recommended within the window, a longer one where loads come back, half at a time, or an eighth once it
//!       is near and much waits; not during a rollout, not after a burst, not while answers are late, not before those that came last
//!       have been ready for a window, not to a number that was too few lately
//! ```
//!
//! Numbers that are missing or old change nothing. A ready pod that tells nothing counts as idle on the way up and as full on the
//! way down. A pod that is not ready carries nothing, and is waited for: what one step at a time adds is added only once the
//! last step's pods are there, so a device that is not to be had winds nothing up. Where the load falls before they are there, they are
//! let go.

use std::{collections::BTreeSet, time::Duration};

use super::{
    History, Reading, Reason, Share,
    history::WAITING,
    load::{Load, Missing, REFUSED, is_refusing, is_short, is_waiting, most_without_refusals},
    policy::{BLIND_KEPT, Policy, RETURN_EXPECTED, RETURN_LOAD_TIMES, replicas},
};

/// Readings that must agree that requests are refused or late: one alone may be chance.
const AGREEING: usize = 3;

/// A replica that has not come after this time, and so many times what loading takes, does not come.
const STUCK_AFTER: Duration = Duration::from_secs(60);
const STUCK_LOAD_TIMES: u32 = 3;

/// Answers are looked for in readings of this time, where the last ones have few.
const ANSWERS_WITHIN: Duration = Duration::from_secs(60);

/// Fewer readings do not tell how far chance moves them.
const FEWEST_READINGS: usize = 6;

/// Down to so many times what is needed that does not matter yet.
const NEAR: f64 = 1.5;

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
    if now.wanted == 0 {
        return hold(Reason::Off);
    }
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
    let needed = Needed::of(history, policy, now, &rise);
    let recommended = needed.most();
    let is_limited = rise.wanted > policy.max;
    let decision = Decision { recommended, is_limited, is_burst: rise.is_burst, soon: rise.soon, ..hold(rise.reason) };
    if rise.wanted > now.wanted {
        let agreed = rise.agreed(history, policy, now);
        if agreed <= now.wanted {
            return Decision { reason: Reason::Rising, is_limited: false, ..decision };
        }
        let desired = agreed.min(now.wanted + policy.step_up(now.wanted)).min(policy.max);
        return Decision { desired, ..decision };
    }
    if rise.was_in_vain {
        // Nor is one taken away while requests are refused.
        return Decision { reason: Reason::InVain, recommended: recommended.max(now.wanted), ..decision };
    }
    match fall(history, policy, now, &needed) {
        Ok(desired) => Decision { desired, reason: Reason::Idle, ..decision },
        Err(Reason::Steady) if rise.is_brief => Decision { reason: Reason::Brief, ..decision },
        Err(reason) => Decision { reason, ..decision },
    }
}

/// Replicas that there must be, by what needs them.
struct Needed {
    load: u32,
    /// With what pods may have that do not tell it.
    silent: u32,
    /// More than were too few lately.
    too_few: u32,
}

impl Needed {
    fn of(history: &History, policy: &Policy, now: &Now, rise: &Rise) -> Self {
        let running = history.running(policy.stable_window);
        Self {
            load: rise.wanted.max(enough(history, policy, Missing::Idle)),
            silent: enough(history, policy, Missing::Full),
            too_few: history.more_than_too_few(now.at, running, policy).min(now.wanted),
        }
    }

    fn most(&self) -> u32 {
        self.load.max(self.silent).max(self.too_few)
    }

    /// What needs so many, if anything does.
    fn needs(&self, wanted: u32) -> Option<Reason> {
        let by = [(self.load, Reason::Steady), (self.silent, Reason::Silent), (self.too_few, Reason::TooFew)];
        by.into_iter().find(|(needed, _)| *needed >= wanted).map(|(_, reason)| reason)
    }
}

/// What asks for more replicas than there are.
struct Rise {
    /// None asks for 0.
    wanted: u32,
    reason: Reason,
    is_burst: bool,
    soon: bool,
    /// The load is over the target, but on average of a minute it is not.
    is_brief: bool,
    /// Requests are refused, and the last step for that has not helped.
    was_in_vain: bool,
}

impl Rise {
    fn of(history: &History, last: &Reading, policy: &Policy, now: &Now) -> Self {
        let mut rise = Self {
            wanted: 0,
            reason: Reason::Steady,
            is_burst: false,
            soon: false,
            is_brief: false,
            was_in_vain: false,
        };
        let latest = Load::over(history, policy.panic_window, Missing::Idle, policy);
        let burst = latest.replicas(policy);
        let is_far_over = |load: f64| load >= policy.panic_threshold * f64::from(last.ready);
        let is_over = burst > f64::from(last.ready) * (1.0 + policy.tolerance);
        // What is there at one moment, with nothing before it, may be chance: the next reading tells.
        let is_average = !last.span.is_zero();
        rise.is_burst = is_average && ((is_far_over(burst) && is_waiting(last)) || (is_over && is_refusing(last)));
        if rise.is_burst {
            let most = if is_refusing(last) { latest.hurried(policy) } else { most_without_refusals(last) };
            rise.at_least(replicas(latest.asked_for(policy).min(most)), Reason::Burst);
        }
        let stable = Load::over(history, policy.stable_window, Missing::Idle, policy);
        let lasting = Load::over(history, policy.calm_window, Missing::Idle, policy).asked_for(policy);
        // Where instances share cores a run may be slow though nothing waits.
        let is_calm = stable.is_calm() && !is_late_in_window(history, policy, now);
        let at_once = if is_calm { 0.0 } else { stable.hurried(policy) };
        let load = stable.asked_for(policy).min(lasting.max(at_once));
        let carried = f64::from(now.wanted) * (1.0 + tolerance(history, policy));
        if stable.is_of_half(policy.stable_window) {
            rise.is_brief = stable.asked_for(policy) > carried && last.ready >= now.wanted && now.wanted < policy.max;
            if load > carried {
                rise.at_least(replicas(load), Reason::Load);
            }
        }
        // The reading in which a burst begins is of the time before it, too: the next one says how large it is.
        let is_new = history.last_burst().is_none_or(|before| now.at > before + policy.stable_window);
        let looks_like_one = is_far_over(Load::at(last).replicas(policy)) && last.queued_now > WAITING * last.load_now;
        rise.soon = if rise.is_burst { is_new } else { looks_like_one && !history.was_soon() };
        if are_all_ready(history, now) {
            let step = now.wanted + (now.wanted / BLIND_STEP).max(1);
            match Refusals::of(history) {
                Some(refusals) if refusals.were_answered_in_vain(history, policy, now) => rise.was_in_vain = true,
                Some(_) => rise.at_least(step, Reason::Refusals),
                None => {}
            }
            if !rise.was_in_vain && is_late_with_queue(history, policy, now) {
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

    /// What has been asked for as long as it must be.
    fn agreed(&self, history: &History, policy: &Policy, now: &Now) -> u32 {
        if policy.up_stabilization.is_zero() {
            return self.wanted;
        }
        self.wanted.min(history.least_asked_for_since(now.at.saturating_sub(policy.up_stabilization)))
    }
}

/// Requests in a second, of the readings that must agree, where too many of them are refused.
#[derive(Debug, Clone, Copy)]
pub(super) struct Refusals {
    pub came: f64,
    pub answered: f64,
}

impl Refusals {
    /// None where fewer than a hundredth are refused, or in one of the readings none.
    pub fn of(history: &History) -> Option<Self> {
        let last = agreeing(history)?;
        let sum = |requests: fn(&Reading) -> u64| last.iter().map(|reading| requests(reading)).sum::<u64>() as f64;
        let (refused, answered) = (sum(|reading| reading.refused), sum(|reading| reading.answered));
        let is_enough = last.iter().all(|reading| reading.refused > 0) && refused >= REFUSED * (refused + answered);
        let seconds = last.iter().map(|reading| reading.span).sum::<Duration>().as_secs_f64().max(1e-3);
        is_enough.then_some(Self { came: (refused + answered) / seconds, answered: answered / seconds })
    }

    /// Whether the last step for refusals says that another one would not help.
    fn were_answered_in_vain(&self, history: &History, policy: &Policy, now: &Now) -> bool {
        let last = history.for_refusals().filter(|step| step.counts(now.at, now.wanted, policy));
        last.is_some_and(|step| step.was_in_vain(self, now.wanted))
    }
}

/// Whether what was asked for last has been there for a whole reading.
fn are_all_ready(history: &History, now: &Now) -> bool {
    let mut last_two = history.backwards().take(2).peekable();
    last_two.peek().is_some() && last_two.all(|reading| reading.ready >= now.wanted)
}

fn is_late_with_queue(history: &History, policy: &Policy, now: &Now) -> bool {
    // Each request is in the queue for a moment: only where much of what there is waits in it do more replicas help.
    let has_queue = |reading: &&Reading| reading.ready >= now.wanted && is_short(reading);
    let Some(quantile) = policy.latency_quantile else { return false };
    agreeing(history).is_some_and(|last| last.iter().all(has_queue)) && is_late(history, AGREEING, quantile, now)
}

fn is_late_in_window(history: &History, policy: &Policy, now: &Now) -> bool {
    let in_window = history.of_window(policy.stable_window).count();
    policy.latency_quantile.is_some_and(|quantile| is_late(history, in_window, quantile, now))
}

/// The readings that must agree, once there are so many.
fn agreeing(history: &History) -> Option<Vec<&Reading>> {
    let last: Vec<&Reading> = history.backwards().take(AGREEING).collect();
    (last.len() == AGREEING).then_some(last)
}

/// Whether too few of the last answers to some model were in time: of those of so many readings, or of more where these are too
/// few to say something, so that slow models count as well.
fn is_late(history: &History, readings: usize, quantile: f64, now: &Now) -> bool {
    let models: BTreeSet<&String> = history.backwards().flat_map(|reading| reading.answers.keys()).collect();
    models.into_iter().any(|model| {
        let mut sum = Share::default();
        for (number, reading) in history.backwards().enumerate() {
            let is_enough = number >= readings && sum.answered >= Share::FEWEST;
            if is_enough || reading.at + ANSWERS_WITHIN < now.at {
                break;
            }
            let share = reading.answers.get(model).copied().unwrap_or_default();
            sum = Share { answered: sum.answered + share.answered, within: sum.within + share.within };
        }
        sum.is_late(quantile)
    })
}

/// Replicas that carry the load with something to spare, so that a load at the edge does not go back and forth over it.
fn enough(history: &History, policy: &Policy, missing: Missing) -> u32 {
    let load = Load::over(history, policy.stable_window, missing, policy).asked_for(policy);
    replicas(load / (1.0 - tolerance(history, policy).min(0.9))).clamp(policy.min, policy.max)
}

/// The share of the target by which the load must differ from it to count: what chance makes of the average of the window.
///
/// How far chance moves a reading is seen in how much it differs from the one before; a load that rises or falls slowly adds
/// nothing to that. Few readings say nothing, and the largest share is taken.
fn tolerance(history: &History, policy: &Policy) -> f64 {
    let recent: Vec<f64> = history.of_window(policy.stable_window).map(|reading| reading.load).collect();
    let (count, mean) = (recent.len() as f64, recent.iter().sum::<f64>() / recent.len().max(1) as f64);
    if recent.len() < FEWEST_READINGS || mean <= 0.0 {
        return policy.tolerance;
    }
    let differences: f64 = recent.windows(2).map(|pair| (pair[0] - pair[1]).powi(2)).sum();
    let error = (differences / (2.0 * (count - 1.0)) / count).sqrt();
    (policy.errors * error / mean).clamp(policy.least_tolerance, policy.tolerance.max(policy.least_tolerance))
}

/// Whether replicas have been missing for longer than they take to come: they wait for a device, and to ask for fewer of them
/// saves nothing, while the load of those that are there swings with their queues.
fn is_stuck(history: &History, now: &Now) -> bool {
    now.at > history.last_whole() + STUCK_AFTER.max(now.load_time * STUCK_LOAD_TIMES)
}

/// How many stay of more than are needed, or why all of them do.
fn fall(history: &History, policy: &Policy, now: &Now, needed: &Needed) -> Result<u32, Reason> {
    if (policy.inflight_per_replica, policy.queue_per_replica) == (None, None) {
        return Err(Reason::Steady);
    }
    if let Some(reason) = needed.needs(now.wanted) {
        return Err(reason);
    }
    let recommended = needed.most();
    let ago = |time: Option<Duration>, length| time.is_some_and(|time| now.at < time + length);
    if now.in_rollout {
        return Err(Reason::Rollout);
    }
    if ago(history.last_burst(), policy.stable_window) {
        return Err(Reason::AfterBurst);
    }
    if ago(history.last_blind(), policy.down_stabilization * BLIND_KEPT) {
        return Err(Reason::Settling);
    }
    if is_late_in_window(history, policy, now) {
        return Err(Reason::Late);
    }
    if let Some(kept) = without_late_comers(history, policy, now, recommended) {
        return Ok(kept);
    }
    if is_settling(history, policy, now) {
        return Err(Reason::Settling);
    }
    let most_within = |time| history.largest_since(now.at.saturating_sub(time)).max(recommended);
    if most_within(policy.down_stabilization) >= now.wanted {
        return Err(Reason::Stabilizing);
    }
    let most = most_within(stabilization(history, policy, now));
    if most >= now.wanted {
        return Err(Reason::Returning);
    }
    let would_not_go = |last: &Reading| most > last.ready && most > policy.min;
    if is_stuck(history, now) && history.last().is_some_and(would_not_go) {
        return Err(Reason::Settling);
    }
    let kept = at_pace(history, policy, now, most)?;
    if kept < now.wanted { Ok(kept) } else { Err(Reason::Pace) }
}

/// How many stay where so many are to go slowly. Below what is known to be enough one goes at a time, and none while samples wait, so
/// that who has just begun to lead soon sees what is too few.
fn at_pace(history: &History, policy: &Policy, now: &Now, most: u32) -> Result<u32, Reason> {
    let (before, gone) = history.gone_within(policy.down_period(), now.at);
    let without = |may_go: u32| now.wanted.saturating_sub(may_go.saturating_sub(gone));
    let quick = without(policy.step_down(before));
    let slow = without(policy.small_step_down(before)).min(quick.max(replicas(f64::from(most) * NEAR)));
    let is_busy = Load::over(history, policy.stable_window, Missing::Idle, policy).is_busy();
    let kept = most.max(if is_busy { slow } else { quick });
    let not_known_below = history.not_known_below(now.at, history.running(policy.stable_window));
    if kept >= not_known_below {
        return Ok(kept);
    }
    if now.wanted > not_known_below {
        return Ok(not_known_below);
    }
    if history.last().is_some_and(is_short) {
        return Err(Reason::Waiting);
    }
    Ok(kept.max(without(1)))
}

/// The time within which the most that was recommended is kept: a longer one where a load has come back lately, for it may again, and
/// what loads slowly was let go too early then.
fn stabilization(history: &History, policy: &Policy, now: &Now) -> Duration {
    let longer = if is_return_expected(history, now) { now.load_time * RETURN_LOAD_TIMES } else { Duration::ZERO };
    longer.min(policy.return_stabilization).max(policy.down_stabilization)
}

fn is_return_expected(history: &History, now: &Now) -> bool {
    history.last_return().is_some_and(|back| now.at < back + RETURN_EXPECTED)
}

/// Whether the replicas that came last have not shown yet what they carry: they have not all been ready for a window. Some may never
/// be, so it ends a few load times after they were asked for.
fn is_settling(history: &History, policy: &Policy, now: &Now) -> bool {
    let Some(last_up) = history.last_up() else { return false };
    let has_shown = history.whole_since().is_some_and(|since| now.at >= since + policy.stable_window);
    !has_shown && now.at < last_up + now.load_time.mul_f64(policy.load_times)
}

/// How many stay where the load has fallen before all that it asked for were ready. Those that are not carry nothing and go first, so
/// fewer of them take nothing away from anybody. Where the load may come back, they are for when it does.
fn without_late_comers(history: &History, policy: &Policy, now: &Now, recommended: u32) -> Option<u32> {
    let last = history.last().filter(|last| last.ready < now.wanted)?;
    let has_watched = now.at > history.began() + policy.down_stabilization;
    // Where all have been ready since, one that is not is none that comes late, but one that carries load and may be back at once.
    let comes_late = history.last_up().is_some_and(|up| history.last_whole() <= up);
    if !comes_late || !has_watched || is_stuck(history, now) {
        return None;
    }
    let may_return = is_return_expected(history, now);
    let kept_for = if may_return { stabilization(history, policy, now) } else { policy.late_stabilization };
    let most = history.largest_since(now.at.saturating_sub(kept_for));
    let kept = most.max(recommended).max(last.ready).max(policy.min);
    (kept < now.wanted).then_some(kept)
}
