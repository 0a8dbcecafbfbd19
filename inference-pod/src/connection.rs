//! Connections: one accept loop, and what a connection is told when it gets old or the process stops.
//!
//! Nothing accepted is lost. While the process drains, HTTP/1 connections are told to close with each answer and HTTP/2
//! connections by GOAWAY, and all of them are still served. When the listener closes, first the kernel is made to refuse
//! new connections, then the ones it has already taken are accepted. A connection is closed only after it has been idle
//! for a moment, and what its client was still sending is read before the socket goes, for closing a socket with unread
//! bytes resets it, and the client would lose an answer already sent.

use std::{
    io,
    net::SocketAddr,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    task::{Context, Poll, ready},
    time::Duration,
};

use axum::{Extension, Router, body::Body};
use hyper::{
    Request, Version,
    body::Incoming,
    header::{CONNECTION, HeaderValue},
};
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::conn::auto,
};
use socket2::{SockFilter, SockRef, Socket};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpStream},
    sync::{Notify, watch},
    task::JoinSet,
    time::{Instant, Sleep, sleep, sleep_until},
};
use tower::ServiceExt;

use crate::{
    leftover::Leftover,
    lifecycle::{Lifecycle, Phase},
};

/// The first request must have begun by then, and the headers of each be complete; long for a slow link, short for somebody
/// who holds connections open.
const HEADER_TIMEOUT: Duration = Duration::from_secs(30);

/// Once the listener is closed, a connection that has been idle for so long is closed too.
const IDLE_BEFORE_CLOSE: Duration = Duration::from_millis(500);

/// What a client is still sending is read for no longer than this before its socket is closed.
const LINGER: Duration = Duration::from_secs(2);

/// Tensors are large: few frames, and room for several of them, so that a sender need not wait for us between them. What
/// a connection may send ahead of its requests' admission is bounded by this too.
const FRAME_BYTES: u32 = 256 << 10;
const WINDOW_BYTES: u32 = 4 << 20;

/// Connections that the kernel holds while we are busy.
const BACKLOG: i32 = 1024;

/// The system is out of something; trying again at once would only fill the log.
const PAUSE_AFTER_ACCEPT_ERROR: Duration = Duration::from_secs(1);

/// Share of the age that is left to chance, so that connections opened together are not closed together.
const AGE_JITTER: f64 = 0.1;

/// Opens a listening socket.
///
/// # Errors
/// What the system said, for example that the port is taken.
pub fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let domain = socket2::Domain::for_address(address);
    let socket = Socket::new(domain, socket2::Type::STREAM, Some(socket2::Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    TcpListener::from_std(socket.into())
}

/// What connections of a port may do.
#[derive(Clone)]
pub struct Terms {
    /// What the process is doing; connections leave with it.
    pub lifecycle: Arc<Lifecycle>,
    /// A connection is told to close after about that long; zero never.
    pub max_age: Duration,
    /// Connections at a time. Further ones wait in the kernel, so that there are files left for everything else.
    pub max_connections: usize,
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
    loop {
        let has_room = connections.len() < terms.max_connections;
        tokio::select! {
            accepted = listener.accept(), if has_room => match accepted {
                Ok((stream, _)) => {
                    connections.spawn(connection(stream, router.clone(), terms.clone()));
                }
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a connection");
                    sleep(PAUSE_AFTER_ACCEPT_ERROR).await;
                }
            },
            Some(_) = connections.join_next() => {}
            () = reached(&mut phases, Phase::Closing) => break,
        }
    }
    for stream in close(listener) {
        connections.spawn(connection(stream, router.clone(), terms.clone()));
    }
    while connections.join_next().await.is_some() {}
}

async fn reached(phases: &mut watch::Receiver<Phase>, phase: Phase) {
    // The sender lives as long as the process; were it gone, the process would be ending.
    let _ = phases.wait_for(|current| *current >= phase).await;
}

/// Closes a listener without losing the connections that the kernel has already accepted for it.
fn close(listener: TcpListener) -> Vec<TcpStream> {
    /// Classic BPF for «return 0»: every packet to the listener is dropped, so a new client tries again and meets a
    /// closed port, while connections already established are not concerned.
    const DROP_ALL: [SockFilter; 1] = [SockFilter::new(0x06, 0, 0, 0)];
    if let Err(error) = SockRef::from(&listener).attach_filter(&DROP_ALL) {
        tracing::debug!(%error, "cannot stop new connections before the listener closes");
    }
    let mut accepted = Vec::new();
    if let Ok(listener) = listener.into_std() {
        while let Ok((stream, _)) = listener.accept() {
            let stream = stream.set_nonblocking(true).and_then(|()| TcpStream::from_std(stream));
            accepted.extend(stream);
        }
    }
    accepted
}

/// What a connection's task and its requests tell each other.
struct Shared {
    opened: Instant,
    /// Requests under way.
    requests: AtomicUsize,
    /// Milliseconds from `opened` to the last time that a request began or ended.
    moved: AtomicU64,
    is_http2: AtomicBool,
    /// A request has begun.
    is_used: AtomicBool,
    /// An HTTP/2 connection learns here that it should leave, where its first request comes when all others know already.
    leave: Notify,
    /// The connection is old: its next answer asks the client to open another.
    is_old: AtomicBool,
}

impl Shared {
    fn moves(&self) {
        let elapsed = u64::try_from(self.opened.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.moved.store(elapsed, Ordering::Release);
    }

    /// When it will have been idle long enough, if nothing comes.
    fn idle_at(&self) -> Instant {
        self.opened + Duration::from_millis(self.moved.load(Ordering::Acquire)) + IDLE_BEFORE_CLOSE
    }

    fn is_idle(&self) -> bool {
        self.requests.load(Ordering::Acquire) == 0 && self.idle_at() <= Instant::now()
    }
}

/// A request under way; ends with its future, however that ends.
struct Underway(Arc<Shared>);

impl Underway {
    fn begin(shared: &Arc<Shared>) -> Self {
        shared.requests.fetch_add(1, Ordering::AcqRel);
        shared.is_used.store(true, Ordering::Release);
        shared.moves();
        Self(Arc::clone(shared))
    }
}

impl Drop for Underway {
    fn drop(&mut self) {
        self.0.moves();
        self.0.requests.fetch_sub(1, Ordering::AcqRel);
    }
}

async fn connection(stream: TcpStream, router: Router, terms: Terms) {
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%error, "cannot switch delays off");
    }
    let router = match stream.peer_addr() {
        Ok(address) if terms.tells_peer => router.layer(Extension(Peer(address))),
        _ => router,
    };
    let shared = Arc::new(Shared {
        opened: Instant::now(),
        requests: AtomicUsize::new(0),
        moved: AtomicU64::new(0),
        is_http2: AtomicBool::new(false),
        is_used: AtomicBool::new(false),
        leave: Notify::new(),
        is_old: AtomicBool::new(false),
    });
    let service = {
        let (shared, lifecycle) = (Arc::clone(&shared), Arc::clone(&terms.lifecycle));
        hyper::service::service_fn(move |request| {
            answer(request, router.clone(), Arc::clone(&lifecycle), Underway::begin(&shared))
        })
    };
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new()).header_read_timeout(HEADER_TIMEOUT);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(1024)
        .max_frame_size(FRAME_BYTES)
        .initial_stream_window_size(WINDOW_BYTES)
        .initial_connection_window_size(WINDOW_BYTES);
    let served = builder.serve_connection(TokioIo::new(Lingering::new(stream)), service);
    let mut served = std::pin::pin!(served);

    let mut phases = terms.lifecycle.subscribe();
    let mut old = std::pin::pin!(sleep(age(terms.max_age)));
    let mut unused = std::pin::pin!(sleep(HEADER_TIMEOUT));
    let mut phase = *phases.borrow_and_update();
    // HTTP/2 is told once; HTTP/1 with each answer.
    let mut told = false;
    loop {
        let leaving = phase >= Phase::Draining || shared.is_old.load(Ordering::Relaxed);
        if leaving && !told && shared.is_http2.load(Ordering::Relaxed) {
            told = true;
            served.as_mut().graceful_shutdown();
        }
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
            () = shared.leave.notified() => {}
            () = unused.as_mut(), if !shared.is_used.load(Ordering::Acquire) => {
                // Whoever has not said anything yet, or a preface only, has nothing to lose.
                if !shared.is_used.load(Ordering::Acquire) {
                    return;
                }
            }
            () = old.as_mut(), if !shared.is_old.load(Ordering::Relaxed) => shared.is_old.store(true, Ordering::Relaxed),
            () = sleep_until(shared.idle_at().max(Instant::now() + Duration::from_millis(20))), if phase == Phase::Closing && !told => {
                if shared.is_idle() {
                    told = true;
                    served.as_mut().graceful_shutdown();
                }
            }
        }
    }
}

fn age(max_age: Duration) -> Duration {
    if max_age.is_zero() {
        return Duration::from_secs(u64::from(u32::MAX));
    }
    max_age.mul_f64(1.0 + AGE_JITTER * (fastrand::f64() - 0.5) * 2.0)
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
    let (request, leftover) = Leftover::watch(request);
    let mut response = router.oneshot(request.map(Body::new)).await?;
    let ends = !is_http2 && !leftover.read().await;
    let leaving = ends || lifecycle.phase() >= Phase::Draining || shared.is_old.load(Ordering::Relaxed);
    if leaving && is_http2 {
        shared.leave.notify_one();
    } else if leaving {
        response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    }
    drop(underway);
    Ok(response)
}

/// A stream that is closed politely: our side first, then what the client is still sending is read and thrown away for a
/// moment, so that it sees our last answer instead of a reset.
struct Lingering {
    stream: TcpStream,
    closing: Option<Pin<Box<Sleep>>>,
}

impl Lingering {
    fn new(stream: TcpStream) -> Self {
        Self { stream, closing: None }
    }
}

impl AsyncRead for Lingering {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Lingering {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.closing.is_none() {
            ready!(Pin::new(&mut self.stream).poll_shutdown(cx))?;
            self.closing = Some(Box::pin(sleep(LINGER)));
        }
        let Self { stream, closing } = &mut *self;
        let mut waste = [0; 16 << 10];
        loop {
            if closing.as_mut().is_some_and(|timer| timer.as_mut().poll(cx).is_ready()) {
                return Poll::Ready(Ok(()));
            }
            let mut buffer = ReadBuf::new(&mut waste);
            match ready!(Pin::new(&mut *stream).poll_read(cx, &mut buffer)) {
                Ok(()) if !buffer.filled().is_empty() => {}
                // The client has closed too, or is gone.
                Ok(()) | Err(_) => return Poll::Ready(Ok(())),
            }
        }
    }
}
