//! What a running server tells about itself: events, their consumers, health, and no secrets.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test may panic")]

#[path = "../common/mod.rs"]
mod common;
mod secrets;

use std::{
    fs,
    io::{BufRead as _, BufReader, Write as _},
    path::Path,
    process::{Child, Command, Stdio},
    sync::{Arc, Mutex},
};

use common::{Connection, Server, Setup, eventually, get, item, request};
use serde_json::{Value, json};

fn body() -> Value {
    json!({"inputs": [{"name": "input", "datatype": "FP32", "shape": [1, 4], "data": [1, 2, 3, 4]}]})
}

/// Asks `tiny` so often; every answer must be right.
fn ask(server: &Server, times: usize) {
    let mut connection = server.connect();
    for _ in 0..times {
        let answer = connection.post("/v2/models/tiny/infer", "application/json", body().to_string().as_bytes());
        assert_eq!(answer.status, 200, "{}", answer.text());
        if answer.closes() {
            connection = server.connect();
        }
    }
}

fn patch(server: &Server, change: &Value) -> common::Response {
    let mut connection = Connection::open(server.admin);
    let headers = [("content-type", "application/json")];
    let body = change.to_string();
    let mut bytes = request("PATCH", "/observability", &[headers[0], ("content-length", &body.len().to_string())], &[]);
    bytes.extend(body.bytes());
    connection.write(&bytes).unwrap();
    connection.read().unwrap()
}

fn with_audit(file: &Path) -> Server {
    let sections = format!("observability: {{events: {{audit: {{file: '{}'}}}}}}\n", file.display());
    Server::start_as(&Setup { sections: &sections, models: &item("tiny", "tiny", ""), ..Setup::default() })
}

/// What was counted of a consumer: taken, and dropped for each reason.
fn counted(server: &Server, consumer: &str) -> [u64; 4] {
    let counts = &get(server.admin, "/observability").json()["consumers"][consumer];
    let dropped = &counts["dropped"];
    [&counts["consumed"], &dropped["full"], &dropped["open"], &dropped["failed"]].map(|count| count.as_u64().unwrap())
}

#[test]
fn the_audit_file_has_a_line_for_everything_that_happens() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("audit.jsonl");
    let server = with_audit(&file);
    ask(&server, 20);
    assert_eq!(server.post_json("/v2/models/tiny/infer", &json!({"inputs": []})).status, 400);
    let lines = || -> Vec<Value> {
        let text = fs::read_to_string(&file).unwrap_or_default();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    };
    let count = |event: &str| lines().iter().filter(|line| line["event"] == event).count();
    eventually("all is written", || count("request.completed") == 20 && count("request.invalid") == 1);
    assert_eq!((count("request.received"), count("model.loaded"), count("instance.started")), (21, 1, 1));
    assert_eq!(count("batch.run"), 20);
    let all = lines();
    let completed = all.iter().find(|line| line["event"] == "request.completed").unwrap();
    assert_eq!((completed["model"].as_str(), completed["outcome"].as_str()), (Some("tiny"), Some("ok")));
    assert_eq!((completed["batch_size"].as_u64(), completed["status"].as_u64()), (Some(1), Some(200)));
    assert!(completed["total_ms"].as_f64() >= completed["run_ms"].as_f64(), "{completed}");
    assert!(completed["timestamp"].as_str().is_some_and(|time| time.ends_with('Z')), "{completed}");
    let [consumed, dropped @ ..] = counted(&server, "audit");
    assert_eq!((consumed as usize, dropped), (all.len(), [0, 0, 0]));
}

#[test]
fn one_request_id_leads_from_the_answer_to_the_line_of_the_log() {
    let models = item("tiny", "tiny", "");
    let sections = "observability: {events: {log: [{events: request.completed}]}}\n";
    let server = Server::start_as(&Setup { sections, models: &models, ..Setup::default() });
    let headers = [
        ("content-type", "application/json"),
        ("x-request-id", "order-7"),
        ("x-correlation-id", "basket-3"),
        ("traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"),
    ];
    let mut connection = server.connect();
    connection.write(&request("POST", "/v2/models/tiny/infer", &headers, body().to_string().as_bytes())).unwrap();
    let answer = connection.read().unwrap();
    assert_eq!((answer.status, answer.header("x-request-id")), (200, Some("order-7")));
    eventually("the line is there", || server.events("request.completed").len() == 1);
    let line = &server.events("request.completed")[0];
    for (field, value) in [
        ("request_id", "order-7"),
        ("correlation_id", "basket-3"),
        ("trace_id", "0af7651916cd43dd8448eb211c80319c"),
        ("model", "tiny"),
        ("outcome", "ok"),
    ] {
        assert_eq!(line[field], value, "{line}");
    }
    assert!(line["queue_ms"].is_number() && line["total_ms"].is_number(), "{line}");
}

#[test]
fn a_request_that_failed_or_was_late_says_how_far_it_came() {
    let shapes = "{input_ids: [16], attention_mask: [16], token_type_ids: [16]}";
    let mini = item("mini", "minilm", &format!("options: {{warmup: {{shapes: {shapes}}}}}"));
    let late = item("late", "slow", "request_timeout_ms: 4");
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("audit.jsonl");
    let sections = format!("observability: {{events: {{audit: {{file: '{}'}}}}}}\n", file.display());
    let models = item("tiny", "tiny", "") + &mini + &late;
    let server = Server::start_as(&Setup { sections: &sections, models: &models, ..Setup::default() });
    // A token that is in no vocabulary.
    let tokens = |name: &str, token: i64| json!({"name": name, "datatype": "INT64", "shape": [1, 1], "data": [token]});
    let inputs = json!([tokens("input_ids", 1 << 40), tokens("attention_mask", 1), tokens("token_type_ids", 0)]);
    assert_eq!(server.post_json("/v2/models/mini/infer", &json!({"inputs": inputs})).status, 500);
    let line = |event: &str| {
        eventually("the line is there", || !server.events(event).is_empty());
        server.events(event).remove(0)
    };
    let failed = line("request.failed");
    for field in ["decode_ms", "queue_ms", "run_ms"] {
        assert!(failed[field].is_number(), "{field}: {failed}");
    }
    assert_eq!((failed["batch_size"].as_u64(), failed["status"].as_u64()), (Some(1), Some(500)), "{failed}");
    eventually("one is too late", || server.post_json("/v2/models/late/infer", &body()).status == 504);
    let expired = line("request.expired");
    assert!(expired["decode_ms"].is_number() && expired["queue_ms"].is_number(), "{expired}");
    eventually("the audit file has the same", || {
        let text = fs::read_to_string(&file).unwrap_or_default();
        let mut lines = text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        lines.any(|line| line["event"] == "request.failed" && line["run_ms"] == failed["run_ms"])
    });
}

/// A collector that prints every span, on a port of its own. Ended when dropped.
struct Collector {
    child: Child,
    endpoint: String,
    printed: Arc<Mutex<String>>,
}

impl Collector {
    fn start(folder: &Path) -> Self {
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let config = folder.join("collector.yaml");
        let text = format!(
            "receivers: {{otlp: {{protocols: {{http: {{endpoint: '127.0.0.1:{port}'}}}}}}}}\n\
             exporters: {{debug: {{verbosity: detailed}}}}\n\
             service: {{telemetry: {{metrics: {{level: none}}}}, pipelines: {{traces: {{receivers: [otlp], exporters: [debug]}}}}}}\n"
        );
        fs::write(&config, text).unwrap();
        let mut command = Command::new(common::built("otelcol"));
        let mut child = command.arg("--config").arg(&config).stderr(Stdio::piped()).spawn().unwrap();
        let printed = Arc::<Mutex<String>>::default();
        let (stderr, kept) = (child.stderr.take().unwrap(), Arc::clone(&printed));
        std::thread::spawn(move || {
            for line in BufReader::new(stderr).lines().map_while(Result::ok) {
                kept.lock().unwrap().push_str(&(line + "\n"));
            }
        });
        let endpoint = format!("http://127.0.0.1:{port}");
        let started = Self { child, endpoint, printed };
        eventually("the collector listens", || std::net::TcpStream::connect(("127.0.0.1", port)).is_ok());
        started
    }

    /// What it printed of each span, by name.
    fn spans(&self, name: &str) -> Vec<String> {
        let printed = self.printed.lock().unwrap();
        let is_of = |span: &&str| span.lines().any(|line| line.trim() == format!("Name           : {name}"));
        printed.split("\nSpan #").skip(1).filter(is_of).map(str::to_owned).collect()
    }
}

impl Drop for Collector {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn traced(endpoint: &str, sample: f64) -> Server {
    let sections = format!(
        "observability: {{tracing: {{endpoint: '{endpoint}', sample: {sample}}}, events: {{log: [{{events: request.completed}}]}}}}\n"
    );
    Server::start_as(&Setup { sections: &sections, models: &item("tiny", "tiny", ""), ..Setup::default() })
}

#[test]
fn one_request_id_leads_from_the_answer_through_log_and_exemplar_to_the_trace_in_a_collector() {
    let folder = tempfile::tempdir().unwrap();
    let collector = Collector::start(folder.path());
    let server = traced(&collector.endpoint, 1.0);
    let mut connection = server.connect();
    let headers = [("content-type", "application/json")];
    connection.write(&request("POST", "/v2/models/tiny/infer", &headers, body().to_string().as_bytes())).unwrap();
    let answer = connection.read().unwrap();
    let id = answer.header("x-request-id").unwrap().to_owned();
    eventually("the line is there", || server.events("request.completed").len() == 1);
    let line = &server.events("request.completed")[0];
    assert_eq!(line["request_id"], id.as_str());
    let trace = line["trace_id"].as_str().unwrap().to_owned();

    let mut scrape = Connection::open(server.admin);
    scrape.write(&request("GET", "/metrics", &[("accept", "application/openmetrics-text")], &[])).unwrap();
    let text = scrape.read().unwrap().text();
    let example = text.lines().find(|line| line.contains("request_latency_seconds_bucket") && line.contains(" # {"));
    let example = example.unwrap_or_else(|| panic!("no exemplar in\n{text}"));
    assert!(example.contains(&format!("trace_id=\"{trace}\",request_id=\"{id}\"")), "{example}");

    eventually("its spans are in the collector", || collector.spans("request").len() == 1);
    let span = &collector.spans("request")[0];
    assert!(span.contains(&format!("Trace ID       : {trace}")), "{span}");
    assert!(span.contains(&format!("ortolan.request_id: Str({id})")), "{span}");
    for part in ["decode", "queue", "inference"] {
        let spans = collector.spans(part);
        assert!(spans.len() == 1 && spans[0].contains(&format!("Trace ID       : {trace}")), "{part}: {spans:?}");
    }
    eventually("and its batch", || collector.spans("batch").len() == 1 && collector.spans("session run").len() == 1);
    assert!(collector.spans("batch")[0].contains(&trace), "linked to its request: {:?}", collector.spans("batch"));
}

#[test]
fn a_caller_s_trace_is_continued_and_an_untraced_one_left_alone() {
    let folder = tempfile::tempdir().unwrap();
    let collector = Collector::start(folder.path());
    let server = traced(&collector.endpoint, 0.0);
    ask(&server, 5);
    let parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    let headers = [("content-type", "application/json"), ("traceparent", parent)];
    let mut connection = server.connect();
    connection.write(&request("POST", "/v2/models/tiny/infer", &headers, body().to_string().as_bytes())).unwrap();
    assert_eq!(connection.read().unwrap().status, 200);
    eventually("its span is in the collector", || !collector.spans("request").is_empty());
    let spans = collector.spans("request");
    assert_eq!(spans.len(), 1, "{spans:?}");
    assert!(spans[0].contains("Trace ID       : 0af7651916cd43dd8448eb211c80319c"), "{}", spans[0]);
    assert!(spans[0].contains("Parent ID      : b7ad6b7169203331"), "{}", spans[0]);
}

#[test]
fn a_collector_that_is_not_there_costs_its_spans_and_nothing_else() {
    let server = traced("http://127.0.0.1:9", 1.0);
    ask(&server, 300);
    eventually("the spans are counted as lost", || {
        ask(&server, 10);
        let [consumed, dropped @ ..] = counted(&server, "trace");
        consumed == 0 && dropped.iter().sum::<u64>() >= 300
    });
}

#[test]
fn a_full_disk_harms_no_request_and_every_event_is_counted() {
    let server = with_audit(Path::new("/dev/full"));
    let mut asked = 0;
    eventually("the consumer is cut off", || {
        ask(&server, 10);
        asked += 10;
        server.metric("ortolan_consumer_open{consumer=\"audit\"}") == 1.0
    });
    ask(&server, 500);
    asked += 500;
    let health = get(server.admin, "/health/detailed");
    assert_eq!((health.status, health.json()["status"].as_str()), (200, Some("warning")), "{}", health.text());
    // Each request is received, runs alone and completes; beside them a model, an instance, and checks that changed.
    let other = |server: &Server| 2 + server.events("health.changed").len() as u64;
    eventually("all are counted", || {
        let [consumed, dropped @ ..] = counted(&server, "audit");
        consumed == 0 && dropped.iter().sum::<u64>() == 3 * asked as u64 + other(&server)
    });
    assert!(server.log().contains("a consumer of events is cut off"), "{}", server.log());
    assert_eq!(server.get("/health").status, 200);
}

#[test]
fn a_consumer_that_blocks_holds_nobody_up_and_comes_back() {
    let folder = tempfile::tempdir().unwrap();
    let pipe = folder.path().join("pipe");
    assert!(Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    let server = with_audit(&pipe);
    // Nobody reads the pipe, so whoever opens it waits.
    let mut asked = 0;
    eventually("it is cut off", || {
        ask(&server, 100);
        asked += 100;
        server.metric("ortolan_consumer_open{consumer=\"audit\"}") == 1.0
    });
    let mut reader = Reader::of(&pipe);
    eventually("it works again, and every event is counted", || {
        // Each time that it opens the pipe there must be somebody who reads.
        if reader.0.try_wait().unwrap().is_some() {
            reader = Reader::of(&pipe);
        }
        let [consumed, dropped @ ..] = counted(&server, "audit");
        let all = 3 * asked as u64 + 2 + server.events("health.changed").len() as u64;
        let is_open = server.metric("ortolan_consumer_open{consumer=\"audit\"}") == 1.0;
        !is_open && consumed > 0 && consumed + dropped.iter().sum::<u64>() == all
    });
}

/// Reads a pipe to its end, or to its own.
struct Reader(Child);

impl Reader {
    fn of(pipe: &Path) -> Self {
        Self(Command::new("cat").arg(pipe).stdout(Stdio::null()).spawn().unwrap())
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn a_log_that_nobody_reads_holds_nobody_up() {
    let sections = "observability: {events: {log: [{events: '*'}]}}\n";
    let server = Server::start_as(&Setup { sections, models: &item("tiny", "tiny", ""), ..Setup::default() });
    let held = server.hold_log();
    // Of three events each; lines are dropped once the pipe and the log's buffer are full.
    ask(&server, 6_000);
    assert!(get(server.admin, "/observability").json()["log_lines_dropped"].as_u64().unwrap() > 0, "the log was read");
    drop(held);
    eventually("the log goes on", || server.events("request.completed").len() > 100);
}

#[test]
fn what_is_told_is_changed_while_it_runs() {
    let server = Server::start(&item("tiny", "tiny", ""));
    ask(&server, 5);
    assert!(server.events("request.completed").is_empty());
    let rules = json!([{"events": "request.completed"}]);
    let changed = patch(&server, &json!({"log": rules, "level": "info"}));
    assert_eq!(changed.status, 200, "{}", changed.text());
    assert_eq!(changed.json()["level"], "info");
    assert_eq!(changed.json()["log"], json!([{"events": "request.completed", "sample": 1.0, "per_second": null}]));
    ask(&server, 5);
    eventually("the lines are there", || server.events("request.completed").len() == 5);
    for (change, said) in [
        (json!({"level": "ba=d=filter"}), "level: expected"),
        (json!({"log": [{"events": "nothing.*"}]}), "log[0].events: expected an event"),
        (json!({"log": [{"events": "*", "sample": 2}]}), "sample from 0 to 1"),
        (json!({"audit": []}), "no such consumer"),
        (json!({"trace_sample": 0.5}), "no collector"),
        (json!({"levels": "info"}), "expected level, log, audit or trace_sample"),
    ] {
        let refused = patch(&server, &change);
        assert_eq!(refused.status, 400, "{change}");
        assert!(refused.error().contains(said), "{change}: {}", refused.error());
    }
    let long = patch(&server, &json!({"level": "x".repeat(70_000)}));
    assert_eq!(long.status, 413, "{}", long.text());
    assert_eq!(get(server.admin, "/observability").json()["log"], changed.json()["log"]);
    assert_eq!(server.get("/observability").status, 404, "for the admin port");
}

/// That a program which reads metrics finds no fault with these. Returns what it said.
fn read_by(reader: &mut Command, metrics: &str) -> String {
    let mut child = reader.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(metrics.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    assert!(output.status.success(), "{said}\n{metrics}");
    said
}

#[test]
fn both_forms_of_the_metrics_are_what_their_own_tools_take() {
    // With a collector, so that there are exemplars; whether it takes anything does not matter.
    let server = traced("http://127.0.0.1:9", 1.0);
    ask(&server, 20);
    let metrics = |accept: &str| {
        let mut connection = Connection::open(server.admin);
        connection.write(&request("GET", "/metrics", &[("accept", accept)], &[])).unwrap();
        connection.read().unwrap().text()
    };
    read_by(Command::new(common::built("promtool")).args(["check", "metrics"]), &metrics("text/plain"));
    let parser = common::repository().join("tests/openmetrics/check.py");
    let said = read_by(Command::new("python3").arg(parser), &metrics("application/openmetrics-text; version=1.0.0"));
    assert!(said.contains("samples") && !said.contains(" 0 exemplars"), "{said}");
}

#[test]
fn a_gpu_is_told_as_its_driver_tells_of_it() {
    // No machine of this test need have one: the library of the driver is a stand-in.
    let folder = tempfile::tempdir().unwrap();
    let library = folder.path().join("libnvidia-ml.so.1");
    let source = common::repository().join("tests/programs/nvml/nvml.c");
    let compiled = Command::new("cc").args(["-shared", "-fPIC", "-o"]).arg(library).arg(source).status().unwrap();
    assert!(compiled.success());
    let environment = [("LD_LIBRARY_PATH", folder.path().to_str().unwrap())];
    let models = item("tiny", "tiny", "");
    let server = Server::start_as(&Setup { models: &models, environment: &environment, ..Setup::default() });
    eventually("the driver is asked", || get(server.admin, "/metrics").text().contains("ortolan_gpu_"));
    let gpu = |name: &str| server.metric(&format!("ortolan_gpu_{name}{{gpu=\"0\"}}"));
    assert_eq!([gpu("memory_used_bytes"), gpu("memory_total_bytes")], [3.0, 16.0].map(|gib| gib * 1024.0_f64.powi(3)));
    assert_eq!(gpu("utilization_ratio"), 0.07);
}

#[test]
fn names_that_clients_make_up_add_no_series() {
    let server = Server::start(&item("tiny", "tiny", ""));
    let series = || get(server.admin, "/metrics").text().lines().filter(|line| !line.starts_with('#')).count();
    assert_eq!(server.post_json("/v2/models/first/infer", &body()).status, 404);
    ask(&server, 1);
    // The scrape itself adds one.
    let _ = series();
    let before = series();
    let mut connection = server.connect();
    for number in 0..10_000 {
        let path = format!("/v2/models/unknown-{number}/infer");
        let headers = [("content-type", "application/json"), ("x-request-id", &format!("client-{number}"))];
        connection.write(&request("POST", &path, &headers, b"{}")).unwrap();
        let answer = connection.read().unwrap();
        assert_eq!(answer.status, 404);
        if answer.closes() {
            connection = server.connect();
        }
    }
    assert_eq!(series(), before);
}

#[test]
fn detailed_health_knows_what_was_asked_of_each_model() {
    let server = Server::start(&item("tiny", "tiny", "instances: 2"));
    ask(&server, 50);
    let health = get(server.admin, "/health/detailed").json();
    let model = &health["models"][0];
    assert_eq!((health["status"].as_str(), model["requests"].as_u64()), (Some("ok"), Some(50)), "{health}");
    assert_eq!(model["instances"]["total"], 2);
    assert!(model["latency_ms"]["p99"].as_f64() >= model["latency_ms"]["p50"].as_f64(), "{health}");
    assert!(model["memory_bytes"].as_u64() > Some(0), "{health}");
    assert!(health["system"]["memory"]["used_bytes"].as_u64() > Some(1 << 20), "{health}");
    assert!(health["checks"].as_array().is_some_and(|checks| checks.len() >= 7), "{health}");
}
