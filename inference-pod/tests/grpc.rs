//! gRPC, by a client that hides nothing of what the server does.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test may panic")]

mod common;

use std::{
    io::Write as _,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use common::{Server, SharedServer, eventually, item, leaving_costs_no_run};
use hyper::client::conn::http2::{SendRequest, handshake};
use hyper_util::rt::{TokioExecutor, TokioIo};
use inference_pod::grpc::protocol::{
    InferParameter, InferTensorContents, ModelInferRequest, ModelInferResponse, ModelMetadataRequest,
    ModelMetadataResponse, ModelReadyRequest, ModelReadyResponse, ServerLiveRequest, ServerLiveResponse,
    ServerMetadataRequest, ServerMetadataResponse, ServerReadyRequest, ServerReadyResponse,
    infer_parameter::ParameterChoice,
    model_infer_request::{InferInputTensor, InferRequestedOutputTensor},
};
use prost::Message as _;
use serde_json::json;
use tonic::{Code, Request, Status};
use tonic_health::pb::{HealthCheckRequest, HealthCheckResponse, health_check_response::ServingStatus};
use tonic_prost::ProstCodec;

static SHARED: SharedServer = SharedServer::new(common::tiny_and_mini);

/// A connection; calls share it.
#[derive(Clone)]
struct Client(SendRequest<tonic::body::Body>);

impl Client {
    async fn new(server: &Server) -> Self {
        let stream = tokio::net::TcpStream::connect(server.grpc).await.unwrap();
        stream.set_nodelay(true).unwrap();
        let (sender, connection) = handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
        tokio::spawn(connection);
        Self(sender)
    }

    async fn call<Q, A>(&self, path: &'static str, request: Request<Q>) -> Result<tonic::Response<A>, Status>
    where
        Q: prost::Message + 'static,
        A: prost::Message + Default + 'static,
    {
        let sender = self.0.clone();
        let service = tower::service_fn(move |request| {
            let mut sender = sender.clone();
            async move { sender.send_request(request).await }
        });
        let mut client = tonic::client::Grpc::with_origin(service, "http://test".parse().unwrap())
            .max_decoding_message_size(usize::MAX);
        client.unary(request, http_path(path), ProstCodec::<Q, A>::default()).await
    }

    async fn ask<Q, A>(&self, path: &'static str, question: Q) -> Result<A, Status>
    where
        Q: prost::Message + 'static,
        A: prost::Message + Default + 'static,
    {
        self.call(path, Request::new(question)).await.map(tonic::Response::into_inner)
    }

    async fn infer(&self, request: ModelInferRequest) -> Result<ModelInferResponse, Status> {
        self.ask("/inference.GRPCInferenceService/ModelInfer", request).await
    }
}

fn http_path(path: &'static str) -> hyper::http::uri::PathAndQuery {
    hyper::http::uri::PathAndQuery::from_static(path)
}

fn floats(numbers: &[f32]) -> Bytes {
    numbers.iter().flat_map(|number| number.to_le_bytes()).collect()
}

fn input(name: &str, datatype: &str, shape: &[i64]) -> InferInputTensor {
    InferInputTensor {
        name: name.to_owned(),
        datatype: datatype.to_owned(),
        shape: shape.to_vec(),
        ..Default::default()
    }
}

fn raw(model: &str, rows: i64, tensor: Bytes) -> ModelInferRequest {
    ModelInferRequest {
        model_name: model.to_owned(),
        inputs: vec![input("input", "FP32", &[rows, 4])],
        raw_input_contents: vec![tensor],
        ..Default::default()
    }
}

fn typed(numbers: &[f32]) -> ModelInferRequest {
    let contents = InferTensorContents { fp32_contents: numbers.to_vec(), ..Default::default() };
    ModelInferRequest {
        model_name: "tiny".to_owned(),
        id: "a7".to_owned(),
        inputs: vec![InferInputTensor { contents: Some(contents), ..input("input", "FP32", &[1, 4]) }],
        ..Default::default()
    }
}

#[tokio::test]
async fn a_raw_request_is_answered_raw_and_a_typed_one_typed() {
    let server = SHARED.get();
    let client = Client::new(&server).await;
    let answer = client.infer(raw("tiny", 2, floats(&[1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.5]))).await.unwrap();
    assert_eq!((answer.model_name.as_str(), answer.model_version.as_str(), answer.id.as_str()), ("tiny", "1", ""));
    assert_eq!(answer.raw_output_contents, [floats(&[2.0, 4.0, 6.0, 8.0, 10.0, 12.0, 14.0, 17.0])]);
    let output = &answer.outputs[0];
    assert_eq!((output.name.as_str(), output.datatype.as_str(), &output.shape[..]), ("output", "FP32", &[2, 4][..]));
    assert_eq!(output.contents, None);

    let answer = client.infer(typed(&[1.0, 2.0, 3.0, 4.25])).await.unwrap();
    assert_eq!(answer.id, "a7");
    assert!(answer.raw_output_contents.is_empty());
    assert_eq!(answer.outputs[0].contents.as_ref().unwrap().fp32_contents, [2.0, 4.0, 6.0, 8.5]);

    // So long a message is read away from the loop.
    let id = "a7-".repeat(20_000);
    let long = ModelInferRequest { id: id.clone(), ..typed(&[1.0, 2.0, 3.0, 4.25]) };
    let answer = client.infer(long).await.unwrap();
    assert!(answer.id == id, "{} bytes came back as {}", id.len(), answer.id.len());
    assert_eq!(answer.outputs[0].contents.as_ref().unwrap().fp32_contents, [2.0, 4.0, 6.0, 8.5]);
}

#[tokio::test]
async fn no_answer_announces_its_length() {
    // A proxy that finds one takes what comes behind it, the status, for nothing.
    let server = SHARED.get();
    let client = Client::new(&server).await;
    let path = "/inference.GRPCInferenceService/ModelInfer";
    let ask = |model| client.call::<_, ModelInferResponse>(path, Request::new(raw(model, 1, floats(&[1.0; 4]))));
    assert_eq!(ask("tiny").await.unwrap().metadata().get("content-length"), None);
    let error = ask("none").await.unwrap_err();
    assert_eq!((error.code(), error.metadata().get("content-length")), (Code::NotFound, None));
}

#[tokio::test]
async fn grpc_over_http_1_is_505_for_there_is_no_status_of_grpc() {
    let server = SHARED.get();
    let mut stream = std::net::TcpStream::connect(server.grpc).unwrap();
    let head =
        "POST /inference.GRPCInferenceService/ServerLive HTTP/1.1\r\nhost: t\r\ncontent-type: application/grpc\r\n";
    stream.write_all(format!("{head}connection: close\r\ncontent-length: 5\r\n\r\n\0\0\0\0\0").as_bytes()).unwrap();
    let answer = std::io::read_to_string(stream).unwrap();
    assert!(answer.starts_with("HTTP/1.1 505 ") && answer.contains("expected gRPC over HTTP/2"), "{answer}");
}

#[tokio::test]
async fn grpc_and_http_give_the_same_numbers() {
    let server = SHARED.get();
    let client = Client::new(&server).await;
    let ids: Vec<i64> = (0..16).map(|number| 2000 + number).collect();
    let bytes = |numbers: &[i64]| numbers.iter().flat_map(|number| number.to_le_bytes()).collect::<Bytes>();
    let names = ["token_type_ids", "input_ids", "attention_mask"];
    let values = [vec![0; 16], ids, vec![1; 16]];
    let request = ModelInferRequest {
        model_name: "mini".to_owned(),
        model_version: "1".to_owned(),
        inputs: names.map(|name| input(name, "INT64", &[1, 16])).to_vec(),
        raw_input_contents: values.iter().map(|numbers| bytes(numbers)).collect(),
        ..Default::default()
    };
    let answer = client.infer(request).await.unwrap();
    let got: Vec<f32> =
        answer.raw_output_contents[0].as_chunks::<4>().0.iter().map(|chunk| f32::from_le_bytes(*chunk)).collect();
    let inputs: Vec<_> = names
        .iter()
        .zip(&values)
        .map(|(name, data)| json!({"name": name, "shape": [1, 16], "datatype": "INT64", "data": data}))
        .collect();
    let http = server.post_json("/v2/models/mini/infer", &json!({"inputs": inputs})).json();
    let expected: Vec<f32> = serde_json::from_value(http["outputs"][0]["data"].clone()).unwrap();
    assert!(got == expected, "other numbers than over HTTP");
    assert_eq!(answer.outputs[0].shape, [1, 16, 384]);
}

#[tokio::test]
async fn a_tensor_of_many_frames_comes_back_whole() {
    let server = SHARED.get();
    let client = Client::new(&server).await;
    // As many rows as the queue takes in one request, about; each another number.
    let rows = 1000_i64;
    for _ in 0..3 {
        let numbers: Vec<f32> = (0..rows * 4).map(|number| number as f32).collect();
        let answer = client.infer(raw("tiny", rows, floats(&numbers))).await.unwrap();
        let doubled: Vec<f32> = numbers.iter().map(|number| number * 2.0).collect();
        assert!(answer.raw_output_contents[0] == floats(&doubled));
    }
    let long = client.infer(raw("tiny", 1_000_000, Bytes::from(vec![0; 16_000_000]))).await.unwrap_err();
    assert_eq!(long.code(), Code::ResourceExhausted);
    assert_eq!(long.message(), "request has 1000000 samples; expected at most 1024");
    assert_eq!(long.metadata().get("grpc-retry-pushback-ms").unwrap(), "-1");
}

#[tokio::test]
async fn what_the_server_and_its_models_are_is_told() {
    let server = SHARED.get();
    let client = Client::new(&server).await;
    let live: ServerLiveResponse =
        client.ask("/inference.GRPCInferenceService/ServerLive", ServerLiveRequest {}).await.unwrap();
    let ready: ServerReadyResponse =
        client.ask("/inference.GRPCInferenceService/ServerReady", ServerReadyRequest {}).await.unwrap();
    assert!(live.live && ready.ready);
    let about: ServerMetadataResponse =
        client.ask("/inference.GRPCInferenceService/ServerMetadata", ServerMetadataRequest {}).await.unwrap();
    assert_eq!(about.name, "ortolan");
    let named = |name: &str, version: &str| (name.to_owned(), version.to_owned());
    let (name, version) = named("tiny", "");
    let model: ModelMetadataResponse = client
        .ask("/inference.GRPCInferenceService/ModelMetadata", ModelMetadataRequest { name, version })
        .await
        .unwrap();
    assert_eq!((model.platform.as_str(), &model.inputs[0].shape[..]), ("onnxruntime_onnx", &[-1, 4][..]));
    for (name, version, is_ready) in [("tiny", "1", true), ("tiny", "2", false), ("x", "", false)] {
        let (name, version) = named(name, version);
        let ready: Result<ModelReadyResponse, Status> =
            client.ask("/inference.GRPCInferenceService/ModelReady", ModelReadyRequest { name, version }).await;
        assert_eq!(ready.unwrap().ready, is_ready);
    }
    let health = |service: &str| HealthCheckRequest { service: service.to_owned() };
    let status: HealthCheckResponse = client.ask("/grpc.health.v1.Health/Check", health("")).await.unwrap();
    assert_eq!(status.status, i32::from(ServingStatus::Serving));
    let other: Result<HealthCheckResponse, Status> = client.ask("/grpc.health.v1.Health/Check", health("x")).await;
    assert_eq!(other.unwrap_err().code(), Code::NotFound);
    for path in ["/inference.GRPCInferenceService/ModelConfig", "/inference.GRPCInferenceService/x", "/a.B/C"] {
        let answer: Result<ServerLiveResponse, Status> = client.ask(path, ServerLiveRequest {}).await;
        let status = answer.unwrap_err();
        assert_eq!(status.code(), Code::Unimplemented, "{path}");
        assert!(status.message().ends_with(&format!("got {path}")), "{}", status.message());
    }
}

#[tokio::test]
async fn a_version_that_no_model_has_is_not_ready_however_long_it_loads() {
    let server = Server::start_unready("", &item("mini", "minilm", ""));
    let client = Client::new(&server).await;
    let ready = async |version: &str| {
        let request = ModelReadyRequest { name: "mini".to_owned(), version: version.to_owned() };
        let answer: Result<ModelReadyResponse, Status> =
            client.ask("/inference.GRPCInferenceService/ModelReady", request).await;
        answer.map(|answer| answer.ready).map_err(|status| status.code())
    };
    assert_eq!(ready("2").await, Ok(false));
    assert!(ready("1").await.is_ok() && ready("").await.is_ok());
}

#[tokio::test]
async fn every_mistake_says_what_was_expected_and_what_came() {
    let server = SHARED.get();
    let client = Client::new(&server).await;
    let said = async |request: ModelInferRequest| {
        let status = client.infer(request).await.unwrap_err();
        (status.code(), status.message().to_owned())
    };
    let invalid = |message: &str| (Code::InvalidArgument, message.to_owned());
    let four = || floats(&[1.0, 2.0, 3.0, 4.0]);
    let mut both = typed(&[1.0, 2.0, 3.0, 4.0]);
    both.raw_input_contents = vec![four()];
    assert_eq!(said(both).await, invalid("input `input`: expected contents or raw_input_contents, got both"));
    let neither = ModelInferRequest { raw_input_contents: Vec::new(), ..raw("tiny", 1, Bytes::new()) };
    assert_eq!(said(neither).await, invalid("input `input`: expected contents or raw_input_contents, got neither"));
    let two = ModelInferRequest { raw_input_contents: vec![four(), four()], ..raw("tiny", 1, Bytes::new()) };
    assert_eq!(said(two).await, invalid("raw_input_contents: expected 1, one for each input, got 2"));
    assert_eq!(
        said(raw("tiny", 1, four().slice(..12))).await,
        invalid("input `input`: a FP32 tensor of shape [1, 4] takes 16 bytes, got 12")
    );
    let five =
        ModelInferRequest { inputs: vec![input("input", "FP32", &[1, 5])], ..raw("tiny", 1, Bytes::from(vec![0; 20])) };
    assert_eq!(said(five).await, invalid("input `input`: expected shape [-1, 4], got [1, 5]"));
    let strings = ModelInferRequest { inputs: vec![input("input", "BYTES", &[1, 4])], ..raw("tiny", 1, four()) };
    assert!(said(strings).await.1.ends_with("models of strings are not served yet"));
    let wanted = InferRequestedOutputTensor { name: "y".to_owned(), ..Default::default() };
    let output = ModelInferRequest { outputs: vec![wanted], ..raw("tiny", 1, four()) };
    assert_eq!(said(output).await, invalid("unknown output `y`; the model's outputs are output"));
    let region = InferParameter { parameter_choice: Some(ParameterChoice::StringParam("a".to_owned())) };
    let mut shared = raw("tiny", 1, four());
    shared.inputs[0].parameters.insert("shared_memory_region".to_owned(), region);
    assert_eq!(said(shared).await, invalid("input `input`: parameter shared_memory_region is not supported"));
    let seven = InferParameter { parameter_choice: Some(ParameterChoice::Int64Param(7)) };
    let mut sequence = raw("tiny", 1, four());
    sequence.parameters.insert("sequence_id".to_owned(), seven);
    let expected = "parameters.sequence_id: sequences are not supported; expected none, 0 or empty";
    assert_eq!(said(sequence).await, invalid(expected));
    let unknown = (Code::NotFound, "Request for unknown model: 'none' is not found".to_owned());
    assert_eq!(said(raw("none", 1, four())).await, unknown);
    let version = ModelInferRequest { model_version: "2".to_owned(), ..raw("tiny", 1, four()) };
    assert_eq!(said(version).await.0, Code::NotFound);
    assert_eq!(said(raw("", 1, four())).await.0, Code::InvalidArgument);
}

#[tokio::test]
async fn what_a_message_becomes_counts_before_it_is_decoded() {
    let server = Server::start(&item("tiny", "tiny", "queue_bytes: 200000, queue_size: 100000"));
    let client = Client::new(&server).await;
    let said = async |contents: InferTensorContents| {
        let mut request = typed(&[]);
        request.inputs[0].contents = Some(contents);
        let length = 5 + request.encoded_len();
        let status = client.infer(request).await.unwrap_err();
        (length, status.code(), status.message().to_owned())
    };
    // A byte each, and eight as numbers.
    let numbers = 40_000;
    let (length, code, message) =
        said(InferTensorContents { int64_contents: vec![1; numbers], ..Default::default() }).await;
    assert_eq!(code, Code::ResourceExhausted, "{message}");
    // With the two sizes of the shape.
    let both = length + (numbers + 2) * 8;
    assert_eq!(message, format!("request takes {both} bytes of the queue; expected at most 200000"));
    // Two bytes each, and the size of a pointer and more in memory.
    let bytes_contents = vec![Bytes::new(); numbers];
    let (_, code, message) = said(InferTensorContents { bytes_contents, ..Default::default() }).await;
    assert_eq!(
        (code, message.as_str()),
        (Code::InvalidArgument, "expected at most 4096 fields in the message, got more")
    );
    assert!(client.infer(typed(&[0.0; 4])).await.is_ok(), "the connection goes on, and the place is free");
}

#[tokio::test]
async fn what_no_client_needs_is_refused_before_it_costs_much() {
    let server = SHARED.get();
    let client = Client::new(&server).await;
    for dimensions in [65, 30_000, 3_000_000] {
        let mut request = raw("tiny", 1, floats(&[0.0; 4]));
        request.inputs[0].shape = vec![1; dimensions];
        let status = client.infer(request).await.unwrap_err();
        assert_eq!(status.code(), Code::InvalidArgument, "{status:?}");
        let said = format!("shape: expected at most 64 sizes, got {dimensions}");
        assert!(status.message().ends_with(&said), "{}", status.message());
    }
    let id = "a".repeat(70_000);
    let status = client.infer(ModelInferRequest { id, ..typed(&[0.0; 4]) }).await.unwrap_err();
    assert_eq!(
        (status.code(), status.message()),
        (Code::InvalidArgument, "id: expected at most 65536 bytes, got 70000")
    );
    // A question is a name.
    let question = ModelReadyRequest { name: "a".repeat(70_000), version: String::new() };
    let path = "/inference.GRPCInferenceService/ModelReady";
    let status = client.ask::<_, ModelReadyResponse>(path, question).await.unwrap_err();
    assert_eq!(status.code(), Code::ResourceExhausted, "{status:?}");
    assert_eq!(status.metadata().get("grpc-retry-pushback-ms").unwrap(), "-1");
    assert!(client.infer(typed(&[0.0; 4])).await.is_ok(), "the connection goes on");
}

#[tokio::test]
async fn a_second_name_is_not_passed_over() {
    let server = SHARED.get();
    let client = Client::new(&server).await;
    let more = ModelInferRequest { model_name: "mini".to_owned(), ..Default::default() };
    let message = [typed(&[0.0; 4]).encode_to_vec(), more.encode_to_vec()].concat();
    let length = u32::try_from(message.len()).unwrap().to_be_bytes();
    let body = http_body_util::Full::new(Bytes::from([&[0], &length[..], &message].concat()));
    let request = hyper::Request::post("http://test/inference.GRPCInferenceService/ModelInfer")
        .header("content-type", "application/grpc")
        .body(tonic::body::Body::new(body))
        .unwrap();
    let answer = client.0.clone().send_request(request).await.unwrap();
    let status = Status::from_header_map(answer.headers()).unwrap();
    let said = (status.code(), status.message());
    assert_eq!(said, (Code::InvalidArgument, "model_name: expected tiny alone, got mini as well"));
}

#[tokio::test]
async fn what_is_not_grpc_is_415_and_what_is_compressed_is_told_what_is_taken() {
    let server = SHARED.get();
    let client = Client::new(&server).await;
    let asked = async |headers: &[(&str, &str)], message: &[u8]| {
        let mut request = hyper::Request::post("http://test/inference.GRPCInferenceService/ModelInfer");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let prefixed = Beginning(Some(Bytes::copy_from_slice(message)));
        client.0.clone().send_request(request.body(tonic::body::Body::new(prefixed)).unwrap()).await.unwrap()
    };
    for kind in ["application/json", "application/grpc-web", "application/grp"] {
        assert_eq!(asked(&[("content-type", kind)], b"{}").await.status(), 415, "{kind}");
    }
    let (grpc, gzip) = (("content-type", "application/grpc+proto"), ("grpc-encoding", "gzip"));
    let compressed = asked(&[grpc, gzip], &[1, 0, 0, 0, 1, 0]).await;
    assert_eq!(Status::from_header_map(compressed.headers()).unwrap().code(), Code::Unimplemented);
    assert_eq!(compressed.headers()["grpc-accept-encoding"], "identity");
    let unnamed = asked(&[grpc, ("grpc-encoding", "identity")], &[1, 0, 0, 0, 1, 0]).await;
    assert_eq!(Status::from_header_map(unnamed.headers()).unwrap().code(), Code::Internal);
}

#[tokio::test]
async fn a_message_over_the_limit_is_refused_by_its_beginning() {
    let server = Server::start_with("max_body_bytes: 100000", &item("tiny", "tiny", ""));
    let client = Client::new(&server).await;
    let status = client.infer(raw("tiny", 10_000, Bytes::from(vec![0; 160_000]))).await.unwrap_err();
    assert_eq!(status.code(), Code::ResourceExhausted, "{status:?}");
    assert!(status.message().ends_with("bytes; expected at most 99995 bytes"), "{}", status.message());
    assert!(client.infer(raw("tiny", 1, floats(&[0.0; 4]))).await.is_ok(), "the connection goes on");
}

#[tokio::test]
async fn what_would_wait_too_long_is_told_when_to_come_back() {
    let server = Server::start(&item("slow", "slow", "batch_size: 1, max_queue_ms: 1"));
    let client = Client::new(&server).await;
    let mut calls = tokio::task::JoinSet::new();
    for _ in 0..64 {
        let client = client.clone();
        calls.spawn(async move { client.infer(raw("slow", 1, floats(&[0.0; 4]))).await });
    }
    let answers = calls.join_all().await;
    let refused: Vec<&Status> = answers.iter().filter_map(|answer| answer.as_ref().err()).collect();
    assert!(!refused.is_empty() && refused.len() < 64, "{} refused", refused.len());
    for status in &refused {
        assert_eq!(status.code(), Code::ResourceExhausted, "{status:?}");
        for name in ["grpc-retry-pushback-ms", "retry-after-ms"] {
            let wait: u64 = status.metadata().get(name).unwrap().to_str().unwrap().parse().unwrap();
            assert!(wait >= 1);
        }
    }
    let count = |series: &str| server.metric(series);
    assert_eq!(count("ortolan_requests_received_total{model=\"slow\"}"), 64.0);
    assert_eq!(count("ortolan_errors_total{model=\"slow\",reason=\"queue_full\"}"), refused.len() as f64);
    assert_eq!(count("ortolan_requests_total{model=\"slow\",outcome=\"rejected\"}"), refused.len() as f64);
    assert_eq!(count("ortolan_requests_total{model=\"slow\",outcome=\"ok\"}"), (64 - refused.len()) as f64);
    assert_eq!(count("ortolan_decode_time_seconds_count{model=\"slow\"}"), (64 - refused.len()) as f64);
}

/// The beginning of a message whose rest does not come.
struct Beginning(Option<Bytes>);

impl hyper::body::Body for Beginning {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<hyper::body::Frame<Bytes>, Self::Error>>> {
        self.0.take().map_or(Poll::Pending, |data| Poll::Ready(Some(Ok(hyper::body::Frame::data(data)))))
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn too_many_who_stall_are_refused_by_the_beginning_of_a_message() {
    let server = Server::start(&item("slow", "slow", "batch_size: 1, queue_size: 1, max_queue_ms: 60000"));
    let client = Client::new(&server).await;
    let begin = || {
        let message = raw("slow", 1, floats(&[0.0; 4])).encode_to_vec();
        let prefix = [0, 0, 0, 0, u8::try_from(message.len()).unwrap()];
        let beginning = Beginning(Some(Bytes::from([&prefix, &message[..8]].concat())));
        let request = hyper::Request::post("http://test/inference.GRPCInferenceService/ModelInfer")
            .header("content-type", "application/grpc")
            .body(tonic::body::Body::new(beginning))
            .unwrap();
        client.0.clone().send_request(request)
    };
    let mut stalled: tokio::task::JoinSet<_> = (0..16).map(|_| begin()).collect();
    eventually("they have begun", || server.metric("ortolan_requests_received_total{model=\"slow\"}") == 16.0);
    let answer = begin().await.unwrap();
    let status = Status::from_header_map(answer.headers()).unwrap();
    let said = "queue is full: 16 requests are still being received";
    assert_eq!((status.code(), status.message()), (Code::ResourceExhausted, said));
    stalled.abort_all();
    eventually("they are gone", || {
        server.metric("ortolan_requests_total{model=\"slow\",outcome=\"cancelled\"}") == 16.0
    });
    assert!(client.infer(raw("slow", 1, floats(&[0.0; 4]))).await.is_ok());
}

#[tokio::test]
async fn a_clients_own_deadline_shortens_ours() {
    let server = Server::start(&item("slow", "slow", "batch_size: 1, max_queue_ms: 60000"));
    let client = Client::new(&server).await;
    let mut calls = tokio::task::JoinSet::new();
    for _ in 0..32 {
        let client = client.clone();
        let mut request = Request::new(raw("slow", 1, floats(&[0.0; 4])));
        // Long enough for all of them to be let in first.
        request.set_timeout(Duration::from_millis(250));
        calls.spawn(async move {
            client.call::<_, ModelInferResponse>("/inference.GRPCInferenceService/ModelInfer", request).await
        });
    }
    let answers = calls.join_all().await;
    let late: Vec<&Status> = answers.iter().filter_map(|answer| answer.as_ref().err()).collect();
    assert!(!late.is_empty());
    assert!(late.iter().all(|status| status.code() == Code::DeadlineExceeded), "{late:?}");
    let runs = server.metric("ortolan_batch_size_count{model=\"slow\"}");
    assert!(runs < 32.0, "{runs} runs: late calls cost runs");
    assert_eq!(server.metric("ortolan_requests_total{model=\"slow\",outcome=\"expired\"}"), late.len() as f64);
}

#[tokio::test]
async fn a_call_whose_message_does_not_come_ends_by_its_deadline() {
    let server = SHARED.get();
    let client = Client::new(&server).await;
    for path in ["inference.GRPCInferenceService/ServerLive", "grpc.health.v1.Health/Check"] {
        let request = hyper::Request::post(format!("http://test/{path}"))
            .header("content-type", "application/grpc")
            .header("grpc-timeout", "20m")
            .body(tonic::body::Body::new(Beginning(None)))
            .unwrap();
        let answer = tokio::time::timeout(common::PATIENCE, client.0.clone().send_request(request));
        let status = Status::from_header_map(answer.await.expect("no answer").unwrap().headers()).unwrap();
        assert_eq!(status.code(), Code::DeadlineExceeded, "{path}: {status:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_call_that_is_dropped_costs_no_run() {
    let server = Server::start(&item("slow", "slow", "batch_size: 1, max_queue_ms: 60000"));
    let client = Client::new(&server).await;
    let mut calls = tokio::task::JoinSet::new();
    for _ in 0..24 {
        let client = client.clone();
        calls.spawn(async move { client.infer(raw("slow", 1, floats(&[0.0; 4]))).await });
    }
    leaving_costs_no_run(&server, || calls.abort_all());
    assert!(client.infer(raw("slow", 1, floats(&[0.0; 4]))).await.is_ok(), "the connection goes on");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn accepted_calls_are_answered_while_the_server_stops() {
    let server =
        Server::start_with("drain_delay_ms: 200", &item("slow", "slow", "batch_size: 1, max_queue_ms: 600000"));
    let client = Client::new(&server).await;
    let mut calls = tokio::task::JoinSet::new();
    for _ in 0..24 {
        let client = client.clone();
        calls.spawn(async move { client.infer(raw("slow", 1, floats(&[0.0; 4]))).await });
    }
    eventually("all are in", || server.metric("ortolan_samples_enqueued_total{model=\"slow\"}") == 24.0);
    server.signal("TERM");
    assert!(calls.join_all().await.iter().all(Result::is_ok));
    drop(client);
    assert!(server.wait().0.success());
}

/// Callers and connections on one thread: on several, the client's library itself loses a call now and then (docs/api.md).
#[tokio::test]
async fn old_connections_are_left_and_no_call_is_lost() {
    const CONNECTIONS: usize = 25;
    let server = Server::start_with("max_connection_age_ms: 50", &item("tiny", "tiny", ""));
    let caller = async || {
        let mut answered = 0;
        for _ in 0..CONNECTIONS {
            let client = Client::new(&server).await;
            while !client.0.is_closed() {
                let call = client.infer(raw("tiny", 1, floats(&[1.0, 2.0, 3.0, 4.0])));
                match tokio::time::timeout(Duration::from_secs(60), call).await.expect("no answer") {
                    Ok(answer) => {
                        assert_eq!(answer.raw_output_contents, [floats(&[2.0, 4.0, 6.0, 8.0])]);
                        answered += 1;
                    }
                    // Not sent, for the connection had been told to leave.
                    Err(status) => assert!(client.0.is_closed(), "{status:?}"),
                }
            }
        }
        answered
    };
    let (one, two, three, four) = tokio::join!(caller(), caller(), caller(), caller());
    assert!(one.min(two).min(three).min(four) >= CONNECTIONS, "each connection has answered");
}
