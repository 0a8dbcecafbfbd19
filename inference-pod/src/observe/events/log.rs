//! Events as lines of the log.

use std::{error::Error, sync::Arc};

use super::{Event, Kind, consumer::Consumer, line::Fields};
use crate::observe::health::Status;

/// What the lines of events say where they come from.
pub const TARGET: &str = "inference_pod::events";

/// Writes a line for each event.
pub struct Log {
    /// The revision that this process belongs to, where it has one.
    pub revision: Option<String>,
}

/// One line, with the fields that there are.
macro_rules! line {
    ($level:ident, $fields:expr, $message:expr) => {{
        let f = $fields;
        tracing::$level!(
            target: TARGET,
            event = f.event,
            model = f.model,
            revision = f.revision,
            request_id = f.request_id,
            correlation_id = f.correlation_id,
            trace_id = f.trace_id,
            route = f.route,
            outcome = f.outcome,
            status = f.status,
            total_ms = f.total_ms,
            decode_ms = f.decode_ms,
            queue_ms = f.queue_ms,
            run_ms = f.run_ms,
            batch_size = f.batch_size,
            jobs = f.jobs,
            instance = f.instance,
            provider = f.provider,
            load_seconds = f.load_seconds,
            warmup_seconds = f.warmup_seconds,
            refused = f.refused,
            lasted_seconds = f.lasted_seconds,
            check = f.check,
            check_status = f.check_status,
            detail = f.detail,
            error = f.error,
            "{}", $message
        )
    }};
}

impl Consumer for Log {
    fn consume(&mut self, events: &[Arc<Event>]) -> Result<(), Box<dyn Error + Send + Sync>> {
        for event in events {
            let fields = Fields::of(event, self.revision.as_deref());
            match event.kind {
                Kind::RequestFailed => line!(error, fields, "a request failed"),
                Kind::RequestExpired => line!(warn, fields, "a request was not answered in time"),
                Kind::RequestInvalid => line!(info, fields, "a request was wrong"),
                Kind::RequestRejected => line!(info, fields, "a request was refused"),
                Kind::RequestCancelled => line!(info, fields, "a caller left"),
                Kind::RequestCompleted => line!(info, fields, "a request was answered"),
                Kind::RequestReceived => line!(info, fields, "a request came in"),
                Kind::BatchRun => line!(info, fields, "a batch ran"),
                Kind::InstanceStarted => line!(info, fields, "an instance started"),
                Kind::InstanceCrashed => line!(error, fields, "an instance crashed"),
                Kind::InstanceEvicted => line!(error, fields, "an instance is given up"),
                Kind::ModelLoaded => line!(info, fields, "a model is ready"),
                Kind::OverloadBegun => line!(warn, fields, "requests are refused"),
                Kind::OverloadEnded => line!(info, fields, "requests are not refused any more"),
                Kind::HealthChanged if fields.check_status == Some(Status::Ok.name()) => {
                    line!(info, fields, "a health check is well again");
                }
                Kind::HealthChanged => line!(warn, fields, "a health check changed"),
                Kind::ObservabilityChanged => line!(info, fields, "what is told was changed"),
            }
        }
        Ok(())
    }
}
