//! What the API server refuses: the CEL rules of the resource, each with its own sentence and the field it speaks of.
//!
//! A rule sits on the object whose fields it compares, so that its cost is counted once for each of them; strings and
//! lists in reach have a bound, or the API server would refuse the whole definition as too costly.

use serde_json::{Value, json};

const LONGEST_TIME: &str = "1h";

/// `InferenceModel` itself.
pub(super) fn of_resource() -> Value {
    // 40 + `-` + 8 digits of the hash + `-` leave room for what a Deployment and a Service add, up to a label's 63.
    json!([
        rule("self.metadata.name.size() <= 40", ".metadata.name", "metadata.name has at most 40 characters"),
        rule(
            "self.metadata.name.matches('^[a-z]([-a-z0-9]*[a-z0-9])?$')",
            ".metadata.name",
            "metadata.name is that of a Service, too: lower-case letters, digits and -, beginning with a letter",
        ),
    ])
}

/// `spec.models[]`.
pub(super) fn of_model() -> Value {
    json!([
        rule(
            "[has(self.source.uri), has(self.source.pvc), has(self.source.image)].filter(given, given).size() == 1",
            ".source",
            "a model has exactly one source: uri, pvc or image",
        ),
        rule(
            "!has(self.source.uri) || self.source.uri.matches('^(s3|gs|az|hf|http|https|oci|file)://.')",
            ".source.uri",
            "uri begins with s3://, gs://, az://, hf://, http://, https://, oci:// or file://",
        ),
        rule(
            "!has(self.source.uri) || !self.source.uri.matches('^https?://') || has(self.sha256) || has(self.files)",
            ".sha256",
            "a model from http:// or https:// needs sha256, or files with the sha256 of each",
        ),
        rule(
            "!has(self.sha256) || !has(self.files)",
            ".files",
            "give sha256 for one file or files for a folder, not both",
        ),
        rule(
            "has(self.source.uri) || !has(self.sha256) && !has(self.files)",
            ".source",
            "sha256 and files are checked while a model is fetched, so they need source.uri",
        ),
        rule(
            "!has(self.sha256) || self.sha256.matches('^[0-9a-f]{64}$')",
            ".sha256",
            "sha256 is 64 lower-case hexadecimal digits",
        ),
        within("requestTimeout", "1ms", LONGEST_TIME),
        when_given(within("latencyObjective", "1ms", LONGEST_TIME), "latencyObjective"),
    ])
}

/// `spec.models[].files[]`.
pub(super) fn of_file() -> Value {
    json!([
        rule("self.sha256.matches('^[0-9a-f]{64}$')", ".sha256", "sha256 is 64 lower-case hexadecimal digits"),
        rule(
            &format!("self.path.matches('{INSIDE}')"),
            ".path",
            "path stays inside the model's folder: relative, without . and .. as parts"
        ),
    ])
}

/// `spec.models[].source.pvc` and `image`.
pub(super) fn of_path() -> Value {
    json!([rule(
        &format!("!has(self.path) || self.path.matches('{INSIDE}')"),
        ".path",
        "path stays inside the source: relative, without . and .. as parts",
    )])
}

/// Parts divided by single slashes, none of them `.` or `..`. RE2 knows no look-ahead, so the parts are spelled out:
/// without a leading dot; or a dot and something else; or two dots and something more.
const INSIDE: &str = r"^([^./][^/]*|[.][^./][^/]*|[.][.][^/]+)(/([^./][^/]*|[.][^./][^/]*|[.][.][^/]+))*$";

/// `spec.models[].batching`.
pub(super) fn of_batching() -> Value {
    json!([
        rule(
            "self.queueSize >= self.batchSize",
            ".queueSize",
            "queueSize is at least batchSize: a full batch must fit into the queue",
        ),
        within("batchTimeout", "0s", "1s"),
        within("maxQueueTime", "1ms", LONGEST_TIME),
    ])
}

/// `spec.server`.
pub(super) fn of_server() -> Value {
    json!([
        rule(
            "!has(self.env) || self.env.all(variable, !variable.name.startsWith('ORTOLAN__') || \
             variable.name.startsWith('ORTOLAN__OBSERVABILITY__') || variable.name == 'ORTOLAN__LOGGING__FORMAT')",
            ".env",
            "settings of the server go under server.config, not into variables that begin with ORTOLAN__, but for \
             ORTOLAN__OBSERVABILITY__* and ORTOLAN__LOGGING__FORMAT",
        ),
        rule(
            "!has(self.config) || !(has(self.config.host) || has(self.config.port) || has(self.config.grpc_port) || \
             has(self.config.metrics_port))",
            ".config",
            "host, port, grpc_port and metrics_port cannot be set: Services and probes rely on them",
        ),
        rule(
            "!has(self.config) || !has(self.config.tls) && !has(self.config.tokens_file)",
            ".config",
            "tls and tokens_file cannot be set: use server.tlsSecret and server.tokensSecret",
        ),
    ])
}

/// `spec.accelerator`.
pub(super) fn of_accelerator() -> Value {
    json!([
        rule(
            "self.resourceName.contains('/')",
            ".resourceName",
            "resourceName is an extended resource with its vendor, for example nvidia.com/gpu",
        ),
        rule(
            "!has(self.mig) || self.count > 0 && self.resourceName == 'nvidia.com/gpu'",
            ".mig",
            "mig needs a count of at least 1 and the resourceName nvidia.com/gpu",
        ),
        rule(
            "!has(self.claims) || self.claims.size() == 0 || self.count == 0",
            ".claims",
            "devices come by count or by claims, not both",
        ),
    ])
}

/// `spec.accelerator.claims[]`.
pub(super) fn of_claim() -> Value {
    json!([rule(
        "has(self.resourceClaimName) != has(self.resourceClaimTemplateName)",
        ".resourceClaimName",
        "a claim has exactly one of resourceClaimName and resourceClaimTemplateName",
    )])
}

/// `spec.scaling`. Replicas are not tied to the bounds: autoscalers write them through the scale subresource.
pub(super) fn of_scaling() -> Value {
    json!([
        rule(
            "!has(self.maxReplicas) || self.minReplicas <= self.maxReplicas",
            ".minReplicas",
            "minReplicas is at most maxReplicas",
        ),
        rule(
            "!has(self.mode) || self.mode == 'External' || has(self.maxReplicas)",
            ".maxReplicas",
            "the modes Operator, HPA and KEDA need maxReplicas",
        ),
        rule(
            "(has(self.mode) ? self.mode == 'External' : !has(self.maxReplicas)) || has(self.targets) && \
             (has(self.targets.inflightPerReplica) || has(self.targets.queuePerReplica) || has(self.targets.latency))",
            ".targets",
            "the modes Operator (also that of maxReplicas alone), HPA and KEDA need one of targets.inflightPerReplica, \
             targets.queuePerReplica and targets.latency",
        ),
        when_given(within("staleAfter", "1s", LONGEST_TIME), "staleAfter"),
    ])
}

/// `spec.scaling.panic`. What was read within the window is kept, for each model.
pub(super) fn of_panic() -> Value {
    json!([when_given(within("window", "100ms", "1m"), "window")])
}

/// `spec.scaling.targets.latency`: what a pod can be asked about.
pub(super) fn of_latency() -> Value {
    json!([within("target", "1ms", "10m")])
}

/// `spec.rollout`.
pub(super) fn of_rollout() -> Value {
    json!([within("surgeTimeout", "1s", "24h"), within("progressDeadline", "1s", "24h")])
}

/// `spec.scaling.behavior.scaleUp` and `scaleDown`: what a HorizontalPodAutoscaler takes, too.
pub(super) fn of_stabilization() -> Value {
    json!([rule(
        "!has(self.stabilization) || duration(self.stabilization) >= duration('0s') && \
         duration(self.stabilization) <= duration('1h')",
        ".stabilization",
        "stabilization is between 0s and 1h",
    )])
}

/// A duration between two others, both allowed.
fn within(field: &str, least: &str, most: &str) -> Value {
    rule(
        &format!("duration(self.{field}) >= duration('{least}') && duration(self.{field}) <= duration('{most}')"),
        &format!(".{field}"),
        &format!("{field} is between {least} and {most}"),
    )
}

/// The rule, for objects that have the field.
fn when_given(mut rule: Value, field: &str) -> Value {
    let cel = rule["rule"].as_str().unwrap_or_default().to_owned();
    rule["rule"] = Value::String(format!("!has(self.{field}) || {cel}"));
    rule
}

fn rule(cel: &str, field_path: &str, message: &str) -> Value {
    json!({"rule": cel, "fieldPath": field_path, "message": message})
}
