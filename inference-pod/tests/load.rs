//! `/load`: what autoscaling reads, beside what the clients saw themselves.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test may panic")]

mod common;

use std::{
    sync::{
        Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use common::{Connection, Response, Server, eventually, get, item, request};
use crds::load::{Load, ModelLoad, PATH};
use serde_json::json;

const INFER: &str = "/v2/models/slow/infer";

/// Latencies to ask about, in milliseconds, from the least to the most.
const BOUNDS: [u64; 12] = [1, 10, 25, 50, 75, 100, 150, 200, 300, 1_000, 60_000, 600_000];

fn body() -> Vec<u8> {
    json!({"inputs": [{"name": "input", "shape": [1, 4], "datatype": "FP32", "data": [1, 2, 3, 4]}]})
        .to_string()
        .into_bytes()
}

fn load(server: &Server) -> Load {
    let answer = get(server.admin, PATH);
    assert_eq!(answer.status, 200, "{}", answer.text());
    serde_json::from_slice(&answer.body).unwrap()
}

fn within(server: &Server, millis: u64) -> ModelLoad {
    let answer = get(server.admin, &format!("{PATH}?within_ms={millis}"));
    assert_eq!(answer.status, 200, "{}", answer.text());
    only(serde_json::from_slice(&answer.body).unwrap())
}

fn only(load: Load) -> ModelLoad {
    assert_eq!(load.models.len(), 1, "{load:?}");
    load.models.into_iter().next().unwrap()
}

/// An answer as its client saw it.
struct Seen {
    answer: Response,
    latency: Duration,
}

impl Seen {
    /// A number of milliseconds of Server-Timing.
    fn timing(&self, what: &str) -> f64 {
        let header = self.answer.header("server-timing").unwrap();
        let of = |part: &str| part.strip_prefix(what)?.strip_prefix(";dur=")?.parse().ok();
        header.split(", ").find_map(of).unwrap()
    }

    /// Milliseconds that its server has taken at the most.
    fn most(&self) -> f64 {
        self.latency.as_secs_f64() * 1e3
    }

    /// Milliseconds that its server has taken at the least.
    fn least(&self) -> f64 {
        ["decode", "queue", "inference"].iter().map(|what| self.timing(what)).sum()
    }
}

/// Asks the model `slow`.
fn ask_slow(connection: &mut Connection) -> Response {
    connection.post(INFER, "application/json", &body())
}

/// Clients that ask again as soon as they are answered, or soon after they are refused, until `enough`; all they saw.
fn clients(
    server: &Server,
    clients: usize,
    ask: impl Fn(&mut Connection) -> Response + Sync,
    enough: &AtomicBool,
) -> Vec<Seen> {
    let seen = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..clients {
            scope.spawn(|| {
                let mut connection = server.connect();
                while !enough.load(Ordering::SeqCst) {
                    let began = Instant::now();
                    let answer = ask(&mut connection);
                    let latency = began.elapsed();
                    if answer.closes() {
                        connection = server.connect();
                    }
                    if answer.status == 429 {
                        // Else refusals were all that the processor did.
                        std::thread::sleep(Duration::from_millis(20));
                    }
                    seen.lock().unwrap().push(Seen { answer, latency });
                }
            });
        }
    });
    seen.into_inner().unwrap()
}

#[test]
fn the_averages_and_latencies_are_those_that_the_clients_see() {
    const CLIENTS: usize = 6;
    let server = Server::start(&item("slow", "slow", "batch_size: 1, instances: 2, max_queue_ms: 60000"));
    let enough = AtomicBool::new(false);
    let (first, second, seen) = std::thread::scope(|scope| {
        let clients = scope.spawn(|| clients(&server, CLIENTS, ask_slow, &enough));
        eventually("all clients are at it", || only(load(&server)).answered_total > 2 * CLIENTS as u64);
        let first = load(&server);
        eventually("some time passes", || only(load(&server)).answered_total > 60);
        let second = load(&server);
        enough.store(true, Ordering::SeqCst);
        (first, second, clients.join().unwrap())
    });
    assert!(seen.iter().all(|seen| seen.answer.status == 200));

    // Little's law: each client has one request under way all the time, and most of that time it waits or runs.
    let time = second.uptime_seconds - first.uptime_seconds;
    let (first, second) = (only(first), only(second));
    let queued = (second.queued_sample_seconds - first.queued_sample_seconds) / time;
    let running = (second.inflight_sample_seconds - first.inflight_sample_seconds) / time;
    assert!(queued + running <= CLIENTS as f64 * 1.01, "{queued} and {running} of {CLIENTS}");
    assert!(queued + running >= CLIENTS as f64 * 0.6, "{queued} and {running} of {CLIENTS}");
    assert!(running > 1.0 && running <= 2.01, "{running} ran on two instances");

    // From the first request to the last, the integrals are the sums of the times that each answer tells.
    let total = within(&server, BOUNDS[0]);
    let sum = |what| seen.iter().map(|seen| seen.timing(what)).sum::<f64>() / 1e3;
    let (waited, ran) = (sum("queue"), sum("inference"));
    // A sample leaves the queue when it is taken, and an answer tells the wait until the run began: a moment later.
    let share = total.queued_sample_seconds / waited;
    assert!((0.95..=1.001).contains(&share), "{} of {waited}", total.queued_sample_seconds);
    assert!((total.inflight_sample_seconds / ran - 1.0).abs() < 0.001, "{} of {ran}", total.inflight_sample_seconds);
    assert_eq!((total.queued, total.inflight, total.instances, total.refused_total), (0, 0, 2, 0));
    assert!(total.load_seconds > 0.0);

    // A server's latency is at most what its client saw, and at least the sum of the times that it tells.
    let mut before = 0;
    for bound in BOUNDS {
        let ModelLoad { answered_total, within_total, .. } = within(&server, bound);
        let within = within_total.unwrap();
        let count = |latency: fn(&Seen) -> f64, most: f64| seen.iter().filter(|seen| latency(seen) <= most).count();
        let (least, most) = (count(Seen::most, bound as f64) as u64, count(Seen::least, bound as f64 * 1.02) as u64);
        assert!((least..=most).contains(&within), "{within} within {bound} ms: at least {least}, at most {most}");
        assert_eq!(answered_total, seen.len() as u64);
        assert!(within >= before, "{within} within {bound} ms, {before} within less");
        before = within;
    }
    assert_eq!(before, seen.len() as u64, "all of them within 10 min");
}

/// One thread decodes the pictures of all clients: they wait for it, and that is told beside the queue.
#[test]
fn what_is_being_decoded_or_waits_for_it_is_told() {
    const CLIENTS: usize = 4;
    const DECODING: &str = "ortolan_decoding_requests{model=\"fixed\"}";
    let options = "task: image-classification, max_queue_ms: 60000, request_timeout_ms: 60000";
    let server = Server::start_with("threads: 1", &item("fixed", "fixed-batch", options));
    let mut picture = std::io::Cursor::new(Vec::new());
    image::DynamicImage::new_rgb8(2000, 2000).write_to(&mut picture, image::ImageFormat::Png).unwrap();
    let picture = picture.into_inner();
    assert_eq!(server.metric(DECODING), 0.0);
    let enough = AtomicBool::new(false);
    let ask = |connection: &mut Connection| connection.post("/predict/fixed", "image/png", &picture);
    let seen = std::thread::scope(|scope| {
        let clients = scope.spawn(|| clients(&server, CLIENTS, ask, &enough));
        eventually("the gauge has one that waits", || server.metric(DECODING) >= 2.0);
        eventually("many are answered", || only(load(&server)).answered_total >= 10 * CLIENTS as u64);
        enough.store(true, Ordering::SeqCst);
        clients.join().unwrap()
    });
    assert!(seen.iter().all(|seen| seen.answer.status == 200));
    // The integral is the sum of the times that each answer tells, and those of queue and runs have nothing of it.
    let total = only(load(&server));
    let sum = |what| seen.iter().map(|seen| seen.timing(what)).sum::<f64>() / 1e3;
    for (integral, told) in [
        (total.decoding_request_seconds, sum("decode")),
        (total.queued_sample_seconds + total.inflight_sample_seconds, sum("queue") + sum("inference")),
    ] {
        assert!((integral / told - 1.0).abs() < 0.05, "{integral} s, where the answers tell of {told} s");
    }
    assert_eq!((total.decoding, total.queued, total.inflight), (0, 0, 0), "{total:?}");
    assert_eq!(server.metric(DECODING), 0.0);
}

/// All that must not fall.
fn counters(load: &Load) -> [f64; 8] {
    let ModelLoad {
        decoding_request_seconds,
        queued_sample_seconds,
        inflight_sample_seconds,
        refused_total,
        answered_total,
        within_total,
        expired_total,
        ..
    } = only(load.clone());
    [
        load.uptime_seconds,
        decoding_request_seconds,
        queued_sample_seconds,
        inflight_sample_seconds,
        refused_total as f64,
        answered_total as f64,
        within_total.unwrap() as f64,
        expired_total as f64,
    ]
}

#[test]
fn under_overload_it_is_answered_counts_every_refusal_and_never_falls() {
    let server = Server::start(&item("slow", "slow", "batch_size: 1, max_queue_ms: 100"));
    let enough = AtomicBool::new(false);
    let (readings, seen) = std::thread::scope(|scope| {
        // A run takes 30 ms, so that a queue of 100 ms is full with four of them.
        let clients = scope.spawn(|| clients(&server, 12, ask_slow, &enough));
        let mut readings: Vec<Load> = Vec::new();
        eventually("many were refused and some answered", || {
            let answer = get(server.admin, "/load?within_ms=100");
            assert_eq!(answer.status, 200, "{}", answer.text());
            readings.push(serde_json::from_slice(&answer.body).unwrap());
            let model = only(readings.last().unwrap().clone());
            model.refused_total > 50 && model.answered_total > 30
        });
        enough.store(true, Ordering::SeqCst);
        (readings, clients.join().unwrap())
    });
    assert!(readings.len() >= 2);
    for pair in readings.windows(2) {
        let (before, after) = (counters(&pair[0]), counters(&pair[1]));
        assert!(before.iter().zip(after).all(|(before, after)| after >= *before), "{before:?}, then {after:?}");
        assert_eq!(pair[0].started, pair[1].started);
    }
    let count = |status| seen.iter().filter(|seen| seen.answer.status == status).count() as u64;
    let model = only(load(&server));
    assert_eq!((model.answered_total, model.refused_total), (count(200), count(429)));
    assert_eq!(seen.len() as u64, count(200) + count(429));
    assert_eq!(model.within_total, None, "nobody asked");
}

#[test]
fn it_is_on_the_admin_port_only_and_says_what_it_takes() {
    let server = Server::start_with("drain_delay_ms: 60000", &item("tiny", "tiny", ""));
    assert_eq!(server.get(PATH).status, 404, "not for clients");

    let mut connection = Connection::open(server.admin);
    connection.write(&request("HEAD", PATH, &[], &[])).unwrap();
    let mut head = Vec::new();
    // An answer to HEAD says how long the body would be, and has none.
    while !head.ends_with(b"\r\n\r\n") {
        head.push(connection.byte().unwrap());
    }
    assert!(head.starts_with(b"HTTP/1.1 200"), "{}", String::from_utf8_lossy(&head));

    let refused = Connection::open(server.admin).post(PATH, "application/json", b"{}");
    assert_eq!((refused.status, refused.header("allow")), (405, Some("GET, HEAD")), "{}", refused.text());
    for bad in ["", "0", "x", "1.5", "600001"] {
        let refused = get(server.admin, &format!("{PATH}?within_ms={bad}"));
        assert_eq!(refused.status, 400, "{bad}");
        assert_eq!(refused.error(), format!("within_ms: expected whole milliseconds from 1 to 600000, got '{bad}'"));
    }

    let before = load(&server);
    let started: jiff::Timestamp = before.started.parse().unwrap();
    assert!(started <= inference_pod::clock::timestamp() && before.started.ends_with('Z'), "{}", before.started);
    assert!(!before.draining);
    server.signal("TERM");
    eventually("draining", || load(&server).draining);
    let after = load(&server);
    assert_eq!(after.started, before.started);
    assert!(after.uptime_seconds > before.uptime_seconds);
}
