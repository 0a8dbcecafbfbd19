//! The facts that a rollout is decided from, out of what was observed.

use std::{collections::BTreeMap, time::Duration};

use crds::resource::{InferenceModelSpec, RolloutStrategy};
use k8s_openapi::{api::core::v1::Pod, jiff::Timestamp};
use kube::ResourceExt as _;

use crate::{
    autoscalers,
    build::{self, Images, Revisions, revision},
    clock::later,
    diagnose::{Finding, diagnose, progress, waits_for_room_since},
    names,
    observe::{Observed, has_ended, ready_since},
    rollout::{self, PodFacts, Situation},
    status,
    validate::Checked,
};

/// A pod is waited for so long after its grace period, which its deletion time includes.
pub(crate) const OVERDUE_AFTER: Duration = Duration::from_secs(30);

/// What is wrong with each pod that is not about to go.
pub(crate) fn findings(observed: &Observed) -> BTreeMap<String, Finding> {
    let found =
        staying(observed).filter_map(|(name, pod)| Some((name.clone(), diagnose(pod, observed.warnings.get(name))?)));
    found.collect()
}

fn staying(observed: &Observed) -> impl Iterator<Item = (&String, &Pod)> {
    let staying = observed.pods.iter().filter(|(_, pod)| pod.metadata.deletion_timestamp.is_none());
    staying.map(|(name, pod)| (name, &**pod))
}

/// The revisions, with that of the spec, and the hash of the one that is asked for. While the spec cannot be acted on,
/// that is the one that was asked for last.
pub(crate) fn revisions(
    observed: &Observed,
    checked: Option<&Checked<'_>>,
    images: &Images,
) -> (Revisions, Option<String>) {
    let mut revisions = revision::known(observed);
    let Some(checked) = checked else {
        let last = revisions.values().filter(|revision| revision.record.target_since.is_some());
        let last = last.max_by_key(|revision| revision.record.target_since).map(|revision| revision.hash.clone());
        return (revisions, last);
    };
    let hash = revision::hash(&observed.model);
    if !revisions.contains_key(&hash) {
        revisions.insert(hash.clone(), build::Revision::born(&observed.model, checked, images));
    }
    (revisions, Some(hash))
}

/// What of it matters for the way to the revision `target`.
pub(crate) fn situation(
    observed: &Observed,
    revisions: &Revisions,
    target: &str,
    findings: &BTreeMap<String, Finding>,
    led_for: Duration,
    is_refused: bool,
) -> Situation {
    let spec = &observed.model.spec;
    // A number that was written, where nobody may raise it.
    let is_exact = is_refused || autoscalers::is_paused(observed);
    let replicas = if is_exact { spec.replicas } else { spec.scaling.at_least_min(spec.replicas) };
    let there = revisions.values().map(|revision| facts_of(observed, revision).replicas);
    let is_of_target = |pod: &Pod| pod.labels().get(names::REVISION_LABEL).is_some_and(|revision| revision == target);
    let found = |ended: bool| {
        let pod =
            |name: &String| observed.pods.get(name).is_some_and(|pod| is_of_target(pod) && has_ended(pod) == ended);
        findings.iter().find(|(name, _)| pod(name)).map(|(_, finding)| finding.message())
    };
    // Nothing is wrong, but it may take too long.
    let still_at = || {
        let living = staying(observed).filter(|(_, pod)| !has_ended(pod));
        let mut pods = living.filter(|(_, pod)| is_of_target(pod) && ready_since(pod).is_none());
        pods.next().map(|(name, pod)| progress(pod).sentence(name))
    };
    let refused = || {
        let deployment = observed.deployments.get(&names::revision(&observed.name, target))?;
        status::refused_pods(deployment).map(|refusal| refusal.message)
    };
    Situation {
        target: target.to_owned(),
        revisions: revisions.values().map(|revision| (revision.hash.clone(), facts_of(observed, revision))).collect(),
        wanted: wanted(spec, replicas, there),
        // What is refused takes nothing away that serves.
        strategy: if is_refused { RolloutStrategy::Surge } else { spec.rollout.strategy },
        is_refused,
        surge_timeout: spec.rollout.surge_timeout.length(),
        progress_deadline: spec.rollout.progress_deadline.length(),
        cause: found(false).or_else(still_at).or_else(refused).or_else(|| found(true)),
        led_since: observed.now - led_for,
        now: observed.now,
    }
}

/// Pods that should serve. Where the spec does not tell, for that could not be read, it stays at what `there` is of each revision: of
/// two together one more, by which the new one begins.
fn wanted(spec: &InferenceModelSpec, replicas: i32, there: impl Iterator<Item = u32>) -> u32 {
    if spec.unread.iter().any(|fault| ["spec.replicas", "spec.suspend"].contains(&fault.path.as_str())) {
        let there: Vec<u32> = there.filter(|replicas| *replicas > 0).collect();
        return there.iter().sum::<u32>() - u32::from(there.len() > 1);
    }
    if spec.suspend { 0 } else { u32::try_from(replicas).unwrap_or_default() }
}

fn facts_of(observed: &Observed, revision: &build::Revision) -> rollout::Revision {
    let deployment = observed.deployments.get(&names::revision(&observed.name, &revision.hash));
    let replicas = deployment.and_then(|deployment| deployment.spec.replicas);
    let pods = observed.pods.values().filter(|pod| {
        !has_ended(pod)
            && !is_overdue(pod, observed.now)
            && pod.labels().get(names::REVISION_LABEL).is_some_and(|hash| *hash == revision.hash)
    });
    let replicas = replicas.and_then(|replicas| u32::try_from(replicas).ok()).unwrap_or_default();
    let mut pods: Vec<PodFacts> = pods
        .map(|pod| PodFacts {
            ready_since: ready_since(pod),
            terminating: pod.metadata.deletion_timestamp.is_some(),
            unschedulable_since: waits_for_room_since(pod),
        })
        .collect();
    // Those that a quota has no room for are not there to say so. A ReplicaSet tries again after ever longer pauses, but at once when its
    // Deployment changes, as it does where the record of the rollout notes that room was made.
    if let Some(since) = deployment.and_then(|deployment| status::waits_for_quota_since(deployment)) {
        let there = pods.iter().filter(|pod| !pod.terminating).count();
        let missing = (replicas as usize).saturating_sub(there);
        let waiting = PodFacts { ready_since: None, terminating: false, unschedulable_since: Some(since) };
        pods.extend(std::iter::repeat_n(waiting, missing));
    }
    rollout::Revision { replicas, pods, record: revision.record.clone() }
}

/// Whether a pod should have been gone for long: its node has been lost, and nobody waits for it.
fn is_overdue(pod: &Pod, now: Timestamp) -> bool {
    let until = pod.metadata.deletion_timestamp.as_ref().map(|until| later(until.0, OVERDUE_AFTER));
    until.is_some_and(|until| until < now)
}

#[cfg(test)]
mod tests {
    use crds::serving::Fault;

    use super::*;

    #[test]
    fn whose_replicas_are_not_known_keeps_what_there_is() {
        let spec = |unread: &[&str], suspend| {
            let fault = |path: &&str| Fault { path: (*path).to_owned(), origin: String::new(), message: String::new() };
            InferenceModelSpec { unread: unread.iter().map(fault).collect(), suspend, ..InferenceModelSpec::default() }
        };
        for (unread, suspend, there, expected) in [
            (&["spec.replicas"][..], false, &[0, 4][..], 4),
            (&["spec.suspend", "spec.podTemplate"], false, &[4, 1], 4),
            (&["spec.replicas"], false, &[], 0),
            (&["spec.podTemplate"], false, &[4], 7),
            (&["spec.podTemplate"], true, &[4], 0),
        ] {
            let wanted = wanted(&spec(unread, suspend), 7, there.iter().copied());
            assert_eq!(wanted, expected, "{unread:?}, {suspend}, {there:?}");
        }
    }
}
