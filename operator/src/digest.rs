//! Names what was written by its content, and knows content that is none.

use serde_json::Value;
use sha2::{Digest as _, Sha256};

/// The first bytes of the SHA-256 of a value, as hexadecimal digits. The order of keys does not count: it depends on how
/// the program was built.
#[must_use]
pub fn digest(value: &Value, bytes: usize) -> String {
    let digest = Sha256::digest(sorted(value).as_bytes());
    digest.iter().take(bytes).map(|byte| format!("{byte:02x}")).collect()
}

/// Whether a value is as good as one that was left out.
#[must_use]
pub fn says_nothing(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Array(items) => items.is_empty(),
        Value::Object(keys) => keys.is_empty(),
        _ => false,
    }
}

fn sorted(value: &Value) -> String {
    match value {
        Value::Object(keys) => {
            let mut parts: Vec<_> = keys.iter().collect();
            parts.sort_by_key(|(key, _)| *key);
            let parts: Vec<String> = parts
                .into_iter()
                .map(|(key, value)| format!("{}:{}", Value::from(key.as_str()), sorted(value)))
                .collect();
            format!("{{{}}}", parts.join(","))
        }
        Value::Array(items) => format!("[{}]", items.iter().map(sorted).collect::<Vec<_>>().join(",")),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_order_of_keys_does_not_count_but_that_of_items_does() {
        let value = |text: &str| serde_json::from_str::<Value>(text).unwrap();
        let one = value(r#"{"a": 1, "b": {"c": [1, 2], "d": "x"}}"#);
        let other = value(r#"{"b": {"d": "x", "c": [1, 2]}, "a": 1}"#);
        assert_eq!(digest(&one, 8), digest(&other, 8));
        assert_ne!(digest(&one, 8), digest(&value(r#"{"a": 1, "b": {"c": [2, 1], "d": "x"}}"#), 8));
    }
}
