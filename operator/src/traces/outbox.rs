//! Spans on their way to a collector, sent by a thread of its own.

use std::{
    io,
    sync::{
        Arc, Mutex, PoisonError,
        mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel},
    },
    thread,
    time::{Duration, Instant},
};

use opentelemetry::Context;
use opentelemetry_otlp::SpanExporter;
use opentelemetry_sdk::{
    error::{OTelSdkError, OTelSdkResult},
    trace::{Span, SpanData, SpanExporter as _, SpanProcessor},
};
use tokio::runtime;

use crate::{
    causes::chain,
    metrics::{Metrics, SpanLoss},
};

/// Spans that may wait to be sent. What comes while so many do is dropped and counted: nobody waits for a collector.
pub const SPANS: usize = 4096;

/// Spans that are sent at once.
const BATCH: usize = 512;

/// The first of a batch waits so long for others.
const GATHER: Duration = Duration::from_secs(1);

/// Where ended spans are left.
#[derive(Debug)]
pub struct Outbox {
    /// None after the end.
    spans: Mutex<Option<SyncSender<SpanData>>>,
    /// Says nothing; its other end goes with the thread.
    thread: Mutex<Receiver<()>>,
    metrics: Arc<Metrics>,
}

impl Outbox {
    /// Begins to send what is left in it.
    ///
    /// # Errors
    /// No runtime, or no thread.
    pub fn open(exporter: SpanExporter, metrics: Arc<Metrics>) -> io::Result<Self> {
        let (spans, left) = sync_channel(SPANS);
        let (alive, thread) = sync_channel(0);
        // The exporter waits on it; nobody else does.
        let waiting = runtime::Builder::new_current_thread().enable_all().build()?;
        let post = Post { spans: left, exporter, waiting, metrics: Arc::clone(&metrics), is_failing: false };
        thread::Builder::new().name("traces".to_owned()).spawn(move || {
            post.run();
            drop(alive);
        })?;
        Ok(Self { spans: Mutex::new(Some(spans)), thread: Mutex::new(thread), metrics })
    }
}

impl SpanProcessor for Outbox {
    fn on_start(&self, _: &mut Span, _: &Context) {}

    fn on_end(&self, span: SpanData) {
        let spans = self.spans.lock().unwrap_or_else(PoisonError::into_inner);
        let is_full = spans.as_ref().is_some_and(|spans| spans.try_send(span).is_err());
        if is_full {
            self.metrics.lost_spans(SpanLoss::full, 1);
        }
    }

    fn force_flush(&self) -> OTelSdkResult {
        Err(OTelSdkError::InternalFailure("spans leave by themselves".to_owned()))
    }

    /// What is left is still sent, and waited for.
    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        drop(self.spans.lock().unwrap_or_else(PoisonError::into_inner).take());
        match self.thread.lock().unwrap_or_else(PoisonError::into_inner).recv_timeout(timeout) {
            Err(RecvTimeoutError::Timeout) => Err(OTelSdkError::Timeout(timeout)),
            Ok(()) | Err(RecvTimeoutError::Disconnected) => Ok(()),
        }
    }
}

/// Sends what is left in an outbox, until it is closed and empty.
struct Post {
    spans: Receiver<SpanData>,
    exporter: SpanExporter,
    waiting: runtime::Runtime,
    metrics: Arc<Metrics>,
    is_failing: bool,
}

impl Post {
    fn run(mut self) {
        while let Ok(first) = self.spans.recv() {
            let batch = self.gather(first);
            self.send(batch);
        }
    }

    fn gather(&self, first: SpanData) -> Vec<SpanData> {
        let (mut batch, until) = (vec![first], Instant::now() + GATHER);
        while batch.len() < BATCH
            && let Ok(span) = self.spans.recv_timeout(until.saturating_duration_since(Instant::now()))
        {
            batch.push(span);
        }
        batch
    }

    /// A collector that is away is told of once, not for each batch.
    fn send(&mut self, batch: Vec<SpanData>) {
        let count = batch.len() as u64;
        let sent = self.waiting.block_on(self.exporter.export(batch));
        match &sent {
            Ok(()) => self.metrics.sent_spans(count),
            Err(_) => self.metrics.lost_spans(SpanLoss::failed, count),
        }
        match &sent {
            Err(error) if !self.is_failing => {
                tracing::warn!(error = chain(error), "traces cannot be sent, and are dropped until they can");
            }
            Ok(()) if self.is_failing => tracing::info!("traces are sent again"),
            _ => {}
        }
        self.is_failing = sent.is_err();
    }
}
