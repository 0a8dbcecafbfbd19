//! The plan of a rollout, against a cluster that is played here: Deployments that follow their replicas, pods that need
//! time, devices that are scarce. Time is an argument, so nothing waits.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod play;
mod trouble;

use crds::resource::RolloutStrategy;
use ortolan_operator::rollout::{Stage, plan};

use crate::play::{PROGRESS_DEADLINE, Play, SURGE_TIMEOUT, at, served};

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
