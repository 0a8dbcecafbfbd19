//! Logs: a filter, and one JSON object or one line of text for each event, on standard error.
//!
//! Lines go through a bounded channel to a thread that writes them: nobody who has something to say waits for whoever reads
//! standard error. What does not fit or cannot be written is dropped and counted.
//!
//! Credentials are taken out of every line: of events before anyone sees them, of all else here.

use std::{
    borrow::Cow,
    fmt,
    io::IsTerminal as _,
    sync::{Arc, Mutex, OnceLock, PoisonError},
    time::{Duration, Instant},
};

use crds::serving::{LogFormat, LoggingConfig, log_level_fault};
use serde::{Serialize, Serializer as _, ser::SerializeMap};
use tracing::{
    Event, Subscriber,
    field::{Field, Visit},
};
use tracing_appender::non_blocking::{NonBlockingBuilder, WorkerGuard};
use tracing_subscriber::{
    EnvFilter, Layer as _, Registry,
    field::MakeExt as _,
    filter::{ParseError, dynamic_filter_fn},
    fmt::{
        FmtContext, FormatEvent, FormatFields,
        format::{Writer, debug_fn},
    },
    layer::SubscriberExt as _,
    registry::LookupSpan,
    reload,
    util::SubscriberInitExt as _,
};

use crate::observe::{
    events::{log, redact::Redactor},
    lines::{Counted, LOST},
};

/// Lines that may wait to be written.
const LINES: usize = 8192;

/// Lines of ONNX Runtime in a second. It has some of its own for each run that fails, which a client can bring about as fast as it
/// can ask; that runs fail is told by events, which have a limit too.
const RUNTIME_LINES: u32 = 10;

/// A log that has begun. What waits is written when the writer is dropped.
pub struct Logging {
    writer: WorkerGuard,
    level: LogLevel,
}

impl Logging {
    /// What changes its level, and the writer.
    pub fn parts(self) -> (LogLevel, WorkerGuard) {
        (self.level, self.writer)
    }
}

/// Why the log cannot have a level.
#[derive(Debug, thiserror::Error)]
pub enum LevelError {
    /// It is neither a level nor a filter.
    #[error("{0}")]
    Level(String),
    /// It is a filter that cannot be read.
    #[error("expected a level or a filter")]
    Filter(#[from] ParseError),
}

/// Changes the level of the log while it is written.
pub struct LogLevel {
    handle: reload::Handle<EnvFilter, Registry>,
    written: Mutex<String>,
}

impl LogLevel {
    /// The level or filter.
    #[must_use]
    pub fn get(&self) -> String {
        self.written.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Another level or filter.
    ///
    /// # Errors
    /// [`LevelError`] where it is none.
    pub fn set(&self, level: &str) -> Result<(), LevelError> {
        let filter = filter(level)?;
        // The log lives as long as the process.
        let _ = self.handle.reload(filter);
        level.clone_into(&mut self.written.lock().unwrap_or_else(PoisonError::into_inner));
        Ok(())
    }

    /// Whether it can be set.
    ///
    /// # Errors
    /// [`LevelError`] where it is none.
    pub fn check(level: &str) -> Result<(), LevelError> {
        filter(level).map(drop)
    }
}

/// What [`clean`] goes by.
static REDACTOR: OnceLock<Arc<Redactor>> = OnceLock::new();

/// A text about the process that may be written: the last words of one that ends, for example.
#[must_use]
pub fn clean(text: &str) -> Cow<'_, str> {
    if let Some(redactor) = REDACTOR.get() {
        return redactor.clean_whole(text);
    }
    Redactor::of_lines(&[]).map_or(Cow::Borrowed(text), |redactor| redactor.clean_whole(text).into_owned().into())
}

/// Starts logging. `rust_log` (the variable `RUST_LOG`) wins over the config's level. What `redactor` knows is taken out.
///
/// # Errors
/// [`LevelError`] where the level is no filter.
pub fn start(config: &LoggingConfig, rust_log: Option<&str>, redactor: Redactor) -> Result<Logging, LevelError> {
    let redactor = Arc::new(redactor);
    let _ = REDACTOR.set(Arc::clone(&redactor));
    let level = rust_log.unwrap_or(&config.level);
    let (filter, handle) = reload::Layer::new(filter(level)?);
    let is_terminal = std::io::stderr().is_terminal();
    let builder = NonBlockingBuilder::default().buffered_lines_limit(LINES).lossy(true).thread_name("log");
    let (writer, guard) = builder.finish(Counted(std::io::stderr(), &LOST));
    LOST.count(writer.error_counter());
    let lines = tracing_subscriber::fmt::layer().with_writer(writer).with_ansi(is_terminal);
    let log = tracing_subscriber::registry().with(filter);
    let runtime = Few::default();
    let few = dynamic_filter_fn(move |of, _| !is_of_runtime(of.target()) || runtime.allows(Instant::now()));
    // A second start (in tests) keeps the first.
    let _ = match config.format {
        LogFormat::Json => log.with(lines.event_format(JsonLines(redactor)).with_filter(few)).try_init(),
        LogFormat::Plain => {
            let written = move |writer: &mut Writer<'_>, field: &Field, value: &dyn fmt::Debug| {
                let value = format!("{value:?}");
                let value = redactor.clean_whole(&value);
                if field.name() == MESSAGE { write!(writer, "{value}") } else { write!(writer, "{field}={value}") }
            };
            let lines = lines.with_target(false).fmt_fields(debug_fn(written).delimited(" "));
            log.with(lines.with_filter(few)).try_init()
        }
    };
    std::panic::set_hook(Box::new(|panic| {
        let thread = std::thread::current();
        let location = panic.location().map(ToString::to_string);
        tracing::error!(thread = thread.name(), location, error = panic.payload_as_str(), "a thread panicked");
    }));
    Ok(Logging { writer: guard, level: LogLevel { handle, written: Mutex::new(level.to_owned()) } })
}

/// Whether ONNX Runtime says it.
fn is_of_runtime(target: &str) -> bool {
    target == "ort" || target.starts_with("ort::")
}

/// Allows [`RUNTIME_LINES`] a second.
#[derive(Default)]
struct Few(Mutex<Option<(Instant, u32)>>);

impl Few {
    fn allows(&self, now: Instant) -> bool {
        let mut second = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (began, count) = second.get_or_insert((now, 0));
        if now.saturating_duration_since(*began) >= Duration::from_secs(1) {
            (*began, *count) = (now, 0);
        }
        *count += 1;
        *count <= RUNTIME_LINES
    }
}

fn filter(level: &str) -> Result<EnvFilter, LevelError> {
    if let Some(fault) = log_level_fault(level) {
        return Err(LevelError::Level(fault));
    }
    // What ONNX Runtime says at info is of use to its developers; who wants it names it.
    let quiet = if level.contains("ort=") { "" } else { "ort=warn," };
    // Likewise what is said of each connection to a collector of traces.
    Ok(format!("{quiet}hyper_util=info,reqwest=info,opentelemetry=warn,{level}").parse()?)
}

/// The field that has what a line says.
const MESSAGE: &str = "message";

/// A JSON object for each line.
struct JsonLines(Arc<Redactor>);

impl<S, N> FormatEvent<S, N> for JsonLines
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(&self, _: &FmtContext<'_, S, N>, mut writer: Writer<'_>, event: &Event<'_>) -> fmt::Result {
        let line = self.line(event).map_err(|_| fmt::Error)?;
        writeln!(writer, "{}", String::from_utf8_lossy(&line))
    }
}

impl JsonLines {
    fn line(&self, event: &Event<'_>) -> Result<Vec<u8>, serde_json::Error> {
        let about = event.metadata();
        let mut line = Vec::with_capacity(256);
        let mut serializer = serde_json::Serializer::new(&mut line);
        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry("timestamp", &crate::clock::timestamp().to_string())?;
        map.serialize_entry("level", about.level().as_str())?;
        // Those of events were cleaned before any consumer saw them.
        let redactor = (about.target() != log::TARGET).then_some(&*self.0);
        let mut fields = JsonFields { map, redactor, result: Ok(()) };
        event.record(&mut fields);
        let JsonFields { mut map, result, .. } = fields;
        result?;
        map.serialize_entry("target", about.target())?;
        map.end()?;
        Ok(line)
    }
}

/// Fields of a line, as they come.
struct JsonFields<'a, M: SerializeMap> {
    map: M,
    redactor: Option<&'a Redactor>,
    /// The first that could not be written.
    result: Result<(), M::Error>,
}

impl<M: SerializeMap> JsonFields<'_, M> {
    fn write(&mut self, field: &Field, value: &(impl Serialize + ?Sized)) {
        if self.result.is_ok() {
            self.result = self.map.serialize_entry(field.name(), value);
        }
    }
}

impl<M: SerializeMap> Visit for JsonFields<'_, M> {
    fn record_f64(&mut self, field: &Field, value: f64) {
        self.write(field, &value);
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.write(field, &value);
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.write(field, &value);
    }

    fn record_i128(&mut self, field: &Field, value: i128) {
        self.write(field, &value);
    }

    fn record_u128(&mut self, field: &Field, value: u128) {
        self.write(field, &value);
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.write(field, &value);
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        match self.redactor {
            Some(redactor) => self.write(field, &redactor.clean_whole(value)),
            None => self.write(field, value),
        }
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.record_str(field, &format!("{value:?}"));
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn a_second_has_few_lines_of_the_runtime_and_the_next_one_as_many() {
        let (few, now) = (Few::default(), Instant::now());
        let allowed = |at: Instant| (0..100).filter(|_| few.allows(at)).count();
        assert_eq!(allowed(now), RUNTIME_LINES as usize);
        assert_eq!(allowed(now + Duration::from_millis(999)), 0);
        assert_eq!(allowed(now + Duration::from_secs(1)), RUNTIME_LINES as usize);
    }

    /// The lines that come of what somebody says.
    fn said(say: impl FnOnce()) -> Vec<Value> {
        struct Kept(Arc<Mutex<Vec<u8>>>);
        impl std::io::Write for Kept {
            fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
                self.0.lock().unwrap().extend_from_slice(bytes);
                Ok(bytes.len())
            }

            fn flush(&mut self) -> std::io::Result<()> {
                Ok(())
            }
        }
        let kept = Arc::<Mutex<Vec<u8>>>::default();
        let writer = Arc::clone(&kept);
        let redactor = Redactor::of_lines(&[r"\bcustomer-\d+".to_owned()]).unwrap();
        let lines = tracing_subscriber::fmt::layer()
            .with_writer(move || Kept(Arc::clone(&writer)))
            .event_format(JsonLines(Arc::new(redactor)));
        tracing::subscriber::with_default(tracing_subscriber::registry().with(lines), say);
        let text = String::from_utf8(kept.lock().unwrap().clone()).unwrap();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    #[test]
    fn a_filter_that_would_switch_the_log_off_is_none() {
        assert!(filter("info,inference_pod::queue=debug").is_ok());
        assert!(matches!(filter("warning"), Err(LevelError::Level(_))));
        assert!(matches!(filter("info,x=warning"), Err(LevelError::Filter(_))));
    }

    #[test]
    fn a_line_is_an_object_of_its_fields() {
        let lines = said(|| tracing::info!(port = 8080, seconds = 0.5, path = %"/x", ok = true, "a \"line\"\n"));
        let mut line = lines[0].clone();
        assert!(line["timestamp"].as_str().is_some_and(|time| time.ends_with('Z')), "{line}");
        line.as_object_mut().unwrap().remove("timestamp");
        let target = module_path!();
        let expected = json!({
            "level": "INFO", "message": "a \"line\"\n", "port": 8080, "seconds": 0.5, "path": "/x", "ok": true,
            "target": target
        });
        assert_eq!(line, expected);
    }

    #[test]
    fn a_line_that_is_no_event_loses_its_credentials_and_stays_json() {
        let error = "cannot open \"http://user:hunter2@host\", \"a@b\": password=\"hunter2\"";
        let lines = said(|| tracing::warn!(error, cause = ?error, "token=hunter2 of customer-4711"));
        let text = lines[0].to_string();
        // With its beginning: the time of the line may have those digits too.
        assert!(!text.contains("hunter2") && !text.contains("customer-4711"), "{text}");
        assert_eq!(lines[0]["message"], "[redacted] of [redacted]");
    }
}
