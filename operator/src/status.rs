//! What the operator tells: conditions and numbers, from what was observed and decided. A pure function.

use std::{collections::BTreeMap, time::Duration};

use crds::resource::{
    InferenceModelStatus, Model, ModelError, ModelState, ModelStatus, RevisionStatus, RolloutStrategy, Toggle,
    conditions::{
        self, ALL_SERVES, APPLY_FAILED, PENDING, READY, RECONCILING, SETTLED, STALLED, SUMMED_UP, accepted, available,
        model_loaded, monitoring_ready, rolled_out, scheduled,
    },
};
use k8s_openapi::{
    api::{
        apps::v1::{Deployment, DeploymentCondition},
        core::v1::Pod,
    },
    apimachinery::pkg::apis::meta::v1::{Condition, Time},
    jiff::Timestamp,
};
use kube::ResourceExt as _;

use crate::{
    apply::{Applied, ApplyError, reason_of_refusal},
    build::{Revisions, config},
    causes::{chain, lasting},
    clock::later,
    diagnose::{Finding, Progress, progress},
    kinds::OptionalKind,
    names,
    observe::{Observed, has_ended, ready_since},
    quota,
    rollout::{Plan, Stage},
    scaling_active,
    shared::Place,
    validate::Refusal,
};

/// All that a status is made of.
#[derive(Debug)]
pub struct Facts<'a> {
    /// What is there.
    pub observed: &'a Observed,
    /// What is wrong with pods, by the pod's name.
    pub findings: &'a BTreeMap<String, Finding>,
    /// Why the spec cannot be acted on.
    pub refusal: Option<&'a Refusal>,
    /// The revisions that are kept.
    pub revisions: &'a Revisions,
    /// What is done; none where there is no revision at all.
    pub plan: Option<&'a Plan>,
    /// The revision that the spec asks for.
    pub target: Option<&'a str>,
    /// What came of it.
    pub applied: &'a Applied,
    /// What went wrong and is tried again.
    pub failure: Option<&'a ApplyError>,
}

/// Longer than any message of one cause; many faults of a spec can make one that is longer.
const LONGEST_MESSAGE_BYTES: usize = 8192;

/// What the schema allows a model's error.
const LONGEST_ERROR_BYTES: usize = 4096;

/// What a condition says.
pub(crate) struct Verdict {
    pub(crate) status: &'static str,
    pub(crate) reason: &'static str,
    pub(crate) message: String,
}

impl Verdict {
    pub(crate) fn yes(reason: &'static str, message: impl Into<String>) -> Self {
        Self { status: "True", reason, message: message.into() }
    }

    pub(crate) fn no(reason: &'static str, message: impl Into<String>) -> Self {
        Self { status: "False", reason, message: message.into() }
    }

    pub(crate) fn unknown(message: impl Into<String>) -> Self {
        Self { status: "Unknown", reason: PENDING, message: message.into() }
    }
}

/// Makes the status.
#[must_use]
pub fn status(facts: &Facts<'_>) -> InferenceModelStatus {
    let observed = facts.observed;
    let alive: Vec<&Pod> = observed.pods.values().map(|pod| &**pod).filter(|pod| is_alive(pod)).collect();
    let ready = alive.iter().filter(|pod| ready_since(pod).is_some()).count();
    InferenceModelStatus {
        observed_generation: observed.model.metadata.generation,
        conditions: conditions(facts),
        replicas: number(alive.len()),
        ready_replicas: number(ready),
        selector: Some(names::selector(&observed.name)),
        url: Some(format!("http://{}.{}.svc", observed.name, observed.namespace)),
        active_revision: facts.plan.map(|plan| names::revision(&observed.name, &plan.active)),
        revisions: revisions(facts),
        models: observed.model.spec.models.iter().map(|model| model_status(facts, model)).collect(),
        scaling: scaling_active::decision(facts),
    }
}

fn conditions(facts: &Facts<'_>) -> Vec<Condition> {
    let mut verdicts = vec![
        (accepted::TYPE, accepted(facts)),
        (scheduled::TYPE, scheduled(facts)),
        (model_loaded::TYPE, model_loaded(facts)),
        (rolled_out::TYPE, rolled_out(facts)),
        (available::TYPE, available(facts)),
        (conditions::scaling_active::TYPE, scaling_active::verdict(facts)),
        (monitoring_ready::TYPE, monitoring_ready(facts)),
    ];
    let ready = summed_up(&verdicts);
    let (reconciling, stalled) = as_kstatus_reads_it(facts, &verdicts);
    verdicts.extend([(READY, ready), (RECONCILING, reconciling), (STALLED, stalled)]);
    verdicts.into_iter().map(|(type_, verdict)| condition(facts, type_, verdict)).collect()
}

/// The time of the last transition stays where the status does.
fn condition(facts: &Facts<'_>, type_: &str, verdict: Verdict) -> Condition {
    let before = facts.observed.model.status.iter().flat_map(|status| &status.conditions);
    let same = before.into_iter().find(|before| before.type_ == type_ && before.status == verdict.status);
    let last_transition_time = same.map_or(Time(facts.observed.now), |before| before.last_transition_time.clone());
    Condition {
        type_: type_.to_owned(),
        status: verdict.status.to_owned(),
        reason: verdict.reason.to_owned(),
        message: cut(&verdict.message, LONGEST_MESSAGE_BYTES),
        observed_generation: facts.observed.model.metadata.generation,
        last_transition_time,
    }
}

fn accepted(facts: &Facts<'_>) -> Verdict {
    if let Some(refusal) = facts.refusal {
        return Verdict::no(refusal.reason, refusal.message.clone());
    }
    let shared = facts.observed.shared.refusals(&facts.observed.model.spec.monitoring);
    let refusals: Vec<&Refusal> = facts.applied.refusals.iter().chain(shared).collect();
    if let Some(first) = refusals.first() {
        let same = refusals.iter().filter(|refusal| refusal.reason == first.reason);
        let messages: Vec<&str> = same.map(|refusal| refusal.message.as_str()).collect();
        return Verdict::no(first.reason, messages.join("; "));
    }
    let refusal = focus_deployment(facts).and_then(refused_pods);
    if let Some(refusal) = refusal.filter(|_| refused_for_now(facts).is_none()) {
        return Verdict::no(refusal.reason, refusal.message);
    }
    match finding(facts, accepted::TYPE) {
        Some(finding) => Verdict::no(finding.reason, finding.message()),
        None => Verdict::yes(accepted::ACCEPTED, "the spec is acted on"),
    }
}

/// What a Deployment says whose pods cannot be made.
fn replica_failure(deployment: &Deployment) -> Option<&DeploymentCondition> {
    let is = |text: &Option<String>, wanted: &str| text.as_deref() == Some(wanted);
    let conditions = deployment.status.as_ref()?.conditions.as_ref()?;
    conditions.iter().find(|it| is(&it.type_, "ReplicaFailure") && is(&it.status, "True"))
}

/// Since when a ResourceQuota has had no room for a pod of a Deployment, where there would be some if another one went.
pub(crate) fn waits_for_quota_since(deployment: &Deployment) -> Option<Timestamp> {
    let failure = replica_failure(deployment)?;
    let said = failure.message.as_deref().filter(|said| quota::room_would_help(said));
    failure.last_transition_time.as_ref().filter(|_| said.is_some()).map(|time| time.0)
}

/// What a quota says that has no room for a pod of the target yet, for another one goes first.
fn refused_for_now(facts: &Facts<'_>) -> Option<Refusal> {
    let makes_room = facts.observed.model.spec.rollout.strategy != RolloutStrategy::Surge
        && facts.plan.is_some_and(|plan| matches!(plan.stage, Stage::WaitingForCapacity | Stage::TerminatingFirst));
    let of_another = |pod: &Pod| pod.labels().get(names::REVISION_LABEL).map(String::as_str) != facts.target;
    if !makes_room || !facts.observed.pods.values().any(|pod| !has_ended(pod) && of_another(pod)) {
        return None;
    }
    let deployment = focus_deployment(facts)?;
    waits_for_quota_since(deployment)?;
    refused_pods(deployment)
}

/// The API server does not let the Deployment make its pods.
pub(crate) fn refused_pods(deployment: &Deployment) -> Option<Refusal> {
    let message = lasting(replica_failure(deployment)?.message.as_deref().unwrap_or_default());
    let status = kube::core::Status { code: 403, message: message.clone(), ..kube::core::Status::default() };
    let reason = reason_of_refusal(&status).unwrap_or(accepted::ADMISSION_DENIED);
    let remedy = match reason {
        accepted::QUOTA_EXCEEDED => "Raise the namespace's ResourceQuota, or ask for less",
        _ => "Change the spec so that its pods are allowed, or the policy that forbids them",
    };
    Some(Refusal { reason, message: format!("a pod of {} is refused: {message}. {remedy}", deployment.name_any()) })
}

fn scheduled(facts: &Facts<'_>) -> Verdict {
    if wanted(facts) == 0 {
        return Verdict::yes(scheduled::SCHEDULED, "no pod is wanted");
    }
    if let Some(finding) = finding(facts, scheduled::TYPE) {
        return Verdict::no(finding.reason, finding.message());
    }
    let pods = focus(facts);
    // While one serves, another that was made a moment ago is no doubt.
    if pods.iter().any(|pod| ready_since(pod).is_some()) {
        return Verdict::yes(scheduled::SCHEDULED, "the pods have nodes");
    }
    match pods.iter().find(|pod| progress(pod) == Progress::Unscheduled) {
        Some(pod) => Verdict::unknown(Progress::Unscheduled.sentence(&pod.name_any())),
        None if pods.is_empty() => Verdict::unknown("no pod is there yet"),
        None => Verdict::yes(scheduled::SCHEDULED, "the pods have nodes"),
    }
}

fn model_loaded(facts: &Facts<'_>) -> Verdict {
    if wanted(facts) == 0 {
        return Verdict::yes(model_loaded::LOADED, "no pod is wanted");
    }
    if let Some(finding) = finding(facts, model_loaded::TYPE) {
        return Verdict::no(finding.reason, finding.message());
    }
    let pods = focus(facts);
    // One that is ready shows that the models can be loaded; others that come later make no new doubt.
    if let Some(pod) = pods.iter().find(|pod| progress(pod) == Progress::Ready) {
        return loaded(facts, pod);
    }
    for pod in &pods {
        let progress = progress(pod);
        let reason = match progress {
            Progress::Fetching { .. } => model_loaded::FETCHING,
            Progress::Loading => model_loaded::LOADING,
            Progress::Preparing => model_loaded::PREPARING,
            Progress::Withheld { .. } => return Verdict::yes(model_loaded::LOADED, "every model is loaded"),
            Progress::Unscheduled | Progress::Ready => continue,
        };
        return Verdict::no(reason, progress.sentence(&pod.name_any()));
    }
    Verdict::unknown("no pod has begun with the models")
}

/// Loaded, but perhaps elsewhere than asked for.
fn loaded(facts: &Facts<'_>, pod: &Pod) -> Verdict {
    let asked_for = config::providers(&facts.observed.model.spec).first().copied();
    let info = facts.observed.infos.get(&pod.name_any());
    let elsewhere = info.iter().flat_map(|info| &info.models).find_map(|model| {
        let provider = model.provider.as_deref()?;
        asked_for.filter(|asked_for| *asked_for != provider).map(|asked_for| (model, asked_for, provider))
    });
    match elsewhere {
        Some((model, asked_for, provider)) => Verdict::yes(
            model_loaded::PROVIDER_FALLBACK,
            format!(
                "pod {}: model {} runs on {provider}, although {asked_for} comes first in the providers. Check that \
                 the pod has the device and that the image has the provider",
                pod.name_any(),
                model.name
            ),
        ),
        None => Verdict::yes(model_loaded::LOADED, "every model is loaded"),
    }
}

fn rolled_out(facts: &Facts<'_>) -> Verdict {
    let (Some(plan), Some(target)) = (facts.plan, facts.target) else {
        return Verdict::unknown("there is no revision yet");
    };
    let revision = names::revision(&facts.observed.name, target);
    let record = plan.records.get(target).cloned().unwrap_or_default();
    let cause = record.failed.as_ref().map(|failure| failure.cause.clone()).unwrap_or_default();
    let again = "Change the spec, or set the annotation ortolan.dev/restart to a new value to try again";
    match plan.stage {
        Stage::Complete if record.terminating_first.is_some() => Verdict::yes(
            rolled_out::COMPLETE,
            format!("all pods are of revision {revision}; old pods went first, since there was no room for both"),
        ),
        Stage::Complete => Verdict::yes(rolled_out::COMPLETE, format!("all pods are of revision {revision}")),
        Stage::Surging => {
            Verdict::no(rolled_out::SURGING, format!("pods of revision {revision} come before those of others go"))
        }
        Stage::WaitingForCapacity => Verdict::no(
            rolled_out::WAITING_FOR_CAPACITY,
            match refused_for_now(facts) {
                Some(refusal) => {
                    format!("a pod of revision {revision} waits until an old one goes: {}", refusal.message)
                }
                None => format!("a pod of revision {revision} waits for a node with room for it"),
            },
        ),
        Stage::TerminatingFirst => Verdict::no(
            rolled_out::TERMINATING_FIRST,
            format!("pods of others go before those of revision {revision} come"),
        ),
        Stage::ProgressDeadlineExceeded => Verdict::no(
            rolled_out::PROGRESS_DEADLINE_EXCEEDED,
            format!("revision {revision} made no progress in time, and there is none to go back to: {cause}. {again}"),
        ),
        Stage::RolledBack => Verdict::no(
            rolled_out::ROLLED_BACK,
            format!(
                "revision {revision} made no progress in time, so revision {} serves again: {cause}. {again}",
                names::revision(&facts.observed.name, &plan.active)
            ),
        ),
    }
}

fn available(facts: &Facts<'_>) -> Verdict {
    let spec = &facts.observed.model.spec;
    let ready = facts.observed.pods.values().filter(|pod| is_alive(pod) && ready_since(pod).is_some()).count();
    if spec.suspend {
        return Verdict::no(available::SUSPENDED, "the spec says suspend: there are no pods until it does no more");
    }
    if ready > 0 {
        return Verdict::yes(available::MINIMUM_REPLICAS, "predictions are answered");
    }
    if spec.replicas == 0 {
        return Verdict::no(available::NO_REPLICA_READY, "spec.replicas is 0");
    }
    let is_withheld = |progress: &Progress| matches!(progress, Progress::Withheld { .. });
    let withheld = focus(facts).into_iter().map(|pod| (progress(pod), pod)).find(|(progress, _)| is_withheld(progress));
    let why = withheld.map(|(progress, pod)| progress.sentence(&pod.name_any()));
    Verdict::no(available::NO_REPLICA_READY, why.unwrap_or_else(|| "no pod is ready".to_owned()))
}

/// The worst of what becomes of the ServiceMonitor and of the PrometheusRule.
fn monitoring_ready(facts: &Facts<'_>) -> Verdict {
    let (wanted, shared) = (&facts.observed.model.spec.monitoring, &facts.observed.shared);
    let parts = [
        (wanted.service_monitor, OptionalKind::ServiceMonitor, &shared.service_monitor),
        (wanted.rules, OptionalKind::PrometheusRule, &shared.rules),
    ];
    let wanted = parts.into_iter().filter(|(toggle, ..)| *toggle != Toggle::Disabled);
    let verdicts: Vec<Verdict> =
        wanted.map(|(toggle, kind, place)| of_shared(facts, toggle == Toggle::Enabled, kind, place)).collect();
    let rank = |verdict: &&Verdict| match (verdict.status, verdict.reason) {
        ("False", _) => 0,
        ("Unknown", _) => 1,
        (_, monitoring_ready::CONFIGURED) => 3,
        (_, _) => 2,
    };
    let Some(first) = verdicts.iter().min_by_key(rank) else {
        return Verdict::yes(monitoring_ready::CONFIGURED, "no object of a monitoring tool is wanted");
    };
    let same = verdicts.iter().filter(|verdict| verdict.status == first.status && verdict.reason == first.reason);
    let messages: Vec<&str> = same.map(|verdict| verdict.message.as_str()).collect();
    Verdict { status: first.status, reason: first.reason, message: messages.join("; ") }
}

/// With Auto a model is as good without: that is said, and is no failure.
fn of_shared(facts: &Facts<'_>, is_required: bool, kind: OptionalKind, place: &Place) -> Verdict {
    let judged = |reason: &'static str, message: String| {
        if is_required { Verdict::no(reason, message) } else { Verdict::yes(reason, message) }
    };
    let (name, object) = (kind.name(), format!("{} {}", kind.name(), names::SHARED));
    match place {
        Place::NotInstalled if is_required => {
            let definition = kind.definition();
            judged(
                monitoring_ready::CRD_NOT_INSTALLED,
                format!(
                    "the cluster has no {definition}, so there is no {name}. Install the Prometheus Operator, or set \
                     spec.monitoring to Auto"
                ),
            )
        }
        Place::NotInstalled => judged(
            monitoring_ready::CRD_NOT_INSTALLED,
            format!("the cluster has no {}, so there is no {name}; none is needed", kind.definition()),
        ),
        Place::There(Some(why)) => judged(monitoring_ready::NOT_SELECTED, format!("{object} is there, but {why}")),
        Place::There(None) => Verdict::yes(monitoring_ready::CONFIGURED, format!("{object} is there")),
        Place::Refused(refusal) if is_required => Verdict::unknown(refusal.message.clone()),
        Place::Refused(refusal) => {
            judged(refusal.reason, format!("there is no {object} of ours; none is needed: {}", refusal.message))
        }
        Place::Missing(Some(error)) if is_required => {
            Verdict::unknown(format!("{object} is not there yet: {error}; it is tried again"))
        }
        Place::Missing(None) if is_required || facts.refusal.is_some() => {
            Verdict::unknown(format!("{object} is not there yet"))
        }
        Place::Missing(Some(error)) => judged(
            monitoring_ready::CONFIGURED,
            format!("{object} is about to be there; so far it could not be written: {error}"),
        ),
        Place::Missing(None) => judged(monitoring_ready::CONFIGURED, format!("{object} is about to be there")),
    }
}

/// The first that is False; without one, the first that is Unknown.
fn summed_up(verdicts: &[(&str, Verdict)]) -> Verdict {
    let first = |status: &str| {
        let of =
            |(type_, _): &(&str, &[&str])| verdicts.iter().find(|(it, found)| it == type_ && found.status == status);
        SUMMED_UP.iter().find_map(of).map(|(_, verdict)| verdict)
    };
    match first("False").or_else(|| first("Unknown")) {
        Some(Verdict { status, reason, message }) => Verdict { status, reason, message: message.clone() },
        None => Verdict::yes(ALL_SERVES, "all of the spec serves"),
    }
}

/// Whether work is under way, and whether it cannot get on without a change from outside; never both.
fn as_kstatus_reads_it(facts: &Facts<'_>, verdicts: &[(&str, Verdict)]) -> (Verdict, Verdict) {
    let refused = verdicts.iter().find(|(type_, verdict)| *type_ == accepted::TYPE && verdict.status == "False");
    let rollout = verdicts.iter().find(|(type_, _)| *type_ == rolled_out::TYPE).map(|(_, verdict)| verdict);
    let settled = || Verdict::no(SETTLED, "");
    if let Some((_, Verdict { reason, message, .. })) = refused {
        return (settled(), Verdict::yes(reason, message.clone()));
    }
    if let Some(error) = facts.failure {
        return (Verdict::yes(APPLY_FAILED, format!("{}; it is tried again", lasting(&chain(error)))), settled());
    }
    match (facts.plan.map(|plan| plan.stage), rollout) {
        (Some(Stage::RolledBack | Stage::ProgressDeadlineExceeded), Some(verdict)) => {
            (settled(), Verdict::yes(verdict.reason, verdict.message.clone()))
        }
        (Some(Stage::Surging | Stage::WaitingForCapacity | Stage::TerminatingFirst), Some(verdict)) => {
            (Verdict::yes(verdict.reason, verdict.message.clone()), settled())
        }
        _ => (settled(), settled()),
    }
}

/// Newest first.
fn revisions(facts: &Facts<'_>) -> Vec<RevisionStatus> {
    let Some(plan) = facts.plan else { return Vec::new() };
    let since = |hash: &str| plan.records.get(hash).and_then(|record| record.target_since);
    let mut revisions: Vec<_> = facts.revisions.values().collect();
    revisions.sort_by_key(|revision| std::cmp::Reverse((since(&revision.hash), revision.hash.clone())));
    let status = |revision: &crate::build::Revision| RevisionStatus {
        name: names::revision(&facts.observed.name, &revision.hash),
        hash: revision.hash.clone(),
        image: revision.image(),
        replicas: number(of_revision(facts.observed, &revision.hash).count()),
        weight: plan.weights.get(&revision.hash).and_then(|weight| i32::try_from(*weight).ok()).unwrap_or_default(),
    };
    revisions.into_iter().map(status).collect()
}

fn model_status(facts: &Facts<'_>, model: &Model) -> ModelStatus {
    let pods = focus(facts);
    let state = pods.iter().map(|pod| state(facts, pod, model)).min().unwrap_or_default();
    let found = pods.iter().filter_map(|pod| facts.findings.get(&pod.name_any()));
    let error = found.into_iter().find(|finding| is_about(finding, model)).map(|finding| ModelError {
        reason: finding.reason.to_owned(),
        message: cut(&finding.message(), LONGEST_ERROR_BYTES),
        pod: Some(finding.pod.clone()),
        container: finding.container.clone(),
    });
    let infos = pods.iter().filter_map(|pod| facts.observed.infos.get(&pod.name_any()));
    if let Some(before) = told_before(facts, model).filter(|_| error.is_none() && state == ModelState::Loaded) {
        return before;
    }
    let told = infos.flat_map(|info| &info.models).find(|told| told.name == model.name);
    let of_file = model.files.iter().find(|file| file.path == "model.onnx").map(|file| file.sha256.clone());
    ModelStatus {
        name: model.name.clone(),
        state,
        digest: told.and(model.sha256.clone().or(of_file)),
        bytes: told.and_then(|told| told.bytes),
        // To the millisecond: that is what was measured, not more.
        load_seconds: told.map(|told| ((told.load_seconds + told.warmup_seconds) * 1e3).round() / 1e3),
        provider: told.and_then(|told| told.provider.as_deref().map(|provider| cut(provider, 64))),
        last_error: error,
    }
}

/// What pods of the same revision have told, while one of them has not yet: an operator that was started anew asks them all
/// again, and would else write each status twice.
fn told_before(facts: &Facts<'_>, model: &Model) -> Option<ModelStatus> {
    let (status, plan) = (facts.observed.model.status.as_ref()?, facts.plan?);
    let same_revision = status.active_revision == Some(names::revision(&facts.observed.name, &plan.active));
    let has_told = |pod: &&Pod| facts.observed.infos.contains_key(&pod.name_any());
    let is_waiting = focus(facts).iter().any(|pod| ready_since(pod).is_some() && !has_told(pod));
    let before = status.models.iter().find(|before| before.name == model.name && before.state == ModelState::Loaded);
    before.filter(|_| same_revision && is_waiting).cloned()
}

fn state(facts: &Facts<'_>, pod: &Pod, model: &Model) -> ModelState {
    if facts.findings.get(&pod.name_any()).is_some_and(|finding| is_about(finding, model)) {
        return ModelState::Failed;
    }
    match progress(pod) {
        Progress::Unscheduled | Progress::Preparing => ModelState::Pending,
        Progress::Fetching { model: fetched } if fetched == model.name => ModelState::Fetching,
        Progress::Fetching { .. } => ModelState::Pending,
        Progress::Loading => ModelState::Loading,
        Progress::Withheld { .. } | Progress::Ready => ModelState::Loaded,
    }
}

/// A finding that names no model is about all of them, unless the pod has not even a node.
fn is_about(finding: &Finding, model: &Model) -> bool {
    finding.condition == model_loaded::TYPE && finding.model.as_ref().is_none_or(|name| *name == model.name)
}

/// The first finding for a condition among the pods that matter.
fn finding<'a>(facts: &Facts<'a>, condition: &str) -> Option<&'a Finding> {
    let found = |pods: Vec<&'a Pod>| {
        let mut found = pods.into_iter().filter_map(|pod| facts.findings.get(&pod.name_any()));
        found.find(|finding| finding.condition == condition)
    };
    found(focus(facts)).or_else(|| found(ended_last(facts, condition)))
}

/// Pods of the target that their nodes have ended, where none of it serves: they say why. Kubernetes keeps such pods for weeks, so where
/// others live only those count that ended a moment ago, and they say nothing of nodes once another one has a node. The one that ended
/// first comes first, so that not each that follows it is news.
fn ended_last<'a>(facts: &Facts<'a>, condition: &str) -> Vec<&'a Pod> {
    let Some(target) = facts.target.filter(|target| facts.plan.is_some_and(|plan| plan.active == *target)) else {
        return Vec::new();
    };
    let living: Vec<&Pod> = of_revision(facts.observed, target).collect();
    let has_node = |pod: &&Pod| pod.spec.as_ref().is_some_and(|spec| spec.node_name.is_some());
    if living.iter().any(|pod| ready_since(pod).is_some())
        || condition == scheduled::TYPE && living.iter().any(has_node)
    {
        return Vec::new();
    }
    let is_of_target = |pod: &Pod| pod.labels().get(names::REVISION_LABEL).is_some_and(|hash| hash == target);
    let is_new = |pod: &Pod| is_news_until(pod).is_some_and(|until| facts.observed.now < until);
    let pods = facts.observed.pods.values().map(|pod| &**pod).filter(|pod| has_ended(pod) && is_of_target(pod));
    let mut ended: Vec<&Pod> = pods.filter(|pod| living.is_empty() || is_new(pod)).collect();
    ended.sort_by_key(|pod| ended_at(pod));
    ended
}

/// How long it says something of the others that a pod was ended by its node.
const ENDED_IS_NEWS: Duration = Duration::from_secs(300);

/// Until when it says something of the others that a pod was ended by its node.
pub(crate) fn is_news_until(pod: &Pod) -> Option<Timestamp> {
    Some(later(ended_at(pod)?, ENDED_IS_NEWS))
}

/// When a condition of a pod that has ended changed last.
fn ended_at(pod: &Pod) -> Option<Timestamp> {
    let conditions = pod.status.iter().flat_map(|status| status.conditions.iter().flatten());
    let changed = conditions.filter_map(|condition| condition.last_transition_time.as_ref()).map(|time| time.0).max();
    changed.or_else(|| pod.creation_timestamp().map(|time| time.0))
}

/// The pods that the conditions speak of: those of the revision that the spec asks for, or, where it has none, of the one
/// that serves.
fn focus<'a>(facts: &Facts<'a>) -> Vec<&'a Pod> {
    let Some(plan) = facts.plan else { return Vec::new() };
    let candidates = facts.target.into_iter().chain([plan.active.as_str()]);
    let mut pods = candidates.map(|hash| of_revision(facts.observed, hash).collect::<Vec<_>>());
    pods.find(|pods| !pods.is_empty()).unwrap_or_default()
}

fn focus_deployment<'a>(facts: &Facts<'a>) -> Option<&'a Deployment> {
    let name = names::revision(&facts.observed.name, facts.target?);
    facts.observed.deployments.get(&name).map(|deployment| &**deployment)
}

fn of_revision<'a>(observed: &'a Observed, hash: &str) -> impl Iterator<Item = &'a Pod> {
    let pods = observed.pods.values().map(|pod| &**pod);
    pods.filter(move |pod| is_alive(pod) && pod.labels().get(names::REVISION_LABEL).is_some_and(|it| it == hash))
}

/// Neither told to end nor ended.
fn is_alive(pod: &Pod) -> bool {
    pod.metadata.deletion_timestamp.is_none() && !has_ended(pod)
}

fn wanted(facts: &Facts<'_>) -> i32 {
    let spec = &facts.observed.model.spec;
    if spec.suspend { 0 } else { spec.replicas }
}

pub(crate) fn cut(text: &str, bytes: usize) -> String {
    text[..text.floor_char_boundary(bytes)].to_owned()
}

fn number(count: usize) -> i32 {
    i32::try_from(count).unwrap_or(i32::MAX)
}

/// The condition of a type.
#[must_use]
pub fn find<'a>(status: &'a InferenceModelStatus, type_: &str) -> Option<&'a Condition> {
    status.conditions.iter().find(|condition| condition.type_ == type_)
}
