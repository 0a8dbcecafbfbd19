//! What the pod exports. Closed label sets; a client-sent model name never becomes a label.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock},
    time::Duration,
};

use crds::exposition::openmetrics_to_prometheus;
use prometheus_client::{
    encoding::text::{encode_eof, encode_registry},
    metrics::info::Info,
    registry::Registry,
};

pub use super::numbers::ModelMetrics;
use super::{
    Bounds,
    collect::{self, Responses},
    events::Events,
    numbers::Extras,
    page::{Part, write_together},
    route::Route,
    triton::Triton,
};

/// All metrics of the process.
pub struct Metrics {
    /// What is not of one model.
    registry: Registry,
    responses: Arc<Responses>,
    models: RwLock<Vec<OfModel>>,
    /// Where the text is written before it becomes the older form. Kept: for many models it is large.
    page: Mutex<String>,
    /// The same numbers once more by the names that Triton gives them, where they are wanted.
    triton: Option<Triton>,
}

/// What is of one model.
struct OfModel {
    metrics: ModelMetrics,
    registry: Registry,
    part: Mutex<Part>,
}

impl OfModel {
    /// Its part of the page, up to date.
    fn part(&self) -> MutexGuard<'_, Part> {
        let mut part = self.part.lock().unwrap_or_else(PoisonError::into_inner);
        // Writing to a string cannot fail; a metric that refuses to encode is left out.
        let _ = self.metrics.write(&mut part, &self.registry);
        part
    }
}

impl Metrics {
    /// All metrics, with what is known of the build, of ONNX Runtime, of the process and of its GPUs.
    #[must_use]
    pub fn new(runtime_version: &str, events: &Arc<Events>, triton_names: bool) -> Self {
        let mut registry = Registry::default();
        let responses = Arc::new(Responses::default());
        let build = Info::new(vec![
            ("version", env!("CARGO_PKG_VERSION").to_owned()),
            ("onnxruntime", runtime_version.to_owned()),
        ]);
        let ours = registry.sub_registry_with_prefix("ortolan");
        ours.register("build", "Versions of this program", build);
        ours.register_collector(Box::new(collect::ByRoute(Arc::clone(&responses))));
        ours.register_collector(Box::new(collect::Consumers(Arc::clone(events))));
        ours.register_collector(Box::new(collect::Lines));
        // Without a thread to ask there are no numbers of GPUs.
        if let Ok(gpus) = collect::Gpus::find() {
            ours.register_collector(Box::new(gpus));
        }
        registry.register_collector(Box::new(collect::Process));
        let triton = triton_names.then(Triton::default);
        if let Some(triton) = &triton {
            registry.register_collector(Box::new(triton.clone()));
        }
        Self { registry, responses, models: RwLock::default(), page: Mutex::default(), triton }
    }

    /// The handles of one model, all present at 0. What health tells of it is of the last `window`; its latency has exemplars where
    /// requests are `traced`.
    #[must_use]
    pub fn model(&self, name: &str, bounds: &Bounds, window: Duration, traced: bool) -> ModelMetrics {
        let mut models = self.models.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = models.iter().find(|known| known.metrics.model() == name) {
            return known.metrics.clone();
        }
        let triton = self.triton.as_ref().map(|triton| triton.model(name));
        let (metrics, registry) = ModelMetrics::new(name, bounds, Extras { traced, window, triton });
        models.push(OfModel { metrics: metrics.clone(), registry, part: Mutex::default() });
        metrics
    }

    /// A response was sent on a route of ours.
    pub fn responded(&self, route: Route, code: u16) {
        self.responses.count(route, code);
    }

    /// OpenMetrics 1.0 text.
    #[must_use]
    pub fn openmetrics_text(&self) -> String {
        let mut text = String::new();
        self.write(&mut text);
        text
    }

    fn write(&self, text: &mut String) {
        let models = self.models.read().unwrap_or_else(PoisonError::into_inner);
        let parts: Vec<_> = models.iter().map(OfModel::part).collect();
        write_together(text, parts.iter().map(|part| &**part));
        let _ = encode_registry(text, &self.registry).and_then(|()| encode_eof(text));
    }

    /// Prometheus text format 0.0.4, for tools that do not read OpenMetrics.
    #[must_use]
    pub fn prometheus_text(&self) -> String {
        let mut page = self.page.lock().unwrap_or_else(PoisonError::into_inner);
        page.clear();
        self.write(&mut page);
        openmetrics_to_prometheus(&page)
    }
}

#[cfg(test)]
mod tests {
    use std::{
        path::Path,
        time::{Duration, Instant},
    };

    use crds::exposition::with_table;

    use super::*;
    use crate::observe::{
        End, Example, Memory, OUTCOMES, Observer, Outcome, Standing,
        events::{Event, Subscription, consumer::Consumer, redact::Redactor},
        numbers::latency_bounds,
        span::TraceId,
    };
    use crate::queue::Passed;

    const WINDOW: Duration = Duration::from_secs(60);

    fn end(outcome: Outcome, millis: u64) -> End {
        End::after(outcome, Duration::from_millis(millis), Instant::now())
    }

    fn metrics() -> Metrics {
        Metrics::new("1.31.1", &Arc::new(Events::quiet()), true)
    }

    fn bounds(objective: Option<Duration>) -> Bounds {
        Bounds { batch_size: 8, max_wait: Duration::from_millis(500), latency_objective: objective }
    }

    #[test]
    fn every_metric_is_present_at_zero_once_its_model_is_known() {
        let metrics = metrics();
        let _model = metrics.model("espresso", &bounds(None), WINDOW, false);
        let text = metrics.prometheus_text();
        for line in [
            "ortolan_requests_received_total{model=\"espresso\"} 0",
            "ortolan_requests_total{model=\"espresso\",outcome=\"rejected\"} 0",
            "ortolan_errors_total{model=\"espresso\",reason=\"queue_full\"} 0",
            "ortolan_queue_depth{model=\"espresso\"} 0",
            "ortolan_queue_depth_max{model=\"espresso\"} 0",
            "ortolan_samples_dequeued_total{model=\"espresso\"} 0",
            "ortolan_request_latency_seconds_count{model=\"espresso\"} 0",
            "ortolan_instances{model=\"espresso\",state=\"lost\"} 0",
            "ortolan_instance_crashes_total{model=\"espresso\"} 0",
            "ortolan_queue_limit_seconds{model=\"espresso\"} 0.5",
            "ortolan_overloaded{model=\"espresso\"} 0",
        ] {
            assert!(text.lines().any(|seen| seen == line), "expected {line} in\n{text}");
        }
        for name in ["process_cpu_seconds_total", "process_resident_memory_bytes", "process_open_fds"] {
            assert!(text.lines().any(|line| line.starts_with(&format!("{name} "))), "expected {name} in\n{text}");
        }
    }

    #[test]
    fn the_objective_is_a_bound_of_the_latency_and_an_exemplar_leads_to_a_trace() {
        let metrics = metrics();
        let model = metrics.model("espresso", &bounds(Some(Duration::from_millis(30))), WINDOW, true);
        let redactor = Arc::clone(Events::quiet().redactor());
        let example = Example { trace: TraceId(10), request_id: Some("r-1".to_owned()), redactor };
        model.ended_traced(end(Outcome::ok, 20), Some(example));
        let text = metrics.openmetrics_text();
        let line = text.lines().find(|line| line.contains("latency_seconds_bucket{le=\"0.03\"")).unwrap();
        let trace_id = format!("{:032x}", 10);
        assert!(line.contains(&format!(" 1 # {{trace_id=\"{trace_id}\",request_id=\"r-1\"}} 0.02")), "{line}");
        assert!(!metrics.prometheus_text().contains("trace_id"));
    }

    #[test]
    fn a_queue_that_stays_full_is_as_deep_as_it_is_however_long_nobody_comes() {
        let metrics = metrics();
        let (model, now) = (metrics.model("espresso", &bounds(None), WINDOW, false), Instant::now());
        let says = |line: &str| metrics.prometheus_text().lines().any(|seen| seen == line);
        let late = now + Duration::from_secs(300);
        model.was_deep(9, now);
        model.was_deep(7, late);
        model.stands(Standing { waiting: 7, ..Standing::default() }, late);
        assert!(says("ortolan_queue_depth_max{model=\"espresso\"} 7"));
        model.stands(Standing::default(), late + Duration::from_secs(10));
        assert!(says("ortolan_queue_depth_max{model=\"espresso\"} 7"), "ten seconds ago it was");
    }

    /// Dashboards add the latencies of several models, so they must leave out the bounds that not all of them have.
    #[test]
    fn what_dashboards_add_up_are_the_bounds_that_all_models_have() {
        let text = |bounds: Vec<f64>| bounds.iter().map(|bound| format!("{bound}|")).collect::<String>() + "[+]Inf";
        let shared = text(latency_bounds(None));
        for objective in [1, 30, 512, 40_000] {
            let own = latency_bounds(Some(Duration::from_millis(objective)));
            assert!(latency_bounds(None).iter().all(|bound| own.contains(bound)), "{own:?}");
        }
        for name in ["model.json", "models.json"] {
            let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/dashboards").join(name);
            let dashboard = std::fs::read_to_string(path).unwrap();
            let mut selectors = dashboard.split("ortolan_request_latency_seconds_bucket{").skip(1).peekable();
            assert!(selectors.peek().is_some(), "{name}");
            for selector in selectors {
                let selector = selector.split_once('}').unwrap().0;
                assert!(selector.contains(&format!("le=~\\\"{shared}\\\"")), "{selector} in {name}, expected {shared}");
            }
        }
    }

    #[test]
    fn the_memory_of_a_model_is_that_of_all_its_instances() {
        let observer = Observer::quiet("1.31.1");
        let model = observer.model("espresso", &bounds(None));
        let weighed = |index, arena, in_use| model.weighed(index, Memory { arena, in_use, peak: in_use + 1 });
        assert_eq!(model.memory_bytes(), None);
        weighed(0, 7, 100);
        weighed(1, 8, 20);
        assert_eq!(model.memory_bytes(), Some(120));
        let says = |line: &str| observer.metrics.prometheus_text().lines().any(|seen| seen == line);
        assert!(says("ortolan_model_memory_bytes{model=\"espresso\",kind=\"in_use\"} 120"));
        assert!(says("ortolan_model_memory_bytes{model=\"espresso\",kind=\"peak\"} 122"));
        // These two share one.
        weighed(2, 8, 30);
        assert_eq!(model.memory_bytes(), Some(130));
        // One of them was opened anew, and one is given up.
        weighed(1, 9, 5);
        assert_eq!(model.memory_bytes(), Some(135));
        model.broken_instance_lost(1);
        assert_eq!(model.memory_bytes(), Some(130));
    }

    #[test]
    fn refusals_and_callers_who_left_do_not_hide_how_slow_answers_are() {
        let metrics = metrics();
        let model = metrics.model("espresso", &bounds(None), WINDOW, false);
        for outcome in OUTCOMES {
            model.ended(end(outcome, 3));
        }
        let text = metrics.openmetrics_text();
        let count = "ortolan_request_latency_seconds_count{model=\"espresso\"} 3";
        assert!(text.lines().any(|line| line == count), "expected {count}, for ok, expired and failed, in\n{text}");
    }

    #[test]
    fn the_older_text_form_names_counters_in_full() {
        let metrics = metrics();
        let passed = Passed { asked: 1, ..Passed::default() };
        let standing = Standing { passed, ..Standing::default() };
        metrics.model("espresso", &bounds(None), WINDOW, false).stands(standing, Instant::now());
        let text = metrics.prometheus_text();
        assert!(text.contains("# TYPE ortolan_requests_received_total counter\n"), "{text}");
        assert!(text.contains("# TYPE ortolan_build_info gauge\n"), "{text}");
        assert!(text.contains("ortolan_requests_received_total{model=\"espresso\"} 1\n"), "{text}");
        assert!(!text.contains("# EOF"), "{text}");
        assert!(metrics.openmetrics_text().ends_with("# EOF\n"));
    }

    #[test]
    fn triton_s_names_have_the_same_numbers() {
        let metrics = metrics();
        let model = metrics.model("espresso", &bounds(None), WINDOW, false);
        model.ended(end(Outcome::ok, 3));
        model.ended(end(Outcome::expired, 3));
        model.run_ended(4, Duration::from_millis(2));
        let text = metrics.prometheus_text();
        for line in [
            "nv_inference_request_success{model=\"espresso\",version=\"1\"} 1",
            "nv_inference_request_failure{model=\"espresso\",version=\"1\",reason=\"OTHER\"} 1",
            "nv_inference_count{model=\"espresso\",version=\"1\"} 4",
            "nv_inference_compute_infer_duration_us{model=\"espresso\",version=\"1\"} 2000",
        ] {
            assert!(text.lines().any(|seen| seen == line), "expected {line} in\n{text}");
        }
    }

    /// UPDATE=1 writes it anew.
    #[test]
    #[expect(clippy::disallowed_methods, reason = "a person says so")]
    fn the_table_of_the_docs_has_every_metric() {
        struct Nobody;
        impl Consumer for Nobody {
            fn consume(&mut self, _: &[Arc<Event>]) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
                Ok(())
            }
        }
        let (rules, gather) = (Some(Vec::new()), Duration::ZERO);
        let subscription = Subscription { name: "log", rules, gather, consumer: Box::new(Nobody) };
        let events = Events::start(vec![subscription], Redactor::new(&[]).unwrap()).unwrap();
        let mut metrics = Metrics::new("1.31.1", &Arc::new(events), false);
        metrics.registry.sub_registry_with_prefix("ortolan").register_collector(Box::new(collect::Gpus::example()));
        let model = metrics.model("espresso", &bounds(Some(Duration::from_millis(30))), WINDOW, true);
        model.objective_feasible(true);
        model.memory(Memory { arena: 0, in_use: 1, peak: 2 });
        model.provider_in_use("cpu", false);
        metrics.responded(Route::of("/ready"), 200);
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/observability.md");
        let page = std::fs::read_to_string(&path).unwrap();
        let wanted = with_table(&page, "metrics", &metrics.openmetrics_text()).unwrap();
        if std::env::var("UPDATE").is_ok() {
            return std::fs::write(&path, &wanted).unwrap();
        }
        assert!(wanted == page, "UPDATE=1 cargo test -p inference-pod --lib the_table writes the page anew");
    }

    #[test]
    fn responses_are_counted_by_route_and_status() {
        let metrics = metrics();
        for (route, code) in [("/ready", 200), ("/info", 200), ("/ready", 503), ("/ready", 200), ("/ready", 503)] {
            metrics.responded(Route::of(route), code);
        }
        let text = metrics.openmetrics_text();
        for (route, code, count) in [("/ready", 200, 2), ("/info", 200, 1), ("/ready", 503, 2)] {
            let line = format!("ortolan_http_responses_total{{route=\"{route}\",code=\"{code}\"}} {count}\n");
            assert!(text.contains(&line), "{line}{text}");
        }
    }

    #[test]
    fn what_is_copied_is_what_would_be_written() {
        let metrics = metrics();
        let models = ["espresso", "latte"].map(|name| metrics.model(name, &bounds(None), WINDOW, false));
        let sorted = |text: &str| {
            let mut lines: Vec<_> = text
                .lines()
                .filter(|line| line.starts_with("ortolan_") && line.contains("model="))
                .map(str::to_owned)
                .collect();
            lines.sort();
            lines
        };
        let written = || {
            let mut text = String::new();
            metrics
                .models
                .read()
                .unwrap()
                .iter()
                .for_each(|model| encode_registry(&mut text, &model.registry).unwrap());
            sorted(&text)
        };
        let (now, later) = (Instant::now(), Instant::now() + Duration::from_secs(300));
        let oldest = Duration::from_secs(1);
        let changes: [&dyn Fn(&ModelMetrics); 5] = [
            &|model| model.run_began(3, [oldest].into_iter()),
            &|model| model.stands(Standing { waiting: 3, oldest, ..Standing::default() }, now),
            &|model| model.stands(Standing { waiting: 3, oldest: 2 * oldest, ..Standing::default() }, now),
            &|model| model.stands(Standing::default(), later),
            &|model| model.ended(end(Outcome::ok, 3)),
        ];
        for change in changes {
            for model in &models {
                // Until nothing is due any more.
                (0..3).for_each(|_| drop(metrics.openmetrics_text()));
                change(model);
                assert_eq!(sorted(&metrics.openmetrics_text()), written());
            }
        }
    }

    #[test]
    fn a_model_has_at_most_120_series() {
        let metrics = metrics();
        let bounds = Bounds { batch_size: 1024, ..bounds(Some(Duration::from_millis(30))) };
        let model = metrics.model("espresso", &bounds, WINDOW, false);
        model.ended(end(Outcome::ok, 3));
        model.objective_feasible(true);
        model.memory(Memory { arena: 0, in_use: 1, peak: 2 });
        model.provider_in_use("cpu", false);
        let text = metrics.prometheus_text();
        let ours = |line: &&str| line.starts_with("ortolan_") && line.contains("model=\"espresso\"");
        let series = text.lines().filter(ours).count();
        assert!(series <= 120, "{series} series");
    }
}
