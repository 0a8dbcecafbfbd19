//! Settings of the process: `server` and `logging`.

use std::{net::IpAddr, path::PathBuf};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Ports, limits and time-outs of the process.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ServerConfig {
    /// IP address that all ports listen on; 0.0.0.0 takes all of IPv6, too.
    #[schemars(length(max = 64))]
    pub host: IpAddr,
    /// HTTP port for clients; 0 takes a free one.
    pub port: u16,
    /// gRPC port for clients; 0 takes a free one.
    pub grpc_port: u16,
    /// Plain HTTP for probes and scrapes, on a thread of its own; 0 takes a free one.
    pub metrics_port: u16,
    /// Name that the server gives itself.
    #[schemars(length(min = 1, max = 128))]
    pub server_name: String,
    /// Threads for all models together; null takes them from the CPU limit.
    #[schemars(range(min = 1, max = 1024))]
    pub threads: Option<u32>,
    /// After SIGTERM everything is still served for this long, so that load balancers can turn away.
    #[schemars(range(max = 600_000))]
    pub drain_delay_ms: u64,
    /// Accepted requests get this long to finish once the listeners are closed.
    #[schemars(range(max = 3_600_000))]
    pub drain_timeout_ms: u64,
    /// A connection older than this (with jitter) is closed between requests, so that new replicas get traffic; 0 never.
    #[schemars(range(max = 86_400_000))]
    pub max_connection_age_ms: u64,
    /// Largest request body in bytes; above it the answer is 413, before the body is read.
    #[schemars(range(min = 1024, max = 4_294_967_296_u64))]
    pub max_body_bytes: u64,
    /// Largest image in pixels (width x height); above it the answer is 413, before it is decoded.
    #[schemars(range(min = 1, max = 1_000_000_000))]
    pub max_pixels: u64,
    /// File with the accepted bearer tokens. Not built yet: only null is taken.
    #[schemars(length(max = 4096))]
    pub tokens_file: Option<PathBuf>,
    /// Certificates of the client ports. Not built yet: only null is taken.
    pub tls: Option<TlsConfig>,
    /// Requests per second. Not built yet: only null is taken.
    pub rate_limit: Option<RateLimit>,
    /// Who may load and unload models at run time. Only `none` is built.
    pub model_control: ModelControl,
}

impl Default for ServerConfig {
    fn default() -> Self {
        Self {
            host: IpAddr::from([0, 0, 0, 0]),
            port: 8080,
            grpc_port: 8081,
            metrics_port: 9090,
            server_name: "ortolan".to_owned(),
            threads: None,
            drain_delay_ms: 5_000,
            drain_timeout_ms: 30_000,
            max_connection_age_ms: 60_000,
            max_body_bytes: 64 << 20,
            max_pixels: 50_000_000,
            tokens_file: None,
            tls: None,
            rate_limit: None,
            model_control: ModelControl::None,
        }
    }
}

/// Files of the certificates for the client ports.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct TlsConfig {
    /// PEM file of the server's certificate chain.
    #[schemars(length(max = 4096))]
    pub cert_file: PathBuf,
    /// PEM file of its key.
    #[schemars(length(max = 4096))]
    pub key_file: PathBuf,
    /// PEM file of the authority that client certificates must come from; null asks for none.
    #[schemars(length(max = 4096))]
    pub client_ca_file: Option<PathBuf>,
}

/// A limit on requests.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RateLimit {
    /// Requests per second that are let through for ever.
    pub per_second: f64,
    /// Requests that may come at once.
    pub burst: u32,
    /// What the limit is counted for.
    pub by: RateLimitBy,
}

/// What a rate limit is counted for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum RateLimitBy {
    /// Each bearer token has its own.
    Token,
    /// Each client address has its own.
    Address,
}

/// Who may load and unload models at run time.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum ModelControl {
    /// Nobody: the models of the config are loaded at start.
    #[default]
    None,
    /// Clients, through the repository extension.
    Explicit,
    /// The server, when files change.
    Poll,
}

/// How the process logs. `RUST_LOG` wins over `level`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct LoggingConfig {
    /// One JSON object a line, or text for people.
    pub format: LogFormat,
    /// A level (`info`) or a filter (`info,inference_pod::queue=debug`).
    #[schemars(length(min = 1, max = 1024))]
    pub level: String,
}

impl Default for LoggingConfig {
    fn default() -> Self {
        Self { format: LogFormat::Json, level: "info".to_owned() }
    }
}

/// Form of a log line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// One JSON object a line.
    Json,
    /// Text for people.
    Plain,
}
