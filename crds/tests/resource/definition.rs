//! The generated definition.

use ortolan_crds::resource::{definition, definition_yaml};
use serde_json::Value;

const COMMITTED: &str = include_str!("../../generated/inferencemodels.ortolan.dev.yaml");

/// Places that are open on purpose: what they hold is checked by the operator.
const OPEN: [&str; 4] = [
    "spec.models[].options.image.resize",
    "spec.models[].options.labels",
    "spec.networkPolicy.from[]",
    "spec.podTemplate",
];

#[test]
fn the_committed_file_is_that_of_the_types() {
    let message = "stale: run `cargo run -p ortolan-crds --features resource --bin crd-yaml`";
    assert!(COMMITTED == definition_yaml().unwrap(), "{message}");
}

#[test]
fn the_file_is_small_enough_for_a_client_side_apply() {
    assert!(COMMITTED.len() <= 64 << 10, "{} bytes", COMMITTED.len());
}

#[test]
fn every_text_list_and_map_has_a_bound() {
    let mut faults = Vec::new();
    let mut open = Vec::new();
    unbounded("", &schema(), &mut faults, &mut open);
    assert!(faults.is_empty(), "without a bound: {faults:#?}");
    assert_eq!(open, OPEN);
}

#[test]
fn only_what_has_no_default_is_required() {
    let schema = schema();
    assert_eq!(schema["required"], serde_json::json!(["spec"]));
    assert_eq!(schema["properties"]["spec"]["required"], serde_json::json!(["models"]));
    let models = &schema["properties"]["spec"]["properties"]["models"]["items"];
    assert_eq!(models["required"], serde_json::json!(["name", "source"]));
    let status = &schema["properties"]["status"];
    assert!(status["required"].is_null() && status["properties"]["scaling"]["required"].as_array().unwrap().len() == 2);
}

#[test]
fn the_names_scale_and_columns_are_those_of_the_contract() {
    let definition = serde_json::to_value(definition().unwrap()).unwrap();
    assert_eq!(definition["metadata"]["name"], "inferencemodels.ortolan.dev");
    assert_eq!(definition["spec"]["scope"], "Namespaced");
    assert_eq!(definition["spec"]["names"]["shortNames"], serde_json::json!(["infm"]));
    let version = &definition["spec"]["versions"][0];
    let columns: Vec<_> = version["additionalPrinterColumns"].as_array().unwrap().iter().map(|c| &c["name"]).collect();
    assert_eq!(columns, ["Ready", "Replicas", "Revision", "URL", "Reason", "Age"]);
    let scale = &version["subresources"]["scale"];
    assert_eq!(scale["specReplicasPath"], ".spec.replicas");
    assert_eq!(scale["statusReplicasPath"], ".status.replicas");
    assert_eq!(scale["labelSelectorPath"], ".status.selector");
    assert!(version["subresources"]["status"].is_object());
}

fn schema() -> Value {
    let mut definition: Value = serde_saphyr::from_str(COMMITTED).unwrap();
    definition["spec"]["versions"][0]["schema"]["openAPIV3Schema"].take()
}

fn unbounded(path: &str, node: &Value, faults: &mut Vec<String>, open: &mut Vec<String>) {
    let bounded = |keys: &[&str]| keys.iter().any(|key| !node[*key].is_null());
    if node["x-kubernetes-preserve-unknown-fields"] == true {
        open.push(path.to_owned());
    } else if node["x-kubernetes-int-or-string"] == true || node["type"] == "string" {
        // The API server sets the name's bound itself.
        if !bounded(&["maxLength", "enum"]) && node["format"] != "date-time" && path != "metadata.name" {
            faults.push(path.to_owned());
        }
    } else if node["type"] == "array" && !bounded(&["maxItems"])
        || node["additionalProperties"].is_object() && !bounded(&["maxProperties"])
    {
        faults.push(path.to_owned());
    } else if !node["type"].is_string() {
        faults.push(format!("{path} (no type)"));
    }
    for (name, child) in node["properties"].as_object().into_iter().flatten() {
        let below = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
        unbounded(&below, child, faults, open);
    }
    for (child, mark) in [("items", "[]"), ("additionalProperties", "{}")] {
        if node[child].is_object() {
            unbounded(&format!("{path}{mark}"), &node[child], faults, open);
        }
    }
}
