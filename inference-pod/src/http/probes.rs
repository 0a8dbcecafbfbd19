//! What people, probes and scrapers ask of the process itself.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use axum::{
    Json,
    extract::State,
    http::{HeaderMap, StatusCode, header},
    response::{IntoResponse, Response},
};
use crds::exposition::accepts_openmetrics;
use serde_json::{Value, json};

use super::{
    App, EXTENSIONS, MODEL_VERSION, PLATFORM,
    error::ApiError,
    predict::{ModelName, find},
};
use crate::{
    lifecycle::Phase,
    model::{Model, PredictError},
    observe::{
        health::{Facts, Report, Status, report},
        process::{Disk, memory_limit, process_facts},
    },
    probe::Batching,
    queue::Queue,
    session::Port,
    worker::JobError,
};

/// 200 while the serving loop moves and no instance hangs, else 503 with what is wrong.
pub async fn health(State(app): State<Arc<App>>) -> Response {
    let faults = faults(&app);
    if faults.is_empty() {
        return Json(json!({"status": "ok"})).into_response();
    }
    (StatusCode::SERVICE_UNAVAILABLE, Json(json!({"error": faults.join("; ")}))).into_response()
}

/// What is wrong with the process; nothing while it works.
pub fn faults(app: &App) -> Vec<String> {
    let stuck = app.lifecycle.stuck_for().map(|still| format!("the serving loop has not moved for {still:.1?}"));
    let lost = app.registry.loaded().filter(|model| !model.shared().healthy());
    stuck.into_iter().chain(lost.map(|model| format!("a run of model '{}' does not come back", model.name))).collect()
}

/// 200 once every model named at start is loaded and warmed up, while all of them work, until the process is told to stop;
/// else 503.
pub async fn ready(State(app): State<Arc<App>>) -> Response {
    match not_ready(&app) {
        None => Json(json!({"ready": true})).into_response(),
        Some(reason) => (StatusCode::SERVICE_UNAVAILABLE, Json(json!({"error": reason}))).into_response(),
    }
}

/// Why the process is not ready; `None` while it is.
///
/// One model without an instance makes the whole process unready, also where others work: a Service has no other way to
/// send that model's requests to a pod that answers them, and by the same fault `/health` has the process started anew.
pub fn not_ready(app: &App) -> Option<String> {
    let broken = app.registry.loaded().filter(|model| !model.shared().works());
    let broken: Vec<&str> = broken.map(|model| model.name.as_str()).collect();
    why_not_ready(app.lifecycle.phase(), &app.registry.missing(), &broken)
}

fn why_not_ready(phase: Phase, missing: &[&str], broken: &[&str]) -> Option<String> {
    match phase {
        Phase::Draining | Phase::Closing => Some("the server is stopping".to_owned()),
        Phase::Serving if !broken.is_empty() => Some(format!("no instance works any more of {}", broken.join(", "))),
        Phase::Serving if !missing.is_empty() => Some(format!("loading {}", missing.join(", "))),
        Phase::Serving => None,
    }
}

/// Health with the checks that it is made of: 503 where any of them is an error.
pub async fn detailed(State(app): State<Arc<App>>) -> Response {
    let report = health_report(&app);
    let status = if report.status == Status::Error { StatusCode::SERVICE_UNAVAILABLE } else { StatusCode::OK };
    (status, Json(report)).into_response()
}

/// What `/health/detailed` says.
pub fn health_report(app: &App) -> Report {
    let now = Instant::now();
    let facts = Facts {
        models: app.registry.loaded().map(|model| model.facts(now)).collect(),
        loading: app.registry.missing().into_iter().map(str::to_owned).collect(),
        faults: faults(app),
        phase: format!("{:?}", app.lifecycle.phase()).to_lowercase(),
        process: process_facts(),
        memory_limit: memory_limit(),
        disk: app.health.disk.as_ref().map(|disk| {
            let (room, age) = disk.last(now);
            Disk { room: room.flatten(), age }
        }),
        cut_off: app.observer.events.counts().filter(|(_, counts)| counts.is_open).map(|(name, _)| name).collect(),
        uptime: app.lifecycle.started().elapsed(),
        timestamp: crate::clock::timestamp().to_string(),
    };
    report(&facts, &app.health.criteria)
}

/// What runs here.
pub async fn info(State(app): State<Arc<App>>) -> Response {
    let models: Vec<Value> = app.registry.loaded().map(|model| describe(model)).collect();
    Json(json!({
        "name": app.server.server_name,
        "version": env!("CARGO_PKG_VERSION"),
        "onnxruntime": app.runtime_version,
        "threads": app.threads,
        "uptime_seconds": app.lifecycle.started().elapsed().as_secs(),
        "loading": app.registry.missing(),
        "models": models,
    }))
    .into_response()
}

fn describe(model: &Model) -> Value {
    let (batches, reason) = match &model.batching {
        Batching::On(_) => (true, None),
        Batching::Off(reason) => (false, Some(reason.clone())),
    };
    let bucket =
        |(samples, time): (usize, Duration)| json!({"samples": samples, "milliseconds": time.as_secs_f64() * 1e3});
    let buckets: Vec<Value> = model.bucket_times().into_iter().map(bucket).collect();
    json!({
        "name": model.name,
        "task": model.task.as_str(),
        "file": model.file.file_name().map(|name| name.to_string_lossy()),
        "bytes": model.bytes,
        "inputs": model.signature.inputs.iter().map(port).collect::<Vec<_>>(),
        "outputs": model.signature.outputs.iter().map(port).collect::<Vec<_>>(),
        "image": model.image.as_ref().map(|image| json!({"width": image.size().0, "height": image.size().1})),
        "softmax": model.classes.as_ref().map(|classes| classes.softmax),
        "labels": model.classes.as_ref().map(|classes| classes.labels.len()),
        "provider": model.provider.as_str(),
        "instances": model.instances,
        "latency_objective": model.latency_objective().map(|objective| latency_objective(model, objective)),
        "batching": {"enabled": batches, "reason": reason, "batch_size": model.batching.batch_size(), "buckets": buckets},
        "load_seconds": model.load_time.as_secs_f64(),
        "warmup_seconds": model.warmup_time.as_secs_f64(),
    })
}

/// What becomes of the latency objective: the largest batch that keeps it, or why there is none.
fn latency_objective(model: &Model, objective: Duration) -> Value {
    let bucket = model.shared().with_queue(Queue::objective_bucket);
    let reason = bucket.is_none().then_some("even the smallest batch takes too long; nobody is refused for that");
    json!({"milliseconds": objective.as_millis(), "feasible": bucket.is_some(), "largest_batch": bucket, "reason": reason})
}

/// Metadata of an input or output as the Open Inference Protocol writes it: -1 where a dimension is open.
fn port(port: &Port) -> Value {
    json!({"name": port.name, "datatype": port.element.datatype(), "shape": open_shape(port)})
}

/// Size of each dimension, -1 where it is open.
#[must_use]
pub fn open_shape(port: &Port) -> Vec<i64> {
    port.dims.iter().map(|size| size.and_then(|size| i64::try_from(size).ok()).unwrap_or(-1)).collect()
}

/// OpenMetrics where the scraper takes it, else the older text form.
pub async fn metrics(State(app): State<Arc<App>>, headers: HeaderMap) -> Response {
    let now = Instant::now();
    for model in app.registry.loaded() {
        model.shared().tell(now);
    }
    let accept: Vec<&str> = headers.get_all(header::ACCEPT).iter().filter_map(|value| value.to_str().ok()).collect();
    let (kind, text) = if accepts_openmetrics(&accept) {
        ("application/openmetrics-text; version=1.0.0; charset=utf-8", app.observer.metrics.openmetrics_text())
    } else {
        ("text/plain; version=0.0.4; charset=utf-8", app.observer.metrics.prometheus_text())
    };
    ([(header::CONTENT_TYPE, kind)], text).into_response()
}

/// `GET /v2`.
pub async fn server_metadata(State(app): State<Arc<App>>) -> Response {
    Json(json!({"name": app.server.server_name, "version": env!("CARGO_PKG_VERSION"), "extensions": EXTENSIONS}))
        .into_response()
}

/// `GET /v2/health/live`.
pub async fn v2_live(State(app): State<Arc<App>>) -> Response {
    let faults = faults(&app);
    if faults.is_empty() {
        return Json(json!({"live": true})).into_response();
    }
    (StatusCode::SERVICE_UNAVAILABLE, Json(json!({"live": false, "error": faults.join("; ")}))).into_response()
}

/// `GET /v2/health/ready`. The protocol's text asks for the key `live`, its intent is `ready`: both are sent.
pub async fn v2_ready(State(app): State<Arc<App>>) -> Response {
    match not_ready(&app) {
        None => Json(json!({"live": true, "ready": true})).into_response(),
        Some(reason) => {
            let body = json!({"live": true, "ready": false, "error": reason});
            (StatusCode::SERVICE_UNAVAILABLE, Json(body)).into_response()
        }
    }
}

/// `GET /v2/models/{model}`.
pub async fn model_metadata(State(app): State<Arc<App>>, name: ModelName) -> Result<Response, ApiError> {
    let model = find(&app, &name)?;
    Ok(Json(json!({
        "name": model.name,
        "versions": [MODEL_VERSION],
        "platform": PLATFORM,
        "inputs": model.signature.inputs.iter().map(port).collect::<Vec<_>>(),
        "outputs": model.signature.outputs.iter().map(port).collect::<Vec<_>>(),
    }))
    .into_response())
}

/// `GET /v2/models/{model}/ready`.
pub async fn model_ready(State(app): State<Arc<App>>, name: ModelName) -> Result<Response, ApiError> {
    let model = find(&app, &name)?;
    if !model.shared().works() {
        return Err(PredictError::Job(JobError::NoInstance).into());
    }
    Ok(Json(json!({"name": model.name, "ready": true})).into_response())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_keeps_a_process_from_being_ready_is_named() {
        let why = |phase, missing, broken| why_not_ready(phase, missing, broken).unwrap_or_default();
        assert_eq!(why(Phase::Serving, &[], &[]), "");
        assert_eq!(why(Phase::Serving, &["latte", "mocha"], &[]), "loading latte, mocha");
        assert_eq!(why(Phase::Serving, &["latte"], &["mocha"]), "no instance works any more of mocha");
        assert_eq!(why(Phase::Draining, &["latte"], &["mocha"]), "the server is stopping");
    }
}
