//! Tensors in, tensors out.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test may panic")]

mod common;

use common::{Server, SharedServer, item};
use serde_json::{Value, json};

static SHARED: SharedServer = SharedServer::new(|| {
    let mixing = item("mixing", "batch-mixing", "") + &item("mixing-alone", "batch-mixing", "batch_size: 1");
    let similarity = item("similarity", "similarity", "");
    let mini = item(
        "mini",
        "minilm",
        "options: {warmup: {shapes: {input_ids: [16], attention_mask: [16], token_type_ids: [16]}}}",
    );
    let sequences = item("sum", "running-sum", "") + &item("match", "best-match", "");
    Server::start(&(item("tiny", "tiny", "") + &mixing + &similarity + &sequences + &mini))
});

fn tiny(shape: &Value, data: &Value) -> Value {
    json!({"id": "a7", "inputs": [{"name": "input", "shape": shape, "datatype": "FP32", "data": data}]})
}

#[test]
fn tensors_are_answered_in_the_form_of_the_open_inference_protocol() {
    let server = SHARED.get();
    for path in ["/predict/tiny", "/v2/models/tiny/infer"] {
        let answer = server.post_json(path, &tiny(&json!([2, 4]), &json!([[1, 2, 3, 4], [5, 6, 7, 8.5]])));
        assert_eq!(answer.status, 200, "{}", answer.text());
        let expected = json!({
            "id": "a7", "model_name": "tiny", "model_version": "1",
            "outputs": [{"name": "output", "datatype": "FP32", "shape": [2, 4],
                         "data": [2.0, 4.0, 6.0, 8.0, 10.0, 12.0, 14.0, 17.0]}],
        });
        assert_eq!(answer.json(), expected);
    }
}

#[test]
fn a_request_larger_than_a_batch_is_cut_and_joined() {
    let server = SHARED.get();
    let data: Vec<f64> = (0..84).map(f64::from).collect();
    let answer = server.post_json("/v2/models/tiny/infer", &tiny(&json!([21, 4]), &json!(data))).json();
    let expected: Vec<f64> = data.iter().map(|number| number * 2.0).collect();
    assert_eq!(answer["outputs"][0]["shape"], json!([21, 4]));
    assert_eq!(answer["outputs"][0]["data"], json!(expected));
}

/// A first dimension may be time, or there may be several: then a request is neither cut nor joined with others.
#[test]
fn what_is_no_batch_is_run_as_it_comes() {
    let server = SHARED.get();
    let ones = tiny(&json!([20, 4]), &json!(vec![1; 80]));
    let answer = server.post_json("/v2/models/sum/infer", &ones).json();
    let expected: Vec<u32> = (1..=20).flat_map(|step| [step; 4]).collect();
    let numbers = |at: usize| -> Vec<f64> { serde_json::from_value(answer["outputs"][at]["data"].clone()).unwrap() };
    assert_eq!(numbers(0), expected.iter().copied().map(f64::from).collect::<Vec<_>>());
    assert_eq!(numbers(1), numbers(0));

    let input = |name: &str, rows: &[[f32; 4]]| json!({"name": name, "shape": [rows.len(), 4], "datatype": "FP32", "data": rows});
    let documents = [[1.0, 0.0, 0.0, 0.0], [0.0, 3.0, 0.0, 0.0], [0.0, 2.0, 5.0, 0.0]];
    let asked = json!({"inputs": [input("query", &[[0.0, 1.0, 0.0, 0.0]]), input("documents", &documents)]});
    let answer = server.post_json("/v2/models/match/infer", &asked);
    assert_eq!((answer.status, &answer.json()["outputs"][0]["data"]), (200, &json!([3.0])), "{}", answer.text());
    // Of nothing there is an answer as well.
    let nothing = json!({"inputs": [input("query", &[]), input("documents", &documents)]});
    let answer = server.post_json("/v2/models/match/infer", &nothing);
    assert_eq!((answer.status, &answer.json()["outputs"][0]["shape"]), (200, &json!([0, 1])), "{}", answer.text());
}

/// Python's json writes them so, and Protocol Buffers' in quotes.
#[test]
fn numbers_that_are_not_finite_come_and_go_by_name() {
    let server = SHARED.get();
    let ask = |data: &str| {
        let body = format!(
            r#"{{"id": "NaN, \"Infinity", "inputs": [{{"name": "input", "shape": [1, 4], "datatype": "FP32", "data": {data}}}]}}"#
        );
        server.post("/v2/models/tiny/infer", "application/json", body.as_bytes())
    };
    for data in [
        "[NaN, Infinity,-Infinity, 1.5]",
        r#"[null, "Infinity", "-Infinity", 1.5]"#,
        r#"["NaN", Infinity, -Infinity, 1.5]"#,
    ] {
        let answer = ask(data);
        assert_eq!(answer.status, 200, "{}", answer.text());
        let answer = answer.json();
        assert_eq!(answer["outputs"][0]["data"], json!([null, "Infinity", "-Infinity", 3.0]), "{data}");
        assert_eq!(answer["id"], "NaN, \"Infinity");
    }
    for (data, said) in
        [("[1, 2, 3, 1e39]", "expected FP32, got 1e39"), (r#"[1, 2, 3, "nan"]"#, "invalid type: string")]
    {
        let answer = ask(data);
        assert!(answer.status == 400 && answer.error().contains(said), "{}", answer.text());
    }
    assert!(ask("[1, 2, 3, NaN").error().contains("expected `,` or `]`"), "{}", ask("[1, 2, 3, NaN").error());
}

#[test]
fn a_model_that_mixes_its_batch_is_found_out_and_its_requests_are_kept_apart() {
    let server = SHARED.get();
    let lost = "does not keep the batch dimension";
    let changed = "changes more than its first dimension with the batch: 1 sample gave shape [1, 1], 2 gave [2, 2]";
    let reasons = [
        ("mixing", lost),
        ("mixing-alone", "batch_size is 1"),
        ("similarity", changed),
        ("sum", "output `sum` of a sample depends on the other samples of the batch"),
        (
            "match",
            "the first dimensions of the inputs `query` and `documents` have different names, `queries` and `texts`",
        ),
    ];
    for (name, reason) in reasons {
        let info = server.get("/info").json();
        let model = info["models"].as_array().unwrap().iter().find(|model| model["name"] == name).unwrap().clone();
        assert_eq!(model["batching"]["enabled"], false, "{model}");
        assert!(model["batching"]["reason"].as_str().unwrap().contains(reason), "{model}");
    }
    let server = &server;
    std::thread::scope(|scope| {
        for client in 0..16 {
            scope.spawn(move || {
                let number = f64::from(client);
                let body = tiny(&json!([2, 4]), &json!([[number, 0, 0, 0], [number, 0, 0, 0]]));
                let answer = server.post_json("/v2/models/mixing/infer", &body).json();
                assert_eq!(answer["outputs"][0]["data"][0], json!(number * 2.0), "{answer}");
                let answer = server.post_json("/v2/models/mixing-alone/infer", &body).json();
                assert_eq!(answer["outputs"][0]["data"][0], json!(number * 2.0), "{answer}");
                let answer = server.post_json("/v2/models/similarity/infer", &body).json();
                assert_eq!(answer["outputs"][0]["shape"], json!([2, 2]), "{answer}");
                assert_eq!(answer["outputs"][0]["data"], json!([number * number].repeat(4)), "{answer}");
            });
        }
    });
}

#[test]
fn requests_of_different_lengths_are_answered_each_with_its_own() {
    let server = SHARED.get();
    let server = &server;
    std::thread::scope(|scope| {
        for client in 0..12_usize {
            scope.spawn(move || {
                let length = 3 + client % 4;
                let tensor = |name: &str, value: usize| {
                    json!({"name": name, "shape": [1, length], "datatype": "INT64", "data": vec![value; length]})
                };
                let body = json!({"inputs": [
                    tensor("token_type_ids", 0), tensor("input_ids", 2000 + client), tensor("attention_mask", 1),
                ]});
                let answer = server.post_json("/v2/models/mini/infer", &body);
                assert_eq!(answer.status, 200, "{}", answer.text());
                assert_eq!(answer.json()["outputs"][0]["shape"], json!([1, length, 384]));
            });
        }
    });
}

#[test]
fn what_does_not_fit_the_model_is_named() {
    let server = SHARED.get();
    let said = |body: Value| {
        let answer = server.post_json("/v2/models/tiny/infer", &body);
        assert_eq!(answer.status, 400, "{}", answer.text());
        answer.error()
    };
    let input = |change: Value| {
        let mut input = json!({"name": "input", "shape": [1, 4], "datatype": "FP32", "data": [1, 2, 3, 4]});
        input.as_object_mut().unwrap().extend(change.as_object().unwrap().clone());
        json!({"inputs": [input]})
    };
    assert_eq!(said(input(json!({"name": "x"}))), "unknown input `x`; the model's inputs are input");
    assert_eq!(said(json!({"inputs": []})), "input `input`: required, but missing");
    assert_eq!(said(input(json!({"datatype": "INT64"}))), "input `input`: expected datatype FP32, got INT64");
    assert_eq!(
        said(input(json!({"shape": [1, 5], "data": [1, 2, 3, 4, 5]}))),
        "input `input`: expected shape [-1, 4], got [1, 5]"
    );
    assert_eq!(said(input(json!({"shape": [4]}))), "input `input`: expected shape [-1, 4], got [4]");
    assert!(
        said(input(json!({"shape": [2, 4]}))).starts_with("input `input`: data: shape [2, 4] has 8 numbers, got 4")
    );
    let ragged = said(input(json!({"shape": [2, 2], "data": [[1, 2, 3], [4]]})));
    assert!(ragged.starts_with("input `input`: data: shape [2] has 2 numbers, got more"), "{ragged}");
    assert!(said(input(json!({"shape": [-1, 4]}))).contains("expected sizes of 0 or more"));
    assert!(said(input(json!({"shape": [0, 4], "data": []}))).contains("at least one sample"));
    assert!(said(input(json!({"data": ["a"]}))).contains("a number of FP32"));
    assert!(
        said(json!({"outputs": [{"name": "y"}], "inputs": input(json!({}))["inputs"]})).contains("unknown output `y`")
    );
    assert!(said(json!([])).starts_with("expected {\"inputs\""));
    assert!(said(input(json!({"data": [1, 2, 3, 1e39]}))).contains("expected FP32, got 1e39"));
    let twice = json!({"outputs": [{"name": "output"}, {"name": "output"}], "inputs": input(json!({}))["inputs"]});
    assert!(said(twice).starts_with("outputs: expected at most 1"));
    let sequence = json!({"parameters": {"sequence_id": 7}, "inputs": input(json!({}))["inputs"]});
    assert!(said(sequence).starts_with("parameters.sequence_id: sequences are not supported"));
}

#[test]
fn a_shape_that_lies_about_its_size_costs_nothing() {
    let server = SHARED.get();
    for shape in [json!([4_611_686_018_427_387_904_i64, 0]), json!([1_i64 << 40, 1_i64 << 40]), json!([1, 0])] {
        let tensor = |name: &str| json!({"name": name, "shape": shape, "datatype": "INT64", "data": []});
        let body = json!({"inputs": [tensor("input_ids"), tensor("attention_mask"), tensor("token_type_ids")]});
        let answer = server.post_json("/v2/models/mini/infer", &body);
        assert_eq!(answer.status, 400, "{shape}: {}", answer.text());
    }
    let many = json!([{"name": "output"}, {"name": "output"}]);
    let mut body = tiny(&json!([1, 4]), &json!([1, 2, 3, 4]));
    body["outputs"] = many;
    assert_eq!(server.post_json("/v2/models/tiny/infer", &body).status, 400, "an output is asked for twice");
    let rows = 3000;
    let long = tiny(&json!([rows, 4]), &json!(vec![1; rows * 4]));
    let answer = server.post_json("/v2/models/tiny/infer", &long);
    assert_eq!(answer.status, 413, "{}", answer.text());
    assert_eq!(answer.error(), "request has 3000 samples; expected at most 1024");
}

#[test]
fn what_is_not_heeded_and_lists_that_are_too_long_cost_no_memory() {
    // One of its own: what others ask at the same time would count.
    let server = Server::start(&item("tiny", "tiny", ""));
    let post = |body: &str| server.post("/v2/models/tiny/infer", "application/json", body.as_bytes());
    let input = r#"{"name": "input", "datatype": "FP32", "shape": [1, 4], "data": [1, 2, 3, 4]"#;
    assert_eq!(post(&format!(r#"{{"inputs": [{input}}}]}}"#)).status, 200);
    let before = server.memory_kib("VmHWM:");
    let many = |item: &str, count| format!("[{}{item}]", format!("{item},").repeat(count));
    let zeros = many("0", 1_500_000);
    let parameters = format!(r#""parameters": {{"x": {zeros}}}"#);
    for body in [
        format!(r#"{{{parameters}, "inputs": [{input}}}]}}"#),
        format!(r#"{{"inputs": [{input}, {parameters}}}]}}"#),
        format!(r#"{{"inputs": [{input}}}], "outputs": [{{"name": "output", {parameters}}}]}}"#),
    ] {
        assert_eq!(post(&body).json()["outputs"][0]["data"], json!([2.0, 4.0, 6.0, 8.0]));
    }
    let nameless = many(r#"{"name": ""}"#, 200_000);
    for (body, most) in [
        (format!(r#"{{"inputs": [{{"name": "input", "datatype": "FP32", "shape": {zeros}}}]}}"#), 64),
        (format!(r#"{{"inputs": [{input}}}], "outputs": {nameless}}}"#), 4096),
    ] {
        let answer = post(&body);
        assert_eq!(answer.status, 400, "{}", answer.text());
        assert!(answer.error().contains(&format!("expected a list of at most {most}, got more")), "{}", answer.error());
    }
    let grown = server.memory_kib("VmHWM:") - before;
    assert!(grown < 32 << 10, "the peak grew by {grown} KiB");
}

#[test]
fn numbers_count_as_bytes_of_their_type_before_they_are_read() {
    let server = Server::start(&item("tiny", "tiny", "queue_bytes: 100000, queue_size: 100000"));
    let rows = 6000;
    let body = tiny(&json!([rows, 4]), &json!(vec![0; rows * 4])).to_string();
    assert!(body.len() < 60_000);
    let answer = server.post("/v2/models/tiny/infer", "application/json", body.as_bytes());
    assert_eq!(answer.status, 413, "{}", answer.text());
    let both = body.len() + rows * 16;
    assert_eq!(answer.error(), format!("request takes {both} bytes of the queue; expected at most 100000"));
    // As many numbers, but the shape has few of them.
    let body = tiny(&json!([1, 4]), &json!(vec![0; rows * 4])).to_string();
    let answer = server.post("/v2/models/tiny/infer", "application/json", body.as_bytes());
    assert_eq!(answer.status, 400, "{}", answer.text());
    assert!(
        answer.error().starts_with("input `input`: data: shape [1, 4] has 4 numbers, got more"),
        "{}",
        answer.error()
    );
}

#[test]
fn what_libraries_write_for_what_nobody_set_is_taken_for_nothing() {
    let body = json!({
        "id": null,
        "parameters": {"sequence_id": 0, "sequence_start": false, "binary_data_output": null},
        "inputs": [{"name": "input", "shape": [1, 4], "datatype": "FP32", "data": [1, 2, 3, 4], "parameters": null}],
        "outputs": [{"name": "output", "parameters": null}],
    });
    let server = SHARED.get();
    let doubled = json!([2.0, 4.0, 6.0, 8.0]);
    assert_eq!(server.post_json("/v2/models/tiny/infer", &body).json()["outputs"][0]["data"], doubled);
    let mut less = body.clone();
    (less["parameters"], less["outputs"]) = (Value::Null, Value::Null);
    assert_eq!(server.post_json("/v2/models/tiny/infer", &less).json()["outputs"][0]["data"], doubled);
    // With a byte order mark, and the content type of plain text.
    let marked = format!("\u{feff}{body}");
    let answer = server.post("/v2/models/tiny/infer", "text/plain; charset=utf-8", marked.as_bytes());
    assert_eq!(answer.json()["outputs"][0]["data"], doubled);
    let answer = server.post("/v2/models/tiny/infer", "text/html", marked.as_bytes());
    assert_eq!(answer.status, 415);
    assert!(answer.error().contains("application/octet-stream, application/x-www-form-urlencoded, text/plain or none"));
}

#[test]
fn clients_that_name_no_content_type_or_a_version_are_served() {
    let server = SHARED.get();
    let body = tiny(&json!([1, 4]), &json!([1, 2, 3, 4])).to_string();
    let mut connection = server.connect();
    let path = "/v2/models/tiny/versions/1/infer";
    connection.write(&common::request("POST", path, &[], body.as_bytes())).unwrap();
    assert_eq!(connection.read().unwrap().json()["outputs"][0]["data"], json!([2.0, 4.0, 6.0, 8.0]));
    assert_eq!(server.get("/v2/models/tiny/versions/1/ready").status, 200);
    let other = server.get("/v2/models/tiny/versions/2/ready");
    assert_eq!(other.status, 404);
    assert_eq!(other.error(), "Request for unknown model: 'tiny' version 2 is not found");
}

#[test]
fn the_protocols_metadata_and_health_are_there() {
    let server = SHARED.get();
    let metadata = server.get("/v2/models/tiny").json();
    assert_eq!(metadata["inputs"], json!([{"name": "input", "datatype": "FP32", "shape": [-1, 4]}]));
    assert_eq!(metadata["versions"], json!(["1"]));
    assert_eq!(server.get("/v2/health/live").json()["live"], true);
    assert_eq!(server.get("/v2/health/ready?x=1").json()["ready"], true);
    assert_eq!(server.get("/v2/models/tiny/ready").json(), json!({"name": "tiny", "ready": true}));
    assert_eq!(server.get("/v2/models/none/ready").status, 404);
    assert_eq!(server.get("/v2").json()["name"], "ortolan");
}
