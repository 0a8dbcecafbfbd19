//! gRPC: the calls of the Open Inference Protocol, beside HTTP and over the same path.
//!
//! Tonic answers what is asked in a few words. `ModelInfer` is read here ([`infer`], [`message`]): so a request is admitted
//! by the first bytes of its message, before the rest is read, and its tensors stay the slices of the frames that they
//! came in.

mod fields;
pub mod infer;
pub mod message;
#[rustfmt::skip]
#[allow(missing_docs, unused_qualifications, clippy::all, clippy::allow_attributes_without_reason, reason = "generated")]
pub mod protocol;
pub mod status;

use std::{any::Any, sync::Arc};

use axum::{
    Router,
    body::Body,
    extract::Request as HttpRequest,
    http::{HeaderValue, Uri, Version, header::CONTENT_TYPE},
    middleware::{self, Next},
    response::{IntoResponse as _, Response as HttpResponse},
    routing::post,
};
use tonic::{Code, Request, Response, Status, service::Routes};
use tonic_health::pb::{
    HealthCheckRequest, HealthCheckResponse,
    health_check_response::ServingStatus,
    health_server::{Health, HealthServer},
};
use tower_http::catch_panic::CatchPanicLayer;

use self::{
    message::Unannounced,
    protocol::{
        ModelMetadataRequest, ModelMetadataResponse, ModelReadyRequest, ModelReadyResponse, ServerLiveRequest,
        ServerLiveResponse, ServerMetadataRequest, ServerMetadataResponse, ServerReadyRequest, ServerReadyResponse,
        grpc_inference_service_server::{GrpcInferenceService, GrpcInferenceServiceServer, SERVICE_NAME},
        model_metadata_response::TensorMetadata,
    },
};
use crate::{
    http::{
        App, EXTENSIONS, MODEL_VERSION, PLATFORM,
        error::ApiError,
        name_request,
        predict::{ModelName, find},
        probes,
    },
    model::Model,
    observe::REQUEST_ID,
    registry::Found,
    session::Port,
};

/// What tonic reads are names. It holds a message until it is whole, and nothing else bounds how many there are.
const LONGEST_QUESTION_BYTES: usize = 64 << 10;

/// The routes of the gRPC port.
pub fn router(app: Arc<App>) -> Router {
    let calls = Calls(Arc::clone(&app));
    let inference = GrpcInferenceServiceServer::new(calls.clone()).max_decoding_message_size(LONGEST_QUESTION_BYTES);
    Routes::new(inference)
        .add_service(HealthServer::new(calls).max_decoding_message_size(LONGEST_QUESTION_BYTES))
        .into_axum_router()
        .layer(middleware::from_fn(in_time))
        // More exact than the route of the whole service, so it is the one that is taken.
        .route(&format!("/{SERVICE_NAME}/ModelInfer"), post(infer::model_infer).with_state(Arc::clone(&app)))
        .layer((middleware::from_fn(scope), CatchPanicLayer::custom(panicked)))
}

/// A method or a service that is not there; tonic says so without a word.
fn unknown(uri: &Uri) -> HttpResponse {
    let path: String = uri.path().chars().take(200).collect();
    Status::unimplemented(format!("expected a method of {SERVICE_NAME} or grpc.health.v1.Health, got {path}"))
        .into_http()
}

fn panicked(_: Box<dyn Any + Send + 'static>) -> HttpResponse {
    Status::internal("internal error").into_http()
}

/// Gives a call and its answer their id.
async fn scope(mut request: HttpRequest<Body>, next: Next) -> HttpResponse {
    let id = name_request(&mut request);
    let uri = request.uri().clone();
    let mut response = match refused(&request) {
        None => next.run(request).await,
        Some(refusal) => refusal,
    };
    let status = response.headers().get(Status::GRPC_STATUS).map(HeaderValue::as_bytes);
    let status_is_header = status.is_some();
    // What tonic says of a message that is too large, where gRPC has another code for it.
    let is_too_large = status == Some(b"11");
    if status == Some(b"12") && !response.headers().contains_key(Status::GRPC_MESSAGE) {
        response = unknown(&uri);
    }
    if is_too_large {
        let headers = response.headers_mut();
        headers.insert(Status::GRPC_STATUS, HeaderValue::from(Code::ResourceExhausted as i32));
        headers.insert("grpc-retry-pushback-ms", HeaderValue::from_static("-1"));
    }
    if status_is_header {
        response = response.map(|body| Body::new(Unannounced(body)));
    }
    response.headers_mut().insert(REQUEST_ID, id);
    response
}

/// What is answered to a call whose headers tell that it cannot be read: a status of HTTP to who does not speak gRPC, and would take
/// one of gRPC for success.
fn refused(request: &HttpRequest<Body>) -> Option<HttpResponse> {
    const GRPC: &[u8] = b"application/grpc";
    let headers = request.headers();
    let quoted = |value: &[u8]| String::from_utf8_lossy(value).chars().take(100).collect::<String>();
    let kind = headers.get(CONTENT_TYPE).map_or(&b""[..], HeaderValue::as_bytes);
    let (start, rest) = kind.split_at(kind.len().min(GRPC.len()));
    if !start.eq_ignore_ascii_case(GRPC) || !matches!(rest.first(), None | Some(b'+' | b';' | b' ')) {
        let message = format!("expected content type application/grpc, got {:?}", quoted(kind));
        return Some(ApiError::unsupported_type(message).into_response());
    }
    if request.version() != Version::HTTP_2 {
        let message = format!("expected gRPC over HTTP/2, got {:?}", request.version());
        return Some(ApiError::wrong_version(message).into_response());
    }
    let encoding = headers.get("grpc-encoding").map(HeaderValue::as_bytes).filter(|value| *value != b"identity")?;
    let message = format!("expected messages that are not compressed, got encoding {}", quoted(encoding));
    Some(Status::from(ApiError::compressed(message)).into_http())
}

/// Waits for a call that tonic reads as long as its caller does, and no longer than for the name of a model.
async fn in_time(request: HttpRequest<Body>, next: Next) -> HttpResponse {
    let wait = match message::timeout_of(request.headers()) {
        Ok(patience) => patience.unwrap_or(infer::NAME_TIMEOUT).min(infer::NAME_TIMEOUT),
        Err(error) => return Status::from(error).into_http(),
    };
    let answered = tokio::time::timeout(wait, next.run(request)).await;
    answered.unwrap_or_else(|_| Status::from(ApiError::deadline(wait)).into_http())
}

/// The calls that tonic reads and writes.
#[derive(Clone)]
struct Calls(Arc<App>);

impl Calls {
    fn find(&self, name: String, version: String) -> Result<Arc<Model>, Status> {
        Ok(find(&self.0, &model_name(name, version))?)
    }
}

/// A model as a message names it: without a version where that is empty.
fn model_name(model: String, version: String) -> ModelName {
    ModelName { model, version: Some(version).filter(|version| !version.is_empty()) }
}

#[tonic::async_trait]
impl GrpcInferenceService for Calls {
    async fn server_live(&self, _: Request<ServerLiveRequest>) -> Result<Response<ServerLiveResponse>, Status> {
        Ok(Response::new(ServerLiveResponse { live: probes::faults(&self.0).is_empty() }))
    }

    async fn server_ready(&self, _: Request<ServerReadyRequest>) -> Result<Response<ServerReadyResponse>, Status> {
        Ok(Response::new(ServerReadyResponse { ready: probes::not_ready(&self.0).is_none() }))
    }

    async fn model_ready(&self, request: Request<ModelReadyRequest>) -> Result<Response<ModelReadyResponse>, Status> {
        let ModelReadyRequest { name, version } = request.into_inner();
        // As Triton answers: clients ask until it is true, and take an error for the end.
        let is_there = version.is_empty() || version == MODEL_VERSION;
        let works = |found| matches!(found, Found::Ready(model) if model.shared().works());
        Ok(Response::new(ModelReadyResponse { ready: is_there && works(self.0.registry.find(&name)) }))
    }

    async fn server_metadata(
        &self,
        _: Request<ServerMetadataRequest>,
    ) -> Result<Response<ServerMetadataResponse>, Status> {
        Ok(Response::new(ServerMetadataResponse {
            name: self.0.server.server_name.clone(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            extensions: EXTENSIONS.map(str::to_owned).to_vec(),
        }))
    }

    async fn model_metadata(
        &self,
        request: Request<ModelMetadataRequest>,
    ) -> Result<Response<ModelMetadataResponse>, Status> {
        let ModelMetadataRequest { name, version } = request.into_inner();
        let model = self.find(name, version)?;
        let tensor = |port: &Port| TensorMetadata {
            name: port.name.clone(),
            datatype: port.element.datatype().to_owned(),
            shape: probes::open_shape(port),
        };
        Ok(Response::new(ModelMetadataResponse {
            name: model.name.clone(),
            versions: vec![MODEL_VERSION.to_owned()],
            platform: PLATFORM.to_owned(),
            inputs: model.signature.inputs.iter().map(tensor).collect(),
            outputs: model.signature.outputs.iter().map(tensor).collect(),
        }))
    }
}

#[tonic::async_trait]
impl Health for Calls {
    async fn check(&self, request: Request<HealthCheckRequest>) -> Result<Response<HealthCheckResponse>, Status> {
        let service = &request.get_ref().service;
        if !service.is_empty() && service != SERVICE_NAME {
            return Err(Status::not_found("expected no service, or inference.GRPCInferenceService"));
        }
        let ready = probes::not_ready(&self.0).is_none();
        let status = if ready { ServingStatus::Serving } else { ServingStatus::NotServing };
        Ok(Response::new(HealthCheckResponse { status: status.into() }))
    }

    /// Never made: clients that are told so ask by `check`, as the health protocol says.
    type WatchStream = tonic::Streaming<HealthCheckResponse>;

    async fn watch(&self, _: Request<HealthCheckRequest>) -> Result<Response<Self::WatchStream>, Status> {
        Err(Status::unimplemented("expected Check, got Watch"))
    }
}
