//! The reference of the serving config for people, written from the schema.

use std::fmt::Write as _;

use serde_json::Value;

const HEAD: &str = "# Serving config

What `inference-pod serve --config FILE` reads. Several files are laid over one another, later ones win key by key; `models`
merge by name, any other list is replaced as a whole, and `null` takes a setting back to its default. Environment variables
come last and speak for everything but `models`: `ORTOLAN__SERVER__PORT=8090`; an empty one counts as not set. Their values are
YAML, so a text that looks like a number stands in quotes, and a mapping in braces. `RUST_LOG` wins over `logging.level`. Unknown keys
are faults, and all faults are reported at once with their path and the file that brought them.

This page is generated from the types: `UPDATE=1 cargo test -p ortolan-crds --test reference` writes it anew.
";

/// The whole page in Markdown.
#[must_use]
pub fn reference() -> String {
    let schema = super::schema();
    let mut page = HEAD.to_owned();
    for (title, name) in [
        ("server", "ServerConfig"),
        ("logging", "LoggingConfig"),
        ("observability.metrics", "MetricsConfig"),
        ("observability.tracing", "TracingConfig"),
        ("observability.events", "EventsConfig"),
        ("observability.events.log[], observability.events.audit.events[]", "EventRule"),
        ("observability.events.audit", "AuditConfig"),
        ("observability.health", "HealthConfig"),
        ("models[]", "ModelConfig"),
        ("models[].options (also model.yaml)", "ModelOptions"),
        ("options.image", "ImageOptions"),
        ("options.warmup", "WarmupOptions"),
        ("options.cuda", "CudaOptions"),
    ] {
        let definition = &schema["$defs"][name];
        let about = definition["description"].as_str().unwrap_or_default();
        let _ = write!(page, "\n## {title}\n\n{about}\n\n| key | takes | default | what |\n|---|---|---|---|\n");
        for (key, property) in definition["properties"].as_object().into_iter().flatten() {
            let _ = writeln!(page, "{}", row(key, property, definition, &schema));
        }
    }
    page
}

fn row(key: &str, property: &Value, owner: &Value, schema: &Value) -> String {
    let required = owner["required"].as_array().is_some_and(|keys| keys.iter().any(|known| known == key));
    let default = match property.get("default") {
        _ if required => "required".to_owned(),
        Some(Value::Object(_)) | None => String::new(),
        Some(value) => format!("`{value}`"),
    };
    let about = property["description"].as_str().unwrap_or_default().replace('\n', " ");
    format!("| `{key}` | {} | {default} | {about} |", takes(property, schema))
}

/// The values that a property takes.
fn takes(property: &Value, schema: &Value) -> String {
    if let Some(name) = property["$ref"].as_str().and_then(|path| path.strip_prefix("#/$defs/")) {
        return takes(&schema["$defs"][name], schema);
    }
    if let Some(branches) = property["anyOf"].as_array().or(property["oneOf"].as_array()) {
        let texts: Vec<String> =
            branches.iter().map(|branch| takes(branch, schema)).filter(|text| text != "null").collect();
        return texts.join(" or ");
    }
    if let Some(values) = property["enum"].as_array() {
        return values
            .iter()
            .map(|value| format!("`{}`", value.as_str().unwrap_or_default()))
            .collect::<Vec<_>>()
            .join(", ");
    }
    if let Some(value) = property["const"].as_str() {
        return format!("`{value}`");
    }
    let kinds: Vec<&str> = match &property["type"] {
        Value::String(kind) => vec![kind],
        Value::Array(kinds) => kinds.iter().filter_map(Value::as_str).filter(|kind| *kind != "null").collect(),
        _ => Vec::new(),
    };
    match kinds.join(" or ").as_str() {
        "object" => "a mapping".to_owned(),
        "array" => format!("a list of {}", takes(&property["items"], schema)),
        kind => format!("{kind}{}", range(property)),
    }
}

fn range(property: &Value) -> String {
    let number = |key: &str| property[key].as_f64().map(|number| number.to_string());
    match (number("minimum"), number("maximum")) {
        (Some(least), Some(most)) => format!(" {least} to {most}"),
        (Some(least), None) => format!(" from {least}"),
        (None, Some(most)) => format!(" up to {most}"),
        (None, None) => String::new(),
    }
}
