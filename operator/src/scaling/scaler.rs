//! The loop of mode Operator: one task for each model that is scaled, which reads, decides and writes every [`PERIOD`].
//!
//! A reconcile tells it what the spec says; it tells the reconcile when there is something new for the status. What it has seen is
//! forgotten with the leadership: who leads next begins with the number that is there, and takes nothing away before it has seen a
//! whole window itself.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use crds::resource::ScalingStatus;
use k8s_openapi::{
    api::core::v1::Pod,
    apimachinery::pkg::apis::meta::v1::Time,
    jiff::{Timestamp, Unit},
};
use tokio::{
    sync::{mpsc, watch},
    time::{self, Instant},
};

use super::{
    Decision, History, Outcome, Outcomes, Policy, Reason, State, decide,
    decide::Now,
    reader::{Reader, Told},
};
use crate::{
    apply::{Scale, Writer},
    cache::{Cache, Key},
    causes::{chain, lasting},
    leader::Leadership,
    metrics::Metrics,
    waiting::Change,
};

/// Between two readings of a model.
pub const PERIOD: Duration = Duration::from_secs(2);

/// Until the reading that shows whether what looks like a burst is one.
const SOON: Duration = Duration::from_millis(500);

/// Share of the period that is left to chance, so that models drift apart.
const JITTER: f64 = 0.05;

/// A write that takes longer is given up: it would be of a decision that is old.
const WRITE_TIMEOUT: Duration = Duration::from_secs(3);

/// A number that we have written is taken for what is asked for, until the watch shows it, but not for longer.
const SHOWN_WITHIN: Duration = Duration::from_secs(10);

/// The longest pause after numbers that could not be written, which doubles from one to the next: as long may pass once the API
/// server takes them again.
const LONGEST_PAUSE: Duration = Duration::from_secs(10);

/// Once more replicas were wanted than maxReplicas, or than could be written, that is said for so long, lest it is said and taken back
/// by the second.
const HINDERED_FOR: Duration = Duration::from_secs(60);

/// What holds the number is said once it has for so long: reasons may change with each reading.
const LASTING: Duration = Duration::from_secs(10);

/// What the spec says of a model that is scaled.
#[derive(Debug, Clone, PartialEq)]
pub struct Target {
    /// Which InferenceModel of the name it is.
    pub uid: String,
    /// Bounds, targets and speeds.
    pub policy: Policy,
    /// The latency that answers are counted by.
    pub within: Option<Duration>,
    /// Replicas that the spec asks for.
    pub wanted: u32,
    /// New pods replace old ones.
    pub in_rollout: bool,
}

/// Scales models.
pub struct Scaler {
    reader: Reader,
    common: Arc<Common>,
    followed: Mutex<HashMap<Key, Followed>>,
}

/// The end of a task that it is told by. Where it goes, the task ends.
struct Followed {
    target: watch::Sender<Target>,
    /// Unchanged since the task began.
    leads: watch::Receiver<bool>,
}

impl Followed {
    /// Whether its task still runs, in the leadership in which it began: it knows what was reconciled in that.
    fn is_current(&self) -> bool {
        !self.target.is_closed() && !self.leads.has_changed().unwrap_or_default()
    }
}

/// What the scaling of every model needs.
pub struct Common {
    /// Pods with our label.
    pub pods: Cache<Pod>,
    /// Where numbers go.
    pub writer: Arc<Writer>,
    /// Whether this process may write.
    pub leadership: Leadership,
    /// What is counted.
    pub metrics: Arc<Metrics>,
    /// Where a reconcile is told that the status has something new.
    pub changed: mpsc::Sender<Change>,
    /// What the status says.
    pub outcomes: Outcomes,
}

impl Scaler {
    /// Nothing is scaled yet.
    #[must_use]
    pub fn new(common: Common) -> Self {
        Self { reader: Reader::default(), common: Arc::new(common), followed: Mutex::default() }
    }

    /// Scales the model by this from now on, or no more.
    pub fn follow(&self, key: &Key, target: Option<Target>) {
        let mut followed = self.followed.lock().unwrap_or_else(PoisonError::into_inner);
        match (target, followed.get(key)) {
            (Some(target), Some(task)) if task.target.borrow().uid == target.uid && task.is_current() => {
                task.target.send_if_modified(|known| std::mem::replace(known, target.clone()) != target);
            }
            (Some(target), _) => {
                let (sender, receiver) = watch::channel(target);
                let task = Task::new(self, key.clone(), receiver);
                followed.insert(key.clone(), Followed { target: sender, leads: task.leads.clone() });
                // What was seen of another one of the name says nothing of this one. Its task, if there is one, has ended.
                self.common.outcomes.forget(key);
                tokio::spawn(task.run());
            }
            (None, _) => {
                followed.remove(key);
                self.common.outcomes.forget(key);
            }
        }
        self.count(&followed);
    }

    /// What this process has scaled before another one leads is not ours any more.
    fn count(&self, followed: &HashMap<Key, Followed>) {
        let leads = self.common.leadership.check().is_ok();
        self.common.metrics.scales(if leads { followed.len() } else { 0 });
    }

    /// Goes on scaling the model by what is known of it, if it is scaled: what its spec says now is not acted on.
    pub fn goes_on(&self, key: &Key, wanted: u32, in_rollout: bool) {
        let followed = self.followed.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(task) = followed.get(key) {
            task.target.send_if_modified(|known| {
                let target = Target { wanted, in_rollout, ..known.clone() };
                std::mem::replace(known, target.clone()) != target
            });
        }
    }

    /// Whether it scales the model, and not a former one of the name.
    #[must_use]
    pub fn scales(&self, key: &Key, uid: &str) -> bool {
        let followed = self.followed.lock().unwrap_or_else(PoisonError::into_inner);
        followed.get(key).is_some_and(|task| task.is_current() && task.target.borrow().uid == uid)
    }

    /// Lets go of models that are gone.
    pub fn keep_only(&self, is_there: impl Fn(&Key) -> bool) {
        let mut followed = self.followed.lock().unwrap_or_else(PoisonError::into_inner);
        for (key, task) in followed.extract_if(|key, _| !is_there(key)) {
            drop(task);
            self.common.outcomes.forget(&key);
        }
        self.count(&followed);
    }
}

/// The scaling of one model.
struct Task {
    reader: Reader,
    common: Arc<Common>,
    key: Key,
    target: watch::Receiver<Target>,
    leads: watch::Receiver<bool>,
    began: Instant,
    told: Told,
    /// None before the first reading.
    history: Option<History>,
    written: Option<Written>,
    limited_until: Option<Duration>,
    /// The reason of the last decision, and since when it has been that.
    reason: Option<(Reason, Duration)>,
    lasting: Option<Reason>,
    step: Option<ScalingStatus>,
    failed: Option<FailedWrites>,
}

/// Numbers that could not be written.
struct FailedWrites {
    /// When the last one was tried.
    at: Duration,
    /// What the API server said.
    error: String,
    /// How many rounds in a row have tried one.
    in_a_row: u32,
}

/// A number that was written.
struct Written {
    at: Duration,
    /// What the watch showed then.
    shown: u32,
    replicas: u32,
}

impl Task {
    fn new(scaler: &Scaler, key: Key, target: watch::Receiver<Target>) -> Self {
        Self {
            reader: scaler.reader.clone(),
            common: Arc::clone(&scaler.common),
            leads: scaler.common.leadership.subscribe(),
            key,
            target,
            began: Instant::now(),
            told: Told::default(),
            history: None,
            written: None,
            limited_until: None,
            reason: None,
            lasting: None,
            step: None,
            failed: None,
        }
    }

    async fn run(mut self) {
        time::sleep(PERIOD.mul_f64(fastrand::f64())).await;
        while self.is_followed() {
            let round = Instant::now();
            // Between two rounds another may have led, and the spec have become another. The reconcile that comes with the leadership
            // begins anew, with what it finds.
            if !self.still_leads() {
                self.forget();
                return;
            }
            let soon = self.round().await;
            let period =
                if soon { SOON } else { PERIOD.mul_f64(fastrand::f64().mul_add(2.0, -1.0).mul_add(JITTER, 1.0)) };
            time::sleep_until(round + period.max(self.pause())).await;
        }
    }

    /// Whoever follows no more has let go of the other end.
    fn is_followed(&self) -> bool {
        self.target.has_changed().is_ok()
    }

    /// Without a break since the task began.
    fn still_leads(&self) -> bool {
        !self.leads.has_changed().unwrap_or_default() && self.common.leadership.check().is_ok()
    }

    /// How long to wait at least after numbers that could not be written.
    fn pause(&self) -> Duration {
        let in_a_row = self.failed.as_ref().map_or(0, |failed| failed.in_a_row);
        if in_a_row == 0 { Duration::ZERO } else { (PERIOD * 2_u32.pow(in_a_row.min(8) - 1)).min(LONGEST_PAUSE) }
    }

    /// Whether the next one should come soon.
    async fn round(&mut self) -> bool {
        let target = self.target.borrow_and_update().clone();
        let wanted = self.wanted(target.wanted);
        let policy = &target.policy;
        let pods = self.common.pods.of(&self.key.0, &self.key.1);
        let at = self.began.elapsed();
        let reading = {
            let pods = pods.values().map(|pod| &**pod);
            self.reader.read(pods, &mut self.told, at, target.within, policy.stale_after).await
        };
        self.common.metrics.read_loads(reading.counted, reading.ready.saturating_sub(reading.counted));
        let history = self.history.get_or_insert_with(|| History::begin(at, wanted));
        history.read(reading, policy.calm_window.max(policy.panic_window));
        let load_time = self.told.load_time();
        let now = Now { at, wanted, in_rollout: target.in_rollout, load_time };
        let decision = decide(history, policy, &now);
        tracing::debug!(
            namespace = self.key.0,
            inference_model = self.key.1,
            load = history.last().map(|reading| reading.load),
            wanted,
            recommended = decision.recommended,
            desired = decision.desired,
            reason = decision.reason.as_str(),
            "decided"
        );
        // Somebody may have said otherwise while the pods were asked.
        let is_current = self.target.has_changed().is_ok_and(|changed| !changed) && self.still_leads();
        if decision.desired != wanted && !(is_current && self.write(wanted, &decision).await) {
            if let Some(failed) = &self.failed {
                let state = State::CannotWrite(failed.error.clone());
                // It was recommended all the same.
                let kept = Decision { desired: wanted, ..decision };
                if let Some(history) = &mut self.history {
                    history.decided(at, wanted, &kept, policy);
                }
                self.put(state).await;
            }
            return false;
        }
        self.needs_no_write(at);
        self.common.metrics.decided(decision.reason);
        if let Some(history) = &mut self.history {
            history.decided(at, wanted, &decision, policy);
        }
        self.tell(at, &decision).await;
        decision.soon
    }

    /// Once no other number has been wanted for long, that one could not be written is over.
    fn needs_no_write(&mut self, at: Duration) {
        self.failed = self.failed.take().filter(|failed| at < failed.at + HINDERED_FOR);
        if let Some(failed) = &mut self.failed {
            failed.in_a_row = 0;
        }
    }

    /// What the status says is another's who leads.
    fn forget(&self) {
        if self.is_followed() {
            self.common.outcomes.forget(&self.key);
        }
    }

    /// What is asked for: what we wrote, until the watch shows it or shows something else.
    fn wanted(&mut self, shown: u32) -> u32 {
        let now = self.began.elapsed();
        self.written = self.written.take().filter(|it| shown == it.shown && now <= it.at + SHOWN_WITHIN);
        self.written.as_ref().map_or(shown, |written| written.replicas)
    }

    /// Whether it was written.
    async fn write(&mut self, wanted: u32, decision: &Decision) -> bool {
        let (namespace, inference_model) = (&self.key.0, &self.key.1);
        let (reason, desired) = (decision.reason.as_str(), decision.desired);
        let uid = self.target.borrow().uid.clone();
        let scale = Scale { uid: &uid, from: wanted, to: desired };
        let written = self.common.writer.write_scale(namespace, inference_model, &scale);
        let error: Box<dyn std::error::Error> = match time::timeout(WRITE_TIMEOUT, written).await {
            Ok(Ok(true)) => return self.wrote(wanted, decision),
            Ok(Ok(false)) => {
                tracing::debug!(
                    namespace,
                    inference_model,
                    from = wanted,
                    to = desired,
                    "another number is there by now"
                );
                // The watch knows better than we do.
                (self.written, self.failed) = (None, None);
                return false;
            }
            Ok(Err(error)) => Box::new(error),
            Err(elapsed) => Box::new(elapsed),
        };
        let error = lasting(&chain(&*error));
        let before = self.failed.take().filter(|before| before.error == error);
        if before.is_none() {
            tracing::warn!(namespace, inference_model, from = wanted, to = desired, reason, error, "cannot scale");
        }
        let in_a_row = before.map_or(0, |before| before.in_a_row).saturating_add(1);
        self.failed = Some(FailedWrites { at: self.began.elapsed(), error, in_a_row });
        false
    }

    fn wrote(&mut self, wanted: u32, decision: &Decision) -> bool {
        let (namespace, inference_model) = (&self.key.0, &self.key.1);
        let (reason, desired) = (decision.reason.as_str(), decision.desired);
        tracing::info!(namespace, inference_model, from = wanted, to = desired, reason, "scaled: {}", decision.reason);
        self.common.metrics.scaled(desired > wanted);
        let shown = self.target.borrow().wanted;
        self.written = Some(Written { at: self.began.elapsed(), shown, replicas: desired });
        self.failed = None;
        self.step = Some(ScalingStatus {
            desired: i32::try_from(desired).unwrap_or(i32::MAX),
            reason: format!("{} (there were {wanted})", decision.reason),
            last_scale_time: Some(Time(whole_seconds(crate::clock::now()))),
        });
        true
    }

    /// Takes the reason of a decision, which lasts once it has been the same for long. Whether this one does.
    fn note(&mut self, at: Duration, reason: Reason) -> bool {
        let since = self.reason.filter(|(before, _)| *before == reason).map_or(at, |(_, since)| since);
        self.reason = Some((reason, since));
        let lasts = at >= since + LASTING;
        if lasts {
            self.lasting = Some(reason);
        }
        lasts
    }

    async fn tell(&mut self, at: Duration, decision: &Decision) {
        if decision.is_limited {
            self.limited_until = Some(at + HINDERED_FOR);
        }
        let lasts = self.note(at, decision.reason);
        if let Some(state) = self.state(at, decision.reason, lasts) {
            self.put(state).await;
        }
    }

    /// How it stands by a decision whose reason lasts, or may go with the next reading. None while what was said before still holds:
    /// that new pods have not answered yet is no news.
    fn state(&self, at: Duration, reason: Reason, lasts: bool) -> Option<State> {
        Some(match (reason, &self.failed) {
            (Reason::Stale, _) if lasts => State::Stale,
            (Reason::Stale, _) => return None,
            (Reason::NoReplicaReady, _) => State::NoReplicaReady,
            (_, Some(failed)) => State::CannotWrite(failed.error.clone()),
            (_, None) if self.limited_until.is_some_and(|until| at < until) => State::LimitedByMax,
            (_, None) => State::Active,
        })
    }

    async fn put(&self, state: State) {
        let outcome = Outcome { step: self.step.clone(), state, lasting: self.lasting };
        if self.common.outcomes.put(&self.key, outcome, || self.is_followed()) {
            // The other end is gone when the process ends.
            let _ = self.common.changed.send(Change::from(self.key.clone())).await;
        }
    }
}

/// The API server keeps no fractions.
fn whole_seconds(time: Timestamp) -> Timestamp {
    time.round(Unit::Second).unwrap_or(time)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::names;

    fn target() -> Target {
        Target {
            uid: "6ad4".to_owned(),
            policy: Policy::from(&crds::resource::Scaling::default()),
            within: None,
            wanted: 3,
            in_rollout: false,
        }
    }

    /// By a process that does not lead.
    fn scaler() -> Scaler {
        let leadership = Leadership::default();
        let client = kube::Client::try_from(kube::Config::new("http://127.0.0.1:1".parse().unwrap())).unwrap();
        Scaler::new(Common {
            pods: Cache::by(names::MODEL_LABEL),
            writer: Arc::new(Writer::new(client, leadership.clone(), Arc::default())),
            leadership,
            metrics: Arc::default(),
            changed: mpsc::channel(8).0,
            outcomes: Outcomes::default(),
        })
    }

    fn key() -> Key {
        ("coffee".to_owned(), "espresso".to_owned())
    }

    fn task() -> Task {
        Task::new(&scaler(), key(), watch::channel(target()).1)
    }

    #[tokio::test]
    async fn what_was_known_of_a_model_goes_on_with_the_number_that_is_there_now() {
        let scaler = scaler();
        scaler.goes_on(&key(), 5, false);
        assert!(scaler.followed.lock().unwrap().is_empty(), "one that was not scaled is not");
        scaler.follow(&key(), Some(target()));
        scaler.goes_on(&key(), 5, true);
        let known = scaler.followed.lock().unwrap()[&key()].target.borrow().clone();
        assert_eq!(known, Target { wanted: 5, in_rollout: true, ..target() });
    }

    #[tokio::test]
    async fn a_task_that_has_ended_is_begun_anew() {
        let scaler = scaler();
        scaler.follow(&key(), Some(target()));
        let is_closed = || scaler.followed.lock().unwrap()[&key()].target.is_closed();
        // It does not lead.
        while !is_closed() {
            time::sleep(Duration::from_millis(20)).await;
        }
        scaler.follow(&key(), Some(target()));
        assert!(!is_closed());
    }

    #[tokio::test]
    async fn a_task_of_an_earlier_leadership_is_begun_anew_with_the_spec_of_now() {
        let scaler = scaler();
        scaler.common.leadership.gained();
        scaler.follow(&key(), Some(target()));
        let task = |scaler: &Scaler| scaler.followed.lock().unwrap()[&key()].target.clone();
        let first = task(&scaler);
        scaler.follow(&key(), Some(target()));
        assert!(first.same_channel(&task(&scaler)), "the same leadership");
        let scaled = || scaler.common.metrics.prometheus_text().contains("ortolan_operator_scaled_models 1\n");
        assert!(scaled());
        scaler.common.leadership.lost();
        scaler.keep_only(|_| true);
        assert!(!scaled(), "another one scales it, if anybody does");
        scaler.common.leadership.gained();
        scaler.follow(&key(), Some(target()));
        assert!(!first.same_channel(&task(&scaler)));
        assert!(scaled());
    }

    #[tokio::test]
    async fn nothing_is_told_of_a_model_that_is_followed_no_more() {
        let scaler = scaler();
        let (sender, receiver) = watch::channel(target());
        let task = Task::new(&scaler, key(), receiver);
        task.put(State::Active).await;
        assert!(scaler.common.outcomes.of("coffee", "espresso").is_some());
        drop(sender);
        scaler.follow(&key(), None);
        task.put(State::Stale).await;
        task.forget();
        assert_eq!(scaler.common.outcomes.of("coffee", "espresso"), None);
    }

    #[tokio::test]
    async fn a_number_that_cannot_be_written_is_tried_less_and_less_often() {
        let (_sender, receiver) = watch::channel(target());
        let scaler = scaler();
        let mut task = Task::new(&scaler, key(), receiver);
        let decision = Decision {
            desired: 5,
            recommended: 5,
            reason: Reason::Load,
            is_limited: false,
            is_burst: false,
            soon: false,
        };
        let mut pauses = vec![task.pause().as_secs()];
        for _ in 0..6 {
            assert!(!task.write(3, &decision).await, "nobody leads, and nobody is there");
            pauses.push(task.pause().as_secs());
        }
        assert_eq!(pauses, [0, 2, 4, 8, 10, 10, 10]);
        assert_eq!(task.wanted(3), 3);
    }

    #[tokio::test]
    async fn whoever_leads_no_more_ends_and_says_no_more() {
        let (_sender, receiver) = watch::channel(target());
        let scaler = scaler();
        let task = Task::new(&scaler, key(), receiver);
        task.put(State::LimitedByMax).await;
        task.run().await;
        assert_eq!(scaler.common.outcomes.of("coffee", "espresso"), None, "what the status says is the other's");
    }

    #[tokio::test]
    async fn what_one_reading_misses_is_no_news_and_what_lasts_is() {
        let mut task = task();
        let told = |task: &mut Task, second, reason| {
            let at = Duration::from_secs(second);
            let lasts = task.note(at, reason);
            task.state(at, reason, lasts)
        };
        assert_eq!(told(&mut task, 0, Reason::Stale), None);
        assert_eq!(told(&mut task, 2, Reason::Steady), Some(State::Active));
        assert_eq!(told(&mut task, 4, Reason::Stale), None);
        assert_eq!(told(&mut task, 12, Reason::Stale), None);
        assert_eq!(told(&mut task, 14, Reason::Stale), Some(State::Stale));
        assert_eq!(told(&mut task, 16, Reason::Steady), Some(State::Active));
        assert_eq!(told(&mut task, 18, Reason::Stale), None);
    }

    #[tokio::test]
    async fn that_a_number_cannot_be_written_is_told_until_none_was_wanted_for_long() {
        let mut task = task();
        let at = Duration::from_secs;
        task.failed = Some(FailedWrites { at: at(10), error: "denied".to_owned(), in_a_row: 3 });
        for second in [12, 40, 68] {
            task.needs_no_write(at(second));
            let told = task.state(at(second), Reason::Steady, true);
            assert_eq!((told, task.pause()), (Some(State::CannotWrite("denied".to_owned())), Duration::ZERO));
        }
        assert_eq!(task.state(at(68), Reason::Stale, true), Some(State::Stale), "that is why it stays");
        task.needs_no_write(at(70));
        assert_eq!(task.state(at(70), Reason::Steady, true), Some(State::Active));
    }

    #[tokio::test]
    async fn a_reason_is_told_once_it_has_lasted_and_until_another_has() {
        let mut task = task();
        let told = |task: &mut Task, second, reason| {
            task.note(Duration::from_secs(second), reason);
            task.lasting
        };
        assert_eq!(told(&mut task, 0, Reason::Settling), None);
        assert_eq!(told(&mut task, 8, Reason::Settling), None);
        assert_eq!(told(&mut task, 10, Reason::Settling), Some(Reason::Settling));
        for second in (12..40).step_by(4) {
            assert_eq!(told(&mut task, second, Reason::Stabilizing), Some(Reason::Settling));
            assert_eq!(told(&mut task, second + 2, Reason::Steady), Some(Reason::Settling));
        }
        assert_eq!(told(&mut task, 50, Reason::Steady), Some(Reason::Steady));
    }
}
