//! Mode HPA: a HorizontalPodAutoscaler by the numbers that prometheus-adapter shows.

use k8s_openapi::api::autoscaling::v2::HorizontalPodAutoscaler;
use ortolan_tests::cluster::wait;
use serde_json::Value;

use crate::busy::{self, NAME};
use crate::fixture::{Failure, LIMIT, Outcome, tell, tell_time};
use crate::installed::Installed;
use crate::space::{Space, yes};
use crate::watch::Watch;

pub(crate) async fn follows_the_load(space: &Space, installed: &Installed) -> Outcome {
    space.claim_models().await?;
    installed.adapter(space.cluster()).await?;
    let (_, time) = space.apply_until_ready(&busy::model("HPA")).await?;
    tell_time("from the apply of a model in mode HPA to Ready", time);
    let (active, time) = space.shows(NAME, yes("ScalingActive", "Active")).await?;
    tell_time(&format!("until ScalingActive=True Active: {}", active.message), time);
    shows_its_numbers(space, "ortolan_pod_load_samples").await?;
    let watch = Watch::start(space, NAME);
    busy::rises_and_falls(space, &watch, async || {
        shows_its_numbers(space, "ortolan_pod_load_samples").await?;
        space.shows(NAME, yes("ScalingActive", "Active")).await?;
        Ok(())
    })
    .await?;
    let autoscalers = space.of::<HorizontalPodAutoscaler>(NAME).await?;
    assert_eq!(autoscalers.len(), 1, "{autoscalers:?}");
    Ok(())
}

/// Asks the API for a number of the pods, as the autoscaler does.
async fn shows_its_numbers(space: &Space, metric: &str) -> Outcome {
    let path = format!("/apis/custom.metrics.k8s.io/v1beta1/namespaces/{}/pods/*/{metric}", space.namespace);
    let look = async || {
        let shown: Value = serde_json::from_str(&space.kubectl(&["get", "--raw", &path]).await?)?;
        let items = shown["items"].as_array().cloned().unwrap_or_default();
        let values: Vec<_> = items.iter().map(|item| item["value"].as_str().unwrap_or_default().to_owned()).collect();
        if values.is_empty() { Err(Failure::new(format!("{shown}"))) } else { Ok(values) }
    };
    let (values, _) = wait::until(&format!("{metric} in the API"), LIMIT, look).await?;
    tell(&format!("{metric} of the pods: {}", values.join(", ")));
    Ok(())
}
