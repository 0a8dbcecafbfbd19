//! Whether Prometheus finds the pods of models, and what is told where it does not.

use std::time::Instant;

use serde_json::json;

use crate::clients::serve;
use crate::fixture::{Failure, Outcome, tell, tell_time};
use crate::models::small;
use crate::prometheus::{NAMESPACE, Prometheus};
use crate::space::{Space, yes};

async fn until_up(space: &Space, prometheus: &Prometheus) -> Outcome {
    let up = format!("up{{namespace=\"{}\", ortolan_dev_inference_model=\"new\"}} == 1", space.namespace);
    prometheus.until_it_has(&up).await?;
    let series = prometheus.query(&up)?.into_iter().next().ok_or_else(|| Failure::new("it is gone"))?;
    for label in ["ortolan_dev_revision", "pod", "job"] {
        if series.labels[label].as_str().unwrap_or_default().is_empty() {
            return Err(Failure::new(format!("the target has no label {label}: {}", series.labels)));
        }
    }
    tell(&format!("its labels: {}", series.labels));
    Ok(())
}

pub(crate) async fn are_up(space: &Space) -> Outcome {
    let begun = Instant::now();
    serve(space, &small("new")).await?;
    tell_time("from apply to ready", begun.elapsed());
    let ready = Instant::now();
    until_up(space, &space.stage.main).await?;
    tell_time("from ready to the target up in a Prometheus with its defaults (goal: 120 s)", ready.elapsed());
    tell_time("from apply to that", begun.elapsed());
    until_up(space, &space.stage.fast).await?;
    let (condition, _) = space.shows("new", yes("MonitoringReady", "Configured")).await?;
    tell(&format!("MonitoringReady: {}", condition.message));
    Ok(())
}

/// Prometheus is told to look at our operator alone.
pub(crate) async fn are_not_selected(space: &Space) -> Outcome {
    const ALERT: &str = "OrtolanModelsNotScraped";
    serve(space, &small("unseen")).await?;
    let select = async |labels: serde_json::Value| {
        let patch = json!({"spec": {"serviceMonitorNamespaceSelector": {"matchLabels": labels}}}).to_string();
        let arguments = ["patch", "prometheus", "fast", "-n", NAMESPACE, "--type=merge", "-p", &patch];
        space.cluster().run_kubectl(&arguments).await
    };
    select(json!({"kubernetes.io/metadata.name": crate::fixture::OPERATOR_NAMESPACE})).await?;
    let fired = space.stage.fires(ALERT, "").await;
    select(json!(null)).await?;
    fired?;
    space.stage.ends(ALERT, "").await?;
    let up = format!("up{{namespace=\"{}\"}} == 1", space.namespace);
    if !space.stage.fast.has_data(&up)? {
        return Err(Failure::new(format!("the alert has ended without {up}")));
    }
    Ok(())
}
