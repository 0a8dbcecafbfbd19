//! `/health`, `/health/detailed`, `/ready` and `/metrics`.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::Arc,
    time::Instant,
};

use axum::{
    Router,
    extract::State,
    http::{HeaderMap, StatusCode, header},
    response::{IntoResponse, Response},
    routing::get,
};
use crds::exposition::accepts_openmetrics;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::TcpListener;

use crate::{
    health::{self, Seen, Status},
    kinds::{Kinds, OptionalKind},
    leader::Leadership,
    memory,
    metrics::Metrics,
    observe::Sources,
    waiting::Waiting,
};

/// What is shown.
#[derive(Clone)]
pub struct Admin {
    /// When this process began.
    pub began: Instant,
    /// The caches, which must have been filled.
    pub sources: Sources,
    /// What the cluster serves.
    pub kinds: Kinds,
    /// Whether this process may write.
    pub leadership: Leadership,
    /// What waits for a reconcile.
    pub waiting: Arc<Waiting>,
    /// What is counted.
    pub metrics: Arc<Metrics>,
}

/// Listens. On 0.0.0.0 it takes what comes to any address, of IPv6 too where the system has that: a pod of a cluster with IPv6 may have
/// no other.
///
/// # Errors
/// What the system said, for example that the port is taken.
pub fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    if address.ip() == IpAddr::from(Ipv4Addr::UNSPECIFIED) {
        let any = SocketAddr::from((Ipv6Addr::UNSPECIFIED, address.port()));
        if let Ok(listener) = listen_on(any) {
            return Ok(listener);
        }
    }
    listen_on(address)
}

fn listen_on(address: SocketAddr) -> io::Result<TcpListener> {
    const BACKLOG: i32 = 1024;
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    if address.is_ipv6() {
        socket.set_only_v6(false)?;
    }
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    TcpListener::from_std(socket.into())
}

/// The routes.
pub fn router(admin: Admin) -> Router {
    Router::new()
        .route("/health", get(async || "ok\n"))
        .route("/health/detailed", get(detailed))
        .route("/ready", get(ready))
        .route("/metrics", get(metrics))
        .with_state(admin)
}

/// 200 once everything that was there at the start has been read; a standby is ready too.
async fn ready(State(admin): State<Admin>) -> Response {
    if admin.sources.are_ready() {
        return "ok\n".into_response();
    }
    (StatusCode::SERVICE_UNAVAILABLE, "the objects of the cluster have not been read yet\n").into_response()
}

/// Health with the checks that it is made of; 503 where one of them is an error. For people: what restarts the operator is
/// `/health`, since few of these errors would be cured by that.
async fn detailed(State(admin): State<Admin>) -> Response {
    let health = health::judge(&admin.seen(Instant::now()), crate::clock::now());
    let code = if health.status == Status::Error { StatusCode::SERVICE_UNAVAILABLE } else { StatusCode::OK };
    // Made of texts and numbers, it can always be written.
    let body = serde_json::to_string_pretty(&health).unwrap_or_default() + "\n";
    (code, [(header::CONTENT_TYPE, "application/json")], body).into_response()
}

/// OpenMetrics where the scraper takes it, else the older text form.
async fn metrics(State(admin): State<Admin>, headers: HeaderMap) -> Response {
    let accept: Vec<&str> = headers.get_all(header::ACCEPT).iter().filter_map(|value| value.to_str().ok()).collect();
    let (kind, text) = if accepts_openmetrics(&accept) {
        ("application/openmetrics-text; version=1.0.0; charset=utf-8", admin.metrics.openmetrics_text())
    } else {
        ("text/plain; version=0.0.4; charset=utf-8", admin.metrics.prometheus_text())
    };
    ([(header::CONTENT_TYPE, kind)], text).into_response()
}

impl Admin {
    fn seen(&self, now: Instant) -> Seen {
        let recent = self.metrics.recent();
        let failing = recent.failing_watches(now).into_iter();
        Seen {
            leads: self.leadership.check().is_ok(),
            is_filled: self.sources.are_ready(),
            uptime: now.duration_since(self.began),
            failing_watches: failing
                .map(|(kind, failing)| (kind, (now.duration_since(failing.since), failing.times)))
                .collect(),
            reconciles: recent.reconciles(now),
            waiting: self.waiting.seen(now),
            memory: memory::read(),
            missing_crds: self.kinds.missing().into_iter().map(OptionalKind::definition).collect(),
        }
    }
}
