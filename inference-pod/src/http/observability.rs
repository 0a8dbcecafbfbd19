//! `/observability` on the admin port: what is told to whom, shown and changed while the process runs. Changes last as long as
//! it does, and are taken from this machine only (`kubectl port-forward` arrives from there).

use std::{sync::Arc, time::Duration};

use axum::{
    Extension, Json,
    body::{Body, Bytes},
    extract::{Request, State},
    response::{IntoResponse, Response},
};
use crds::serving::{EventRule, event_rule_faults};
use http_body_util::{BodyExt as _, LengthLimitError, Limited};
use serde::Deserialize;
use serde_json::json;

use super::{App, error::ApiError, object::Object};
use crate::{
    connection::Peer,
    logging::{LevelError, LogLevel},
    observe::lines::LOST,
    termination::error_chain,
};

/// A change is a few lines, which come at once. Whoever keeps one of the few connections of this port waiting takes it from
/// probes and scrapes.
const LONGEST_BYTES: usize = 64 << 10;
const PATIENCE: Duration = Duration::from_secs(5);

/// Looks at the log, 5 ms after one another: it has what it was told within a quarter of a second, or takes its time.
const SETTLING: usize = 50;

/// What may be changed; what is left out stays as it is.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Change {
    /// A level or a filter.
    level: Option<String>,
    /// Which events become lines of the log.
    log: Option<Vec<EventRule>>,
    /// Which events are written to the audit file.
    audit: Option<Vec<EventRule>>,
    /// Share of the requests without a `traceparent` that are traced.
    trace_sample: Option<f64>,
}

/// `GET /observability`.
pub async fn show(State(app): State<Arc<App>>) -> Response {
    Json(current(&app)).into_response()
}

fn current(app: &App) -> serde_json::Value {
    let consumers: serde_json::Map<String, serde_json::Value> = app
        .observer
        .events
        .counts()
        .map(|(name, counts)| {
            let dropped = json!({"full": counts.full, "open": counts.open, "failed": counts.failed});
            let cut_off = counts.is_open;
            (name.to_owned(), json!({"consumed": counts.consumed, "dropped": dropped, "cut_off": cut_off}))
        })
        .collect();
    json!({
        "level": app.log_level.as_ref().map(LogLevel::get),
        "log_lines_dropped": LOST.total(),
        "log": app.observer.events.rules("log"),
        "audit": app.observer.events.rules("audit"),
        "trace_sample": app.observer.trace_sample(),
        "consumers": consumers,
    })
}

/// `PATCH /observability`: all of it or none.
pub async fn change(
    State(app): State<Arc<App>>,
    peer: Option<Extension<Peer>>,
    request: Request,
) -> Result<Response, ApiError> {
    if !peer.is_some_and(|Extension(Peer(address))| address.ip().to_canonical().is_loopback()) {
        return Err(ApiError::forbidden("changes are taken from this machine only: use kubectl port-forward, or exec"));
    }
    let body = whole(request.into_body(), PATIENCE).await?;
    let Object::<Change>(change) = serde_json::from_slice(&body)
        .map_err(|error| ApiError::bad_input(format!("expected level, log, audit or trace_sample: {error}")))?;
    check(&app, &change)?;
    // By the rules that still hold: they may be about to leave it out.
    app.observer.changed(&told(&app, &change).to_string());
    if change.level.is_some() {
        settled(&app).await;
    }
    apply(&app, change)?;
    Ok(Json(current(&app)).into_response())
}

/// What it will be.
fn told(app: &App, change: &Change) -> serde_json::Value {
    let Change { level, log, audit, trace_sample } = change;
    let mut all = current(app);
    let new = [
        ("level", level.as_ref().map(|level| json!(level))),
        ("log", log.as_ref().map(|rules| json!(rules))),
        ("audit", audit.as_ref().map(|rules| json!(rules))),
        ("trace_sample", trace_sample.map(|share| json!(share))),
    ];
    for (key, value) in new {
        if let Some(value) = value {
            all[key] = value;
        }
    }
    all
}

/// Waits a moment for the log to have the line that says what will change, which another level may leave out.
async fn settled(app: &App) {
    for _ in 0..SETTLING {
        if app.observer.events.is_idle("log") {
            return;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

async fn whole(body: Body, patience: Duration) -> Result<Bytes, ApiError> {
    match tokio::time::timeout(patience, Limited::new(body, LONGEST_BYTES).collect()).await {
        Err(_) => Err(ApiError::bad_input(format!("expected the whole change within {patience:?}"))),
        Ok(Err(error)) if error.is::<LengthLimitError>() => {
            Err(ApiError::too_large(format!("change is longer than expected; expected at most {LONGEST_BYTES} bytes")))
        }
        Ok(Err(error)) => Err(ApiError::ended_early(format!("change ended early: {error}"))),
        Ok(Ok(body)) => Ok(body.to_bytes()),
    }
}

fn check(app: &App, change: &Change) -> Result<(), ApiError> {
    let mut faults = Vec::new();
    for (name, rules) in [("log", &change.log), ("audit", &change.audit)] {
        let Some(rules) = rules else { continue };
        faults.extend(event_rule_faults(name, rules));
        if app.observer.events.rules(name).is_none() {
            return Err(ApiError::bad_input(format!("{name}: there is no such consumer; see observability.events")));
        }
        let wrong = |rule: &EventRule| {
            !(0.0..=1.0).contains(&rule.sample) || rule.per_second.is_some_and(|rate| !(0.001..=1e6).contains(&rate))
        };
        if let Some(rule) = rules.iter().find(|rule| wrong(rule)) {
            let message =
                format!("{name}: expected sample from 0 to 1 and per_second from 0.001 to 1000000, got {rule:?}");
            return Err(ApiError::bad_input(message));
        }
    }
    if let Some(fault) = faults.first() {
        return Err(ApiError::bad_input(fault.to_string()));
    }
    if let Some(level) = &change.level {
        if app.log_level.is_none() {
            return Err(ApiError::internal("the log has no level"));
        }
        LogLevel::check(level).map_err(wrong_level)?;
    }
    match change.trace_sample {
        Some(share) if !(0.0..=1.0).contains(&share) => {
            Err(ApiError::bad_input(format!("trace_sample: expected 0 to 1, got {share}")))
        }
        Some(_) if app.observer.trace_sample().is_none() => {
            Err(ApiError::bad_input("trace_sample: there is no collector; see observability.tracing.endpoint"))
        }
        _ => Ok(()),
    }
}

#[expect(clippy::needless_pass_by_value, reason = "as map_err gives it")]
fn wrong_level(error: LevelError) -> ApiError {
    ApiError::bad_input(format!("level: {}", error_chain(&error)))
}

fn apply(app: &App, change: Change) -> Result<(), ApiError> {
    let Change { level, log, audit, trace_sample } = change;
    if let Some((changer, level)) = app.log_level.as_ref().zip(level) {
        changer.set(&level).map_err(wrong_level)?;
    }
    for (name, rules) in [("log", log), ("audit", audit)] {
        if let Some(rules) = rules {
            app.observer.events.set_rules(name, rules);
        }
    }
    if let Some(share) = trace_sample {
        app.observer.set_trace_sample(share);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::{
        convert::Infallible,
        pin::Pin,
        task::{Context, Poll},
    };

    use hyper::body::Frame;

    use super::*;

    /// A body that does not come.
    struct Silent;

    impl hyper::body::Body for Silent {
        type Data = Bytes;
        type Error = Infallible;

        fn poll_frame(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
            Poll::Pending
        }
    }

    #[tokio::test]
    async fn a_change_that_does_not_come_or_does_not_end_is_waited_for_no_longer() {
        let late = whole(Body::new(Silent), Duration::from_millis(5)).await.unwrap_err();
        assert_eq!(late.message(), "expected the whole change within 5ms");
        let long = whole(Body::from(vec![b' '; LONGEST_BYTES + 1]), PATIENCE).await.unwrap_err();
        assert_eq!(long.status(), 413);
        assert_eq!(whole(Body::from("{}"), PATIENCE).await.unwrap(), "{}");
    }
}
