//! `spec.scaling` with what it leaves open filled in.

use std::time::Duration;

use crds::resource::Scaling;

use super::history::MINUTE;

/// The load is smoothed over this time, on the way down and, where samples wait, on the way up.
pub const STABLE_WINDOW: Duration = Duration::from_secs(20);

/// The average of this time, too, must be over the target where hardly anything waits: what hurts nobody and is soon gone needs no
/// replicas.
pub const CALM_WINDOW: Duration = MINUTE;

/// Where samples wait, as many replicas are asked for at once as run what comes when each runs this share of what those run that are
/// there; all that the target asks for come when the average of a minute says so.
pub const HURRIED_SHARE: f64 = 0.6;

/// A burst is seen in the load of this time. Half a period: a reading that looks like one is followed by another so soon.
pub const PANIC_WINDOW: Duration = Duration::from_millis(500);

/// What was read within the window is kept: no longer than anyhow.
const LONGEST_PANIC_WINDOW: Duration = MINUTE;

/// It is a burst when the load is this many times what the ready replicas should carry.
pub const PANIC_THRESHOLD: f64 = 2.0;

/// Differences from the target below this share of it change nothing; where the readings differ little from each other, smaller ones
/// count too.
pub const TOLERANCE: f64 = 0.1;

/// A difference counts from so many standard errors of the average on.
pub const ERRORS: f64 = 2.5;

/// The most that was recommended within this time is kept.
pub const DOWN_STABILIZATION: Duration = Duration::from_secs(30);

/// Where a load has come back lately, the most that was recommended within this time is kept, or within [`RETURN_LOAD_TIMES`] where
/// this is less: as long as the HorizontalPodAutoscaler keeps it by default.
pub const RETURN_STABILIZATION: Duration = Duration::from_secs(300);

/// What loads soon is soon there again, and is not kept for so long. In times of what loading the model takes.
pub const RETURN_LOAD_TIMES: u32 = 20;

/// A load that has come back may come back again within this time: long enough for four times [`RETURN_STABILIZATION`].
pub const RETURN_EXPECTED: Duration = Duration::from_secs(1200);

/// Numbers older than this are not acted on: seven readings.
pub const STALE_AFTER: Duration = Duration::from_secs(15);

/// One step up adds at most so many replicas, or as many as there are.
pub const UP_PER_STEP: u32 = 4;

/// At most this share of the replicas goes, and always one, within [`DOWN_PERIOD`].
pub const DOWN_SHARE: f64 = 0.5;

/// Where much waits, this share goes, and always one, once the number is near what is needed: how much more waits in fewer replicas is
/// seen one step at a time.
pub const SMALL_DOWN_SHARE: f64 = 0.125;

/// A number that was too few is not tried again for so long, while about as much runs.
pub const TOO_FEW_KEPT: Duration = Duration::from_secs(2 * 3600);

/// So long a step down has to show before the next one is as large.
pub const DOWN_PERIOD: Duration = Duration::from_secs(20);

/// After a step up nothing that is ready goes before the new replicas have shown for a stable window what they carry, but for so many
/// times what loading the model takes at most: some may never come.
pub const LOAD_TIMES: f64 = 3.0;

/// What was added for refusals or latency stays for so many times the stabilization: the load would at once say that it is too much.
pub const BLIND_KEPT: u32 = 5;

/// Between which bounds, by which targets and how fast replicas come and go.
#[derive(Debug, Clone, PartialEq)]
pub struct Policy {
    /// Never fewer.
    pub min: u32,
    /// Never more.
    pub max: u32,
    /// Samples that run and wait in a replica.
    pub inflight_per_replica: Option<f64>,
    /// Samples that wait in a replica.
    pub queue_per_replica: Option<f64>,
    /// Share of the requests that should be answered in time.
    pub latency_quantile: Option<f64>,
    /// See [`TOLERANCE`]: at most this.
    pub tolerance: f64,
    /// At least this, however little the readings differ; the same where a number is given.
    pub least_tolerance: f64,
    /// See [`ERRORS`].
    pub errors: f64,
    /// See [`STABLE_WINDOW`].
    pub stable_window: Duration,
    /// See [`CALM_WINDOW`].
    pub calm_window: Duration,
    /// See [`HURRIED_SHARE`].
    pub hurried_share: f64,
    /// See [`PANIC_WINDOW`].
    pub panic_window: Duration,
    /// See [`PANIC_THRESHOLD`].
    pub panic_threshold: f64,
    /// The least that was recommended within this time is done.
    pub up_stabilization: Duration,
    /// Most replicas added in one step; see [`UP_PER_STEP`].
    pub up_per_step: Option<u32>,
    /// See [`DOWN_STABILIZATION`].
    pub down_stabilization: Duration,
    /// The same of replicas that have not come yet: [`STABLE_WINDOW`], or `down_stabilization` where that is given.
    pub late_stabilization: Duration,
    /// See [`RETURN_STABILIZATION`]; the same as `down_stabilization` where that is given.
    pub return_stabilization: Duration,
    /// Most replicas removed in one minute.
    pub down_per_minute: Option<u32>,
    /// Share of those that there are that goes within [`DOWN_PERIOD`] at most, where no number is given; see [`DOWN_SHARE`].
    pub down_share: f64,
    /// The same where much waits; see [`SMALL_DOWN_SHARE`].
    pub small_down_share: f64,
    /// See [`TOO_FEW_KEPT`].
    pub too_few_kept: Duration,
    /// See [`LOAD_TIMES`].
    pub load_times: f64,
    /// See [`STALE_AFTER`].
    pub stale_after: Duration,
}

impl From<&Scaling> for Policy {
    fn from(scaling: &Scaling) -> Self {
        let count = |number: i32| u32::try_from(number).unwrap_or_default();
        let min = count(scaling.min_replicas).max(1);
        let targets = scaling.targets.clone().unwrap_or_default();
        let behavior = scaling.behavior.clone().unwrap_or_default();
        let (up, down) = (behavior.scale_up.unwrap_or_default(), behavior.scale_down.unwrap_or_default());
        let panic = scaling.panic.clone().unwrap_or_default();
        let length =
            |given: Option<crds::resource::Duration>, default| given.map_or(default, crds::resource::Duration::length);
        let share = |percent: Option<u32>, default| percent.map_or(default, |percent| f64::from(percent) / 100.0);
        Self {
            min,
            max: scaling.max_replicas.map_or(min, count).max(min),
            inflight_per_replica: targets.inflight_per_replica.map(f64::from),
            queue_per_replica: targets.queue_per_replica.map(f64::from),
            latency_quantile: targets.latency.map(|latency| latency.quantile),
            tolerance: share(behavior.tolerance_percent, TOLERANCE),
            least_tolerance: share(behavior.tolerance_percent, 0.0),
            errors: ERRORS,
            stable_window: STABLE_WINDOW,
            calm_window: CALM_WINDOW,
            hurried_share: HURRIED_SHARE,
            // A definition of before had no bound here.
            panic_window: length(panic.window, PANIC_WINDOW).min(LONGEST_PANIC_WINDOW),
            panic_threshold: share(panic.threshold_percent, PANIC_THRESHOLD),
            up_stabilization: length(up.stabilization, Duration::ZERO),
            up_per_step: up.max_per_step,
            down_stabilization: length(down.stabilization, DOWN_STABILIZATION),
            late_stabilization: length(down.stabilization, STABLE_WINDOW),
            return_stabilization: length(down.stabilization, RETURN_STABILIZATION),
            down_per_minute: down.max_per_minute,
            down_share: DOWN_SHARE,
            small_down_share: SMALL_DOWN_SHARE,
            too_few_kept: TOO_FEW_KEPT,
            load_times: LOAD_TIMES,
            stale_after: length(scaling.stale_after, STALE_AFTER),
        }
    }
}

impl Policy {
    /// Most replicas that one step adds to so many.
    #[must_use]
    pub fn step_up(&self, wanted: u32) -> u32 {
        self.up_per_step.unwrap_or_else(|| wanted.max(UP_PER_STEP))
    }

    /// For how long recommendations are remembered.
    #[must_use]
    pub fn longest_stabilization(&self) -> Duration {
        self.up_stabilization.max(self.down_stabilization).max(self.return_stabilization)
    }

    /// The time within which so many go at most.
    #[must_use]
    pub fn down_period(&self) -> Duration {
        if self.down_per_minute.is_some() { MINUTE } else { DOWN_PERIOD }
    }

    /// Most replicas that go within [`Self::down_period`] from so many.
    #[must_use]
    pub fn step_down(&self, wanted: u32) -> u32 {
        self.down_per_minute.unwrap_or_else(|| replicas(f64::from(wanted) * self.down_share))
    }

    /// The same where much waits.
    #[must_use]
    pub fn small_step_down(&self, wanted: u32) -> u32 {
        self.down_per_minute.unwrap_or_else(|| replicas(f64::from(wanted) * self.down_share.min(self.small_down_share)))
    }
}

/// The whole replicas that a number of them takes, at least one.
#[must_use]
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a cast of a float saturates")]
pub fn replicas(number: f64) -> u32 {
    // What is a hair above a whole number by rounding alone is that number.
    ((number - 1e-9).ceil() as u32).max(1)
}
