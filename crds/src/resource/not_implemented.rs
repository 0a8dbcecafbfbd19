//! What the resource can say but the operator does not do yet.

use super::{AsWritten, InferenceModelSpec, Model, Scaling, ScalingMode, Toggle};
use crate::serving::{Fault, Faults, ModelOptions, ServerConfig, Task};

/// The sources that can be fetched today.
const SCHEMES: [&str; 3] = ["http://", "https://", "file://"];

/// Every field with a value that would be ignored. The operator refuses the object while there are any: what a user
/// asks for and does not get is worse than an error.
///
/// What the server itself does not do yet is also found in the options and in `server.config`; see [`invalid_options`].
#[must_use]
pub fn not_implemented(spec: &InferenceModelSpec) -> Vec<Fault> {
    let mut faults: Vec<Fault> = spec.models.iter().flat_map(of_model).collect();
    let InferenceModelSpec { models: _, server, accelerator, scaling, availability, .. } = spec;
    let default = InferenceModelSpec::default();
    faults.extend(refused(
        "spec",
        &[
            ("server.tlsSecret", server.tls_secret.is_some(), "TLS"),
            ("server.tokensSecret", server.tokens_secret.is_some(), "bearer tokens"),
            ("accelerator.mig", accelerator.mig.is_some(), "MIG profiles"),
            ("accelerator.claims", !accelerator.claims.is_empty(), "resource claims"),
            ("route", spec.route.is_some(), "an HTTPRoute"),
            ("networkPolicy", spec.network_policy != default.network_policy, "a NetworkPolicy"),
            ("availability.pdb", availability.pdb != Toggle::Auto, "a PodDisruptionBudget"),
            ("availability.spread", availability.spread != Toggle::Auto, "spreading over zones and nodes"),
            ("cache", spec.cache.is_some(), "a cache of fetched models"),
        ],
    ));
    faults.extend(of_scaling(scaling));
    faults
}

/// What an autoscaler of somebody else has no counterpart for. A HorizontalPodAutoscaler takes each number for one that falls as
/// replicas come: by a latency it would remove replicas too, and add them without end where a single run is slow.
fn of_scaling(scaling: &Scaling) -> Vec<Fault> {
    let Some(mode @ (ScalingMode::Hpa | ScalingMode::Keda)) = scaling.effective_mode() else { return Vec::new() };
    let latency = scaling.targets.as_ref().is_some_and(|targets| targets.latency.is_some());
    let fields = [
        ("targets.latency", latency, "removes replicas by every target, which a latency must not do"),
        ("panic", scaling.panic.is_some(), "knows no bursts"),
        ("staleAfter", scaling.stale_after.is_some(), "judges by itself which numbers are too old"),
    ];
    let used = fields.into_iter().filter(|(_, used, _)| *used);
    used.map(|(path, _, why)| {
        let message = format!("mode {} {why}: leave this field out, or set the mode to Operator", mode.as_str());
        fault(&format!("spec.scaling.{path}"), message)
    })
    .collect()
}

fn of_model(model: &Model) -> Vec<Fault> {
    let unknown_scheme = |uri: &String| !SCHEMES.iter().any(|scheme| uri.starts_with(scheme));
    refused(
        &format!("spec.models[{}]", model.name),
        &[
            (
                "source.uri",
                model.source.uri.as_ref().is_some_and(unknown_scheme),
                "a source other than http, https and file",
            ),
            ("revision", model.revision.is_some(), "a source that has revisions"),
            ("secretRef", model.secret_ref.is_some(), "a source that takes credentials"),
            ("task", matches!(model.task, Task::TextEmbedding | Task::ImageTextSimilarity), model.task.as_str()),
        ],
    )
}

fn refused(prefix: &str, fields: &[(&str, bool, &str)]) -> Vec<Fault> {
    let used = fields.iter().filter(|(_, used, _)| *used);
    used.map(|(path, _, what)| {
        fault(&format!("{prefix}.{path}"), format!("{what} is not built yet: leave this field out"))
    })
    .collect()
}

/// Everything in `models[].options` and `server.config` that the server would refuse, found with the server's parser.
#[must_use]
pub fn invalid_options(spec: &InferenceModelSpec) -> Vec<Fault> {
    let config = spec.server.config.as_ref().map(AsWritten::<ServerConfig>::parse);
    let mut faults = below("spec.server.config", config.and_then(Result::err));
    for model in &spec.models {
        let options = model.options.as_ref().map(AsWritten::<ModelOptions>::parse);
        faults.extend(below(&format!("spec.models[{}].options", model.name), options.and_then(Result::err)));
    }
    faults
}

/// The faults of a part of the serving config, with their paths in the resource.
fn below(prefix: &str, found: Option<Faults>) -> Vec<Fault> {
    let moved = |Fault { path, message, .. }| fault(&join(prefix, &path), message);
    found.map(|faults| faults.0.into_iter().map(moved).collect()).unwrap_or_default()
}

fn join(prefix: &str, path: &str) -> String {
    if path.is_empty() { prefix.to_owned() } else { format!("{prefix}.{path}") }
}

fn fault(path: &str, message: String) -> Fault {
    Fault { path: path.to_owned(), origin: String::new(), message }
}
