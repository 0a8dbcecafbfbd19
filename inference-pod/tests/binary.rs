//! Tensors as bytes behind the JSON.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test may panic")]

mod common;

use common::{Response, Server, SharedServer, request};
use serde_json::{Value, json};

const LENGTH: &str = "inference-header-content-length";

static SHARED: SharedServer = SharedServer::new(common::tiny_and_mini);

fn floats(numbers: &[f32]) -> Vec<u8> {
    numbers.iter().flat_map(|number| number.to_le_bytes()).collect()
}

fn integers(numbers: &[i64]) -> Vec<u8> {
    numbers.iter().flat_map(|number| number.to_le_bytes()).collect()
}

/// JSON, its length, and the tensors behind it.
struct Framed {
    json: Value,
    tensors: Vec<u8>,
}

impl Framed {
    fn send(&self, server: &Server, model: &str) -> Response {
        let json = self.json.to_string();
        let body = [json.as_bytes(), &self.tensors].concat();
        post(server, model, &json.len().to_string(), &body)
    }
}

fn post(server: &Server, model: &str, length: &str, body: &[u8]) -> Response {
    let mut connection = server.connect();
    let headers = [(LENGTH, length), ("content-type", "application/octet-stream")];
    connection.write(&request("POST", &format!("/v2/models/{model}/infer"), &headers, body)).unwrap();
    connection.read().unwrap()
}

/// The JSON of an answer, and the bytes behind it.
fn parted(answer: &Response) -> (Value, Vec<u8>) {
    assert_eq!(answer.status, 200, "{}", answer.text());
    assert_eq!(answer.header("content-type"), Some("application/octet-stream"));
    let length: usize = answer.header(LENGTH).unwrap().parse().unwrap();
    let (json, tensors) = answer.body.split_at(length);
    (serde_json::from_slice(json).unwrap(), tensors.to_vec())
}

fn tiny(parameters: &Value, size: usize) -> Value {
    let input = json!({"name": "input", "shape": [1, 4], "datatype": "FP32", "parameters": {"binary_data_size": size}});
    json!({"inputs": [input], "parameters": parameters})
}

#[test]
fn bytes_are_answered_by_numbers_or_by_bytes_as_asked() {
    let server = SHARED.get();
    let tensors = floats(&[1.0, 2.0, 3.0, 4.25]);
    let doubled = floats(&[2.0, 4.0, 6.0, 8.5]);
    let plain = Framed { json: tiny(&json!({}), 16), tensors: tensors.clone() }.send(&server, "tiny");
    assert_eq!(plain.header("content-type"), Some("application/json"));
    assert_eq!(plain.header(LENGTH), None);
    assert_eq!(plain.json()["outputs"][0]["data"], json!([2.0, 4.0, 6.0, 8.5]));

    let binary = Framed { json: tiny(&json!({"binary_data_output": true}), 16), tensors: tensors.clone() };
    let (json, bytes) = parted(&binary.send(&server, "tiny"));
    let output = json!({"name": "output", "datatype": "FP32", "shape": [1, 4], "parameters": {"binary_data_size": 16}});
    assert_eq!(json, json!({"model_name": "tiny", "model_version": "1", "outputs": [output]}));
    assert_eq!(bytes, doubled);

    let mut asked = tiny(&json!({"binary_data_output": true}), 16);
    asked["outputs"] = json!([{"name": "output", "parameters": {"binary_data": false}}]);
    let plain = Framed { json: asked, tensors }.send(&server, "tiny");
    assert_eq!(plain.json()["outputs"][0]["data"], json!([2.0, 4.0, 6.0, 8.5]));
}

#[test]
fn numbers_are_answered_by_bytes_without_the_header_too() {
    let server = SHARED.get();
    let input = json!({"name": "input", "shape": [1, 4], "datatype": "FP32", "data": [1, 2, 3, 4]});
    let output = json!({"name": "output", "parameters": {"binary_data": true}});
    let body = json!({"id": "", "inputs": [input], "outputs": [output]});
    for path in ["/v2/models/tiny/infer", "/predict/tiny"] {
        let (json, bytes) = parted(&server.post_json(path, &body));
        assert_eq!(json["id"], Value::Null, "an empty id is none");
        assert_eq!(bytes, floats(&[2.0, 4.0, 6.0, 8.0]));
    }
}

#[test]
fn a_header_as_long_as_the_body_is_plain_json() {
    let server = SHARED.get();
    let input = json!({"name": "input", "shape": [1, 4], "datatype": "FP32", "data": [1, 2, 3, 4]});
    let answer = Framed { json: json!({"inputs": [input]}), tensors: Vec::new() }.send(&server, "tiny");
    assert_eq!(answer.json()["outputs"][0]["data"], json!([2.0, 4.0, 6.0, 8.0]));
}

fn mini(ids: &Value, mask: &Value, types: &Value) -> Value {
    let input = |name: &str, rest: &Value| {
        let mut input = json!({"name": name, "shape": [1, 16], "datatype": "INT64"});
        input.as_object_mut().unwrap().extend(rest.as_object().unwrap().clone());
        input
    };
    json!({"inputs": [input("input_ids", ids), input("token_type_ids", types), input("attention_mask", mask)]})
}

#[test]
fn bytes_and_numbers_may_be_mixed_and_give_the_same_answer() {
    let server = SHARED.get();
    let ids: Vec<i64> = (0..16).map(|number| 2000 + number).collect();
    let (mask, types) = (vec![1_i64; 16], vec![0_i64; 16]);
    let (data, binary) = (|numbers: &[i64]| json!({"data": numbers}), json!({"parameters": {"binary_data_size": 128}}));
    let numbers = server.post_json("/v2/models/mini/infer", &mini(&data(&ids), &data(&mask), &data(&types)));
    let expected = &numbers.json()["outputs"][0]["data"];
    assert_eq!(expected.as_array().unwrap().len(), 16 * 384);
    let all = Framed {
        json: mini(&binary, &binary, &binary),
        tensors: [integers(&ids), integers(&types), integers(&mask)].concat(),
    };
    assert_eq!(&all.send(&server, "mini").json()["outputs"][0]["data"], expected);
    let mixed =
        Framed { json: mini(&binary, &binary, &data(&types)), tensors: [integers(&ids), integers(&mask)].concat() };
    assert_eq!(&mixed.send(&server, "mini").json()["outputs"][0]["data"], expected);

    let mut asked = mini(&data(&ids), &data(&mask), &data(&types));
    asked["parameters"] = json!({"binary_data_output": true});
    let (_, bytes) = parted(&server.post_json("/v2/models/mini/infer", &asked));
    let read: Vec<f32> = bytes.as_chunks::<4>().0.iter().map(|chunk| f32::from_le_bytes(*chunk)).collect();
    let expected: Vec<f32> = serde_json::from_value(expected.clone()).unwrap();
    assert!(read == expected, "the bytes are other numbers than the JSON");
}

#[test]
fn a_body_cut_anywhere_is_read_as_one_that_is_whole() {
    let server = SHARED.get();
    // Long enough for pieces that are kept as they come, 5,000 bytes and more.
    let rows = 900;
    let numbers: Vec<f32> = (0..rows * 4).map(|number| number as f32).collect();
    let input = json!({
        "name": "input", "shape": [rows, 4], "datatype": "FP32", "parameters": {"binary_data_size": rows * 16},
    });
    let json = json!({"inputs": [input], "parameters": {"binary_data_output": true}}).to_string();
    let body = [json.as_bytes(), &floats(&numbers)].concat();
    let expected = floats(&numbers.iter().map(|number| number * 2.0).collect::<Vec<_>>());
    for cuts in [&[1, 5, 5003][..], &[json.len() - 1, 7001], &[json.len() + 3, 5000, 14_003], &[4999, 9999, 10_001]] {
        let mut connection = server.connect();
        let head = format!(
            "POST /v2/models/tiny/infer HTTP/1.1\r\nhost: t\r\n{LENGTH}: {}\r\ntransfer-encoding: chunked\r\n\r\n",
            json.len()
        );
        connection.write(head.as_bytes()).unwrap();
        let ends = cuts.iter().copied().chain([body.len()]);
        let mut begin = 0;
        for end in ends {
            let chunk = &body[begin..end];
            connection.write(&[format!("{:x}\r\n", chunk.len()).as_bytes(), chunk, b"\r\n"].concat()).unwrap();
            begin = end;
        }
        connection.write(b"0\r\n\r\n").unwrap();
        let (_, bytes) = parted(&connection.read().unwrap());
        assert_eq!(bytes, expected, "{cuts:?}");
    }
}

#[test]
fn a_tensor_alone_is_a_request() {
    let server = SHARED.get();
    let (json, bytes) = parted(&post(&server, "tiny", "0", &floats(&[1.0, 2.0, 3.0, 4.0])));
    assert_eq!(json["outputs"][0]["shape"], json!([1, 4]));
    assert_eq!(bytes, floats(&[2.0, 4.0, 6.0, 8.0]));
    let short = post(&server, "tiny", "0", &[0; 12]);
    assert_eq!(short.status, 400);
    assert_eq!(short.error(), "input `input`: a FP32 tensor of shape [1, 4] takes 16 bytes, got 12");
    let many = post(&server, "mini", "0", &[0; 128]);
    assert_eq!(many.error(), format!("{LENGTH}: expected more than 0, for the model has 3 inputs"));
}

#[test]
fn every_mistake_says_what_was_expected_and_what_came() {
    let server = SHARED.get();
    let said = |answer: Response| {
        assert_eq!(answer.status, 400, "{}", answer.text());
        answer.error()
    };
    let framed = |json: Value, bytes: usize| said(Framed { json, tensors: vec![0; bytes] }.send(&server, "tiny"));
    assert_eq!(
        framed(tiny(&json!({}), 16), 15),
        "input `input`: binary_data_size: expected at most the 15 bytes left, got 16"
    );
    assert_eq!(
        framed(tiny(&json!({}), 16), 17),
        "binary_data_size: expected 17 bytes in all inputs together, as follow the JSON, got 16"
    );
    assert_eq!(framed(tiny(&json!({}), 12), 12), "input `input`: a FP32 tensor of shape [1, 4] takes 16 bytes, got 12");
    let with = |change: Value| {
        let mut json = tiny(&json!({}), 16);
        json["inputs"][0].as_object_mut().unwrap().extend(change.as_object().unwrap().clone());
        json
    };
    assert_eq!(
        framed(with(json!({"data": [1, 2, 3, 4]})), 16),
        "input `input`: expected `data` or `binary_data_size`, got both"
    );
    assert_eq!(
        framed(with(json!({"parameters": {}})), 0),
        "input `input`: expected `data` or `binary_data_size`, got neither"
    );
    for size in [json!("16"), json!(-16), json!(1.5)] {
        assert_eq!(
            framed(with(json!({"parameters": {"binary_data_size": size}})), 16),
            format!("input `input`: binary_data_size: expected a number of bytes, got {size}")
        );
    }
    assert_eq!(
        framed(with(json!({"parameters": {"shared_memory_region": "a"}})), 0),
        "input `input`: parameter shared_memory_region is not supported"
    );
    assert!(framed(with(json!({"datatype": "BYTES"})), 16).ends_with("models of strings are not served yet"));
    assert_eq!(
        framed(tiny(&json!({"binary_data_output": "yes"}), 16), 16),
        "binary_data_output: expected true or false, got \"yes\""
    );
    assert_eq!(
        said(server.post_json("/v2/models/tiny/infer", &tiny(&json!({}), 16))),
        format!("input `input`: binary_data_size: expected the header {LENGTH} too, got none")
    );
    assert_eq!(
        said(post(&server, "tiny", "300", &[b'{'; 200])),
        format!("{LENGTH}: expected at most the 200 bytes of the body, got 300")
    );
    for none in ["many", "+2", "-2", ""] {
        assert_eq!(
            said(post(&server, "tiny", none, b"{}")),
            format!("{LENGTH}: expected a number of bytes, got {none:?}")
        );
    }
    assert!(said(post(&server, "tiny", "1", b"{}")).starts_with("expected {\"inputs\""));
    let mut connection = server.connect();
    let twice = [(LENGTH, "2"), (LENGTH, "2"), ("content-type", "application/octet-stream")];
    connection.write(&request("POST", "/v2/models/tiny/infer", &twice, b"{}")).unwrap();
    assert_eq!(said(connection.read().unwrap()), format!("{LENGTH}: expected one such header, got more"));
    let long = json!({"id": "a".repeat(70_000), "inputs": tiny(&json!({}), 16)["inputs"]});
    assert_eq!(framed(long, 16), "id: expected at most 65536 bytes, got 70000");
}

#[test]
fn the_server_says_that_it_takes_bytes() {
    assert_eq!(SHARED.get().get("/v2").json()["extensions"], json!(["binary_tensor_data"]));
}
