//! Schemas of Kubernetes' own types, cut down to what the operator passes on.

use schemars::{Schema, SchemaGenerator, json_schema};

/// Any number of units with a suffix, as the API server takes it.
const QUANTITY: &str = r"^([0-9]+(\.[0-9]*)?|\.[0-9]+)([KMGTPE]i|[numkMGTPE]|[eE][+-]?[0-9]+)?$";

/// `Vec<Toleration>`.
pub(super) fn tolerations(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "array",
        "maxItems": 16,
        "x-kubernetes-list-type": "atomic",
        "items": {
            "type": "object",
            "properties": {
                "key": {"type": "string", "maxLength": 316},
                "operator": {"type": "string", "enum": ["Exists", "Equal"]},
                "value": {"type": "string", "maxLength": 63},
                "effect": {"type": "string", "enum": ["NoSchedule", "PreferNoSchedule", "NoExecute"]},
                "tolerationSeconds": {"type": "integer", "format": "int64"},
            },
        },
    })
}

/// Values of labels, by their keys.
pub(super) fn node_selector(_: &mut SchemaGenerator) -> Schema {
    texts(63)
}

/// Annotations, by their keys.
pub(super) fn annotations(_: &mut SchemaGenerator) -> Schema {
    texts(4096)
}

fn texts(longest: u32) -> Schema {
    let text = json_schema!({"type": "string", "maxLength": longest});
    json_schema!({"type": "object", "maxProperties": 32, "additionalProperties": text})
}

/// `ResourceRequirements` without claims, which `accelerator.claims` has.
pub(super) fn resources(_: &mut SchemaGenerator) -> Schema {
    let list = json_schema!({
        "type": "object",
        "maxProperties": 16,
        "additionalProperties": {"x-kubernetes-int-or-string": true, "maxLength": 32, "pattern": QUANTITY},
    });
    json_schema!({"type": "object", "properties": {"requests": list.clone(), "limits": list}})
}

/// A `PodTemplateSpec`, whose schema alone would be larger than a CRD should be.
pub(super) fn pod_template(_: &mut SchemaGenerator) -> Schema {
    json_schema!({"type": "object", "x-kubernetes-preserve-unknown-fields": true})
}

/// `Vec<NetworkPolicyPeer>`.
pub(super) fn network_policy_peers(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "array",
        "maxItems": 16,
        "x-kubernetes-list-type": "atomic",
        "items": {"type": "object", "x-kubernetes-preserve-unknown-fields": true},
    })
}

/// `Vec<Condition>`.
pub(super) fn conditions(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "array",
        "maxItems": 16,
        "x-kubernetes-list-type": "map",
        "x-kubernetes-list-map-keys": ["type"],
        "items": {
            "type": "object",
            "required": ["type", "status", "reason", "message", "lastTransitionTime"],
            "properties": {
                "type": {"type": "string", "maxLength": 64},
                "status": {"type": "string", "enum": ["True", "False", "Unknown"]},
                "reason": {"type": "string", "minLength": 1, "maxLength": 128},
                "message": {"type": "string", "maxLength": 32768},
                "lastTransitionTime": {"type": "string", "format": "date-time"},
                "observedGeneration": {"type": "integer", "format": "int64", "minimum": 0},
            },
        },
    })
}

/// `Option<Time>`.
pub(super) fn time(_: &mut SchemaGenerator) -> Schema {
    json_schema!({"type": "string", "format": "date-time"})
}
