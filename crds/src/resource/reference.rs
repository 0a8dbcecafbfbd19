//! The reference of the resource for people, written from its definition.

use std::fmt::Write as _;

use serde_json::Value;

use super::{DefinitionError, definition};

const HEAD: &str = "# InferenceModel

`ortolan.dev/v1alpha1`, namespaced, `kubectl get infm`. What can be left out has its default from the schema; what the operator does
not do yet is refused in the condition `Accepted` with the reason `NotImplemented`. The reasons of all conditions stand in
[operations.md](operations.md).

This page is generated from the types: `UPDATE=1 cargo test -p ortolan-crds --features resource --test resource` writes it anew.
";

/// Written elsewhere: the serving config, and what Kubernetes itself documents.
const NOT_REPEATED: [&str; 8] =
    ["annotations", "conditions", "config", "from", "nodeSelector", "options", "resources", "tolerations"];

/// The whole page in Markdown.
///
/// # Errors
/// [`DefinitionError`]; never as released.
pub fn reference() -> Result<String, DefinitionError> {
    let definition = serde_json::to_value(definition()?)?;
    let schema = &definition["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"];
    let mut page = HEAD.to_owned();
    for part in ["spec", "status"] {
        section(part, &schema[part], &mut page);
    }
    Ok(page)
}

fn section(path: &str, schema: &Value, page: &mut String) {
    let about = schema["description"].as_str().unwrap_or_default();
    let _ = write!(page, "\n## {path}\n\n{about}\n");
    for rule in schema["x-kubernetes-validations"].as_array().into_iter().flatten() {
        let _ = write!(page, "\n- {}", rule["message"].as_str().unwrap_or_default());
    }
    if schema.get("x-kubernetes-validations").is_some() {
        page.push('\n');
    }
    page.push_str("\n| field | takes | default | what |\n|---|---|---|---|\n");
    let properties = || schema["properties"].as_object().into_iter().flatten();
    for (key, property) in properties() {
        let _ = writeln!(page, "{}", row(key, property, schema));
    }
    for (key, property) in properties().filter(|(key, _)| !NOT_REPEATED.contains(&key.as_str())) {
        let (path, inner) = match property.get("items") {
            Some(items) => (format!("{path}.{key}[]"), items),
            None => (format!("{path}.{key}"), property),
        };
        if inner.get("properties").is_some() {
            section(&path, inner, page);
        }
    }
}

fn row(key: &str, property: &Value, owner: &Value) -> String {
    let required = owner["required"].as_array().is_some_and(|keys| keys.iter().any(|known| known == key));
    let default = match property.get("default") {
        _ if required => "required".to_owned(),
        Some(Value::Object(_)) | None => String::new(),
        Some(value) => format!("`{}`", whole(value)),
    };
    let about = property["description"].as_str().unwrap_or_default().replace('|', "\\|");
    format!("| `{key}` | {} | {default} | {about} |", takes(property))
}

fn takes(property: &Value) -> String {
    if let Some(values) = property["enum"].as_array() {
        let values: Vec<String> = values.iter().filter_map(Value::as_str).map(|value| format!("`{value}`")).collect();
        return values.join(", ");
    }
    match property["type"].as_str() {
        Some("array") => format!("a list of {}", takes(&property["items"])),
        Some("object") | None => "a mapping".to_owned(),
        Some("string") if property["maxLength"].as_u64() == Some(8) => {
            "a duration, for example `500ms`, `30s`".to_owned()
        }
        Some(kind) => match (bound(property, "minimum"), bound(property, "maximum")) {
            (Some(least), Some(most)) => format!("{kind} {least} to {most}"),
            (Some(least), None) => format!("{kind} from {least}"),
            (None, Some(most)) => format!("{kind} up to {most}"),
            (None, None) => kind.to_owned(),
        },
    }
}

fn bound(property: &Value, key: &str) -> Option<String> {
    property.get(key).filter(|value| value.is_number()).map(whole)
}

/// `16` for `16.0`.
fn whole(value: &Value) -> String {
    value.as_f64().map_or_else(|| value.to_string(), |number| number.to_string())
}
