//! From what went wrong to a status and a sentence. The client gets those, the log gets the chain.

use std::time::Duration;

use axum::{
    Json,
    http::{HeaderName, HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use serde_json::json;
use tokio::task::JoinError;

use crate::{
    model::{InvalidInput, PredictError},
    observe::{Outcome, Reason},
    picture::DecodeError,
    queue::{Bound, Refused},
    worker::JobError,
};

/// Milliseconds to wait, beside the standard header that knows whole seconds only.
const RETRY_AFTER_MS: HeaderName = HeaderName::from_static("retry-after-ms");

const LONGEST_MESSAGE: usize = 1000;

/// A request that gets no prediction.
#[derive(Debug)]
pub struct ApiError {
    status: StatusCode,
    message: String,
    retry_after: Option<Duration>,
    allow: Option<&'static str>,
    compressed: bool,
    caller_left: bool,
    /// What the client is not told: names of files and nodes, for example.
    failure: Option<String>,
}

impl ApiError {
    fn new(status: StatusCode, message: impl Into<String>) -> Self {
        Self {
            status,
            message: message.into(),
            retry_after: None,
            allow: None,
            compressed: false,
            caller_left: false,
            failure: None,
        }
    }

    /// 400: which field, what was expected, what came.
    pub fn bad_input(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, message)
    }

    /// 400 to a caller who most likely is not there any more: the body ended before it was whole.
    pub fn ended_early(message: impl Into<String>) -> Self {
        Self { caller_left: true, ..Self::bad_input(message) }
    }

    /// 403.
    pub fn forbidden(message: impl Into<String>) -> Self {
        Self::new(StatusCode::FORBIDDEN, message)
    }

    /// 404: the model has no such version.
    pub fn unknown_version(name: &str, version: &str) -> Self {
        let (name, version) = (shortened(name), shortened(version));
        Self::new(StatusCode::NOT_FOUND, format!("Request for unknown model: '{name}' version {version} is not found"))
    }

    /// 404: no model of that name. The sentence begins as other servers' do, and clients look for it.
    pub fn unknown_model(name: &str) -> Self {
        Self::new(StatusCode::NOT_FOUND, format!("Request for unknown model: '{}' is not found", shortened(name)))
    }

    /// 404: no such path.
    pub fn unknown_path(path: &str) -> Self {
        Self::new(StatusCode::NOT_FOUND, format!("nothing at {}", shortened(path)))
    }

    /// 405: the path takes other verbs.
    pub fn wrong_verb(got: &str, allow: &'static str) -> Self {
        let message = format!("expected {allow}, got {}", shortened(got));
        Self { allow: Some(allow), ..Self::new(StatusCode::METHOD_NOT_ALLOWED, message) }
    }

    /// 413: too many bytes, pixels or samples.
    pub fn too_large(message: impl Into<String>) -> Self {
        Self::new(StatusCode::PAYLOAD_TOO_LARGE, message)
    }

    /// 415: a content type that is not read here.
    pub fn unsupported_type(message: impl Into<String>) -> Self {
        Self::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, message)
    }

    /// 415: what came is compressed; the answer says which encoding is taken.
    pub fn compressed(message: impl Into<String>) -> Self {
        Self { compressed: true, ..Self::unsupported_type(message) }
    }

    /// 500.
    pub fn internal(message: impl Into<String>) -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, message)
    }

    /// 501: a way of sending that is not known here.
    pub fn not_implemented(message: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_IMPLEMENTED, message)
    }

    /// 503: the model is still loading, or the server is stopping.
    pub fn not_ready(message: impl Into<String>) -> Self {
        let retry_after = Some(Duration::from_secs(1));
        Self { retry_after, ..Self::new(StatusCode::SERVICE_UNAVAILABLE, message) }
    }

    /// 505: another version of HTTP.
    pub fn wrong_version(message: impl Into<String>) -> Self {
        Self::new(StatusCode::HTTP_VERSION_NOT_SUPPORTED, message)
    }

    /// 504.
    pub fn deadline(timeout: Duration) -> Self {
        let message = format!("no answer within {} ms, the longest that a request may take", timeout.as_millis());
        Self::new(StatusCode::GATEWAY_TIMEOUT, message)
    }

    /// Names the part of the request that was wrong.
    #[must_use]
    pub fn at(mut self, field: &str) -> Self {
        self.message = format!("{field}: {}", self.message);
        self
    }

    /// The HTTP status.
    #[must_use]
    pub fn status(&self) -> StatusCode {
        self.status
    }

    /// The sentence for the client, cut so that an answer stays small: it quotes what came, however long that was.
    #[must_use]
    pub fn message(&self) -> String {
        cut(&self.message, LONGEST_MESSAGE)
    }

    /// When to try again, where that is known.
    #[must_use]
    pub fn retry_after(&self) -> Option<Duration> {
        self.retry_after
    }

    /// Whether what came was refused because it is compressed.
    #[must_use]
    pub fn is_compressed(&self) -> bool {
        self.compressed
    }

    /// What the client is not told.
    #[must_use]
    pub fn failure(&self) -> Option<&str> {
        self.failure.as_deref()
    }

    /// Whether it says what was wrong with the client's input, and so may quote it.
    #[must_use]
    pub fn is_about_input(&self) -> bool {
        self.status.is_client_error() && self.status != StatusCode::TOO_MANY_REQUESTS
    }

    /// How the request ended, and why, for the metrics.
    #[must_use]
    pub fn counted_as(&self) -> (Outcome, Reason) {
        match self.status {
            _ if self.caller_left => (Outcome::cancelled, Reason::bad_input),
            StatusCode::PAYLOAD_TOO_LARGE => (Outcome::invalid, Reason::too_large),
            StatusCode::UNSUPPORTED_MEDIA_TYPE => (Outcome::invalid, Reason::unsupported_type),
            StatusCode::TOO_MANY_REQUESTS => (Outcome::rejected, Reason::queue_full),
            StatusCode::SERVICE_UNAVAILABLE => (Outcome::rejected, Reason::not_ready),
            StatusCode::GATEWAY_TIMEOUT => (Outcome::expired, Reason::deadline),
            StatusCode::INTERNAL_SERVER_ERROR => (Outcome::failed, Reason::run_failed),
            _ => (Outcome::invalid, Reason::bad_input),
        }
    }

    fn refused(refused: &Refused) -> Self {
        let message = match refused.bound {
            Bound::Request { bytes, limit } => {
                return Self::too_large(format!("request takes {bytes} bytes of the queue; expected at most {limit}"));
            }
            Bound::Wait { predicted, limit } => format!(
                "queue is full: a request would be answered after {} ms, the limit is {} ms",
                predicted.as_millis(),
                limit.as_millis()
            ),
            Bound::Before { predicted, limit } => format!(
                "too much is waiting to be decoded: a request would be answered after {} ms, the limit is {} ms",
                predicted.as_millis(),
                limit.as_millis()
            ),
            Bound::Samples(limit) => format!("queue is full: the limit is {limit} samples"),
            Bound::Incoming(limit) => format!("queue is full: {limit} requests are still being received"),
            Bound::Bytes(limit) => format!("queue is full: the limit is {limit} bytes"),
        };
        let retry_after = Some(refused.retry_after);
        Self { retry_after, ..Self::new(StatusCode::TOO_MANY_REQUESTS, message) }
    }
}

/// A wait in milliseconds; at least one, for 0 invites to retry at once.
#[must_use]
pub fn millis(wait: Duration) -> u64 {
    u64::try_from(wait.as_millis()).unwrap_or(u64::MAX).max(1)
}

/// A client's own text, cut so that an answer stays small.
fn shortened(text: &str) -> String {
    cut(text, 100)
}

fn cut(text: &str, longest: usize) -> String {
    if text.chars().nth(longest).is_none() {
        text.to_owned()
    } else {
        text.chars().take(longest).chain(['…']).collect()
    }
}

impl From<InvalidInput> for ApiError {
    fn from(invalid: InvalidInput) -> Self {
        Self::bad_input(invalid.0)
    }
}

impl From<PredictError> for ApiError {
    fn from(error: PredictError) -> Self {
        match error {
            PredictError::Invalid(invalid) => invalid.into(),
            PredictError::TooManySamples { .. } => Self::too_large(error.to_string()),
            PredictError::Refused(refused) => Self::refused(&refused),
            PredictError::Job(JobError::Expired) => {
                Self::new(StatusCode::GATEWAY_TIMEOUT, JobError::Expired.to_string())
            }
            PredictError::Job(error @ (JobError::Stopped | JobError::NoInstance)) => Self::not_ready(error.to_string()),
            PredictError::Job(error @ JobError::TooLong(_)) => Self::internal(error.to_string()),
            PredictError::Job(error @ JobError::Failed(_)) => {
                let failure = Some(error.to_string());
                Self { failure, ..Self::internal("inference failed; the server's log says why") }
            }
        }
    }
}

impl From<JoinError> for ApiError {
    fn from(error: JoinError) -> Self {
        let failure = Some(format!("work behind the serving loop failed: {error}"));
        Self { failure, ..Self::internal("a fault of this server; its log says what") }
    }
}

impl From<DecodeError> for ApiError {
    fn from(error: DecodeError) -> Self {
        match error {
            DecodeError::TooManyPixels { .. } => Self::too_large(error.to_string()),
            DecodeError::UnsupportedFormat(_) => Self::unsupported_type(error.to_string()),
            DecodeError::Empty | DecodeError::NoImage { .. } | DecodeError::Damaged { .. } => {
                Self::bad_input(error.to_string())
            }
        }
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let mut response = (self.status, Json(json!({"error": self.message()}))).into_response();
        let headers = response.headers_mut();
        if let Some(wait) = self.retry_after {
            let millis = millis(wait);
            // Whole seconds, rounded up.
            headers.insert(header::RETRY_AFTER, HeaderValue::from(millis.div_ceil(1000)));
            headers.insert(RETRY_AFTER_MS, HeaderValue::from(millis));
        }
        if self.compressed {
            headers.insert(header::ACCEPT_ENCODING, HeaderValue::from_static("identity"));
        }
        if let Some(allow) = self.allow {
            headers.insert(header::ALLOW, HeaderValue::from_static(allow));
        }
        response
    }
}
