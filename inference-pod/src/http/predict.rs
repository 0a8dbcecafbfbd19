//! Predictions over HTTP: admission on the headers, then the body, then the model.

use std::{
    fmt,
    sync::Arc,
    time::{Duration, Instant},
};

use axum::{
    Json,
    body::{Body, Bytes},
    extract::{FromRequestParts, Path, State},
    http::{HeaderName, HeaderValue, Request, StatusCode, request::Parts},
    response::{IntoResponse, Response},
};

use serde::Deserialize;
use tokio::runtime::Handle;

use super::{
    App, MODEL_VERSION,
    body::{self, BodyKind},
    error::ApiError,
    images::{Images, ListAnswer, answers, decode},
    infer::{Answer, AnswerForm, Framed, InferRequest},
};
use crate::{
    model::{Model, PredictError, Predicted},
    observe::{Caller, Conclusion, ModelObserver, Outcome, Reason, events::redact::without_quotes, progress::Progress},
    registry::Found,
    tensor::Tensor,
    worker::{Due, Reservation},
};

/// Up to here handing work to another thread takes longer than doing it.
pub const SMALL_BYTES: usize = 32 << 10;

/// An answer of more than this is not even copied on the loop, where everybody else would wait for it.
pub const MOST_COPIED_BYTES: usize = 1 << 20;

const SERVER_TIMING: HeaderName = HeaderName::from_static("server-timing");

/// `POST /predict/{model}`.
pub async fn predict(
    State(app): State<Arc<App>>,
    name: ModelName,
    request: Request<Body>,
) -> Result<Response, ApiError> {
    let model = find(&app, &name)?;
    let (parts, body) = request.into_parts();
    let caller = app.observer.caller(&parts.headers, "/predict/{model}");
    measured(&app, &model, &caller, model.request_timeout(), async |admitted| {
        if model.image.is_some() {
            classify(&app, &model, &parts, body, admitted).await
        } else {
            infer_tensors(&app, &model, &parts, body, admitted).await
        }
    })
    .await
}

/// `POST /v2/models/{model}[/versions/{version}]/infer`.
pub async fn infer(State(app): State<Arc<App>>, name: ModelName, request: Request<Body>) -> Result<Response, ApiError> {
    let model = find(&app, &name)?;
    let (parts, body) = request.into_parts();
    let caller = app.observer.caller(&parts.headers, "/v2/models/{model}/infer");
    measured(&app, &model, &caller, model.request_timeout(), async |admitted| {
        infer_tensors(&app, &model, &parts, body, admitted).await
    })
    .await
}

/// The model that a path names, and its version where the path has one.
#[derive(Debug, Deserialize)]
pub struct ModelName {
    /// The model.
    pub model: String,
    /// Its version.
    pub version: Option<String>,
}

impl<S: Send + Sync> FromRequestParts<S> for ModelName {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        let path = Path::<Self>::from_request_parts(parts, state).await;
        path.map(|Path(name)| name).map_err(|error| ApiError::bad_input(format!("path: {}", error.body_text())))
    }
}

/// The model of that name.
///
/// # Errors
/// 404 where there is none, 503 where it is not loaded yet.
pub fn find(app: &App, name: &ModelName) -> Result<Arc<Model>, ApiError> {
    let ModelName { model, version } = name;
    match (app.registry.find(model), version) {
        (Found::Unknown, _) => Err(ApiError::unknown_model(model)),
        (_, Some(version)) if version != MODEL_VERSION => Err(ApiError::unknown_version(model, version)),
        (Found::Loading, _) => Err(ApiError::not_ready(format!("model '{model}' is still loading"))),
        (Found::Ready(model), _) => Ok(model),
    }
}

/// A request that has a place in the queue.
pub struct Admitted {
    /// Its place.
    pub reservation: Reservation,
    /// What its jobs have from it.
    pub due: Due,
}

/// Tells how a request ended; also of one whose caller left, whose future is dropped and this with it, and of one that panicked.
struct Counted<'a> {
    observer: &'a ModelObserver,
    caller: &'a Caller<'a>,
    began: Instant,
    progress: Arc<Progress>,
    ended: bool,
}

impl Counted<'_> {
    fn end(&mut self, conclusion: &Conclusion<'_>) {
        self.ended = true;
        self.observer.ended(self.caller, conclusion, self.began, &self.progress);
    }
}

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        if self.ended {
            return;
        }
        if std::thread::panicking() {
            let failed = conclusion(Outcome::failed, StatusCode::INTERNAL_SERVER_ERROR.as_u16(), &|| {
                Some("a fault of this server: its handler panicked".to_owned())
            });
            self.end(&Conclusion { reason: Some(Reason::run_failed), ..failed });
        } else {
            // nginx's status for a client that closed its connection.
            self.end(&conclusion(Outcome::cancelled, 499, &|| None));
        }
    }
}

fn conclusion<'a>(outcome: Outcome, status: u16, error: &'a dyn Fn() -> Option<String>) -> Conclusion<'a> {
    Conclusion { outcome, reason: None, status, error }
}

/// Holds a place in the queue, runs the request up to its deadline, and tells how it ended; whatever protocol it came by.
///
/// # Errors
/// Those of `run`, 429 where the queue is full, 504 where the deadline passed.
pub async fn measured<T>(
    app: &App,
    model: &Model,
    caller: &Caller<'_>,
    timeout: Duration,
    run: impl AsyncFnOnce(Admitted) -> Result<T, ApiError>,
) -> Result<T, ApiError> {
    let began = Instant::now();
    let observer = &model.observer;
    observer.received(caller);
    let progress = Arc::new(Progress::new(began));
    let mut counted = Counted { observer, caller, began, progress: Arc::clone(&progress), ended: false };
    let usable = in_time(timeout);
    let deadline = began + usable;
    let result = match model.reserve(began) {
        Err(full) => {
            // And with it the body, which nobody will read.
            drop(run);
            Err(ApiError::from(full))
        }
        Ok(reservation) => {
            let due = Due { deadline, span: caller.span, progress };
            let in_time = tokio::time::timeout(usable, run(Admitted { reservation, due })).await;
            in_time.unwrap_or_else(|_| Err(ApiError::deadline(timeout)))
        }
    };
    match &result {
        Ok(_) => counted.end(&conclusion(Outcome::ok, StatusCode::OK.as_u16(), &|| None)),
        Err(error) => {
            let (outcome, reason) = error.counted_as();
            let told = || Some(told(error, model));
            let failed = conclusion(outcome, error.status().as_u16(), &told);
            counted.end(&Conclusion { reason: Some(reason), ..failed });
            if error.status() == StatusCode::TOO_MANY_REQUESTS {
                app.refusals.turn(body::on_its_way(caller.headers()), deadline).await;
            }
        }
    }
    result
}

/// What is told of an error: the whole chain of a failure of ours, and what was wrong with a client's input without what it
/// quotes of that.
fn told(error: &ApiError, model: &Model) -> String {
    match error.failure() {
        Some(chain) => chain.to_owned(),
        None if error.is_about_input() => without_quotes(&error.message(), |word| model.knows(word)),
        None => error.message(),
    }
}

/// What is left of a time-out, so that the answer is there when it is over: timers know milliseconds only, and are never
/// early. Half of it, where it is so short.
fn in_time(timeout: Duration) -> Duration {
    const STEP: Duration = Duration::from_millis(1);
    timeout.saturating_sub(STEP).max(timeout / 2)
}

/// Reads the images of a request, of which there may be `most`; base64 and forms take their time, so away from the loop.
fn read_images(kind: BodyKind, body: Bytes, most: usize) -> Result<Images, ApiError> {
    match kind {
        BodyKind::Json => Images::from_json(&body, most),
        BodyKind::Unsaid if body::is_object(&body) => Images::from_json(&body, most),
        BodyKind::Image | BodyKind::Unsaid => Ok(Images::from_file(body)),
        // All of it is there: nothing is waited for.
        BodyKind::Multipart(boundary) => {
            Handle::current().block_on(body::files(body, boundary, most)).map(Images::from_form)
        }
    }
}

async fn classify(
    app: &App,
    model: &Arc<Model>,
    parts: &Parts,
    body: Body,
    admitted: Admitted,
) -> Result<Response, ApiError> {
    let Admitted { mut reservation, due } = admitted;
    admit_to_decoders(app, &reservation, 1)?;
    let kind = body::kind_of(&parts.headers, app.server.max_body_bytes)?;
    body::expect_room(&parts.headers, model.queue_bytes)?;
    let bytes = body::read(body, app.server.max_body_bytes, &mut reservation).await?;
    // Once more, for its body may have taken long.
    admit_to_decoders(app, &reservation, 1)?;
    let began_decoding = Instant::now();
    let work = Arc::clone(model);
    // The first image with what holds it: each way to another thread and back costs.
    let (mut images, mut decoded) = app
        .decoders
        .run(move || {
            let mut images = read_images(kind, bytes.contiguous(), work.queue_size)?;
            let first = decode_next(&work, &mut images)?;
            Ok((images, first))
        })
        .await?;
    // Samples of a model are of one size: what does not fit is known before the others are decoded.
    let count = images.files.len() + 1;
    let bytes = decoded.as_ref().map_or(0, |sample| sample.data().len());
    reservation.hold(bytes.saturating_mul(count)).map_err(PredictError::Refused)?;
    admit_to_decoders(app, &reservation, images.files.len())?;
    let mut groups = Vec::with_capacity(count);
    // One at a time: a caller who leaves takes what is not decoded yet with them, and others get their turn in between.
    while let Some(sample) = decoded {
        groups.push(vec![sample]);
        if images.files.is_empty() {
            break;
        }
        let work = Arc::clone(model);
        (images, decoded) = app
            .decoders
            .run(move || {
                let next = decode_next(&work, &mut images)?;
                Ok((images, next))
            })
            .await?;
    }
    let decode_time = due.progress.decoded(began_decoding);
    let predicted = model.predict(reservation, groups, &due).await?;
    let answer = classified(app, model, &predicted, images.listed).await?;
    Ok(timed(answer, decode_time, &predicted))
}

/// The next image as a sample; `None` where there is none left.
fn decode_next(model: &Model, images: &mut Images) -> Result<Option<Tensor>, ApiError> {
    let input = model.image.as_ref().ok_or_else(|| ApiError::internal("the model takes no images"))?;
    images.files.pop_front().map(|(field, file)| decode(&field, &file, input)).transpose()
}

/// The classes of each image; those of many away from the loop.
async fn classified(app: &App, model: &Arc<Model>, predicted: &Predicted, listed: bool) -> Result<Response, ApiError> {
    let missing = || ApiError::internal("the model gave no scores");
    let scores = predicted.outputs.first().ok_or_else(missing)?.clone();
    let work = Arc::clone(model);
    let inference_time_ms = milliseconds(predicted.queue_time + predicted.run_time);
    let is_little = scores.data().len() <= SMALL_BYTES;
    let write = move || {
        let mut results = answers(work.classes.as_ref().ok_or_else(missing)?, &scores)?;
        if listed {
            return Ok(Json(ListAnswer { results, inference_time_ms }).into_response());
        }
        let mut only = results.pop().ok_or_else(missing)?;
        only.inference_time_ms = Some(inference_time_ms);
        Ok(Json(only).into_response())
    };
    if is_little { write() } else { app.writers.run(write).await }
}

async fn infer_tensors(
    app: &App,
    model: &Arc<Model>,
    parts: &Parts,
    body: Body,
    admitted: Admitted,
) -> Result<Response, ApiError> {
    let Admitted { mut reservation, due } = admitted;
    body::expect_json(&parts.headers, app.server.max_body_bytes)?;
    body::expect_room(&parts.headers, model.queue_bytes)?;
    let bytes = body::read(body, app.server.max_body_bytes, &mut reservation).await?;
    let began_decoding = Instant::now();
    let framed = Framed::new(&parts.headers, &bytes)?;
    // What no tensor shares need not stay until the answer is there.
    drop(bytes);
    let (InferRequest { inputs, form }, reservation) = read_tensors(app, model, framed, reservation).await?;
    let decode_time = due.progress.decoded(began_decoding);
    let predicted = model.predict(reservation, vec![inputs], &due).await?;
    let answer = written(app, model, form, &predicted).await?;
    Ok(timed(answer.into_response(), decode_time, &predicted))
}

/// Writes the answer; a large one away from the loop.
async fn written(app: &App, model: &Arc<Model>, form: AnswerForm, predicted: &Predicted) -> Result<Answer, ApiError> {
    let outputs = &predicted.outputs;
    if form.json_bytes(outputs) <= SMALL_BYTES && form.bytes(outputs) <= MOST_COPIED_BYTES {
        return form.write(model, &predicted.outputs);
    }
    let (work, outputs) = (Arc::clone(model), predicted.outputs.clone());
    app.writers.run(move || form.write(&work, &outputs)).await
}

/// Little JSON is read on the spot: handing it to another thread would take longer.
async fn read_tensors(
    app: &App,
    model: &Arc<Model>,
    body: Framed,
    mut reservation: Reservation,
) -> Result<(InferRequest, Reservation), ApiError> {
    if body.json_bytes() <= SMALL_BYTES {
        return Ok((InferRequest::read(body, model, None)?, reservation));
    }
    admit_to_decoders(app, &reservation, 1)?;
    let work = Arc::clone(model);
    app.decoders.run(move || Ok((InferRequest::read(body, &work, Some(&mut reservation))?, reservation))).await
}

/// Judges the wait for so many turns of the threads that decode, beside the one for the model: where they are what there is too
/// little of, the queue stays short and says nothing.
///
/// # Errors
/// 429 where that would take too long.
pub fn admit_to_decoders(app: &App, reservation: &Reservation, turns: usize) -> Result<(), ApiError> {
    let wait = app.decoders.wait().saturating_mul(u32::try_from(turns).unwrap_or(u32::MAX));
    Ok(reservation.admit_after(wait).map_err(PredictError::Refused)?)
}

/// Says where the time went, as browsers and curl show it.
pub fn timed(mut response: Response, decode: Duration, predicted: &Predicted) -> Response {
    let [decode, queue, inference] = [decode, predicted.queue_time, predicted.run_time].map(Milliseconds);
    let text = format!("decode;dur={decode}, queue;dur={queue}, inference;dur={inference}");
    if let Ok(value) = HeaderValue::from_str(&text) {
        response.headers_mut().insert(SERVER_TIMING, value);
    }
    response
}

/// As text, to the microsecond. By whole numbers, for to write a float is much more work.
struct Milliseconds(Duration);

impl fmt::Display for Milliseconds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let micros = self.0.as_secs() * 1_000_000 + u64::from((self.0.subsec_nanos() + 500) / 1000);
        write!(f, "{}.{:03}", micros / 1000, micros % 1000)
    }
}

/// Milliseconds to the microsecond.
fn milliseconds(time: Duration) -> f64 {
    (time.as_secs_f64() * 1e6).round() / 1e3
}

#[cfg(all(test, feature = "metrics"))]
mod tests {
    use std::panic::{AssertUnwindSafe, catch_unwind};

    use axum::http::HeaderMap;

    use super::*;
    use crate::observe::{Bounds, Observer};

    #[test]
    fn milliseconds_are_written_to_the_microsecond() {
        for (nanos, text) in [(0, "0.000"), (499, "0.000"), (500, "0.001"), (1_002_003_499, "1002.003")] {
            assert_eq!(Milliseconds(Duration::from_nanos(nanos)).to_string(), text);
        }
    }

    #[tokio::test]
    async fn a_panic_behind_the_loop_is_told_to_the_log_and_not_to_the_client() {
        let panicked = tokio::task::spawn_blocking(|| panic!("as asked for")).await;
        let error = ApiError::from(panicked.unwrap_err());
        assert_eq!(
            (error.status().as_u16(), error.message().as_str()),
            (500, "a fault of this server; its log says what")
        );
        assert!(error.failure().unwrap().contains("as asked for"), "{error:?}");
    }

    #[test]
    fn a_request_whose_handler_panics_failed_and_one_whose_caller_leaves_was_cancelled() {
        let process = Observer::quiet("0");
        let bounds = Bounds { batch_size: 1, max_wait: Duration::ZERO, latency_objective: None };
        let (observer, headers, began) = (process.model("espresso", &bounds), HeaderMap::new(), Instant::now());
        let caller = process.caller(&headers, "/predict/{model}");
        let counted = || {
            let progress = Arc::new(Progress::new(began));
            Counted { observer: &observer, caller: &caller, began, progress, ended: false }
        };
        drop(counted());
        let panicked = catch_unwind(AssertUnwindSafe(|| {
            let _counted = counted();
            panic!("as asked for");
        }));
        assert!(panicked.is_err());
        let text = process.metrics.prometheus_text();
        for (outcome, count) in [("failed", 1), ("cancelled", 1), ("ok", 0)] {
            let line = format!("ortolan_requests_total{{model=\"espresso\",outcome=\"{outcome}\"}} {count}");
            assert!(text.lines().any(|seen| seen == line), "expected {line} in\n{text}");
        }
    }
}
