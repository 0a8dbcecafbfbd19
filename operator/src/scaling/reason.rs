//! Why there are so many replicas: what status, metrics and Events tell of a decision.

use std::fmt;

/// Why there should be so many replicas.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Reason {
    /// The number is right.
    Steady,
    /// More, or fewer, than the bounds allow.
    Bounds,
    /// None are asked for, which is how a person stops a model.
    Off,
    /// The load has risen.
    Load,
    /// There is a burst.
    Burst,
    /// Requests were refused.
    Refusals,
    /// Answers are late.
    Latency,
    /// More would be on target now, but not by the average of a minute.
    Brief,
    /// The load has fallen.
    Idle,
    /// More would be on target, but have not been asked for as long as they must be.
    Rising,
    /// Fewer would do, but the load was higher a moment ago.
    Stabilizing,
    /// Fewer would do, but a load that had gone has come back lately, and may again.
    Returning,
    /// Fewer would do, but there was a burst a moment ago.
    AfterBurst,
    /// Fewer would do, but replicas that came last have not shown yet what they carry.
    Settling,
    /// Fewer would do, but answers are late.
    Late,
    /// Fewer would do, but new pods are replacing old ones.
    Rollout,
    /// Fewer would do by the target, but they were too few lately.
    TooFew,
    /// Fewer would do by what the pods tell that tell something.
    Silent,
    /// Fewer would do by the target, but samples wait.
    Waiting,
    /// Fewer would do, and no more may go yet.
    Pace,
    /// Requests are refused, which the replicas that came for that have not changed.
    InVain,
    /// No replica is ready.
    NoReplicaReady,
    /// Numbers are missing or too old.
    Stale,
}

impl Reason {
    /// All of them.
    pub const ALL: [Self; 23] = [
        Self::Steady,
        Self::Bounds,
        Self::Off,
        Self::Load,
        Self::Burst,
        Self::Refusals,
        Self::Latency,
        Self::Brief,
        Self::Rising,
        Self::Idle,
        Self::Stabilizing,
        Self::Returning,
        Self::AfterBurst,
        Self::Settling,
        Self::Late,
        Self::Rollout,
        Self::TooFew,
        Self::Silent,
        Self::Waiting,
        Self::Pace,
        Self::InVain,
        Self::NoReplicaReady,
        Self::Stale,
    ];

    /// Whether the load says nothing about it.
    #[must_use]
    pub fn is_blind(self) -> bool {
        matches!(self, Self::Refusals | Self::Latency)
    }

    /// Whether more are asked for than there are, whatever holds them back.
    #[must_use]
    pub fn is_rise(self) -> bool {
        matches!(self, Self::Load | Self::Burst | Self::Refusals | Self::Latency | Self::Rising)
    }

    /// Whether readings say it, and not their want or a person.
    #[must_use]
    pub fn is_of_readings(self) -> bool {
        !matches!(self, Self::Bounds | Self::Off | Self::Silent | Self::NoReplicaReady | Self::Stale)
    }

    /// The label's value in metrics.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Steady => "steady",
            Self::Bounds => "bounds",
            Self::Off => "off",
            Self::Load => "load",
            Self::Burst => "burst",
            Self::Refusals => "refusals",
            Self::Latency => "latency",
            Self::Brief => "brief",
            Self::Rising => "rising",
            Self::Idle => "idle",
            Self::Stabilizing => "stabilizing",
            Self::Returning => "returning",
            Self::AfterBurst => "after_burst",
            Self::Settling => "settling",
            Self::Late => "late",
            Self::Rollout => "rollout",
            Self::TooFew => "too_few",
            Self::Silent => "silent",
            Self::Waiting => "waiting",
            Self::Pace => "pace",
            Self::InVain => "in_vain",
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
            Self::Off => "no replicas are asked for",
            Self::Load => "the load is over the target",
            Self::Burst => "the load is far over the target",
            Self::Refusals => "requests were refused because queues were full",
            Self::Latency => "too few requests are answered within the target, and there is a queue",
            Self::Brief => "the load is over the target, but on average of the last minute it is not",
            Self::Rising => "more replicas are asked for, but not yet for as long as behavior.scaleUp.stabilization",
            Self::Idle => "fewer replicas carry the load",
            Self::Stabilizing => "fewer replicas carry the load, but a moment ago it was higher",
            Self::Returning => {
                "fewer replicas carry the load, but a load that had gone came back lately, and may again"
            }
            Self::AfterBurst => "fewer replicas carry the load, but there was a burst a moment ago",
            Self::Settling => {
                "fewer replicas carry the load, but those that came last have not shown yet what they carry"
            }
            Self::Late => "fewer replicas carry the load, but too few requests are answered within the target",
            Self::Rollout => "fewer replicas carry the load, but new pods are replacing old ones",
            Self::TooFew => "fewer replicas meet the target, but so few could not carry the load lately",
            Self::Silent => "fewer replicas carry the load that is known, but pods that do not tell theirs count as full",
            Self::Waiting => "fewer replicas meet the target, but samples wait",
            Self::Pace => "fewer replicas carry the load, and they go a few at a time",
            Self::InVain => {
                "requests are refused because queues were full, but the replicas that were added for that have not helped"
            }
            Self::NoReplicaReady => "no replica is ready",
            Self::Stale => "the pods' numbers are missing or too old",
        })
    }
}
