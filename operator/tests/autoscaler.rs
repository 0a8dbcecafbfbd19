//! Who scales in each mode: the objects as reviewed snapshots, when each of them may be there, and what the InferenceModel is told.
//!
//! `UPDATE=1 cargo test -p ortolan-operator --test autoscaler` writes the snapshots anew.

#![allow(clippy::unwrap_used, reason = "a test may panic")]
#![allow(clippy::disallowed_methods, reason = "a test is told by its environment to write snapshots anew")]

use std::{collections::BTreeMap, fs, path::Path, sync::Arc};

use crds::resource::{
    InferenceModelStatus,
    conditions::{READY, accepted, scaling_active},
};
use k8s_openapi::api::autoscaling::v2::HorizontalPodAutoscaler;
use ortolan_operator::{
    apply::Applied,
    autoscalers::{self, Autoscaler, Maker, Target, Told},
    build::{
        Scaler,
        autoscaler::{LOAD_METRIC, QUEUE_METRIC, horizontal_pod_autoscaler, scaled_object, scaler},
    },
    keda::ScaledObject,
    observe::Observed,
    rollout::{Plan, Stage},
    scaling::{Outcome, Reason, State},
    status::{Facts, find, status},
    validate::{Refusal, validate},
};
use serde_json::{Value, json};

const PROMETHEUS: &str = "http://prometheus.watch:9090";

/// An InferenceModel of its own namespace, with nothing there yet.
fn observed(scaling: Value) -> Observed {
    let model = json!({
        "apiVersion": "ortolan.dev/v1alpha1",
        "kind": "InferenceModel",
        "metadata": {"name": "espresso", "namespace": "coffee", "uid": "6ad4", "generation": 3},
        "spec": {"models": [{"name": "a", "source": {"uri": "file:///a.onnx"}}], "scaling": scaling},
    });
    Observed { has_keda: true, ..Observed::bare(Arc::new(serde_json::from_value(model).unwrap())) }
}

fn mode(mode: &str) -> Value {
    json!({"mode": mode, "minReplicas": 2, "maxReplicas": 7, "targets": {"inflightPerReplica": 8}})
}

fn everything(mode: &str) -> Value {
    json!({
        "mode": mode,
        "minReplicas": 2,
        "maxReplicas": 7,
        "targets": {"inflightPerReplica": 2000, "queuePerReplica": 5},
        "behavior": {
            "scaleUp": {"stabilization": "1500ms", "maxPerStep": 3},
            "scaleDown": {"stabilization": "2m", "maxPerMinute": 4},
            "tolerancePercent": 15,
        },
    })
}

/// One that scales the InferenceModel.
fn autoscaler(name: &str, owner: Option<(&str, &str, &str)>) -> Autoscaler {
    let owner = owner.map(|(api_version, kind, name)| {
        let owner = json!({"apiVersion": api_version, "kind": kind, "name": name, "uid": format!("uid-{name}"), "controller": true});
        serde_json::from_value(owner).unwrap()
    });
    Autoscaler {
        is_left: false,
        name: name.to_owned(),
        target: Target::Model("espresso".to_owned()),
        owner,
        label: None,
        has_tolerance: false,
        desired: 4,
        last_scale_time: None,
        conditions: Vec::new(),
    }
}

fn ours() -> Autoscaler {
    autoscaler("espresso", Some(("ortolan.dev/v1alpha1", "InferenceModel", "espresso")))
}

fn kedas() -> Autoscaler {
    let keda = autoscaler("keda-hpa-espresso", Some(("keda.sh/v1alpha1", "ScaledObject", "espresso")));
    Autoscaler { label: Some("espresso".to_owned()), ..keda }
}

fn foreign() -> Autoscaler {
    autoscaler("hand-made", None)
}

/// What is there besides.
trait With {
    fn with(self, autoscaler: Autoscaler) -> Self;
    fn with_scaled_object(self, conditions: Value) -> Self;
}

impl With for Observed {
    fn with(mut self, autoscaler: Autoscaler) -> Self {
        if autoscaler.maker("espresso") == Maker::Operator {
            let object: HorizontalPodAutoscaler = horizontal_pod_autoscaler(&self.model);
            self.horizontal_pod_autoscalers.insert(autoscaler.name.clone(), Arc::new(object));
        }
        self.autoscalers.push(Arc::new(autoscaler));
        self
    }

    fn with_scaled_object(mut self, conditions: Value) -> Self {
        let mut object: ScaledObject = scaled_object(&self.model, PROMETHEUS);
        object.status = Some(serde_json::from_value(json!({"conditions": conditions})).unwrap());
        self.scaled_objects.insert("espresso".to_owned(), Arc::new(object));
        self
    }
}

/// One that tells `ScalingActive` and what else is given, as type, status, reason and message.
fn telling(autoscaler: Autoscaler, told: &[[&str; 4]]) -> Autoscaler {
    let conditions = told.iter().map(|[type_, status, reason, message]| Told {
        type_: (*type_).to_owned(),
        status: (*status).to_owned(),
        reason: (*reason).to_owned(),
        message: (*message).to_owned(),
    });
    Autoscaler { conditions: conditions.collect(), ..autoscaler }
}

const WORKS: [&str; 4] = ["ScalingActive", "True", "ValidMetricFound", "it could calculate"];

fn told_status(observed: &Observed, refusal: Option<&Refusal>) -> InferenceModelStatus {
    let plan = Plan {
        replicas: BTreeMap::new(),
        without_active: BTreeMap::new(),
        weights: BTreeMap::new(),
        active: "abc".to_owned(),
        stage: Stage::Complete,
        is_overdue: false,
        records: BTreeMap::new(),
        look_again: None,
    };
    status(&Facts {
        observed,
        findings: &BTreeMap::new(),
        refusal,
        revisions: &BTreeMap::new(),
        plan: Some(&plan),
        target: Some("abc"),
        applied: &Applied::default(),
        failure: None,
    })
}

/// Status, reason and message of the condition.
fn told(observed: &Observed) -> (String, String, String) {
    let status = told_status(observed, None);
    let condition = find(&status, scaling_active::TYPE).unwrap();
    (condition.status.clone(), condition.reason.clone(), condition.message.clone())
}

fn is(observed: &Observed, status: &str, reason: &str, says: &[&str]) {
    let told = told(observed);
    assert_eq!((told.0.as_str(), told.1.as_str()), (status, reason), "{}", told.2);
    says.iter().for_each(|part| assert!(told.2.contains(part), "{part:?} is not in: {}", told.2));
}

fn decided(observed: &Observed) -> Scaler {
    scaler(observed, Some(&validate(&observed.model.spec, Some(PROMETHEUS)).unwrap()))
}

fn check(name: &str, found: &Value) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/snapshots").join(name);
    let found = serde_json::to_string_pretty(found).unwrap() + "\n";
    if std::env::var_os("UPDATE").is_some() {
        fs::write(&path, &found).unwrap();
    }
    let stored = fs::read_to_string(&path).unwrap_or_default();
    assert_eq!(stored, found, "{} is stale: run with UPDATE=1 and review it", path.display());
}

#[test]
fn the_horizontal_pod_autoscaler_with_little_and_with_everything() {
    let of = |scaling| horizontal_pod_autoscaler(&observed(scaling).model);
    check("hpa.json", &json!({"little": of(mode("HPA")), "everything": of(everything("HPA"))}));
}

#[test]
fn the_scaled_object_with_little_and_with_everything() {
    let of = |scaling| scaled_object(&observed(scaling).model, PROMETHEUS);
    check("keda.json", &json!({"little": of(mode("KEDA")), "everything": of(everything("KEDA"))}));
}

#[test]
fn the_rules_for_prometheus_adapter_make_the_metrics_that_are_followed() {
    let rules = include_str!("../../deploy/rules/prometheus-adapter.yaml");
    for metric in [LOAD_METRIC, QUEUE_METRIC] {
        assert!(rules.contains(&format!("name: {{as: {metric}}}")), "{metric}");
    }
}

#[test]
fn each_mode_has_its_own_object_and_the_others_have_none() {
    assert!(matches!(decided(&observed(mode("HPA"))), Scaler::Hpa(_)));
    assert!(matches!(decided(&observed(mode("KEDA"))), Scaler::Keda(_)));
    for scaling in [mode("Operator"), mode("External"), json!({})] {
        assert_eq!(decided(&observed(scaling.clone())), Scaler::Nothing, "{scaling}");
    }
    let without_keda = Observed { has_keda: false, ..observed(mode("KEDA")) };
    assert_eq!(decided(&without_keda), Scaler::Nothing);
}

#[test]
fn while_the_spec_cannot_be_acted_on_what_scales_goes_on() {
    let refused = observed(json!({"mode": "HPA", "maxReplicas": 7, "targets": {"latency": {"target": "50ms"}}}));
    let refusal = validate(&refused.model.spec, None).unwrap_err();
    assert_eq!(refusal.reason, accepted::NOT_IMPLEMENTED);
    assert_eq!(scaler(&refused, None), Scaler::AsBefore);
    let status = told_status(&refused, Some(&refusal));
    let condition = find(&status, scaling_active::TYPE).unwrap();
    assert_eq!(condition.status, "Unknown");
    assert!(condition.message.contains("the spec is not acted on"), "{}", condition.message);
}

#[test]
fn a_spec_that_was_never_acted_on_is_scaled_by_nobody() {
    let refused = observed(mode("Operator"));
    let refusal = validate(&observed(mode("KEDA")).model.spec, None).unwrap_err();
    let status = told_status(&refused, Some(&refusal));
    let condition = find(&status, scaling_active::TYPE).unwrap();
    assert_eq!((condition.status.as_str(), condition.reason.as_str()), ("True", "Off"));
    assert!(condition.message.contains("begins when the spec is accepted"), "{}", condition.message);
}

#[test]
fn keda_without_the_address_of_prometheus_is_refused_with_the_remedy() {
    let refusal = validate(&observed(mode("KEDA")).model.spec, None).unwrap_err();
    assert_eq!(refusal.reason, accepted::NOT_IMPLEMENTED);
    assert!(refusal.message.starts_with("spec.scaling.mode: "), "{}", refusal.message);
    assert!(refusal.message.contains("prometheus.url"), "{}", refusal.message);
    assert!(validate(&observed(mode("HPA")).model.spec, None).is_ok());
}

#[test]
fn from_hpa_to_keda_the_first_is_gone_before_the_second_comes() {
    let both = observed(mode("KEDA")).with(ours());
    assert_eq!(decided(&both), Scaler::Nothing);
    is(&both, "Unknown", "Pending", &["ScaledObject comes when HorizontalPodAutoscaler espresso is gone"]);
    assert!(matches!(decided(&observed(mode("KEDA"))), Scaler::Keda(_)));
}

#[test]
fn from_keda_to_hpa_object_and_autoscaler_are_gone_before_the_next_comes() {
    let both = observed(mode("HPA")).with_scaled_object(json!([])).with(kedas());
    assert_eq!(decided(&both), Scaler::Nothing);
    is(&both, "Unknown", "Pending", &["ScaledObject espresso and HorizontalPodAutoscaler keda-hpa-espresso"]);
    // KEDA's autoscaler goes a moment after its ScaledObject.
    assert_eq!(decided(&observed(mode("HPA")).with(kedas())), Scaler::Nothing);
    assert!(matches!(decided(&observed(mode("HPA"))), Scaler::Hpa(_)));
}

#[test]
fn nobody_else_may_write_before_what_a_mode_has_left_is_gone() {
    for left in [ours(), kedas()] {
        let observed = observed(mode("Operator")).with(left);
        assert!(!autoscalers::is_clear(&observed));
        assert!(autoscalers::conflicting(&observed).is_empty(), "it was never somebody else's");
        assert_eq!(decided(&observed), Scaler::Nothing, "it is removed");
        is(&observed, "Unknown", "Pending", &["the operator scales when HorizontalPodAutoscaler", "is gone"]);
    }
    assert!(!autoscalers::is_clear(&observed(mode("Operator")).with_scaled_object(json!([]))));
    assert!(!autoscalers::is_clear(&observed(mode("Operator")).with(foreign())));
    assert!(autoscalers::is_clear(&observed(mode("Operator"))));
}

#[test]
fn somebody_elses_is_named_with_its_owner_and_the_remedy_and_ours_is_not_made_beside_it() {
    let of_keda = autoscaler("keda-hpa-other", Some(("keda.sh/v1alpha1", "ScaledObject", "other")));
    for wanted in ["HPA", "KEDA", "Operator"] {
        let both = observed(mode(wanted)).with(foreign()).with(of_keda.clone());
        assert_eq!(decided(&both), Scaler::Nothing, "{wanted}");
        let says = [
            "HorizontalPodAutoscaler hand-made writes",
            "HorizontalPodAutoscaler keda-hpa-other of ScaledObject other writes",
            &format!("spec.scaling.mode is {wanted}. Delete it, or set the mode to External"),
        ];
        is(&both, "False", "ConflictingAutoscaler", &says);
        let ready = told_status(&both, None);
        assert_eq!(find(&ready, READY).unwrap().status, "False");
    }
    is(&observed(json!({})).with(foreign()), "False", "ConflictingAutoscaler", &["spec.scaling.mode is unset"]);
}

#[test]
fn one_that_was_there_stays_when_somebody_adds_another() {
    let both = observed(mode("HPA")).with(ours()).with(foreign());
    assert!(matches!(decided(&both), Scaler::Hpa(_)));
    is(&both, "False", "ConflictingAutoscaler", &["hand-made"]);
}

#[test]
fn a_scaled_object_of_somebody_else_with_our_name_is_a_conflict() {
    let same_name = Autoscaler { label: None, ..kedas() };
    assert_eq!(same_name.maker("espresso"), Maker::Other);
    is(&observed(mode("Operator")).with(same_name), "False", "ConflictingAutoscaler", &["of ScaledObject espresso"]);
}

#[test]
fn in_mode_external_whoever_scales_is_named_and_a_deployment_stays_ours() {
    is(&observed(mode("External")), "True", "ExternalOwner", &["no HorizontalPodAutoscaler with this target"]);
    is(&observed(mode("External")).with(foreign()), "True", "ExternalOwner", &["hand-made decides"]);
    is(&observed(mode("External")).with(ours()), "True", "ExternalOwner", &["no HorizontalPodAutoscaler"]);
    let target = Target::Deployment("espresso-0a1b2c3d".to_owned());
    let on_deployment = Autoscaler { target, ..foreign() };
    for scaling in [mode("External"), mode("HPA"), json!({})] {
        let says = ["Deployment espresso-0a1b2c3d", "have it scale InferenceModel espresso"];
        is(&observed(scaling).with(on_deployment.clone()), "False", "ConflictingAutoscaler", &says);
    }
}

#[test]
fn in_mode_external_two_that_scale_the_same_pods_are_a_conflict_and_named() {
    let another = autoscaler("of-a-colleague", None);
    let both = observed(mode("External")).with(foreign()).with(another);
    let says = ["HorizontalPodAutoscaler hand-made and HorizontalPodAutoscaler of-a-colleague", "Delete all but one"];
    is(&both, "False", "ConflictingAutoscaler", &says);
    is(&observed(mode("External")).with(foreign()).with(ours()), "True", "ExternalOwner", &["hand-made decides"]);
}

#[test]
fn what_our_autoscaler_tells_is_told() {
    let hpa = |told: &[[&str; 4]]| observed(mode("HPA")).with(telling(ours(), told));
    is(&observed(mode("HPA")), "Unknown", "Pending", &["about to be there"]);
    is(&hpa(&[]), "Unknown", "Pending", &["not been looked at"]);
    is(&hpa(&[WORKS]), "True", "Active", &["HorizontalPodAutoscaler espresso of InferenceModel espresso scales"]);
    let limited = ["ScalingLimited", "True", "TooManyReplicas", "the desired replica count is more than the maximum"];
    is(&hpa(&[WORKS, limited]), "True", "LimitedByMax", &["maxReplicas, 7"]);
    let few = ["ScalingLimited", "True", "TooFewReplicas", "the desired replica count is less than the minimum"];
    is(&hpa(&[WORKS, few]), "True", "Active", &[]);
    let stale = ["ScalingActive", "False", "FailedGetPodsMetric", "unable to get metric ortolan_pod_load_samples"];
    is(&hpa(&[stale]), "False", "MetricsStale", &["espresso: unable to get metric ortolan_pod_load_samples"]);
    let unable = ["AbleToScale", "False", "FailedGetScale", "unable to get the target's current scale"];
    is(&hpa(&[unable]), "Unknown", "Pending", &["the number of replicas stays", "current scale"]);
    let zero = ["ScalingActive", "False", "ScalingDisabled", "the replica count of the target is zero"];
    is(&hpa(&[zero]), "True", "Off", &["spec.replicas is 0"]);
    let twice = ["ScalingActive", "False", "AmbiguousSelector", "controlled by multiple HPAs: [b a]"];
    is(&hpa(&[twice]), "False", "ConflictingAutoscaler", &["kubectl describe hpa espresso"]);
    assert!(!told(&hpa(&[twice])).2.contains("[b a]"), "the list is in another order each time");
}

#[test]
fn what_keda_tells_is_told() {
    let keda = |conditions: Value| observed(mode("KEDA")).with_scaled_object(conditions);
    let condition =
        |type_: &str, status: &str, message: &str| json!({"type": type_, "status": status, "message": message});
    let without = Observed { has_keda: false, ..observed(mode("KEDA")) };
    is(&without, "False", "CrdNotInstalled", &["scaledobjects.keda.sh", "Install KEDA", "Operator"]);
    is(&observed(mode("KEDA")), "Unknown", "Pending", &["ScaledObject is about to be there"]);
    is(&keda(json!([])), "Unknown", "Pending", &["look whether KEDA runs"]);
    let ready = || condition("Ready", "True", "");
    let works = keda(json!([ready()])).with(telling(kedas(), &[WORKS]));
    is(&works, "True", "Active", &["keda-hpa-espresso of ScaledObject espresso scales"]);
    let broken = keda(json!([condition("Ready", "False", "no such trigger")])).with(telling(kedas(), &[WORKS]));
    is(&broken, "False", "MetricsStale", &["ScaledObject espresso: no such trigger"]);
    let fallback = condition("Fallback", "True", "At least one trigger is falling back");
    let held = keda(json!([ready(), fallback])).with(telling(kedas(), &[WORKS]));
    is(&held, "False", "MetricsStale", &["falling back", "the replicas that there are stay"]);
    is(&keda(json!([ready(), condition("Paused", "True", "is paused")])), "True", "Off", &["is paused"]);
}

#[test]
fn the_status_has_the_decision_and_nothing_that_changes_while_it_stays() {
    let scaled = "2026-01-01T12:00:00Z".parse().unwrap();
    let last_scale_time = Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(scaled));
    let after = |reason: &str, message: &str| {
        let able = ["AbleToScale", "True", reason, message];
        let autoscaler = telling(Autoscaler { last_scale_time: last_scale_time.clone(), ..ours() }, &[able, WORKS]);
        told_status(&observed(mode("HPA")).with(autoscaler), None)
    };
    let one = after("ReadyForNewScale", "recommended size matches current size");
    let decision = one.scaling.clone().unwrap();
    assert_eq!((decision.desired, &decision.last_scale_time), (4, &last_scale_time));
    assert_eq!(one, after("ScaleDownStabilized", "recent recommendations were higher than current one"));
    for scaling in [mode("External"), json!({})] {
        assert_eq!(told_status(&observed(scaling).with(foreign()), None).scaling, None);
    }
    let undecided =
        telling(Autoscaler { desired: 0, ..ours() }, &[["ScalingActive", "False", "FailedGetPodsMetric", ""]]);
    assert_eq!(told_status(&observed(mode("HPA")).with(undecided), None).scaling, None, "nothing was decided yet");
}

#[test]
fn a_pause_is_read_as_keda_reads_it() {
    for (annotation, value, pauses) in [
        ("paused", "true", true),
        ("paused", "yes", true),
        ("paused", "False", false),
        ("paused", "0", false),
        ("paused-replicas", "0", true),
        ("paused-scale-in", "true", false),
    ] {
        let mut observed = observed(mode("KEDA")).with_scaled_object(json!([]));
        for object in observed.scaled_objects.values_mut() {
            let annotations = [(format!("autoscaling.keda.sh/{annotation}"), value.to_owned())];
            Arc::make_mut(object).metadata.annotations = Some(annotations.into());
        }
        assert_eq!(autoscalers::is_paused(&observed), pauses, "{annotation}: {value}");
        Arc::make_mut(&mut observed.model).spec.replicas = 0;
        assert_eq!(matches!(decided(&observed), Scaler::Keda(_)), pauses, "{annotation}: {value}, at none");
    }
}

#[test]
fn a_tolerance_that_the_cluster_drops_is_told() {
    for (mode, autoscaler) in [("HPA", ours()), ("KEDA", kedas())] {
        let of = |autoscaler| {
            let observed = observed(everything(mode)).with(telling(autoscaler, &[WORKS]));
            if mode == "KEDA" { observed.with_scaled_object(json!([])) } else { observed }
        };
        let kept = of(Autoscaler { has_tolerance: true, ..autoscaler.clone() });
        assert!(!told(&kept).2.contains("tolerance"), "{}", told(&kept).2);
        is(&of(autoscaler), "True", "Active", &["spec.scaling.behavior.tolerancePercent has no effect"]);
    }
}

#[test]
fn what_keeps_another_number_than_the_load_asks_for_is_told() {
    let scaled = |lasting| {
        let outcome = Outcome { step: None, state: State::Active, lasting };
        Observed { scaling: Some(outcome), ..observed(mode("Operator")) }
    };
    for reason in Reason::ALL {
        let holds = [
            Reason::Brief,
            Reason::Rising,
            Reason::Stabilizing,
            Reason::Returning,
            Reason::AfterBurst,
            Reason::Settling,
            Reason::Late,
            Reason::Rollout,
            Reason::TooFew,
            Reason::Silent,
            Reason::Waiting,
            Reason::Pace,
            Reason::InVain,
        ];
        let said = if holds.contains(&reason) {
            format!("the number of replicas stays: {reason}")
        } else {
            "the number of replicas follows the load".to_owned()
        };
        assert_eq!(told(&scaled(Some(reason))), ("True".to_owned(), "Active".to_owned(), said));
    }
    // A process that has just begun to look says what the one before it did.
    let mut after = scaled(None);
    assert_eq!(told(&after).2, "the number of replicas follows the load");
    Arc::make_mut(&mut after.model).status = Some(told_status(&scaled(Some(Reason::Rollout)), None));
    assert!(told(&after).2.ends_with("but new pods are replacing old ones"));
    after.scaling = None;
    assert!(told(&after).2.ends_with("but new pods are replacing old ones"));
}

#[test]
fn nobody_scales_while_the_spec_wants_none() {
    let none = |mut observed: Observed| {
        Arc::make_mut(&mut observed.model).spec.replicas = 0;
        observed
    };
    for wanted in ["Operator", "HPA", "KEDA"] {
        is(&none(observed(mode(wanted))), "True", "Off", &["spec.replicas is 0, so nobody scales"]);
    }
    // KEDA would bring it back to minReplicas; a HorizontalPodAutoscaler lets 0 be.
    let by_keda = none(observed(mode("KEDA")).with_scaled_object(json!([])).with(kedas()));
    assert_eq!(decided(&by_keda), Scaler::Nothing);
    is(&by_keda, "True", "Off", &["Set it to 1"]);
    assert!(matches!(decided(&none(observed(mode("HPA")).with(ours()))), Scaler::Hpa(_)));
    is(&none(observed(mode("External"))), "True", "ExternalOwner", &[]);
}

#[test]
fn a_suspended_model_is_scaled_by_nobody() {
    let mut suspended = observed(mode("HPA")).with(telling(ours(), &[WORKS]));
    Arc::make_mut(&mut suspended.model).spec.suspend = true;
    is(&suspended, "True", "Off", &["suspend"]);
}
