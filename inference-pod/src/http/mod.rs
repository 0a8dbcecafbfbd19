//! HTTP: routes, what every request gets, and the only place that knows status codes.

pub mod body;
pub mod decoders;
pub mod error;
pub mod images;
pub mod infer;
pub mod load;
pub mod numbers;
pub mod object;
pub mod observability;
pub mod predict;
pub mod probes;
pub mod refusals;

use std::{any::Any, sync::Arc};

use axum::{
    Router,
    body::Body,
    extract::{MatchedPath, Request, State},
    http::{HeaderValue, Method, Version, header::HOST},
    middleware::{self, Next},
    response::{IntoResponse, Response},
    routing::{MethodRouter, any, get, post},
};
use crds::serving::{HealthConfig, ServerConfig};
use tower_http::catch_panic::CatchPanicLayer;

use self::{decoders::Decoders, error::ApiError, refusals::Refusals};
use crate::{
    lifecycle::Lifecycle,
    logging::LogLevel,
    observe::{Observer, REQUEST_ID, asked::Asked, route::Route},
    registry::Registry,
};

/// Models have one version here: what their path leads to.
pub const MODEL_VERSION: &str = "1";

/// What kind of model ours are, in the words of other servers.
pub const PLATFORM: &str = "onnxruntime_onnx";

/// What the server knows beyond the Open Inference Protocol itself, by the names that clients look for.
pub const EXTENSIONS: [&str; 1] = ["binary_tensor_data"];

/// What all handlers share.
pub struct App {
    /// The settings of the process.
    pub server: ServerConfig,
    /// The models.
    pub registry: Registry,
    /// What the process is doing.
    pub lifecycle: Arc<Lifecycle>,
    /// What it tells about itself.
    pub observer: Observer,
    /// When `/health/detailed` warns, and the disk that it looks at.
    pub health: HealthTerms,
    /// Changes the level of the log.
    pub log_level: Option<LogLevel>,
    /// When the next request may be refused.
    pub refusals: Refusals,
    /// The threads for images and large bodies.
    pub decoders: Decoders,
    /// Those for large answers, which have their own: what has run already does not wait behind what is still to be decoded.
    pub writers: Decoders,
    /// Version of ONNX Runtime.
    pub runtime_version: String,
    /// Threads for all models together.
    pub threads: usize,
}

/// When `/health/detailed` warns.
#[derive(Debug, Clone, Default)]
pub struct HealthTerms {
    /// From which numbers on.
    pub criteria: HealthConfig,
    /// Room on the disk that is written to, where there is one: what is left, and all of it, in bytes.
    pub disk: Option<Asked<Option<(u64, u64)>>>,
}

/// The routes of the client port.
pub fn client_router(app: Arc<App>) -> Router {
    Routes::new(app)
        .add("/predict/{model}", post(predict::predict))
        .add("/v2/models/{model}/infer", post(predict::infer))
        .add("/v2/models/{model}/versions/{version}/infer", post(predict::infer))
        .with_probes()
}

/// The routes of the admin port: probes and scrapes, whatever the load on the client port.
pub fn admin_router(app: Arc<App>) -> Router {
    Routes::new(app)
        .add("/health/detailed", get(probes::detailed))
        .add(crds::load::PATH, get(load::load))
        .add("/observability", get(observability::show).patch(observability::change))
        .with_probes()
}

/// Routes, each with its number: so that no request needs to look for it.
struct Routes {
    app: Arc<App>,
    router: Router<Arc<App>>,
}

impl Routes {
    fn new(app: Arc<App>) -> Self {
        Self { app, router: Router::new() }
    }

    fn add(self, path: &'static str, methods: MethodRouter<Arc<App>>) -> Self {
        let scoped = self.scoped(Route::of(path), methods.fallback(wrong_verb));
        Self { router: self.router.route(path, scoped), ..self }
    }

    /// With what every request gets. The outer layer first, both as one: for each layer every request is boxed anew.
    fn scoped(&self, route: Route, methods: MethodRouter<Arc<App>>) -> MethodRouter<Arc<App>> {
        let state = (Arc::clone(&self.app), route);
        methods.layer((middleware::from_fn_with_state(state, scope), CatchPanicLayer::custom(panicked)))
    }

    fn with_probes(self) -> Router {
        let all = self
            .add("/health", get(probes::health))
            .add("/ready", get(probes::ready))
            .add("/health/ready", get(probes::ready))
            .add("/info", get(probes::info))
            .add("/metrics", get(probes::metrics))
            .add("/v2", get(probes::server_metadata))
            .add("/v2/", get(probes::server_metadata))
            .add("/v2/health/live", get(probes::v2_live))
            .add("/v2/health/ready", get(probes::v2_ready))
            .add("/v2/models/{model}", get(probes::model_metadata))
            .add("/v2/models/{model}/ready", get(probes::model_ready))
            .add("/v2/models/{model}/versions/{version}", get(probes::model_metadata))
            .add("/v2/models/{model}/versions/{version}/ready", get(probes::model_ready));
        let unknown = all.scoped(Route::of(""), any(unknown_path));
        all.router.fallback(unknown).with_state(all.app)
    }
}

async fn wrong_verb(method: Method, path: MatchedPath) -> ApiError {
    let takes_post = path.as_str().starts_with("/predict/") || path.as_str().ends_with("/infer");
    let allow = match path.as_str() {
        _ if takes_post => "POST",
        "/observability" => "GET, HEAD, PATCH",
        _ => "GET, HEAD",
    };
    ApiError::wrong_verb(method.as_str(), allow)
}

async fn unknown_path(request: Request) -> ApiError {
    ApiError::unknown_path(request.uri().path())
}

/// The caller of a handler that panicked is told little; the log has the rest from the hook of panics.
fn panicked(_: Box<dyn Any + Send + 'static>) -> Response {
    ApiError::internal("internal error").into_response()
}

/// Gives a request its id, the client's or ours, where handlers and what is told of it find it.
#[must_use]
pub fn name_request(request: &mut Request<Body>) -> HeaderValue {
    let id = request_id(request);
    request.headers_mut().insert(REQUEST_ID, id.clone());
    id
}

/// Gives a request and its response their id, and counts the response.
async fn scope(State((app, route)): State<(Arc<App>, Route)>, mut request: Request<Body>, next: Next) -> Response {
    let id = name_request(&mut request);
    let mut response = match check_host(&request) {
        Ok(()) => next.run(request).await,
        Err(error) => error.into_response(),
    };
    app.observer.metrics.responded(route, response.status().as_u16());
    response.headers_mut().insert(REQUEST_ID, id);
    response
}

/// HTTP/1.1 has one Host and wants 400 for any other number, and for what is no host: proxies that do not agree on which one counts, or
/// where it ends, are led astray (RFC 9112, 3.2).
fn check_host(request: &Request<Body>) -> Result<(), ApiError> {
    let mut hosts = request.headers().get_all(HOST).iter();
    let first = hosts.next();
    let count = usize::from(first.is_some()) + hosts.count();
    if count > 1 || count == 0 && request.version() == Version::HTTP_11 {
        return Err(ApiError::bad_input(format!("expected one header Host, got {count}")));
    }
    let is_of_host = |byte: &u8| byte.is_ascii_graphic() && !b"/?#@\\\"<>^`{|}".contains(byte);
    match first.filter(|host| !host.as_bytes().iter().all(is_of_host)) {
        Some(wrong) => Err(ApiError::bad_input(format!("header Host: expected a host and its port, got {wrong:?}"))),
        None => Ok(()),
    }
}

/// The client's id where it is fit for a log line, else a new one.
fn request_id(request: &Request<Body>) -> HeaderValue {
    const LONGEST: usize = 128;
    let fit = |value: &&HeaderValue| {
        !value.is_empty() && value.len() <= LONGEST && value.as_bytes().iter().all(u8::is_ascii_graphic)
    };
    let made = || {
        let mut text = [0; uuid::fmt::Hyphenated::LENGTH];
        // Not a secret: random numbers of the process do, and cost no call of the system.
        let id = uuid::Builder::from_random_bytes(fastrand::u128(..).to_le_bytes()).into_uuid();
        HeaderValue::from_str(id.hyphenated().encode_lower(&mut text)).unwrap_or(HeaderValue::from_static("unknown"))
    };
    request.headers().get(REQUEST_ID).filter(fit).cloned().unwrap_or_else(made)
}
