//! Which revision gets how many replicas: a pure function of what is there, what is wanted and the time.
//!
//! ```text
//! Surge     +1 ▸ ready ▸ −1 …        never fewer ready pods than wanted
//! InPlace   −1 ▸ gone ▸ +1 ▸ ready … never more pods than wanted
//! Recreate  −all ▸ gone ▸ +all       never two revisions at once
//! Auto      Surge, until a new pod has been unschedulable for surgeTimeout; from then on InPlace
//! ```
//!
//! Where the room of an old pod does not help a new one, it comes back after another surgeTimeout: Auto is Surge again then, and makes
//! no room any more.
//!
//! More may be wanted than there is room for. Pods without room make none, so in place it goes by those that have it; once all of
//! them are of the goal, it has taken over. Replicas that are added while a surge is under way go to the revision that has proved
//! itself.
//!
//! The *target* is the revision that the spec asks for, the *goal* the one that is worked towards: the target, or, once
//! the target was given up, the revision that served before it. Whatever must be remembered stands in a [`Record`] for
//! each revision, which is kept on its ConfigMap: a new process goes on where the last one ended.

use std::{cmp::Reverse, collections::BTreeMap, time::Duration};

use crds::resource::RolloutStrategy;
use k8s_openapi::jiff::Timestamp;

use crate::clock::later;

/// Who leads anew gives nothing up sooner.
const LOOKS_FIRST: Duration = Duration::from_secs(60);

/// All that the plan depends on.
#[derive(Debug, Clone)]
pub struct Situation {
    /// Hash of the revision that the spec asks for; one of `revisions`.
    pub target: String,
    /// Every revision that is kept, by its hash.
    pub revisions: BTreeMap<String, Revision>,
    /// Pods that should serve.
    pub wanted: u32,
    /// Which pods go first.
    pub strategy: RolloutStrategy,
    /// How long a new pod may stay unschedulable before an old one makes room for it.
    pub surge_timeout: Duration,
    /// How long the target may take without progress.
    pub progress_deadline: Duration,
    /// The spec cannot be acted on: by its deadline nothing is given up, and nothing tried again.
    pub is_refused: bool,
    /// What is wrong with the target's pods right now, or what they are at, for the record if it is given up.
    pub cause: Option<String>,
    /// Since when somebody has led: before that nobody may have gone on with it.
    pub led_since: Timestamp,
    /// The time.
    pub now: Timestamp,
}

/// What there is of one revision.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Revision {
    /// Replicas that its Deployment asks for.
    pub replicas: u32,
    /// Its pods, those that are ending included.
    pub pods: Vec<PodFacts>,
    /// What is remembered of it.
    pub record: Record,
}

/// What matters of a pod.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PodFacts {
    /// Since when it is ready; none if it is not.
    pub ready_since: Option<Timestamp>,
    /// It has been told to end.
    pub terminating: bool,
    /// Since when the scheduler has had no room for it.
    pub unschedulable_since: Option<Timestamp>,
}

/// What is remembered of a revision.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Record {
    /// Since when the spec has asked for it.
    pub target_since: Option<Timestamp>,
    /// When it got its first pod since then.
    pub began: Option<Timestamp>,
    /// When it last took over completely.
    pub completed: Option<Timestamp>,
    /// When and why it was given up, since it became the target.
    pub failed: Option<Failure>,
    /// Since when old pods make room for its own.
    pub terminating_first: Option<Timestamp>,
    /// Since when that room has been free, and its own pods still wait.
    pub room_since: Option<Timestamp>,
    /// Pods that there is room for, where its own have waited for some.
    pub places: Option<u32>,
}

/// Why a revision was given up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// When.
    pub at: Timestamp,
    /// What was wrong with its pods then.
    pub cause: String,
    /// The deadline that had passed, where it was noted.
    pub deadline: Option<Duration>,
}

/// What to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// Replicas of each revision.
    pub replicas: BTreeMap<String, u32>,
    /// The same of all but [`active`](Self::active), should its Deployment be refused: then no other makes room for it, and what is
    /// wanted goes for them alone.
    pub without_active: BTreeMap<String, u32>,
    /// Share of the requests that each revision gets, in percent; all 0 while no pod is ready.
    pub weights: BTreeMap<String, u32>,
    /// The revision that serves or is about to.
    pub active: String,
    /// How far it is.
    pub stage: Stage,
    /// The target's deadline has passed, though it is not given up for that: the spec cannot be acted on.
    pub is_overdue: bool,
    /// What is to be remembered of each revision.
    pub records: BTreeMap<String, Record>,
    /// When the plan changes if nothing else does.
    pub look_again: Option<Timestamp>,
}

/// How far a rollout is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// Only the target has pods.
    Complete,
    /// New pods come before old ones go.
    Surging,
    /// A new pod has no node.
    WaitingForCapacity,
    /// Old pods go before new ones come.
    TerminatingFirst,
    /// The target was not ready in time, and there is none to go back to.
    ProgressDeadlineExceeded,
    /// The target was not ready in time, and the revision before it serves again.
    RolledBack,
}

/// Decides.
#[must_use]
pub fn plan(situation: &Situation) -> Plan {
    let mut records: BTreeMap<String, Record> =
        situation.revisions.iter().map(|(hash, revision)| (hash.clone(), revision.record.clone())).collect();
    turn_to_target(situation, &mut records);
    let mut look_again = give_up_in_time(situation, &mut records);
    let is_overdue = situation.is_refused && is_overdue(situation, &records);

    let goal = goal(situation, &records);
    look_again = earliest(look_again, make_room_in_time(situation, &goal, &mut records));
    look_again = earliest(look_again, give_room_back_in_time(situation, &goal, &mut records));
    look_again = earliest(look_again, waits_until(situation).filter(|until| *until > situation.now));
    let replicas = replicas(situation, &goal, &records[&goal]);
    let without_active = without(situation, &goal, &records[&goal]);

    remember_beginning(situation, &replicas, &mut records);
    let stage = stage(situation, &goal, &replicas, &mut records);
    let weights = weights(situation, &goal);
    Plan { replicas, without_active, weights, active: goal, stage, is_overdue, records, look_again }
}

/// A revision that becomes the target starts anew: what it failed at before counts no longer.
fn turn_to_target(situation: &Situation, records: &mut BTreeMap<String, Record>) {
    let last = records.iter().filter(|(_, record)| record.target_since.is_some());
    // Annotations may tell of the same time for two of them: then it is no other one that was turned to since.
    let last = last.max_by_key(|(hash, record)| (record.target_since, **hash == situation.target));
    let last = last.map(|(hash, it)| (hash.clone(), it.target_since));
    if last.as_ref().is_some_and(|(hash, _)| *hash == situation.target) {
        return;
    }
    // Later than all others, even if the clock was set back.
    let after = last.as_ref().and_then(|(_, since)| *since).map(|since| later(since, Duration::from_millis(1)));
    let target_since = after.map_or(situation.now, |after| after.max(situation.now));
    if let Some((hash, Some(since))) = last {
        accept_what_serves(situation, &hash, since, records);
    }
    let record = records.entry(situation.target.clone()).or_default();
    *record = Record { target_since: Some(target_since), completed: record.completed, ..Record::default() };
}

/// What serves with some of its pods only, for others do not come, has never taken over; where nothing else has either, it is what there
/// is to go back to all the same.
fn accept_what_serves(situation: &Situation, hash: &str, since: Timestamp, records: &mut BTreeMap<String, Record>) {
    let none_is_proven = !situation.revisions.values().any(Revision::is_proven);
    let serves = situation.revisions.get(hash).is_some_and(|revision| revision.ready() > 0);
    if let Some(record) = records.get_mut(hash).filter(|_| none_is_proven && serves) {
        (record.completed, record.failed) = (Some(since), None);
    }
}

/// The target is given up once its [`deadline`] has passed. One that was given up by a shorter deadline gets another try.
fn give_up_in_time(situation: &Situation, records: &mut BTreeMap<String, Record>) -> Option<Timestamp> {
    let record = records.get_mut(&situation.target)?;
    let is_longer = |failure: &Failure| failure.deadline.is_some_and(|it| it < situation.progress_deadline);
    if !situation.is_refused && record.failed.as_ref().is_some_and(is_longer) {
        *record = Record { target_since: record.target_since, completed: record.completed, ..Record::default() };
    }
    let deadline = deadline(situation, record)?;
    if situation.now < deadline {
        return Some(deadline);
    }
    if !situation.is_refused {
        let cause = situation.cause.clone().unwrap_or_else(|| "its pods were not ready in time".to_owned());
        record.failed = Some(Failure { at: situation.now, cause, deadline: Some(situation.progress_deadline) });
    }
    None
}

fn is_overdue(situation: &Situation, records: &BTreeMap<String, Record>) -> bool {
    let deadline = records.get(&situation.target).and_then(|record| deadline(situation, record));
    deadline.is_some_and(|deadline| deadline <= situation.now)
}

/// When the target has made no progress for `progress_deadline`, if that goes on: no pod of it turned ready. None where it has taken
/// over or was given up.
///
/// Who leads anew looks a while first: nobody has gone on with it in the meantime, and what is ready may not have been told yet.
fn deadline(situation: &Situation, record: &Record) -> Option<Timestamp> {
    let target = situation.target();
    if takes_over(situation) || completed(record) || record.failed.is_some() {
        return None;
    }
    // While it waits for room that may still be made for it, and while that is made, it cannot get on.
    let may_get_room = situation.strategy == RolloutStrategy::Auto
        && record.terminating_first.is_none()
        && record.places.is_none()
        && situation.others(&situation.target).any(|(_, revision)| revision.replicas > 0);
    let waits_until = target.waits_since().filter(|_| may_get_room).map(|since| later(since, situation.surge_timeout));
    let moved = [target.last_ready(), record.terminating_first, waits_until].into_iter().flatten().max();
    let deadline = later(record.began?.max(moved.unwrap_or(Timestamp::MIN)), situation.progress_deadline);
    Some(deadline.max(later(situation.led_since, LOOKS_FIRST)))
}

/// The target, or what served before it if the target was given up.
fn goal(situation: &Situation, records: &BTreeMap<String, Record>) -> String {
    let target = &situation.target;
    if records[target].failed.is_none() {
        return target.clone();
    }
    let served = records.iter().filter(|(hash, record)| *hash != target && record.completed.is_some());
    // What has been given up since it served is the last that one would go back to.
    let best = served.max_by_key(|(_, record)| (record.failed.is_none(), record.completed));
    best.map_or_else(|| target.clone(), |(hash, _)| hash.clone())
}

/// With Auto: a new pod that has been unschedulable for `surge_timeout` gets the room of an old one.
///
/// How many pods have room is noted then, and in place also where fewer have it than are wanted: each that goes makes a place, and
/// a new pod that has not taken it yet looks like one that there is none for. So nothing is noted while pods are ending.
fn make_room_in_time(situation: &Situation, goal: &str, records: &mut BTreeMap<String, Record>) -> Option<Timestamp> {
    let others_remain = situation.others(goal).any(|(_, revision)| revision.replicas > 0);
    let mut pods = situation.revisions.values().flat_map(|revision| &revision.pods);
    let at_goal = situation.revisions.get(goal)?;
    let record = records.get_mut(goal).filter(|record| record.places.is_none())?;
    let is_in_place = is_in_place(situation.strategy, record);
    if !others_remain
        || pods.any(|pod| pod.terminating)
        || !(is_in_place || situation.strategy == RolloutStrategy::Auto)
    {
        return None;
    }
    let with_room = situation.revisions.values().map(Revision::with_room).sum();
    if is_in_place {
        if at_goal.replicas == 0 && situation.others(goal).any(|(_, revision)| revision.waits_since().is_some()) {
            record.places = Some(with_room);
            return None;
        }
        // A first pod for which one place was made may be one that no place is good for.
        if with_room + 1 >= situation.wanted && at_goal.ready() == 0 {
            return None;
        }
    }
    let patience_ends = later(at_goal.waits_since()?, situation.surge_timeout);
    if situation.now < patience_ends {
        return Some(patience_ends);
    }
    if situation.strategy == RolloutStrategy::Auto {
        record.terminating_first.get_or_insert(situation.now);
    }
    record.places = Some(with_room);
    None
}

/// With Auto: room that has been free for `surge_timeout` and that no new pod has taken goes back to an old one. That it was made
/// stays noted, so that none is made again.
fn give_room_back_in_time(
    situation: &Situation,
    goal: &str,
    records: &mut BTreeMap<String, Record>,
) -> Option<Timestamp> {
    let at_goal = situation.revisions.get(goal)?;
    let record = records.get_mut(goal)?;
    let mut pods = situation.revisions.values().flat_map(|revision| &revision.pods);
    let others_have_room: u32 = situation.others(goal).map(|(_, revision)| revision.with_room()).sum();
    let is_free = !pods.any(|pod| pod.terminating) && others_have_room < situation.wanted;
    let still_waits = at_goal.waits_since().is_some() && at_goal.with_room() == 0;
    // What has taken over keeps the note of how it did.
    let is_made =
        situation.strategy == RolloutStrategy::Auto && record.terminating_first.is_some() && !completed(record);
    if !(is_made && is_free && still_waits) {
        record.room_since = None;
        return None;
    }
    let patience_ends = later(*record.room_since.get_or_insert(situation.now), situation.surge_timeout);
    if situation.now < patience_ends {
        return Some(patience_ends);
    }
    (record.terminating_first, record.room_since) = (None, None);
    record.places.get_or_insert(others_have_room);
    None
}

fn is_in_place(strategy: RolloutStrategy, record: &Record) -> bool {
    match strategy {
        RolloutStrategy::Surge | RolloutStrategy::Recreate => false,
        RolloutStrategy::InPlace => true,
        RolloutStrategy::Auto => record.terminating_first.is_some(),
    }
}

/// Replicas of each revision.
fn replicas(situation: &Situation, goal: &str, record: &Record) -> BTreeMap<String, u32> {
    let at_goal = situation.revisions.get(goal).cloned().unwrap_or_default();
    let (mut replicas, given) = match situation.strategy {
        RolloutStrategy::Recreate => recreated(situation, goal, &at_goal),
        _ if is_in_place(situation.strategy, record) => in_place(situation, goal, &at_goal, record),
        _ => surged(situation, goal, &at_goal, record),
    };
    replicas.insert(goal.to_owned(), given);
    replicas
}

/// Those of the others, and of the goal.
type Shares = (BTreeMap<String, u32>, u32);

fn recreated(situation: &Situation, goal: &str, at_goal: &Revision) -> Shares {
    let are_gone = situation.others(goal).all(|(_, revision)| revision.pods.is_empty());
    let given = if are_gone { situation.wanted } else { at_goal.replicas.min(situation.wanted) };
    (kept(situation, goal, 0), given)
}

fn surged(situation: &Situation, goal: &str, at_goal: &Revision, record: &Record) -> Shares {
    let wanted = situation.wanted;
    let mut keep = wanted.saturating_sub(at_goal.ready());
    let mut others = kept(situation, goal, keep);
    let sum = |others: &BTreeMap<String, u32>| others.values().sum::<u32>();
    keep -= sum(&others);
    // More are wanted than when it began. What the goal has been given stays its own.
    let further = (wanted + 1).saturating_sub(at_goal.replicas).saturating_sub(sum(&others)).min(keep);
    let proven = || situation.others(goal).filter(|(_, revision)| revision.is_proven());
    let last = |(_, revision): &(&String, &Revision)| revision.record.completed;
    // It may have made room for nothing.
    let comes_back = at_goal.ready() == 0 && record.places.is_some() && !completed(record);
    let serving = proven().filter(|(_, revision)| revision.replicas > 0 || comes_back).max_by_key(last);
    // Somebody else has taken its pods away, which are ending.
    let is_robbed = |revision: &Revision| !revision.pods.is_empty() && !completed(record) && !situation.is_refused;
    let robbed = || proven().max_by_key(last).filter(|(_, revision)| is_robbed(revision));
    if let Some((hash, _)) = serving.or_else(robbed)
        && at_goal.replicas > 0
    {
        *others.entry(hash.clone()).or_default() += further;
    }
    // What was given is not taken back while old pods end.
    let given = (wanted + 1).saturating_sub(sum(&others)).min(wanted).max(at_goal.replicas.min(wanted));
    (others, given)
}

fn in_place(situation: &Situation, goal: &str, at_goal: &Revision, record: &Record) -> Shares {
    let with_room: u32 = situation.others(goal).map(|(_, revision)| revision.with_room()).sum();
    // Once no other has a place, all are the goal's, and those that come.
    let places = record.places.filter(|_| with_room > 0).unwrap_or(u32::MAX);
    let wanted = situation.wanted.min(places);
    // Of those that have no room one waits for that of an old one; more of them would make no more room.
    let given = at_goal.replicas.min(wanted).min(at_goal.with_room() + 1);
    // The next old pod goes once all new ones that were asked for are ready.
    let next = u32::from(at_goal.ready() >= given);
    let others = kept(situation, goal, wanted.saturating_sub(given).saturating_sub(next));
    let held = with_room.max(others.values().sum());
    (others, wanted.saturating_sub(held).max(given))
}

/// Replicas of the others where nothing more of the goal is to be had: what there is stays as far as it is wanted, and until the goal
/// has taken over, the one that served last gets what is missing.
fn without(situation: &Situation, goal: &str, record: &Record) -> BTreeMap<String, u32> {
    let wanted = situation.wanted.saturating_sub(situation.revisions.get(goal).map_or(0, Revision::ready));
    let mut others = kept(situation, goal, wanted);
    if completed(record) {
        return others;
    }
    let missing = wanted.saturating_sub(others.values().sum());
    let proven = situation.others(goal).filter(|(_, revision)| revision.is_proven());
    if let Some((hash, _)) = proven.max_by_key(|(_, revision)| revision.record.completed) {
        *others.entry(hash.clone()).or_default() += missing;
    }
    others
}

/// Shares `keep` pods out among the other revisions, the one that served last first: ready pods, then, of revisions that
/// have proved themselves, others too, for a pod that misses one probe is not lost. What was never ready only holds what a
/// new pod may need.
fn kept(situation: &Situation, goal: &str, mut keep: u32) -> BTreeMap<String, u32> {
    let mut others: Vec<(&String, &Revision)> = situation.others(goal).collect();
    others.sort_by_key(|(_, revision)| Reverse(revision.record.completed));
    let mut replicas = BTreeMap::new();
    for (hash, revision) in &others {
        let ready = revision.replicas.min(revision.ready()).min(keep);
        keep -= ready;
        replicas.insert((*hash).clone(), ready);
    }
    for (hash, revision) in others.iter().filter(|(_, revision)| revision.is_proven()) {
        let kept = replicas.entry((*hash).clone()).or_default();
        let more = revision.replicas.saturating_sub(*kept).min(keep);
        keep -= more;
        *kept += more;
    }
    replicas
}

/// The deadline runs from the first pod on, and stands still while no pod is wanted. It runs anew with the step that follows once all
/// pods that were asked for are ready: that it comes late may be because nobody was there to take it.
fn remember_beginning(situation: &Situation, replicas: &BTreeMap<String, u32>, records: &mut BTreeMap<String, Record>) {
    let Some(record) = records.get_mut(&situation.target) else { return };
    if record.failed.is_some() || completed(record) {
        return;
    }
    let target = situation.target();
    let given = replicas.get(&situation.target).copied().unwrap_or_default();
    let is_less = |(hash, other): (&String, &Revision)| replicas.get(hash).is_some_and(|it| *it < other.replicas);
    let is_step = given > target.replicas || situation.others(&situation.target).any(is_less);
    // Once for each pod that turned ready, though the step may have to be tried again and again.
    let is_news = record.began.is_some_and(|began| target.last_ready().is_some_and(|ready| ready >= began));
    let goes_on = is_step && is_news && target.ready() >= target.replicas;
    record.began = (given > 0).then(|| record.began.filter(|_| !goes_on).unwrap_or(situation.now));
}

fn stage(
    situation: &Situation,
    goal: &str,
    replicas: &BTreeMap<String, u32>,
    records: &mut BTreeMap<String, Record>,
) -> Stage {
    if goal != situation.target {
        return Stage::RolledBack;
    }
    let target = situation.target();
    let alone = replicas.iter().all(|(hash, replicas)| hash == goal || *replicas == 0);
    let Some(record) = records.get_mut(goal) else { return Stage::Surging };
    if alone && situation.wanted > 0 && takes_over(situation) && !completed(record) {
        // Where another clock, or this one before it was set back, has noted a later time, not before that.
        record.completed = record.target_since.max(Some(situation.now));
        (record.failed, record.room_since, record.places) = (None, None, None);
    }
    if alone && (completed(record) || situation.wanted == 0) {
        return Stage::Complete;
    }
    if record.failed.is_some() {
        return Stage::ProgressDeadlineExceeded;
    }
    let in_place = is_in_place(situation.strategy, record);
    let has_predecessor = situation.others(goal).any(|(_, other)| other.replicas > 0 || !other.pods.is_empty());
    if has_predecessor && (in_place || situation.strategy == RolloutStrategy::Recreate) {
        return Stage::TerminatingFirst;
    }
    let waits = target.pods.iter().any(PodFacts::waits_for_room);
    if waits { Stage::WaitingForCapacity } else { Stage::Surging }
}

/// Whether the target is ready to be the only one: all of its pods are, or all that there is room for, where no other has a pod left
/// that could make some. The first one waits for room a while: it may come yet.
fn takes_over(situation: &Situation) -> bool {
    let target = situation.target();
    let has_served = situation.others(&situation.target).any(|(_, revision)| revision.record.completed.is_some());
    let are_gone = situation.others(&situation.target).all(|(_, revision)| revision.pods.is_empty());
    let waiting = count(target.pods.iter().filter(|pod| pod.waits_for_room()).count());
    let ready = target.ready();
    let has_waited = waits_until(situation).is_some_and(|until| until <= situation.now);
    let all_with_room = ready > 0 && ready + waiting >= situation.wanted;
    ready >= situation.wanted || (all_with_room && are_gone && (has_served || has_waited))
}

/// Until when the target's pods wait for room before it goes on without them.
fn waits_until(situation: &Situation) -> Option<Timestamp> {
    Some(later(situation.target().waits_since()?, situation.surge_timeout))
}

/// Whether it has taken over since it became the target.
fn completed(record: &Record) -> bool {
    record.completed.is_some() && record.completed >= record.target_since
}

/// Requests go to ready pods, to each the same number.
fn weights(situation: &Situation, goal: &str) -> BTreeMap<String, u32> {
    let total: u32 = situation.revisions.values().map(Revision::ready).sum();
    let share = |revision: &Revision| (revision.ready() * 100).checked_div(total).unwrap_or(0);
    let mut weights: BTreeMap<String, u32> =
        situation.revisions.iter().map(|(hash, revision)| (hash.clone(), share(revision))).collect();
    let given: u32 = weights.values().sum();
    if let Some(weight) = weights.get_mut(goal).filter(|weight| **weight > 0) {
        *weight += 100 - given;
    }
    weights
}

fn earliest(one: Option<Timestamp>, other: Option<Timestamp>) -> Option<Timestamp> {
    one.into_iter().chain(other).min()
}

fn count(number: usize) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}

impl Situation {
    fn target(&self) -> Revision {
        self.revisions.get(&self.target).cloned().unwrap_or_default()
    }

    fn others<'a>(&'a self, goal: &'a str) -> impl Iterator<Item = (&'a String, &'a Revision)> {
        self.revisions.iter().filter(move |(hash, _)| *hash != goal)
    }
}

impl PodFacts {
    fn waits_for_room(&self) -> bool {
        !self.terminating && self.unschedulable_since.is_some()
    }
}

impl Revision {
    /// It has served, and was not given up since.
    fn is_proven(&self) -> bool {
        self.record.completed.is_some() && self.record.failed.is_none()
    }

    /// Its pods that take up room, those that are ending included.
    fn with_room(&self) -> u32 {
        count(self.pods.iter().filter(|pod| pod.unschedulable_since.is_none()).count())
    }

    /// Since when the first of its pods has waited for room.
    fn waits_since(&self) -> Option<Timestamp> {
        self.pods.iter().filter(|pod| pod.waits_for_room()).filter_map(|pod| pod.unschedulable_since).min()
    }

    /// When a pod of it turned ready last.
    fn last_ready(&self) -> Option<Timestamp> {
        self.pods.iter().filter_map(|pod| pod.ready_since).max()
    }

    /// Its pods that serve and go on serving.
    fn ready(&self) -> u32 {
        count(self.pods.iter().filter(|pod| pod.ready_since.is_some() && !pod.terminating).count())
    }
}
