//! Watches, the reconcile in five calls, and what happens after an error.
//!
//! ```text
//! InferenceModels ─┐
//! their children ──┼─▸ queue ▸ observe ▸ validate ▸ build ▸ apply ▸ status
//! leadership, time ┤
//! what they share ─┘
//! ```

use std::{
    collections::{HashMap, HashSet},
    future,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use crds::resource::{InferenceModel, InferenceModelStatus, ScalingMode, conditions::READY};
use futures::{Stream, StreamExt as _, TryStreamExt as _, stream};
use kube::{
    Api, ResourceExt as _,
    runtime::{
        WatchStreamExt as _,
        controller::{self, Action},
        events::Recorder,
        reflector::{self, ObjectRef, Store},
        watcher::{self, watcher},
    },
};
use opentelemetry::trace::FutureExt as _;
use tokio::{
    sync::{mpsc, watch},
    time,
};

use crate::{
    announce,
    apply::{Applied, ApplyError, Writer},
    build::{self, Images, Objects, Revisions, monitoring::Labels},
    cache::{Key, Scope},
    causes::chain,
    clock::later,
    keda,
    kinds::{Kinds, OptionalKind},
    leader::Leadership,
    metrics::{Metrics, ReconcileResult, Step},
    names,
    observe::{Observed, Sources, has_ended, observe},
    rollout::{self, Plan},
    salvage::{self, Salvaged},
    scaling::{self, scaler::Scaler},
    shared::Rounds,
    situation::{OVERDUE_AFTER, findings, revisions, situation},
    status::{self, Facts},
    stuck,
    traces::{Ending, Trace, Traces},
    validate::validate,
    waiting::{Change, Waiting},
};

/// Reconciles at once; more would only queue up at the API server.
const CONCURRENT: u16 = 32;

/// A reconcile that takes longer is given up and tried again.
const RECONCILE_TIMEOUT: Duration = Duration::from_secs(30);

/// What was refused may be allowed by now; no event tells. Twice as long after each time that it was not.
const SHORTEST_REFUSED: Duration = Duration::from_secs(5);
/// See [`SHORTEST_REFUSED`].
const LONGEST_REFUSED: Duration = Duration::from_secs(30);

/// A pod that says nothing is asked about.
const SILENT_INTERVAL: Duration = Duration::from_secs(4);

/// Everything is looked at again now and then, for what no event told.
const REST_INTERVAL: Duration = Duration::from_secs(600);

/// Pauses between tries after errors.
const SHORTEST_PAUSE: Duration = Duration::from_secs(1);
/// See [`SHORTEST_PAUSE`].
const LONGEST_PAUSE: Duration = Duration::from_secs(300);

/// What every reconcile needs.
pub struct Context {
    /// Where facts come from.
    pub sources: Sources,
    /// Where writes go.
    pub writer: Arc<Writer>,
    /// What scales models.
    pub scaler: Scaler,
    /// The server's images for new revisions.
    pub images: Images,
    /// Where KEDA finds Prometheus.
    pub prometheus: Option<String>,
    /// What a Prometheus selects by, besides our labels.
    pub monitoring_labels: Labels,
    /// Whether this process may write.
    pub leadership: Leadership,
    /// Where Events go.
    pub recorder: Recorder,
    /// What is counted.
    pub metrics: Arc<Metrics>,
    /// Where traces of reconciles are made, if they are.
    pub traces: Option<Traces>,
    /// What waits for a reconcile.
    pub waiting: Arc<Waiting>,
    /// Where changes are told that concern an InferenceModel.
    pub changed: mpsc::Sender<Change>,
    /// What keeps an object from being as it should be, and how often in a row it did.
    pub failures: Mutex<HashMap<ObjectRef<InferenceModel>, (Trouble, u32)>>,
}

/// Why a reconcile has to be tried again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trouble {
    /// It failed.
    Failed,
    /// Something of what is wanted is refused.
    Refused,
}

impl Trouble {
    /// The shortest and the longest pause before the next try.
    fn pauses(self) -> (Duration, Duration) {
        match self {
            Self::Failed => (SHORTEST_PAUSE, LONGEST_PAUSE),
            Self::Refused => (SHORTEST_REFUSED, LONGEST_REFUSED),
        }
    }
}

/// A reconcile that is tried again.
#[derive(Debug, thiserror::Error)]
#[error("tried again in {pause:?}")]
pub struct Failed {
    source: ReconcileError,
    pause: Duration,
}

/// Why a reconcile is tried again.
#[derive(Debug, thiserror::Error)]
pub enum ReconcileError {
    /// A write.
    #[error(transparent)]
    Apply(#[from] ApplyError),
    /// The API server does not answer.
    #[error("not done within {RECONCILE_TIMEOUT:?}")]
    Timeout,
}

/// Reconciles until `stop` turns true, and ends when the reconciles under way have.
pub async fn run(
    scope: &Scope,
    context: Arc<Context>,
    changes: mpsc::Receiver<Change>,
    mut stop: watch::Receiver<bool>,
) {
    let api: Api<Salvaged> = scope.api();
    let (store, writer) = reflector::store();
    let (of_models, listed) = (Arc::clone(&context), store.clone());
    let models = watcher(api, watcher::Config::default().page_size(500))
        .default_backoff()
        .map_ok(salvage::unwrapped)
        .modify(|model| model.managed_fields_mut().clear())
        .reflect(writer)
        .flat_map(move |event| stream::iter(touched(event, &listed, &of_models)));
    let gained = gained(context.leadership.subscribe(), store.clone());
    let (served, filled) = (context.sources.kinds.subscribe(), context.sources.scaled_objects.subscribe());
    let installed = installed(stream::select(changes_of(served), changes_of(filled)), store.clone());
    let queue = stream::select(stream::select(models, received(changes)), stream::select(gained, installed));
    let (waiting, stopped) = (Arc::clone(&context.waiting), stop.clone());
    let queue = queue.map(move |change| {
        waiting.enters(&change);
        Ok::<_, std::convert::Infallible>(change.model)
    });
    let queue = queue.take_until(async move {
        // The sender is gone when the process ends, which is a reason to stop too.
        let _ = stop.wait_for(|stop| *stop).await;
    });
    tokio::spawn(tidy(Arc::downgrade(&context), store.clone()));
    context.sources.wait_until_ready().await;
    let rounds = Rounds {
        models: store.clone(),
        writer: &context.writer,
        leadership: &context.leadership,
        changed: context.changed.clone(),
        labels: &context.monitoring_labels,
    };
    let sharing = context.sources.shared.run(rounds, stopped);
    let config = controller::Config::default().concurrency(CONCURRENT);
    let reconciling = controller::applier(
        |model, context| Box::pin(reconcile(model, context)),
        |_, failed, _| Action::requeue(failed.pause),
        Arc::clone(&context),
        store,
        queue,
        config,
    )
    .for_each(|result| {
        if let Err(error) = result {
            not_reconciled(&error, &context.waiting);
        }
        future::ready(())
    });
    tokio::join!(reconciling, sharing);
}

/// Deleted in the meantime, or told of already where the reconcile failed.
fn not_reconciled<E: std::error::Error + 'static>(error: &controller::Error<Failed, E>, waiting: &Waiting) {
    if let controller::Error::ObjectNotFound(model) = error {
        waiting.leaves(&ObjectRef::new(&model.name).within(model.namespace.as_deref().unwrap_or_default()));
    }
    tracing::debug!(error = chain(error), "nothing was reconciled");
}

/// Whom an event concerns. What is listed anew can be read only when the list is complete.
fn touched(
    event: watcher::Result<watcher::Event<InferenceModel>>,
    store: &Store<InferenceModel>,
    context: &Context,
) -> Vec<Change> {
    const KIND: &str = "InferenceModel";
    let shared = &context.sources.shared;
    let changes = match event {
        Ok(watcher::Event::Apply(model)) => {
            shared.noticed(&model);
            vec![Change::of(ObjectRef::from_obj(&model))]
        }
        Ok(watcher::Event::Delete(model)) => {
            shared.lost(&model);
            context.metrics.readiness(&key_of(&model), None);
            context.scaler.follow(&key_of(&model), None);
            vec![Change::of(ObjectRef::from_obj(&model))]
        }
        Ok(watcher::Event::InitDone) => {
            shared.listed(store);
            all(store)
        }
        // The first event of a watch comes before the API server is asked.
        Ok(watcher::Event::Init) => return Vec::new(),
        Ok(watcher::Event::InitApply(_)) => Vec::new(),
        Err(error) => {
            tracing::warn!(kind = KIND, error = chain(&error), "a watch is begun again");
            context.metrics.watch_restarted(KIND);
            return Vec::new();
        }
    };
    context.metrics.watch_moved(KIND);
    context.metrics.knows(store.len());
    changes
}

fn key_of(model: &InferenceModel) -> Key {
    (model.namespace().unwrap_or_default(), model.name_any())
}

fn all(store: &Store<InferenceModel>) -> Vec<Change> {
    store.state().iter().map(|model| Change::of(ObjectRef::from_obj(&**model))).collect()
}

fn received<T>(receiver: mpsc::Receiver<T>) -> impl Stream<Item = T> {
    stream::unfold(receiver, |mut receiver| async { receiver.recv().await.map(|it| (it, receiver)) })
}

/// All InferenceModels, each time this process begins to lead.
fn gained(leading: watch::Receiver<bool>, store: Store<InferenceModel>) -> impl Stream<Item = Change> {
    let begins = stream::unfold(leading, |mut leading| async {
        leading.changed().await.ok()?;
        let leads = *leading.borrow_and_update();
        Some((leads, leading))
    });
    begins.filter(|leads| future::ready(*leads)).flat_map(move |_| stream::iter(all(&store)))
}

/// The InferenceModels that KEDA should scale, each time the cluster is found to serve other kinds than before or its objects have
/// been listed: nobody is told of those one by one.
fn installed(causes: impl Stream<Item = ()>, store: Store<InferenceModel>) -> impl Stream<Item = Change> {
    causes.flat_map(move |()| {
        let models = store.state().into_iter();
        let by_keda = models.filter(|model| model.spec.scaling.effective_mode() == Some(ScalingMode::Keda));
        stream::iter(by_keda.map(|model| Change::of(ObjectRef::from_obj(&*model))).collect::<Vec<_>>())
    })
}

fn changes_of<T>(receiver: watch::Receiver<T>) -> impl Stream<Item = ()> {
    stream::unfold(receiver, |mut receiver| async { receiver.changed().await.ok().map(|()| ((), receiver)) })
}

/// Forgets what is known of objects that are gone, now and then.
async fn tidy(context: std::sync::Weak<Context>, store: Store<InferenceModel>) {
    loop {
        time::sleep(REST_INTERVAL / 10).await;
        let Some(context) = context.upgrade() else { return };
        let models = store.state();
        let uids: HashSet<String> = models.iter().filter_map(|model| model.uid()).collect();
        context.writer.keep_only(|uid| uids.contains(uid));
        let there: HashSet<_> = models.iter().map(|model| ObjectRef::from_obj(&**model)).collect();
        context.failures.lock().unwrap_or_else(PoisonError::into_inner).retain(|model, _| there.contains(model));
        let pods = context.sources.pods.uids();
        context.sources.infos.keep_only(|uid| pods.contains(uid));
        context.sources.stuck.keep_only(|uid| pods.contains(uid));
        let keys: HashSet<Key> = models.iter().map(|model| key_of(model)).collect();
        context.metrics.keep_only(|key| keys.contains(key));
        context.scaler.keep_only(|key| keys.contains(key));
    }
}

pub(crate) async fn reconcile(model: Arc<InferenceModel>, context: Arc<Context>) -> Result<Action, Failed> {
    let since = context.waiting.leaves(&ObjectRef::from_obj(&*model));
    if context.leadership.check().is_err() {
        return Ok(Action::await_change());
    }
    if model.metadata.deletion_timestamp.is_some() {
        // Somebody's finalizer may keep it for long, and no number would be acted on.
        context.scaler.follow(&key_of(&model), None);
        return Ok(Action::await_change());
    }
    since.into_iter().for_each(|since| context.metrics.waited(since.elapsed()));
    match context.traces.as_ref().and_then(|traces| traces.begin(&model)) {
        Some(trace) => attempt(model, &context, Some(&trace)).with_context(trace.context()).await,
        None => attempt(model, &context, None).await,
    }
}

/// Brings it about, and tells how that ended.
async fn attempt(model: Arc<InferenceModel>, context: &Context, trace: Option<&Trace>) -> Result<Action, Failed> {
    let began = Instant::now();
    let done = time::timeout(RECONCILE_TIMEOUT, bring_about(Arc::clone(&model), context, trace)).await;
    let traced = |result, requeue, error: Option<&ReconcileError>| {
        if let Some(trace) = trace {
            trace.ended(Ending { result, requeue, error: error.map(|error| chain(error)) });
        }
    };
    match done.unwrap_or(Err(ReconcileError::Timeout)) {
        Ok(Rest { next, is_refused }) => {
            let next = if is_refused { next.min(longer_each_time(&model, context, Trouble::Refused).1) } else { next };
            if !is_refused {
                let mut failures = context.failures.lock().unwrap_or_else(PoisonError::into_inner);
                failures.remove(&ObjectRef::from_obj(&*model));
            }
            context.metrics.reconciled(ReconcileResult::ok, began.elapsed());
            traced(Some(ReconcileResult::ok), Some(next), None);
            Ok(Action::requeue(next))
        }
        // Whoever leads, or nobody, goes on with it.
        Err(ReconcileError::Apply(ApplyError::NotLeading(_) | ApplyError::NamespaceEnds)) => {
            traced(None, None, None);
            Ok(Action::await_change())
        }
        Err(error) => {
            let pause = pause_after(&model, &error, context);
            context.metrics.reconciled(ReconcileResult::error, began.elapsed());
            traced(Some(ReconcileResult::error), Some(pause), Some(&error));
            Err(Failed { source: error, pause })
        }
    }
}

/// For how long nothing needs to be done, if nothing happens.
struct Rest {
    next: Duration,
    /// Something of what is wanted is refused, and may be allowed later.
    is_refused: bool,
}

/// observe ▸ validate ▸ build ▸ apply ▸ status.
async fn bring_about(
    model: Arc<InferenceModel>,
    context: &Context,
    trace: Option<&Trace>,
) -> Result<Rest, ReconcileError> {
    let mut steps = context.metrics.steps(trace);
    let observed = observe(model, &context.sources, crate::clock::now());
    let findings = findings(&observed);
    steps.ended(Step::observe);
    let checked = validate(&observed.model.spec, context.prometheus.as_deref());
    steps.ended(Step::validate);
    let (revisions, target) = revisions(&observed, checked.as_ref().ok(), &context.images);
    let led_for = context.leadership.led_for();
    let plan = target
        .as_ref()
        .map(|target| rollout::plan(&situation(&observed, &revisions, target, &findings, led_for, checked.is_err())));

    scaling::spec::follow(&context.scaler, &observed, plan.as_ref(), checked.is_err());
    let scaler = build::autoscaler::scaler(&observed, checked.as_ref().ok());
    let objects = plan.as_ref().map(|plan| match &checked {
        Ok(_) => build::build(&observed.model, &revisions, plan),
        Err(_) => build::build_of_refused(&observed, &revisions, plan),
    });
    let objects = objects.map(|objects| Objects { scaler, ..objects });
    let kept = kept(&revisions, objects.as_ref());
    steps.ended(Step::build);
    let applied = match objects {
        Some(objects) => context.writer.apply(objects, &observed).await,
        None => Ok(Applied::default()),
    };
    match &applied {
        Ok(_) => steps.ended(Step::apply),
        Err(error) => steps.failed(Step::apply, error),
    }
    let applied = match applied {
        Ok(applied) if checked.is_ok() => {
            scaling::spec::raise_to_min(&observed, &context.writer).await.map(|()| applied)
        }
        applied => applied,
    };
    // What is known is told all the same, and the error with it.
    let (applied, failure) = match applied {
        Ok(applied) => (applied, None),
        Err(error @ (ApplyError::NotLeading(_) | ApplyError::NamespaceEnds)) => {
            steps.over();
            return Err(error.into());
        }
        Err(error) if is_let_go(&error, &context.sources.kinds).await => (Applied::default(), None),
        Err(error) => (Applied::default(), Some(error)),
    };

    let status = status::status(&Facts {
        observed: &observed,
        findings: &findings,
        refusal: checked.as_ref().err(),
        revisions: &kept,
        plan: plan.as_ref(),
        target: target.as_deref(),
        applied: &applied,
        failure: failure.as_ref(),
    });
    let is_news = observed.model.status.as_ref() != Some(&status);
    if is_news {
        let status = serde_json::to_value(&status).unwrap_or_default();
        let written = context.writer.write_status(&observed.model, &status).await;
        written.inspect_err(|error| steps.failed(Step::status, error))?;
    }
    tell_readiness(&observed.model, &status, &context.metrics, &context.leadership);
    if is_news || !applied.written.is_empty() {
        announce::announce(&context.recorder, &observed.model, &status, &applied).await;
    }
    steps.ended(Step::status);
    match failure {
        Some(error) => Err(error.into()),
        None => Ok(Rest {
            next: next_look(&observed, plan.as_ref()),
            is_refused: !applied.refusals.is_empty() && checked.is_ok(),
        }),
    }
}

/// That the cluster does not serve a kind any more is no error, though it is found out by one. The InferenceModels that it concerns
/// are looked at again.
async fn is_let_go(error: &ApplyError, kinds: &Kinds) -> bool {
    let ApplyError::Api { kind, .. } = error else { return false };
    if kind != keda::KIND {
        return false;
    }
    kinds.look().await;
    !kinds.is_served(OptionalKind::ScaledObject)
}

/// The metric says how it is, and the log that it has changed.
fn tell_readiness(model: &InferenceModel, status: &InferenceModelStatus, metrics: &Metrics, leadership: &Leadership) {
    let (namespace, inference_model) = key_of(model);
    let ready = |status: &InferenceModelStatus| {
        status::find(status, READY).map(|ready| (ready.status == "True", ready.reason.clone(), ready.message.clone()))
    };
    let Some((is_ready, reason, message)) = ready(status) else { return };
    let before = model.status.as_ref().and_then(ready);
    if before.is_none_or(|before| (before.0, &before.1) != (is_ready, &reason)) {
        let revision = status.active_revision.as_deref();
        tracing::info!(namespace, inference_model, revision, is_ready, reason, "{message}");
    }
    metrics.readiness(&(namespace, inference_model), (!is_ready).then_some(reason.as_str()));
    // All was forgotten when leadership went; if that was before this, it is not forgotten again.
    if leadership.check().is_err() {
        metrics.readiness(&key_of(model), None);
    }
}

/// The revisions that have objects.
fn kept(revisions: &Revisions, objects: Option<&Objects>) -> Revisions {
    let names: HashSet<&String> = objects
        .iter()
        .flat_map(|objects| &objects.config_maps)
        .filter_map(|config_map| config_map.labels().get(names::REVISION_LABEL))
        .collect();
    revisions.iter().filter(|(hash, _)| names.contains(hash)).map(|(hash, it)| (hash.clone(), it.clone())).collect()
}

/// When to look again if nothing happens.
fn next_look(observed: &Observed, plan: Option<&Plan>) -> Duration {
    let mut next = REST_INTERVAL.mul_f64(fastrand::f64().mul_add(0.2, 0.9));
    if let Some(moment) = plan.and_then(|plan| plan.look_again) {
        // A little later, so that the moment has come.
        next = next.min(moment.duration_since(observed.now).unsigned_abs() + Duration::from_millis(10));
    }
    // Time alone changes what they stand for: who should have been gone for long is waited for no more, and who was ended by a node says
    // nothing of it any more.
    let ends = observed.pods.values().filter_map(|pod| pod.metadata.deletion_timestamp.as_ref());
    let overdue = ends.map(|end| later(end.0, OVERDUE_AFTER));
    let no_news = observed.pods.values().filter(|pod| has_ended(pod)).filter_map(|pod| status::is_news_until(pod));
    for moment in overdue.chain(no_news).filter(|moment| *moment >= observed.now) {
        next = next.min(moment.duration_since(observed.now).unsigned_abs() + Duration::from_millis(10));
    }
    if observed.pods.values().any(|pod| stuck::is_silent(pod)) {
        next = next.min(SILENT_INTERVAL);
    }
    next
}

fn pause_after(model: &InferenceModel, error: &ReconcileError, context: &Context) -> Duration {
    let (count, pause) = longer_each_time(model, context, Trouble::Failed);
    tell_failure(model, error, count, pause);
    pause
}

/// How often in a row it was the same, and a pause that is twice as long after each time, with jitter.
fn longer_each_time(model: &InferenceModel, context: &Context, trouble: Trouble) -> (u32, Duration) {
    let mut failures = context.failures.lock().unwrap_or_else(PoisonError::into_inner);
    let (before, count) = failures.entry(ObjectRef::from_obj(model)).or_insert((trouble, 0));
    *count = if *before == trouble { *count + 1 } else { 1 };
    *before = trouble;
    let (shortest, longest) = trouble.pauses();
    let pause = shortest.saturating_mul(1 << (*count - 1).min(16)).min(longest);
    (*count, pause.mul_f64(fastrand::f64().mul_add(0.5, 0.75)))
}

fn tell_failure(model: &InferenceModel, error: &ReconcileError, failures: u32, pause: Duration) {
    let (namespace, inference_model) = key_of(model);
    tracing::warn!(
        namespace,
        inference_model,
        revision = model.status.as_ref().and_then(|status| status.active_revision.as_deref()),
        failures,
        pause_seconds = pause.as_secs_f64(),
        error = chain(error),
        "a reconcile failed and is tried again"
    );
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;

    fn model() -> InferenceModel {
        let model = serde_json::json!({
            "apiVersion": "ortolan.dev/v1alpha1",
            "kind": "InferenceModel",
            "metadata": {"name": "espresso", "namespace": "coffee"},
            "spec": {"models": [{"name": "a", "source": {"uri": "file:///a.onnx"}}]},
        });
        serde_json::from_value(model).unwrap()
    }

    #[test]
    fn whoever_has_lost_leadership_meanwhile_says_nothing_of_readiness() {
        let status = serde_json::json!({"conditions": [{
            "type": READY, "status": "False", "reason": "Fetching", "message": "a model is fetched",
            "lastTransitionTime": "2026-01-01T00:00:00Z",
        }]});
        let status: InferenceModelStatus = serde_json::from_value(status).unwrap();
        let metrics = Metrics::default();
        let is_told = || metrics.prometheus_text().contains("ortolan_operator_model_not_ready{");
        let leadership = Leadership::default();
        leadership.gained();
        tell_readiness(&model(), &status, &metrics, &leadership);
        assert!(is_told());
        tell_readiness(&model(), &status, &metrics, &Leadership::default());
        assert!(!is_told());
    }

    #[test]
    fn a_line_of_the_log_names_what_caused_an_error() {
        let (reader, writer) = io::pipe().unwrap();
        let logs = tracing_subscriber::fmt().json().flatten_event(true).with_writer(Mutex::new(writer)).finish();
        tracing::subscriber::with_default(logs, || {
            let cause = kube::Error::Service(Box::new(io::Error::other("connection reset")));
            let error = ApplyError::Api {
                action: "apply",
                kind: "Deployment".to_owned(),
                name: "espresso-1".to_owned(),
                source: Box::new(cause),
            };
            tell_failure(&model(), &error.into(), 2, Duration::from_secs(3));
        });
        let line: serde_json::Value = serde_json::from_str(&io::read_to_string(reader).unwrap()).unwrap();
        let error = line["error"].as_str().unwrap();
        assert!(error.starts_with("cannot apply Deployment espresso-1: "), "{error}");
        assert!(error.ends_with(": connection reset"), "{error}");
        assert_eq!((line["inference_model"].as_str(), line["failures"].as_u64()), (Some("espresso"), Some(2)));
    }
}
