//! Whether a spec can be acted on: all that speaks against it, at once.

use crds::{
    resource::{InferenceModelSpec, ScalingMode, conditions::accepted, invalid_options, not_implemented},
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
/// The [`Refusal`] that the condition Accepted shows: what is not built, then what the server would refuse, then what
/// the podTemplate may not set.
pub fn validate<'a>(spec: &'a InferenceModelSpec, prometheus: Option<&'a str>) -> Result<Checked<'a>, Refusal> {
    refuse(accepted::NOT_IMPLEMENTED, [not_implemented(spec), without_prometheus(spec, prometheus)].concat())?;
    refuse(accepted::INVALID_OPTIONS, invalid_options(spec))?;
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
    let overlay = overlay::read(spec).map_err(|faults| refusal(accepted::INVALID_OVERLAY, &faults))?;
    Ok(Checked { spec, server, config, overlay, prometheus })
}

fn without_prometheus(spec: &InferenceModelSpec, prometheus: Option<&str>) -> Vec<Fault> {
    if spec.scaling.effective_mode() != Some(ScalingMode::Keda) || prometheus.is_some() {
        return Vec::new();
    }
    let message = "mode KEDA needs the address of Prometheus, and this operator was started without one: set the chart's value \
                   prometheus.url, or set the mode to Operator, which needs nothing";
    vec![Fault { path: "spec.scaling.mode".to_owned(), origin: String::new(), message: message.to_owned() }]
}

fn refuse(reason: &'static str, faults: Vec<Fault>) -> Result<(), Refusal> {
    if faults.is_empty() { Ok(()) } else { Err(refusal(reason, &faults)) }
}

fn refusal(reason: &'static str, faults: &[Fault]) -> Refusal {
    let faults: Vec<String> = faults.iter().map(ToString::to_string).collect();
    Refusal { reason, message: faults.join("; ") }
}
