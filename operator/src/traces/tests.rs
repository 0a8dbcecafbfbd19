//! Reconciles before a stand-in of the API server, and spans as a stand-in of a collector is sent them.

#![expect(clippy::print_stdout, reason = "times, for whoever looks")]

use std::{
    collections::BTreeMap,
    io,
    net::{Ipv4Addr, SocketAddr},
    sync::Mutex,
};

use axum::{
    Router,
    body::Bytes,
    extract::State,
    http::{HeaderMap, Method, StatusCode, Uri, header},
    response::{IntoResponse as _, Response},
    routing::post,
};
use crds::resource::InferenceModel;
use kube::{
    Client, Config,
    runtime::{
        controller::Action,
        events::{Recorder, Reporter},
    },
};
use opentelemetry_proto::tonic::{
    collector::trace::v1::ExportTraceServiceRequest,
    common::v1::{KeyValue as Pair, any_value::Value as Any},
    trace::v1::{Span, status::StatusCode as Code},
};
use prost::Message as _;
use serde_json::{Value, json};
use tokio::{net::TcpListener, sync::mpsc, time};
use tracing_subscriber::{fmt, layer::SubscriberExt as _};

use super::{outbox::SPANS, *};
use crate::{
    apply::Writer,
    autoscalers::Autoscalers,
    build::Images,
    cache::Cache,
    controller::{self, Failed},
    info::Infos,
    kinds::Kinds,
    leader::Leadership,
    logging::Traced,
    names,
    observe::Sources,
    scaling::{
        Outcomes,
        scaler::{Common, Scaler},
    },
    shared::Shared,
    stuck::Stuck,
    waiting::Waiting,
};

/// Long after this nothing comes any more.
const LONGEST: Duration = Duration::from_secs(60);

async fn served(router: Router) -> SocketAddr {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move { axum::serve(listener, router).await });
    address
}

/// Takes what it is sent.
#[derive(Clone, Default)]
struct Collector(Arc<Mutex<Vec<ExportTraceServiceRequest>>>);

impl Collector {
    async fn start() -> (Self, SocketAddr) {
        let collector = Self::default();
        let routes = Router::new().route("/v1/traces", post(Self::take)).with_state(collector.clone());
        (collector, served(routes).await)
    }

    async fn take(State(collector): State<Self>, headers: HeaderMap, body: Bytes) -> StatusCode {
        assert_eq!(headers[header::CONTENT_TYPE], "application/x-protobuf");
        collector.0.lock().unwrap().push(ExportTraceServiceRequest::decode(body).unwrap());
        StatusCode::OK
    }

    /// All spans, once there is one of that name.
    async fn with(&self, name: &str) -> Vec<Span> {
        let began = Instant::now();
        loop {
            let requests = self.0.lock().unwrap().clone();
            let resources = requests.into_iter().flat_map(|request| request.resource_spans);
            let spans: Vec<Span> = resources.flat_map(|it| it.scope_spans).flat_map(|it| it.spans).collect();
            if spans.iter().any(|span| span.name == name) {
                println!("{name} came after {:?}", began.elapsed());
                return spans;
            }
            assert!(began.elapsed() < LONGEST, "no span {name} has come");
            time::sleep(Duration::from_millis(20)).await;
        }
    }

    fn resource(&self) -> BTreeMap<String, String> {
        let requests = self.0.lock().unwrap();
        texts(&requests[0].resource_spans[0].resource.as_ref().unwrap().attributes)
    }
}

fn texts(pairs: &[Pair]) -> BTreeMap<String, String> {
    let text = |pair: &Pair| match pair.value.clone().unwrap().value.unwrap() {
        Any::StringValue(text) => text,
        Any::IntValue(number) => number.to_string(),
        Any::DoubleValue(number) => format!("{number:.0}"),
        other => panic!("{other:?}"),
    };
    pairs.iter().map(|pair| (pair.key.clone(), text(pair))).collect()
}

/// An API server that has one InferenceModel, takes everything, and fails for paths with that word in them.
async fn api_server(fails: &'static str) -> Client {
    let answer = move |method: Method, uri: Uri, body: Bytes| async move {
        let status = json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
            "message": "the stand-in has none", "reason": "InternalError", "code": 500});
        match method {
            _ if !fails.is_empty() && uri.path().contains(fails) => {
                as_json(StatusCode::INTERNAL_SERVER_ERROR, &status.to_string())
            }
            Method::GET => as_json(StatusCode::OK, r#"{"metadata": {}, "items": []}"#),
            _ if uri.path().ends_with("/status") => as_json(StatusCode::OK, &spec().to_string()),
            _ => as_json(StatusCode::OK, &String::from_utf8_lossy(&body)),
        }
    };
    let address = served(Router::new().fallback(answer)).await;
    Client::try_from(Config::new(format!("http://{address}").parse().unwrap())).unwrap()
}

fn as_json(code: StatusCode, body: &str) -> Response {
    (code, [(header::CONTENT_TYPE, "application/json")], body.to_owned()).into_response()
}

fn spec() -> Value {
    json!({
        "apiVersion": "ortolan.dev/v1alpha1",
        "kind": "InferenceModel",
        "metadata": {"name": "espresso", "namespace": "coffee", "uid": "1-2-3", "generation": 7},
        "spec": {"models": [{"name": "a", "source": {"uri": "file:///a.onnx"}}]},
    })
}

fn model() -> Arc<InferenceModel> {
    Arc::new(serde_json::from_value(spec()).unwrap())
}

/// What a reconcile needs. The changes that it tells go nowhere.
fn context(client: &Client, traces: Option<Traces>, metrics: &Arc<Metrics>) -> Arc<controller::Context> {
    let (changed, _) = mpsc::channel(1);
    let kinds = Kinds::new(client.clone(), Arc::clone(metrics));
    let sources = Sources {
        config_maps: Cache::by(names::MODEL_LABEL),
        deployments: Cache::by(names::MODEL_LABEL),
        services: Cache::by(names::MODEL_LABEL),
        autoscalers: Autoscalers::default(),
        scaled_objects: Cache::of_optional(names::MODEL_LABEL),
        kinds: kinds.clone(),
        pods: Cache::by(names::MODEL_LABEL),
        infos: Infos::new(changed.clone()),
        stuck: Stuck::new(client.clone(), changed.clone()),
        shared: Shared::new(kinds),
        scaling: Outcomes::default(),
    };
    let leadership = Leadership::default();
    leadership.gained();
    let writer = Arc::new(Writer::new(client.clone(), leadership.clone(), Arc::clone(metrics)));
    let scaler = Scaler::new(Common {
        pods: sources.pods.clone(),
        writer: Arc::clone(&writer),
        leadership: leadership.clone(),
        metrics: Arc::clone(metrics),
        changed: changed.clone(),
        outcomes: sources.scaling.clone(),
    });
    let reporter = Reporter { controller: "ortolan".to_owned(), instance: None };
    Arc::new(controller::Context {
        writer,
        scaler,
        recorder: Recorder::new(client.clone(), reporter),
        images: Images { cpu: "a:1".to_owned(), cuda: "b:2".to_owned(), pull_policy: "Always".to_owned() },
        prometheus: None,
        monitoring_labels: BTreeMap::new(),
        failures: Mutex::default(),
        sources,
        leadership,
        metrics: Arc::clone(metrics),
        traces,
        waiting: Arc::new(Waiting::default()),
        changed,
    })
}

fn traces(to: SocketAddr, sample: f64, metrics: &Arc<Metrics>) -> Traces {
    let url = format!("http://{to}/v1/traces");
    let to = Destination { url, sample: Some(sample), identity: "operator-7".to_owned() };
    Traces::new(&to, Arc::clone(metrics)).unwrap()
}

fn counted(metrics: &Metrics, series: &str) -> u64 {
    let (text, series) = (metrics.prometheus_text(), format!("ortolan_operator_{series} "));
    text.lines().find_map(|line| line.strip_prefix(&series)).unwrap().parse().unwrap()
}

/// One reconcile, and the lines that it wrote.
async fn reconciled(context: &Arc<controller::Context>) -> (Result<Action, Failed>, Vec<Value>) {
    let (reader, writer) = io::pipe().unwrap();
    let lines = fmt::layer().with_writer(Mutex::new(writer)).json().flatten_event(true);
    let lines = lines.map_event_format(|form| Traced { form, is_json: true });
    let log = tracing::subscriber::set_default(tracing_subscriber::registry().with(lines));
    let result = controller::reconcile(model(), Arc::clone(context)).await;
    drop(log);
    let text = io::read_to_string(reader).unwrap();
    let lines = text.lines().map(|line| serde_json::from_str(line).unwrap());
    (result, lines.filter(|line: &Value| line["target"].as_str().unwrap().starts_with("ortolan")).collect())
}

fn id(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The root, and its steps by their names in the order in which they began.
fn tree(mut spans: Vec<Span>) -> (Span, Vec<(String, Option<String>)>) {
    spans.sort_by_key(|span| span.start_time_unix_nano);
    let root = spans.iter().find(|span| span.parent_span_id.is_empty()).unwrap().clone();
    let steps: Vec<Span> = spans.into_iter().filter(|span| !span.parent_span_id.is_empty()).collect();
    for (step, next) in steps.iter().zip(steps.iter().skip(1)) {
        assert_eq!((&step.trace_id, &step.parent_span_id), (&root.trace_id, &root.span_id));
        assert_eq!(step.end_time_unix_nano, next.start_time_unix_nano, "{} goes over into {}", step.name, next.name);
    }
    assert!(root.start_time_unix_nano <= steps[0].start_time_unix_nano);
    assert!(root.end_time_unix_nano >= steps.last().unwrap().end_time_unix_nano);
    (root, steps.into_iter().map(|step| (step.name.clone(), error_of(&step))).collect())
}

fn error_of(span: &Span) -> Option<String> {
    let status = span.status.clone().unwrap_or_default();
    (status.code() == Code::Error).then_some(status.message)
}

#[tokio::test]
async fn a_reconcile_is_a_trace_with_its_steps_in_their_order() {
    let (collector, address) = Collector::start().await;
    let metrics = Arc::default();
    let context = context(&api_server("").await, Some(traces(address, 1.0, &metrics)), &metrics);
    let (result, lines) = reconciled(&context).await;
    result.unwrap();
    let (root, steps) = tree(collector.with("reconcile").await);
    let names: Vec<&str> = steps.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, ["observe", "validate", "build", "apply", "status"]);
    assert!(steps.iter().all(|(_, error)| error.is_none()) && error_of(&root).is_none(), "{steps:?}");
    for step in names {
        assert_eq!(counted(&metrics, &format!("reconcile_step_seconds_count{{step=\"{step}\"}}")), 1);
    }
    let told = texts(&root.attributes);
    let requeue: f64 = told["ortolan.requeue_seconds"].parse().unwrap();
    assert!((1.0..700.0).contains(&requeue), "{requeue}");
    for (key, value) in [
        ("k8s.namespace.name", "coffee"),
        ("ortolan.inference_model", "espresso"),
        ("ortolan.uid", "1-2-3"),
        ("ortolan.generation", "7"),
        ("ortolan.result", "ok"),
    ] {
        assert_eq!(told[key], value, "{key}");
    }
    let resource = collector.resource();
    assert_eq!(resource["service.name"], "ortolan-operator");
    assert_eq!(resource["service.instance.id"], "operator-7");
    assert!(!lines.is_empty(), "its readiness is told");
    assert!(lines.iter().all(|line| line["trace_id"] == id(&root.trace_id)), "{lines:?}");
}

#[tokio::test]
async fn the_step_that_failed_says_why_and_so_does_the_reconcile() {
    let (collector, address) = Collector::start().await;
    let metrics = Arc::default();
    let context = context(&api_server("/deployments").await, Some(traces(address, 1.0, &metrics)), &metrics);
    let (result, lines) = reconciled(&context).await;
    assert!(result.is_err());
    let (root, steps) = tree(collector.with("reconcile").await);
    let failed: Vec<&str> = steps.iter().filter(|(_, error)| error.is_some()).map(|(name, _)| name.as_str()).collect();
    assert_eq!((failed, steps.len()), (vec!["apply"], 5));
    let why = error_of(&root).unwrap();
    assert!(why.contains("Deployment espresso") && why.contains("the stand-in has none"), "{why}");
    assert_eq!(steps[3].1.as_ref(), Some(&why));
    assert_eq!(texts(&root.attributes)["ortolan.result"], "error");
    let line = lines.iter().find(|line| line["message"] == "a reconcile failed and is tried again").unwrap();
    assert_eq!((&line["trace_id"], line["error"].as_str()), (&json!(id(&root.trace_id)), Some(why.as_str())));
}

#[tokio::test]
async fn a_status_that_cannot_be_written_is_the_last_step_s_failure() {
    let (collector, address) = Collector::start().await;
    let metrics = Arc::default();
    let context = context(&api_server("/status").await, Some(traces(address, 1.0, &metrics)), &metrics);
    assert!(reconciled(&context).await.0.is_err());
    let (_, steps) = tree(collector.with("reconcile").await);
    let (name, error) = steps.last().unwrap();
    assert_eq!((name.as_str(), steps.len()), ("status", 5));
    assert!(error.as_ref().unwrap().starts_with("cannot write the status of InferenceModel espresso: "), "{error:?}");
}

#[tokio::test]
async fn a_step_in_which_a_reconcile_is_given_up_is_an_error() {
    let (collector, address) = Collector::start().await;
    let metrics: Arc<Metrics> = Arc::default();
    let traces = traces(address, 1.0, &metrics);
    let trace = traces.begin(&model()).unwrap();
    let mut steps = metrics.steps(Some(&trace));
    steps.ended(Step::observe);
    drop(steps);
    trace.ended(Ending { result: None, requeue: None, error: None });
    let (root, steps) = tree(collector.with("reconcile").await);
    assert_eq!(steps, [("observe".to_owned(), None), ("validate".to_owned(), Some("given up".to_owned()))]);
    assert_eq!(texts(&root.attributes)["ortolan.result"], "left");
}

#[tokio::test]
async fn without_a_collector_and_out_of_the_share_nothing_is_traced() {
    let (collector, address) = Collector::start().await;
    let metrics = Arc::default();
    let client = api_server("").await;
    for traces in [None, Some(traces(address, 0.0, &metrics))] {
        assert!(traces.as_ref().is_none_or(|traces| traces.begin(&model()).is_none()));
        let (result, lines) = reconciled(&context(&client, traces, &metrics)).await;
        result.unwrap();
        assert!(!lines.is_empty() && lines.iter().all(|line| line.get("trace_id").is_none()), "{lines:?}");
    }
    let all = traces(address, 1.0, &metrics);
    all.begin(&model()).unwrap().ended(Ending { result: None, requeue: None, error: None });
    assert_eq!(collector.with("reconcile").await.len(), 1, "the only one that is traced");
    // They are counted when the collector has said that it has them.
    let began = Instant::now();
    while counted(&metrics, "spans_sent_total") == 0 {
        assert!(began.elapsed() < LONGEST, "no span was counted");
        time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(counted(&metrics, "spans_sent_total"), 1);
}

#[tokio::test]
async fn a_collector_that_hangs_holds_up_neither_a_reconcile_nor_the_end() {
    // Connections are taken by the kernel, and never read.
    let hanging = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let metrics: Arc<Metrics> = Arc::default();
    let traces = traces(hanging.local_addr().unwrap(), 1.0, &metrics);
    for _ in 0..2 * SPANS {
        traces.begin(&model()).unwrap().ended(Ending { result: None, requeue: None, error: None });
    }
    let full = counted(&metrics, "spans_dropped_total{reason=\"full\"}");
    assert!(full > 0, "more came than may wait");
    reconciled(&context(&api_server("").await, Some(traces.clone()), &metrics)).await.0.unwrap();
    assert_eq!(counted(&metrics, "spans_sent_total"), 0);
    let began = Instant::now();
    let ended = time::timeout(LONGEST, traces.end()).await.unwrap();
    println!("the end took {:?}", began.elapsed());
    assert!(ended.is_err(), "it did not wait until all were tried");
    drop(hanging);
}

#[tokio::test]
async fn a_collector_that_is_not_there_costs_its_spans_which_are_counted() {
    let metrics: Arc<Metrics> = Arc::default();
    let nobody = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap().local_addr().unwrap();
    let traces = traces(nobody, 1.0, &metrics);
    traces.begin(&model()).unwrap().ended(Ending { result: None, requeue: None, error: None });
    // On a machine that is busy that may be too short for it; it is tried all the same.
    let _ = traces.clone().end().await;
    let began = Instant::now();
    while counted(&metrics, "spans_dropped_total{reason=\"failed\"}") == 0 {
        assert!(began.elapsed() < LONGEST, "nothing is counted");
        time::sleep(Duration::from_millis(20)).await;
    }
    assert!(traces.begin(&model()).is_none(), "none is made after the end");
}

#[tokio::test]
async fn what_is_left_at_the_end_is_sent() {
    let (collector, address) = Collector::start().await;
    let metrics: Arc<Metrics> = Arc::default();
    let traces = traces(address, 1.0, &metrics);
    traces.begin(&model()).unwrap().ended(Ending { result: None, requeue: None, error: None });
    // On a machine that is busy that may be too short for it; it is sent all the same.
    let _ = traces.end().await;
    collector.with("reconcile").await;
}
