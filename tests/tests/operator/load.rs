//! Clients that ask as fast as they are answered, and keep their connections: half of them by HTTP/1, half by gRPC.

use std::cell::Cell;
use std::collections::BTreeSet;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::{BufMut, Bytes, BytesMut};
use http::{HeaderMap, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::TcpStream;
use tokio::task::JoinSet;

use crate::fixture::{Failure, Outcome};
use crate::models;
use crate::web::Connection;

/// The Service's port for gRPC.
const GRPC_PORT: u16 = 8081;

/// An answer that takes longer is a failure for any client.
const PATIENCE: Duration = Duration::from_secs(10);

/// A client that was refused waits a moment.
const AFTER_REFUSAL: Duration = Duration::from_millis(100);

/// gRPC's codes for an answer, and for a queue that is full.
const OK: &str = "0";
const RESOURCE_EXHAUSTED: &str = "8";

/// What the clients have seen.
#[derive(Debug, Default, Clone)]
pub(crate) struct Seen {
    pub(crate) answered: usize,
    pub(crate) refused: usize,
    /// Whatever a client may complain of.
    pub(crate) failures: BTreeSet<String>,
    /// In the order of the answers.
    latencies: Vec<Duration>,
}

/// How a request ended.
enum End {
    Answered,
    Refused,
}

impl Seen {
    fn count(&mut self, asked: Result<End, String>, latency: Duration) {
        match asked {
            Ok(End::Answered) => {
                self.answered += 1;
                self.latencies.push(latency);
            }
            Ok(End::Refused) => self.refused += 1,
            Err(error) => {
                self.failures.insert(error);
            }
        }
    }

    /// What was seen after an earlier look.
    pub(crate) fn since(&self, before: &Self) -> Self {
        Self {
            answered: self.answered - before.answered,
            refused: self.refused - before.refused,
            failures: self.failures.difference(&before.failures).cloned().collect(),
            latencies: self.latencies[before.latencies.len()..].to_vec(),
        }
    }
}

impl fmt::Display for Seen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut sorted = self.latencies.clone();
        sorted.sort();
        let quantile = |percent: usize| sorted.get(sorted.len() * percent / 100).copied().unwrap_or_default();
        write!(
            f,
            "{} answered, {} refused, {} other failures, p50 {:.0?}, p95 {:.0?}",
            self.answered,
            self.refused,
            self.failures.len(),
            quantile(50),
            quantile(95)
        )
    }
}

/// Clients at work, until they are stopped.
pub(crate) struct Load {
    stop: Arc<AtomicBool>,
    seen: Arc<Mutex<Seen>>,
    clients: JoinSet<()>,
}

impl Load {
    pub(crate) fn start(address: IpAddr, http_port: u16, count: usize) -> Self {
        let (stop, seen) = (Arc::<AtomicBool>::default(), Arc::<Mutex<Seen>>::default());
        let mut clients = JoinSet::new();
        for client in 0..count {
            let (stop, seen) = (Arc::clone(&stop), Arc::clone(&seen));
            if client % 2 == 0 {
                clients.spawn_blocking(move || ask_by_http((address, http_port).into(), &stop, &seen));
            } else {
                clients.spawn_blocking(move || ask_by_grpc((address, GRPC_PORT).into(), &stop, &seen));
            }
        }
        Self { stop, seen, clients }
    }

    /// What has been seen so far.
    pub(crate) fn seen(&self) -> Seen {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Lets each client end its request.
    pub(crate) async fn stop(mut self) -> Outcome<Seen> {
        self.stop.store(true, Ordering::Relaxed);
        while let Some(ended) = self.clients.join_next().await {
            ended.map_err(|error| Failure::new(format!("a client: {error}")))?;
        }
        Ok(self.seen())
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

fn ask_by_http(address: SocketAddr, stop: &AtomicBool, seen: &Mutex<Seen>) {
    let question = models::question();
    let mut kept: Option<Connection> = None;
    while !stop.load(Ordering::Relaxed) {
        let began = Instant::now();
        let open = kept.take().filter(|connection| !connection.was_closed());
        let asked = open.map_or_else(|| Connection::open(address), Ok).and_then(|mut connection| {
            let answer = connection.ask("POST", models::QUESTION_PATH, &question)?;
            kept = Some(connection).filter(|_| !answer.closes);
            Ok(answer)
        });
        let end = match asked {
            Ok(answer) if answer.status == 200 => Ok(End::Answered),
            Ok(answer) if answer.status == 429 => Ok(End::Refused),
            Ok(answer) => Err(format!("HTTP: {} {}", answer.status, answer.text())),
            Err(error) => Err(format!("HTTP: {error}")),
        };
        let pause = !matches!(end, Ok(End::Answered));
        seen.lock().unwrap_or_else(PoisonError::into_inner).count(end, began.elapsed());
        if pause {
            std::thread::sleep(AFTER_REFUSAL);
        }
    }
}

/// A connection of a gRPC client.
type Sender = http2::SendRequest<Full<Bytes>>;

/// What a client is told whose request the server has not seen, for it wants no other on this connection.
const NOT_SEEN: &str = "not a result of an error";

/// Connections that a request is tried on; a server that wants no more of them is met now and then, and not again and again.
const TRIES: usize = 3;

/// On a thread of its own, request and connection together. The h2 crate (0.4) may close a connection that its server asked to
/// leave while another thread hands it a request, which is then never sent and never failed: one of some thousands of closed
/// connections, whatever the server does.
fn ask_by_grpc(address: SocketAddr, stop: &AtomicBool, seen: &Mutex<Seen>) {
    match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime.block_on(ask_until(stop, address, seen)),
        Err(error) => {
            let mut seen = seen.lock().unwrap_or_else(PoisonError::into_inner);
            seen.count(Err(format!("gRPC: no thread to ask on: {error}")), Duration::ZERO);
        }
    }
}

async fn ask_until(stop: &AtomicBool, address: SocketAddr, seen: &Mutex<Seen>) {
    let mut kept = None;
    let message = infer_request();
    while !stop.load(Ordering::Relaxed) {
        let began = Instant::now();
        let step = Cell::new("nothing done");
        let end = match tokio::time::timeout(PATIENCE, ask(&mut kept, address, &message, &step)).await {
            Ok(end) => end.map_err(|error| format!("gRPC: {error}")),
            Err(_) => Err(format!("gRPC: no answer within {PATIENCE:?}: {}", step.get())),
        };
        let pause = !matches!(end, Ok(End::Answered));
        seen.lock().unwrap_or_else(PoisonError::into_inner).count(end, began.elapsed());
        if pause {
            kept = None;
            tokio::time::sleep(AFTER_REFUSAL).await;
        }
    }
}

/// As the libraries of gRPC do: a request that the server has not seen goes to another connection.
///
/// `step` is what it waits for.
async fn ask(
    kept: &mut Option<Sender>,
    address: SocketAddr,
    message: &Bytes,
    step: &Cell<&'static str>,
) -> Result<End, String> {
    for _ in 0..TRIES {
        let open = kept.take().filter(|sender| !sender.is_closed());
        let mut sender = match open {
            Some(sender) => sender,
            None => {
                step.set("connecting");
                connect(address).await?
            }
        };
        step.set("waiting for the connection to take a request");
        if sender.ready().await.is_err() {
            continue;
        }
        let request = Request::post(format!("http://{address}/inference.GRPCInferenceService/ModelInfer"))
            .header("content-type", "application/grpc")
            .header("te", "trailers")
            .body(Full::new(message.clone()))
            .map_err(|error| error.to_string())?;
        step.set("waiting for the answer to begin");
        match sender.send_request(request).await {
            Ok(answer) => {
                step.set("waiting for the answer's end");
                let end = read(answer).await?;
                *kept = Some(sender);
                return Ok(end);
            }
            // Cancelled is what has not left the client.
            Err(error) => {
                let said = ortolan_tests::report::chain(&error);
                if !error.is_canceled() && !said.contains(NOT_SEEN) {
                    return Err(said);
                }
            }
        }
    }
    Err(format!("{TRIES} connections one after the other took no request"))
}

async fn connect(address: SocketAddr) -> Result<Sender, String> {
    let stream = TcpStream::connect(address).await.map_err(|error| format!("cannot connect: {error}"))?;
    stream.set_nodelay(true).map_err(|error| error.to_string())?;
    let shaken = http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await;
    let (sender, connection) = shaken.map_err(|error| ortolan_tests::report::chain(&error))?;
    // What ends it, its requests are told.
    tokio::spawn(connection);
    Ok(sender)
}

async fn read(answer: Response<Incoming>) -> Result<End, String> {
    if answer.status() != StatusCode::OK {
        return Err(format!("HTTP status {}", answer.status()));
    }
    let headers = answer.headers().clone();
    let body = answer.into_body().collect().await.map_err(|error| ortolan_tests::report::chain(&error))?;
    let trailers = body.trailers().cloned().unwrap_or_default();
    let said = |name: &str| {
        let of = |headers: &HeaderMap| headers.get(name)?.to_str().ok().map(str::to_owned);
        of(&trailers).or_else(|| of(&headers)).unwrap_or_default()
    };
    match said("grpc-status").as_str() {
        OK => Ok(End::Answered),
        RESOURCE_EXHAUSTED => Ok(End::Refused),
        code => Err(format!("status {code}: {}", said("grpc-message"))),
    }
}

/// A message with the numbers of [`models::question`], behind gRPC's prefix.
fn infer_request() -> Bytes {
    let mut tensor = BytesMut::new();
    put_field(&mut tensor, 1, b"input");
    put_field(&mut tensor, 2, b"FP32");
    put_field(&mut tensor, 3, &[1, 4]);
    let numbers: Vec<u8> = [1.0_f32, 2.0, 3.0, 4.0].iter().flat_map(|number| number.to_le_bytes()).collect();
    let mut request = BytesMut::new();
    put_field(&mut request, 1, b"tiny");
    put_field(&mut request, 5, &tensor);
    put_field(&mut request, 7, &numbers);
    let mut message = BytesMut::new();
    // Not compressed.
    message.put_u8(0);
    message.put_u32(u32::try_from(request.len()).unwrap_or(u32::MAX));
    message.extend(request);
    message.freeze()
}

/// A field of protobuf that has a length, which is less than 128 here.
fn put_field(message: &mut BytesMut, number: u8, bytes: &[u8]) {
    message.put_u8(number << 3 | 2);
    message.put_u8(bytes.len() as u8);
    message.extend(bytes);
}
