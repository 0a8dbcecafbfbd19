//! What becomes of a spec: all objects as one reviewed snapshot, and what must not depend on the operator's version.
//!
//! `UPDATE=1 cargo test -p ortolan-operator --test objects` writes the snapshots anew.

#![allow(clippy::unwrap_used, reason = "a test may panic")]
#![allow(clippy::disallowed_methods, reason = "a test is told by its environment to write snapshots anew")]

use std::{collections::BTreeMap, fs, path::Path, sync::Arc};

use crds::{
    resource::{InferenceModel, conditions::accepted},
    serving::{self, Layer},
};
use k8s_openapi::api::core::v1::{PodTemplateSpec, Service, Volume};
use ortolan_operator::{
    build::{self, Images, Revision, build, build_of_refused, monitoring, revision},
    observe::Observed,
    rollout::{Plan, Record, Stage},
    validate::validate,
};
use serde_json::{Value, json};

fn images() -> Images {
    Images { cpu: "pod:1".to_owned(), cuda: "pod:1-cuda".to_owned(), pull_policy: "IfNotPresent".to_owned() }
}

fn model(spec: Value) -> InferenceModel {
    serde_json::from_value(json!({
        "apiVersion": "ortolan.dev/v1alpha1",
        "kind": "InferenceModel",
        "metadata": {"name": "espresso", "namespace": "coffee", "uid": "6ad4", "generation": 3},
        "spec": spec,
    }))
    .unwrap()
}

const SHA256: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

fn plain() -> Value {
    json!({"models": [{"name": "small", "source": {"uri": "http://shelf/small.onnx"}, "sha256": SHA256}]})
}

fn rich() -> Value {
    json!({
        "models": [
            {
                "name": "fetched",
                "source": {"uri": "https://shelf/folder/"},
                "files": [{"path": "model.onnx", "sha256": SHA256}, {"path": "labels.txt", "sha256": SHA256}],
                "task": "image-classification",
                "batching": {"batchSize": 16, "batchTimeout": "5ms", "maxQueueTime": "1s"},
                "requestTimeout": "5s",
                "latencyObjective": "50ms",
                "options": {"top_k": 3},
            },
            {"name": "shelved", "source": {"pvc": {"claimName": "shelf", "path": "models/b"}}, "instances": 2},
            {"name": "packed", "source": {"image": {"reference": "models/c:1", "pullPolicy": "Always"}}},
            {"name": "baked-in", "source": {"uri": "file:///opt/model.onnx"}},
        ],
        "server": {
            "env": [{"name": "OMP_WAIT_POLICY", "value": "PASSIVE"}],
            "logLevel": "debug",
            "config": {"drain_delay_ms": 1500, "drain_timeout_ms": 2000},
        },
        "accelerator": {"count": 1, "nodeSelector": {"gpu": "a100"}, "runtimeClassName": "nvidia"},
        "resources": {"requests": {"cpu": "1500m", "memory": "1Gi"}, "limits": {"memory": "2Gi"}},
        "serviceAccountName": "barista",
        "service": {"type": "NodePort", "annotations": {"team": "coffee"}},
        "monitoring": {"serviceMonitor": "Disabled", "dashboard": true},
        "replicas": 2,
        "podTemplate": {
            "metadata": {"annotations": {"note": "hot"}},
            "spec": {
                "priorityClassName": "high",
                "containers": [{"name": "server", "env": [{"name": "TZ", "value": "UTC"}]}],
            },
        },
    })
}

fn plan(hash: &str) -> Plan {
    Plan {
        replicas: BTreeMap::from([(hash.to_owned(), 2)]),
        without_active: BTreeMap::new(),
        weights: BTreeMap::new(),
        active: hash.to_owned(),
        stage: Stage::Complete,
        is_overdue: false,
        records: BTreeMap::from([(
            hash.to_owned(),
            Record { target_since: "2026-01-01T12:00:00Z".parse().ok(), ..Record::default() },
        )]),
        look_again: None,
    }
}

fn born(model: &InferenceModel, images: &Images) -> Revision {
    Revision::born(model, &validate(&model.spec, None).unwrap(), images)
}

fn objects(spec: Value) -> Value {
    let model = model(spec);
    let revision = born(&model, &images());
    let hash = revision.hash.clone();
    let mut objects = build(&model, &BTreeMap::from([(hash.clone(), revision)]), &plan(&hash));
    // What is shown is a file of its own, which changes for reasons of its own.
    objects.dashboards.iter_mut().for_each(|dashboard| dashboard.data = None);
    json!({
        "configMaps": objects.config_maps,
        "services": objects.services,
        "deployments": objects.deployments,
        "dashboards": objects.dashboards,
    })
}

fn check(name: &str, found: &Value) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/snapshots").join(name);
    let found = serde_json::to_string_pretty(found).unwrap() + "\n";
    if std::env::var_os("UPDATE").is_some() {
        fs::write(&path, &found).unwrap();
    }
    let stored = fs::read_to_string(&path).unwrap_or_default();
    assert_eq!(stored, found, "{} is stale: run with UPDATE=1 and review it", path.display());
}

#[test]
fn the_objects_of_a_plain_spec() {
    check("plain.json", &objects(plain()));
}

#[test]
fn the_objects_of_a_rich_spec() {
    check("rich.json", &objects(rich()));
}

#[test]
fn a_refused_spec_opens_nothing_and_lets_no_revision_go() {
    let mut spec = plain();
    spec["service"] = json!({"type": "LoadBalancer", "annotations": {"open": "to all"}});
    spec["rollout"] = json!({"historyLimit": 0});
    let model = model(spec);
    let revision = born(&model, &images());
    let hashes: Vec<String> = (0..8).map(|number| format!("0000000{number}")).collect();
    let named = |hash: &String| (hash.clone(), Revision { hash: hash.clone(), ..revision.clone() });
    let revisions: BTreeMap<String, Revision> = hashes.iter().map(named).collect();
    let there: Service = serde_json::from_value(json!({"metadata": {"name": "espresso-pods"}})).unwrap();
    let observed = Observed {
        services: BTreeMap::from([("espresso-pods".to_owned(), Arc::new(there))]),
        ..Observed::bare(Arc::new(model))
    };
    let objects = build_of_refused(&observed, &revisions, &plan(&hashes[0]));
    assert_eq!((objects.config_maps.len(), objects.deployments.len()), (8, 8));
    let [service] = &objects.services[..] else { panic!("{:?}", objects.services) };
    assert_eq!(service.metadata.name.as_deref(), Some("espresso"), "it is lost, and the other one is there");
    let spec = service.spec.as_ref().unwrap();
    assert_eq!((spec.type_.as_deref(), service.metadata.annotations.as_ref()), (Some("ClusterIP"), None));
    assert_eq!(objects.as_they_are, ["espresso-pods".to_owned()].into());
}

#[test]
fn what_the_models_of_a_namespace_share() {
    let owners = [build::shared_owner(&model(plain()))];
    let mut rules = monitoring::prometheus_rule("coffee", &owners, &BTreeMap::new());
    // They are a file of their own, which changes for reasons of its own.
    rules.spec.groups.clear();
    let monitor = monitoring::service_monitor("coffee", &owners, &BTreeMap::new());
    check("shared.json", &json!({"serviceMonitor": monitor, "prometheusRule": rules}));
}

#[test]
fn a_dashboard_is_of_its_model_and_fits_into_a_config_map() {
    let dashboard = monitoring::dashboard(&model(plain()));
    let data = dashboard.data.unwrap();
    let (file, text) = data.first_key_value().unwrap();
    assert_eq!((data.len(), file.as_str()), (1, "ortolan-coffee.espresso.json"));
    let shown: Value = serde_json::from_str(text).unwrap();
    assert!(shown["title"].as_str().unwrap().ends_with("coffee/espresso"), "{}", shown["title"]);
    assert!(text.len() < 512 << 10, "a ConfigMap holds 1 MiB, and etcd is not for files: {} bytes", text.len());
}

#[test]
fn the_pods_own_parser_reads_what_is_written() {
    let model = model(rich());
    let revision = born(&model, &images());
    let config = serving::parse(&[Layer::yaml("", revision.config)]).unwrap();
    let paths: Vec<_> = config.models.iter().map(|model| model.path.display().to_string()).collect();
    assert_eq!(paths, ["/models/fetched", "/volumes/shelved/models/b", "/volumes/packed", "/opt/model.onnx"]);
    assert_eq!(config.server.threads, Some(2));
    assert_eq!(config.server.drain_delay_ms, 1500);
    assert_eq!(config.models[0].options.top_k, Some(3));
    assert_eq!((config.models[0].batch_timeout_ms, config.models[0].latency_objective_ms), (5, Some(50)));
    assert_eq!(config.models[1].instances, 2);
    assert_eq!(config.logging.level, "debug");
}

#[test]
fn the_hash_covers_what_changes_pods_and_nothing_else() {
    let base = revision::hash(&model(plain()));
    let with = |key: &str, value: Value| {
        let mut spec = plain();
        spec[key] = value;
        revision::hash(&model(spec))
    };
    for (key, value) in [
        ("replicas", json!(5)),
        ("suspend", json!(true)),
        ("rollout", json!({"strategy": "Recreate"})),
        ("service", json!({"type": "NodePort"})),
        ("monitoring", json!({"rules": "Disabled", "dashboard": true})),
    ] {
        assert_eq!(with(key, value), base, "{key}");
    }
    for (key, value) in [
        ("server", json!({"logLevel": "debug"})),
        ("accelerator", json!({"count": 1})),
        ("resources", json!({"limits": {"memory": "1Gi"}})),
        ("serviceAccountName", json!("barista")),
        ("podTemplate", json!({"metadata": {"annotations": {"note": "hot"}}})),
    ] {
        assert_ne!(with(key, value), base, "{key}");
    }
    let mut restarted = model(plain());
    restarted.metadata.annotations = Some(BTreeMap::from([("ortolan.dev/restart".to_owned(), "1".to_owned())]));
    assert_ne!(revision::hash(&restarted), base);
}

#[test]
fn a_field_at_its_default_is_as_good_as_none() {
    let mut spelled_out = serde_json::to_value(model(plain()).spec).unwrap();
    assert_ne!(spelled_out, plain(), "the types fill defaults in");
    spelled_out["server"]["logLevel"] = json!("info");
    assert_eq!(revision::hash(&model(spelled_out)), revision::hash(&model(plain())));
    // Pinned: a change of this value would restart the pods of every user.
    assert_eq!(revision::hash(&model(plain())), PLAIN_HASH);
}

const PLAIN_HASH: &str = "fb820779";

#[test]
fn another_image_of_the_operator_changes_no_hash() {
    let other = Images { cpu: "pod:2".to_owned(), ..images() };
    let model = model(plain());
    let (one, two) = (born(&model, &images()), born(&model, &other));
    assert_eq!(one.hash, two.hash);
    assert_ne!(one.template, two.template);
}

#[test]
fn pods_are_such_as_the_level_restricted_lets_in() {
    let model = model(rich());
    let template: PodTemplateSpec = serde_json::from_str(&born(&model, &images()).template).unwrap();
    let spec = template.spec.unwrap();
    assert_eq!(spec.security_context.unwrap().run_as_non_root, Some(true));
    for container in spec.containers.iter().chain(spec.init_containers.iter().flatten()) {
        let security = container.security_context.clone().unwrap();
        assert_eq!(security.allow_privilege_escalation, Some(false), "{}", container.name);
        assert_eq!(security.capabilities.unwrap().drop.unwrap(), ["ALL"], "{}", container.name);
        assert_eq!(security.read_only_root_filesystem, Some(true), "{}", container.name);
    }
}

#[test]
fn what_a_pod_template_may_not_set_is_refused_with_its_field() {
    let cases = [
        (json!({"spec": {"hostNetwork": true}}), "spec.podTemplate.spec.hostNetwork"),
        (json!({"spec": {"volumes": [{"name": "x", "hostPath": {"path": "/"}}]}}), "volumes[x].hostPath"),
        (json!({"spec": {"volumes": [{"name": "ortolan-config", "emptyDir": {}}]}}), "volumes[ortolan-config]"),
        (json!({"spec": {"containers": [{"name": "a", "securityContext": {"privileged": true}}]}}), "privileged"),
        (
            json!({"spec": {"containers": [{"name": "a", "securityContext": {"capabilities": {"add": ["SYS_ADMIN"]}}}]}}),
            "containers[a].securityContext.capabilities.add",
        ),
        (json!({"spec": {"securityContext": {"runAsUser": 0}}}), "spec.securityContext.runAsUser"),
        (json!({"spec": {"automountServiceAccountToken": true}}), "spec.automountServiceAccountToken"),
        (
            json!({"spec": {"volumes": [{"name": "x", "projected": {"sources": [{"serviceAccountToken": {"path": "t"}}]}}]}}),
            "volumes[x].projected",
        ),
        (
            json!({"spec": {"volumes": [
                {"name": "x", "persistentVolumeClaim": {"claimName": "a"}},
                {"name": "y", "persistentVolumeClaim": {"claimName": "a"}},
            ]}}),
            "volumes[y].persistentVolumeClaim: the claim a is in the pod already: mount its volume x",
        ),
        (json!({"spec": {"containers": [{"name": "server", "command": ["sh"]}]}}), "containers[server].command"),
        (
            json!({"spec": {"initContainers": [{"name": "fetch-it", "image": "a"}]}}),
            "initContainers[fetch-it]: names that begin so",
        ),
        (json!({"spec": {"containers": [{"name": "a", "ports": [{"containerPort": 8080}]}]}}), "ports"),
        (
            json!({"spec": {"containers": [{"name": "server", "volumeMounts": [{"name": "x", "mountPath": "/models"}]}]}}),
            "volumeMounts",
        ),
        (json!({"metadata": {"labels": {"ortolan.dev/revision": "1"}}}), "metadata.labels[ortolan.dev/revision]"),
        (json!({"spec": {"afinity": {"nodeAffinity": {}}, "tolerations": [{"kee": "a"}]}}), "tolerations[0].kee"),
        (json!({"spec": {"containers": "server"}}), "expected a PodTemplateSpec"),
    ];
    for (template, expected) in cases {
        let mut spec = plain();
        spec["podTemplate"] = template.clone();
        let model = model(spec);
        let refusal = validate(&model.spec, None).unwrap_err();
        assert_eq!(refusal.reason, accepted::INVALID_OVERLAY, "{template}");
        assert!(refusal.message.contains(expected), "{template}: {}", refusal.message);
    }
}

#[test]
fn settings_that_would_do_something_else_than_they_say_are_refused() {
    let file = |uri: &str| json!({"name": "baked", "source": {"uri": uri}});
    let mut cases = Vec::new();
    for resources in [json!({"limits": {"nvidia.com/gpu": "1"}}), json!({"requests": {"nvidia.com/mig-1g.5gb": "1"}})] {
        let mut spec = plain();
        spec["resources"] = resources;
        cases.push((spec, accepted::INVALID_OPTIONS, "devices go under spec.accelerator"));
    }
    for uri in ["file:///models/baked.onnx", "file:///models", "file:///models/"] {
        let mut spec = plain();
        spec["models"].as_array_mut().unwrap().push(file(uri));
        cases.push((spec, accepted::INVALID_OPTIONS, "spec.models[baked].source.uri: expected a file outside /models"));
    }
    let mut itself = file("file:///models/baked/model.onnx");
    itself["sha256"] = SHA256.into();
    cases.push((json!({"models": [itself]}), accepted::INVALID_OPTIONS, "expected a file outside /models"));
    let mut spec = plain();
    spec["podTemplate"] =
        json!({"spec": {"containers": [{"name": "server", "env": [{"name": "A", "value": "a".repeat(210_000)}]}]}});
    cases.push((spec, accepted::INVALID_OPTIONS, "expected settings of at most 204800 bytes"));
    let mut spec = plain();
    spec["podTemplate"] = json!({"spec": {"terminationGracePeriodSeconds": 5}});
    cases.push((spec, accepted::INVALID_OVERLAY, "terminationGracePeriodSeconds: expected at least 40, got 5"));
    let mut spec = plain();
    let limits = json!({"limits": {"nvidia.com/gpu": "1"}});
    spec["podTemplate"] = json!({"spec": {"containers": [{"name": "server", "resources": limits}]}});
    cases.push((spec, accepted::INVALID_OVERLAY, "containers[server].resources: nvidia.com/gpu: devices go under"));
    for (spec, reason, said) in cases {
        let model = model(spec);
        let refusal = validate(&model.spec, None).unwrap_err();
        assert_eq!(refusal.reason, reason, "{}", refusal.message);
        assert!(refusal.message.contains(said), "{}", refusal.message);
    }
    // Nothing is mounted over it here; that is there once more with other options; and here somebody knows what he does.
    let nothing_fetched = json!({"models": [file("file:///models/baked.onnx")]});
    let mut again = plain();
    again["models"].as_array_mut().unwrap().push(file("file:///models/small/model.onnx"));
    let mut beside = plain();
    beside["models"].as_array_mut().unwrap().push(file("file:///modelstore/baked.onnx"));
    let mut own = plain();
    own["resources"] = json!({"limits": {"nvidia.com/gpu": "1"}});
    own["server"] = json!({"executionProviders": ["cuda"]});
    let mut none = plain();
    none["resources"] = json!({"limits": {"nvidia.com/gpu": "0", "nvidia.com/gpumem": "3000"}});
    for spec in [nothing_fetched, again, beside, own, none] {
        let fine = model(spec);
        assert_eq!(validate(&fine.spec, None).err(), None);
    }
}

#[test]
fn sidecars_that_the_user_has_put_first_begin_before_what_fetches_models() {
    let mut spec = plain();
    let sidecar = |name: &str| json!({"name": name, "image": "proxy:1", "restartPolicy": "Always"});
    let (sidecar, last, late) = (sidecar("proxy"), json!({"name": "last"}), sidecar("needs-last"));
    spec["podTemplate"] = json!({"spec": {"initContainers": [sidecar, last, late]}});
    let of = model(spec);
    let template: PodTemplateSpec = serde_json::from_str(&born(&of, &images()).template).unwrap();
    let names: Vec<_> = template.spec.unwrap().init_containers.unwrap().into_iter().map(|it| it.name).collect();
    assert_eq!(names, ["proxy", "fetch-small", "last", "needs-last"]);
}

#[test]
fn slices_of_devices_tolerate_the_taint_of_whole_ones() {
    let keys = |resource: &str| {
        let mut spec = plain();
        spec["accelerator"] = json!({"count": 1, "resourceName": resource});
        let of = model(spec);
        let template: PodTemplateSpec = serde_json::from_str(&born(&of, &images()).template).unwrap();
        let tolerations = template.spec.unwrap().tolerations.unwrap();
        assert!(tolerations.iter().all(|it| it.effect.is_none()), "{tolerations:?}");
        tolerations.into_iter().filter_map(|it| it.key).collect::<Vec<_>>()
    };
    assert_eq!(keys("nvidia.com/gpu"), ["nvidia.com/gpu"]);
    assert_eq!(keys("nvidia.com/mig-1g.5gb"), ["nvidia.com/gpu", "nvidia.com/mig-1g.5gb"]);
    assert_eq!(keys("amd.com/gpu"), ["amd.com/gpu"]);
}

#[test]
fn models_on_one_claim_share_its_volume() {
    let on = |name: &str, claim: &str| json!({"name": name, "source": {"pvc": {"claimName": claim, "path": name}}});
    let mut spec = json!({"models": [on("a", "shelf"), on("b", "cellar"), on("c", "shelf")]});
    let of = model(spec.clone());
    let template: PodTemplateSpec = serde_json::from_str(&born(&of, &images()).template).unwrap();
    let pod = template.spec.unwrap();
    let claim = |volume: Volume| Some((volume.name, volume.persistent_volume_claim?.claim_name));
    let volumes: Vec<_> = pod.volumes.into_iter().flatten().filter_map(claim).collect();
    assert_eq!(volumes, [("model-a", "shelf"), ("model-b", "cellar")].map(|(a, b)| (a.to_owned(), b.to_owned())));
    let mounts = pod.containers[0].volume_mounts.clone().unwrap();
    let mounts: Vec<_> = mounts.iter().map(|mount| (mount.name.as_str(), mount.mount_path.as_str())).collect();
    assert_eq!(mounts[1..], [("model-a", "/volumes/a"), ("model-b", "/volumes/b"), ("model-a", "/volumes/c")]);

    spec["podTemplate"] =
        json!({"spec": {"volumes": [{"name": "mine", "persistentVolumeClaim": {"claimName": "shelf"}}]}});
    let refused = model(spec);
    let refusal = validate(&refused.spec, None).unwrap_err();
    assert_eq!(refusal.reason, accepted::INVALID_OVERLAY);
    assert!(refusal.message.contains("volumes[mine].persistentVolumeClaim: the claim shelf"), "{refusal:?}");
    assert!(refusal.message.contains("mount its volume model-a (read-only)"), "{refusal:?}");
}

#[test]
fn what_is_not_built_and_what_the_server_refuses_is_refused_with_all_fields() {
    let mut spec = plain();
    spec["route"] = json!({"parentRefs": [{"name": "gate"}]});
    spec["networkPolicy"] = json!({"enabled": true});
    let not_built = model(spec);
    let refusal = validate(&not_built.spec, None).unwrap_err();
    assert_eq!(refusal.reason, accepted::NOT_IMPLEMENTED);
    assert!(refusal.message.contains("spec.route") && refusal.message.contains("spec.networkPolicy"), "{refusal:?}");

    let mut spec = plain();
    spec["models"][0]["options"] = json!({"image": {"mean": [0.5], "std": [0.5, 0.5]}});
    let invalid = model(spec);
    let refusal = validate(&invalid.spec, None).unwrap_err();
    assert_eq!(refusal.reason, accepted::INVALID_OPTIONS);
    assert!(refusal.message.contains("spec.models[small].options.image.std"), "{refusal:?}");
}

#[test]
fn tolerations_and_node_labels_of_a_pod_template_are_added_to_those_of_the_accelerator() {
    let mut spec = rich();
    spec["podTemplate"]["spec"]["tolerations"] = json!([{"key": "team", "operator": "Exists"}]);
    spec["podTemplate"]["spec"]["nodeSelector"] = json!({"zone": "a", "gpu": "none"});
    let model = model(spec);
    let template: PodTemplateSpec = serde_json::from_str(&born(&model, &images()).template).unwrap();
    let spec = template.spec.unwrap();
    let keys: Vec<_> = spec.tolerations.unwrap().into_iter().filter_map(|toleration| toleration.key).collect();
    assert_eq!(keys, ["nvidia.com/gpu", "team"]);
    let selector = spec.node_selector.unwrap();
    assert_eq!((selector["gpu"].as_str(), selector["zone"].as_str()), ("a100", "a"));
}
