//! What goes wrong around a rollout: room that does not help, operators that are away, writes that are refused.

use crds::resource::RolloutStrategy;
use ortolan_operator::rollout::{Stage, plan};

use crate::play::{PROGRESS_DEADLINE, Play, SURGE_TIMEOUT, at, served};

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
    // The other one goes on.
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
        // Where others would have to go first it has not begun, and is not given up: its refusal says why.
        let begins = matches!(strategy, RolloutStrategy::Auto | RolloutStrategy::Surge);
        assert_eq!(plan.stage == Stage::RolledBack, begins, "{strategy:?}");
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
fn after_a_clock_was_set_back_a_rollout_ends_once() {
    let mut play = served(1, RolloutStrategy::Surge);
    play.now = 100_000;
    play.turn_to("new");
    play.run_until(Stage::Complete);
    play.now = 50_000;
    play.turn_to("third");
    let ended = play.run_until(Stage::Complete);
    // Each other record would be written, and whoever sees it written looks again.
    (0..10).for_each(|_| assert_eq!(play.step().records, ended.records));
}

#[test]
fn none_goes_back_to_what_was_given_up_since_it_served() {
    let mut play = served(1, RolloutStrategy::Recreate);
    play.turn_to("new");
    play.run_until(Stage::Complete);
    play.broken = vec!["third", "new"];
    play.turn_to("third");
    steps_until(&mut play, |play| play.pods.iter().all(|pod| pod.revision != "new"));
    // Its source has gone meanwhile.
    play.turn_to("new");
    assert_eq!(play.run_until(Stage::RolledBack).active, "old");
    steps_until(&mut play, |play| play.ready("old") == 1);
    play.turn_to("third");
    assert_eq!(play.run_until(Stage::RolledBack).active, "old");
    steps_until(&mut play, |play| play.ready("old") == 1);
}

/// At most a day.
fn steps_until(play: &mut Play, holds: impl Fn(&Play) -> bool) {
    let end = play.now + 86_400;
    while !holds(play) {
        assert!(play.now < end, "it never holds");
        play.step();
    }
}

#[test]
fn a_first_revision_that_serves_with_all_but_one_is_what_a_broken_one_goes_back_to() {
    for strategy in [RolloutStrategy::Auto, RolloutStrategy::Surge, RolloutStrategy::InPlace, RolloutStrategy::Recreate]
    {
        let mut play = Play::new("old", 3, strategy);
        // Its node does not start it.
        play.step();
        play.pods[0].scheduled = Some(u64::MAX / 2);
        play.run_until(Stage::ProgressDeadlineExceeded);
        assert_eq!(play.ready("old"), 2, "{strategy:?}");
        play.broken = vec!["new"];
        play.turn_to("new");
        assert_eq!(play.run_until(Stage::RolledBack).active, "old", "{strategy:?}");
        steps_until(&mut play, |play| play.ready("old") >= 2);
        if strategy != RolloutStrategy::Recreate {
            assert!(play.fewest_ready >= 1, "{strategy:?}: {}", play.fewest_ready);
        }
    }
}

#[test]
fn a_wait_for_room_that_is_made_then_uses_up_no_deadline() {
    for deadline in [SURGE_TIMEOUT / 2, SURGE_TIMEOUT + 30] {
        let mut play = served(1, RolloutStrategy::Auto);
        play.devices = 1;
        play.deadline = deadline;
        (play.start_seconds, play.stop_seconds) = (deadline / 3, deadline / 2);
        play.turn_to("new");
        play.run_until(Stage::Complete);
        assert_eq!((play.ready("new"), play.ready("old")), (1, 0), "{deadline} s");
    }
}

#[test]
fn a_spec_that_cannot_be_acted_on_tries_nothing_again_and_gives_nothing_up() {
    let mut play = served(1, RolloutStrategy::Surge);
    play.broken = vec!["new"];
    play.turn_to("new");
    play.run_until(Stage::RolledBack);
    (play.is_refused, play.deadline) = (true, 6 * PROGRESS_DEADLINE);
    for _ in 0..1000 {
        let plan = play.step();
        assert_eq!((plan.stage, plan.active.as_str(), play.ready("old")), (Stage::RolledBack, "old", 1));
    }
    let mut play = served(1, RolloutStrategy::Surge);
    play.broken = vec!["new"];
    play.turn_to("new");
    (play.is_refused, play.deadline) = (true, 1);
    (0..1000).for_each(|_| assert_eq!(play.step().stage, Stage::Surging));
}

#[test]
fn a_rollout_whose_deadline_passes_while_the_spec_cannot_be_acted_on_is_overdue_until_it_gets_on() {
    let mut play = served(2, RolloutStrategy::Surge);
    play.broken = vec!["new"];
    play.turn_to("new");
    play.is_refused = true;
    let first = play.step();
    assert!(!first.is_overdue);
    let second = play.step();
    assert_eq!(second.look_again, Some(at(play.now - 2 + PROGRESS_DEADLINE)), "there is something new then");
    (2..PROGRESS_DEADLINE).for_each(|_| assert!(!play.step().is_overdue));
    (0..100).for_each(|_| assert!(play.step().is_overdue));
    play.is_refused = false;
    let given_up = play.step();
    assert_eq!((given_up.stage, given_up.is_overdue), (Stage::RolledBack, false));
}

#[test]
fn pods_of_the_serving_one_that_somebody_else_takes_away_come_back_while_they_end() {
    for (strategy, wanted) in [(RolloutStrategy::Surge, 1), (RolloutStrategy::Auto, 3)] {
        let mut play = served(wanted, strategy);
        play.broken = vec!["new"];
        play.turn_to("new");
        (0..20).for_each(|_| assert_eq!(play.step().stage, Stage::Surging));
        play.records.get_mut("old").unwrap().replicas = 0;
        play.deployments_follow();
        (0..20).for_each(|_| assert_eq!(play.step().stage, Stage::Surging));
        assert_eq!(play.ready("old"), wanted as usize, "{strategy:?}");
        play.broken.clear();
        play.run_until(Stage::Complete);
        assert_eq!((play.ready("old"), play.ready("new")), (0, wanted as usize), "{strategy:?}");
    }
}

#[test]
fn what_has_ended_for_a_pause_in_a_rollout_comes_back_as_the_new_one_only() {
    let mut play = served(2, RolloutStrategy::Surge);
    play.turn_to("new");
    play.step();
    play.wanted = 0;
    (0..20).for_each(|_| drop(play.step()));
    assert!(play.pods.is_empty());
    play.wanted = 2;
    while play.step().stage != Stage::Complete {
        assert!(play.pods.iter().all(|pod| pod.revision == "new"), "{:?}", play.pods);
    }
}
