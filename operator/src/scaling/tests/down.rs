//! Loads that fall: what goes, when, and how many at a time.

use super::*;

#[test]
fn pods_that_are_not_there_when_the_load_has_gone_are_let_go() {
    let mut world = World::of(2, policy());
    world.load_time = Duration::from_secs(120);
    world.stays(6.0, 120);
    world.room = 2;
    world.read_as(Reading {
        load: 40.0,
        load_now: 40.0,
        queued: 32.0,
        refused: 90,
        answered: 100,
        ..Reading::default()
    });
    assert_eq!(world.wanted, 4);
    world.stays(6.0, 28);
    assert_eq!(world.wanted, 4, "a window after it");
    world.stays(6.0, 8);
    assert_eq!(world.wanted, 2, "and those that serve stay");
}

#[test]
fn a_number_that_was_tried_and_too_few_is_not_tried_again_for_an_hour() {
    // Five run in a replica at most, and six should be there: one by one their queues come and go.
    let policy = Policy { inflight_per_replica: Some(6.0), ..policy() };
    let mut world = World::of(3, policy);
    let mut changes = 0;
    for _ in 0..1700 {
        let (before, arriving) = (world.wanted, 9.8);
        let queued = if world.wanted == 2 { 5.0 } else { 0.0 };
        let load = arriving + queued;
        world.read_as(Reading { load, load_now: load, queued, queued_now: queued, ..Reading::default() });
        changes += u32::from(before != world.wanted);
    }
    assert_eq!((changes, world.wanted), (2, 3), "down, and up for good");
    world.stays(5.0, 120);
    assert!(world.wanted < 3, "less is another load");
}

#[test]
fn what_was_too_few_is_known_where_batches_are_smaller_now() {
    let mut world = World::of(3, Policy { inflight_per_replica: Some(6.0), ..policy() });
    let mut changes = 0;
    for _ in 0..1700 {
        let before = world.wanted;
        // In two replicas batches are larger and take longer, though as many requests come.
        let (load, queued) = if world.wanted == 2 { (16.0, 5.0) } else { (5.0, 1.0) };
        world.read_as(Reading {
            load,
            load_now: load,
            queued,
            queued_now: queued,
            answered: 100,
            ..Reading::default()
        });
        changes += u32::from(before != world.wanted);
    }
    assert_eq!((changes, world.wanted), (2, 3), "down, and up for good");
    // As many requests, each of which takes less.
    for _ in 0..60 {
        world.read_as(Reading { load: 2.0, load_now: 2.0, answered: 100, ..Reading::default() });
    }
    assert_eq!(world.wanted, 1, "another load");
}

#[test]
fn a_load_that_has_risen_says_nothing_of_what_was_there_before_it() {
    let mut world = World::of(2, policy());
    let mut runs = |running: f64, queued: f64, answered: u64, readings: u32| {
        for _ in 0..readings {
            let load = running + queued;
            world.read_as(Reading { load, load_now: load, queued, queued_now: queued, answered, ..Reading::default() });
        }
        world.wanted
    };
    assert_eq!(runs(1.5, 0.0, 10, 60), 1);
    assert_eq!(runs(4.0, 2.0, 40, 20), 2, "four times as much");
    assert_eq!(runs(1.5, 0.0, 10, 60), 1, "and back");
}

#[test]
fn where_much_waits_an_eighth_goes_at_a_time_of_what_is_hardly_too_much() {
    let mut world = World::of(16, Policy { max: 20, down_share: 0.5, ..policy() });
    // Whoever leads has done so for long.
    world.at = Duration::from_secs(600);
    let mut stays = |queued: f64, seconds: u64| {
        for _ in 0..seconds / 2 {
            world.read_as(Reading { load: 20.0, load_now: 20.0, queued, queued_now: queued, ..Reading::default() });
        }
        world.wanted
    };
    assert_eq!(stays(8.0, 10), 9, "half as many more than are needed, at once");
    assert_eq!(stays(8.0, 20), 7);
    assert_eq!(stays(2.0, 20), 6, "as many as carry it, once hardly any wait");
}

#[test]
fn fewer_come_only_after_a_whole_window_and_a_few_at_a_time() {
    let mut world = World::of(8, policy());
    // Whoever leads has done so for long.
    world.at = Duration::from_secs(600);
    world.read(32.0);
    assert_eq!(world.stays(3.0, 60), [Reason::Stabilizing]);
    assert_eq!(world.wanted, 8);
    world.stays(3.0, 8);
    assert_eq!(world.wanted, 6, "a quarter of eight");
    world.stays(3.0, 12);
    assert_eq!(world.wanted, 6);
    world.stays(3.0, 4);
    assert_eq!(world.wanted, 4, "after 20 s");
    world.stays(3.0, 300);
    assert_eq!(world.wanted, 1);
}

#[test]
fn a_number_a_minute_is_kept_to() {
    let mut world = World::of(8, Policy { down_per_minute: Some(1), ..policy() });
    world.stays(3.0, 118);
    assert_eq!(world.wanted, 7);
    world.stays(3.0, 10);
    assert_eq!(world.wanted, 6);
}

#[test]
fn a_load_that_comes_back_within_the_window_takes_nothing_away() {
    let mut world = World::of(3, policy());
    for _ in 0..10 {
        world.stays(12.0, 40);
        world.stays(3.0, 40);
    }
    assert_eq!(world.wanted, 3);
}

#[test]
fn latency_alone_removes_nothing() {
    let policy = Policy { latency_quantile: Some(0.95), inflight_per_replica: None, ..policy() };
    let mut world = World::of(3, policy);
    assert_eq!(world.stays(0.0, 900), [Reason::Steady]);
    assert_eq!(world.wanted, 3);
}

#[test]
fn nothing_goes_in_a_rollout_after_a_burst_or_before_the_last_ones_have_shown_what_they_carry() {
    let mut world = World::of(4, policy());
    world.in_rollout = true;
    assert_eq!(world.stays(4.0, 600), [Reason::Rollout]);
    world.in_rollout = false;
    world.stays(4.0, 600);
    assert_eq!(world.wanted, 2, "a load of exactly one leaves nothing to spare");

    let quick = Policy { down_stabilization: PERIOD, ..policy() };
    let mut world = World::of(1, quick);
    world.read_as(Reading { load: 12.0, load_now: 12.0, refused: 9, ..Reading::default() });
    assert_eq!(world.wanted, 3);
    assert_eq!(world.stays(0.0, 28), [Reason::AfterBurst]);
    world.load_time = Duration::from_secs(20);
    world.stays(0.0, 10);
    assert!(world.wanted < 3, "they have been ready for a window");

    let mut world = World::of(1, Policy { down_stabilization: PERIOD, ..policy() });
    world.read_as(Reading { load: 12.0, load_now: 12.0, refused: 9, ..Reading::default() });
    (world.room, world.load_time) = (2, Duration::from_secs(60));
    world.stays(4.0, 16);
    world.room = 3;
    assert_eq!((world.stays(4.0, 28).last(), world.wanted), (Some(&Reason::Settling), 3), "the last one came just now");
    world.stays(4.0, 10);
    assert_eq!(world.wanted, 2, "it has been ready for a window");
}

#[test]
fn a_window_shorter_than_the_time_between_readings_keeps_nothing_for_longer() {
    for millis in [0, 500, 1000] {
        let time = Duration::from_millis(millis);
        let mut world = World::of(8, Policy { down_stabilization: time, return_stabilization: time, ..policy() });
        world.stays(32.0, 60);
        assert_eq!(world.wanted, 8);
        world.stays(0.0, 180);
        assert_eq!(world.wanted, 1, "{time:?}: {:?}", world.last);
        // Those that have not come yet go as well.
        world.room = 1;
        world.read_as(Reading { load: 30.0, load_now: 30.0, refused: 99, ..Reading::default() });
        assert!(world.wanted > 4, "{:?}", world.last);
        world.stays(0.0, 58);
        assert_eq!(world.wanted, 1, "{time:?}: {:?}", world.last);
    }
}

#[test]
fn what_keeps_replicas_is_told_by_its_own_reason() {
    let mut world = World::of(3, Policy { inflight_per_replica: Some(6.0), ..policy() });
    for _ in 0..600 {
        let queued = if world.wanted == 2 { 5.0 } else { 0.0 };
        let load = 9.8 + queued;
        world.read_as(Reading { load, load_now: load, queued, queued_now: queued, ..Reading::default() });
    }
    assert_eq!((world.last.as_ref().map(|last| last.reason), world.wanted), (Some(Reason::TooFew), 3));
    let mut world = World::of(2, policy());
    world.silent = 1;
    assert_eq!((world.stays(3.0, 600).last(), world.wanted), (Some(&Reason::Silent), 2));
    let mut world = World::of(8, Policy { down_per_minute: Some(1), ..policy() });
    assert_eq!((world.stays(3.0, 100).last(), world.wanted), (Some(&Reason::Pace), 7));
}
