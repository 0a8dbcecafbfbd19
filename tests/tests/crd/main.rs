//! The definition of `InferenceModel` on a real API server: it is taken, by `kubectl apply` too, without a warning; each
//! rule refuses with its sentence and its field; what is left out is filled in. And what the operator's writer leaves alone there.
//!
//! The objects are those that the crate tries offline, in `crds/tests/resource/refusals.yaml`. Times are printed, never
//! asserted.

#![allow(clippy::disallowed_methods, reason = "a harness is told by its environment what to use")]
#![allow(clippy::unwrap_used, reason = "a test may panic")]

#[path = "../../../crds/tests/resource/refusals.rs"]
mod refusals;
mod writer;

use std::{io::Write, process::ExitCode, time::Duration};

use crds::resource::{InferenceModel, definition};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::{
    Client,
    api::{Api, DeleteParams, DynamicObject, ListParams, Patch, PatchParams, PostParams},
    core::{ApiResource, GroupVersionKind},
};
use libtest_mimic::{Arguments, Trial};
use ortolan_tests::cluster::{Cluster, Options, wait};
use refusals::{object, refusals};
use serde_json::{Value, json};
use tokio::runtime::Runtime;

/// The longest that any state is waited for.
const LIMIT: Duration = Duration::from_secs(60);

const DEFINITION: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../crds/generated/inferencemodels.ortolan.dev.yaml");

fn main() -> ExitCode {
    let mut arguments = Arguments::from_args();
    arguments.test_threads.get_or_insert(1);
    if arguments.list {
        return libtest_mimic::run(&arguments, trials(None)).exit_code();
    }
    let runtime = Runtime::new().unwrap();
    let options = Options::named("test-crd").control_plane_alone();
    let cluster = runtime.block_on(Cluster::from_environment(&options)).unwrap();
    // Leaked, because tests may run on threads of their own; the cluster is ended below.
    let shared: &'static Shared = Box::leak(Box::new(Shared { runtime, cluster }));
    let conclusion = libtest_mimic::run(&arguments, trials(Some(shared)));
    let ended = shared.cluster.end(conclusion.has_failed());
    if conclusion.has_failed() || ended.is_err() { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}

struct Shared {
    runtime: Runtime,
    cluster: Cluster,
}

fn trials(shared: Option<&'static Shared>) -> Vec<Trial> {
    let trial = |name: &str, test: fn(&Shared)| {
        Trial::test(name, move || {
            test(shared.ok_or("there is no cluster")?);
            Ok(())
        })
    };
    vec![
        trial("kubectl_apply_takes_the_definition_without_a_warning", takes_the_definition),
        trial("each_rule_refuses_with_its_sentence_and_its_field", refuses),
        trial("what_is_just_inside_of_a_rule_is_taken", accepts),
        trial("the_api_server_fills_in_what_the_types_fill_in", fills_in),
        trial("a_null_is_as_good_as_nothing", drops_nulls),
        trial("what_is_open_keeps_its_keys_and_the_scale_is_served", keeps_open_parts),
        trial("a_status_is_told_to_the_object_that_it_is_of_and_to_no_other", writer::tells_no_other),
        trial("an_object_is_scaled_and_no_other_of_its_name", writer::scales_no_other),
        trial("in_a_namespace_that_ends_nothing_is_made_and_nothing_has_failed", writer::leaves_an_ending_namespace),
    ]
}

fn takes_the_definition(shared: &Shared) {
    let output = shared.cluster.kubectl().unwrap().args(["apply", "-f", DEFINITION]).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success() && said.is_empty(), "{said}");
    shared.runtime.block_on(installed(&shared.cluster.client()));
}

fn refuses(shared: &Shared) {
    let client = shared.cluster.client();
    shared.runtime.block_on(async {
        installed(&client).await;
        for refusal in refusals() {
            for patch in &refusal.refused {
                let causes = causes(create(&client, patch).await.unwrap_err());
                let [(field, message)] = causes.as_slice() else { panic!("not one rule refuses {patch}: {causes:?}") };
                assert_eq!(field, &refusal.field, "{patch}");
                assert!(message.ends_with(&format!(": {}", refusal.message)), "{patch}: {message}");
            }
        }
    });
}

fn accepts(shared: &Shared) {
    let client = shared.cluster.client();
    shared.runtime.block_on(async {
        installed(&client).await;
        for refusal in refusals() {
            for patch in &refusal.accepted {
                create(&client, patch).await.unwrap();
            }
        }
    });
}

fn fills_in(shared: &Shared) {
    let client = shared.cluster.client();
    shared.runtime.block_on(async {
        installed(&client).await;
        let least = object(&json!({}));
        let stored = create(&client, &json!({})).await.unwrap();
        let read: InferenceModel = serde_json::from_value(least).unwrap();
        assert_eq!(stored.data["spec"], serde_json::to_value(&read.spec).unwrap());
    });
}

fn drops_nulls(shared: &Shared) {
    let client = shared.cluster.client();
    shared.runtime.block_on(async {
        installed(&client).await;
        let patch = json!({"spec": {
            "models": [{"name": "a", "source": {"uri": null, "pvc": {"claimName": "b"}}, "options": {"image": null}}],
            "scaling": null,
            "route": null,
        }});
        let stored = create(&client, &patch).await.unwrap();
        let read: InferenceModel = serde_json::from_value(serde_json::to_value(stored).unwrap()).unwrap();
        assert_eq!(read.spec.models[0].source.uri, None);
        assert_eq!(read.spec.scaling.min_replicas, 1);
    });
}

fn keeps_open_parts(shared: &Shared) {
    let client = shared.cluster.client();
    shared.runtime.block_on(async {
        installed(&client).await;
        let overlay = json!({"spec": {"affinity": {"nodeAffinity": {"any": [1, "two"]}}}});
        let object = object(&json!({"metadata": {"name": "open"}, "spec": {
            "models": [{
                "name": "a",
                "source": {"pvc": {"claimName": "b"}},
                "options": {"image": {"resize": [320, 240]}, "labels": ["cat", "dog"]},
            }],
            "resources": {"limits": {"cpu": 2, "memory": "1Gi"}},
            "podTemplate": overlay,
            "replicas": 3,
        }}));
        let models: Api<InferenceModel> = Api::namespaced(client.clone(), "default");
        models.patch("open", &PatchParams::apply("test"), &Patch::Apply(&object)).await.unwrap();
        let read = models.get("open").await.unwrap();
        assert_eq!(read.spec.pod_template, Some(overlay));
        assert_eq!(read.spec.resources.unwrap().limits.unwrap()["cpu"].0, "2");
        let options = read.spec.models[0].options.as_ref().unwrap().parse().unwrap();
        assert_eq!(options.labels, Some(crds::serving::Labels::List(vec!["cat".to_owned(), "dog".to_owned()])));
        assert_eq!(models.get_scale("open").await.unwrap().spec.unwrap().replicas, Some(3));
        let status = json!({"status": {"replicas": 3, "readyReplicas": 2, "selector": "a=b", "conditions": [{
            "type": "Ready", "status": "False", "reason": "Fetching", "message": "",
            "lastTransitionTime": "2026-01-02T03:04:05Z", "observedGeneration": 1,
        }]}});
        models.patch_status("open", &PatchParams::default(), &Patch::Merge(&status)).await.unwrap();
        let table = shared.cluster.run_kubectl(&["get", "infm", "open", "-n", "default"]).await.unwrap();
        let cells: Vec<&str> = table.split_whitespace().collect();
        assert_eq!(cells[..6], ["NAME", "READY", "REPLICAS", "REVISION", "URL", "REASON"], "{table}");
        assert_eq!(cells[7..10], ["open", "False", "2"], "{table}");
        models.delete("open", &DeleteParams::default()).await.unwrap();
    });
}

/// Applies the definition and waits until the API serves it; at once if it does already.
async fn installed(client: &Client) {
    let definitions: Api<CustomResourceDefinition> = Api::all(client.clone());
    let apply = PatchParams::apply("test").force();
    definitions.patch("inferencemodels.ortolan.dev", &apply, &Patch::Apply(definition().unwrap())).await.unwrap();
    let models: Api<InferenceModel> = Api::namespaced(client.clone(), "default");
    let served = wait::until("InferenceModels to be served", LIMIT, async || {
        models.list(&ListParams::default()).await.map_err(|error| error.to_string())
    });
    let (_, took) = served.await.unwrap();
    let _ = writeln!(std::io::stderr(), "  served after {took:?}");
}

/// Asks for the object without storing it.
async fn create(client: &Client, patch: &Value) -> kube::Result<DynamicObject> {
    let kind = GroupVersionKind::gvk("ortolan.dev", "v1alpha1", "InferenceModel");
    let api: Api<DynamicObject> = Api::namespaced_with(client.clone(), "default", &ApiResource::from_gvk(&kind));
    let object = serde_json::from_value(object(patch)).unwrap();
    let ask = PostParams { dry_run: true, ..PostParams::default() };
    api.create(&ask, &object).await
}

/// Field and sentence of each thing that the API server has against an object.
fn causes(error: kube::Error) -> Vec<(String, String)> {
    let kube::Error::Api(status) = error else { panic!("{error}") };
    let causes = status.details.map(|details| details.causes).unwrap_or_default();
    causes.into_iter().map(|cause| (cause.field, cause.message)).collect()
}
