//! Loads that went and come back.

use super::*;

/// Six replicas of a model that loads slowly, whose load goes for two minutes, in which five are let go, and comes back.
fn after_a_return(policy: Policy) -> World {
    let mut world = World::of(6, Policy { down_share: 1.0, ..policy });
    world.load_time = Duration::from_secs(30);
    world.stays(20.0, 120);
    world.stays(1.0, 120);
    assert_eq!(world.wanted, 1);
    world.stays(20.0, 120);
    assert!(world.wanted >= 5, "{}", world.wanted);
    world
}

/// For how long replicas stay once the load has gone; the window of the average is no part of it.
fn seconds_kept(world: &mut World) -> u64 {
    let (begin, before) = (world.at, world.wanted);
    while world.wanted == before {
        world.read(1.0);
    }
    (world.at - begin).as_secs().saturating_sub(world.policy.stable_window.as_secs())
}

#[test]
fn what_went_and_came_back_is_kept_for_longer_and_says_why() {
    let mut world = World::of(6, Policy { down_share: 1.0, ..policy() });
    world.load_time = Duration::from_secs(30);
    world.stays(20.0, 120);
    let first = seconds_kept(&mut world);
    assert!((32..=62).contains(&first), "a step down that nothing came before: {first} s");
    let mut world = after_a_return(policy());
    assert_eq!(world.stays(1.0, 280).last(), Some(&Reason::Returning));
    assert!(world.wanted >= 5);
    let mut world = after_a_return(policy());
    let kept = seconds_kept(&mut world);
    assert!((272..=302).contains(&kept), "never over the bound: {kept} s");
}

#[test]
fn what_loads_soon_is_kept_for_less_and_never_for_less_than_without() {
    let mut world = after_a_return(policy());
    world.load_time = Duration::from_secs(7);
    let kept = seconds_kept(&mut world);
    assert!((112..=142).contains(&kept), "twenty times as long as it loads: {kept} s");
    let mut world = after_a_return(policy());
    world.load_time = Duration::from_secs(1);
    let kept = seconds_kept(&mut world);
    assert!((32..=62).contains(&kept), "{kept} s");
}

#[test]
fn a_load_that_stays_is_not_expected_to_go_and_come_back_for_ever() {
    let mut world = after_a_return(policy());
    world.stays(20.0, 1200);
    let kept = seconds_kept(&mut world);
    assert!((32..=62).contains(&kept), "{kept} s");
}

#[test]
fn a_stabilization_that_is_given_is_kept_to_whatever_comes_back() {
    let given = crds::resource::ScaleDown {
        stabilization: Some("60s".parse().unwrap()),
        ..crds::resource::ScaleDown::default()
    };
    let behavior = crds::resource::Behavior { scale_down: Some(given), ..crds::resource::Behavior::default() };
    let scaling = crds::resource::Scaling { behavior: Some(behavior), ..crds::resource::Scaling::default() };
    let Policy { down_stabilization, return_stabilization, .. } = Policy::from(&scaling);
    let mut world = after_a_return(Policy { down_stabilization, return_stabilization, ..policy() });
    let kept = seconds_kept(&mut world);
    assert!((32..=62).contains(&kept), "{kept} s");
}

#[test]
fn a_load_that_swings_or_comes_back_late_is_no_return() {
    let kept_after = |low: f64, seconds: u64| {
        let mut world = World::of(6, Policy { down_share: 1.0, ..policy() });
        world.load_time = Duration::from_secs(30);
        world.stays(20.0, 120);
        world.stays(low, seconds);
        world.stays(20.0, 120);
        seconds_kept(&mut world)
    };
    assert!(kept_after(8.0, 120) <= 62, "three of six stayed");
    assert!(kept_after(1.0, 400) <= 62, "no bound would have kept them");
    assert!(kept_after(1.0, 120) > 62);
}

#[test]
fn numbers_that_are_missing_for_a_moment_are_no_return() {
    let mut world = World::of(6, policy());
    world.load_time = Duration::from_secs(30);
    world.stays(20.0, 120);
    world.in_rollout = true;
    world.stays(1.0, 120);
    world.silent = 4;
    assert_eq!((world.read(1.0), world.wanted), (Reason::Stale, 6));
    world.silent = 0;
    assert_eq!(world.history.last_return(), None);
}

#[test]
fn who_begins_anew_does_not_know_of_returns_and_lets_nothing_go_at_once() {
    let mut world = after_a_return(policy());
    let before = world.wanted;
    world.stays(1.0, 200);
    assert_eq!(world.wanted, before);
    world.history = History::begin(world.at, world.wanted);
    assert_eq!((world.stays(1.0, 58), world.wanted), (vec![Reason::Stabilizing], before));
    world.stays(1.0, 60);
    assert!(world.wanted < before);
}

/// Runs four samples in a replica at most, which takes two minutes to start, a minute of it loading. Half a minute of a load for eight
/// replicas and fifty seconds of next to none, for 28 minutes; how often the number changed, and the most replicas that were ever ready.
fn on_and_off(stabilization: Option<&str>) -> (usize, u32) {
    let scale_down = crds::resource::ScaleDown {
        stabilization: stabilization.map(|given| given.parse().unwrap()),
        ..crds::resource::ScaleDown::default()
    };
    let behavior = crds::resource::Behavior { scale_down: Some(scale_down), ..crds::resource::Behavior::default() };
    let scaling = crds::resource::Scaling {
        max_replicas: Some(10),
        behavior: Some(behavior),
        ..crds::resource::Scaling::default()
    };
    let mut world = World::of(1, Policy { inflight_per_replica: Some(4.0), ..Policy::from(&scaling) });
    world.load_time = Duration::from_secs(60);
    let (mut changes, mut most_ready, mut pods) = (0, 0, vec![Duration::ZERO]);
    while world.at < Duration::from_secs(28 * 60) {
        let is_on = world.at.as_secs() % 80 < 30;
        world.room = u32::try_from(pods.iter().filter(|since| **since <= world.at).count()).unwrap();
        most_ready = most_ready.max(world.room);
        let running = if is_on { 4 * world.room } else { 2 };
        let queued = if is_on { 32 - running.min(32) } else { 0 };
        let before = world.wanted;
        world.read_as(Reading {
            load: f64::from(running + queued),
            load_now: f64::from(running + queued),
            queued: f64::from(queued),
            queued_now: f64::from(queued),
            refused: if queued > 0 { 40 } else { 0 },
            answered: u64::from(running) * 10,
            ..Reading::default()
        });
        changes += usize::from(before != world.wanted);
        pods.resize(world.wanted as usize, world.at + Duration::from_secs(120));
    }
    (changes, most_ready)
}

#[test]
fn replicas_on_their_way_are_kept_for_a_load_that_comes_back() {
    let (changes, most_ready) = on_and_off(None);
    assert!(most_ready >= 8 && changes < 12, "{changes} changes, {most_ready} ready");
    let (changes, most_ready) = on_and_off(Some("10m"));
    assert!(most_ready >= 8 && changes < 8, "{changes} changes, {most_ready} ready");
    let (_, most_ready) = on_and_off(Some("0s"));
    assert_eq!(most_ready, 1, "none at all is given");
}
