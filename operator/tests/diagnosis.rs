//! From what a kubelet reports to a reason, a cause and a remedy.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use k8s_openapi::api::core::v1::Pod;
use ortolan_operator::{
    diagnose::{Progress, diagnose, progress, waits_for_room_since},
    stuck::Warning,
};
use serde_json::{Value, json};

fn pod(status: Value) -> Pod {
    serde_json::from_value(json!({
        "metadata": {"name": "espresso-1a2b-x"},
        "spec": {
            "nodeName": "node",
            "initContainers": [{"name": "fetch-small"}, {"name": "fetch-large"}],
            "containers": [{
                "name": "server",
                "resources": {"limits": {"memory": "64Mi", "nvidia.com/gpu": "1"}},
            }],
        },
        "status": status,
    }))
    .unwrap()
}

fn server(container: Value) -> Pod {
    let mut status = json!({"name": "server", "image": "pod:1", "imageID": "", "ready": false, "restartCount": 0});
    status.as_object_mut().unwrap().extend(container.as_object().unwrap().clone());
    pod(json!({"phase": "Pending", "containerStatuses": [status]}))
}

fn fetch(container: Value) -> Pod {
    let mut status = json!({"name": "fetch-small", "image": "pod:1", "imageID": "", "ready": false, "restartCount": 0});
    status.as_object_mut().unwrap().extend(container.as_object().unwrap().clone());
    pod(json!({"phase": "Pending", "initContainerStatuses": [status]}))
}

/// Condition, reason and sentence.
fn found(pod: &Pod) -> (&'static str, &'static str, String) {
    let finding = diagnose(pod, None).unwrap();
    (finding.condition, finding.reason, finding.message())
}

fn ended(message: &Value) -> Value {
    json!({"terminated": {"exitCode": 1, "reason": "Error", "message": message.to_string()}})
}

#[test]
fn an_end_with_a_message_of_ours_shows_its_reason_model_and_place() {
    let message = json!({"model": "small", "reason": "ChecksumMismatch", "message": "expected aa, got bb"});
    let pod = fetch(json!({"state": ended(&message)}));
    let finding = diagnose(&pod, None).unwrap();
    assert_eq!((finding.condition, finding.reason), ("ModelLoaded", "ChecksumMismatch"));
    assert_eq!(finding.model.as_deref(), Some("small"));
    assert_eq!(
        finding.message(),
        "pod espresso-1a2b-x, container fetch-small: expected aa, got bb. Correct the sha256 in spec.models, or put the \
         file it belongs to at the source"
    );
}

#[test]
fn the_reason_stays_while_the_container_tries_again() {
    let message = json!({"model": "small", "reason": "FetchFailed", "message": "404"});
    for state in [json!({"waiting": {"reason": "CrashLoopBackOff"}}), json!({"running": {}})] {
        let pod = fetch(json!({"state": state, "lastState": ended(&message), "restartCount": 3}));
        assert_eq!(found(&pod).1, "FetchFailed");
    }
}

#[test]
fn what_the_server_refuses_is_the_specs_fault() {
    let message = json!({"model": null, "reason": "InvalidConfig", "message": "models: expected one"});
    let (condition, reason, _) = found(&server(json!({"state": ended(&message)})));
    assert_eq!((condition, reason), ("Accepted", "InvalidOptions"));
}

#[test]
fn an_end_at_the_memory_limit_names_the_limit() {
    let state = json!({"terminated": {"exitCode": 137, "reason": "OOMKilled"}});
    let (_, reason, message) = found(&server(json!({"state": state, "restartCount": 2})));
    assert_eq!(reason, "OutOfMemory");
    assert!(message.contains("64Mi") && message.contains("restarted 2 times"), "{message}");
}

#[test]
fn an_end_without_a_message_is_a_crash_with_its_code_or_signal() {
    for (code, expected) in [(3, "exit code 3"), (139, "signal 11")] {
        let state = json!({"terminated": {"exitCode": code, "reason": "Error"}});
        let (_, reason, message) = found(&server(json!({"state": state})));
        assert_eq!(reason, "CrashLooping");
        assert!(message.contains(expected), "{message}");
    }
}

#[test]
fn an_image_that_cannot_be_pulled_is_named() {
    let state = json!({"waiting": {"reason": "ImagePullBackOff", "message": "not found"}});
    let (_, reason, message) = found(&server(json!({"state": state})));
    assert_eq!(reason, "ImagePullFailed");
    assert!(message.contains("pod:1"), "{message}");
}

#[test]
fn a_missing_secret_is_the_specs_fault() {
    let state = json!({"waiting": {"reason": "CreateContainerConfigError", "message": "secret \"keys\" not found"}});
    let (condition, reason, _) = found(&server(json!({"state": state})));
    assert_eq!((condition, reason), ("Accepted", "SecretNotFound"));
}

#[test]
fn a_missing_key_of_a_secret_is_the_specs_fault_too() {
    let message = "couldn't find key TOKEN in Secret shop/keys";
    let state = json!({"waiting": {"reason": "CreateContainerConfigError", "message": message}});
    let (condition, reason, _) = found(&server(json!({"state": state})));
    assert_eq!((condition, reason), ("Accepted", "SecretNotFound"));
}

#[test]
fn what_a_node_refuses_or_ends_is_told_by_what_the_node_lacks() {
    let said = [
        (
            "UnexpectedAdmissionError",
            "Allocate failed due to no healthy devices present; cannot allocate unhealthy devices \
          nvidia.com/gpu, which is unexpected",
            "Scheduled",
            "InsufficientGpu",
        ),
        ("OutOfnvidia.com/gpu", "Node didn't have enough resource: nvidia.com/gpu", "Scheduled", "InsufficientGpu"),
        ("OutOfcpu", "Node didn't have enough resource: cpu", "Scheduled", "Unschedulable"),
        ("Terminated", "Pod was terminated in response to imminent node shutdown.", "Scheduled", "Unschedulable"),
        ("Evicted", "The node had condition: [DiskPressure].", "ModelLoaded", "OutOfDisk"),
        ("Evicted", "The node was low on resource: inodes.", "ModelLoaded", "OutOfDisk"),
        ("Evicted", "The node had condition: [MemoryPressure].", "ModelLoaded", "OutOfMemory"),
        ("Evicted", "The node had condition: [PIDPressure].", "ModelLoaded", "CrashLooping"),
    ];
    for (why, message, condition, reason) in said {
        let (found_condition, found_reason, sentence) =
            found(&pod(json!({"phase": "Failed", "reason": why, "message": message})));
        assert_eq!((found_condition, found_reason), (condition, reason), "{why}: {message}");
        assert!(sentence.contains(why), "{sentence}");
    }
}

#[test]
fn what_the_runtime_says_of_a_container_that_never_ran_is_passed_on() {
    let ended = |reason: &str, message: &str| {
        let last = json!({"terminated": {"exitCode": 128, "reason": reason, "message": message}});
        let state = json!({"waiting": {"reason": "CrashLoopBackOff"}});
        found(&server(json!({"state": state, "lastState": last, "restartCount": 3})))
    };
    let message = "failed to create containerd task: nvidia-container-cli: initialization error";
    let (_, reason, sentence) = ended("StartError", message);
    assert_eq!(reason, "CrashLooping");
    assert!(
        sentence.contains(message) && sentence.contains("never run") && !sentence.contains("--previous"),
        "{sentence}"
    );
    let (_, _, sentence) = ended("Error", "Illegal instruction");
    assert!(sentence.contains("Illegal instruction") && sentence.contains("--previous"), "{sentence}");
}

#[test]
fn an_image_of_a_volume_is_not_said_to_be_that_of_the_container_which_has_it() {
    let said = "failed to pull image \"models/c:typo\": not found";
    let mut pod = server(json!({"state": {"waiting": {"reason": "ErrImagePull", "message": said}}}));
    assert!(found(&pod).2.contains("the image pod:1 cannot be pulled"));
    let volumes = json!([{"name": "model-c", "image": {"reference": "models/c:typo"}}]);
    pod.spec.as_mut().unwrap().volumes = serde_json::from_value(volumes).unwrap();
    let (_, reason, sentence) = found(&pod);
    assert_eq!(reason, "ImagePullFailed");
    assert!(sentence.contains("an image cannot be pulled") && sentence.contains("models/c:typo"), "{sentence}");
}

#[test]
fn a_pod_whose_server_is_ready_while_it_is_not_says_what_else_is_missing() {
    let running = json!({"state": {"running": {}}, "ready": true});
    let mut pod = server(running);
    let conditions = json!([{
        "type": "Ready", "status": "False", "reason": "ReadinessGatesNotReady", "message": "target-health.elbv2.k8s.aws is not ready",
    }]);
    pod.status.as_mut().unwrap().conditions = serde_json::from_value(conditions).unwrap();
    assert_eq!(diagnose(&pod, None), None);
    let sentence = progress(&pod).sentence("x");
    assert!(sentence.contains("ReadinessGatesNotReady: target-health.elbv2.k8s.aws is not ready"), "{sentence}");
}

#[test]
fn a_sidecar_that_runs_does_not_hide_that_the_server_waits_for_its_image() {
    let mut pod = server(json!({"state": {"waiting": {"reason": "PodInitializing"}}}));
    let sidecar = json!([{
        "name": "proxy", "image": "proxy:1", "imageID": "", "ready": true, "restartCount": 0, "state": {"running": {}},
    }]);
    pod.status.as_mut().unwrap().init_container_statuses = serde_json::from_value(sidecar).unwrap();
    assert_eq!(progress(&pod), Progress::Preparing);
    // One that has to end first shows that the volumes are there.
    let first = json!([{"name": "proxy"}, {"name": "fetch-small"}, {"name": "fetch-large"}]);
    pod.spec.as_mut().unwrap().init_containers = serde_json::from_value(first).unwrap();
    assert_ne!(progress(&pod), Progress::Preparing);
}

#[test]
fn a_disk_at_another_node_has_a_remedy_of_its_own() {
    let pod = server(json!({"state": {"waiting": {"reason": "ContainerCreating"}}}));
    let text =
        "FailedAttachVolume: Multi-Attach error for volume \"pvc-1\" Volume is already used by pod(s) a".to_owned();
    let finding = diagnose(&pod, Some(&Warning { container: None, text })).unwrap();
    assert!(finding.message().contains("InPlace"), "{}", finding.message());
}

#[test]
fn the_schedulers_sentence_is_passed_on() {
    let verdicts = [
        ("0/1 nodes are available: 1 Insufficient nvidia.com/gpu.", "Scheduled", "InsufficientGpu"),
        ("0/1 nodes are available: 1 Insufficient cpu.", "Scheduled", "Unschedulable"),
        ("0/1 nodes are available: persistentvolumeclaim \"shelf\" not found.", "Accepted", "PvcNotFound"),
    ];
    for (sentence, condition, reason) in verdicts {
        let status = json!({"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": sentence});
        let found = found(&pod(json!({"phase": "Pending", "conditions": [status]})));
        assert_eq!((found.0, found.1), (condition, reason));
        assert!(found.2.contains(sentence.trim_end_matches('.')), "{}", found.2);
    }
}

#[test]
fn room_is_waited_for_only_where_it_would_help() {
    let without_node = |reason: &str, sentence: &str| {
        let status = json!({
            "type": "PodScheduled", "status": "False", "reason": reason, "message": sentence,
            "lastTransitionTime": "2026-01-01T12:00:00Z",
        });
        pod(json!({"phase": "Pending", "conditions": [status]}))
    };
    let since = |sentence: &str| waits_for_room_since(&without_node("Unschedulable", sentence));
    assert!(since("0/1 nodes are available: 1 cannot allocate all claims.").is_some());
    let claimed = "1 node has pod using PersistentVolumeClaim with the same name and ReadWriteOncePod access mode";
    assert!(since(&format!("0/1 nodes are available: {claimed}.")).is_some());
    for (gate, waits) in [("kueue.x-k8s.io/admission", true), ("example.org/approval", false)] {
        let mut gated = without_node("SchedulingGated", "Scheduling is blocked due to non-empty scheduling gates");
        let gates = serde_json::from_value(json!([{"name": gate}])).unwrap();
        gated.spec.as_mut().unwrap().scheduling_gates = Some(gates);
        assert_eq!(waits_for_room_since(&gated).is_some(), waits, "{gate}");
        assert_eq!(found(&gated).1, "Unschedulable");
    }
    assert!(since("0/1 nodes are available: 1 Insufficient nvidia.com/gpu.").is_some());
    assert!(since("0/1 nodes are available: persistentvolumeclaim \"shelf\" not found.").is_none());
    assert!(since("0/1 nodes are available: 1 node(s) didn't match Pod's node affinity/selector.").is_none());
}

#[test]
fn a_server_that_was_up_and_misses_a_probe_is_not_blamed_for_what_ended_it_long_ago() {
    let killed = json!({"terminated": {"exitCode": 137, "reason": "OOMKilled"}});
    let pod = server(json!({"state": {"running": {}}, "lastState": killed, "restartCount": 1, "started": true}));
    assert_eq!(diagnose(&pod, None), None);
}

#[test]
fn what_comes_before_the_server_and_ended_well_at_last_is_no_cause() {
    let with_init = |name: &str, restart_policy: Option<&str>| {
        let ended = json!({"exitCode": 0, "reason": "Completed"});
        let init = json!({"name": name, "image": "mesh:1", "imageID": "", "ready": false, "restartCount": 1,
            "state": {"terminated": ended}});
        let server = json!({"name": "server", "image": "pod:1", "imageID": "", "ready": false, "restartCount": 1,
            "state": {"waiting": {"reason": "CrashLoopBackOff"}},
            "lastState": {"terminated": {"exitCode": 137, "reason": "OOMKilled"}}});
        let mut pod = pod(json!({
            "phase": "Pending", "initContainerStatuses": [init], "containerStatuses": [server],
        }));
        let spec = pod.spec.as_mut().unwrap();
        let container = json!({"name": name, "restartPolicy": restart_policy});
        spec.init_containers.as_mut().unwrap().push(serde_json::from_value(container).unwrap());
        diagnose(&pod, None).unwrap()
    };
    let found = with_init("istio-init", None);
    assert_eq!((found.reason, found.container.as_deref()), ("OutOfMemory", Some("server")));
    // A sidecar is not to end.
    let found = with_init("proxy", Some("Always"));
    assert_eq!((found.reason, found.container.as_deref()), ("CrashLooping", Some("proxy")));
}

#[test]
fn a_pod_that_is_ready_or_on_its_way_has_nothing_wrong() {
    let ready = json!({"conditions": [{"type": "Ready", "status": "True"}]});
    assert_eq!(diagnose(&pod(ready.clone()), None), None);
    assert_eq!(progress(&pod(ready)), Progress::Ready);
    let running = fetch(json!({"state": {"running": {}}}));
    assert_eq!(diagnose(&running, None), None);
    assert_eq!(progress(&running), Progress::Fetching { model: "small".to_owned() });
    let first_done = fetch(json!({"state": {"terminated": {"exitCode": 0}}, "ready": true}));
    assert_eq!(diagnose(&first_done, None), None);
    assert_eq!(progress(&first_done), Progress::Fetching { model: "large".to_owned() });
    // Its volumes may never come, so nobody should look for the cause in its server.
    for reason in ["ContainerCreating", "PodInitializing"] {
        assert_eq!(progress(&server(json!({"state": {"waiting": {"reason": reason}}}))), Progress::Preparing);
    }
    assert_eq!(progress(&pod(json!({"phase": "Pending"}))), Progress::Preparing);
    let ended = json!({"terminated": {"exitCode": 1}});
    for begun in [
        json!({"state": {"waiting": {"reason": "CrashLoopBackOff"}}}),
        json!({"state": {"waiting": {"reason": "PodInitializing"}}, "lastState": ended}),
    ] {
        assert_eq!(progress(&fetch(begun)), Progress::Fetching { model: "small".to_owned() });
    }
}

#[test]
fn a_volume_that_cannot_be_mounted_is_told_by_an_event_alone() {
    let pod = server(json!({"state": {"waiting": {"reason": "ContainerCreating"}}}));
    assert_eq!(diagnose(&pod, None), None);
    let text = "FailedMount: MountVolume.SetUp failed for volume \"model-a\"".to_owned();
    let finding = diagnose(&pod, Some(&Warning { container: None, text })).unwrap();
    assert_eq!((finding.reason, finding.container), ("FetchFailed", None));
}

#[test]
fn an_event_that_comes_before_the_status_names_the_container_and_the_model_too() {
    let pod = fetch(json!({"state": {"waiting": {"reason": "PodInitializing"}}}));
    let text = "Failed: Error: secret \"keys\" not found".to_owned();
    let finding = diagnose(&pod, Some(&Warning { container: Some("fetch-small".to_owned()), text })).unwrap();
    assert_eq!((finding.condition, finding.reason), ("Accepted", "SecretNotFound"));
    assert_eq!((finding.container.as_deref(), finding.model.as_deref()), (Some("fetch-small"), Some("small")));
}
