//! Predictions over HTTP: admission on the headers, then the body, then the model.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use axum::{
    Json,
    body::{Body, Bytes},
    extract::{Path, State},
    http::{HeaderName, HeaderValue, Request, request::Parts},
    response::{IntoResponse, Response},
};

use super::{
    App,
    body::{self, BodyKind},
    error::ApiError,
    images::{Images, ListAnswer, answers},
    infer::InferRequest,
};
use crate::{
    metrics::{ModelMetrics, Outcome},
    model::{Model, Predicted},
    registry::Found,
    tensor::Tensor,
    worker::Reservation,
};

const SERVER_TIMING: HeaderName = HeaderName::from_static("server-timing");

/// `POST /predict/{model}`.
pub async fn predict(State(app): State<Arc<App>>, Path(name): Path<String>, request: Request<Body>) -> Response {
    let model = match find(&app, &name) {
        Ok(model) => model,
        Err(error) => return error.into_response(),
    };
    let (parts, body) = request.into_parts();
    measured(&model, async |reservation, began| {
        if model.image.is_some() {
            classify(&app, &model, &parts, body, reservation, began).await
        } else {
            infer_tensors(&app, &model, &parts, body, reservation, began).await
        }
    })
    .await
}

/// `POST /v2/models/{model}/infer`.
pub async fn infer(State(app): State<Arc<App>>, Path(name): Path<String>, request: Request<Body>) -> Response {
    let model = match find(&app, &name) {
        Ok(model) => model,
        Err(error) => return error.into_response(),
    };
    let (parts, body) = request.into_parts();
    measured(&model, async |reservation, began| infer_tensors(&app, &model, &parts, body, reservation, began).await)
        .await
}

/// The model of that name.
///
/// # Errors
/// 404 where there is none, 503 where it is not loaded yet.
pub fn find(app: &App, name: &str) -> Result<Arc<Model>, ApiError> {
    match app.registry.find(name) {
        Found::Ready(model) => Ok(model),
        Found::Loading => Err(ApiError::not_ready(format!("model '{name}' is still loading"))),
        Found::Unknown => Err(ApiError::unknown_model(name)),
    }
}

/// Counts a request whose caller left: its future is dropped, and this with it.
struct Counted<'a> {
    metrics: &'a ModelMetrics,
    began: Instant,
    ended: bool,
}

impl Counted<'_> {
    fn end(&mut self, outcome: Outcome) {
        self.ended = true;
        self.metrics.ended(outcome, self.began.elapsed());
    }
}

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        if !self.ended {
            self.end(Outcome::cancelled);
        }
    }
}

/// Holds a place in the queue, runs the request up to its deadline, and counts how it ended.
async fn measured(
    model: &Model,
    run: impl AsyncFnOnce(Reservation, Instant) -> Result<Response, ApiError>,
) -> Response {
    let began = Instant::now();
    let metrics = &model.metrics;
    metrics.received();
    let mut counted = Counted { metrics, began, ended: false };
    let timeout = model.request_timeout();
    let result = match model.reserve(began) {
        Err(full) => Err(ApiError::from(full)),
        Ok(reservation) => match tokio::time::timeout(timeout, run(reservation, began)).await {
            Ok(result) => result,
            Err(_) => Err(ApiError::deadline(timeout)),
        },
    };
    match result {
        Ok(response) => {
            counted.end(Outcome::ok);
            response
        }
        Err(error) => {
            let (outcome, reason) = error.counted_as();
            metrics.error(reason);
            counted.end(outcome);
            tracing::debug!(?error, model = model.name, "no prediction");
            error.into_response()
        }
    }
}

/// Where the images of a request are; base64 is read with them, away from the loop.
enum Source {
    Read(Images),
    Json(Bytes),
}

async fn classify(
    app: &App,
    model: &Arc<Model>,
    parts: &Parts,
    body: Body,
    mut reservation: Reservation,
    began: Instant,
) -> Result<Response, ApiError> {
    let kind = body::kind_of(&parts.headers, app.server.max_body_bytes)?;
    let bytes = body::read(body, app.server.max_body_bytes, &mut reservation).await?;
    let source = match kind {
        BodyKind::Multipart(boundary) => Source::Read(Images::from_form(body::files(bytes, boundary).await?)),
        BodyKind::Image => Source::Read(Images::from_file(bytes)),
        BodyKind::Json => Source::Json(bytes),
    };
    let work = Arc::clone(model);
    let (listed, samples, decode_time) = off_the_loop(app, move || {
        let began = Instant::now();
        let images = match source {
            Source::Read(images) => images,
            Source::Json(bytes) => Images::from_json(&bytes)?,
        };
        let input = work.image.as_ref().ok_or_else(|| ApiError::internal("the model takes no images"))?;
        let samples = images.decode(input)?;
        Ok((images.listed, samples, began.elapsed()))
    })
    .await?;
    model.metrics.decoded(decode_time);
    let groups: Vec<Vec<Tensor>> = samples.into_iter().map(|sample| vec![sample]).collect();
    let predicted = model.predict(reservation, groups, began + model.request_timeout()).await?;
    let answer = classified(model, &predicted, listed)?;
    Ok(timed(answer, decode_time, &predicted))
}

fn classified(model: &Model, predicted: &Predicted, listed: bool) -> Result<Response, ApiError> {
    let missing = || ApiError::internal("the model gave no scores");
    let classes = model.classes.as_ref().ok_or_else(missing)?;
    let scores = predicted.outputs.first().ok_or_else(missing)?;
    let inference_time_ms = milliseconds(predicted.queue_time + predicted.run_time);
    let mut results = answers(classes, scores);
    if listed {
        return Ok(Json(ListAnswer { results, inference_time_ms }).into_response());
    }
    let mut only = results.pop().ok_or_else(missing)?;
    only.inference_time_ms = Some(inference_time_ms);
    Ok(Json(only).into_response())
}

async fn infer_tensors(
    app: &App,
    model: &Arc<Model>,
    parts: &Parts,
    body: Body,
    mut reservation: Reservation,
    began: Instant,
) -> Result<Response, ApiError> {
    body::expect_json(&parts.headers, app.server.max_body_bytes)?;
    let bytes = body::read(body, app.server.max_body_bytes, &mut reservation).await?;
    let (request, decode_time) = read_tensors(app, model, bytes).await?;
    model.metrics.decoded(decode_time);
    let deadline = began + model.request_timeout();
    let predicted = model.predict(reservation, vec![request.inputs.clone()], deadline).await?;
    let answer = Json(request.answer(model, &predicted.outputs)).into_response();
    Ok(timed(answer, decode_time, &predicted))
}

/// A small body is read on the spot: handing it to another thread would take longer.
async fn read_tensors(app: &App, model: &Arc<Model>, bytes: Bytes) -> Result<(InferRequest, Duration), ApiError> {
    const SMALL_BYTES: usize = 32 << 10;
    let began = Instant::now();
    let request = if bytes.len() <= SMALL_BYTES {
        InferRequest::from_json(&bytes, model)?
    } else {
        let work = Arc::clone(model);
        off_the_loop(app, move || InferRequest::from_json(&bytes, &work)).await?
    };
    Ok((request, began.elapsed()))
}

/// Does what keeps a core busy away from the loop that serves connections, no more at a time than there are threads.
async fn off_the_loop<T: Send + 'static>(
    app: &App,
    work: impl FnOnce() -> Result<T, ApiError> + Send + 'static,
) -> Result<T, ApiError> {
    let stopping = || ApiError::not_ready("the server is stopping");
    let permit = Arc::clone(&app.decoders).acquire_owned().await.map_err(|_| stopping())?;
    let job = move || {
        let result = work();
        drop(permit);
        result
    };
    tokio::task::spawn_blocking(job).await.map_err(|error| ApiError::internal(format!("decoding failed: {error}")))?
}

/// Says where the time went, as browsers and curl show it.
fn timed(mut response: Response, decode: Duration, predicted: &Predicted) -> Response {
    let text = format!(
        "decode;dur={:.3}, queue;dur={:.3}, inference;dur={:.3}",
        milliseconds(decode),
        milliseconds(predicted.queue_time),
        milliseconds(predicted.run_time)
    );
    if let Ok(value) = HeaderValue::from_str(&text) {
        response.headers_mut().insert(SERVER_TIMING, value);
    }
    response
}

/// Milliseconds to the microsecond.
fn milliseconds(time: Duration) -> f64 {
    (time.as_secs_f64() * 1e6).round() / 1e3
}
