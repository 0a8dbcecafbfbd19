//! An event as fields, by the names that all lines have: those of the log and those of the audit file.

use std::time::Duration;

use jiff::Timestamp;
use serde::Serialize;

use super::{Batch, Detail, Ended, Event, Kind, Who};

/// The fields of a line. What an event does not have is left out.
#[derive(Debug, Clone, Default, Serialize)]
#[serde(default)]
#[expect(missing_docs, reason = "docs/observability.md has a table of them")]
pub struct Fields<'a> {
    pub timestamp: String,
    pub event: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub model: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub revision: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub request_id: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub correlation_id: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub trace_id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub route: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub outcome: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub status: Option<u16>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub total_ms: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub decode_ms: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub queue_ms: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub run_ms: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub batch_size: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub jobs: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub instance: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub provider: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub load_seconds: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub warmup_seconds: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub refused: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lasted_seconds: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub check: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub check_status: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub detail: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<&'a str>,
}

impl<'a> Fields<'a> {
    /// Those of an event.
    #[must_use]
    pub fn of(event: &'a Event, revision: Option<&'a str>) -> Self {
        let common = Self {
            timestamp: Timestamp::try_from(event.at).unwrap_or_default().to_string(),
            event: event.kind.name(),
            model: Some(&*event.model).filter(|model| !model.is_empty()),
            revision,
            ..Self::default()
        };
        match &event.detail {
            Detail::Received(who) => common.with_who(who),
            Detail::Ended(ended) => common.with_end(ended),
            Detail::Batch(batch) => common.with_batch(batch),
            // One that has started has a cause as well, and it is no error.
            Detail::Instance { index, cause } if event.kind == Kind::InstanceStarted => {
                Self { instance: Some(*index), detail: Some(cause), ..common }
            }
            Detail::Instance { index, cause } => Self { instance: Some(*index), error: Some(cause), ..common },
            Detail::Loaded { load, warmup, provider, batching } => Self {
                load_seconds: Some(load.as_secs_f64()),
                warmup_seconds: Some(warmup.as_secs_f64()),
                provider: Some(provider),
                detail: Some(batching),
                ..common
            },
            Detail::Overload { refused, lasted } => {
                Self { refused: Some(*refused), lasted_seconds: Some(lasted.as_secs_f64()), ..common }
            }
            Detail::Health { check, status, message } => {
                Self { check: Some(check), check_status: Some(status), detail: Some(message), ..common }
            }
            Detail::Changed { to } => Self { detail: Some(to), ..common },
        }
    }

    fn with_who(self, who: &'a Who) -> Self {
        Self {
            request_id: Some(&who.request_id),
            correlation_id: who.correlation_id.as_deref(),
            trace_id: who.trace_id.map(|id| id.to_string()),
            route: Some(who.route),
            ..self
        }
    }

    fn with_end(self, ended: &'a Ended) -> Self {
        let Ended { who, outcome, status, total, timings, error } = ended;
        Self {
            outcome: Some(outcome.name()),
            status: Some(*status),
            total_ms: Some(millis(*total)),
            decode_ms: timings.decode.map(|(_, time)| millis(time)),
            queue_ms: timings.queue.map(|(_, time)| millis(time)),
            run_ms: timings.run.map(millis),
            batch_size: timings.batch_samples,
            error: error.as_deref(),
            ..self.with_who(who)
        }
    }

    fn with_batch(self, batch: &Batch) -> Self {
        let Batch { instance, samples, jobs, run, ok, span, links: _ } = batch;
        Self {
            instance: Some(*instance),
            batch_size: Some(*samples),
            jobs: Some(*jobs),
            run_ms: Some(millis(*run)),
            outcome: Some(if *ok { "ok" } else { "failed" }),
            trace_id: span.map(|span| span.trace.to_string()),
            ..self
        }
    }
}

/// Milliseconds to the microsecond.
fn millis(time: Duration) -> f64 {
    (time.as_secs_f64() * 1e6).round() / 1e3
}
