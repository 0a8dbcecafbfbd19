//! Names on objects: labels, annotations, field managers and the names of children.

/// Field manager of every field of every child.
pub const FIELD_MANAGER: &str = "ortolan";

/// Field manager of the status.
pub const STATUS_MANAGER: &str = "ortolan-status";

/// The field manager of the number of replicas, where the operator scales.
pub const SCALER_MANAGER: &str = "ortolan-scaler";

/// Which InferenceModel an object belongs to; what the Services and the scale's selector select by.
pub const MODEL_LABEL: &str = "ortolan.dev/inference-model";

/// Which revision an object belongs to.
pub const REVISION_LABEL: &str = "ortolan.dev/revision";

/// On what the models of a namespace share; its value is the object's name.
pub const SHARED_LABEL: &str = "ortolan.dev/shared";

/// On a headless Service: the ServiceMonitor that selects it.
pub const SCRAPED_LABEL: &str = "ortolan.dev/service-monitor";

/// Name of the ServiceMonitor and of the PrometheusRule that the models of a namespace share.
pub const SHARED: &str = "ortolan-models";

/// On an InferenceModel: a new value is a new revision, which restarts the pods.
pub const RESTART_ANNOTATION: &str = "ortolan.dev/restart";

/// On each child: digest of what was last written, so that a field that is no longer wanted is noticed too.
pub const APPLIED_ANNOTATION: &str = "ortolan.dev/applied";

/// On a Deployment: the revision's serving config, from which a lost ConfigMap is restored.
pub const CONFIG_ANNOTATION: &str = "ortolan.dev/config";

/// On a Deployment: the revision's pod template as it was rendered, for the same.
pub const TEMPLATE_ANNOTATION: &str = "ortolan.dev/template";

/// On a revision's ConfigMap and, in case it is lost, on its Deployment: since when the spec has asked for it, without interruption.
pub const TARGET_SINCE_ANNOTATION: &str = "ortolan.dev/target-since";

/// On a revision's ConfigMap: when it got its first pod since it became the target.
pub const BEGAN_ANNOTATION: &str = "ortolan.dev/began";

/// On a revision's ConfigMap: when it last took over completely.
pub const COMPLETED_ANNOTATION: &str = "ortolan.dev/completed";

/// On a revision's ConfigMap: when it was given up.
pub const FAILED_ANNOTATION: &str = "ortolan.dev/failed";

/// On a revision's ConfigMap: why it was given up.
pub const CAUSE_ANNOTATION: &str = "ortolan.dev/cause";

/// On a revision's ConfigMap: the deadline by which it was given up, in seconds.
pub const DEADLINE_ANNOTATION: &str = "ortolan.dev/deadline-seconds";

/// On a revision's ConfigMap: since when its pods wait for old ones to make room.
pub const TERMINATING_FIRST_ANNOTATION: &str = "ortolan.dev/terminating-first";

/// On a revision's ConfigMap: since when that room has been free and its pods wait still.
pub const ROOM_SINCE_ANNOTATION: &str = "ortolan.dev/room-since";

/// On a revision's ConfigMap: how many pods there was room for when its pods had waited for some.
pub const PLACES_ANNOTATION: &str = "ortolan.dev/places";

/// The container that serves.
pub const SERVER_CONTAINER: &str = "server";

/// Keys of a revision's ConfigMap.
pub const CONFIG_KEY: &str = "config.yaml";
/// See [`CONFIG_KEY`].
pub const TEMPLATE_KEY: &str = "template.json";

/// Name of a revision's Deployment and ConfigMap.
#[must_use]
pub fn revision(model: &str, hash: &str) -> String {
    format!("{model}-{hash}")
}

/// The InferenceModel whose revision a Deployment of this name may be: the part before a hash.
#[must_use]
pub fn model_of_revision(name: &str) -> Option<&str> {
    const HASH_DIGITS: usize = 8;
    let is_digit = |digit: u8| digit.is_ascii_digit() || (b'a'..=b'f').contains(&digit);
    let (model, hash) = name.rsplit_once('-')?;
    (hash.len() == HASH_DIGITS && hash.bytes().all(is_digit)).then_some(model)
}

/// Name of the headless Service.
#[must_use]
pub fn headless(model: &str) -> String {
    format!("{model}-pods")
}

/// Name of the ConfigMap with a model's dashboard.
#[must_use]
pub fn dashboard(model: &str) -> String {
    format!("{model}-dashboard")
}

/// Name of the init container that fetches a model.
#[must_use]
pub fn fetch_container(model: &str) -> String {
    format!("fetch-{model}")
}

/// The model that an init container of ours fetches.
#[must_use]
pub fn fetched_model(container: &str) -> Option<&str> {
    container.strip_prefix("fetch-")
}

/// Selects the pods of an InferenceModel.
#[must_use]
pub fn selector(model: &str) -> String {
    format!("{MODEL_LABEL}={model}")
}
