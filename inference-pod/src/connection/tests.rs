use std::{
    pin::Pin,
    task::{Context, Poll, ready},
};

use axum::routing::get;
use hyper::body::Frame;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream, duplex},
    task::JoinHandle,
    time::Sleep,
};

use super::*;

const SOON: Duration = Duration::from_millis(150);
const NEVER: Duration = Duration::from_secs(3600);
/// Everything is waited for, whatever a test does not say otherwise.
const PATIENT: Patience = Patience {
    headers: NEVER,
    idle: NEVER,
    pause: NEVER,
    linger: NEVER,
    unread: NEVER,
    untaken: NEVER,
    leaving: NEVER,
};
const REQUEST: &[u8] = b"GET / HTTP/1.1\r\nhost: test\r\n\r\n";

/// A client of a connection with that patience.
fn client(patience: Patience) -> DuplexStream {
    connected(patience, &Arc::default()).0
}

/// The same with the connection's end. It answers at `/`, and at `/long` what does not fit into it.
fn connected(patience: Patience, lifecycle: &Arc<Lifecycle>) -> (DuplexStream, JoinHandle<()>) {
    let (client, server) = duplex(64 << 10);
    let router = Router::new().route("/", get(|| async { "yes" })).route("/long", get(|| async { vec![0; 1 << 20] }));
    let lifecycle = Arc::clone(lifecycle);
    let terms = Terms { lifecycle, max_age: Duration::ZERO, max_connections: 1, makes_room: false, tells_peer: false };
    (client, tokio::spawn(converse(server, router, terms, patience, Arc::new(Shared::new()))))
}

async fn ends(connection: JoinHandle<()>) {
    tokio::time::timeout(Duration::from_secs(60), connection).await.expect("it stays").unwrap();
}

async fn asks(client: &mut DuplexStream) {
    client.write_all(REQUEST).await.unwrap();
    let mut answer = Vec::new();
    while !answer.ends_with(b"yes") {
        assert_ne!(client.read_buf(&mut answer).await.unwrap(), 0, "{answer:?}");
    }
}

#[tokio::test]
async fn a_silent_connection_ends_by_its_own_time_and_one_in_the_middle_of_headers_by_theirs() {
    let patience = Patience { idle: SOON, pause: SOON, linger: SOON, ..PATIENT };
    let mut idle = client(Patience { headers: SOON, ..patience });
    asks(&mut idle).await;
    assert_eq!(idle.read(&mut [0; 9]).await.unwrap(), 0, "closed, not reset");

    let mut halfway = client(Patience { headers: SOON, idle: NEVER, ..patience });
    asks(&mut halfway).await;
    halfway.write_all(&REQUEST[..9]).await.unwrap();
    assert_eq!(halfway.read(&mut [0; 9]).await.unwrap(), 0);

    let mut kept = client(Patience { headers: SOON, idle: NEVER, ..patience });
    asks(&mut kept).await;
    sleep(SOON * 3).await;
    asks(&mut kept).await;
}

#[tokio::test]
async fn whoever_says_nothing_at_all_is_not_kept() {
    let patience = Patience { headers: SOON, ..PATIENT };
    let mut silent = client(patience);
    assert_eq!(silent.read(&mut [0; 9]).await.unwrap(), 0);
}

#[tokio::test]
async fn a_client_that_does_not_take_its_answer_is_left_once_it_should_leave() {
    let patience = Patience { headers: SOON, idle: SOON, unread: SOON, ..PATIENT };
    let (mut client, connection) = connected(patience, &Arc::default());
    client.write_all(b"GET /long HTTP/1.1\r\nhost: test\r\n\r\n").await.unwrap();
    ends(connection).await;

    let lifecycle = Arc::<Lifecycle>::default();
    let (client, connection) = connected(Patience { headers: NEVER, ..patience }, &lifecycle);
    let mut builder = hyper::client::conn::http2::Builder::new(TokioExecutor::new());
    // No byte of a body may be sent.
    let (mut sender, serves) = builder.initial_stream_window_size(0).handshake(TokioIo::new(client)).await.unwrap();
    tokio::spawn(serves);
    let request = Request::get("http://test/").body(Body::empty()).unwrap();
    let answer = sender.send_request(request).await.unwrap();
    lifecycle.enter(Phase::Draining);
    ends(connection).await;
    drop(answer);
}

#[tokio::test]
async fn a_client_that_takes_nothing_of_a_large_answer_is_left_and_one_that_takes_its_time_is_not() {
    let patience = Patience { untaken: SOON, ..PATIENT };
    let (mut client, connection) = connected(patience, &Arc::default());
    client.write_all(b"GET /long HTTP/1.1\r\nhost: test\r\n\r\n").await.unwrap();
    ends(connection).await;

    let (mut client, connection) = connected(patience, &Arc::default());
    client.write_all(b"GET /long HTTP/1.1\r\nhost: test\r\n\r\n").await.unwrap();
    let (mut got, mut buffer) = (0, vec![0; 64 << 10]);
    while got < 1 << 20 {
        sleep(SOON / 5).await;
        let read = client.read(&mut buffer).await.unwrap();
        assert_ne!(read, 0, "closed after {got} bytes");
        got += read;
    }
    assert!(!connection.is_finished());

    // The last of it is in the buffers of the protocol, and all of it in memory.
    let (mut client, connection) = connected(patience, &Arc::default());
    client.write_all(b"GET /long HTTP/1.1\r\nhost: test\r\n\r\n").await.unwrap();
    client.read_exact(&mut vec![0; 900 << 10]).await.unwrap();
    ends(connection).await;
}

#[tokio::test]
async fn of_many_connections_the_one_that_has_rested_longest_makes_room() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let router = Router::new().route("/", get(|| async { "yes" }));
    let terms = Terms {
        lifecycle: Arc::default(),
        max_age: Duration::ZERO,
        max_connections: 4,
        makes_room: true,
        tells_peer: false,
    };
    tokio::spawn(serve(listener, router, terms));
    let mut kept = Vec::new();
    for _ in 0..20 {
        let mut client = TcpStream::connect(address).await.unwrap();
        client.write_all(REQUEST).await.unwrap();
        let mut answer = Vec::new();
        while !answer.ends_with(b"yes") {
            assert_ne!(client.read_buf(&mut answer).await.unwrap(), 0, "{answer:?}");
        }
        kept.push(client);
    }
    // Closed, and not the last.
    assert_eq!(kept[0].read(&mut [0; 9]).await.unwrap_or_default(), 0);
    let last = kept.last_mut().unwrap();
    last.write_all(REQUEST).await.unwrap();
    assert_ne!(last.read(&mut [0; 9]).await.unwrap(), 0);
}

#[tokio::test]
async fn a_client_that_does_not_take_its_answer_is_left_though_it_says_other_things() {
    let patience = Patience { leaving: SOON, ..PATIENT };
    let lifecycle = Arc::<Lifecycle>::default();
    let (client, connection) = connected(patience, &lifecycle);
    let mut builder = hyper::client::conn::http2::Builder::new(TokioExecutor::new());
    builder.timer(TokioTimer::new()).initial_stream_window_size(0).keep_alive_interval(SOON / 5);
    let (mut sender, serves) = builder.handshake(TokioIo::new(client)).await.unwrap();
    tokio::spawn(serves);
    let answer = sender.send_request(Request::get("http://test/").body(Body::empty()).unwrap()).await.unwrap();
    lifecycle.enter(Phase::Draining);
    ends(connection).await;
    drop(answer);
}

const CHUNKS: usize = 8;

/// A body that takes a while, and counts what was taken of it.
struct Slow {
    left: usize,
    sent: Arc<AtomicUsize>,
    pause: Pin<Box<Sleep>>,
}

impl hyper::body::Body for Slow {
    type Data = hyper::body::Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Self::Data>, Self::Error>>> {
        if self.left == 0 {
            return Poll::Ready(None);
        }
        ready!(self.pause.as_mut().poll(cx));
        self.pause.as_mut().reset(Instant::now() + SOON / 50);
        self.left -= 1;
        self.sent.fetch_add(1, Ordering::SeqCst);
        Poll::Ready(Some(Ok(Frame::data(vec![0; 20 << 10].into()))))
    }
}

/// Some clients of HTTP/2 lose an answer that comes while they still send.
#[tokio::test]
async fn a_small_rest_is_read_on_http2_before_the_answer_comes() {
    let (client, _connection) = connected(PATIENCE, &Arc::default());
    let builder = hyper::client::conn::http2::Builder::new(TokioExecutor::new());
    let (mut sender, serves) = builder.handshake(TokioIo::new(client)).await.unwrap();
    tokio::spawn(serves);
    let sent = Arc::new(AtomicUsize::new(0));
    let slow = Slow { left: CHUNKS, sent: Arc::clone(&sent), pause: Box::pin(sleep(SOON / 50)) };
    let request = Request::post("http://test/nowhere").body(slow).unwrap();
    let answer = sender.send_request(request).await.unwrap();
    assert_eq!((answer.status(), sent.load(Ordering::SeqCst)), (StatusCode::NOT_FOUND, CHUNKS));
}

/// What is left of a client's patience does not depend on how long it sends, up to a bound.
#[tokio::test]
async fn a_client_that_is_still_sending_is_read_until_it_pauses() {
    let patience = Patience { pause: SOON * 10, ..PATIENT };
    let mut slow = client(patience);
    slow.write_all(b"GET / HTTP/1.1\r\nhost: test\r\ncontent-length: 9000000\r\n\r\n").await.unwrap();
    let mut answer = Vec::new();
    while !answer.ends_with(b"yes") {
        assert_ne!(slow.read_buf(&mut answer).await.unwrap(), 0);
    }
    // Twice as long as a pause may be.
    for _ in 0..20 {
        slow.write_all(&[0; 1000]).await.unwrap();
        sleep(SOON).await;
    }
    slow.write_all(&[0; 1000]).await.unwrap();

    let mut endless = client(Patience { pause: NEVER, linger: SOON, ..patience });
    endless.write_all(b"GET / HTTP/1.1\r\nhost: test\r\ncontent-length: 9000000\r\n\r\n").await.unwrap();
    let sends = async {
        while endless.write_all(&[0; 1000]).await.is_ok() {
            sleep(SOON / 10).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), sends).await.unwrap();
}
