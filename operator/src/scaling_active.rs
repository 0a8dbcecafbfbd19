//! Whether the number of replicas follows the load, and by whose decision: the condition `ScalingActive` and `status.scaling`. Pure
//! functions.
//!
//! What others tell is told in their words, less what changes each time they are asked: a status is written when something is news.

use crds::resource::{
    InferenceModelSpec, ScalingMode, ScalingStatus,
    conditions::scaling_active::{
        self, ACTIVE, CONFLICTING_AUTOSCALER, CRD_NOT_INSTALLED, EXTERNAL_OWNER, LIMITED_BY_MAX, METRICS_STALE, OFF,
    },
};

use crate::{
    autoscalers::{self, Autoscaler, Maker, Target},
    causes::lasting,
    keda::{self, ScaledObject},
    kinds::OptionalKind,
    observe::Observed,
    scaling::{Reason, State},
    status::{Facts, Verdict, cut, find},
};

/// What the schema allows.
const LONGEST_REASON_BYTES: usize = 1024;

/// None are wanted, and none of our modes begins from there.
const AT_NONE: &str = "spec.replicas is 0, so nobody scales. Set it to 1 to begin again";

/// The operator is to begin by a spec that cannot be acted on.
const NOT_YET: &str = "nobody scales, or who did before: the operator begins when the spec is accepted";

/// The condition.
pub(crate) fn verdict(facts: &Facts<'_>) -> Verdict {
    let observed = facts.observed;
    let conflicting = autoscalers::conflicting(observed);
    if !conflicting.is_empty() {
        let told: Vec<String> = conflicting.into_iter().map(|it| conflict(observed, it)).collect();
        return Verdict::no(CONFLICTING_AUTOSCALER, told.join("; "));
    }
    let mode = spec(observed).scaling.effective_mode();
    if spec(observed).suspend && mode.is_some() {
        return Verdict::yes(OFF, "nobody scales while the spec says suspend");
    }
    let leaving = autoscalers::leaving(observed);
    match mode {
        Some(ScalingMode::Operator) if !leaving.is_empty() => {
            Verdict::unknown(format!("the operator scales when {} is gone", leaving.join(" and ")))
        }
        None => Verdict::yes(OFF, "nobody scales, as the spec wants it"),
        Some(_) if autoscalers::is_off(observed) && !autoscalers::is_paused(observed) => Verdict::yes(OFF, AT_NONE),
        Some(ScalingMode::Operator) => operator_mode(facts),
        Some(ScalingMode::Hpa) => hpa_mode(facts),
        Some(ScalingMode::Keda) => keda_mode(facts),
        Some(ScalingMode::External) => external_mode(observed),
    }
}

/// The last decision on the number of replicas.
pub(crate) fn decision(facts: &Facts<'_>) -> Option<ScalingStatus> {
    if spec(facts.observed).scaling.effective_mode() == Some(ScalingMode::Operator) {
        return last_step(facts.observed);
    }
    // An autoscaler that has never decided, as one without numbers, says 0.
    let autoscaler = autoscalers::wanted(facts.observed).filter(|it| it.desired > 0)?;
    Some(ScalingStatus {
        desired: autoscaler.desired,
        reason: cut(&standing(facts.observed, autoscaler).message, LONGEST_REASON_BYTES),
        last_scale_time: autoscaler.last_scale_time.clone(),
    })
}

/// The last step of ours, of whatever process. What was said of another's is over with it.
fn last_step(observed: &Observed) -> Option<ScalingStatus> {
    let before = || observed.model.status.as_ref().and_then(|status| status.scaling.clone());
    let before = || before().filter(|before| !before.reason.starts_with(autoscalers::KIND));
    observed.scaling.as_ref().and_then(|outcome| outcome.step.clone()).or_else(before)
}

fn spec(observed: &Observed) -> &InferenceModelSpec {
    &observed.model.spec
}

fn conflict(observed: &Observed, autoscaler: &Autoscaler) -> String {
    if let Target::Deployment(name) = &autoscaler.target {
        return format!(
            "{autoscaler} writes the replicas of Deployment {name}, which are the operator's. Delete it, or have it scale \
             InferenceModel {} with spec.scaling.mode External",
            observed.name
        );
    }
    let wanted = spec(observed).scaling.effective_mode().map_or("unset", ScalingMode::as_str);
    format!(
        "{autoscaler} writes the number of replicas, but spec.scaling.mode is {wanted}. Delete it, or set the mode to External"
    )
}

/// What mode Operator says while nothing is in the way.
const FOLLOWS: &str = "the number of replicas follows the load";

/// Where the load asks for another number, after this comes why it stays.
const STAYS: &str = "the number of replicas stays: ";

/// With what keeps another number than the load asks for. While that is not known, what was said before still holds.
fn active(facts: &Facts<'_>, lasting: Option<Reason>) -> Verdict {
    match lasting {
        Some(reason) if holds(reason) => Verdict::yes(ACTIVE, format!("{STAYS}{reason}")),
        Some(_) => Verdict::yes(ACTIVE, FOLLOWS),
        None => {
            let before = facts.observed.model.status.as_ref().and_then(|status| find(status, scaling_active::TYPE));
            let held = before.map(|it| it.message.as_str()).filter(|message| message.starts_with(STAYS));
            Verdict::yes(ACTIVE, held.unwrap_or(FOLLOWS))
        }
    }
}

/// Whether the number stays though the load is not what so many should carry.
fn holds(reason: Reason) -> bool {
    match reason {
        Reason::Brief
        | Reason::Rising
        | Reason::Stabilizing
        | Reason::Returning
        | Reason::AfterBurst
        | Reason::Settling
        | Reason::Late
        | Reason::Rollout
        | Reason::TooFew
        | Reason::Silent
        | Reason::Waiting
        | Reason::Pace
        | Reason::InVain => true,
        Reason::Steady
        | Reason::Bounds
        | Reason::Load
        | Reason::Burst
        | Reason::Refusals
        | Reason::Latency
        | Reason::Idle
        | Reason::NoReplicaReady
        | Reason::Stale
        | Reason::Off => false,
    }
}

fn operator_mode(facts: &Facts<'_>) -> Verdict {
    let limited = || {
        let max = facts.observed.model.spec.scaling.max_replicas.unwrap_or_default();
        let message = format!("the load asks for more than maxReplicas, which is {max}");
        Verdict::yes(LIMITED_BY_MAX, message)
    };
    let stale = || Verdict {
        status: "Unknown",
        reason: METRICS_STALE,
        message:
            "more than half of the ready pods do not tell their load on port 9090, or the last numbers are too old, \
                  so the number of replicas stays. Check that no NetworkPolicy keeps the operator from them"
                .to_owned(),
    };
    let Some(outcome) = &facts.observed.scaling else {
        // This process has not looked yet: what was said before still holds.
        let before = facts.observed.model.status.as_ref().and_then(|status| find(status, scaling_active::TYPE));
        return match before.map(|before| before.reason.as_str()) {
            Some(LIMITED_BY_MAX) => limited(),
            Some(METRICS_STALE) => stale(),
            // A spec that is refused begins nothing.
            None | Some(OFF) if facts.refusal.is_some() => Verdict::yes(OFF, NOT_YET),
            Some(EXTERNAL_OWNER) if facts.refusal.is_some() => Verdict::yes(EXTERNAL_OWNER, NOT_YET),
            _ => active(facts, None),
        };
    };
    match &outcome.state {
        State::Active => active(facts, outcome.lasting),
        State::LimitedByMax => limited(),
        State::Stale => stale(),
        State::NoReplicaReady => Verdict::yes(ACTIVE, "no replica is ready, so the number of replicas stays"),
        State::CannotWrite(error) => {
            Verdict::unknown(format!("the number of replicas stays, for another cannot be written: {error}"))
        }
    }
}

fn external_mode(observed: &Observed) -> Verdict {
    // What a mode before has left is about to go.
    let others = observed.autoscalers.iter().filter(|it| it.maker(&observed.name) == Maker::Other);
    let found: Vec<String> = others.map(ToString::to_string).collect();
    if found.is_empty() {
        return Verdict::yes(
            EXTERNAL_OWNER,
            "whoever writes the scale subresource decides; no HorizontalPodAutoscaler with this target is there",
        );
    }
    if found.len() > 1 {
        let message = format!(
            "{} scale the same pods, so Kubernetes stops each of them (AmbiguousSelector). Delete all but one",
            found.join(" and ")
        );
        return Verdict::no(CONFLICTING_AUTOSCALER, message);
    }
    Verdict::yes(EXTERNAL_OWNER, format!("{} decides", found.join(", ")))
}

fn hpa_mode(facts: &Facts<'_>) -> Verdict {
    match autoscalers::wanted(facts.observed) {
        Some(autoscaler) => standing(facts.observed, autoscaler),
        None => not_there(facts, autoscalers::KIND),
    }
}

fn keda_mode(facts: &Facts<'_>) -> Verdict {
    let observed = facts.observed;
    if !observed.has_keda {
        let definition = OptionalKind::ScaledObject.definition();
        let message = format!(
            "the cluster has no {definition}, so nobody scales. Install KEDA, or set spec.scaling.mode to Operator, which \
             needs nothing"
        );
        return Verdict::no(CRD_NOT_INSTALLED, message);
    }
    let Some(object) = observed.scaled_objects.get(&observed.name) else { return not_there(facts, keda::KIND) };
    if let Some(verdict) = hindrance(object, &observed.name) {
        return verdict;
    }
    match autoscalers::wanted(observed) {
        Some(autoscaler) => standing(observed, autoscaler),
        None => Verdict::unknown(format!(
            "KEDA has made no {} for {} {} yet. If none comes, look whether KEDA runs",
            autoscalers::KIND,
            keda::KIND,
            observed.name
        )),
    }
}

/// What KEDA says is in the way.
fn hindrance(object: &ScaledObject, name: &str) -> Option<Verdict> {
    let told = |type_: &str, status: &str| object.condition(type_).filter(|told| told.status == status);
    let message = |text: &str| format!("{} {name}: {}", keda::KIND, lasting(text));
    if let Some(paused) = told(keda::PAUSED, "True") {
        return Some(Verdict::yes(OFF, message(&paused.message)));
    }
    if let Some(ready) = told(keda::READY, "False") {
        return Some(Verdict::no(METRICS_STALE, message(&ready.message)));
    }
    let fallback = told(keda::FALLBACK, "True")?;
    let text =
        format!("{}. KEDA gets no numbers from Prometheus, so the replicas that there are stay", fallback.message);
    Some(Verdict::no(METRICS_STALE, message(&text)))
}

/// What is wanted, but is not there.
fn not_there(facts: &Facts<'_>, kind: &str) -> Verdict {
    let leaving = autoscalers::leaving(facts.observed);
    if facts.refusal.is_some() {
        return Verdict::unknown(format!("the spec is not acted on, so there is no {kind} yet"));
    }
    if !leaving.is_empty() {
        return Verdict::unknown(format!("the {kind} comes when {} is gone", leaving.join(" and ")));
    }
    Verdict::unknown(format!("the {kind} is about to be there"))
}

/// What an autoscaler tells of itself. As long as nothing is in the way its own sentences are left out: they change whenever the
/// load does.
fn standing(observed: &Observed, autoscaler: &Autoscaler) -> Verdict {
    let name = &autoscaler.name;
    let message = |text: &str| format!("{} {name}: {}", autoscalers::KIND, lasting(text));
    let told = |type_: &str, status: &str| autoscaler.condition(type_).filter(|told| told.status == status);
    if let Some(unable) = told("AbleToScale", "False") {
        return Verdict::unknown(message(&format!("the number of replicas stays: {}", unable.message)));
    }
    if let Some(inactive) = told("ScalingActive", "False") {
        return match inactive.reason.as_str() {
            "ScalingDisabled" => Verdict::yes(OFF, AT_NONE),
            // Its list of them is in another order each time.
            "AmbiguousSelector" => Verdict::no(
                CONFLICTING_AUTOSCALER,
                message(&format!("another one counts the same pods; `kubectl describe hpa {name}` names both")),
            ),
            _ => Verdict::no(METRICS_STALE, message(&inactive.message)),
        };
    }
    if autoscaler.condition("ScalingActive").is_none() {
        return Verdict::unknown(message("it has not been looked at yet"));
    }
    if told("ScalingLimited", "True").is_some_and(|told| told.reason == "TooManyReplicas") {
        let most = spec(observed).scaling.max_replicas.unwrap_or_default();
        return Verdict::yes(
            LIMITED_BY_MAX,
            message(&format!("more replicas are wanted than maxReplicas, {most}, allows")),
        );
    }
    Verdict::yes(ACTIVE, format!("{autoscaler} scales{}", ignored_tolerance(observed, autoscaler)))
}

/// A cluster that does not know the field drops it without a word.
fn ignored_tolerance(observed: &Observed, autoscaler: &Autoscaler) -> &'static str {
    match spec(observed).scaling.behavior.as_ref().and_then(|behavior| behavior.tolerance_percent) {
        Some(_) if !autoscaler.has_tolerance => {
            "; this cluster has one tolerance for all, so spec.scaling.behavior.tolerancePercent has no effect"
        }
        _ => "",
    }
}
