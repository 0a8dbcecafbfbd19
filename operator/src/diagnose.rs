//! What is wrong with a pod: from its status and its containers' termination messages to a condition's reason, with the
//! cause and the remedy. A pure function.

use crds::resource::conditions::{accepted, model_loaded, scheduled};
use k8s_openapi::{
    api::core::v1::{ContainerState, ContainerStateTerminated, ContainerStatus, Pod},
    jiff::Timestamp,
};
use kube::ResourceExt as _;
use serde::Deserialize;

use crate::{names, observe, stuck::Warning};

/// What is wrong with a pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// Type of the condition that shows it.
    pub condition: &'static str,
    /// The condition's reason.
    pub reason: &'static str,
    /// The pod.
    pub pod: String,
    /// The container; none where it is the pod as a whole.
    pub container: Option<String>,
    /// The model; none where it is the server as a whole.
    pub model: Option<String>,
    /// What happened.
    pub cause: String,
}

/// How far a pod has come.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Progress {
    /// It has no node yet.
    Unscheduled,
    /// None of its containers has begun: volumes are mounted and images pulled first.
    Preparing,
    /// This model is on its way into it; those before it are there.
    Fetching {
        /// The model.
        model: String,
    },
    /// Its server is starting or loading.
    Loading,
    /// Its server is ready, but Kubernetes does not let it be: another container is not, or a readiness gate, or its node is lost.
    Withheld {
        /// What Kubernetes says.
        why: String,
    },
    /// It is ready.
    Ready,
}

impl Progress {
    /// Says it of a pod.
    #[must_use]
    pub fn sentence(&self, pod: &str) -> String {
        match self {
            Self::Unscheduled => format!("pod {pod} has no node yet"),
            Self::Preparing => format!("pod {pod} waits for its volumes and images"),
            Self::Fetching { model } => format!("pod {pod} fetches model {model}"),
            Self::Loading => format!("pod {pod} starts its server and loads the models"),
            Self::Withheld { why } => format!("pod {pod} is not ready, though its server is: {why}"),
            Self::Ready => format!("pod {pod} is ready"),
        }
    }
}

/// What a container of ours writes when it ends because of an error.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
struct Termination {
    model: Option<String>,
    reason: String,
    message: String,
}

impl Finding {
    /// The sentence that a condition shows: pod, container, cause and remedy.
    #[must_use]
    pub fn message(&self) -> String {
        let place = match &self.container {
            Some(container) => format!("pod {}, container {container}", self.pod),
            None => format!("pod {}", self.pod),
        };
        format!("{place}: {}. {}", self.cause.trim().trim_end_matches('.'), self.remedy())
    }

    /// What a person can do about it.
    fn remedy(&self) -> &'static str {
        if self.cause.starts_with(NEVER_RAN) {
            return "It has never run, so it has no log: look at its image and settings, and at the node's runtime, drivers and device plugin";
        }
        if self.cause.contains("Multi-Attach") {
            return "Its disk is at another node: set spec.rollout.strategy to InPlace, run one replica, or take a claim of ReadOnlyMany or \
                    ReadWriteMany";
        }
        remedy(self.reason)
    }
}

/// So begins the cause where a container could not be started.
const NEVER_RAN: &str = "it cannot be started: ";

/// What runtimes call the end of a container that has not begun.
const HAS_NOT_BEGUN: [&str; 2] = ["StartError", "ContainerCannotRun"];

fn remedy(reason: &str) -> &'static str {
    match reason {
        accepted::SECRET_NOT_FOUND => "Create the Secret, with the keys that are used, in this namespace",
        accepted::PVC_NOT_FOUND => "Create the PersistentVolumeClaim in this namespace, or name another one",
        accepted::INVALID_OPTIONS => "Correct the setting in the spec, or in the model.yaml of the model's folder",
        scheduled::INSUFFICIENT_GPU => {
            "Free a device, add a node that has one, or lower spec.accelerator.count or spec.replicas"
        }
        scheduled::UNSCHEDULABLE => {
            "Add a node that fits, or change spec.resources, spec.accelerator or the affinity in spec.podTemplate"
        }
        model_loaded::IMAGE_PULL_FAILED => {
            "Check the image's name and tag, and that the nodes can reach its registry and have its credentials \
             (imagePullSecrets in spec.podTemplate)"
        }
        model_loaded::FETCH_FAILED => "Check the source in spec.models and that pods can reach it; it is tried again",
        model_loaded::CHECKSUM_MISMATCH => {
            "Correct the sha256 in spec.models, or put the file it belongs to at the source"
        }
        model_loaded::CREDENTIALS_DENIED => "Give credentials that the source accepts",
        model_loaded::OUT_OF_DISK => "Give the pods more ephemeral storage, or serve a smaller model",
        model_loaded::INVALID_MODEL => "Give an ONNX model that `inference-pod check` accepts",
        model_loaded::OUT_OF_MEMORY => "Raise spec.resources.limits.memory, or lower instances or batchSize",
        _ => "The container's log says more: kubectl logs --previous",
    }
}

/// What is wrong with a pod; none if nothing is. `warning` is the last Event about it, where one was asked for.
#[must_use]
pub fn diagnose(pod: &Pod, warning: Option<&Warning>) -> Option<Finding> {
    if observe::ready_since(pod).is_some() {
        return None;
    }
    ended_by_node(pod)
        .or_else(|| unschedulable(pod))
        .or_else(|| containers(pod).find_map(|status| of_container(pod, status)))
        .or_else(|| of_warning(pod, warning?))
}

/// How far a pod has come.
#[must_use]
pub fn progress(pod: &Pod) -> Progress {
    if observe::ready_since(pod).is_some() {
        return Progress::Ready;
    }
    if pod.spec.as_ref().is_none_or(|spec| spec.node_name.is_none()) {
        return Progress::Unscheduled;
    }
    if steps(pod).all(is_untold) {
        return Progress::Preparing;
    }
    if steps(pod).any(|status| status.name == names::SERVER_CONTAINER && status.ready) {
        return Progress::Withheld { why: why_not_ready(pod) };
    }
    let fetches = pod.spec.iter().flat_map(|spec| spec.init_containers.iter().flatten());
    let unfinished = fetches.filter_map(|container| names::fetched_model(&container.name)).find(|model| {
        let name = names::fetch_container(model);
        let status = containers(pod).find(|status| status.name == name);
        let ended = status.and_then(|status| status.state.as_ref()).and_then(|state| state.terminated.as_ref());
        ended.is_none_or(|ended| ended.exit_code != 0)
    });
    unfinished.map_or(Progress::Loading, |model| Progress::Fetching { model: model.to_owned() })
}

/// What the pod's own condition says.
fn why_not_ready(pod: &Pod) -> String {
    let conditions = pod.status.iter().flat_map(|status| status.conditions.iter().flatten());
    let mut ready = conditions.filter(|condition| condition.type_ == "Ready" && condition.status != "True");
    let said = ready.next().map(|condition| (condition.reason.as_deref(), condition.message.as_deref()));
    let (reason, message) = said.unwrap_or_default();
    // Of a node that is lost nothing more is said.
    let said: Vec<&str> = [reason, message].into_iter().flatten().collect();
    if said.is_empty() { "its node does not answer".to_owned() } else { said.join(": ") }
}

/// Whether a container neither runs, nor ran, nor says why it does not.
#[must_use]
pub fn is_untold(status: &ContainerStatus) -> bool {
    let state = status.state.as_ref();
    let reason = state.and_then(|state| state.waiting.as_ref()).and_then(|waiting| waiting.reason.as_deref());
    state.is_none_or(|state| state.running.is_none() && state.terminated.is_none())
        && status.last_state.as_ref().is_none_or(|last| last.terminated.is_none())
        && matches!(reason, None | Some("ContainerCreating" | "PodInitializing"))
}

/// What the scheduler says where a pod would fit if another one went.
const ROOM_WOULD_HELP: [&str; 7] = [
    "Insufficient ",
    "topology spread constraints",
    "Too many pods",
    "free ports",
    "anti-affinity",
    "ReadWriteOncePod access mode",
    "cannot allocate all claims",
];

/// Why a pod has no node: there is none for it, or somebody holds it back.
const NO_NODE: [&str; 2] = ["Unschedulable", "SchedulingGated"];

/// Gates of Kueue, which lets a pod go to the scheduler when there is room for it.
const KUEUE: &str = "kueue.x-k8s.io/";

/// Since when the scheduler has had no room for a pod. None where room would not help, as with a claim that is missing or
/// a label that no node has.
#[must_use]
pub fn waits_for_room_since(pod: &Pod) -> Option<Timestamp> {
    let verdict = verdict(pod)?;
    // Where no node has the label at all, no pod that goes makes a place.
    let sentence = verdict.message.as_deref().unwrap_or_default();
    let sentence = sentence.replace("topology spread constraints (missing required label)", "");
    let mut gates = pod.spec.iter().flat_map(|spec| spec.scheduling_gates.iter().flatten());
    let room_would_help =
        gates.any(|gate| gate.name.starts_with(KUEUE)) || ROOM_WOULD_HELP.iter().any(|words| sentence.contains(words));
    verdict.last_transition_time.as_ref().filter(|_| room_would_help).map(|time| time.0)
}

fn verdict(pod: &Pod) -> Option<&k8s_openapi::api::core::v1::PodCondition> {
    let conditions = pod.status.as_ref()?.conditions.as_ref()?;
    let has_none = |reason: &Option<String>| reason.as_deref().is_some_and(|reason| NO_NODE.contains(&reason));
    conditions.iter().find(|it| it.type_ == "PodScheduled" && it.status == "False" && has_none(&it.reason))
}

fn unschedulable(pod: &Pod) -> Option<Finding> {
    let sentence = verdict(pod)?.message.clone().unwrap_or_else(|| "no node takes it".to_owned());
    let (condition, reason) = if sentence.contains("persistentvolumeclaim") && sentence.contains("not found") {
        (accepted::TYPE, accepted::PVC_NOT_FOUND)
    } else if devices(pod).any(|device| sentence.contains(&format!("Insufficient {device}"))) {
        (scheduled::TYPE, scheduled::INSUFFICIENT_GPU)
    } else {
        (scheduled::TYPE, scheduled::UNSCHEDULABLE)
    };
    Some(Finding { condition, reason, pod: pod.name_any(), container: None, model: None, cause: sentence })
}

/// Extended resources that the pod asks for: those with a vendor in their name.
fn devices(pod: &Pod) -> impl Iterator<Item = &String> {
    let containers = pod.spec.iter().flat_map(|spec| &spec.containers);
    let limits = containers.filter_map(|container| container.resources.as_ref()?.limits.as_ref());
    limits.flat_map(|limits| limits.keys()).filter(|resource| resource.contains('/'))
}

/// The node has ended the pod, or never let it begin.
fn ended_by_node(pod: &Pod) -> Option<Finding> {
    let status = pod.status.as_ref()?;
    let why = status.reason.as_deref().filter(|_| status.phase.as_deref() == Some("Failed"))?;
    let cause = format!("{why}: {}", status.message.as_deref().unwrap_or("the node does not say more"));
    let says = |word: &str| cause.to_lowercase().contains(word);
    let evicted = |reason| Some(loading(pod, None, reason, cause.clone()));
    if ["ephemeral", "disk", "emptydir", "inode"].into_iter().any(says) {
        return evicted(model_loaded::OUT_OF_DISK);
    }
    if why == "Evicted" {
        return evicted(if says("memory") { model_loaded::OUT_OF_MEMORY } else { model_loaded::CRASH_LOOPING });
    }
    // All else is a node that refuses the pod, or goes away.
    let lacks_device = devices(pod).any(|device| cause.contains(device.as_str()));
    let reason = if lacks_device { scheduled::INSUFFICIENT_GPU } else { scheduled::UNSCHEDULABLE };
    Some(Finding { condition: scheduled::TYPE, reason, pod: pod.name_any(), container: None, model: None, cause })
}

/// What is said of the containers of a pod. Init containers first: what comes later has not begun while they fail.
fn containers(pod: &Pod) -> impl Iterator<Item = &ContainerStatus> {
    let status = pod.status.iter();
    status.flat_map(|status| status.init_container_statuses.iter().chain(&status.container_statuses).flatten())
}

/// The same of the server and of what has to end before it begins: sidecars may run beside both.
pub fn steps(pod: &Pod) -> impl Iterator<Item = &ContainerStatus> {
    containers(pod).filter(|status| status.name == names::SERVER_CONTAINER || is_to_end(pod, &status.name))
}

fn of_container(pod: &Pod, status: &ContainerStatus) -> Option<Finding> {
    if status.ready && status.state.as_ref().is_some_and(|state| state.running.is_some()) {
        return None;
    }
    let state = status.state.clone().unwrap_or_default();
    // A server that was up misses a probe now and then; what ended it long ago is not why.
    let is_up = status.started == Some(true) && state.running.is_some();
    if is_up && names::fetched_model(&status.name).is_none() {
        return None;
    }
    not_started(pod, status, &state).or_else(|| {
        // The last end stays in view while the container tries again, or the reason would come and go with each try.
        let last = status.last_state.as_ref().and_then(|last| last.terminated.clone());
        let ended = state.terminated.or(last).filter(|ended| ended.exit_code != 0 || status.restart_count > 0)?;
        let succeeded_at_last = ended.exit_code == 0 && is_to_end(pod, &status.name);
        (!succeeded_at_last).then(|| of_end(pod, status, &ended))
    })
}

/// Whether a container has done its work when it ends: those that come before the others do, unless they are sidecars.
fn is_to_end(pod: &Pod, container: &str) -> bool {
    let mut before = pod.spec.iter().flat_map(|spec| spec.init_containers.iter().flatten());
    before.any(|it| it.name == container && it.restart_policy.as_deref() != Some("Always"))
}

/// The kubelet cannot start the container at all.
fn not_started(pod: &Pod, status: &ContainerStatus, state: &ContainerState) -> Option<Finding> {
    let waiting = state.waiting.as_ref()?;
    let said = waiting.message.clone().unwrap_or_default();
    let why = waiting.reason.as_deref().unwrap_or_default();
    match why {
        "ErrImagePull"
        | "ImagePullBackOff"
        | "InvalidImageName"
        | "ErrImageNeverPull"
        | "ImageInspectError"
        | "RegistryUnavailable"
        | "SignatureValidationFailed" => {
            // That of a volume is told of the container that has it.
            let mut volumes = pod.spec.iter().flat_map(|spec| spec.volumes.iter().flatten());
            let of_a_volume = volumes.any(|volume| volume.image.is_some()) && !said.contains(&status.image);
            let image = if of_a_volume { "an image".to_owned() } else { format!("the image {}", status.image) };
            let cause = format!("{image} cannot be pulled: {why}: {said}");
            Some(loading(pod, Some(status.name.clone()), model_loaded::IMAGE_PULL_FAILED, cause))
        }
        "CreateContainerConfigError" if lacks_secret(&said) => {
            let finding = loading(pod, Some(status.name.clone()), accepted::SECRET_NOT_FOUND, said);
            Some(Finding { condition: accepted::TYPE, ..finding })
        }
        "CreateContainerConfigError" | "CreateContainerError" | "RunContainerError" | "StartError" => {
            Some(loading(pod, Some(status.name.clone()), model_loaded::CRASH_LOOPING, format!("{NEVER_RAN}{said}")))
        }
        _ => None,
    }
}

/// Whether that says that a Secret is not there, or a key of it.
fn lacks_secret(said: &str) -> bool {
    let said = said.to_lowercase();
    said.contains("secret") && (said.contains("not found") || said.contains("find key"))
}

/// The longest that is shown of what a container wrote that is not ours.
const LONGEST_WORDS_BYTES: usize = 512;

/// The container has ended.
fn of_end(pod: &Pod, status: &ContainerStatus, ended: &ContainerStateTerminated) -> Finding {
    if ended.reason.as_deref() == Some("OOMKilled") {
        let limit = memory_limit(pod, &status.name).unwrap_or_else(|| "of the node".to_owned());
        let cause = format!("killed at its memory limit, {limit}, {}", times(status));
        return loading(pod, Some(status.name.clone()), model_loaded::OUT_OF_MEMORY, cause);
    }
    let told: Termination =
        ended.message.as_deref().and_then(|message| serde_json::from_str(message.trim()).ok()).unwrap_or_default();
    if told.reason.is_empty() {
        let said = ended.message.as_deref().unwrap_or_default().trim();
        let said = &said[..said.floor_char_boundary(LONGEST_WORDS_BYTES)];
        let has_not_begun = ended.reason.as_deref().is_some_and(|reason| HAS_NOT_BEGUN.contains(&reason));
        let cause = match (has_not_begun, said) {
            (true, _) => format!("{NEVER_RAN}{said}, {}", times(status)),
            (false, "") => format!("it ended with {}, {}", exit(ended), times(status)),
            (false, _) => format!("it ended with {}, {}: {said}", exit(ended), times(status)),
        };
        return loading(pod, Some(status.name.clone()), model_loaded::CRASH_LOOPING, cause);
    }
    let (condition, reason) = match told.reason.as_str() {
        "InvalidOptions" | "InvalidConfig" => (accepted::TYPE, accepted::INVALID_OPTIONS),
        other => {
            let known = model_loaded::REASONS.iter().find(|reason| **reason == other);
            (model_loaded::TYPE, known.copied().unwrap_or(model_loaded::CRASH_LOOPING))
        }
    };
    let finding = loading(pod, Some(status.name.clone()), reason, told.message);
    Finding { condition, model: told.model.or(finding.model.clone()), ..finding }
}

fn of_warning(pod: &Pod, warning: &Warning) -> Option<Finding> {
    let Warning { container, text: warning } = warning;
    let (condition, reason) = if lacks_secret(warning) {
        (accepted::TYPE, accepted::SECRET_NOT_FOUND)
    } else if warning.contains("persistentvolumeclaim") && warning.contains("not found") {
        (accepted::TYPE, accepted::PVC_NOT_FOUND)
    } else if warning.starts_with("FailedMount") || warning.starts_with("FailedAttachVolume") {
        (model_loaded::TYPE, model_loaded::FETCH_FAILED)
    } else if warning.contains("pull") && warning.contains("image") {
        (model_loaded::TYPE, model_loaded::IMAGE_PULL_FAILED)
    } else if warning.starts_with("FailedCreatePodSandBox") {
        (model_loaded::TYPE, model_loaded::CRASH_LOOPING)
    } else {
        return None;
    };
    let finding = loading(pod, container.clone(), reason, warning.clone());
    Some(Finding { condition, ..finding })
}

fn loading(pod: &Pod, container: Option<String>, reason: &'static str, cause: String) -> Finding {
    let model = container.as_deref().and_then(names::fetched_model).map(str::to_owned);
    Finding { condition: model_loaded::TYPE, reason, pod: pod.name_any(), container, model, cause }
}

fn exit(ended: &ContainerStateTerminated) -> String {
    match ended.signal.or(Some(ended.exit_code - 128).filter(|signal| (1..=64).contains(signal))) {
        Some(signal) => format!("signal {signal}"),
        None => format!("exit code {}", ended.exit_code),
    }
}

fn times(status: &ContainerStatus) -> String {
    match status.restart_count {
        0 => "for the first time".to_owned(),
        1 => "restarted once".to_owned(),
        count => format!("restarted {count} times"),
    }
}

fn memory_limit(pod: &Pod, container: &str) -> Option<String> {
    let spec = pod.spec.as_ref()?;
    let mut containers = spec.containers.iter().chain(spec.init_containers.iter().flatten());
    let found = containers.find(|it| it.name == container)?;
    Some(found.resources.as_ref()?.limits.as_ref()?.get("memory")?.0.clone())
}
