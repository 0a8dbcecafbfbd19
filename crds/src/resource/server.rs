//! The server in the pods: `spec.server`.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{AsWritten, rules};
use crate::serving::{ExecutionProvider, ServerConfig};

/// The server that every pod runs.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
#[schemars(extend("x-kubernetes-validations" = rules::of_server()))]
pub struct Server {
    /// Image of the server. Left out: the one that the operator has when a revision is born, kept for that revision.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 512))]
    pub image: Option<String>,
    /// Where the models run, best first. Empty: cuda, then cpu, with an NVIDIA accelerator; otherwise cpu. A list without
    /// cpu refuses to start where its providers are missing.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 8), extend("x-kubernetes-list-type" = "atomic"))]
    pub execution_providers: Vec<ExecutionProvider>,
    /// A level (info) or a filter (info,inference_pod::queue=debug).
    #[schemars(length(min = 1, max = 1024))]
    pub log_level: String,
    /// Environment of the server's container. Settings of the server go under config instead.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"]))]
    pub env: Vec<EnvironmentVariable>,
    /// Settings of the process. Keys as in the server part of a config file.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub config: Option<AsWritten<ServerConfig>>,
    /// Secret of type kubernetes.io/tls with the certificate of the client ports. Not built yet: refused.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub tls_secret: Option<String>,
    /// Secret with the accepted bearer tokens. Not built yet: refused.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub tokens_secret: Option<String>,
}

impl Default for Server {
    fn default() -> Self {
        Self {
            image: None,
            execution_providers: Vec::new(),
            log_level: "info".to_owned(),
            env: Vec::new(),
            config: None,
            tls_secret: None,
            tokens_secret: None,
        }
    }
}

/// One environment variable.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct EnvironmentVariable {
    /// Its name.
    #[schemars(length(min = 1, max = 128), regex(pattern = r"^[A-Za-z_][A-Za-z0-9_]*$"))]
    pub name: String,
    /// Its value.
    #[schemars(length(max = 4096))]
    pub value: String,
}
