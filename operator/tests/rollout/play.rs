//! A cluster that is played: Deployments that follow their replicas, pods that need time, devices that are scarce.

use std::{collections::BTreeMap, time::Duration};

use crds::resource::RolloutStrategy;
use k8s_openapi::jiff::Timestamp;
use ortolan_operator::rollout::{Plan, PodFacts, Revision, Situation, Stage, plan};

/// A pod of the play.
#[derive(Debug, Clone)]
pub struct Pod {
    pub revision: &'static str,
    pub scheduled: Option<u64>,
    pub waits_since: u64,
    pub ready: Option<u64>,
    pub ends: Option<u64>,
}

/// A cluster of the play. Seconds count from noon.
pub struct Play {
    pub now: u64,
    pub devices: usize,
    pub wanted: u32,
    pub target: &'static str,
    pub strategy: RolloutStrategy,
    pub broken: Vec<&'static str>,
    /// Since when an operator has led.
    pub led_since: u64,
    /// How long a revision may take without progress.
    pub deadline: u64,
    /// The API server takes nothing of its Deployment.
    pub refused: Option<&'static str>,
    /// No node will ever do for its pods.
    pub homeless: Option<&'static str>,
    /// The spec cannot be acted on.
    pub is_refused: bool,
    pub records: BTreeMap<String, Revision>,
    pub pods: Vec<Pod>,
    pub start_seconds: u64,
    pub stop_seconds: u64,
    /// Numbers of what was seen on the way.
    pub fewest_ready: usize,
    pub most_pods: usize,
    pub two_revisions_at_once: bool,
}

pub const SURGE_TIMEOUT: u64 = 60;
pub const PROGRESS_DEADLINE: u64 = 600;

pub fn at(seconds: u64) -> Timestamp {
    "2026-01-01T12:00:00Z".parse::<Timestamp>().unwrap() + Duration::from_secs(seconds)
}

impl Play {
    pub fn new(target: &'static str, wanted: u32, strategy: RolloutStrategy) -> Self {
        Self {
            now: 0,
            devices: 100,
            wanted,
            target,
            strategy,
            broken: Vec::new(),
            led_since: 0,
            deadline: PROGRESS_DEADLINE,
            refused: None,
            homeless: None,
            is_refused: false,
            records: BTreeMap::new(),
            pods: Vec::new(),
            start_seconds: 5,
            stop_seconds: 3,
            fewest_ready: usize::MAX,
            most_pods: 0,
            two_revisions_at_once: false,
        }
    }

    pub fn situation(&self) -> Situation {
        let mut revisions = self.records.clone();
        revisions.entry(self.target.to_owned()).or_default();
        for (hash, revision) in &mut revisions {
            let pods = self.pods.iter().filter(|pod| pod.revision == hash);
            revision.pods = pods
                .map(|pod| PodFacts {
                    ready_since: pod.ready.map(at),
                    terminating: pod.ends.is_some(),
                    unschedulable_since: pod.scheduled.is_none().then(|| at(pod.waits_since)),
                })
                .collect();
        }
        Situation {
            target: self.target.to_owned(),
            revisions,
            wanted: self.wanted,
            strategy: self.strategy,
            is_refused: self.is_refused,
            surge_timeout: Duration::from_secs(SURGE_TIMEOUT),
            progress_deadline: Duration::from_secs(self.deadline),
            cause: self.broken.contains(&self.target).then(|| "the model is broken".to_owned()),
            led_since: at(self.led_since),
            now: at(self.now),
        }
    }

    /// One second: the plan is carried out, then the cluster moves.
    pub fn step(&mut self) -> Plan {
        let plan = plan(&self.situation());
        let is_refused = self.refused == Some(plan.active.as_str());
        for (hash, replicas) in &plan.replicas {
            let revision = self.records.entry(hash.clone()).or_default();
            revision.record = plan.records[hash].clone();
            revision.replicas = match is_refused {
                true if *hash == plan.active => revision.replicas,
                true => plan.without_active[hash],
                false => *replicas,
            };
        }
        self.deployments_follow();
        self.now += 1;
        self.pods_move();
        self.look();
        plan
    }

    pub fn deployments_follow(&mut self) {
        for (hash, revision) in &self.records {
            let hash: &'static str = if hash == "old" {
                "old"
            } else if hash == "new" {
                "new"
            } else {
                "third"
            };
            let alive = |pod: &&mut Pod| pod.revision == hash && pod.ends.is_none();
            let count = self.pods.iter_mut().filter(alive).count();
            let replicas = revision.replicas as usize;
            for _ in count..replicas {
                let waits_since = self.now;
                self.pods.push(Pod { revision: hash, scheduled: None, waits_since, ready: None, ends: None });
            }
            // As a ReplicaSet: first those that are not ready.
            let mut surplus: Vec<&mut Pod> = self.pods.iter_mut().filter(alive).collect();
            surplus.sort_by_key(|pod| pod.ready.is_some());
            for pod in surplus.into_iter().take(count.saturating_sub(replicas)) {
                pod.ends = Some(self.now + self.stop_seconds);
            }
        }
    }

    pub fn pods_move(&mut self) {
        let now = self.now;
        self.pods.retain(|pod| pod.ends.is_none_or(|ends| ends > now));
        let mut used = self.pods.iter().filter(|pod| pod.scheduled.is_some()).count();
        for pod in self.pods.iter_mut().filter(|pod| pod.scheduled.is_none() && pod.ends.is_none()) {
            if used < self.devices && self.homeless != Some(pod.revision) {
                pod.scheduled = Some(now);
                used += 1;
            }
        }
        for pod in &mut self.pods {
            let done = pod.scheduled.is_some_and(|since| now >= since + self.start_seconds);
            if pod.ready.is_none() && done && !self.broken.contains(&pod.revision) && pod.ends.is_none() {
                pod.ready = Some(now);
            }
        }
    }

    pub fn look(&mut self) {
        let serving = self.pods.iter().filter(|pod| pod.ready.is_some() && pod.ends.is_none()).count();
        self.fewest_ready = self.fewest_ready.min(serving);
        let alive = self.pods.iter().filter(|pod| pod.ends.is_none()).count();
        self.most_pods = self.most_pods.max(alive);
        let mut revisions: Vec<_> = self.pods.iter().map(|pod| pod.revision).collect();
        revisions.sort_unstable();
        revisions.dedup();
        self.two_revisions_at_once |= revisions.len() > 1;
    }

    /// Until the stage is reached, at most a day.
    pub fn run_until(&mut self, stage: Stage) -> Plan {
        for _ in 0..86_400 {
            let plan = self.step();
            if plan.stage == stage && self.pods.iter().all(|pod| pod.ends.is_none()) {
                return plan;
            }
        }
        panic!("{stage:?} was never reached: {:?}", self.situation());
    }

    /// The same cluster with another target, observed from here on.
    pub fn turn_to(&mut self, target: &'static str) {
        self.target = target;
        self.fewest_ready = usize::MAX;
        self.most_pods = 0;
        self.two_revisions_at_once = false;
    }

    pub fn ready(&self, revision: &str) -> usize {
        self.pods.iter().filter(|pod| pod.revision == revision && pod.ready.is_some()).count()
    }
}

pub fn served(wanted: u32, strategy: RolloutStrategy) -> Play {
    let mut play = Play::new("old", wanted, strategy);
    play.run_until(Stage::Complete);
    assert_eq!(play.ready("old"), wanted as usize);
    play
}
