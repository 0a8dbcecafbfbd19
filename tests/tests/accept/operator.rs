//! Alerts about our operator.

use std::net::TcpListener;
use std::time::Duration;

use k8s_openapi::api::core::v1::ResourceQuota;
use kube::api::{Patch, PatchParams};
use ortolan_tests::cluster::{Cluster, Part, wait};
use serde_json::{Value, json};

use crate::fixture::{Failure, LIMIT, OPERATOR_NAMESPACE, Outcome, tell};
use crate::models::{small, with};
use crate::space::{Space, no};

/// The chart's name of our operator and of its role.
const NAME: &str = "ortolan-operator";

/// The last lines of the operator's log that speak of a namespace, or of trouble.
pub(crate) fn tell_logs(cluster: &Cluster, namespace: &str) {
    const LINES: usize = 30;
    let Ok(mut kubectl) = cluster.kubectl() else { return };
    let logs = ["logs", "-n", OPERATOR_NAMESPACE, "deployment/ortolan-operator", "--tail=2000"];
    let Ok(output) = kubectl.args(logs).output() else { return };
    let text = String::from_utf8_lossy(&output.stdout);
    let lines: Vec<&str> = text.lines().filter(|line| line.contains(namespace) || line.contains("ERROR")).collect();
    lines[lines.len().saturating_sub(LINES)..].iter().for_each(|line| tell(line));
}

fn idle(name: &str) -> Value {
    with(small(name), &json!({"suspend": true}))
}

fn in_our_namespace(more: &str) -> String {
    format!(", namespace=\"{OPERATOR_NAMESPACE}\"{more}")
}

pub(crate) async fn writes_are_refused(space: &Space) -> Outcome {
    let quotas = space.api::<ResourceQuota>();
    let hard = json!({"count/deployments.apps": "0"});
    let quota = json!({"metadata": {"name": "tight"}, "spec": {"hard": hard}});
    space.create_object::<ResourceQuota>(quota).await?;
    let counted = async || match quotas.get("tight").await {
        Ok(quota) if quota.status.as_ref().is_some_and(|status| status.hard.is_some()) => Ok(()),
        Ok(_) => Err("it does not count".to_owned()),
        Err(error) => Err(error.to_string()),
    };
    wait::until("the quota to count", LIMIT, counted).await?;
    space.apply(&idle("tight")).await?;
    space.shows("tight", no("Accepted", "QuotaExceeded")).await?;
    let deployments = in_our_namespace(", kind=\"Deployment\"");
    space.stage.fires("OrtolanOperatorWritesRefused", &deployments).await?;
    let patch = Patch::Merge(json!({"spec": {"hard": {"count/deployments.apps": "9"}}}));
    quotas.patch("tight", &PatchParams::default(), &patch).await?;
    space.stage.ends("OrtolanOperatorWritesRefused", &deployments).await
}

/// A webhook that somebody has installed never answers, so each ConfigMap takes ten seconds.
pub(crate) async fn falls_behind(space: &Space) -> Outcome {
    /// Twice as many as a minute's worth: 32 at once, of ten seconds each.
    const MODELS: usize = 400;
    let silent = TcpListener::bind((space.cluster().machine_address()?, 0))?;
    // Connections are taken by the kernel, and nobody reads them.
    let url = format!("https://{}/", silent.local_addr()?);
    let webhook = json!({
        "apiVersion": "admissionregistration.k8s.io/v1",
        "kind": "ValidatingWebhookConfiguration",
        "metadata": {"name": "silent"},
        "webhooks": [{
            "name": "silent.example.com",
            "clientConfig": {"url": url},
            "rules": [{"apiGroups": [""], "apiVersions": ["v1"], "resources": ["configmaps"], "operations": ["CREATE"]}],
            "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": space.namespace}},
            "failurePolicy": "Ignore",
            "timeoutSeconds": 10,
            "sideEffects": "None",
            "admissionReviewVersions": ["v1"],
        }],
    });
    space.stage.apply("webhook", &webhook).await?;
    for number in 0..MODELS {
        space.apply(&idle(&format!("m{number:03}"))).await?;
    }
    let fired = space.stage.fires("OrtolanOperatorQueueDelayHigh", &in_our_namespace("")).await;
    space.cluster().run_kubectl(&["delete", "validatingwebhookconfiguration", "silent"]).await?;
    drop(silent);
    fired?;
    space.stage.ends("OrtolanOperatorQueueDelayHigh", &in_our_namespace("")).await
}

/// No operator runs; and then one does that may not touch the Lease.
pub(crate) async fn does_not_lead(space: &Space) -> Outcome {
    const ALERT: &str = "OrtolanOperatorNotLeading";
    let scale = async |replicas: &str| {
        let arguments = ["scale", "deployment", NAME, "-n", OPERATOR_NAMESPACE, replicas];
        space.cluster().run_kubectl(&arguments).await
    };
    scale("--replicas=0").await?;
    let fired = space.stage.fires(ALERT, "").await;
    scale("--replicas=1").await?;
    fired?;
    space.stage.ends(ALERT, "").await?;

    let changes = format!("changes(ortolan_operator_leader{{namespace=\"{OPERATOR_NAMESPACE}\"}}[5m]) > 0");
    let role = format!("{NAME}-lease");
    let rights = ["get", "role", &role, "-n", OPERATOR_NAMESPACE, "-o", "json"];
    let role: Value = serde_json::from_str(&space.cluster().run_kubectl(&rights).await?)?;
    space.stage.apply("lease", &with_rules(&role, &json!([]))).await?;
    let fired = space.stage.fires(ALERT, &in_our_namespace("")).await;
    space.stage.apply("lease", &with_rules(&role, &role["rules"])).await?;
    fired?;
    space.stage.ends(ALERT, &in_our_namespace("")).await?;
    if !space.stage.fast.has_data(&changes)? {
        return Err(Failure::new("the dashboard would not show that the leader has changed"));
    }
    Ok(())
}

/// A role with other rules, as it can be applied.
fn with_rules(role: &Value, rules: &Value) -> Value {
    let metadata = json!({"name": role["metadata"]["name"], "namespace": role["metadata"]["namespace"]});
    json!({"apiVersion": role["apiVersion"], "kind": role["kind"], "metadata": metadata, "rules": rules})
}

/// A role from before the operator needed Services. Watches go on until the API server ends them, so it is restarted.
pub(crate) async fn lacks_a_right(space: &Space) -> Outcome {
    let rights = ["get", "clusterrole", NAME, "-o", "json"];
    let role: Value = serde_json::from_str(&space.cluster().run_kubectl(&rights).await?)?;
    let mut older = role["rules"].clone();
    for rule in older.as_array_mut().into_iter().flatten() {
        if let Some(resources) = rule["resources"].as_array_mut() {
            resources.retain(|resource| resource != "services");
        }
    }
    if older == role["rules"] {
        return Err(Failure::new("the role says nothing of services"));
    }
    space.stage.apply("role", &with_rules(&role, &older)).await?;
    space.cluster().restart(Part::ApiServer)?;
    let answers = async || space.cluster().run_kubectl(&["get", "--raw", "/readyz"]).await;
    wait::until("the API server to be ready", LIMIT, answers).await?;

    let fired = misses_it(space).await;
    space.stage.apply("role", &with_rules(&role, &role["rules"])).await?;
    fired?;
    let all = in_our_namespace("");
    space.stage.ends_while("OrtolanOperatorReconcilesFailing", &all, async || look_again(space).await).await?;
    space.stage.ends("OrtolanOperatorWatchesRestart", &in_our_namespace(", kind=\"Service\"")).await
}

async fn misses_it(space: &Space) -> Outcome {
    for name in ["one", "two", "three"] {
        space.apply(&idle(name)).await?;
    }
    let all = in_our_namespace("");
    // The operator's own pauses become longer than the alert's time at this pace.
    space.stage.fires_while("OrtolanOperatorReconcilesFailing", &all, async || look_again(space).await).await?;
    space.stage.fires("OrtolanOperatorWatchesRestart", &in_our_namespace(", kind=\"Service\"")).await
}

/// Changes something of an InferenceModel that makes no difference.
async fn look_again(space: &Space) -> Outcome {
    let now = format!("{:?}", std::time::SystemTime::now());
    let patch = json!({"metadata": {"annotations": {"example.com/looked-at": now}}});
    space.models().patch("one", &PatchParams::default(), &Patch::Merge(patch)).await?;
    tokio::time::sleep(Duration::from_secs(1)).await;
    Ok(())
}
