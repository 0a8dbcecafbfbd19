//! From layers to a config, or to everything that is wrong with them.

use std::{collections::BTreeSet, fmt, net::IpAddr, sync::LazyLock};

use jsonschema::{
    Validator,
    error::{TypeKind, ValidationError, ValidationErrorKind},
};
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::{
    Bounds, EVENTS, EventRule, ExecutionProvider, HealthConfig, ImageOptions, Layer, ModelConfig, ModelControl,
    ModelOptions, ObservabilityConfig, ServerConfig, ServingConfig, Task,
    layers::{merge, without_nulls},
};

/// One thing that is wrong.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Fault {
    /// Where, for example `models[espresso].batch_size`; empty for the whole.
    pub path: String,
    /// The layer that brought it; empty where nobody did.
    pub origin: String,
    /// What was expected and what came.
    pub message: String,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.path.is_empty() {
            write!(f, "{}: ", self.path)?;
        }
        f.write_str(&self.message)?;
        if !self.origin.is_empty() {
            write!(f, " ({})", self.origin)?;
        }
        Ok(())
    }
}

/// Everything that is wrong with a config, at once.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub struct Faults(pub Vec<Fault>);

impl fmt::Display for Faults {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let count = self.0.len();
        write!(f, "config has {count} fault{}", if count == 1 { "" } else { "s" })?;
        self.0.iter().try_for_each(|fault| write!(f, "\n  {fault}"))
    }
}

/// Merges the layers, later ones over earlier ones, and reads the result.
///
/// # Errors
/// All [`Faults`]: text that is no YAML, unknown keys, wrong types, values out of range, and settings that do not go
/// together, each with its path and the layer that brought it.
pub fn parse(layers: &[Layer]) -> Result<ServingConfig, Faults> {
    static SCHEMA: LazyLock<Option<Validator>> = LazyLock::new(|| Validator::new(&super::schema()).ok());
    let trees = read_layers(layers)?;
    let mut merged = Value::Object(serde_json::Map::new());
    for (_, tree) in &trees {
        merge(&mut merged, tree.clone());
    }
    let mut faults = schema_faults(&SCHEMA, &merged);
    faults.extend(host_fault(&merged));
    faults.extend(environment_faults(layers, &trees));
    for fault in &mut faults {
        fault.origin = origin_of(&fault.path, &trees);
    }
    // Settings that do not go together can only be judged once each of them can be read.
    let config: ServingConfig = read(merged, faults)?;
    let mut faults = combination_faults(&config);
    for fault in &mut faults {
        fault.origin = origin_of(&fault.path, &trees);
    }
    if faults.is_empty() { Ok(config) } else { Err(Faults(faults)) }
}

/// Reads a folder's `model.yaml`, with `over` (the config's `options`) laid on it.
///
/// # Errors
/// All [`Faults`] of the file.
pub fn parse_options(layer: &Layer, over: &ModelOptions) -> Result<ModelOptions, Faults> {
    static SCHEMA: LazyLock<Option<Validator>> =
        LazyLock::new(|| Validator::new(&schemars::schema_for!(ModelOptions).to_value()).ok());
    let trees = read_layers(std::slice::from_ref(layer))?;
    let mut merged = Value::Object(serde_json::Map::new());
    for (_, tree) in &trees {
        merge(&mut merged, tree.clone());
    }
    let mut faults = schema_faults(&SCHEMA, &merged);
    for fault in &mut faults {
        fault.origin.clone_from(&layer.origin);
    }
    let _checked: ModelOptions = read(merged.clone(), faults)?;
    merge(&mut merged, without_nulls(serde_json::to_value(over).unwrap_or_default()));
    let options: ModelOptions = read(merged, Vec::new())?;
    let faults = options_faults("", &options);
    if faults.is_empty() { Ok(options) } else { Err(Faults(faults)) }
}

fn read<T: DeserializeOwned>(tree: Value, mut faults: Vec<Fault>) -> Result<T, Faults> {
    if faults.is_empty() {
        match serde_json::from_value(tree) {
            Ok(value) => return Ok(value),
            Err(error) => faults.push(fault("", error.to_string())),
        }
    }
    faults.sort();
    faults.dedup();
    Err(Faults(faults))
}

fn read_layers(layers: &[Layer]) -> Result<Vec<(String, Value)>, Faults> {
    let mut trees = Vec::new();
    let mut faults = Vec::new();
    for layer in layers {
        match layer.tree() {
            Ok(tree) if tree.is_object() => trees.push((layer.origin.clone(), tree)),
            Ok(tree) => faults.push(Fault {
                path: String::new(),
                origin: layer.origin.clone(),
                message: format!("expected a mapping of settings, got {}", shown(&tree)),
            }),
            Err(message) => {
                faults.push(Fault { path: String::new(), origin: layer.origin.clone(), message });
            }
        }
    }
    if faults.is_empty() { Ok(trees) } else { Err(Faults(faults)) }
}

fn schema_faults(schema: &Option<Validator>, tree: &Value) -> Vec<Fault> {
    let Some(schema) = schema else { return Vec::new() };
    schema.iter_errors(tree).flat_map(|error| faults_of(&error, tree)).collect()
}

fn faults_of(error: &ValidationError<'_>, tree: &Value) -> Vec<Fault> {
    let path = readable_path(error.instance_path().as_str(), tree);
    let got = shown(error.instance());
    let expected = |what: String| vec![fault(&path, format!("expected {what}, got {got}"))];
    match error.kind() {
        ValidationErrorKind::AdditionalProperties { unexpected } => unexpected
            .iter()
            .map(|key| fault(&join(&path, key), format!("unknown key `{key}`{}", known_keys(error, tree))))
            .collect(),
        ValidationErrorKind::Required { property } => {
            let key = property.as_str().unwrap_or_default();
            vec![fault(&join(&path, key), "required, but missing".to_owned())]
        }
        ValidationErrorKind::Type { kind } => expected(type_name(kind)),
        ValidationErrorKind::Minimum { limit } => expected(format!("at least {limit}")),
        ValidationErrorKind::Maximum { limit } => expected(format!("at most {limit}")),
        ValidationErrorKind::Enum { options } => expected(format!("one of {}", alternatives(options))),
        ValidationErrorKind::OneOfNotValid { context } | ValidationErrorKind::AnyOf { context } => {
            expected(any_of(context))
        }
        ValidationErrorKind::MinLength { limit } => expected(format!("at least {limit} characters")),
        ValidationErrorKind::MaxLength { limit } => expected(format!("at most {limit} characters")),
        ValidationErrorKind::MinItems { limit } => expected(format!("at least {limit} items")),
        ValidationErrorKind::MaxItems { limit } => expected(format!("at most {limit} items")),
        ValidationErrorKind::Pattern { pattern } => expected(format!("text that matches {pattern}")),
        ValidationErrorKind::Format { format } => expected(format!("{format} text")),
        _ => vec![fault(&path, error.to_string())],
    }
}

fn type_name(kind: &TypeKind) -> String {
    let names: Vec<String> = match kind {
        TypeKind::Single(one) => vec![one.to_string()],
        TypeKind::Multiple(many) => many.iter().map(|one| one.to_string()).collect(),
    };
    let names: Vec<&str> = names.iter().map(String::as_str).filter(|name| *name != "null").collect();
    names.join(" or ")
}

fn alternatives(options: &Value) -> String {
    let Value::Array(options) = options else { return options.to_string() };
    options.iter().map(|option| option.as_str().unwrap_or_default()).collect::<Vec<_>>().join(", ")
}

/// What would have been right in the branches of an `anyOf` or `oneOf`; null branches are left out.
fn any_of(context: &[Vec<ValidationError<'_>>]) -> String {
    let mut wanted = Vec::new();
    for error in context.iter().flatten() {
        let text = match error.kind() {
            ValidationErrorKind::Constant { expected_value } => expected_value.as_str().unwrap_or_default().to_owned(),
            ValidationErrorKind::Enum { options } => alternatives(options),
            ValidationErrorKind::Type { kind } => type_name(kind),
            _ => error.to_string(),
        };
        if !text.is_empty() && !wanted.contains(&text) {
            wanted.push(text);
        }
    }
    format!("one of {}", wanted.join(", "))
}

/// The keys that the object does take, where the schema is one of ours.
fn known_keys(error: &ValidationError<'_>, tree: &Value) -> String {
    let pointer = error.instance_path().as_str();
    let keys = match pointer.split('/').skip(1).collect::<Vec<_>>().as_slice() {
        [] if tree.get("models").is_some() || tree.get("server").is_some() => keys_of(&ServingConfig::default()),
        ["server"] => keys_of(&ServerConfig::default()),
        ["logging"] => keys_of(&super::LoggingConfig::default()),
        ["observability"] => keys_of(&ObservabilityConfig::default()),
        ["observability", "metrics"] => keys_of(&ObservabilityConfig::default().metrics),
        ["observability", "tracing"] => keys_of(&ObservabilityConfig::default().tracing),
        ["observability", "events"] => keys_of(&ObservabilityConfig::default().events),
        ["observability", "events", "audit"] => keys_of(&ObservabilityConfig::default().events.audit),
        ["observability", "health"] => keys_of(&HealthConfig::default()),
        ["models", _, "options"] => keys_of(&ModelOptions::default()),
        ["models", _, "options", "image"] | ["image"] => keys_of(&ImageOptions::default()),
        _ => return String::new(),
    };
    format!("; known are {keys}")
}

fn keys_of<T: serde::Serialize>(value: &T) -> String {
    match serde_json::to_value(value) {
        Ok(Value::Object(map)) => map.keys().map(String::as_str).collect::<Vec<_>>().join(", "),
        _ => String::new(),
    }
}

/// The schema knows an address as text only.
fn host_fault(tree: &Value) -> Option<Fault> {
    let host = tree.pointer("/server/host")?.as_str()?;
    let message = || format!("expected an IP address, for example 0.0.0.0 or 127.0.0.1, got {}", shown(&host.into()));
    host.parse::<IpAddr>().is_err().then(|| fault("server.host", message()))
}

/// Why text is no level of a log and no filter; other mistakes in a filter are the business of whoever applies it.
///
/// A filter takes a lone word that is no level for a part of the program, and so would switch everything else off.
#[must_use]
pub fn log_level_fault(text: &str) -> Option<String> {
    const LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];
    let parts = || text.split(',').map(str::trim).filter(|part| !part.is_empty());
    let is_word = |part: &str| !part.contains(['=', '[', '{', '}', ']']) && !part.contains("::");
    let wrong = |part: &&str| is_word(part) && !LEVELS.contains(&part.to_ascii_lowercase().as_str());
    let got = if parts().next().is_none() { Some("nothing") } else { parts().find(wrong) };
    let expected = "a level (off, error, warn, info, debug, trace) or a filter such as info,inference_pod::queue=debug";
    got.map(|got| format!("expected {expected}, got {got}"))
}

/// The environment speaks for the process, not for models.
fn environment_faults(layers: &[Layer], trees: &[(String, Value)]) -> Vec<Fault> {
    let from_environment = layers.iter().zip(trees).filter(|(layer, _)| layer.is_environment());
    from_environment
        .filter(|(_, (_, tree))| tree.get("models").is_some())
        .map(|_| fault("models", "cannot be set by environment variables, only the other settings can".to_owned()))
        .collect()
}

/// What each value allows by itself, but the values do not allow together; and what is not built yet.
fn combination_faults(config: &ServingConfig) -> Vec<Fault> {
    let mut faults = server_faults(&config.server);
    faults.extend(log_level_fault(&config.logging.level).map(|message| fault("logging.level", message)));
    faults.extend(observability_faults(&config.observability));
    let mut names = BTreeSet::new();
    for model in &config.models {
        if !names.insert(&model.name) {
            faults.push(fault(&format!("models[{}]", model.name), "name comes twice; each name once".to_owned()));
        }
        faults.extend(model_faults(model));
    }
    faults
}

fn server_faults(server: &ServerConfig) -> Vec<Fault> {
    let mut faults = Vec::new();
    let ports = [
        ("server.port", server.port),
        ("server.grpc_port", server.grpc_port),
        ("server.metrics_port", server.metrics_port),
    ];
    for (index, (path, port)) in ports.iter().enumerate() {
        if let Some((other, _)) = ports[..index].iter().find(|(_, other)| other == port && *port != 0) {
            faults.push(fault(path, format!("expected a port of its own, got {port}, which {other} has")));
        }
    }
    let not_built = [
        ("server.tokens_file", server.tokens_file.is_some()),
        ("server.tls", server.tls.is_some()),
        ("server.rate_limit", server.rate_limit.is_some()),
        ("server.model_control", server.model_control != ModelControl::None),
    ];
    faults.extend(not_built_faults("", &not_built));
    faults
}

fn observability_faults(config: &ObservabilityConfig) -> Vec<Fault> {
    let ObservabilityConfig { events, health, .. } = config;
    let mut faults = Vec::new();
    for (list, rules) in [("log", &events.log), ("audit.events", &events.audit.events)] {
        faults.extend(event_rule_faults(&format!("observability.events.{list}"), rules));
    }
    for (index, pattern) in events.redact.iter().enumerate() {
        if let Err(error) = regex::Regex::new(pattern) {
            let message =
                format!("expected a regular expression, got {}: {error}", shown(&Value::from(pattern.as_str())));
            faults.push(fault(&format!("observability.events.redact[{index}]"), message));
        }
    }
    let HealthConfig { window_seconds: _, error_rate, queue, memory, disk, latency_objective } = health;
    let bounds = [
        ("error_rate", error_rate),
        ("queue", queue),
        ("memory", memory),
        ("disk", disk),
        ("latency_objective", latency_objective),
    ];
    for (key, Bounds { warning, error }) in bounds.into_iter().filter(|(_, bounds)| bounds.warning > bounds.error) {
        let message = format!("expected a warning before the error, got {warning} and {error}");
        faults.push(fault(&format!("observability.health.{key}"), message));
    }
    faults
}

/// Rules that speak of nothing that can happen.
#[must_use]
pub fn event_rule_faults(path: &str, rules: &[EventRule]) -> Vec<Fault> {
    let unknown = rules.iter().enumerate().filter(|(_, rule)| !rule.fits_any());
    let message = |rule: &EventRule| {
        format!("expected an event ({}) or a beginning of one with *, got {}", EVENTS.join(", "), rule.events)
    };
    unknown.map(|(index, rule)| fault(&format!("{path}[{index}].events"), message(rule))).collect()
}

fn model_faults(model: &ModelConfig) -> Vec<Fault> {
    let prefix = format!("models[{}]", model.name);
    let mut faults = Vec::new();
    if matches!(model.task, Task::TextEmbedding | Task::ImageTextSimilarity) {
        let [tensor, images] = [Task::Tensor, Task::ImageClassification].map(Task::as_str);
        let message = format!("not built yet: expected {tensor} or {images}, got {}", model.task.as_str());
        faults.push(fault(&join(&prefix, "task"), message));
    }
    if matches!(model.name.as_str(), "." | "..") {
        // Clients take such a step out of a URL (RFC 3986, section 5.2.4).
        faults.push(fault(&join(&prefix, "name"), format!("expected a name that a URL can have, got {}", model.name)));
    }
    if model.queue_size < model.batch_size {
        let message = format!("expected at least batch_size ({}), got {}", model.batch_size, model.queue_size);
        faults.push(fault(&join(&prefix, "queue_size"), message));
    }
    let first_cpu = model.execution_providers.iter().position(|provider| *provider == ExecutionProvider::Cpu);
    if first_cpu.is_some_and(|at| at + 1 < model.execution_providers.len()) {
        let message = "expected nothing behind cpu, which is always there, so that nothing behind it is ever tried";
        faults.push(fault(&join(&prefix, "execution_providers"), message.to_owned()));
    }
    faults.extend(options_faults(&join(&prefix, "options"), &model.options));
    faults.extend(idle_options_faults(&join(&prefix, "options"), model.task, &model.options));
    faults
}

fn options_faults(prefix: &str, options: &ModelOptions) -> Vec<Fault> {
    let mut faults = not_built_faults(prefix, &[("versions", options.versions.is_some())]);
    let image = &options.image;
    if let (Some(mean), Some(std)) = (&image.mean, &image.std)
        && mean.len() != std.len()
    {
        let message = format!("expected as many numbers as mean has ({}), got {}", mean.len(), std.len());
        faults.push(fault(&join(prefix, "image.std"), message));
    }
    faults
}

/// Options that a model of this task does not heed. Mostly it is the task that was forgotten.
fn idle_options_faults(prefix: &str, task: Task, options: &ModelOptions) -> Vec<Fault> {
    let of_images = [
        ("image", options.image != ImageOptions::default()),
        ("softmax", options.softmax.is_some()),
        ("labels", options.labels.is_some()),
        ("top_k", options.top_k.is_some()),
    ];
    let idle = of_images.into_iter().filter(|(_, used)| *used && task == Task::Tensor);
    let wanted = Task::ImageClassification.as_str();
    let message = format!("expected only with task {wanted}, got task {}", task.as_str());
    idle.map(|(path, _)| fault(&join(prefix, path), message.clone())).collect()
}

/// A setting that would be ignored is worse than one that is refused.
fn not_built_faults(prefix: &str, settings: &[(&str, bool)]) -> Vec<Fault> {
    let refused = settings.iter().filter(|(_, used)| *used);
    refused.map(|(path, _)| fault(&join(prefix, path), "not built yet: only the default is taken".to_owned())).collect()
}

fn fault(path: &str, message: String) -> Fault {
    Fault { path: path.to_owned(), origin: String::new(), message }
}

fn join(path: &str, key: &str) -> String {
    if path.is_empty() { key.to_owned() } else { format!("{path}.{key}") }
}

/// `/models/0/batch_size` becomes `models[espresso].batch_size`: people know their models by name.
fn readable_path(pointer: &str, tree: &Value) -> String {
    let mut path = String::new();
    let mut here = Some(tree);
    for raw in pointer.split('/').skip(1) {
        let key = raw.replace("~1", "/").replace("~0", "~");
        match here {
            Some(Value::Array(items)) => {
                here = key.parse::<usize>().ok().and_then(|index| items.get(index));
                let name = here.and_then(|item| item.get("name")).and_then(Value::as_str);
                path.push_str(&format!("[{}]", name.unwrap_or(&key)));
            }
            _ => {
                here = here.and_then(|tree| tree.get(&key));
                path = join(&path, &key);
            }
        }
    }
    path
}

/// The last layer that has something at the path brought it there.
fn origin_of(path: &str, trees: &[(String, Value)]) -> String {
    trees.iter().rev().find(|(_, tree)| has(tree, path)).map(|(origin, _)| origin.clone()).unwrap_or_default()
}

/// Whether the tree has something at a [`readable_path`]. Keys and names may have dots themselves.
fn has(tree: &Value, path: &str) -> bool {
    if path.is_empty() {
        return true;
    }
    match tree {
        Value::Array(items) => {
            let Some((key, rest)) = path.strip_prefix('[').and_then(|path| path.split_once(']')) else { return false };
            let rest = rest.strip_prefix('.').unwrap_or(rest);
            let named = |item: &&Value| item.get("name").and_then(Value::as_str) == Some(key);
            let numbered = || key.parse::<usize>().ok().and_then(|index| items.get(index));
            items.iter().find(named).or_else(numbered).is_some_and(|item| has(item, rest))
        }
        Value::Object(map) => map.iter().any(|(key, value)| {
            let rest = path.strip_prefix(key.as_str());
            rest.is_some_and(|rest| match rest.strip_prefix('.') {
                Some(rest) => has(value, rest),
                None => (rest.is_empty() || rest.starts_with('[')) && has(value, rest),
            })
        }),
        _ => false,
    }
}

/// A value as a person would quote it, cut where it is long.
fn shown(value: &Value) -> String {
    const LONGEST: usize = 60;
    let text = match value {
        Value::Object(_) => "a mapping".to_owned(),
        Value::Array(_) => format!("a list ({value})"),
        Value::Null => "nothing".to_owned(),
        other => other.to_string(),
    };
    if text.chars().count() <= LONGEST {
        return text;
    }
    text.chars().take(LONGEST).chain(['…']).collect()
}
