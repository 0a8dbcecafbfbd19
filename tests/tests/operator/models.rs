//! InferenceModels as users write them, with the models of the cache.

use ortolan_tests::programs;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::fixture::Outcome;

/// Name of the claim that [`crate::space::Space::claim_models`] makes.
pub(crate) const CLAIM: &str = "models";

/// A sha256 that no file has.
pub(crate) const NO_DIGEST: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

/// A model that is on a volume: nothing is fetched, so its pods are soon there.
pub(crate) fn on_volume(name: &str, folder: &str) -> Value {
    json!({"name": name, "source": {"pvc": {"claimName": CLAIM, "path": folder}}})
}

/// A model that is fetched from the web server inside the cluster.
pub(crate) fn from_web(name: &str, folder: &str) -> Outcome<Value> {
    Ok(json!({
        "name": name,
        "source": {"uri": format!("http://models.models.svc/{folder}")},
        "files": [{"path": "model.onnx", "sha256": digest(folder)?}],
    }))
}

/// Digest of the file of a model of the cache.
pub(crate) fn digest(folder: &str) -> Outcome<String> {
    let file = programs::cache_folder().join("models").join(folder).join("model.onnx");
    let digest = Sha256::digest(std::fs::read(file)?);
    Ok(digest.iter().map(|byte| format!("{byte:02x}")).collect())
}

/// An InferenceModel whose pods end soon after they are told to: nobody sends them anything.
pub(crate) fn inference_model(name: &str, models: &[Value]) -> Value {
    json!({
        "apiVersion": "ortolan.dev/v1alpha1",
        "kind": "InferenceModel",
        "metadata": {"name": name},
        "spec": {"models": models, "server": {"config": {"drain_delay_ms": 100, "drain_timeout_ms": 1000, "threads": 1}}},
    })
}

/// An InferenceModel with one small model of the volume.
pub(crate) fn small(name: &str) -> Value {
    inference_model(name, &[on_volume("tiny", "tiny")])
}

/// The same with `patch` laid on its spec: objects are merged, all else is replaced, and null removes.
pub(crate) fn with(mut inference_model: Value, patch: &Value) -> Value {
    lay(&mut inference_model["spec"], patch);
    inference_model
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
        if value.is_null() {
            base.as_object_mut().map(|base| base.remove(key));
        } else {
            lay(&mut base[key], value);
        }
    }
}

/// What the model `tiny` doubles.
pub(crate) fn question() -> Vec<u8> {
    let input = json!({"name": "input", "shape": [1, 4], "datatype": "FP32", "data": [1, 2, 3, 4]});
    json!({"inputs": [input]}).to_string().into_bytes()
}

/// Where [`question`] is asked.
pub(crate) const QUESTION_PATH: &str = "/v2/models/tiny/infer";

/// What `tiny` answers to [`question`].
pub(crate) const DOUBLED: [f64; 4] = [2.0, 4.0, 6.0, 8.0];

/// What `batch-mixing` answers to it: the sum of the batch's only sample.
pub(crate) const UNCHANGED: [f64; 4] = [1.0, 2.0, 3.0, 4.0];

/// The numbers of an answer.
pub(crate) fn numbers(answer: &Value) -> Vec<f64> {
    let data = answer["outputs"][0]["data"].as_array();
    data.into_iter().flatten().filter_map(Value::as_f64).collect()
}
