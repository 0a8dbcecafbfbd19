//! The process: how it starts, what it says when it cannot, and how it ends.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test may panic")]

mod common;

use std::{
    fs,
    io::Write as _,
    process::{Child, Command, Output, Stdio},
    sync::atomic::{AtomicBool, AtomicUsize, Ordering},
    time::Duration,
};

use common::{Connection, Server, classifier, eventually, get, item, model, program, request};
use serde_json::{Value, json};

/// Runs `serve` with a config that cannot work; what it printed, and its termination message.
fn fails_to_start(config: &str) -> (Output, Option<Value>) {
    fails_to_start_in(&[], config)
}

/// The same with variables of its environment.
fn fails_to_start_in(environment: &[(&str, &str)], config: &str) -> (Output, Option<Value>) {
    let folder = tempfile::tempdir().unwrap();
    let (file, message) = (folder.path().join("config.yaml"), folder.path().join("message"));
    fs::write(&file, config).unwrap();
    let output = program()
        .envs(environment.iter().copied())
        .args(["serve", "--config"])
        .arg(&file)
        .arg("--termination-message")
        .arg(&message)
        .stdout(Stdio::piped())
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let written = fs::read_to_string(message).ok();
    (output, written.map(|text| serde_json::from_str(&text).unwrap()))
}

const FREE_PORTS: &str = "server: {host: 127.0.0.1, port: 0, grpc_port: 0, metrics_port: 0}\n";

#[test]
fn spans_that_are_wanted_in_another_form_are_refused_with_a_sentence() {
    let environment =
        [("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:4317"), ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc")];
    let config = format!("{FREE_PORTS}models: [{{name: espresso, path: /nowhere}}]");
    let (_, message) = fails_to_start_in(&environment, &config);
    let message = message.unwrap();
    assert_eq!(message["reason"], "InvalidConfig");
    let said = message["message"].as_str().unwrap();
    assert!(said.contains("OTEL_EXPORTER_OTLP_PROTOCOL: expected http/protobuf"), "{said}");
}

#[test]
fn a_broken_config_tells_all_its_faults_at_once_with_their_paths() {
    let config = "server: {port: none, prot: 1}\nmodels: [{name: espresso, path: m, batch_size: 0}, {name: cat}]";
    let (output, message) = fails_to_start(config);
    let said = String::from_utf8(output.stderr).unwrap();
    let message = message.unwrap();
    assert_eq!(message["reason"], "InvalidConfig");
    for part in [
        "config has 4 faults",
        "server.port: expected integer, got \"none\"",
        "server.prot: unknown key `prot`",
        "models[espresso].batch_size: expected at least 1, got 0",
        "models[cat].path: required, but missing",
    ] {
        assert!(said.contains(part), "expected {part:?} in {said}");
        assert!(message["message"].as_str().unwrap().contains(part), "{message}");
    }
}

#[test]
fn a_config_file_that_is_not_there_is_named() {
    let output = program().args(["serve", "--config", "gone.yaml"]).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(said.contains("cannot read config file gone.yaml: No such file"), "{said}");
}

#[test]
fn a_model_file_that_is_no_model_ends_the_process_with_its_reason() {
    let folder = model("not-a-model");
    let (output, message) =
        fails_to_start(&format!("{FREE_PORTS}models: [{{name: espresso, path: '{}'}}]", folder.display()));
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(said.contains("model 'espresso' cannot be served: cannot load model file"), "{said}");
    let message = message.unwrap();
    assert_eq!(message["model"], "espresso");
    assert_eq!(message["reason"], "InvalidModel");
    let text = message["message"].as_str().unwrap();
    assert!(text.contains("model.onnx") && text.contains("Protobuf parsing failed"), "{text}");
    assert_eq!(text.matches("Protobuf").count(), 1, "it repeats itself: {text}");
}

#[test]
fn other_models_that_cannot_be_served_say_why() {
    let reason = |line: &str| fails_to_start(&format!("{FREE_PORTS}models:\n{line}")).1.unwrap();
    let iris = reason(&item("iris", "iris", ""));
    assert_eq!(iris["reason"], "InvalidModel");
    assert!(iris["message"].as_str().unwrap().contains("output `probabilities` is of type"), "{iris}");
    let tiny = reason(&item("tiny", "tiny", "task: image-classification"));
    assert!(tiny["message"].as_str().unwrap().contains("`input` FP32 [?, 4]"), "{tiny}");
    let labels = reason(&item("lite", "efficientnet-lite0", "task: image-classification, options: {labels: [a, b]}"));
    assert!(labels["message"].as_str().unwrap().contains("expected 1000 labels"), "{labels}");
    let crop = reason(&item("lite", "efficientnet-lite0", "task: image-classification, options: {image: {crop: 100}}"));
    assert_eq!(crop["reason"], "InvalidOptions");
    let gone = reason("  - {name: gone, path: no/such/folder}\n");
    assert!(gone["message"].as_str().unwrap().contains("nothing at no/such/folder"), "{gone}");
    let cuda = reason(&item("tiny", "tiny", "execution_providers: [cuda]"));
    assert_eq!(cuda["reason"], "ProviderUnavailable", "{cuda}");
}

#[test]
fn a_config_without_models_is_refused() {
    let (_, message) = fails_to_start(FREE_PORTS);
    assert_eq!(message.unwrap()["message"], "models: expected at least one, got none");
}

#[test]
fn a_missing_provider_that_may_be_replaced_is() {
    let server = Server::start(&item("tiny", "tiny", "execution_providers: [cuda, cpu]"));
    assert_eq!(server.get("/info").json()["models"][0]["provider"], "cpu");
    server.metric("ortolan_execution_provider_info{model=\"tiny\",provider=\"cpu\"}");
}

#[test]
fn a_port_that_is_taken_is_named() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port();
    let (output, _) = fails_to_start(&format!(
        "server: {{host: 127.0.0.1, port: {port}, grpc_port: 0, metrics_port: 0}}\nmodels:\n{}",
        item("tiny", "tiny", "")
    ));
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(
        said.contains(&format!("cannot listen on 127.0.0.1:{port} (server.port): Address already in use")),
        "{said}"
    );
}

#[test]
fn a_missing_library_says_what_to_set() {
    let output =
        program().env("ORT_DYLIB_PATH", "/no/such/library.so").arg("check").arg(model("tiny")).output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(
        said.contains("cannot load ONNX Runtime from /no/such/library.so") && said.contains("ORT_DYLIB_PATH"),
        "{said}"
    );
}

#[test]
fn check_prints_what_a_model_takes_and_gives() {
    let check = |name: &str| {
        let output = program().stdout(Stdio::piped()).arg("check").arg(model(name)).output().unwrap();
        (output.status.code(), String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap())
    };
    let (code, said, _) = check("efficientnet-lite0");
    assert_eq!(code, Some(0));
    for part in ["image-classification", "input FP32 [-1, 3, 224, 224]", "logits FP32 [-1, 1000]", "up to 8 samples"] {
        assert!(said.contains(part), "expected {part:?} in {said}");
    }
    let (code, said, _) = check("batch-mixing");
    assert_eq!(code, Some(0));
    assert!(said.contains("off: output `sum` does not keep the batch dimension"), "{said}");
    assert!(
        said.contains("not image-classification: task image-classification takes a model with one input"),
        "{said}"
    );
    // What `serve` would refuse as a classifier is not called fine as something else.
    let folder = tempfile::tempdir().unwrap();
    std::os::unix::fs::symlink(model("efficientnet-lite0").join("model.onnx"), folder.path().join("model.onnx"))
        .unwrap();
    fs::write(folder.path().join("labels.txt"), "label\n".repeat(999)).unwrap();
    let output = program().arg("check").arg(folder.path()).output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("expected 1000 labels, one for each class of the model, got 999"), "{said}");
    let (code, _, said) = check("not-a-model");
    assert_eq!(code, Some(1));
    assert!(said.contains("cannot be served: cannot load model file"), "{said}");
}

#[test]
fn check_takes_a_model_with_labels_that_is_no_classifier_for_one_of_tensors() {
    let folder = tempfile::tempdir().unwrap();
    std::os::unix::fs::symlink(model("tiny").join("model.onnx"), folder.path().join("model.onnx")).unwrap();
    fs::write(folder.path().join("labels.txt"), "cup\n").unwrap();
    let output = program().stdout(Stdio::piped()).arg("check").arg(folder.path()).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    let said = String::from_utf8(output.stdout).unwrap();
    assert!(said.contains("task      tensor") && said.contains("not image-classification: "), "{said}");
}

#[test]
fn before_its_models_are_loaded_a_server_is_alive_but_not_ready() {
    // Four models take long enough to be seen loading.
    let models: String = (0..4)
        .map(|n| item(&format!("lite{n}"), "efficientnet-lite0", "task: image-classification, batch_size: 1"))
        .collect();
    let server = Server::start_unready("", &models);
    let not_ready = get(server.admin, "/ready");
    assert_eq!(not_ready.status, 503);
    assert!(not_ready.error().starts_with("loading lite"), "{}", not_ready.error());
    assert_eq!(get(server.admin, "/health").status, 200);
    let early = server.post("/predict/lite3", "image/png", b"");
    assert_eq!(early.status, 503, "{}", early.text());
    assert!(early.error().contains("still loading"), "{}", early.error());
    assert_eq!(early.header("retry-after"), Some("1"));
    assert_eq!(server.post("/predict/none", "image/png", b"").status, 404, "an unknown name is unknown from the start");
    eventually("ready", || get(server.admin, "/ready").status == 200);
}

#[test]
fn metrics_come_in_both_text_forms() {
    let server = Server::start(&item("tiny", "tiny", ""));
    let old = get(server.admin, "/metrics");
    assert!(old.header("content-type").unwrap().starts_with("text/plain; version=0.0.4"));
    assert!(old.text().contains("# TYPE ortolan_requests_total counter\n"));
    let mut connection = Connection::open(server.admin);
    let accept = [("accept", "application/openmetrics-text; version=1.0.0")];
    connection.write(&request("GET", "/metrics", &accept, &[])).unwrap();
    let new = connection.read().unwrap();
    assert!(new.header("content-type").unwrap().starts_with("application/openmetrics-text"));
    assert!(new.text().ends_with("# EOF\n"));
    let accept = [("accept", "application/openmetrics-text;q=0.1"), ("accept", "text/plain;q=0.5")];
    connection.write(&request("GET", "/metrics", &accept, &[])).unwrap();
    assert!(!connection.read().unwrap().text().ends_with("# EOF\n"), "the form that it would rather have");
    assert_eq!(server.get("/metrics").status, 200, "the client port has them too");
    assert_eq!(server.get("/health/detailed").status, 404, "details are for the admin port");
}

fn tiny_body() -> Vec<u8> {
    json!({"inputs": [{"name": "input", "shape": [1, 4], "datatype": "FP32", "data": [1, 2, 3, 4]}]})
        .to_string()
        .into_bytes()
}

/// How a client fared with a server that was told to stop.
#[derive(Default)]
struct Tally {
    answered: AtomicUsize,
    lost: AtomicUsize,
    told_to_close: AtomicUsize,
}

/// Sends requests over kept connections until the server takes no more connections. A request that was sent and not
/// answered is lost, whatever the reason.
fn keep_asking(server: &Server, body: &[u8], content_type: &str, path: &str, tally: &Tally) {
    while let Ok(mut connection) = Connection::try_open(server.address) {
        loop {
            let answer = match connection.try_post(path, content_type, body) {
                Ok(answer) => answer,
                Err(error) => {
                    tally.lost.fetch_add(1, Ordering::Relaxed);
                    panic!("a request was lost: {error}");
                }
            };
            assert_eq!(answer.status, 200, "{}", answer.text());
            tally.answered.fetch_add(1, Ordering::Relaxed);
            if answer.header("connection") == Some("close") {
                tally.told_to_close.fetch_add(1, Ordering::Relaxed);
                break;
            }
        }
    }
}

#[test]
fn sigterm_under_64_kept_connections_loses_no_request() {
    let server = Server::start_with("drain_delay_ms: 1000", &item("tiny", "tiny", ""));
    let tally = Tally::default();
    std::thread::scope(|scope| {
        for _ in 0..64 {
            scope.spawn(|| keep_asking(&server, &tiny_body(), "application/json", "/v2/models/tiny/infer", &tally));
        }
        eventually("load", || tally.answered.load(Ordering::Relaxed) > 1000);
        server.signal("TERM");
        eventually("not ready at once", || get(server.admin, "/ready").status == 503);
        assert_eq!(get(server.admin, "/health").status, 200, "it is alive while it drains");
    });
    let (status, log) = server.wait();
    assert_eq!(status.code(), Some(0), "{log}");
    assert_eq!(tally.lost.load(Ordering::Relaxed), 0);
    assert!(tally.told_to_close.load(Ordering::Relaxed) >= 64);
}

#[test]
fn sigterm_lets_slow_requests_finish_and_idle_connections_go() {
    let server = Server::start_with("drain_delay_ms: 100", &item("slow", "slow", "batch_size: 1, max_queue_ms: 60000"));
    let idle: Vec<Connection> = (0..8).map(|_| server.connect()).collect();
    let done = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..24 {
            scope.spawn(|| {
                let answer = server.post("/v2/models/slow/infer", "application/json", &tiny_body());
                assert_eq!(answer.status, 200, "{}", answer.text());
                done.fetch_add(1, Ordering::Relaxed);
            });
        }
        eventually("all are in", || server.metric("ortolan_requests_received_total{model=\"slow\"}") == 24.0);
        server.signal("TERM");
    });
    assert_eq!(done.load(Ordering::Relaxed), 24);
    let (status, log) = server.wait();
    assert_eq!(status.code(), Some(0), "{log}");
    drop(idle);
}

#[test]
fn ctrl_c_skips_the_delay_and_a_second_signal_ends_it_at_once() {
    let patient = Server::start_with("drain_delay_ms: 600000", &item("tiny", "tiny", ""));
    patient.signal("INT");
    assert_eq!(patient.wait().0.code(), Some(0));

    let stubborn = Server::start_with("drain_delay_ms: 600000", &item("tiny", "tiny", ""));
    stubborn.signal("TERM");
    eventually("draining", || get(stubborn.admin, "/ready").status == 503);
    // What comes at the same moment is the same signal, sent to the process and to its group.
    std::thread::sleep(Duration::from_millis(300));
    stubborn.signal("TERM");
    assert_eq!(stubborn.wait().0.code(), Some(1), "requests may have been dropped");
}

/// A library that is a pipe: it is loaded for as long as nothing is written into it.
fn listens_for_signals(child: &Child) {
    // The mask of signals that have a handler, SIGTERM being the 15th.
    eventually("it listens for signals", || {
        let status = fs::read_to_string(format!("/proc/{}/status", child.id())).unwrap();
        let mask = status.lines().find_map(|line| line.strip_prefix("SigCgt:\t")).unwrap();
        u64::from_str_radix(mask, 16).unwrap() & (1 << 14) != 0
    });
}

#[test]
fn a_signal_that_comes_while_the_library_is_loaded_is_not_lost() {
    let folder = tempfile::tempdir().unwrap();
    let (file, library) = (folder.path().join("config.yaml"), folder.path().join("library.so"));
    fs::write(&file, format!("{FREE_PORTS}models:\n{}", item("tiny", "tiny", ""))).unwrap();
    assert!(Command::new("mkfifo").arg(&library).status().unwrap().success());
    let mut pipe = fs::File::options().read(true).write(true).open(&library).unwrap();
    let mut command = program();
    command.env("ORT_DYLIB_PATH", &library).args(["serve", "--config"]).arg(&file).stderr(Stdio::piped());
    let child = command.spawn().unwrap();
    listens_for_signals(&child);
    assert!(Command::new("kill").arg(child.id().to_string()).status().unwrap().success());
    pipe.write_all(&[b'x'; 1024]).unwrap();
    let output = child.wait_with_output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "not ended by the signal: {said}");
    assert!(said.contains("cannot load ONNX Runtime from"), "{said}");
}

#[test]
fn a_server_that_is_stopped_while_it_loads_ends_well() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("config.yaml");
    let models = item("mini", "minilm", "") + &item("lite", "efficientnet-lite0", "");
    fs::write(&file, format!("{FREE_PORTS}models:\n{models}")).unwrap();
    for millis in [0, 30, 60, 100, 150, 250] {
        let child = program().args(["serve", "--config"]).arg(&file).stderr(Stdio::piped()).spawn().unwrap();
        listens_for_signals(&child);
        std::thread::sleep(Duration::from_millis(millis));
        assert!(Command::new("kill").arg(child.id().to_string()).status().unwrap().success());
        let output = child.wait_with_output().unwrap();
        assert_eq!(output.status.code(), Some(0), "{}: {}", output.status, String::from_utf8_lossy(&output.stderr));
    }
}

#[test]
fn an_old_connection_is_told_to_close_and_loses_nothing() {
    let server = Server::start_with("max_connection_age_ms: 200", &item("tiny", "tiny", ""));
    let mut connection = server.connect();
    let closed = AtomicBool::new(false);
    eventually("told to close", || {
        let answer = connection.post("/v2/models/tiny/infer", "application/json", &tiny_body());
        assert_eq!(answer.status, 200);
        closed.store(answer.header("connection") == Some("close"), Ordering::Relaxed);
        closed.load(Ordering::Relaxed)
    });
}

#[test]
fn settings_of_the_environment_win() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("config.yaml");
    fs::write(&file, format!("{FREE_PORTS}models:\n{}", classifier())).unwrap();
    let output =
        program().args(["serve", "--config"]).arg(&file).env("ORTOLAN__SERVER__PORT", "70000").output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(said.contains("server.port: expected at most 65535, got 70000 (environment)"), "{said}");
}
