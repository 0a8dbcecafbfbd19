//! `spec.podTemplate`: what a user may add to the pods, and what not.

use std::collections::{BTreeMap, btree_map::Entry};

use crds::{
    resource::{InferenceModelSpec, Model},
    serving::{Fault, ServerConfig},
};
use k8s_openapi::api::core::v1::{Container, PodSpec, PodTemplateSpec};
use serde_json::Value;

use crate::{digest::says_nothing, names};

use super::{config, revision::grace_seconds, unit};

/// Reads the podTemplate.
///
/// # Errors
/// All that cannot be merged: text that is no PodTemplateSpec, fields that Kubernetes does not know, and what is the
/// operator's to set.
pub fn read(spec: &InferenceModelSpec, server: &ServerConfig) -> Result<Option<PodTemplateSpec>, Vec<Fault>> {
    let Some(written) = &spec.pod_template else { return Ok(None) };
    let template: PodTemplateSpec = serde_json::from_value(written.clone())
        .map_err(|error| vec![fault("", format!("expected a PodTemplateSpec: {error}"))])?;
    let understood = serde_json::to_value(&template).unwrap_or_default();
    let mut faults = Vec::new();
    unknown_fields("", written, &understood, &mut faults);
    faults.extend(reserved(spec, &template));
    faults.extend(claimed_twice(spec, &template));
    faults.extend(cut_short(server, &template));
    if faults.is_empty() { Ok(Some(template)) } else { Err(faults) }
}

/// A field that was written but not understood would be dropped without a word.
fn unknown_fields(path: &str, written: &Value, understood: &Value, faults: &mut Vec<Fault>) {
    match (written, understood) {
        (Value::Object(written), Value::Object(understood)) => {
            for (key, value) in written {
                let path = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
                match understood.get(key) {
                    Some(understood) => unknown_fields(&path, value, understood, faults),
                    None if says_nothing(value) => {}
                    None => faults.push(fault(&path, "Kubernetes knows no such field".to_owned())),
                }
            }
        }
        (Value::Array(written), Value::Array(understood)) => {
            for (index, (written, understood)) in written.iter().zip(understood).enumerate() {
                unknown_fields(&format!("{path}[{index}]"), written, understood, faults);
            }
        }
        _ => {}
    }
}

/// What is not the user's to set: host access, privileges, the selector's labels, and what the server is started with.
fn reserved(of: &InferenceModelSpec, template: &PodTemplateSpec) -> Vec<Fault> {
    let mut faults = Vec::new();
    let labels = template.metadata.iter().flat_map(|metadata| metadata.labels.iter().flatten());
    for (label, _) in labels.filter(|(label, _)| [names::MODEL_LABEL, names::REVISION_LABEL].contains(&label.as_str()))
    {
        faults.push(fault(&format!("metadata.labels[{label}]"), "the operator selects pods by it".to_owned()));
    }
    let Some(spec) = &template.spec else { return faults };
    faults.extend(of_pod(spec));
    let lists = [("containers", Some(&spec.containers)), ("initContainers", spec.init_containers.as_ref())];
    for (list, containers) in lists {
        for container in containers.into_iter().flatten() {
            faults.extend(of_container(of, &format!("spec.{list}[{}]", container.name), container));
        }
    }
    faults
}

fn of_pod(spec: &PodSpec) -> Vec<Fault> {
    let host = "pods get no access to the host".to_owned();
    let mut faults = Vec::new();
    let used = [
        ("spec.hostNetwork", spec.host_network == Some(true)),
        ("spec.hostPID", spec.host_pid == Some(true)),
        ("spec.hostIPC", spec.host_ipc == Some(true)),
        ("spec.hostUsers", spec.host_users == Some(true)),
    ];
    faults.extend(used.into_iter().filter(|(_, used)| *used).map(|(path, _)| fault(path, host.clone())));
    if let Some(security) = &spec.security_context {
        let unconfined = security.seccomp_profile.as_ref().is_some_and(|profile| profile.type_ == "Unconfined");
        let unarmoured = security.app_armor_profile.as_ref().is_some_and(|profile| profile.type_ == "Unconfined");
        let used = [
            ("runAsUser", security.run_as_user == Some(0)),
            ("runAsNonRoot", security.run_as_non_root == Some(false)),
            ("seccompProfile", unconfined),
            ("appArmorProfile", unarmoured),
            ("sysctls", security.sysctls.as_ref().is_some_and(|sysctls| !sysctls.is_empty())),
            ("windowsOptions", security.windows_options.is_some()),
        ];
        faults.extend(privileges("spec.securityContext", &used));
    }
    if spec.automount_service_account_token == Some(true) {
        faults.push(fault("spec.automountServiceAccountToken", "pods get no token".to_owned()));
    }
    for volume in spec.volumes.iter().flatten() {
        let path = format!("spec.volumes[{}]", volume.name);
        if volume.host_path.is_some() {
            faults.push(fault(&format!("{path}.hostPath"), host.clone()));
        }
        let projected = volume.projected.iter().flat_map(|projected| projected.sources.iter().flatten());
        if projected.into_iter().any(|source| source.service_account_token.is_some()) {
            faults.push(fault(&format!("{path}.projected"), "pods get no token".to_owned()));
        }
        if unit::is_our_volume(&volume.name) {
            faults.push(fault(&path, "the operator has a volume of this name".to_owned()));
        }
    }
    if spec.restart_policy.as_deref().is_some_and(|policy| policy != "Always") {
        faults.push(fault("spec.restartPolicy", "pods of a Deployment are always restarted".to_owned()));
    }
    faults
}

/// A pod that is killed while its server drains loses requests that it has taken.
fn cut_short(server: &ServerConfig, template: &PodTemplateSpec) -> Option<Fault> {
    let (given, needed) = (template.spec.as_ref()?.termination_grace_period_seconds?, grace_seconds(server));
    let message = format!(
        "expected at least {needed}, got {given}: draining takes drain_delay_ms and drain_timeout_ms of spec.server.config, and 5 s more"
    );
    (given < needed).then(|| fault("spec.terminationGracePeriodSeconds", message))
}

/// Not every kubelet starts a pod that has a claim in two volumes, and the others say nothing of it.
fn claimed_twice(spec: &InferenceModelSpec, template: &PodTemplateSpec) -> Vec<Fault> {
    let mut claims: BTreeMap<&str, String> = BTreeMap::new();
    for model in &spec.models {
        let Some(pvc) = &model.source.pvc else { continue };
        claims.entry(&pvc.claim_name).or_insert_with(|| format!("{} (read-only)", unit::volume_name(model)));
    }
    let mut faults = Vec::new();
    for volume in template.spec.iter().flat_map(|spec| spec.volumes.iter().flatten()) {
        let Some(claim) = &volume.persistent_volume_claim else { continue };
        match claims.entry(&claim.claim_name) {
            Entry::Vacant(place) => _ = place.insert(volume.name.clone()),
            Entry::Occupied(there) => {
                let path = format!("spec.volumes[{}].persistentVolumeClaim", volume.name);
                let (claim, there) = (&claim.claim_name, there.get());
                let message = format!("the claim {claim} is in the pod already: mount its volume {there}");
                faults.push(fault(&path, message));
            }
        }
    }
    faults
}

fn of_container(of: &InferenceModelSpec, path: &str, container: &Container) -> Vec<Fault> {
    let mut faults = Vec::new();
    let at = |field: &str| format!("{path}.{field}");
    if let Some(security) = &container.security_context {
        let added = security.capabilities.as_ref().and_then(|capabilities| capabilities.add.as_ref());
        let unconfined = security.seccomp_profile.as_ref().is_some_and(|profile| profile.type_ == "Unconfined");
        let unarmoured = security.app_armor_profile.as_ref().is_some_and(|profile| profile.type_ == "Unconfined");
        let used = [
            ("privileged", security.privileged == Some(true)),
            ("allowPrivilegeEscalation", security.allow_privilege_escalation == Some(true)),
            ("capabilities.add", added.is_some_and(|added| !added.is_empty())),
            ("procMount", security.proc_mount.is_some()),
            ("runAsUser", security.run_as_user == Some(0)),
            ("runAsNonRoot", security.run_as_non_root == Some(false)),
            ("seccompProfile", unconfined),
            ("appArmorProfile", unarmoured),
            ("windowsOptions", security.windows_options.is_some()),
        ];
        faults.extend(privileges(&at("securityContext"), &used));
    }
    for port in container.ports.iter().flatten() {
        if port.host_port.is_some() {
            faults.push(fault(&at("ports.hostPort"), "pods get no access to the host".to_owned()));
        }
        if unit::ports()
            .iter()
            .any(|(name, number)| *number == port.container_port || port.name.as_deref() == Some(*name))
        {
            faults.push(fault(&at("ports"), format!("port {} is the server's", port.container_port)));
        }
    }
    let fetches = |model: &Model| config::is_fetched(model) && names::fetch_container(&model.name) == container.name;
    if container.name != names::SERVER_CONTAINER && !of.models.iter().any(fetches) {
        if names::fetched_model(&container.name).is_some() {
            faults.push(fault(path, "names that begin so are those of containers that fetch a model".to_owned()));
        }
        return faults;
    }
    for (_, device) in config::misplaced_devices(of, container.resources.as_ref()) {
        faults.push(fault(&at("resources"), format!("{device}: devices go under spec.accelerator")));
    }
    if container.command.is_some() || container.args.is_some() {
        faults.push(fault(&at("command"), "the operator starts the server".to_owned()));
    }
    if container.image.is_some() {
        faults.push(fault(&at("image"), "the image is set by spec.server.image".to_owned()));
    }
    for mount in container.volume_mounts.iter().flatten() {
        let taken = ["/etc/ortolan", config::MODELS_FOLDER, config::VOLUMES_FOLDER];
        if taken.iter().any(|folder| mount.mount_path == *folder || mount.mount_path.starts_with(&format!("{folder}/")))
        {
            faults.push(fault(&at("volumeMounts"), format!("{} is the operator's", mount.mount_path)));
        }
    }
    for variable in container.env.iter().flatten().filter(|variable| is_of_the_config(&variable.name)) {
        faults.push(fault(&at("env"), format!("{}: settings go under spec.server.config", variable.name)));
    }
    faults
}

/// Whether a variable is a setting that the config has. What the server is to tell has no field, and may be set so.
fn is_of_the_config(variable: &str) -> bool {
    let Some(setting) = variable.strip_prefix("ORTOLAN__") else { return false };
    !setting.starts_with("OBSERVABILITY__") && setting != "LOGGING__FORMAT"
}

fn privileges(path: &str, used: &[(&str, bool)]) -> Vec<Fault> {
    let used = used.iter().filter(|(_, used)| *used);
    used.map(|(field, _)| fault(&format!("{path}.{field}"), "pods get no privileges".to_owned())).collect()
}

fn fault(path: &str, message: String) -> Fault {
    let path = if path.is_empty() { "spec.podTemplate".to_owned() } else { format!("spec.podTemplate.{path}") };
    Fault { path, origin: String::new(), message }
}
