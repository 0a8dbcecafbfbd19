//! The plan of a rollout, against a cluster that is played here: Deployments that follow their replicas, pods that need
//! time, devices that are scarce. Time is an argument, so nothing waits.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::{collections::BTreeMap, time::Duration};

use crds::resource::RolloutStrategy;
use k8s_openapi::jiff::Timestamp;
use ortolan_operator::rollout::{Plan, PodFacts, Revision, Situation, Stage, plan};

/// A pod of the play.
#[derive(Debug, Clone)]
struct Pod {
    revision: &'static str,
    scheduled: Option<u64>,
    waits_since: u64,
    ready: Option<u64>,
    ends: Option<u64>,
}

/// A cluster of the play. Seconds count from noon.
struct Play {
    now: u64,
    devices: usize,
    wanted: u32,
    target: &'static str,
    strategy: RolloutStrategy,
    broken: Vec<&'static str>,
    /// Since when an operator has led.
    led_since: u64,
    /// How long a revision may take without progress.
    deadline: u64,
    /// The API server takes nothing of its Deployment.
    refused: Option<&'static str>,
    /// No node will ever do for its pods.
    homeless: Option<&'static str>,
    records: BTreeMap<String, Revision>,
    pods: Vec<Pod>,
    start_seconds: u64,
    stop_seconds: u64,
    /// Numbers of what was seen on the way.
    fewest_ready: usize,
    most_pods: usize,
    two_revisions_at_once: bool,
}

const SURGE_TIMEOUT: u64 = 60;
const PROGRESS_DEADLINE: u64 = 600;

fn at(seconds: u64) -> Timestamp {
    "2026-01-01T12:00:00Z".parse::<Timestamp>().unwrap() + Duration::from_secs(seconds)
}

impl Play {
    fn new(target: &'static str, wanted: u32, strategy: RolloutStrategy) -> Self {
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
            records: BTreeMap::new(),
            pods: Vec::new(),
            start_seconds: 5,
            stop_seconds: 3,
            fewest_ready: usize::MAX,
            most_pods: 0,
            two_revisions_at_once: false,
        }
    }

    fn situation(&self) -> Situation {
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
            surge_timeout: Duration::from_secs(SURGE_TIMEOUT),
            progress_deadline: Duration::from_secs(self.deadline),
            cause: self.broken.contains(&self.target).then(|| "the model is broken".to_owned()),
            led_since: at(self.led_since),
            now: at(self.now),
        }
    }

    /// One second: the plan is carried out, then the cluster moves.
    fn step(&mut self) -> Plan {
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

    fn deployments_follow(&mut self) {
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

    fn pods_move(&mut self) {
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

    fn look(&mut self) {
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
    fn run_until(&mut self, stage: Stage) -> Plan {
        for _ in 0..86_400 {
            let plan = self.step();
            if plan.stage == stage && self.pods.iter().all(|pod| pod.ends.is_none()) {
                return plan;
            }
        }
        panic!("{stage:?} was never reached: {:?}", self.situation());
    }

    /// The same cluster with another target, observed from here on.
    fn turn_to(&mut self, target: &'static str) {
        self.target = target;
        self.fewest_ready = usize::MAX;
        self.most_pods = 0;
        self.two_revisions_at_once = false;
    }

    fn ready(&self, revision: &str) -> usize {
        self.pods.iter().filter(|pod| pod.revision == revision && pod.ready.is_some()).count()
    }
}

fn served(wanted: u32, strategy: RolloutStrategy) -> Play {
    let mut play = Play::new("old", wanted, strategy);
    play.run_until(Stage::Complete);
    assert_eq!(play.ready("old"), wanted as usize);
    play
}

#[test]
fn a_surge_never_serves_with_fewer_pods_than_wanted_nor_makes_more_than_one_too_many() {
    for wanted in [1, 2, 5] {
        let mut play = served(wanted, RolloutStrategy::Surge);
        play.turn_to("new");
        play.run_until(Stage::Complete);
        assert_eq!(play.ready("new"), wanted as usize);
        assert_eq!(play.fewest_ready, wanted as usize);
        assert_eq!(play.most_pods, wanted as usize + 1);
    }
}

#[test]
fn in_place_never_needs_more_devices_than_wanted() {
    for wanted in [1_u32, 2, 5] {
        let mut play = served(wanted, RolloutStrategy::InPlace);
        play.devices = wanted as usize;
        play.turn_to("new");
        play.run_until(Stage::Complete);
        assert_eq!(play.ready("new"), wanted as usize);
        assert_eq!(play.fewest_ready, wanted as usize - 1);
        assert!(play.most_pods <= wanted as usize, "{}", play.most_pods);
    }
}

#[test]
fn recreate_never_runs_two_revisions_at_once() {
    let mut play = served(3, RolloutStrategy::Recreate);
    play.turn_to("new");
    // The first look still sees the old pods alone.
    play.run_until(Stage::Complete);
    assert_eq!(play.ready("new"), 3);
    assert!(!play.two_revisions_at_once);
}

#[test]
fn with_one_device_auto_waits_for_the_surge_timeout_and_then_makes_room() {
    let mut play = served(1, RolloutStrategy::Auto);
    play.devices = 1;
    let begun = play.now;
    play.turn_to("new");
    play.run_until(Stage::WaitingForCapacity);
    play.run_until(Stage::TerminatingFirst);
    assert!(play.now >= begun + SURGE_TIMEOUT, "old pods went after {} s", play.now - begun);
    play.run_until(Stage::Complete);
    assert_eq!(play.ready("new"), 1);
    assert!(play.records["new"].record.terminating_first.is_some(), "how it ended is remembered");
}

#[test]
fn with_as_many_devices_as_pods_auto_waits_for_the_surge_timeout_only_once() {
    let mut play = served(4, RolloutStrategy::Auto);
    play.devices = 4;
    let begun = play.now;
    play.turn_to("new");
    play.run_until(Stage::Complete);
    assert!(play.now < begun + 2 * SURGE_TIMEOUT, "it took {} s", play.now - begun);
    assert!(play.fewest_ready >= 3, "{}", play.fewest_ready);
}

#[test]
fn a_broken_revision_gives_way_to_the_one_before_it_even_on_one_device() {
    for strategy in [RolloutStrategy::Auto, RolloutStrategy::Surge, RolloutStrategy::InPlace, RolloutStrategy::Recreate]
    {
        let mut play = served(1, strategy);
        play.devices = if strategy == RolloutStrategy::Surge { 2 } else { 1 };
        play.broken = vec!["new"];
        play.turn_to("new");
        let plan = play.run_until(Stage::RolledBack);
        assert_eq!(plan.active, "old", "{strategy:?}");
        assert_eq!(plan.records["new"].failed.as_ref().unwrap().cause, "the model is broken");
        while play.ready("old") == 0 {
            assert_eq!(play.step().stage, Stage::RolledBack, "{strategy:?}");
        }
        // It stays so.
        for _ in 0..10_000 {
            assert_eq!(play.step().stage, Stage::RolledBack);
        }
        assert_eq!((play.ready("old"), play.pods.len()), (1, 1), "{strategy:?}");
    }
}

#[test]
fn a_broken_surge_costs_no_ready_pod() {
    let mut play = served(3, RolloutStrategy::Auto);
    play.broken = vec!["new"];
    play.turn_to("new");
    play.run_until(Stage::RolledBack);
    assert_eq!(play.fewest_ready, 3);
}

#[test]
fn the_spec_of_before_brings_its_revision_back_and_another_try_begins_anew() {
    let mut play = served(2, RolloutStrategy::Auto);
    play.broken = vec!["new"];
    play.turn_to("new");
    play.run_until(Stage::RolledBack);
    play.turn_to("old");
    let plan = play.run_until(Stage::Complete);
    assert_eq!(plan.active, "old");
    assert_eq!(play.fewest_ready, 2);
    // What was wrong with it was outside of the spec.
    play.broken.clear();
    play.turn_to("new");
    let plan = play.run_until(Stage::Complete);
    assert!(plan.records["new"].failed.is_none());
}

#[test]
fn the_first_revision_has_none_to_go_back_to_and_may_still_make_it() {
    let mut play = Play::new("old", 1, RolloutStrategy::Auto);
    play.broken = vec!["old"];
    let plan = play.run_until(Stage::ProgressDeadlineExceeded);
    assert_eq!(plan.replicas["old"], 1, "it goes on trying");
    play.broken.clear();
    let plan = play.run_until(Stage::Complete);
    assert!(plan.records["old"].failed.is_none());
}

#[test]
fn each_pod_that_turns_ready_gives_the_next_one_the_whole_deadline() {
    let mut play = served(5, RolloutStrategy::Surge);
    play.start_seconds = PROGRESS_DEADLINE - 100;
    play.turn_to("new");
    play.run_until(Stage::Complete);
    assert_eq!(play.ready("new"), 5);
}

#[test]
fn more_wanted_than_there_is_room_for_keeps_no_revision_from_taking_over() {
    for strategy in [RolloutStrategy::Auto, RolloutStrategy::InPlace] {
        for wanted in [4, 5, 8] {
            let mut play = served(3, strategy);
            play.devices = 3;
            // An autoscaler asks for more, and nothing comes.
            play.wanted = wanted;
            (0..200).for_each(|_| assert_eq!(play.step().stage, Stage::Complete));
            play.turn_to("new");
            let plan = play.run_until(Stage::Complete);
            assert_eq!((play.ready("new"), play.ready("old")), (3, 0), "{strategy:?}, {wanted} wanted");
            assert_eq!(plan.replicas["new"], wanted);
            assert!(play.fewest_ready >= 2, "{strategy:?}, {wanted} wanted: {}", play.fewest_ready);
            (0..10_000).for_each(|_| assert_eq!(play.step().stage, Stage::Complete));
        }
    }
}

#[test]
fn more_wanted_in_the_middle_of_a_rollout_throws_no_working_revision_out() {
    for strategy in [RolloutStrategy::Auto, RolloutStrategy::InPlace] {
        for devices in [3, 4] {
            let mut play = served(3, strategy);
            play.devices = devices;
            play.turn_to("new");
            while play.ready("new") < 1 {
                play.step();
            }
            play.wanted = 5;
            play.run_until(Stage::Complete);
            assert_eq!((play.ready("new"), play.ready("old")), (devices, 0), "{strategy:?}, {devices} devices");
            assert!(play.fewest_ready >= 2, "{strategy:?}, {devices} devices: {}", play.fewest_ready);
        }
    }
}

#[test]
fn a_pod_that_no_node_is_large_enough_for_takes_the_place_of_one_and_no_more() {
    for strategy in [RolloutStrategy::Auto, RolloutStrategy::InPlace] {
        let mut play = served(4, strategy);
        play.devices = 4;
        play.homeless = Some("new");
        play.turn_to("new");
        play.run_until(Stage::RolledBack);
        assert_eq!(play.fewest_ready, 3, "{strategy:?}");
        while play.ready("old") < 4 {
            assert_eq!(play.step().stage, Stage::RolledBack, "{strategy:?}");
        }
    }
}

#[test]
fn room_that_helps_no_new_pod_goes_back_long_before_the_deadline() {
    let mut play = served(1, RolloutStrategy::Auto);
    play.devices = 1;
    play.homeless = Some("new");
    play.turn_to("new");
    let mut seconds_without = 0;
    while play.step().stage != Stage::RolledBack {
        seconds_without += u64::from(play.ready("old") == 0);
        assert!(play.now < 10_000, "it is never given up");
    }
    let most = SURGE_TIMEOUT + play.stop_seconds + play.start_seconds + 3;
    assert!((1..=most).contains(&seconds_without), "nobody served for {seconds_without} s");
    assert_eq!(play.ready("old"), 1);

    // One that takes the room a little later keeps it.
    let mut play = served(1, RolloutStrategy::Auto);
    play.devices = 1;
    play.homeless = Some("new");
    play.turn_to("new");
    play.run_until(Stage::TerminatingFirst);
    (0..SURGE_TIMEOUT / 2).for_each(|_| drop(play.step()));
    play.homeless = None;
    play.run_until(Stage::Complete);
    assert_eq!((play.ready("new"), play.pods.len()), (1, 1));
}

#[test]
fn the_first_revision_takes_over_with_the_pods_that_have_room_so_that_a_broken_one_can_go_back_to_it() {
    let mut play = Play::new("old", 3, RolloutStrategy::Auto);
    play.devices = 2;
    play.run_until(Stage::Complete);
    assert!((SURGE_TIMEOUT..PROGRESS_DEADLINE).contains(&play.now), "after {} s", play.now);
    (0..10_000).for_each(|_| assert_eq!(play.step().stage, Stage::Complete));
    play.broken = vec!["new"];
    play.turn_to("new");
    play.run_until(Stage::RolledBack);
    while play.ready("old") < 2 {
        assert_eq!(play.step().stage, Stage::RolledBack);
    }
    // With room for no more than one it is never without.
    assert!(play.fewest_ready >= 1, "{}", play.fewest_ready);
}

#[test]
fn time_in_which_nobody_led_gives_nothing_up() {
    let mut play = served(3, RolloutStrategy::Surge);
    play.turn_to("new");
    while play.ready("new") == 0 {
        play.step();
    }
    // The cluster goes on, and nobody looks.
    play.now += 2 * PROGRESS_DEADLINE;
    play.led_since = play.now;
    // The next one takes longer than whoever leads anew waits before it gives up.
    play.start_seconds = 200;
    play.run_until(Stage::Complete);
    assert_eq!((play.ready("new"), play.fewest_ready), (3, 3));
}

#[test]
fn a_longer_deadline_is_another_try() {
    let mut play = served(1, RolloutStrategy::Surge);
    play.start_seconds = PROGRESS_DEADLINE + 100;
    play.turn_to("new");
    play.run_until(Stage::RolledBack);
    (0..2 * PROGRESS_DEADLINE).for_each(|_| assert_eq!(play.step().stage, Stage::RolledBack));
    play.deadline = 2 * PROGRESS_DEADLINE;
    play.run_until(Stage::Complete);
    assert_eq!((play.ready("new"), play.fewest_ready), (1, 1));
}

#[test]
fn what_the_others_get_where_the_new_one_is_refused_is_what_is_wanted_and_no_room() {
    let mut play = served(2, RolloutStrategy::InPlace);
    play.turn_to("new");
    let without = |play: &Play| plan(&play.situation()).without_active["old"];
    assert_eq!(plan(&play.situation()).replicas["old"], 1, "room is made");
    assert_eq!(without(&play), 2);
    for wanted in [5, 1, 0] {
        play.wanted = wanted;
        assert_eq!(without(&play), wanted);
    }
    // Somebody has deleted its Deployment.
    play.wanted = 2;
    play.pods.clear();
    play.records.get_mut("old").unwrap().replicas = 0;
    assert_eq!(without(&play), 2);
}

#[test]
fn what_is_refused_costs_the_serving_one_nothing_and_is_given_up_in_time() {
    for strategy in [RolloutStrategy::Auto, RolloutStrategy::Surge, RolloutStrategy::InPlace, RolloutStrategy::Recreate]
    {
        let mut play = served(2, strategy);
        play.refused = Some("new");
        play.turn_to("new");
        play.wanted = 3;
        (0..2).for_each(|_| drop(play.step()));
        let record = play.records["new"].record.clone();
        let mut plan = play.step();
        for _ in 0..2 * PROGRESS_DEADLINE {
            if plan.records["new"].failed.is_none() {
                assert_eq!(plan.records["new"], record, "{strategy:?}: nothing happens, and nothing is written");
            }
            plan = play.step();
        }
        // What has not begun, for others would have to go first, is not given up: its refusal says why.
        assert_eq!(plan.stage == Stage::RolledBack, record.began.is_some(), "{strategy:?}");
        assert_eq!((play.ready("old"), play.fewest_ready), (3, 2), "{strategy:?}");
    }
}

#[test]
fn what_is_refused_in_the_middle_leaves_the_serving_ones_while_its_own_are_not_ready() {
    let mut play = served(1, RolloutStrategy::Surge);
    play.broken = vec!["new"];
    play.turn_to("new");
    play.step();
    assert_eq!(play.records["new"].replicas, 1);
    play.refused = Some("new");
    (0..100).for_each(|_| drop(play.step()));
    assert_eq!((play.ready("old"), play.fewest_ready), (1, 1));
}

#[test]
fn more_replicas_of_the_serving_one_that_are_refused_bring_none_of_another() {
    let mut play = served(2, RolloutStrategy::Surge);
    play.turn_to("new");
    play.run_until(Stage::Complete);
    play.refused = Some("new");
    play.wanted = 4;
    (0..200).for_each(|_| drop(play.step()));
    assert_eq!((play.ready("new"), play.pods.len()), (2, 2));
}

#[test]
fn a_device_that_goes_away_for_a_while_brings_no_old_revision_back() {
    let mut play = served(1, RolloutStrategy::Auto);
    play.devices = 1;
    play.turn_to("new");
    play.run_until(Stage::Complete);
    let record = play.records["new"].record.clone();
    play.devices = 0;
    // Its node is drained.
    play.pods.clear();
    (0..3 * SURGE_TIMEOUT).for_each(|_| assert_eq!(play.step().stage, Stage::Complete));
    assert_eq!(play.records["new"].record, record);
    play.devices = 1;
    (0..20).for_each(|_| drop(play.step()));
    assert_eq!((play.ready("new"), play.pods.len()), (1, 1));
}

#[test]
fn in_place_too_a_step_that_comes_late_begins_a_deadline_of_its_own() {
    let mut play = served(3, RolloutStrategy::InPlace);
    play.devices = 3;
    play.turn_to("new");
    while play.ready("new") == 0 {
        play.step();
    }
    play.now += 2 * PROGRESS_DEADLINE;
    play.led_since = play.now;
    // Old pods take longer to go than whoever leads anew waits before it gives up.
    play.stop_seconds = 200;
    play.run_until(Stage::Complete);
    assert_eq!((play.ready("new"), play.fewest_ready), (3, 2));
}

#[test]
fn replicas_that_come_in_the_middle_of_a_rollout_are_of_the_revision_that_serves() {
    let mut play = served(3, RolloutStrategy::Surge);
    play.broken = vec!["new"];
    play.turn_to("new");
    (0..20).for_each(|_| assert_eq!(play.step().stage, Stage::Surging));
    play.wanted = 8;
    (0..20).for_each(|_| assert_eq!(play.step().stage, Stage::Surging));
    assert_eq!((play.ready("old"), play.pods.len()), (8, 9));
    play.broken.clear();
    play.turn_to("new");
    play.run_until(Stage::Complete);
    assert_eq!((play.ready("new"), play.fewest_ready, play.most_pods), (8, 8, 9));
}

#[test]
fn more_replicas_and_another_spec_at_once_begin_with_the_new_one() {
    let mut play = served(3, RolloutStrategy::Surge);
    play.turn_to("new");
    play.wanted = 8;
    let mut most_old = 0;
    while play.step().stage != Stage::Complete {
        most_old = most_old.max(play.pods.iter().filter(|pod| pod.revision == "old").count());
    }
    assert_eq!((most_old, play.ready("new")), (3, 8));
}

#[test]
fn a_pause_does_not_use_up_the_deadline() {
    let mut play = Play::new("old", 1, RolloutStrategy::Auto);
    play.start_seconds = 50;
    for _ in 0..10 {
        play.step();
    }
    play.wanted = 0;
    for _ in 0..2 * PROGRESS_DEADLINE {
        assert_eq!(play.step().stage, Stage::Complete);
    }
    play.wanted = 1;
    assert_eq!(play.step().stage, Stage::Surging);
    play.run_until(Stage::Complete);
    assert_eq!(play.ready("old"), 1);
}

#[test]
fn more_replicas_are_no_rollout() {
    let mut play = served(1, RolloutStrategy::Auto);
    play.wanted = 3;
    for _ in 0..20 {
        assert_eq!(play.step().stage, Stage::Complete);
    }
    assert_eq!(play.ready("old"), 3);
}

#[test]
fn a_third_revision_in_the_middle_of_a_rollout_takes_over_without_a_gap() {
    let mut play = served(3, RolloutStrategy::Surge);
    play.turn_to("new");
    while play.ready("new") < 2 {
        play.step();
    }
    play.turn_to("third");
    play.run_until(Stage::Complete);
    assert_eq!(play.ready("third"), 3);
    assert_eq!(play.fewest_ready, 3);
    assert!(play.most_pods <= 4, "{}", play.most_pods);
}

#[test]
fn the_plan_says_when_to_look_again() {
    let mut play = served(1, RolloutStrategy::Auto);
    play.devices = 1;
    play.turn_to("new");
    play.step();
    let plan = play.step();
    assert_eq!(plan.look_again, Some(at(play.pods.last().unwrap().waits_since + SURGE_TIMEOUT)));
}

#[test]
fn weights_follow_the_ready_pods_and_add_up() {
    let mut play = served(3, RolloutStrategy::Surge);
    play.turn_to("new");
    while play.ready("new") < 1 {
        play.step();
    }
    let plan = plan(&play.situation());
    assert_eq!(plan.weights.values().sum::<u32>(), 100);
    assert_eq!(plan.weights["new"], 25);
}

#[test]
fn an_old_pod_that_misses_a_probe_is_kept_and_one_that_never_was_ready_is_not() {
    let mut play = served(2, RolloutStrategy::Surge);
    play.turn_to("new");
    play.step();
    for pod in &mut play.pods {
        pod.ready = None;
    }
    let plan = plan(&play.situation());
    assert_eq!(plan.replicas["old"], 2);

    let mut play = Play::new("old", 2, RolloutStrategy::Surge);
    play.broken = vec!["old"];
    play.step();
    play.turn_to("new");
    let plan = ortolan_operator::rollout::plan(&play.situation());
    assert_eq!(plan.replicas["old"], 0);
}

#[test]
fn a_clock_that_is_set_back_begins_no_rollout_twice() {
    let mut play = served(1, RolloutStrategy::Auto);
    play.now = 0;
    play.target = "new";
    let first = play.step();
    play.now = 0;
    let second = plan(&play.situation());
    assert_eq!(first.records["new"].target_since, second.records["new"].target_since);
}
