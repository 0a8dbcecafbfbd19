//! The CustomResourceDefinition, as it is installed.

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::CustomResourceExt;
use serde_json::{Map, Value, json};

use super::{InferenceModel, rules};

/// Formats that the API server knows; at any other it only warns whoever applies the definition.
const FORMATS: [&str; 4] = ["int32", "int64", "double", "date-time"];

/// Why there is no definition. The types alone decide that, so a test finds it before anybody else does.
#[derive(Debug, thiserror::Error)]
pub enum DefinitionError {
    /// What was made of the derived schema is none.
    #[error("the derived schema is no CustomResourceDefinition")]
    Schema(#[from] serde_json::Error),
    /// The definition cannot be written.
    #[error("the definition cannot be written as YAML")]
    Yaml(#[from] serde_saphyr::SerializeError),
}

/// The definition of `InferenceModel`: what kube derives from the types, brought to what the API server takes.
///
/// # Errors
/// [`DefinitionError::Schema`]; never as released.
pub fn definition() -> Result<CustomResourceDefinition, DefinitionError> {
    let mut definition = serde_json::to_value(InferenceModel::crd())?;
    let schema = &mut definition["spec"]["versions"][0]["schema"]["openAPIV3Schema"];
    tidy(schema);
    schema["x-kubernetes-validations"] = rules::of_resource();
    // The rule on the name needs a schema to point at; the API server checks metadata itself.
    schema["properties"]["metadata"] = json!({"type": "object", "properties": {"name": {"type": "string"}}});
    Ok(serde_json::from_value(definition)?)
}

/// The definition as the YAML file that is committed and installed.
///
/// # Errors
/// [`DefinitionError`]; never as released.
pub fn definition_yaml() -> Result<String, DefinitionError> {
    let mut definition = serde_json::to_value(definition()?)?;
    whole_numbers(&mut definition);
    let yaml = serde_saphyr::to_string(&definition)?;
    Ok(format!("# Written by `cargo run -p ortolan-crds --features resource --bin crd-yaml`; a test compares.\n{yaml}"))
}

/// Brings a node of the schema, and all below it, to what the API server takes.
fn tidy(node: &mut Value) {
    let Some(node) = node.as_object_mut() else { return };
    // A null is dropped by the API server where null is not allowed. `has()` in a rule then means what it says.
    node.remove("nullable");
    if node.get("format").and_then(Value::as_str).is_some_and(|format| !FORMATS.contains(&format)) {
        node.remove("format");
    }
    if let Some(Value::String(text)) = node.get_mut("description") {
        *text = text.replace('\n', " ");
    }
    if node.contains_key("anyOf") {
        leave_open(node);
    }
    if let Some(Value::Object(properties)) = node.get_mut("properties") {
        properties.values_mut().for_each(tidy);
    }
    for child in ["items", "additionalProperties"] {
        node.get_mut(child).map(tidy).unwrap_or_default();
    }
}

/// Writes `16` where the definition's types have made `16.0` of it.
fn whole_numbers(tree: &mut Value) {
    match tree {
        Value::Object(map) => map.values_mut().for_each(whole_numbers),
        Value::Array(items) => items.iter_mut().for_each(whole_numbers),
        Value::Number(number) => {
            let whole = number.as_f64().map(|float| float as i64);
            if let Some(whole) = whole.filter(|whole| number.as_f64() == Some(*whole as f64)) {
                *tree = Value::from(whole);
            }
        }
        Value::Null | Value::Bool(_) | Value::String(_) => {}
    }
}

/// A number or a list, a text or a list: a structural schema cannot say that, and leaves it to the config's parser.
fn leave_open(node: &mut Map<String, Value>) {
    node.retain(|key, _| key == "description");
    node.insert("x-kubernetes-preserve-unknown-fields".to_owned(), Value::Bool(true));
}
