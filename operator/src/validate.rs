//! Whether a spec can be acted on: all that speaks against it, at once.

use crds::{
    resource::{InferenceModelSpec, Model, ScalingMode, conditions::accepted, invalid_options, not_implemented},
    serving::{self, Fault, Layer, ServerConfig},
};
use k8s_openapi::api::core::v1::PodTemplateSpec;

use crate::build::{config, overlay};

/// A spec that can be acted on, with its open parts read.
#[derive(Debug, Clone)]
pub struct Checked<'a> {
    /// The spec.
    pub spec: &'a InferenceModelSpec,
    /// The settings of the server, those that were left out included.
    pub server: ServerConfig,
    /// The serving config, as text for the pods.
    pub config: String,
    /// What is merged into the pod template.
    pub overlay: Option<PodTemplateSpec>,
    /// Where KEDA finds Prometheus.
    pub prometheus: Option<&'a str>,
}

/// Why a spec cannot be acted on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// A reason of the condition Accepted.
    pub reason: &'static str,
    /// All that is wrong, each with its field.
    pub message: String,
}

/// Checks a spec, for an operator that was told this address of Prometheus.
///
/// # Errors
/// The [`Refusal`] that the condition Accepted shows: what cannot be read, then what is not built, then what the server would
/// refuse, then what the podTemplate may not set.
pub fn validate<'a>(spec: &'a InferenceModelSpec, prometheus: Option<&'a str>) -> Result<Checked<'a>, Refusal> {
    refuse(accepted::INVALID_OPTIONS, spec.unread.clone())?;
    refuse(accepted::NOT_IMPLEMENTED, [not_implemented(spec), without_prometheus(spec, prometheus)].concat())?;
    refuse(accepted::INVALID_OPTIONS, [invalid_options(spec), misplaced_devices(spec), hidden_files(spec)].concat())?;
    let server = spec
        .server
        .config
        .as_ref()
        .map_or_else(|| Ok(ServerConfig::default()), crds::resource::AsWritten::<ServerConfig>::parse);
    let server = server.map_err(|faults| refusal(accepted::INVALID_OPTIONS, &faults.0))?;
    let config = config::render(spec);
    // The pod's own parser has the last word on what the pod will read.
    if let Err(faults) = serving::parse(&[Layer::yaml("", config.clone())]) {
        return Err(refusal(accepted::INVALID_OPTIONS, &faults.0));
    }
    refuse(accepted::INVALID_OPTIONS, too_much(spec, &config).into_iter().collect())?;
    let overlay = overlay::read(spec, &server).map_err(|faults| refusal(accepted::INVALID_OVERLAY, &faults))?;
    Ok(Checked { spec, server, config, overlay, prometheus })
}

/// The config and the pod template are noted in annotations too, and all annotations of an object may have 256 KiB.
const MOST_SETTINGS_BYTES: usize = 200 << 10;

fn too_much(spec: &InferenceModelSpec, config: &str) -> Option<Fault> {
    let environment: usize = spec.server.env.iter().map(|variable| variable.name.len() + variable.value.len()).sum();
    let containers = 1 + spec.models.iter().filter(|model| config::is_fetched(model)).count();
    let written = |value: Option<serde_json::Value>| value.map_or(0, |value| value.to_string().len());
    let models = written(serde_json::to_value(&spec.models).ok());
    let bytes = config.len() + containers * environment + models + written(spec.pod_template.clone());
    let message = format!(
        "expected settings of at most {MOST_SETTINGS_BYTES} bytes, got {bytes}: the models with their options and files, \
         spec.server.env for the server and for each model that is fetched, and spec.podTemplate"
    );
    (bytes > MOST_SETTINGS_BYTES).then(|| fault("spec", message))
}

fn misplaced_devices(spec: &InferenceModelSpec) -> Vec<Fault> {
    let devices = config::misplaced_devices(spec, spec.resources.as_ref()).into_iter();
    let message = "devices go under spec.accelerator, with count and resourceName";
    devices.map(|(list, name)| fault(&format!("spec.resources.{list}[{name}]"), message.to_owned())).collect()
}

/// A file of the image is not to be seen where a volume is mounted over its folder.
fn hidden_files(spec: &InferenceModelSpec) -> Vec<Fault> {
    let folder = config::MODELS_FOLDER;
    let fetched: Vec<&str> =
        spec.models.iter().filter(|model| config::is_fetched(model)).map(|model| model.name.as_str()).collect();
    let below = |uri: &str| uri.strip_prefix("file://")?.strip_prefix(folder)?.strip_prefix('/').map(str::to_owned);
    let is_hidden = |(model, uri): &(&Model, &str)| match below(uri) {
        // The folder of another model is there.
        Some(path) => config::is_fetched(model) || !fetched.contains(&path.split('/').next().unwrap_or_default()),
        None => uri.strip_prefix("file://") == Some(folder),
    };
    let named = spec.models.iter().filter_map(|model| Some((model, model.source.uri.as_deref()?)));
    let hidden = named.filter(|named| !fetched.is_empty() && is_hidden(named));
    hidden
        .map(|(model, uri)| {
            let message = format!(
                "expected a file outside {folder}, got {uri}: models that are fetched, or checked by sha256, lie in {folder}, which \
                 hides what the image has there"
            );
            fault(&format!("spec.models[{}].source.uri", model.name), message)
        })
        .collect()
}

fn without_prometheus(spec: &InferenceModelSpec, prometheus: Option<&str>) -> Vec<Fault> {
    if spec.scaling.effective_mode() != Some(ScalingMode::Keda) || prometheus.is_some() {
        return Vec::new();
    }
    let message = "mode KEDA needs the address of Prometheus, and this operator was started without one: set the chart's value \
                   prometheus.url, or set the mode to Operator, which needs nothing";
    vec![fault("spec.scaling.mode", message.to_owned())]
}

fn fault(path: &str, message: String) -> Fault {
    Fault { path: path.to_owned(), origin: String::new(), message }
}

fn refuse(reason: &'static str, faults: Vec<Fault>) -> Result<(), Refusal> {
    if faults.is_empty() { Ok(()) } else { Err(refusal(reason, &faults)) }
}

fn refusal(reason: &'static str, faults: &[Fault]) -> Refusal {
    let faults: Vec<String> = faults.iter().map(ToString::to_string).collect();
    Refusal { reason, message: faults.join("; ") }
}
