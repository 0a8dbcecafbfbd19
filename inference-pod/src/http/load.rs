//! `/load` on the admin port: the few numbers that autoscaling reads.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use axum::{Json, extract::State, http::Uri};
use crds::load::{Load, WITHIN, WITHIN_MS};

use super::{App, error::ApiError};
use crate::lifecycle::Phase;

/// `GET /load`, and `GET /load?within_ms=250`.
pub async fn load(State(app): State<Arc<App>>, uri: Uri) -> Result<Json<Load>, ApiError> {
    let within = within(uri.query().unwrap_or_default())?;
    let now = Instant::now();
    Ok(Json(Load {
        started: app.lifecycle.started_at().to_string(),
        uptime_seconds: now.saturating_duration_since(app.lifecycle.started()).as_secs_f64(),
        draining: app.lifecycle.phase() != Phase::Serving,
        decoders: app.decoders.threads() as u64,
        models: app.registry.loaded().map(|model| model.load_at(now, within)).collect(),
    }))
}

/// The latency that is asked about; `None` where none is. What else a query says is for other versions.
fn within(query: &str) -> Result<Option<Duration>, ApiError> {
    let parts = query.split('&').map(|part| part.split_once('=').unwrap_or((part, "")));
    let mut values = parts.filter(|(name, _)| *name == WITHIN).map(|(_, value)| value);
    let Some(text) = values.next() else { return Ok(None) };
    let millis = text.parse().ok().filter(|millis| WITHIN_MS.contains(millis));
    match (millis, values.next()) {
        (Some(millis), None) => Ok(Some(Duration::from_millis(millis))),
        (Some(_), Some(_)) => Err(ApiError::bad_input(format!("{WITHIN}: comes twice"))),
        (None, _) => {
            let (least, most) = WITHIN_MS.into_inner();
            let expected = format!("{WITHIN}: expected whole milliseconds from {least} to {most}, got '{text}'");
            Err(ApiError::bad_input(expected))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_latency_asked_about_is_a_whole_number_of_milliseconds_or_refused_with_a_sentence() {
        assert_eq!(within("").unwrap(), None);
        assert_eq!(within("since=yesterday").unwrap(), None);
        assert_eq!(within("since=yesterday&within_ms=250").unwrap(), Some(Duration::from_millis(250)));
        assert_eq!(within("within_ms=600000").unwrap(), Some(Duration::from_secs(600)));
        for bad in ["", "0", "600001", "-1", "2.5", "250ms", "99999999999999999999"] {
            let said = within(&format!("within_ms={bad}")).unwrap_err().message();
            assert_eq!(said, format!("within_ms: expected whole milliseconds from 1 to 600000, got '{bad}'"));
        }
        assert!(within("within_ms").unwrap_err().message().ends_with("got ''"));
        assert_eq!(within("within_ms=1&within_ms=2").unwrap_err().message(), "within_ms: comes twice");
    }
}
