use serde_json::{Value, json};

use super::*;

fn model(name: &str, created: u32, patch: Value) -> Arc<InferenceModel> {
    let mut model = json!({
        "apiVersion": "ortolan.dev/v1alpha1",
        "kind": "InferenceModel",
        "metadata": {
            "name": name, "namespace": "coffee", "uid": format!("uid-{name}"), "generation": 2,
            "creationTimestamp": format!("2026-01-01T00:00:{created:02}Z"),
        },
        "spec": {"models": [{"name": "a", "source": {"uri": "file:///a.onnx"}}]},
        "status": {"conditions": [{
            "type": "Accepted", "status": "True", "reason": "Accepted", "message": "", "observedGeneration": 2,
            "lastTransitionTime": "2026-01-01T00:00:00Z",
        }]},
    });
    merge(&mut model, patch);
    Arc::new(serde_json::from_value(model).unwrap())
}

fn merge(to: &mut Value, patch: Value) {
    match (to, patch) {
        (Value::Object(to), Value::Object(patch)) => {
            patch.into_iter().for_each(|(key, value)| merge(to.entry(key).or_insert(Value::Null), value));
        }
        (to, patch) => *to = patch,
    }
}

fn disabled() -> Value {
    json!({"spec": {"monitoring": {"serviceMonitor": "Disabled"}}})
}

fn refused(observed: i64, reason: &str) -> Value {
    json!({"status": {"conditions": [{
        "type": "Accepted", "status": "False", "reason": reason, "message": "", "observedGeneration": observed,
        "lastTransitionTime": "2026-01-01T00:00:00Z",
    }]}})
}

fn names_of(models: &[Arc<InferenceModel>], owned_by: &[&str]) -> Vec<String> {
    let owners: Vec<Value> = owned_by
        .iter()
        .map(|name| json!({"apiVersion": "", "kind": "InferenceModel", "name": name, "uid": format!("uid-{name}")}))
        .collect();
    let live: ServiceMonitor =
        serde_json::from_value(json!({"metadata": {"name": "x", "ownerReferences": owners}, "spec": {}})).unwrap();
    let live = BTreeMap::from([("x".to_owned(), Arc::new(live))]);
    let owners = owners_of_monitor(models, &live);
    owners.into_iter().map(|owner| owner.name).collect()
}

fn owners_of_monitor(
    models: &[Arc<InferenceModel>],
    live: &BTreeMap<String, Arc<ServiceMonitor>>,
) -> Vec<OwnerReference> {
    owners(models, live, |monitoring| monitoring.service_monitor)
}

#[test]
fn those_that_want_an_object_own_it_oldest_first() {
    let models = [model("c", 3, json!({})), model("a", 1, json!({})), model("b", 2, disabled())];
    assert_eq!(names_of(&models, &[]), ["a", "c"]);
    assert_eq!(names_of(&models[2..], &[]), Vec::<String>::new());
}

#[test]
fn one_that_comes_later_changes_nothing_once_there_are_owners_enough() {
    let many: Vec<_> = (0..40).map(|second| model(&format!("m{second:02}"), second, json!({}))).collect();
    let owners = names_of(&many, &[]);
    assert_eq!(owners.len(), MOST_OWNERS);
    assert_eq!(owners, names_of(&many[..20], &[]));
}

#[test]
fn one_that_is_being_deleted_wants_nothing() {
    let going = model("a", 1, json!({"metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z"}}));
    assert_eq!(names_of(&[going, model("b", 2, json!({}))], &["a"]), ["b"]);
}

#[test]
fn what_was_not_looked_at_or_cannot_be_acted_on_leaves_things_as_they_are() {
    let unseen = model("new", 1, json!({"status": {"conditions": []}}));
    let refused_change = |name: &str| model(name, 2, refused(2, "NotImplemented"));
    let changed = |name: &str| model(name, 3, json!({"metadata": {"generation": 3}}));
    let models = [unseen, refused_change("old"), refused_change("none"), changed("fresh")];
    assert_eq!(names_of(&models, &["old", "fresh"]), ["old", "fresh"]);
}

#[test]
fn a_child_that_is_refused_does_not_make_the_spec_one_that_cannot_be_acted_on() {
    assert_eq!(names_of(&[model("a", 1, refused(2, "NameConflict"))], &[]), ["a"]);
}

#[test]
fn what_fails_is_tried_again_once_however_many_rounds_come_before() {
    let (mut failing, began) = (Failing::default(), time::Instant::now());
    let mut again = |millis| failing.again(began + Duration::from_millis(millis));
    assert_eq!(again(0), Some(SHORTEST_PAUSE));
    assert_eq!((again(300), again(600)), (None, None));
    assert_eq!(again(1250), Some(SHORTEST_PAUSE * 2));
    assert_eq!(again(2000), None);
    let pauses = std::iter::successors(Some(4000), |last| Some(last + 100_000)).take(20).map(again);
    assert_eq!(pauses.last(), Some(Some(LONGEST_PAUSE)));
}

#[test]
fn a_status_that_changes_does_not_matter() {
    let ready = json!({"status": {"readyReplicas": 3, "url": "http://a"}});
    assert_eq!(Gist::of(&model("a", 1, json!({}))), Gist::of(&model("a", 1, ready)));
    assert_ne!(Gist::of(&model("a", 1, json!({}))), Gist::of(&model("a", 1, disabled())));
}
