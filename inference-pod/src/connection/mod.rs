//! Connections: one accept loop, and what a connection is told when it gets old or the process stops.
//!
//! Nothing accepted is lost. While the process drains, HTTP/1 connections are told to close with each answer and HTTP/2
//! connections by GOAWAY, and all of them are still served. When the listener closes, first the kernel is made to refuse
//! new connections, then the ones it has already taken are accepted. A connection is closed only after it has been idle
//! for a moment, and what its client was still sending is read before the socket goes, for closing a socket with unread
//! bytes resets it, and the client would lose an answer already sent.
//!
//! How long a connection may be silent is judged here and not by hyper, whose one time-out for headers cannot tell a client
//! that stops in the middle of a request from one that keeps its connection for the next.

mod lingering;
mod listener;
mod untaken;

use std::{
    net::SocketAddr,
    sync::{
        Arc, Weak,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use axum::{Extension, Router, body::Body};
use hyper::{
    Request, StatusCode, Version,
    body::Incoming,
    header::{CONNECTION, CONTENT_TYPE, HeaderValue},
};
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::conn::auto,
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream},
    sync::{Notify, watch},
    task::JoinSet,
    time::{Instant, sleep, sleep_until},
};
use tower::ServiceExt;

pub use self::listener::listen;
use self::{lingering::Lingering, untaken::Untaken};
use crate::{
    leftover::Leftover,
    lifecycle::{Lifecycle, Phase},
};

/// How long clients are waited for.
#[derive(Debug, Clone, Copy)]
struct Patience {
    /// The first request must have begun by then, and the headers of each be complete.
    headers: Duration,
    /// An HTTP/1 connection without a request is closed after that.
    idle: Duration,
    /// What a client is still sending is read before its socket is closed, until it pauses for so long.
    pause: Duration,
    /// And no longer than this.
    linger: Duration,
    /// A client that is to leave and takes nothing of what it is sent for so long is left.
    unread: Duration,
    /// One that is not to leave, and takes nothing of a large answer, after so long.
    untaken: Duration,
    /// And one that is still there so long after it was told and its last request ended, whatever it takes: on HTTP/2 it may leave
    /// its answers where they are and go on saying other things.
    leaving: Duration,
}

const PATIENCE: Patience = Patience {
    // Long for a slow link, short for somebody who holds connections open.
    headers: Duration::from_secs(30),
    // Longer than common proxies and clients keep a connection (60 to 90 s): the one who closes should be the one who
    // would use it next, else a request crosses the close and is lost.
    idle: Duration::from_secs(120),
    pause: Duration::from_secs(2),
    linger: Duration::from_secs(30),
    // Half of what draining may take, unless that is set.
    unread: Duration::from_secs(15),
    // The kernel makes room by large steps, so one that reads slowly is seen to take nothing in between.
    untaken: Duration::from_secs(30),
    // Enough for a large answer on a slow link.
    leaving: Duration::from_secs(600),
};

/// Once the listener is closed, a connection that has been idle for so long is closed too.
const IDLE_BEFORE_CLOSE: Duration = Duration::from_millis(500);

/// Tensors are large: few frames, and room for several of them, so that a sender need not wait for us between them. What
/// a connection may send ahead of its requests' admission is bounded by this too.
const FRAME_BYTES: u32 = 256 << 10;
const WINDOW_BYTES: u32 = 4 << 20;

/// The system is out of something; trying again at once would only fill the log.
const PAUSE_AFTER_ACCEPT_ERROR: Duration = Duration::from_secs(1);

/// Share of the age that is left to chance, so that connections opened together are not closed together.
const AGE_JITTER: f64 = 0.1;

/// What connections of a port may do.
#[derive(Clone)]
pub struct Terms {
    /// What the process is doing; connections leave with it.
    pub lifecycle: Arc<Lifecycle>,
    /// A connection is told to close after about that long; zero never.
    pub max_age: Duration,
    /// Connections at a time. Further ones wait in the kernel, so that there are files left for everything else.
    pub max_connections: usize,
    /// Whether none ever waits: the one that has rested longest is closed for it.
    pub makes_room: bool,
    /// Whether handlers are told where a connection comes from ([`Peer`]).
    pub tells_peer: bool,
}

/// Where a connection comes from.
#[derive(Debug, Clone, Copy)]
pub struct Peer(pub SocketAddr);

/// Serves connections until the process closes its listeners, and then until each connection has ended.
pub async fn serve(listener: TcpListener, router: Router, terms: Terms) {
    let mut phases = terms.lifecycle.subscribe();
    let mut connections = JoinSet::new();
    let mut open: Vec<Weak<Shared>> = Vec::new();
    loop {
        let has_room = connections.len() < terms.max_connections;
        if !has_room && terms.makes_room {
            let resting = open.iter().filter_map(Weak::upgrade).filter(|one| one.is_idle());
            if let Some(longest) = resting.min_by_key(|one| one.still_at(Duration::ZERO)) {
                longest.make_room.notify_one();
            }
        }
        tokio::select! {
            accepted = listener.accept(), if has_room => match accepted {
                Ok((stream, _)) => {
                    let shared = Arc::new(Shared::new());
                    if terms.makes_room {
                        if open.len() >= 2 * terms.max_connections {
                            open.retain(|one| one.strong_count() > 0);
                        }
                        open.push(Arc::downgrade(&shared));
                    }
                    connections.spawn(connection(stream, router.clone(), terms.clone(), shared));
                }
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a connection");
                    sleep(PAUSE_AFTER_ACCEPT_ERROR).await;
                }
            },
            Some(_) = connections.join_next() => {}
            // All of them are busy, and may not be for long.
            () = sleep(IDLE_BEFORE_CLOSE), if !has_room && terms.makes_room => {}
            () = reached(&mut phases, Phase::Closing) => break,
        }
    }
    for stream in listener::close(listener) {
        connections.spawn(connection(stream, router.clone(), terms.clone(), Arc::new(Shared::new())));
    }
    while connections.join_next().await.is_some() {}
}

async fn reached(phases: &mut watch::Receiver<Phase>, phase: Phase) {
    // The sender lives as long as the process; were it gone, the process would be ending.
    let _ = phases.wait_for(|current| *current >= phase).await;
}

/// What a connection's task and its requests tell each other.
struct Shared {
    opened: Instant,
    /// Requests under way.
    requests: AtomicUsize,
    /// Milliseconds from `opened` to the last time that a request began or ended, that something could be written, or that the
    /// client was told to leave.
    moved: AtomicU64,
    /// The same to the last time that a request ended.
    ended: AtomicU64,
    /// The same to the first bytes that came without a request under way; 0 where none came since one was.
    heard: AtomicU64,
    is_http2: AtomicBool,
    /// A request has begun.
    is_used: AtomicBool,
    /// Something is to be looked at now: an HTTP/2 connection should leave whose first request came when all others knew already, or
    /// there is a large answer.
    news: Notify,
    /// The connection is old: its next answer asks the client to open another.
    is_old: AtomicBool,
    /// Another is to have its place.
    make_room: Notify,
    /// Answers that the client has not taken all of.
    untaken: AtomicUsize,
}

impl Shared {
    fn new() -> Self {
        Self {
            opened: Instant::now(),
            requests: AtomicUsize::new(0),
            moved: AtomicU64::new(0),
            ended: AtomicU64::new(0),
            heard: AtomicU64::new(0),
            is_http2: AtomicBool::new(false),
            is_used: AtomicBool::new(false),
            news: Notify::new(),
            is_old: AtomicBool::new(false),
            make_room: Notify::new(),
            untaken: AtomicUsize::new(0),
        }
    }

    fn elapsed(&self) -> u64 {
        u64::try_from(self.opened.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    fn moves(&self) {
        self.moved.store(self.elapsed(), Ordering::Release);
    }

    /// Bytes have come: where no request is under way, the next one has begun.
    fn hears(&self) {
        if self.requests.load(Ordering::Acquire) == 0 && self.heard.load(Ordering::Acquire) == 0 {
            self.heard.store(self.elapsed().max(1), Ordering::Release);
        }
    }

    /// When a request ended last.
    fn last_ended(&self) -> Instant {
        self.opened + Duration::from_millis(self.ended.load(Ordering::Acquire))
    }

    /// When it will not have moved for that long, if nothing comes.
    fn still_at(&self, time: Duration) -> Instant {
        self.opened + Duration::from_millis(self.moved.load(Ordering::Acquire)) + time
    }

    fn is_still(&self, time: Duration) -> bool {
        self.is_at_rest() && self.still_at(time) <= Instant::now()
    }

    /// Whether a large answer is held for the client.
    fn holds(&self) -> bool {
        self.untaken.load(Ordering::Acquire) > 0
    }

    /// Nothing is under way in either direction, so that nothing is lost by its end.
    fn is_idle(&self) -> bool {
        self.is_at_rest() && !self.holds()
    }

    /// No request is under way.
    fn is_at_rest(&self) -> bool {
        self.requests.load(Ordering::Acquire) == 0
    }

    /// When its client has been waited for long enough, if nothing comes; `None` while requests are under way, and on
    /// HTTP/2, where a connection says more than requests: it ends by its age.
    fn waited_until(&self, patience: &Patience) -> Option<Instant> {
        let after = |milliseconds: u64, wait| Some(self.opened + Duration::from_millis(milliseconds) + wait);
        let heard = self.heard.load(Ordering::Acquire);
        if !self.is_used.load(Ordering::Acquire) {
            after(0, patience.headers)
        } else if self.is_http2.load(Ordering::Relaxed) || !self.is_at_rest() {
            None
        } else if heard > 0 {
            after(heard, patience.headers)
        } else {
            after(self.moved.load(Ordering::Acquire), patience.idle)
        }
    }
}

/// A request under way; ends with its future, however that ends.
struct Underway(Arc<Shared>);

impl Underway {
    fn begin(shared: &Arc<Shared>) -> Self {
        shared.requests.fetch_add(1, Ordering::AcqRel);
        shared.is_used.store(true, Ordering::Release);
        shared.heard.store(0, Ordering::Release);
        shared.moves();
        Self(Arc::clone(shared))
    }
}

impl Drop for Underway {
    fn drop(&mut self) {
        self.0.moves();
        self.0.ended.store(self.0.elapsed(), Ordering::Release);
        self.0.requests.fetch_sub(1, Ordering::AcqRel);
    }
}

async fn connection(stream: TcpStream, router: Router, terms: Terms, shared: Arc<Shared>) {
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%error, "cannot switch delays off");
    }
    let router = match stream.peer_addr() {
        Ok(address) if terms.tells_peer => router.layer(Extension(Peer(address))),
        _ => router,
    };
    converse(stream, router, terms, PATIENCE, shared).await;
}

async fn converse<S>(stream: S, router: Router, terms: Terms, patience: Patience, shared: Arc<Shared>)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let service = {
        let (shared, lifecycle) = (Arc::clone(&shared), Arc::clone(&terms.lifecycle));
        hyper::service::service_fn(move |request| {
            answer(request, router.clone(), Arc::clone(&lifecycle), Underway::begin(&shared))
        })
    };
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new()).header_read_timeout(None);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(1024)
        .max_frame_size(FRAME_BYTES)
        .initial_stream_window_size(WINDOW_BYTES)
        .initial_connection_window_size(WINDOW_BYTES);
    let lifecycle = Arc::clone(&terms.lifecycle);
    let stream = Lingering::new(stream, Arc::clone(&shared), patience, lifecycle);
    let served = builder.serve_connection(TokioIo::new(stream), service);
    let mut served = std::pin::pin!(served);

    let mut phases = terms.lifecycle.subscribe();
    let mut old = std::pin::pin!(sleep(age(terms.max_age)));
    let mut phase = *phases.borrow_and_update();
    // HTTP/2 is told once; HTTP/1 with each answer, and once where it is silent.
    let (mut leaves, mut told) = (false, None);
    let mut look = Instant::now() + patience.headers;
    loop {
        let leaving = phase >= Phase::Draining || shared.is_old.load(Ordering::Relaxed);
        leaves |= leaving && shared.is_http2.load(Ordering::Relaxed);
        if leaves && told.is_none() {
            told = Some(Instant::now());
            shared.moves();
            served.as_mut().graceful_shutdown();
        }
        let latest = told.unwrap_or(shared.opened).max(shared.last_ended()) + patience.leaving;
        tokio::select! {
            result = served.as_mut() => {
                if let Err(error) = result {
                    tracing::debug!(%error, "a connection ended early");
                }
                return;
            }
            changed = phases.changed() => {
                if changed.is_err() {
                    return;
                }
                phase = *phases.borrow_and_update();
            }
            () = shared.news.notified() => {}
            () = shared.make_room.notified() => {
                if shared.is_idle() {
                    return;
                }
            }
            () = sleep_until(shared.still_at(patience.untaken).max(soon())), if shared.holds() => {
                if shared.holds() && shared.still_at(patience.untaken) <= Instant::now() {
                    tracing::debug!("a client takes nothing of its answer and is left");
                    return;
                }
            }
            () = sleep_until(look), if told.is_none() => {
                let now = Instant::now();
                let end = shared.waited_until(&patience);
                if end.is_some_and(|end| end <= now) {
                    // Whoever has not said anything yet, or a preface only, has nothing to lose.
                    if !shared.is_used.load(Ordering::Acquire) {
                        return;
                    }
                    leaves = true;
                }
                // No later than what may begin in between would have to be complete.
                look = end.unwrap_or(now + patience.headers).min(now + patience.headers);
            }
            () = old.as_mut(), if !shared.is_old.load(Ordering::Relaxed) => shared.is_old.store(true, Ordering::Relaxed),
            () = sleep_until(shared.still_at(IDLE_BEFORE_CLOSE).max(soon())), if phase == Phase::Closing && told.is_none() => {
                leaves = shared.is_still(IDLE_BEFORE_CLOSE);
            }
            // The last answers may wait for a client that does not take them.
            () = sleep_until(shared.still_at(patience.unread).min(latest).max(soon())), if told.is_some() => {
                if shared.is_still(patience.unread) || (latest <= Instant::now() && shared.is_at_rest()) {
                    return;
                }
            }
        }
    }
}

/// No look at a connection follows the last one sooner.
fn soon() -> Instant {
    Instant::now() + Duration::from_millis(20)
}

fn age(max_age: Duration) -> Duration {
    if max_age.is_zero() {
        return Duration::from_secs(u64::from(u32::MAX));
    }
    max_age.mul_f64(1.0 + AGE_JITTER * (fastrand::f64() - 0.5) * 2.0)
}

fn is_grpc(request: &Request<Incoming>) -> bool {
    request.headers().get(CONTENT_TYPE).is_some_and(|kind| kind.as_bytes().starts_with(b"application/grpc"))
}

async fn answer(
    request: Request<Incoming>,
    router: Router,
    lifecycle: Arc<Lifecycle>,
    underway: Underway,
) -> Result<hyper::Response<Body>, std::convert::Infallible> {
    let shared = &underway.0;
    let is_http2 = request.version() == Version::HTTP_2;
    shared.is_http2.store(is_http2, Ordering::Relaxed);
    // Callers of gRPC take an answer while they still send, and their messages are long.
    let takes_early = is_http2 && is_grpc(&request);
    let (request, leftover) = Leftover::watch(request);
    let mut response = router.oneshot(request.map(Body::new)).await?;
    // Whoever waited for the answer until it was too late waits no longer for what is left of the question.
    let is_late = response.status() == StatusCode::GATEWAY_TIMEOUT;
    let is_whole = leftover.is_none() || (!takes_early && !is_late && leftover.read().await);
    let ends = !is_http2 && !is_whole;
    let leaving = ends || lifecycle.phase() >= Phase::Draining || shared.is_old.load(Ordering::Relaxed);
    if leaving && is_http2 {
        shared.news.notify_one();
    } else if leaving {
        response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    }
    let response = Untaken::watch(response, shared);
    drop(underway);
    Ok(response)
}

#[cfg(test)]
mod tests;
