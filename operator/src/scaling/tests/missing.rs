//! Replicas that do not come, numbers that are missing, and who begins to lead.

use super::*;

#[test]
fn a_device_that_is_not_to_be_had_winds_nothing_up() {
    let mut world = World::of(1, policy());
    world.room = 1;
    for _ in 0..300 {
        world.read_as(Reading { load: 11.0, load_now: 11.0, queued: 7.0, refused: 100, ..Reading::default() });
    }
    assert_eq!(world.wanted, 3, "what the load says and no more");
}

#[test]
fn replicas_that_wait_for_a_device_are_given_up_only_with_those_that_are_there() {
    let mut world = World::of(4, policy());
    world.room = 2;
    for _ in 0..10 {
        world.stays(15.0, 40);
        world.stays(9.0, 200);
    }
    assert_eq!(world.wanted, 4, "to ask for three of which two are there saves nothing");
    world.stays(2.0, 600);
    assert_eq!(world.wanted, 1);
}

#[test]
fn replicas_that_wait_for_a_device_are_given_up_with_the_load_where_the_fewest_are_there() {
    let mut world = World::of(3, policy());
    world.room = 1;
    world.stays(11.0, 200);
    world.stays(0.0, 600);
    assert_eq!(world.wanted, 1, "nothing asks for them any more");
}

#[test]
fn replicas_that_do_not_come_are_not_asked_for_where_those_that_are_there_carry_the_load() {
    let mut world = World::of(4, policy());
    world.room = 2;
    world.stays(15.0, 200);
    world.stays(7.0, 200);
    assert_eq!(world.wanted, 2, "two carry it with something to spare");
}

#[test]
fn what_a_person_asks_for_is_not_remembered_as_too_little() {
    let mut world = World::of(2, policy());
    world.stays(0.1, 200);
    assert_eq!(world.wanted, 1);
    world.policy.min = 2;
    let waiting = || Reading { load: 0.1, load_now: 0.1, queued: 0.05, ..Reading::default() };
    world.read_as(waiting());
    assert_eq!(world.wanted, 2);
    world.stays(23.0, 60);
    assert!(world.wanted >= 6, "{}", world.wanted);
    world.stays(0.6, 900);
    assert_eq!(world.wanted, 2);
}

#[test]
fn a_pod_that_is_not_ready_for_a_moment_is_none_that_comes_late() {
    for gone in [1, 5] {
        let mut world = World::of(1, Policy { down_stabilization: Duration::from_secs(600), ..policy() });
        world.stays(31.0, 780);
        assert_eq!(world.wanted, 8);
        world.stays(8.0, 120);
        assert_eq!(world.wanted, 8, "a moment ago it was higher");
        world.room = 8 - gone;
        world.read(8.0);
        assert_eq!(world.wanted, 8, "{gone} were not ready once");
    }
}

#[test]
fn what_nobody_told_of_takes_nothing_away_when_it_is_told_again() {
    let mut world = World::of(8, Policy { down_stabilization: Duration::ZERO, ..policy() });
    world.stays(30.0, 120);
    assert_eq!(world.wanted, 8);
    world.silent = 4;
    // Of those four that tell.
    world.stays(15.0, 60);
    world.silent = 0;
    world.stays(30.0, 10);
    assert_eq!(world.wanted, 8);
}

#[test]
fn numbers_that_are_missing_or_old_change_nothing() {
    let mut world = World::of(4, policy());
    world.stays(16.0, 60);
    world.silent = 3;
    assert_eq!(world.stays(4.0, 600), [Reason::Stale]);
    world.silent = 0;
    assert_eq!((world.stays(4.0, 50).last(), world.wanted), (Some(&Reason::Stabilizing), 4), "a window is begun anew");
    world.at += Duration::from_secs(16);
    assert_eq!((world.decide(), world.wanted), (Reason::Stale, 4));
}

#[test]
fn one_that_is_silent_counts_as_full_on_the_way_down_and_as_idle_on_the_way_up() {
    let mut world = World::of(4, policy());
    world.silent = 2;
    world.stays(0.1, 600);
    assert_eq!(world.wanted, 3, "two that may be full, and something to spare");
    let mut world = World::of(4, policy());
    world.silent = 1;
    assert!(!world.stays(15.0, 120).contains(&Reason::Load));
    assert_eq!(world.wanted, 4);
    let quick = Policy { down_stabilization: Duration::from_secs(10), ..policy() };
    let mut world = World::of(2, quick);
    world.stays(0.1, 8);
    world.silent = 1;
    world.stays(0.1, 60);
    assert_eq!(world.wanted, 2, "from the moment that it is silent");
}

#[test]
fn who_begins_anew_takes_nothing_before_a_window_and_adds_at_once() {
    let mut world = World::of(5, policy());
    assert_eq!(world.read(2.0), Reason::Stabilizing);
    let mut world = World::of(5, policy());
    assert_eq!((world.read_waiting(40.0), world.wanted), (Reason::Burst, 10));
}

#[test]
fn who_begins_to_lead_takes_one_at_a_time_and_none_while_there_is_a_queue() {
    // A target that no replica reaches without a queue: eight there are, for at seven samples queue.
    let policy = Policy { inflight_per_replica: Some(8.0), down_share: 0.5, ..policy() };
    let mut world = World::of(8, policy.clone());
    let mut fewest = 8;
    for _ in 0..300 {
        let (running, capacity) = (30.0, f64::from(world.wanted) * 4.0);
        let queued = if capacity < running { 40.0 } else { 0.0 };
        let load = f64::min(running, capacity) + queued;
        world.read_as(Reading { load, load_now: load, queued, queued_now: queued, ..Reading::default() });
        fewest = fewest.min(world.wanted);
    }
    assert_eq!((world.wanted, fewest), (8, 7));

    let mut world = World::of(8, policy);
    world.stays(30.0, 60);
    world.stays(3.0, 120);
    assert!(world.wanted <= 2, "most of the load has gone: {}", world.wanted);
}
