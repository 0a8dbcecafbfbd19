//! What the decision of mode Operator never does, whatever the pods tell.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::time::Duration;

use ortolan_operator::scaling::{Decision, History, Policy, Reading, decide, decide::Now};
use proptest::prelude::*;

const PERIOD: Duration = Duration::from_secs(2);

/// What happens until the next reading.
#[derive(Debug, Clone)]
struct Moment {
    /// Samples in all pods.
    load: f64,
    refused: u64,
    /// Share of the wanted pods that are ready.
    ready: f64,
    /// Share of the ready ones that do not tell.
    silent: f64,
    in_rollout: bool,
    /// Periods in which nothing is read.
    gap: u32,
}

fn moment() -> impl Strategy<Value = Moment> {
    let load = prop_oneof![Just(0.0), 0.0..400.0, 0.0..40.0];
    let refused = prop_oneof![4 => Just(0), 1 => 1u64..5000];
    let share = prop_oneof![3 => Just(1.0), 1 => 0.0..1.0];
    let silent = prop_oneof![3 => Just(0.0), 1 => 0.0..1.0];
    let gap = prop_oneof![9 => Just(0), 1 => 0u32..12];
    (load, refused, share, silent, prop::bool::weighted(0.1), gap).prop_map(
        |(load, refused, ready, silent, in_rollout, gap)| Moment { load, refused, ready, silent, in_rollout, gap },
    )
}

/// Moments that last: a load stays for a few readings or for minutes.
fn moments() -> impl Strategy<Value = Vec<Moment>> {
    let lasting = (moment(), prop_oneof![1usize..5, 20usize..250]);
    prop::collection::vec(lasting, 1..12)
        .prop_map(|all| all.into_iter().flat_map(|(moment, times)| vec![moment; times]).collect())
}

fn policy() -> impl Strategy<Value = Policy> {
    (1u32..4, 0u32..30, 1.0..20.0).prop_map(|(min, more, target)| with(min, min + more, target))
}

/// The defaults.
fn with(min: u32, max: u32, target: f64) -> Policy {
    let signed = |number| i32::try_from(number).unwrap();
    let scaling = crds::resource::Scaling {
        min_replicas: signed(min),
        max_replicas: Some(signed(max)),
        ..crds::resource::Scaling::default()
    };
    Policy { inflight_per_replica: Some(target), ..Policy::from(&scaling) }
}

/// A model whose decisions are carried out.
struct World {
    policy: Policy,
    history: History,
    at: Duration,
    wanted: u32,
    load_time: Duration,
}

/// A decision beside what it came from.
struct Decided {
    at: Duration,
    wanted: u32,
    last: Reading,
    in_rollout: bool,
    decision: Decision,
}

impl World {
    fn of(policy: Policy, wanted: u32) -> Self {
        let (at, load_time) = (Duration::ZERO, Duration::from_secs(5));
        Self { policy, history: History::begin(at, wanted), at, wanted, load_time }
    }

    fn live(&mut self, moment: &Moment) -> Decided {
        self.at += PERIOD * moment.gap;
        // Decided also where nothing new was read.
        if moment.gap > 0 && self.history.last().is_some() {
            return self.decide(moment.in_rollout);
        }
        let ready = (f64::from(self.wanted) * moment.ready) as u32;
        let silent = (f64::from(ready) * moment.silent) as u32;
        self.read(Reading {
            ready,
            counted: ready - silent,
            load: moment.load,
            load_now: moment.load,
            refused: moment.refused,
            answered: 1000,
            ..Reading::default()
        });
        self.decide(moment.in_rollout)
    }

    fn read(&mut self, reading: Reading) {
        self.at += PERIOD;
        self.history.read(Reading { at: self.at, span: PERIOD, ..reading }, self.policy.stable_window);
    }

    fn decide(&mut self, in_rollout: bool) -> Decided {
        let (at, wanted) = (self.at, self.wanted);
        let now = Now { at, wanted, in_rollout, load_time: self.load_time };
        let decision = decide(&self.history, &self.policy, &now);
        self.history.decided(at, wanted, &decision, &self.policy);
        self.wanted = decision.desired;
        Decided { at, wanted, last: self.history.last().cloned().unwrap_or_default(), in_rollout, decision }
    }

    /// So many readings of a load that all wanted pods carry; whether the number changed.
    fn stays(&mut self, load: f64, readings: u32) -> bool {
        let before = self.wanted;
        (0..readings).any(|_| {
            self.read(Reading { ready: self.wanted, counted: self.wanted, load, load_now: load, ..Reading::default() });
            self.decide(false);
            self.wanted != before
        })
    }

    fn windows(&self, count: u32) -> u32 {
        count * u32::try_from(self.policy.down_stabilization.as_secs() / PERIOD.as_secs() + 1).unwrap()
    }
}

fn run(policy: &Policy, wanted: u32, moments: &[Moment]) -> Vec<Decided> {
    let mut world = World::of(policy.clone(), wanted);
    moments.iter().map(|moment| world.live(moment)).collect()
}

/// Numbers that nothing may follow from.
fn is_missing(it: &Decided, policy: &Policy) -> bool {
    it.last.ready == 0 || it.last.counted * 2 < it.last.ready || it.at - it.last.at > policy.stale_after
}

proptest! {
    // Hours of readings in each case.
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn nothing_is_kept_for_longer_than_the_longest_window(policy in policy(), moments in moments(), load_time in 0u64..600) {
        let mut world = World { load_time: Duration::from_secs(load_time), ..World::of(policy.clone(), policy.max) };
        for moment in &moments {
            world.live(moment);
        }
        // The average falls, what came last shows what it carries, and the rest goes by halves.
        let readings = (policy.return_stabilization + Duration::from_secs(3 * load_time + 3600)).as_secs() / PERIOD.as_secs();
        for _ in 0..readings {
            world.stays(0.0, 1);
        }
        prop_assert_eq!(world.wanted, policy.min);
    }
}

proptest! {
    #[test]
    fn the_number_is_always_within_the_bounds(policy in policy(), wanted in 1u32..60, moments in moments()) {
        for it in run(&policy, wanted, &moments) {
            prop_assert!((policy.min..=policy.max).contains(&it.decision.desired), "{:?}", it.decision);
        }
    }

    #[test]
    fn none_stay_none_whatever_the_load(policy in policy(), moments in moments()) {
        prop_assert!(run(&policy, 0, &moments).iter().all(|it| it.decision.desired == 0));
    }

    #[test]
    fn nothing_changes_on_missing_or_old_numbers(policy in policy(), moments in moments()) {
        for it in run(&policy, policy.min, &moments) {
            if is_missing(&it, &policy) {
                prop_assert_eq!(it.decision.desired, it.wanted);
            }
        }
    }

    #[test]
    fn nothing_goes_in_a_rollout(policy in policy(), moments in moments()) {
        for it in run(&policy, policy.max, &moments) {
            prop_assert!(!it.in_rollout || it.decision.desired >= it.wanted);
        }
    }

    #[test]
    fn what_was_recommended_within_the_window_is_kept(policy in policy(), moments in moments()) {
        let decided = run(&policy, policy.max, &moments);
        for (number, it) in decided.iter().enumerate().filter(|(_, it)| it.decision.desired < it.wanted) {
            prop_assert!(it.at > policy.down_stabilization, "the first window is not over");
            let most_of = |window: Duration| {
                let recent = decided[..number].iter().filter(|other| other.at + window >= it.at);
                recent.map(|other| other.decision.recommended).max().unwrap_or_default()
            };
            // Pods that are not ready may go after a shorter time, and no one else.
            let is_without_late_comers = it.decision.desired >= it.last.ready;
            let window = if is_without_late_comers { policy.stable_window } else { policy.down_stabilization };
            let most = most_of(window);
            prop_assert!(it.decision.desired >= most, "{} of {most}", it.decision.desired);
        }
    }

    #[test]
    fn a_given_time_is_kept_to_whatever_comes_back(seconds in 0u64..3600) {
        let given = Duration::from_secs(seconds);
        let scale_down = crds::resource::ScaleDown {
            stabilization: Some(format!("{seconds}s").parse().unwrap()),
            ..crds::resource::ScaleDown::default()
        };
        let behavior = crds::resource::Behavior { scale_down: Some(scale_down), ..crds::resource::Behavior::default() };
        let scaling = crds::resource::Scaling { behavior: Some(behavior), ..crds::resource::Scaling::default() };
        let policy = Policy::from(&scaling);
        prop_assert_eq!((policy.down_stabilization, policy.return_stabilization), (given, given));
    }

    #[test]
    fn pods_that_never_get_ready_wind_nothing_up(
        room in 1u32..6, target in 1.0..20.0, full in 0.5..8.0, refused in 0u64..3000, readings in 1usize..600,
    ) {
        let mut world = World::of(with(1, 1000, target), room);
        // Those that are ready carry what they carry, however many are asked for.
        let load = full * target * f64::from(room);
        for _ in 0..readings {
            let reading = Reading { ready: room, counted: room, load, load_now: load, ..Reading::default() };
            world.read(Reading { refused, answered: 1000, ..reading });
            world.decide(false);
        }
        let by_load = (load / target).ceil() as u32 + 1;
        let by_one_step = room + (room / 4).max(1);
        prop_assert!(world.wanted <= by_load.max(by_one_step), "{} of {by_load}, {by_one_step}", world.wanted);
    }

    #[test]
    fn whoever_leads_next_changes_nothing_at_a_steady_load(target in 1.0..20.0, load in 0.0..300.0) {
        let mut world = World::of(with(1, 40, target), 3);
        for _ in 0..40 {
            world.stays(load, world.windows(1));
        }
        world.history = History::begin(world.at, world.wanted);
        prop_assert!(!world.stays(load, world.windows(3)));
    }

    #[test]
    fn whoever_leads_next_takes_nothing_away_before_it_has_seen_a_window(policy in policy(), moments in moments()) {
        let mut world = World::of(policy.clone(), policy.max);
        let (before, after) = moments.split_at(moments.len() / 2);
        for moment in before {
            world.live(moment);
        }
        let changed = world.at;
        world.history = History::begin(changed, world.wanted);
        for it in after.iter().map(|moment| world.live(moment)) {
            let is_new = it.at <= changed + policy.down_stabilization;
            prop_assert!(!is_new || it.decision.desired >= it.wanted);
        }
    }

    #[test]
    fn a_pod_that_vanishes_or_counts_anew_changes_nothing(
        target in 1.0..20.0, load in 0.0..300.0, told in 0.0..1.0, readings in 1u32..4,
    ) {
        let mut world = World::of(with(1, 40, target), 3);
        for _ in 0..40 {
            world.stays(load, world.windows(1));
        }
        let settled = world.wanted;
        for _ in 0..readings {
            // One is not there, and the others tell a share of what they carry: counters that were reset are small.
            let ready = settled.saturating_sub(1);
            let load = load * told;
            world.read(Reading { ready, counted: ready, load, load_now: load, ..Reading::default() });
            prop_assert_eq!(world.decide(false).decision.desired, settled);
        }
        prop_assert!(!world.stays(load, world.windows(2)));
    }
}
