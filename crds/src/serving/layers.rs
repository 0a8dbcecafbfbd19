//! Layers of settings and how they become one.

use serde_json::{Map, Value};

/// Environment variables with this prefix are settings: `ORTOLAN__SERVER__PORT=8090`.
pub const ENVIRONMENT_PREFIX: &str = "ORTOLAN__";

/// One source of settings and where it came from.
#[derive(Debug, Clone, PartialEq)]
pub struct Layer {
    /// A file's path, or `environment`; named in faults.
    pub origin: String,
    /// YAML text, or for the environment a tree already read.
    pub(super) content: Content,
}

#[derive(Debug, Clone, PartialEq)]
pub(super) enum Content {
    Yaml(String),
    Tree(Value),
}

impl Layer {
    /// Whether it is what variables say: files have texts.
    pub(super) fn is_environment(&self) -> bool {
        matches!(self.content, Content::Tree(_))
    }

    /// A layer of YAML text; it is parsed with the others, so that all faults come at once.
    #[must_use]
    pub fn yaml(origin: impl Into<String>, text: impl Into<String>) -> Self {
        Self { origin: origin.into(), content: Content::Yaml(text.into()) }
    }

    /// Reads the text into a tree; an empty file is an empty layer.
    pub(super) fn tree(&self) -> Result<Value, String> {
        match &self.content {
            Content::Tree(tree) => Ok(tree.clone()),
            Content::Yaml(text) => {
                let tree = whole_numbers(read_yaml(text).map_err(|error| error.to_string())?);
                Ok(if tree.is_null() { Value::Object(Map::new()) } else { tree })
            }
        }
    }
}

/// Collects the variables that start with [`ENVIRONMENT_PREFIX`] into one layer, the last one.
///
/// `ORTOLAN__SERVER__TLS__CERT_FILE=x` sets `server.tls.cert_file`. A value is read as YAML, so `8090` is a number; a mapping
/// stands in braces, so that `::` is an address. An empty variable says nothing, as everywhere; `null` takes a setting back
/// to its default.
#[must_use]
pub fn environment_layer(variables: impl IntoIterator<Item = (String, String)>) -> Layer {
    let mut sorted: Vec<_> = variables.into_iter().collect();
    sorted.sort();
    let mut tree = Value::Object(Map::new());
    for (name, text) in sorted {
        if let Some(path) = name.strip_prefix(ENVIRONMENT_PREFIX).filter(|_| !text.is_empty()) {
            let read = read_yaml(&text).ok().map(whole_numbers);
            let value = read.filter(|value| !value.is_object() || text.trim_start().starts_with('{'));
            let value = value.unwrap_or(Value::String(text));
            let keys: Vec<String> = path.split("__").map(str::to_ascii_lowercase).collect();
            set(&mut tree, &keys, value);
        }
    }
    Layer { origin: "environment".to_owned(), content: Content::Tree(tree) }
}

/// YAML 1.2: `true` and `false` are booleans, while `yes`, `no`, `on` and `y` stay text, as labels may well be.
fn read_yaml(text: &str) -> Result<Value, serde_saphyr::Error> {
    serde_saphyr::from_str_with_options(text, serde_saphyr::options! { strict_booleans: true })
}

fn set(tree: &mut Value, keys: &[String], value: Value) {
    let Some((first, rest)) = keys.split_first() else {
        *tree = value;
        return;
    };
    if !tree.is_object() {
        *tree = Value::Object(Map::new());
    }
    if let Value::Object(map) = tree {
        set(map.entry(first.clone()).or_insert(Value::Null), rest, value);
    }
}

/// Lays `over` on `base`: objects key by key, `models` by name, `null` removes, anything else replaces.
pub(super) fn merge(base: &mut Value, over: Value) {
    match (base, over) {
        (Value::Object(base), Value::Object(over)) => {
            for (key, value) in over {
                merge_key(base, key, value);
            }
        }
        (base, over) => *base = over,
    }
}

fn merge_key(base: &mut Map<String, Value>, key: String, value: Value) {
    match (base.get_mut(&key), value) {
        (_, Value::Null) => {
            base.remove(&key);
        }
        (Some(Value::Array(known)), Value::Array(new)) if key == "models" => merge_models(known, new),
        (Some(slot), value) => merge(slot, value),
        (None, value) => {
            base.insert(key, without_nulls(value));
        }
    }
}

/// `1e3` is a whole number to people, and to the schema.
fn whole_numbers(tree: Value) -> Value {
    match tree {
        Value::Object(map) => map.into_iter().map(|(key, value)| (key, whole_numbers(value))).collect(),
        Value::Array(items) => items.into_iter().map(whole_numbers).collect(),
        Value::Number(number) if number.is_f64() => match number.as_f64() {
            Some(real) if real.fract() == 0.0 && real.abs() < 9e15 => Value::from(real as i64),
            _ => Value::Number(number),
        },
        other => other,
    }
}

/// Drops what was left out, so that laying the rest on something removes nothing.
pub(super) fn without_nulls(tree: Value) -> Value {
    match tree {
        Value::Object(map) => {
            map.into_iter().filter(|(_, v)| !v.is_null()).map(|(k, v)| (k, without_nulls(v))).collect()
        }
        Value::Array(items) => items.into_iter().map(without_nulls).collect(),
        other => other,
    }
}

/// Within one file a name that comes twice stays twice, so that the check can report it.
fn merge_models(known: &mut Vec<Value>, new: Vec<Value>) {
    let mut laid_on = vec![false; known.len()];
    for model in new {
        let name = model.get("name").cloned();
        let is_same = |(at, laid): (usize, &bool)| !laid && name.is_some() && known[at].get("name") == name.as_ref();
        match laid_on.iter().enumerate().position(is_same) {
            Some(at) => {
                merge(&mut known[at], model);
                laid_on[at] = true;
            }
            None => known.push(without_nulls(model)),
        }
    }
}
