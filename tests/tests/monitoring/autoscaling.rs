//! What autoscalers ask Prometheus: KEDA by the triggers that the operator writes, a HorizontalPodAutoscaler by prometheus-adapter.

use std::fs;
use std::path::Path;

use serde_json::{Value, json};

use crate::{Query, promtool, repository};

/// The rules for prometheus-adapter, among those for Prometheus.
pub(crate) const ADAPTER: &str = "prometheus-adapter.yaml";

/// What a template of prometheus-adapter stands for.
const PLACEHOLDERS: [(&str, &str); 2] =
    [("<<.GroupBy>>", "pod"), ("<<.LabelMatchers>>", "namespace=\"coffee\",pod=~\"a|b\"")];

fn of_adapter() -> Vec<Query> {
    let text = fs::read_to_string(repository().join("deploy/rules").join(ADAPTER)).unwrap();
    let rules: Value = serde_saphyr::from_str(&text).unwrap();
    let rules = rules["rules"]["custom"].as_array().unwrap().clone();
    let fill = |text: &str| PLACEHOLDERS.iter().fold(text.to_owned(), |text, (name, value)| text.replace(name, value));
    let both = |rule: &Value| ["seriesQuery", "metricsQuery"].map(|key| fill(rule[key].as_str().unwrap()));
    let query = |text: String| Query { place: ADAPTER.to_owned(), text };
    rules.iter().flat_map(both).map(query).collect()
}

/// Those of the ScaledObject with all targets that the operator's tests have reviewed: load, then queue.
fn of_keda() -> Vec<Query> {
    let place = "operator/tests/snapshots/keda.json";
    let objects: Value = serde_json::from_str(&fs::read_to_string(repository().join(place)).unwrap()).unwrap();
    let triggers = objects["everything"]["spec"]["triggers"].as_array().unwrap().clone();
    let text = |trigger: &Value| trigger["metadata"]["query"].as_str().unwrap().to_owned();
    triggers.iter().map(text).map(|text| Query { place: place.to_owned(), text }).collect()
}

pub(crate) fn queries() -> Vec<Query> {
    [of_adapter(), of_keda()].concat()
}

#[test]
fn prometheus_takes_them() {
    assert_eq!((of_adapter().len(), of_keda().len()), (4, 2));
    promtool::takes("autoscaling", &queries());
}

/// A pod of three: what it tells, or nothing where it does not answer.
type Pod = Option<[u32; 3]>;

/// Requests that are being decoded, and samples that run and wait, in the pods of the InferenceModel, and in one that is of another.
fn series(pods: &[Pod]) -> Vec<Value> {
    let labels = |pod: usize| format!("namespace=\"coffee\",ortolan_dev_inference_model=\"espresso\",pod=\"{pod}\"");
    let one = |series: String, value: u32| json!({"series": series, "values": value.to_string()});
    let of_pod = |(pod, told): (usize, &Pod)| {
        let up = one(format!("up{{{}}}", labels(pod)), u32::from(told.is_some()));
        let told = told.iter().flat_map(|[decoding, running, waiting]| {
            let named = [
                ("ortolan_decoding_requests", *decoding),
                ("ortolan_inflight_samples", *running),
                ("ortolan_queue_depth", *waiting),
            ];
            // The second model of the pod has less, so it does not count.
            named.into_iter().flat_map(|(name, value)| {
                let of_model = |model: &str| format!("{name}{{{},model=\"{model}\"}}", labels(pod));
                [one(of_model("a"), value), one(of_model("b"), value / 2)]
            })
        });
        told.chain([up]).collect::<Vec<_>>()
    };
    let other =
        "ortolan_queue_depth{namespace=\"coffee\",ortolan_dev_inference_model=\"ristretto\",pod=\"9\",model=\"a\"}";
    pods.iter().enumerate().flat_map(of_pod).chain([one(other.to_owned(), 1_000_000)]).collect()
}

#[test]
fn a_pod_that_does_not_answer_keeps_replicas_and_adds_none() {
    let [load, queue] = &of_keda()[..] else { panic!("not two triggers") };
    // The targets are 2,000 samples in a pod and 5 that wait.
    let cases: [(&str, &[Pod], u32, u32); 5] = [
        ("all answer", &[Some([30, 870, 100]), Some([0, 400, 0]), Some([0, 600, 0])], 2000, 130),
        ("one is silent, the others are idle", &[Some([0, 10, 0]), Some([1, 10, 0]), None], 2021, 6),
        ("one is silent, the others carry the target", &[Some([0, 1998, 2]), Some([0, 1997, 3]), None], 6000, 10),
        (
            "one is silent, the others carry twice the target",
            &[Some([0, 4000, 10]), Some([5, 4000, 10]), None],
            8025,
            25,
        ),
        ("one is silent, the other is above the target", &[Some([0, 2500, 6]), None], 4000, 10),
    ];
    let tests = cases.map(|(name, pods, of_load, of_queue)| {
        let expect = |query: &Query, value: u32| {
            json!({"expr": query.text, "eval_time": "0", "exp_samples": [{"labels": "{}", "value": value}]})
        };
        let expected = [expect(load, of_load), expect(queue, of_queue)];
        json!({"name": name, "interval": "15s", "input_series": series(pods), "promql_expr_test": expected})
    });
    let silent = |query: &Query| json!({"expr": query.text, "eval_time": "0", "exp_samples": []});
    let nobody = json!({
        "name": "none answers, which is no load of 0", "interval": "15s", "input_series": series(&[None, None]),
        "promql_expr_test": [silent(load), silent(queue)],
    });
    let tests: Vec<Value> = tests.into_iter().chain([nobody]).collect();
    let file = Path::new(env!("CARGO_TARGET_TMPDIR")).join("triggers.yaml");
    // What is JSON is YAML too.
    fs::write(&file, json!({"rule_files": [], "tests": tests}).to_string()).unwrap();
    promtool::run(&["test", "rules"], &[file]).unwrap_or_else(|said| panic!("{said}"));
}
