//! What the decision does with loads that rise, fall, vanish and lie.

mod down;
mod latency;
mod missing;
mod pressure;
mod returns;
mod up;

use std::time::Duration;

use super::{Decision, History, Policy, Reading, Reason, Share, decide, decide::Now};

const PERIOD: Duration = Duration::from_secs(2);

/// One to ten replicas that should each carry four samples; fewer after a minute.
fn policy() -> Policy {
    Policy {
        min: 1,
        max: 10,
        inflight_per_replica: Some(4.0),
        queue_per_replica: None,
        latency_quantile: None,
        tolerance: 0.1,
        least_tolerance: 0.1,
        errors: 2.5,
        stable_window: Duration::from_secs(30),
        calm_window: Duration::from_secs(60),
        hurried_share: 0.6,
        panic_window: Duration::from_millis(500),
        panic_threshold: 2.0,
        up_stabilization: Duration::ZERO,
        up_per_step: None,
        down_stabilization: Duration::from_secs(60),
        late_stabilization: Duration::from_secs(30),
        return_stabilization: Duration::from_secs(300),
        down_per_minute: None,
        down_share: 0.25,
        small_down_share: 0.125,
        too_few_kept: Duration::from_secs(3600),
        load_times: 3.0,
        stale_after: Duration::from_secs(15),
    }
}

/// A model that is read every two seconds, whose pods are ready as soon as they are asked for unless it is said otherwise.
struct World {
    policy: Policy,
    history: History,
    at: Duration,
    wanted: u32,
    /// At most so many are ever ready.
    room: u32,
    silent: u32,
    /// What waits is being decoded, and nothing is in the queue.
    is_decoding: bool,
    in_rollout: bool,
    load_time: Duration,
    last: Option<Decision>,
}

impl World {
    fn of(wanted: u32, policy: Policy) -> Self {
        let history = History::begin(Duration::ZERO, wanted);
        Self {
            policy,
            history,
            at: Duration::ZERO,
            wanted,
            room: u32::MAX,
            silent: 0,
            is_decoding: false,
            in_rollout: false,
            load_time: Duration::ZERO,
            last: None,
        }
    }

    /// Reads so many samples in all pods.
    fn read(&mut self, load: f64) -> Reason {
        self.read_as(Reading { load, load_now: load, ..Reading::default() })
    }

    /// The same, half of which wait.
    fn read_waiting(&mut self, load: f64) -> Reason {
        let queued = load / 2.0;
        self.read_as(Reading { load, load_now: load, queued, queued_now: queued, ..Reading::default() })
    }

    fn read_as(&mut self, reading: Reading) -> Reason {
        self.at += PERIOD;
        let ready = self.wanted.min(self.room);
        let counted = ready.saturating_sub(self.silent);
        let in_queue = if self.is_decoding { 0.0 } else { reading.queued };
        let reading = Reading { at: self.at, span: PERIOD, ready, counted, in_queue, ..reading };
        self.history.read(reading, self.policy.calm_window);
        self.decide()
    }

    fn decide(&mut self) -> Reason {
        let now = Now { at: self.at, wanted: self.wanted, in_rollout: self.in_rollout, load_time: self.load_time };
        let decision = decide(&self.history, &self.policy, &now);
        self.history.decided(self.at, self.wanted, &decision, &self.policy);
        self.wanted = decision.desired;
        let reason = decision.reason;
        self.last = Some(decision);
        reason
    }

    /// Reads the same load for so long; the reasons, each told once in a row.
    fn stays(&mut self, load: f64, seconds: u64) -> Vec<Reason> {
        let mut reasons: Vec<Reason> = (0..seconds / 2).map(|_| self.read(load)).collect();
        reasons.dedup();
        reasons
    }
}
