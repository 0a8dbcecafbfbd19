//! Reads `refusals.yaml`.

use serde::Deserialize;
use serde_json::{Value, json};

/// One rule: its sentence, the field it speaks of, and objects on both sides of it.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Refusal {
    pub message: String,
    pub field: String,
    pub accepted: Vec<Value>,
    pub refused: Vec<Value>,
}

pub fn refusals() -> Vec<Refusal> {
    serde_saphyr::from_str(include_str!("refusals.yaml")).unwrap()
}

/// The least that an object must say, with `patch` laid on it.
pub fn object(patch: &Value) -> Value {
    let mut object = json!({
        "apiVersion": "ortolan.dev/v1alpha1",
        "kind": "InferenceModel",
        "metadata": {"name": "least", "namespace": "default"},
        "spec": {"models": [{"name": "espresso", "source": {"pvc": {"claimName": "shelf"}}}]},
    });
    lay(&mut object, patch);
    object
}

fn lay(base: &mut Value, patch: &Value) {
    let Value::Object(patch) = patch else {
        *base = patch.clone();
        return;
    };
    if !base.is_object() {
        *base = json!({});
    }
    for (key, value) in patch {
        lay(&mut base[key], value);
    }
}
