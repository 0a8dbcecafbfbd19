//! `/observability` on the admin port, as a server has it: what is told, shown and changed while the process runs. Changes last as
//! long as it does, and are taken from this machine only (`kubectl port-forward` arrives from there).

use std::{net::SocketAddr, sync::Arc, time::Duration};

use axum::{
    Extension, Router,
    body::{self, Body},
    extract::{ConnectInfo, Request, State},
    http::{Method, StatusCode, header},
    response::{IntoResponse, Response},
    routing::get,
};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::{causes::chain, logging::LogLevel};

/// A change is a line, which comes at once.
const LONGEST_BYTES: usize = 64 << 10;
const PATIENCE: Duration = Duration::from_secs(5);

/// What may be changed; what is left out stays as it is.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Change {
    /// A level or a filter.
    level: Option<String>,
}

/// The route.
pub fn router(level: Arc<LogLevel>) -> Router {
    let route = get(show).patch(change).fallback(wrong_verb);
    Router::new().route("/observability", route).with_state(level)
}

async fn show(State(level): State<Arc<LogLevel>>) -> Response {
    answer(StatusCode::OK, &current(&level))
}

fn current(level: &LogLevel) -> Value {
    json!({"level": level.get()})
}

async fn change(
    State(level): State<Arc<LogLevel>>,
    peer: Option<Extension<ConnectInfo<SocketAddr>>>,
    request: Request,
) -> Response {
    if !peer.is_some_and(|Extension(ConnectInfo(address))| address.ip().to_canonical().is_loopback()) {
        return refused(StatusCode::FORBIDDEN, "changes are taken from this machine only: use kubectl port-forward");
    }
    let Some(body) = whole(request.into_body(), PATIENCE).await else {
        let message = format!("expected at most {LONGEST_BYTES} bytes, whole within {PATIENCE:?}");
        return refused(StatusCode::BAD_REQUEST, &message);
    };
    let change: Change = match serde_json::from_slice(&body) {
        Ok(change) => change,
        Err(error) => return refused(StatusCode::BAD_REQUEST, &format!("expected level: {error}")),
    };
    if let Some(Err(error)) = change.level.map(|wanted| level.set(&wanted)) {
        return refused(StatusCode::BAD_REQUEST, &format!("level: {}", chain(&error)));
    }
    let current = current(&level);
    tracing::info!(event = "observability.changed", detail = current.to_string(), "what is told was changed");
    answer(StatusCode::OK, &current)
}

async fn whole(body: Body, patience: Duration) -> Option<body::Bytes> {
    tokio::time::timeout(patience, body::to_bytes(body, LONGEST_BYTES)).await.ok()?.ok()
}

async fn wrong_verb(method: Method) -> Response {
    const ALLOW: &str = "GET, HEAD, PATCH";
    let refused = refused(StatusCode::METHOD_NOT_ALLOWED, &format!("expected {ALLOW}, got {method}"));
    ([(header::ALLOW, ALLOW)], refused).into_response()
}

fn refused(code: StatusCode, message: &str) -> Response {
    answer(code, &json!({"error": message}))
}

fn answer(code: StatusCode, body: &Value) -> Response {
    (code, [(header::CONTENT_TYPE, "application/json")], body.to_string()).into_response()
}

#[cfg(test)]
mod tests {
    use std::io;

    use axum::{body::Body, http::Request};
    use http_body_util::BodyExt as _;
    use tower::ServiceExt as _;
    use tracing_subscriber::{fmt, layer::SubscriberExt as _};

    use super::*;
    use crate::logging;

    async fn asked(level: &Arc<LogLevel>, from: &str, verb: &str, body: &str) -> (StatusCode, Value) {
        let from: SocketAddr = from.parse().unwrap();
        let request = Request::builder().method(verb).uri("/observability").extension(ConnectInfo(from));
        let response = router(Arc::clone(level)).oneshot(request.body(Body::from(body.to_owned())).unwrap()).await;
        let (head, body) = response.unwrap().into_parts();
        assert!(head.status != StatusCode::METHOD_NOT_ALLOWED || head.headers[header::ALLOW] == "GET, HEAD, PATCH");
        (head.status, serde_json::from_slice(&body.collect().await.unwrap().to_bytes()).unwrap())
    }

    #[tokio::test]
    async fn the_level_changes_what_is_written_from_then_on() {
        let (filter, level) = logging::changeable("info").unwrap();
        let (reader, writer) = io::pipe().unwrap();
        let lines = fmt::layer().with_writer(std::sync::Mutex::new(writer));
        let log = tracing::subscriber::set_default(tracing_subscriber::registry().with(filter).with(lines));
        tracing::debug!("before");
        let change = r#"{"level": "info,ortolan_operator=debug"}"#;
        let (code, now) = asked(&level, "127.0.0.1:7", "PATCH", change).await;
        assert_eq!((code, &now), (StatusCode::OK, &json!({"level": "info,ortolan_operator=debug"})));
        tracing::debug!("afterwards");
        assert_eq!(asked(&level, "10.0.0.7:7", "GET", "").await, (StatusCode::OK, now));
        drop(log);
        let text = io::read_to_string(reader).unwrap();
        assert!(!text.contains("before") && text.contains("observability.changed"), "{text}");
        assert!(text.contains("afterwards"), "{text}");
    }

    #[tokio::test]
    async fn a_change_that_does_not_come_or_does_not_end_is_waited_for_no_longer() {
        let silent = Body::from_stream(futures::stream::pending::<Result<body::Bytes, io::Error>>());
        assert_eq!(whole(silent, Duration::from_millis(5)).await, None);
        assert_eq!(whole(Body::from(vec![b' '; LONGEST_BYTES + 1]), PATIENCE).await, None);
        assert_eq!(whole(Body::from("{}"), PATIENCE).await.unwrap(), "{}");
    }

    #[tokio::test]
    async fn a_change_that_is_refused_changes_nothing() {
        let (_layer, level) = logging::changeable("info").unwrap();
        for (from, verb, body, code, says) in [
            ("10.0.0.7:7", "PATCH", r#"{"level": "debug"}"#, StatusCode::FORBIDDEN, "from this machine only"),
            ("[::1]:7", "PATCH", r#"{"level": "warning"}"#, StatusCode::BAD_REQUEST, "level: expected a level (off, "),
            ("[::1]:7", "PATCH", r#"{"level": "x=warning"}"#, StatusCode::BAD_REQUEST, "level: expected a level or"),
            ("[::1]:7", "PATCH", r#"{"levels": "debug"}"#, StatusCode::BAD_REQUEST, "expected level: unknown field"),
            ("[::1]:7", "DELETE", "", StatusCode::METHOD_NOT_ALLOWED, "expected GET, HEAD, PATCH, got DELETE"),
        ] {
            let (got, answer) = asked(&level, from, verb, body).await;
            assert_eq!(got, code, "{body}");
            assert!(answer["error"].as_str().unwrap().contains(says), "{answer}");
            assert_eq!(level.get(), "info");
        }
    }
}
