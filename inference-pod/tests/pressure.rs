//! Many clients, slow models: what is refused, what shares a run, what is dropped.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test may panic")]

mod common;

use std::{
    sync::{Barrier, Mutex},
    time::Instant,
};

use common::{Connection, Response, Server, eventually, get, item, leaving_costs_no_run, request};
use serde_json::json;

const PATH: &str = "/v2/models/slow/infer";

fn body(number: usize) -> Vec<u8> {
    samples(1, &[number, 0, 0, 0])
}

fn samples(count: usize, data: &[usize]) -> Vec<u8> {
    json!({"inputs": [{"name": "input", "shape": [count, 4], "datatype": "FP32", "data": data}]})
        .to_string()
        .into_bytes()
}

/// That many clients, all at once, each with one request.
fn at_once(server: &Server, clients: usize) -> Vec<Response> {
    let barrier = Barrier::new(clients);
    let answers = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for client in 0..clients {
            let (barrier, answers) = (&barrier, &answers);
            scope.spawn(move || {
                let mut connection = server.connect();
                barrier.wait();
                let answer = connection.post(PATH, "application/json", &body(client));
                if answer.status == 200 {
                    let first = &answer.json()["outputs"][0]["data"][0];
                    assert_eq!(first.as_f64().unwrap(), client as f64, "somebody else's answer");
                }
                answers.lock().unwrap().push(answer);
            });
        }
    });
    answers.into_inner().unwrap()
}

#[test]
fn requests_that_meet_share_runs_and_each_gets_its_own_answer() {
    let server = Server::start(&item("slow", "slow", "max_queue_ms: 60000"));
    let count = |name| server.metric(&format!("ortolan_{name}{{model=\"slow\"}}"));
    let (mut rounds, mut before) = (0.0, 0.0);
    // They meet behind a request of sixteen full batches. On a machine full of other tests even that may be over too soon.
    eventually("requests meet", || {
        std::thread::scope(|scope| {
            let large = scope.spawn(|| server.post(PATH, "application/json", &samples(128, &[0; 512])));
            eventually("the large one is in", || count("samples_enqueued_total") == 192.0 * rounds + 128.0);
            assert!(at_once(&server, 64).iter().all(|answer| answer.status == 200));
            assert_eq!(large.join().unwrap().status, 200);
        });
        rounds += 1.0;
        let runs = count("batch_size_count");
        runs - std::mem::replace(&mut before, runs) < 16.0 + 32.0
    });
    let total = 192.0 * rounds;
    for name in ["batch_size_sum", "samples_enqueued_total", "samples_dequeued_total"] {
        assert_eq!(count(name), total, "{name}");
    }
    assert_eq!(count("queue_depth"), 0.0);
    assert_eq!(server.metric("ortolan_requests_total{model=\"slow\",outcome=\"ok\"}"), 65.0 * rounds);
}

#[test]
fn what_would_wait_too_long_is_429_and_told_when_to_come_back() {
    let server = Server::start(&item("slow", "slow", "batch_size: 1, max_queue_ms: 1"));
    let answers = at_once(&server, 64);
    let (served, refused): (Vec<_>, Vec<_>) = answers.into_iter().partition(|answer| answer.status == 200);
    assert!(!served.is_empty() && !refused.is_empty(), "{} served, {} refused", served.len(), refused.len());
    for answer in &refused {
        assert_eq!(answer.status, 429, "{}", answer.text());
        assert!(answer.error().starts_with("queue is full: a request would be answered after "), "{}", answer.error());
        let seconds: u64 = answer.header("retry-after").unwrap().parse().unwrap();
        let millis: u64 = answer.header("retry-after-ms").unwrap().parse().unwrap();
        assert!(seconds >= 1 && millis >= 1 && millis <= seconds * 1000, "{seconds} s, {millis} ms");
    }
    let counted = server.metric("ortolan_errors_total{model=\"slow\",reason=\"queue_full\"}");
    assert_eq!(counted, refused.len() as f64);
    assert_eq!(at_once(&server, 1)[0].status, 200, "it serves again");
}

/// The pictures take several times as long as the model: of what may wait, the queue of the model holds more than may be decoded.
#[test]
fn what_would_wait_too_long_to_be_decoded_is_429_too() {
    const PATH: &str = "/predict/fixed";
    let options = "task: image-classification, max_queue_ms: 2500, request_timeout_ms: 60000";
    let server = Server::start_with("threads: 1", &item("fixed", "fixed-batch", options));
    let mut picture = std::io::Cursor::new(Vec::new());
    image::DynamicImage::new_rgb8(4000, 4000).write_to(&mut picture, image::ImageFormat::Png).unwrap();
    let picture = picture.into_inner();
    let ask = || server.post(PATH, "image/png", &picture);
    let alone = ask();
    assert_eq!(alone.status, 200, "{}", alone.text());
    // On a busy machine it may be the model that was slow last, so that its queue is what refuses.
    eventually("some are refused for what waits to be decoded", || {
        let answers: Vec<Response> = std::thread::scope(|scope| {
            let clients: Vec<_> = (0..32).map(|_| scope.spawn(ask)).collect();
            clients.into_iter().map(|client| client.join().unwrap()).collect()
        });
        let (served, refused): (Vec<_>, Vec<_>) = answers.into_iter().partition(|answer| answer.status == 200);
        for answer in &refused {
            assert_eq!(answer.status, 429, "{}", answer.text());
            assert!(answer.header("retry-after-ms").unwrap().parse::<u64>().unwrap() >= 1);
        }
        let errors: Vec<String> = refused.iter().map(Response::error).collect();
        let count = |beginning| errors.iter().filter(|error| error.starts_with(beginning)).count();
        let is_queue_short = count("queue is full: a request would") == 0;
        assert!(served.len() >= 3 || !is_queue_short, "one at work and two that may always wait: {errors:?}");
        count("too much is waiting to be decoded: a request would") > 0
    });
    assert_eq!(ask().status, 200, "it serves again");
}

#[test]
fn senders_who_stall_shut_nobody_out_and_too_many_are_refused_on_their_headers() {
    let server = Server::start(&item("slow", "slow", "batch_size: 1, queue_size: 1, max_queue_ms: 60000"));
    let head =
        format!("POST {PATH} HTTP/1.1\r\nhost: t\r\ncontent-type: application/json\r\ncontent-length: 500\r\n\r\n");
    // Nobody of them ever sends a body.
    let stall = || {
        let mut connection = server.connect();
        connection.write(head.as_bytes()).unwrap();
        connection
    };
    let received = || server.metric("ortolan_requests_received_total{model=\"slow\"}");
    let mut stalled: Vec<Connection> = (0..15).map(|_| stall()).collect();
    eventually("they have begun", || received() == 15.0);
    assert_eq!(at_once(&server, 1)[0].status, 200, "the one place of the queue is free");
    stalled.push(stall());
    eventually("there is one more", || received() == 17.0);
    let answer = stall().read().unwrap();
    assert_eq!(answer.status, 429, "not one byte of its body was sent: {}", answer.text());
    assert_eq!(answer.error(), "queue is full: 16 requests are still being received");
    drop(stalled);
    eventually("they are gone", || at_once(&server, 1)[0].status == 200);
}

/// The admin port is for probes, whoever else keeps connections to it.
#[test]
fn idle_connections_keep_no_probe_out() {
    let server = Server::start(&item("tiny", "tiny", ""));
    let mut idle: Vec<Connection> = Vec::new();
    for number in 0..600 {
        let mut connection = Connection::open(server.admin);
        // Some have asked, some say nothing at all.
        if number % 2 == 0 {
            connection.write(&request("GET", "/health", &[], &[])).unwrap();
            assert_eq!(connection.read().unwrap().status, 200, "{number}");
        }
        idle.push(connection);
    }
    assert_eq!(get(server.admin, "/health").status, 200);
    drop(idle);
}

#[test]
fn a_request_that_passes_its_deadline_is_504() {
    let server = Server::start(&item("slow", "slow", "batch_size: 1, max_queue_ms: 60000, request_timeout_ms: 40"));
    let answers = at_once(&server, 32);
    let late: Vec<_> = answers.iter().filter(|answer| answer.status != 200).collect();
    assert!(!late.is_empty());
    for answer in &late {
        assert_eq!(answer.status, 504, "{}", answer.text());
    }
    let runs = server.metric("ortolan_batch_size_count{model=\"slow\"}");
    assert!(runs < 32.0, "{runs} runs: late requests cost runs");
    let expired = server.metric("ortolan_requests_total{model=\"slow\",outcome=\"expired\"}");
    assert_eq!(expired, late.len() as f64);
    assert_eq!(get(server.admin, "/load").json()["models"][0]["expired_total"], late.len());
}

#[test]
fn a_client_that_leaves_costs_no_run() {
    let server = Server::start(&item("slow", "slow", "batch_size: 1, max_queue_ms: 60000"));
    let mut leaving: Vec<Connection> = (0..24).map(|_| server.connect()).collect();
    for connection in &mut leaving {
        connection.write(&request("POST", PATH, &[("content-type", "application/json")], &body(1))).unwrap();
    }
    leaving_costs_no_run(&server, || drop(leaving));
}

#[test]
fn a_run_that_takes_too_long_is_ended_and_the_next_one_is_served() {
    let server = Server::start(&item("slow", "slow", "batch_size: 1, run_timeout_ms: 1"));
    let began = Instant::now();
    // The watch looks every 200 ms, so some runs of 30 ms get through; one that is caught says so.
    let mut connection = server.connect();
    let ended = loop {
        let answer = connection.post(PATH, "application/json", &body(1));
        if answer.status != 200 {
            break answer;
        }
        assert!(began.elapsed() < common::PATIENCE);
    };
    assert_eq!(ended.status, 500, "{}", ended.text());
    assert!(ended.error().contains("ended after 1ms"), "{}", ended.error());
    eventually("it serves again", || connection.post(PATH, "application/json", &body(1)).status == 200);
    assert_eq!(server.get("/health").status, 200);
}

#[test]
fn probes_and_scrapes_are_answered_while_every_client_waits() {
    let server = Server::start(&item("slow", "slow", "batch_size: 1, max_queue_ms: 60000"));
    std::thread::scope(|scope| {
        let flood = scope.spawn(|| at_once(&server, 24));
        while !flood.is_finished() {
            for path in ["/health", "/ready", "/metrics", "/info", "/health/detailed"] {
                assert_eq!(get(server.admin, path).status, 200, "{path}");
            }
        }
        assert!(flood.join().unwrap().iter().all(|answer| answer.status == 200));
    });
}

#[test]
fn several_instances_run_at_the_same_time() {
    let server = Server::start(&item("slow", "slow", "batch_size: 1, instances: 2, max_queue_ms: 60000"));
    assert_eq!(server.metric("ortolan_instances{model=\"slow\",state=\"running\"}"), 2.0);
    std::thread::scope(|scope| {
        let flood = scope.spawn(|| at_once(&server, 12));
        eventually("two samples run", || server.metric("ortolan_inflight_samples{model=\"slow\"}") == 2.0);
        assert!(flood.join().unwrap().iter().all(|answer| answer.status == 200));
    });
}
