//! Puts the parts together and ends them in order.

use std::{
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use kube::{
    Client, Config,
    runtime::events::{Recorder, Reporter},
};
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::{mpsc, watch},
    time,
};

use crate::{
    admin::{self, Admin},
    apply::Writer,
    autoscalers::Autoscalers,
    build::Images,
    cache::{Audience, Cache, Scope},
    causes::chain,
    controller::{self, Context},
    info::Infos,
    kinds::{Kinds, OptionalKind},
    leader::{Candidate, Leadership},
    logging::LogLevel,
    metrics::Metrics,
    names, observability,
    observe::{self, Sources},
    scaling::{
        Outcomes,
        scaler::{Common, Scaler},
    },
    settings::Settings,
    shared::Shared,
    stuck::Stuck,
    traces::{TraceError, Traces},
    waiting::Waiting,
};

/// Changes that wait to be looked at. When it is full the watches wait.
const CHANGES: usize = 4096;

/// Reconciles under way get this long to end before the Lease is given up.
const STOP_TIMEOUT: Duration = Duration::from_secs(5);

/// Why the operator ends.
#[derive(Debug, thiserror::Error)]
pub enum OperatorError {
    /// No cluster.
    #[error("no access to a cluster")]
    Client(#[source] Box<kube::Error>),
    /// The address is taken, for example.
    #[error("cannot listen on {0}")]
    Listen(SocketAddr, #[source] std::io::Error),
    /// No traces.
    #[error("no traces")]
    Traces(#[from] TraceError),
    /// A fault of the operator's own.
    #[error("the controller has ended by itself{}", .0.as_ref().map(|why| format!(": {why}")).unwrap_or_default())]
    Ended(Option<String>),
    /// No signals.
    #[error("cannot wait for signals")]
    Signals(#[source] std::io::Error),
}

/// A client that tries nothing again by itself: who may write is asked right before each request, and a client that waits and sends a
/// write again would do so long after the answer.
async fn client() -> Result<Client, kube::Error> {
    let mut config = Config::infer().await.map_err(kube::Error::InferConfig)?;
    config.default_retry = false;
    Client::try_from(config)
}

/// Runs until SIGTERM or SIGINT, with a log whose level can be changed.
///
/// # Errors
/// [`OperatorError`] where it cannot begin.
pub async fn run(settings: Settings, level: Arc<LogLevel>) -> Result<(), OperatorError> {
    let began = Instant::now();
    let client = client().await.map_err(|error| OperatorError::Client(Box::new(error)))?;
    let listener = admin::listen(settings.listen).map_err(|error| OperatorError::Listen(settings.listen, error))?;
    let mut terminate = signal(SignalKind::terminate()).map_err(OperatorError::Signals)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(OperatorError::Signals)?;

    let scope = Scope::new(client.clone(), settings.only_namespace());
    let metrics = Arc::new(Metrics::default());
    let traces = settings.traces().map(|to| Traces::new(&to, Arc::clone(&metrics))).transpose()?;
    let leadership = Leadership::default();
    let (changed, changes) = mpsc::channel(CHANGES);
    let kinds = Kinds::new(client.clone(), Arc::clone(&metrics));
    let sources = Sources {
        config_maps: Cache::by(names::MODEL_LABEL).packed(),
        deployments: Cache::by(names::MODEL_LABEL).packed(),
        services: Cache::by(names::MODEL_LABEL).packed(),
        autoscalers: Autoscalers::default(),
        scaled_objects: Cache::of_optional(names::MODEL_LABEL),
        kinds: kinds.clone(),
        pods: Cache::by(names::MODEL_LABEL).trimmed(observe::trim),
        infos: Infos::new(changed.clone()),
        stuck: Stuck::new(client.clone(), changed.clone()),
        shared: Shared::new(kinds.clone()),
        scaling: Outcomes::default(),
    };
    let audience = Audience::Models(changed.clone());
    tokio::spawn(sources.config_maps.clone().follow(scope.clone(), audience.clone(), Arc::clone(&metrics)));
    tokio::spawn(sources.deployments.clone().follow(scope.clone(), audience.clone(), Arc::clone(&metrics)));
    tokio::spawn(sources.services.clone().follow(scope.clone(), audience.clone(), Arc::clone(&metrics)));
    tokio::spawn(sources.pods.clone().follow(scope.clone(), audience.clone(), Arc::clone(&metrics)));
    tokio::spawn(sources.autoscalers.clone().follow(scope.clone(), changed.clone(), Arc::clone(&metrics)));
    tokio::spawn(kinds.clone().follow());
    let scaled_objects = sources.scaled_objects.clone();
    tokio::spawn(kinds.clone().follow_objects(OptionalKind::ScaledObject, scaled_objects, scope.clone(), audience));
    sources.shared.follow(&scope);
    tokio::spawn(tell_leadership(leadership.subscribe(), Arc::clone(&metrics)));
    let waiting = Arc::new(Waiting::default());
    let routes = admin::router(Admin {
        began,
        sources: sources.clone(),
        kinds,
        leadership: leadership.clone(),
        waiting: Arc::clone(&waiting),
        metrics: Arc::clone(&metrics),
    });
    let routes = routes.merge(observability::router(level)).into_make_service_with_connect_info::<SocketAddr>();
    tokio::spawn(async move { axum::serve(listener, routes).await });

    let (stop, stopped) = watch::channel(false);
    let (release, released) = watch::channel(false);
    let candidate = Candidate::new(
        client.clone(),
        &settings.namespace,
        &settings.lease_name,
        &settings.identity,
        leadership.clone(),
    );
    let candidate = tokio::spawn(candidate.run(released));
    let reporter = Reporter { controller: "ortolan".to_owned(), instance: Some(settings.identity.clone()) };
    let writer = Arc::new(Writer::new(client.clone(), leadership.clone(), Arc::clone(&metrics)));
    let scaler = Scaler::new(Common {
        pods: sources.pods.clone(),
        writer: Arc::clone(&writer),
        leadership: leadership.clone(),
        metrics: Arc::clone(&metrics),
        changed: changed.clone(),
        outcomes: sources.scaling.clone(),
    });
    let prometheus = settings.prometheus();
    let context = Arc::new(Context {
        writer,
        scaler,
        recorder: Recorder::new(client, reporter),
        images: Images {
            cpu: settings.pod_image,
            cuda: settings.pod_image_cuda,
            pull_policy: settings.pod_image_pull_policy,
        },
        prometheus,
        monitoring_labels: settings.monitoring_labels,
        failures: std::sync::Mutex::default(),
        sources,
        leadership,
        metrics,
        traces: traces.clone(),
        waiting,
        changed,
    });
    let mut controller = tokio::spawn(async move { controller::run(&scope, context, changes, stopped).await });
    tracing::info!(version = env!("CARGO_PKG_VERSION"), identity = settings.identity, "the operator has started");

    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
        // Whoever leads and does nothing would keep the others from it.
        ended = &mut controller => {
            release.send_replace(true);
            let _ = candidate.await;
            return Err(OperatorError::Ended(ended.err().map(|error| error.to_string())));
        }
    }
    tracing::info!("the operator stops: no new reconcile begins");
    stop.send_replace(true);
    if time::timeout(STOP_TIMEOUT, controller).await.is_err() {
        tracing::warn!("a reconcile did not end within {STOP_TIMEOUT:?}");
    }
    // Only now, so that the next one does not write beside us.
    release.send_replace(true);
    // Its requests have time-outs of their own.
    let _ = candidate.await;
    // After the Lease, so that the next one need not wait for a collector.
    if let Some(traces) = traces
        && let Err(error) = traces.end().await
    {
        tracing::warn!(error = chain(&error), "the last traces are not sent");
    }
    Ok(())
}

async fn tell_leadership(mut leading: watch::Receiver<bool>, metrics: Arc<Metrics>) {
    while leading.changed().await.is_ok() {
        let leads = *leading.borrow_and_update();
        metrics.leads(leads);
        tracing::info!(leads, "{}", if leads { "this operator leads" } else { "this operator stands by" });
    }
}
