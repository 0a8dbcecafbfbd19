//! `/health`, `/ready` and `/metrics`.

use std::sync::Arc;

use axum::{
    Router,
    extract::State,
    http::{StatusCode, header},
    response::{IntoResponse, Response},
    routing::get,
};

use crate::{metrics::Metrics, observe::Sources};

/// What is shown.
#[derive(Clone)]
pub struct Admin {
    /// The caches, which must have been filled.
    pub sources: Sources,
    /// What is counted.
    pub metrics: Arc<Metrics>,
}

/// The routes.
pub fn router(admin: Admin) -> Router {
    Router::new()
        .route("/health", get(async || "ok\n"))
        .route("/ready", get(ready))
        .route("/metrics", get(metrics))
        .with_state(admin)
}

/// 200 once everything that was there at the start has been read; a standby is ready too.
async fn ready(State(admin): State<Admin>) -> Response {
    if admin.sources.are_ready() {
        return "ok\n".into_response();
    }
    (StatusCode::SERVICE_UNAVAILABLE, "the objects of the cluster have not been read yet\n").into_response()
}

async fn metrics(State(admin): State<Admin>) -> Response {
    let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    ([(header::CONTENT_TYPE, kind)], admin.metrics.text()).into_response()
}
