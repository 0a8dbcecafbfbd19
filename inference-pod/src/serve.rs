//! `serve`: from a config to a serving process, and from a signal to its end.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use crds::serving::{AuditConfig, EventsConfig, Faults, ModelConfig, ObservabilityConfig, ServingConfig};
use tokio::{
    net::TcpListener,
    runtime::{self, Runtime as AsyncRuntime},
    signal::unix::{Signal, SignalKind, signal},
    sync::oneshot,
    time::MissedTickBehavior,
};

use crate::{
    connection::{self, Terms},
    grpc,
    http::{
        App, HealthTerms, admin_router, client_router, decoders::Decoders, probes::health_report, refusals::Refusals,
    },
    lifecycle::{Lifecycle, Phase},
    logging::LogLevel,
    model::{LoadError, Model, Surroundings},
    observe::{
        Observer, Parts,
        asked::Asked,
        events::{
            Events, Subscription,
            audit::Audit,
            log::Log,
            redact::Redactor,
            trace::{Resident, TraceError, Traces},
        },
        health::Status,
        otel::{self, OtherProtocol},
        process::{disk, process_facts},
        span::Sampler,
    },
    registry::Registry,
    session::{Runtime, SessionError, make_huge},
    surroundings::{self, UnreadableConfig},
    termination::{Termination, error_chain},
    threads,
};

/// Lines of the audit file, and spans, are written together that come within so long.
const AUDIT_GATHER: Duration = Duration::from_millis(200);
/// See [`AUDIT_GATHER`].
const TRACE_GATHER: Duration = Duration::from_secs(1);

/// Health is looked at this often, to tell when it changes.
const HEALTH_INTERVAL: Duration = Duration::from_secs(2);

/// Runs are looked at this often; how late a run that takes too long is ended at most.
const WATCH_INTERVAL: Duration = Duration::from_millis(200);

/// Probes and scrapers are few.
const ADMIN_CONNECTIONS: usize = 256;

/// Files that connections of clients leave to everything else: models, logs, the admin port.
const RESERVED_FILES: usize = ADMIN_CONNECTIONS + 128;

/// A supervisor may send its signal to the process and to its group; what comes so soon after the first is no second.
const SAME_SIGNAL: Duration = Duration::from_millis(200);

/// Why the process could not serve, or could not end as it should.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// A config file.
    #[error(transparent)]
    Unreadable(#[from] UnreadableConfig),
    /// What the config says.
    #[error(transparent)]
    Config(#[from] Faults),
    /// The log filter.
    #[error("logging.level (or RUST_LOG) is no filter")]
    LogFilter(#[from] crate::logging::LevelError),
    /// A port is taken, for example.
    #[error("cannot listen on {address} ({setting})")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// The setting that named the port.
        setting: &'static str,
        /// What the system said.
        source: std::io::Error,
    },
    /// ONNX Runtime.
    #[error(transparent)]
    Runtime(#[from] SessionError),
    /// A model.
    #[error("model '{model}' cannot be served")]
    Load {
        /// Its name.
        model: String,
        /// What is wrong with it.
        source: LoadError,
    },
    /// Traces cannot be sent.
    #[error(transparent)]
    Traces(#[from] TraceError),
    /// They cannot be sent as the environment wants it.
    #[error(transparent)]
    Protocol(#[from] OtherProtocol),
    /// Threads or signals.
    #[error("cannot set the process up")]
    Process(#[from] std::io::Error),
    /// Somebody could not wait for the requests that were under way.
    #[error("a second signal ended the process before its requests were answered")]
    SecondSignal,
    /// The config names no model.
    #[error("models: expected at least one, got none")]
    NoModels,
    /// Requests were still unanswered when the time for draining was over.
    #[error("requests were still unanswered {0:?} after the listeners closed")]
    DrainTimeout(Duration),
}

impl ServeError {
    /// What the operator shows of it.
    #[must_use]
    pub fn termination(&self) -> Termination {
        let (model, reason) = match self {
            Self::Load { model, source } => (Some(model.clone()), source.reason()),
            Self::Unreadable(_)
            | Self::Config(_)
            | Self::LogFilter(_)
            | Self::NoModels
            | Self::Traces(_)
            | Self::Protocol(_) => (None, "InvalidConfig"),
            Self::Listen { .. } | Self::Runtime(_) | Self::Process(_) => (None, "ServerFailed"),
            Self::DrainTimeout(_) | Self::SecondSignal => (None, "DrainTimeout"),
        };
        Termination { model, reason, message: error_chain(self) }
    }
}

/// Reads the config.
///
/// # Errors
/// [`ServeError`] with all that is wrong with it.
pub fn read_config(files: &[PathBuf]) -> Result<ServingConfig, ServeError> {
    Ok(crds::serving::parse(&surroundings::config_layers(files)?)?)
}

/// Serves until a signal ends it.
///
/// # Errors
/// [`ServeError`] where it cannot start, a model cannot be loaded, or requests stay unanswered at the end.
pub fn serve(config: ServingConfig, log_level: Option<LogLevel>) -> Result<(), ServeError> {
    if config.models.is_empty() {
        return Err(ServeError::NoModels);
    }
    let threads = surroundings::threads(&config.server);
    let loop_runtime = serving_loop(threads)?;
    // Before anything that takes long: the first process of a container is not ended by a signal that it does not listen for.
    let signals = {
        let _in_runtime = loop_runtime.enter();
        Signals::listen()?
    };
    let runtime = Runtime::load(surroundings::variable("ORT_DYLIB_PATH").map(PathBuf::from))?;
    let (clients, grpc_clients, admin) = {
        let _in_runtime = loop_runtime.enter();
        (
            listen(&config, config.server.port, "server.port")?,
            listen(&config, config.server.grpc_port, "server.grpc_port")?,
            listen(&config, config.server.metrics_port, "server.metrics_port")?,
        )
    };
    let ServingConfig { server, logging: _, observability, models } = config;
    let (observer, health) = observer(observability, &server.server_name, runtime.version())?;
    let app = Arc::new(App {
        server,
        registry: Registry::new(models.iter().map(|model| model.name.clone())),
        lifecycle: Arc::new(Lifecycle::default()),
        observer,
        health,
        log_level,
        refusals: Refusals::new(threads),
        decoders: Decoders::new(threads),
        writers: Decoders::new(threads),
        runtime_version: runtime.version().to_owned(),
        threads,
    });
    tracing::info!(
        version = env!("CARGO_PKG_VERSION"),
        onnxruntime = runtime.version(),
        library = %runtime.library().display(),
        threads,
        port = clients.local_addr()?.port(),
        grpc_port = grpc_clients.local_addr()?.port(),
        metrics_port = admin.local_addr()?.port(),
        "starting"
    );
    start_admin_thread(admin.into_std()?, Arc::clone(&app))?;
    let result = loop_runtime.block_on(run([clients, grpc_clients], signals, Arc::clone(&app), runtime, models));
    app.registry.stop();
    app.observer.events.close();
    // A decoder that is still at it has nobody to answer to.
    loop_runtime.shutdown_background();
    result
}

/// Starts what is told of what happens.
fn observer(
    config: ObservabilityConfig,
    service: &str,
    runtime_version: &str,
) -> Result<(Observer, HealthTerms), ServeError> {
    let ObservabilityConfig { metrics, tracing: wanted, events, health } = config;
    // The first look remembers when the process began.
    let _ = process_facts();
    let revision = surroundings::variable("ORTOLAN_REVISION");
    let EventsConfig { log, audit, redact } = events;
    let log = Subscription {
        name: "log",
        rules: Some(log),
        gather: Duration::ZERO,
        consumer: Box::new(Log { revision: revision.clone() }),
    };
    let mut subscriptions = vec![log];
    let AuditConfig { file, max_bytes, keep, events: rules } = audit;
    if let Some(path) = &file {
        let consumer = Audit { path: path.clone(), max_bytes, keep, revision: revision.clone() };
        let (rules, gather) = (Some(rules), AUDIT_GATHER);
        subscriptions.push(Subscription { name: "audit", rules, gather, consumer: Box::new(consumer) });
    }
    let mut faults = Vec::new();
    let traced = otel::tracing(wanted.endpoint, wanted.sample, surroundings::variable, &mut faults)?;
    for fault in faults {
        tracing::warn!("{fault}");
    }
    if let Some(traced) = &traced {
        let (named, host) = (surroundings::variable("OTEL_SERVICE_NAME"), surroundings::host_name());
        let (named, host, revision) = (named.as_deref(), host.as_deref(), revision.as_deref());
        let consumer = Box::new(Traces::new(traced, &Resident { service, named, host, revision })?);
        subscriptions.push(Subscription { name: "trace", rules: None, gather: TRACE_GATHER, consumer });
    }
    // The patterns were tried when the config was read.
    let redactor = Redactor::new(&redact).map_err(std::io::Error::other)?;
    let events = Arc::new(Events::start(subscriptions, redactor)?);
    let observer = Observer::new(Parts {
        events,
        sampler: traced.map(|traced| Sampler::new(traced.sampling)),
        baggage: wanted.baggage,
        window: Duration::from_secs(health.window_seconds.into()),
        triton_names: metrics.triton_names,
        runtime_version: runtime_version.to_owned(),
    });
    // A disk that hangs must hold up neither probes nor the watch over runs.
    let asked = |file: PathBuf| Asked::start("disk", move || Some(move || disk(&file)));
    Ok((observer, HealthTerms { criteria: health, disk: file.map(asked).transpose()? }))
}

/// One thread moves bytes for as many cores as there are; a second one pays where there are many.
fn serving_loop(threads: usize) -> Result<AsyncRuntime, std::io::Error> {
    const MANY_CORES: usize = 8;
    let workers = if threads >= MANY_CORES { 2 } else { 1 };
    runtime::Builder::new_multi_thread()
        .worker_threads(workers)
        .max_blocking_threads(threads + 8)
        .thread_name("serving")
        // Blocking threads too: one that decodes asks for less by itself.
        .on_thread_start(threads::serve_before_models)
        .enable_all()
        .build()
}

fn listen(config: &ServingConfig, port: u16, setting: &'static str) -> Result<TcpListener, ServeError> {
    let address = SocketAddr::new(config.server.host, port);
    connection::listen(address).map_err(|source| ServeError::Listen { address, setting, source })
}

/// Probes and scrapes have a thread and a loop of their own, so that they are answered whatever the load.
fn start_admin_thread(listener: std::net::TcpListener, app: Arc<App>) -> Result<(), std::io::Error> {
    let admin_loop = runtime::Builder::new_current_thread().enable_all().build()?;
    let listener = {
        let _in_loop = admin_loop.enter();
        TcpListener::from_std(listener)?
    };
    let work = async move {
        let watched = Arc::clone(&app);
        tokio::spawn(async move {
            let mut interval = tokio::time::interval(WATCH_INTERVAL);
            // After a standstill of the whole process a run gets its time to end as ever.
            interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
            loop {
                let now = interval.tick().await;
                watched.registry.watch(now.into_std());
            }
        });
        tokio::spawn(tell_health(Arc::clone(&app)));
        // Probes are answered to the very end: this port's own lifecycle never leaves its first phase.
        let terms = Terms {
            lifecycle: Arc::default(),
            max_age: Duration::ZERO,
            max_connections: ADMIN_CONNECTIONS,
            makes_room: true,
            tells_peer: true,
        };
        connection::serve(listener, admin_router(app), terms).await;
    };
    std::thread::Builder::new().name("admin".to_owned()).spawn(move || {
        threads::interrupt_others();
        admin_loop.block_on(work);
    })?;
    Ok(())
}

/// Tells of each check of `/health/detailed` that changes its mind.
async fn tell_health(app: Arc<App>) {
    let mut interval = tokio::time::interval(HEALTH_INTERVAL);
    let mut known: BTreeMap<(&'static str, Option<String>), Status> = BTreeMap::new();
    loop {
        interval.tick().await;
        for check in health_report(&app).checks {
            let before = known.insert((check.name, check.model.clone()), check.status).unwrap_or(Status::Ok);
            // Models that are still to be loaded are no news when the process begins.
            if before != check.status && !(check.name == "models" && check.status == Status::Warning) {
                app.observer.health_changed(&check);
            }
        }
    }
}

/// The signals that end the process, from when they are listened for.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    fn listen() -> Result<Self, std::io::Error> {
        Ok(Self { terminate: signal(SignalKind::terminate())?, interrupt: signal(SignalKind::interrupt())? })
    }
}

async fn run(
    [clients, grpc_clients]: [TcpListener; 2],
    mut signals: Signals,
    app: Arc<App>,
    runtime: Runtime,
    models: Vec<ModelConfig>,
) -> Result<(), ServeError> {
    let pulse = Arc::clone(&app);
    tokio::spawn(async move { pulse.lifecycle.keep_beating().await });
    let files = surroundings::open_files().saturating_sub(RESERVED_FILES);
    let terms = |max_connections: usize| Terms {
        lifecycle: Arc::clone(&app.lifecycle),
        max_age: Duration::from_millis(app.server.max_connection_age_ms),
        max_connections: max_connections.max(16),
        makes_room: false,
        tells_peer: false,
    };
    // A gRPC connection carries many calls at a time; HTTP/1 takes one for each.
    let http = connection::serve(clients, client_router(Arc::clone(&app)), terms(files - files / 4));
    let grpc = connection::serve(grpc_clients, grpc::router(Arc::clone(&app)), terms(files / 4));
    let serving = tokio::spawn(async move {
        tokio::join!(http, grpc);
    });

    let mut load = start_loading(Arc::clone(&app), runtime, models)?;
    let mut loaded = false;
    let delay = loop {
        tokio::select! {
            result = &mut load, if !loaded => {
                result.map_err(|_| std::io::Error::other("loading panicked"))??;
                loaded = true;
                tracing::info!(seconds = app.lifecycle.started().elapsed().as_secs_f64(), "ready");
            }
            _ = signals.terminate.recv() => break Duration::from_millis(app.server.drain_delay_ms),
            _ = signals.interrupt.recv() => break Duration::ZERO,
        }
    };
    tokio::select! {
        result = drain(&app, serving, delay) => result,
        result = second_signal() => {
            result?;
            tracing::warn!("a second signal ends the process at once");
            Err(ServeError::SecondSignal)
        }
    }
}

async fn second_signal() -> Result<(), std::io::Error> {
    tokio::time::sleep(SAME_SIGNAL).await;
    let mut signals = Signals::listen()?;
    tokio::select! {
        _ = signals.terminate.recv() => {}
        _ = signals.interrupt.recv() => {}
    }
    Ok(())
}

async fn drain(app: &App, serving: tokio::task::JoinHandle<()>, delay: Duration) -> Result<(), ServeError> {
    tracing::info!(delay_ms = delay.as_millis(), "stopping: not ready any more, still serving");
    app.lifecycle.enter(Phase::Draining);
    tokio::time::sleep(delay).await;
    tracing::info!("stopping: closing the listeners, accepted requests finish");
    app.lifecycle.enter(Phase::Closing);
    let timeout = Duration::from_millis(app.server.drain_timeout_ms);
    if tokio::time::timeout(timeout, serving).await.is_err() {
        return Err(ServeError::DrainTimeout(timeout));
    }
    tracing::info!("stopped");
    Ok(())
}

/// Moving memory takes a twentieth of the time until it is done.
const HUGE_PAGES_REST: u32 = 19;

/// Loads on a thread of its own: it gets as nice as a model's, and one of the loop's threads would have to decode so later.
fn start_loading(
    app: Arc<App>,
    runtime: Runtime,
    models: Vec<ModelConfig>,
) -> Result<oneshot::Receiver<Result<(), ServeError>>, std::io::Error> {
    let (tell, loaded) = oneshot::channel();
    let serving = runtime::Handle::current();
    std::thread::Builder::new().name("loading".to_owned()).spawn(move || {
        let _in_loop = serving.enter();
        // Nobody listens any more where the server stops already.
        let _ = tell.send(load_all(&app, &runtime, &models));
        // No start waits for it, and no run that it would hold up counts as slow.
        let (began, bytes) = (Instant::now(), make_huge(HUGE_PAGES_REST));
        tracing::debug!(bytes, seconds = began.elapsed().as_secs_f64(), "memory is in huge pages");
    })?;
    Ok(loaded)
}

fn load_all(app: &App, runtime: &Runtime, models: &[ModelConfig]) -> Result<(), ServeError> {
    // ONNX Runtime's own threads take after this one.
    threads::start_after_others();
    let instances: usize = models.iter().map(|model| model.instances as usize).sum();
    let around = Surroundings {
        runtime,
        threads: (app.threads / instances.max(1)).max(1),
        // Spinning takes cores from whoever else could use them.
        spinning: false,
        max_pixels: app.server.max_pixels,
        observer: &app.observer,
    };
    for config in models {
        let model =
            Model::load(config, &around).map_err(|source| ServeError::Load { model: config.name.clone(), source })?;
        app.registry.insert(model);
    }
    Ok(())
}
