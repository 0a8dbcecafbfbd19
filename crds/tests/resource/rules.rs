//! The CEL rules, without an API server.

use std::{collections::BTreeSet, sync::LazyLock};

use kube_cel::CompiledSchema;
use ortolan_crds::resource::{InferenceModel, definition};
use serde_json::{Value, json};

use crate::refusals::{object, refusals};

static SCHEMA: LazyLock<Value> = LazyLock::new(|| {
    serde_json::to_value(definition().unwrap()).unwrap()["spec"]["versions"][0]["schema"]["openAPIV3Schema"].take()
});

/// `field: sentence` of each rule that refuses the object.
fn broken(object: &Value) -> BTreeSet<String> {
    static SHAPE: LazyLock<jsonschema::Validator> = LazyLock::new(|| jsonschema::validator_for(&SCHEMA).unwrap());
    static RULES: LazyLock<CompiledSchema> = LazyLock::new(|| kube_cel::compile_schema(&as_kube_cel_spells(&SCHEMA)));
    let faults: Vec<String> = SHAPE.iter_errors(object).map(|error| error.to_string()).collect();
    assert!(faults.is_empty(), "{object} does not get as far as the rules: {faults:?}");
    match kube_cel::Validator::new().validate_compiled(&RULES, object, None) {
        Ok(()) => BTreeSet::new(),
        Err(errors) => {
            let path = |path: &str| path.trim_start_matches('.').to_owned();
            errors.iter().map(|error| format!("{}: {}", path(&error.field_path), error.message)).collect()
        }
    }
}

/// kube-cel 0.8 doubles every underscore in the names of fields; the API server leaves a single one as it is, which
/// tests/tests/crd.rs shows.
fn as_kube_cel_spells(schema: &Value) -> Value {
    let mut text = schema.to_string();
    for name in ["grpc_port", "metrics_port", "tokens_file"] {
        text =
            text.replace(&format!("has(self.config.{name})"), &format!("has(self.config.{})", name.replace('_', "__")));
    }
    serde_json::from_str(&text).unwrap()
}

#[test]
fn each_rule_refuses_with_its_sentence_and_its_field_and_nothing_else_refuses() {
    for refusal in refusals() {
        for patch in &refusal.refused {
            let object = object(patch);
            let found = broken(&object);
            assert_eq!(found, BTreeSet::from([format!("{}: {}", refusal.field, refusal.message)]), "{patch}");
            let read: Result<InferenceModel, _> = serde_json::from_value(object);
            assert!(read.is_ok(), "{patch} passes the schema, so it must be readable: {read:?}");
        }
    }
}

#[test]
fn what_is_just_inside_of_a_rule_is_accepted_and_can_be_read() {
    for refusal in refusals() {
        for patch in &refusal.accepted {
            let object = object(patch);
            assert_eq!(broken(&object), BTreeSet::new(), "{patch}");
            let read: InferenceModel = serde_json::from_value(object).unwrap();
            assert!(!read.spec.models.is_empty());
        }
    }
}

#[test]
fn no_rule_is_without_an_object_that_it_refuses() {
    let known: BTreeSet<String> = refusals().into_iter().map(|refusal| refusal.message).collect();
    let mut written = BTreeSet::new();
    collect(&SCHEMA, &mut written);
    assert_eq!(known, written);
}

fn collect(node: &Value, messages: &mut BTreeSet<String>) {
    for rule in node["x-kubernetes-validations"].as_array().into_iter().flatten() {
        assert!(rule["fieldPath"].as_str().is_some_and(|path| path.starts_with('.')), "{rule}");
        messages.insert(rule["message"].as_str().unwrap().to_owned());
    }
    for child in node["properties"].as_object().into_iter().flat_map(|properties| properties.values()) {
        collect(child, messages);
    }
    for child in ["items", "additionalProperties"] {
        if node[child].is_object() {
            collect(&node[child], messages);
        }
    }
}

#[test]
fn the_least_object_breaks_no_rule() {
    assert_eq!(broken(&object(&json!({}))), BTreeSet::new());
}
