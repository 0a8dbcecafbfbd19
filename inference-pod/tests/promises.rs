//! What holds of the queue in the model holds of the running server: every request is answered once, by its own numbers or a
//! refusal, and nothing is left behind, whatever clients do.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test may panic")]

mod common;

use std::sync::atomic::{AtomicUsize, Ordering};

use common::{Connection, Server, eventually, item, request};
use serde_json::{Value, json};

const PATH: &str = "/v2/models/slow/infer";

const CLIENTS: u64 = 24;
const REQUESTS_EACH: usize = 30;

/// Requests by how they ended, as the clients saw it.
#[derive(Default)]
struct Seen {
    answered: AtomicUsize,
    refused: AtomicUsize,
    late: AtomicUsize,
    left: AtomicUsize,
}

/// Samples of four numbers, each unlike all others of the test.
fn body(samples: usize, first: u64) -> (Vec<u8>, Vec<f64>) {
    let numbers: Vec<f64> = (0..samples as u64 * 4).map(|at| (first + at) as f64).collect();
    let input = json!({"name": "input", "shape": [samples, 4], "datatype": "FP32", "data": numbers});
    (json!({"inputs": [input]}).to_string().into_bytes(), numbers)
}

fn client(server: &Server, number: u64, seen: &Seen) {
    let mut chance = fastrand::Rng::with_seed(number);
    let mut connection = server.connect();
    for turn in 0..REQUESTS_EACH {
        // 1 to 20 samples: some are more than a batch takes.
        let samples = chance.usize(1..=20);
        let (body, numbers) = body(samples, number * 100_000 + turn as u64 * 100);
        if chance.usize(0..6) == 0 {
            connection.write(&request("POST", PATH, &[("content-type", "application/json")], &body)).unwrap();
            std::thread::sleep(std::time::Duration::from_millis(chance.u64(0..30)));
            connection = server.connect();
            seen.left.fetch_add(1, Ordering::SeqCst);
            continue;
        }
        let answer = connection.post(PATH, "application/json", &body);
        let counter = match answer.status {
            200 => {
                let output = answer.json()["outputs"][0].clone();
                assert_eq!(output["shape"], json!([samples, 4]));
                let got: Vec<f64> = output["data"].as_array().unwrap().iter().filter_map(Value::as_f64).collect();
                assert_eq!(got, numbers, "somebody else's numbers");
                &seen.answered
            }
            429 => &seen.refused,
            504 => &seen.late,
            other => panic!("{other}: {}", answer.text()),
        };
        counter.fetch_add(1, Ordering::SeqCst);
    }
}

#[test]
fn every_request_is_answered_once_with_its_own_numbers_and_nothing_is_left_behind() {
    let settings = "request_timeout_ms: 400, max_queue_ms: 300, queue_size: 200, batch_timeout_ms: 5, instances: 2";
    let server = Server::start(&item("slow", "slow", settings));
    let seen = Seen::default();
    std::thread::scope(|scope| {
        for number in 0..CLIENTS {
            let (server, seen) = (&server, &seen);
            scope.spawn(move || client(server, number, seen));
        }
    });
    let count = |counter: &AtomicUsize| counter.load(Ordering::SeqCst) as f64;
    let outcome = |outcome| server.metric(&format!("ortolan_requests_total{{model=\"slow\",outcome=\"{outcome}\"}}"));
    let [answered, refused, late, left] = [&seen.answered, &seen.refused, &seen.late, &seen.left].map(count);
    assert!(answered > 0.0);
    let all = CLIENTS as f64 * REQUESTS_EACH as f64;
    assert_eq!(answered + refused + late + left, all);
    eventually("every request to be counted as ended", || {
        ["ok", "rejected", "expired", "cancelled", "invalid", "failed"].map(outcome).iter().sum::<f64>()
            == server.metric("ortolan_requests_received_total{model=\"slow\"}")
    });
    assert!((answered..=answered + left).contains(&outcome("ok")), "{answered} answered, {} counted", outcome("ok"));
    assert_eq!((outcome("invalid"), outcome("failed")), (0.0, 0.0));
    eventually("the queue to be empty", || server.metric("ortolan_queue_depth{model=\"slow\"}") == 0.0);
    eventually("no sample to run", || server.metric("ortolan_inflight_samples{model=\"slow\"}") == 0.0);
    let [enqueued, dequeued] =
        ["enqueued", "dequeued"].map(|what| server.metric(&format!("ortolan_samples_{what}_total{{model=\"slow\"}}")));
    assert_eq!(enqueued, dequeued);
}

#[test]
fn a_refused_body_is_read_where_it_is_small_and_announced_as_the_end_where_it_is_large() {
    let server = Server::start(&item("slow", "slow", ""));
    let mut connection = server.connect();
    let refuse = |connection: &mut Connection, bytes: usize| {
        let answer = connection.post("/v2/models/unknown/infer", "application/json", &vec![b' '; bytes]);
        assert_eq!(answer.status, 404);
        answer.header("connection").map(str::to_owned)
    };
    for bytes in [10, 100_000, 900_000] {
        assert_eq!(refuse(&mut connection, bytes), None, "{bytes} bytes");
    }
    // The same where the length is not announced.
    let chunked = "POST /v2/models/unknown/infer HTTP/1.1\r\nhost: test\r\ntransfer-encoding: chunked\r\n\r\n";
    connection.write(format!("{chunked}5\r\nhello\r\n0\r\n\r\n").as_bytes()).unwrap();
    assert_eq!(connection.read().unwrap().header("connection"), None);
    assert_eq!(connection.post(PATH, "application/json", &body(1, 0).0).status, 200);
    let head = "POST /v2/models/unknown/infer HTTP/1.1\r\nhost: test\r\ncontent-length: 5000000\r\n\r\n";
    connection.write(head.as_bytes()).unwrap();
    assert_eq!(connection.read().unwrap().header("connection"), Some("close"));
    // Who asks first whether to send a body is told not to, and does not.
    let mut asking = server.connect();
    asking.write(head.replace("5000000\r\n", "50\r\nexpect: 100-continue\r\n").as_bytes()).unwrap();
    let answer = asking.read().unwrap();
    assert_eq!((answer.status, answer.header("connection")), (404, Some("close")));
    // Who is told to send it keeps the connection, whatever the form of the body.
    let mut told = server.connect();
    told.write(chunked.replace("unknown", "slow").replace("\r\n\r\n", "\r\nexpect: 100-continue\r\n\r\n").as_bytes())
        .unwrap();
    assert_eq!(told.read().unwrap().status, 100);
    let (sent, _) = body(1, 0);
    told.write(&[format!("{:x}\r\n", sent.len()).as_bytes(), &sent, b"\r\n0\r\n\r\n"].concat()).unwrap();
    let answer = told.read().unwrap();
    assert_eq!((answer.status, answer.header("connection")), (200, None), "{}", answer.text());
    assert_eq!(told.post(PATH, "application/json", &sent).status, 200);
}

#[test]
fn an_objective_that_no_batch_keeps_is_said_and_nobody_is_refused_for_it() {
    let server = Server::start(&item("slow", "slow", "latency_objective_ms: 1"));
    assert_eq!(server.post(PATH, "application/json", &body(1, 0).0).status, 200);
    let info = server.get("/info").json();
    let objective = &info["models"][0]["latency_objective"];
    assert_eq!((&objective["milliseconds"], &objective["feasible"]), (&json!(1), &json!(false)), "{objective}");
    assert!(objective["reason"].as_str().unwrap().contains("nobody is refused"));
    assert_eq!(server.metric("ortolan_latency_objective_feasible{model=\"slow\"}"), 0.0);
    let easy = Server::start(&item("slow", "slow", "latency_objective_ms: 60000"));
    assert_eq!(easy.metric("ortolan_latency_objective_feasible{model=\"slow\"}"), 1.0);
    assert_eq!(easy.get("/info").json()["models"][0]["latency_objective"]["largest_batch"], json!(8));
}

#[test]
fn a_request_larger_than_the_whole_queue_is_told_so_and_not_to_come_again() {
    let server = Server::start(&item("slow", "slow", "queue_bytes: 300000"));
    let large = server.post(PATH, "application/json", &vec![b' '; 400_000]);
    assert_eq!((large.status, large.header("retry-after")), (413, None), "{}", large.text());
    assert_eq!(large.error(), "request takes 400000 bytes of the queue; expected at most 300000");
    // In many pieces, and nearly all of it.
    let (mut nearly, _) = body(1, 0);
    nearly.resize(290_000, b' ');
    assert_eq!(server.post(PATH, "application/json", &nearly).status, 200);
}
