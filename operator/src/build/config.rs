//! The serving config of a revision: what the spec says, in the words of the pod.

use crds::{
    resource::{InferenceModelSpec, Model},
    serving::{ExecutionProvider, ServingConfig},
};
use k8s_openapi::api::core::v1::ResourceRequirements;
use serde::Serialize;
use serde_json::{Map, Value, json};

use crate::quota::amount;

/// Where fetched models are, in the pod.
pub const MODELS_FOLDER: &str = "/models";

/// Where volumes with models are mounted, in the pod.
pub const VOLUMES_FOLDER: &str = "/volumes";

/// The config file's text, YAML. Only what differs from the default is said: a server of another version, which may not
/// know every key, reads it too.
#[must_use]
pub fn render(spec: &InferenceModelSpec) -> String {
    let mut server = spec.server.config.as_ref().map(|config| config.keys.clone()).unwrap_or_default();
    if let Some(threads) = threads(spec) {
        server.entry("threads").or_insert_with(|| threads.into());
    }
    let models: Vec<Value> = spec.models.iter().map(|model| model_config(spec, model)).collect();
    let defaults = serde_json::to_value(ServingConfig::default()).unwrap_or_default();
    let logging = without_defaults(&json!({"level": spec.server.log_level}), &defaults["logging"]);
    let config = json!({
        "server": without_defaults(&Value::Object(server), &defaults["server"]),
        "logging": logging,
        "models": models,
    });
    // Maps with text as keys can always be written.
    serde_saphyr::to_string(&without_empty(config)).unwrap_or_default()
}

fn model_config(spec: &InferenceModelSpec, model: &Model) -> Value {
    let batching = &model.batching;
    let config = json!({
        "task": model.task.as_str(),
        "batch_size": batching.batch_size,
        "batch_timeout_ms": batching.batch_timeout.as_millis(),
        "max_queue_ms": batching.max_queue_time.as_millis(),
        "queue_size": batching.queue_size,
        "request_timeout_ms": model.request_timeout.as_millis(),
        "instances": model.instances,
        "latency_objective_ms": model.latency_objective.map(crds::resource::Duration::as_millis),
        "execution_providers": providers(spec),
        "options": model.options.as_ref().map(|options| &options.keys),
    });
    let defaults = json!({
        "task": "tensor",
        "batch_size": 8,
        "batch_timeout_ms": 0,
        "max_queue_ms": 500,
        "queue_size": 1024,
        "request_timeout_ms": 30_000,
        "instances": 1,
        "latency_objective_ms": null,
        "execution_providers": [],
        "options": null,
    });
    let mut config = without_defaults(&config, &defaults);
    config["name"] = model.name.as_str().into();
    config["path"] = path(model).into();
    config
}

/// Where the pod finds a model.
#[must_use]
pub fn path(model: &Model) -> String {
    let below = |path: Option<&String>| {
        let folder = format!("{VOLUMES_FOLDER}/{}", model.name);
        path.map_or_else(|| folder.clone(), |path| format!("{folder}/{path}"))
    };
    if let Some(pvc) = &model.source.pvc {
        return below(pvc.path.as_ref());
    }
    if let Some(image) = &model.source.image {
        return below(image.path.as_ref());
    }
    match model.source.uri.as_deref().and_then(|uri| uri.strip_prefix("file://")) {
        Some(path) if !is_fetched(model) => path.to_owned(),
        _ => format!("{MODELS_FOLDER}/{}", model.name),
    }
}

/// Whether the model is brought by an init container. A file of the server's own image or volumes is used where it is,
/// unless its checksum is to be verified.
#[must_use]
pub fn is_fetched(model: &Model) -> bool {
    let checked = model.sha256.is_some() || !model.files.is_empty();
    model.source.uri.as_ref().is_some_and(|uri| checked || !uri.starts_with("file://"))
}

/// Whether the pods get an NVIDIA accelerator.
#[must_use]
pub fn is_cuda(spec: &InferenceModelSpec) -> bool {
    spec.accelerator.count > 0 && spec.accelerator.resource_name.starts_with("nvidia.com/")
}

/// Devices for models among these resources, each with the list that has it: they would be taken from others, and no model would run on
/// them but where somebody has named the providers. Resources of the same maker that are none, such as a share of a memory, are let be.
#[must_use]
pub fn misplaced_devices<'a>(
    spec: &InferenceModelSpec,
    resources: Option<&'a ResourceRequirements>,
) -> Vec<(&'static str, &'a str)> {
    if !spec.server.execution_providers.is_empty() {
        return Vec::new();
    }
    let is_device = |resource: &str| {
        let of_nvidia = resource.strip_prefix("nvidia.com/").unwrap_or_default();
        let is_nvidia = of_nvidia == "gpu" || of_nvidia.starts_with("gpu.") || of_nvidia.starts_with("mig-");
        is_nvidia || resource == spec.accelerator.resource_name
    };
    let lists = resources.into_iter().flat_map(|it| [("limits", &it.limits), ("requests", &it.requests)]);
    let named = lists.flat_map(|(list, resources)| resources.iter().flatten().map(move |(name, it)| (list, name, it)));
    let devices = named.filter(|(_, name, quantity)| quantity.0 != "0" && is_device(name));
    devices.map(|(list, name, _)| (list, name.as_str())).collect()
}

/// Where the models should run, best first.
#[must_use]
pub fn providers(spec: &InferenceModelSpec) -> Vec<&'static str> {
    let given: Vec<&'static str> = spec.server.execution_providers.iter().map(|provider| provider.as_str()).collect();
    if given.is_empty() && is_cuda(spec) {
        return vec![ExecutionProvider::Cuda.as_str(), ExecutionProvider::Cpu.as_str()];
    }
    given
}

/// CPUs of a pod, rounded up: its limit, else what it asks for.
fn threads(spec: &InferenceModelSpec) -> Option<u32> {
    let resources = spec.resources.as_ref()?;
    let cpu = |list: &Option<std::collections::BTreeMap<String, _>>| list.as_ref()?.get("cpu").cloned();
    let quantity: k8s_openapi::apimachinery::pkg::api::resource::Quantity =
        cpu(&resources.limits).or_else(|| cpu(&resources.requests))?;
    cpus(&quantity.0)
}

/// Whole CPUs, rounded up, of a quantity such as `1500m` or `2`. The API server has checked its form.
fn cpus(quantity: &str) -> Option<u32> {
    let cpus = amount(quantity)?.ceil();
    // In range, so that nothing is cut off.
    (1.0..=1024.0).contains(&cpus).then_some(cpus as u32)
}

/// What differs from the default, key by key.
#[must_use]
pub fn without_defaults(value: &Value, default: &Value) -> Value {
    let (Value::Object(value), Value::Object(default)) = (value, default) else { return value.clone() };
    let differing = value.iter().filter(|(key, value)| default.get(*key) != Some(value));
    let kept = differing.map(|(key, value)| {
        (key.clone(), default.get(key).map_or_else(|| value.clone(), |default| without_defaults(value, default)))
    });
    Value::Object(kept.collect::<Map<_, _>>())
}

/// A value as JSON, without what its default says too.
#[must_use]
pub fn changed<T: Serialize>(value: &T, default: &T) -> Value {
    let json = |value: &T| serde_json::to_value(value).unwrap_or_default();
    without_defaults(&json(value), &json(default))
}

fn without_empty(config: Value) -> Value {
    let Value::Object(parts) = config else { return config };
    let said = parts.into_iter().filter(|(_, part)| part.as_object().is_none_or(|part| !part.is_empty()));
    Value::Object(said.collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpus_are_rounded_up() {
        let expected = [("200m", Some(1)), ("1", Some(1)), ("1500m", Some(2)), ("2.1", Some(3)), ("0", None)];
        for (quantity, threads) in expected {
            assert_eq!(cpus(quantity), threads, "{quantity}");
        }
    }

    #[test]
    fn what_the_default_says_too_is_left_out() {
        let value = json!({"a": 1, "b": {"c": 2, "d": 3}, "e": 4});
        let default = json!({"a": 1, "b": {"c": 2, "d": 0}});
        assert_eq!(without_defaults(&value, &default), json!({"b": {"d": 3}, "e": 4}));
    }
}
