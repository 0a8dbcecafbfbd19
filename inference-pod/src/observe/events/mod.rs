//! What happens, and who is told of it.
//!
//! ```text
//! something happens ─▸ is it wanted? ─▸ bounded channel ─▸ redacted ─▸ consumer: log, audit, trace
//! ```
//!
//! Numbers (metrics, the window of `/health/detailed`) are not consumers: they are written at once, never sampled and never
//! dropped. Whoever emits an event never waits: where a consumer's channel is full the event is dropped for that consumer, and
//! counted.

pub mod audit;
pub mod consumer;
pub mod line;
pub mod log;
pub mod redact;
pub mod rules;
pub mod trace;

use std::{
    sync::{
        Arc, PoisonError, RwLock,
        atomic::{AtomicU32, Ordering},
    },
    time::{Duration, Instant, SystemTime},
};

use crds::serving::{EVENTS, EventRule};
use smallvec::SmallVec;

use self::{
    consumer::{Consumer, Counts, Tap},
    redact::Redactor,
    rules::Rules,
};
use super::{
    Outcome,
    span::{Span, TraceId},
};

/// At the end of the process the consumers get so long, all of them together, for what they have.
const CLOSING: Duration = Duration::from_secs(2);

/// The kinds of events, in the order of [`EVENTS`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "their names say it")]
pub enum Kind {
    RequestReceived,
    RequestCompleted,
    RequestRejected,
    RequestExpired,
    RequestCancelled,
    RequestInvalid,
    RequestFailed,
    BatchRun,
    InstanceStarted,
    InstanceCrashed,
    InstanceEvicted,
    ModelLoaded,
    OverloadBegun,
    OverloadEnded,
    HealthChanged,
    ObservabilityChanged,
}

impl Kind {
    /// Its name in rules and in what is written.
    #[must_use]
    pub fn name(self) -> &'static str {
        EVENTS[self as usize]
    }

    /// That of a request that ended so.
    #[must_use]
    pub fn of(outcome: Outcome) -> Self {
        match outcome {
            Outcome::ok => Self::RequestCompleted,
            Outcome::rejected => Self::RequestRejected,
            Outcome::expired => Self::RequestExpired,
            Outcome::cancelled => Self::RequestCancelled,
            Outcome::invalid => Self::RequestInvalid,
            Outcome::failed => Self::RequestFailed,
        }
    }

    fn bit(self) -> u32 {
        1 << (self as u32)
    }
}

/// Something that happened.
#[derive(Debug, Clone)]
pub struct Event {
    /// What kind of thing.
    pub kind: Kind,
    /// When it was over.
    pub at: SystemTime,
    /// The model that it concerns; empty where it concerns the process.
    pub model: Arc<str>,
    /// The rest.
    pub detail: Detail,
}

/// What belongs to an event of a kind.
#[derive(Debug, Clone)]
pub enum Detail {
    /// A request came in.
    Received(Who),
    /// A request ended.
    Ended(Box<Ended>),
    /// A batch ran.
    Batch(Batch),
    /// Something about an instance.
    Instance {
        /// Its number.
        index: usize,
        /// Why.
        cause: String,
    },
    /// A model was loaded.
    Loaded {
        /// Time from file to session.
        load: Duration,
        /// Time of probe and warm-up.
        warmup: Duration,
        /// The provider really in use.
        provider: &'static str,
        /// How it batches, or why it does not.
        batching: String,
    },
    /// Requests are refused from now on, or are not any more.
    Overload {
        /// Refusals since it began.
        refused: u64,
        /// How long it has lasted.
        lasted: Duration,
    },
    /// A check of `/health/detailed` changed its mind.
    Health {
        /// The check.
        check: &'static str,
        /// What it says now.
        status: &'static str,
        /// Why.
        message: String,
    },
    /// Somebody changed what is told to whom.
    Changed {
        /// What it is now.
        to: String,
    },
}

/// The names of a request.
#[derive(Debug, Clone, Default)]
pub struct Who {
    /// Its own, the client's or ours.
    pub request_id: String,
    /// That of what it is a part of, where its client says so.
    pub correlation_id: Option<String>,
    /// Its trace, recorded or not.
    pub trace_id: Option<TraceId>,
    /// The route it came by.
    pub route: &'static str,
    /// Its span, where it is traced.
    pub span: Option<Span>,
    /// What the systems before us say of its trace, where it is traced.
    pub trace_state: Option<String>,
    /// Baggage that is to be kept.
    pub baggage: Vec<(String, String)>,
}

/// How a request ended.
#[derive(Debug, Clone)]
pub struct Ended {
    /// Which request.
    pub who: Who,
    /// How it ended.
    pub outcome: Outcome,
    /// The HTTP status that its client got; over gRPC the one that it would have been.
    pub status: u16,
    /// From its headers to its answer.
    pub total: Duration,
    /// Where the time went.
    pub timings: Timings,
    /// The whole chain of errors.
    pub error: Option<String>,
}

/// Where the time of a request went, from its beginning; each part only where it got that far.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Timings {
    /// Beginning and time of decoding.
    pub decode: Option<(Duration, Duration)>,
    /// Beginning and time of waiting.
    pub queue: Option<(Duration, Duration)>,
    /// Time of the run, which follows.
    pub run: Option<Duration>,
    /// Samples that shared the run.
    pub batch_samples: Option<usize>,
    /// The run's own span.
    pub batch: Option<Span>,
}

/// A batch that ran.
#[derive(Debug, Clone)]
pub struct Batch {
    /// The instance that ran it.
    pub instance: usize,
    /// Its samples.
    pub samples: usize,
    /// Its jobs.
    pub jobs: usize,
    /// Time of the run.
    pub run: Duration,
    /// Whether it went well.
    pub ok: bool,
    /// Its span, where any of its requests is traced.
    pub span: Option<Span>,
    /// The spans of its requests that are traced.
    pub links: SmallVec<[Span; 4]>,
}

impl Event {
    /// Whether it belongs to a trace that is recorded.
    #[must_use]
    pub fn is_traced(&self) -> bool {
        match &self.detail {
            Detail::Ended(ended) => ended.who.span.is_some(),
            Detail::Batch(batch) => batch.span.is_some(),
            _ => false,
        }
    }

    /// Takes out of its free text what must not be written.
    fn clean(&mut self, redactor: &Redactor) {
        match &mut self.detail {
            Detail::Received(who) => who.clean(redactor),
            Detail::Ended(ended) => {
                ended.who.clean(redactor);
                if let Some(error) = &mut ended.error {
                    *error = redactor.clean(error);
                }
            }
            Detail::Instance { cause: text, .. }
            | Detail::Health { message: text, .. }
            | Detail::Changed { to: text }
            | Detail::Loaded { batching: text, .. } => *text = redactor.clean(text),
            Detail::Batch(_) | Detail::Overload { .. } => {}
        }
    }
}

impl Who {
    fn clean(&mut self, redactor: &Redactor) {
        self.request_id = redactor.clean(&self.request_id);
        // Half of a state is none.
        self.trace_state.take_if(|state| redactor.clean_whole(state) != *state);
        let baggage = self.baggage.iter_mut().map(|(_, value)| value);
        for text in self.correlation_id.iter_mut().chain(baggage) {
            *text = redactor.clean(text);
        }
    }
}

/// Which events a consumer gets.
#[derive(Debug)]
enum Filter {
    /// By rules, which may change.
    Rules(Box<RwLock<Rules>>),
    /// Those of traces that are recorded; that was decided when the request came in.
    Traced,
}

#[derive(Debug)]
struct Listener {
    filter: Filter,
    tap: Tap,
}

/// Where events are emitted.
#[derive(Debug)]
pub struct Events {
    /// A bit for each kind that any rule wants.
    wanted: AtomicU32,
    listeners: Vec<Listener>,
    redactor: Arc<Redactor>,
}

/// A consumer of events, with what it wants; `None` wants the events of traces.
pub struct Subscription {
    /// Its name in metrics and in the log.
    pub name: &'static str,
    /// Which events it gets.
    pub rules: Option<Vec<EventRule>>,
    /// Events that come so soon after one another reach it together.
    pub gather: Duration,
    /// What takes them.
    pub consumer: Box<dyn Consumer>,
}

impl Events {
    /// Starts a thread for each consumer.
    ///
    /// # Errors
    /// What the system said where it could not start a thread.
    pub fn start(subscriptions: Vec<Subscription>, redactor: Redactor) -> std::io::Result<Self> {
        let redactor = Arc::new(redactor);
        let listener = |subscription: Subscription| {
            let Subscription { name, rules, gather, consumer } = subscription;
            let filter = rules.map_or(Filter::Traced, |rules| Filter::Rules(Box::new(RwLock::new(Rules::new(rules)))));
            Tap::start(name, gather, Arc::clone(&redactor), consumer).map(|tap| Listener { filter, tap })
        };
        let listeners = subscriptions.into_iter().map(listener).collect::<Result<_, _>>()?;
        let events = Self { wanted: AtomicU32::default(), listeners, redactor };
        events.look_what_is_wanted();
        Ok(events)
    }

    /// Nobody listens.
    #[must_use]
    pub fn quiet() -> Self {
        #[expect(clippy::expect_used, reason = "patterns that are constants, and tried in a test")]
        let redactor = Redactor::new(&[]).expect("our own patterns");
        Self { wanted: AtomicU32::default(), listeners: Vec::new(), redactor: Arc::new(redactor) }
    }

    /// Whether anybody may want an event of that kind. Takes next to no time.
    #[must_use]
    pub fn want(&self, kind: Kind) -> bool {
        self.wanted.load(Ordering::Relaxed) & kind.bit() != 0
    }

    /// Tells of something that happened. `make` is called only where somebody wants it.
    pub fn emit(&self, kind: Kind, traced: bool, make: impl FnOnce() -> Event) {
        if !traced && !self.want(kind) {
            return;
        }
        let now = Instant::now();
        let takes = |listener: &&Listener| match &listener.filter {
            Filter::Rules(rules) => rules.read().unwrap_or_else(PoisonError::into_inner).take(kind, now),
            Filter::Traced => traced,
        };
        let takers: SmallVec<[&Listener; 4]> = self.listeners.iter().filter(takes).collect();
        if takers.is_empty() {
            return;
        }
        let event = Arc::new(make());
        for listener in takers {
            listener.tap.offer(Arc::clone(&event));
        }
    }

    /// What takes out of events what must not be written.
    #[must_use]
    pub fn redactor(&self) -> &Arc<Redactor> {
        &self.redactor
    }

    /// The rules of a consumer.
    #[must_use]
    pub fn rules(&self, consumer: &str) -> Option<Vec<EventRule>> {
        let rules = self.rules_of(consumer)?.read().unwrap_or_else(PoisonError::into_inner);
        Some(rules.written().to_vec())
    }

    /// Whether a consumer has all that it was told, or there is none of that name.
    #[must_use]
    pub fn is_idle(&self, consumer: &str) -> bool {
        self.listeners.iter().filter(|listener| listener.tap.name() == consumer).all(|listener| listener.tap.is_idle())
    }

    /// Gives a consumer other rules; false where there is no such consumer, or it has none.
    pub fn set_rules(&self, consumer: &str, rules: Vec<EventRule>) -> bool {
        let Some(slot) = self.rules_of(consumer) else { return false };
        *slot.write().unwrap_or_else(PoisonError::into_inner) = Rules::new(rules);
        self.look_what_is_wanted();
        true
    }

    fn rules_of(&self, consumer: &str) -> Option<&RwLock<Rules>> {
        self.listeners.iter().find(|listener| listener.tap.name() == consumer).and_then(|listener| {
            match &listener.filter {
                Filter::Rules(rules) => Some(&**rules),
                Filter::Traced => None,
            }
        })
    }

    fn look_what_is_wanted(&self) {
        let wants = |listener: &Listener| match &listener.filter {
            Filter::Rules(rules) => rules.read().unwrap_or_else(PoisonError::into_inner).kinds(),
            Filter::Traced => 0,
        };
        let wanted = self.listeners.iter().map(wants).fold(0, |all, kinds| all | kinds);
        self.wanted.store(wanted, Ordering::Relaxed);
    }

    /// What became of the events of each consumer.
    pub fn counts(&self) -> impl Iterator<Item = (&'static str, Counts)> {
        self.listeners.iter().map(|listener| (listener.tap.name(), listener.tap.counts()))
    }

    /// Takes no more events, and waits a moment for the consumers, all of them together, to be done with those that they have.
    pub fn close(&self) {
        self.listeners.iter().for_each(|listener| listener.tap.close());
        let end = Instant::now() + CLOSING;
        self.listeners.iter().for_each(|listener| listener.tap.finish(end));
    }
}
