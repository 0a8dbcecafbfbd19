//! Under load, one autoscaler hands over to the next, and there are never fewer replicas.

use std::time::Duration;

use k8s_openapi::api::autoscaling::v2::HorizontalPodAutoscaler;
use kube::api::Api;
use ortolan_tests::cluster::wait;

use crate::busy::{self, BUSY, CLIENTS, NAME};
use crate::fixture::{Failure, LIMIT, Outcome, tell, tell_time};
use crate::installed::Installed;
use crate::space::{Space, Verdict, yes};
use crate::watch::Watch;

/// The modes after Operator, and who scales then: how many HorizontalPodAutoscalers there are, whoever made them.
const STEPS: [(&str, &str, usize); 4] =
    [("HPA", "Active", 1), ("KEDA", "Active", 1), ("External", "ExternalOwner", 0), ("Operator", "Active", 0)];

/// Two looks of a HorizontalPodAutoscaler, and longer than any of them keeps replicas: a number that is too low would be seen by then.
const STAY: Duration = Duration::from_secs(30);

pub(crate) async fn never_dips(space: &Space, installed: &Installed) -> Outcome {
    space.claim_models().await?;
    installed.adapter(space.cluster()).await?;
    installed.keda(space.cluster()).await?;
    installed.operate_with_prometheus(space).await?;
    space.apply_until_ready(&busy::model("Operator")).await?;
    let watch = Watch::start(space, NAME);
    let load = busy::load(space).await?;
    let time = busy::until_ready(space, BUSY).await?;
    tell_time(&format!("mode Operator: from the first of {CLIENTS} clients to {BUSY} ready pods"), time);

    let top = watch.caught_up().await;
    for (mode, reason, autoscalers) in STEPS {
        space.apply(&busy::model(mode)).await?;
        let (condition, time) = space.shows(NAME, Verdict { reason, ..yes("ScalingActive", "") }).await?;
        tell_time(&format!("to mode {mode}: {}", condition.message), time);
        until_scaled_by(space, autoscalers).await?;
        tokio::time::sleep(STAY).await;
    }
    let (answers, failures) = load.stop()?;
    tell(&format!("{answers} answers, {} failures", failures.len()));
    assert_eq!(failures, Vec::<String>::new());
    let moments = watch.since(top)?;
    let few = i32::try_from(BUSY)?;
    assert!(moments.iter().all(|moment| moment.wanted >= few && moment.ready >= BUSY), "{moments:?}");
    let time = busy::until_ready(space, 1).await?;
    tell_time("mode Operator: from the end of the load to one pod", time);
    Ok(())
}

/// Waits until there are so many HorizontalPodAutoscalers, and each of them has made up its mind by numbers that it has.
async fn until_scaled_by(space: &Space, wanted: usize) -> Outcome {
    let all: Api<HorizontalPodAutoscaler> = space.api();
    let look = async || {
        let found = all.list(&Default::default()).await?.items;
        let acts = |autoscaler: &HorizontalPodAutoscaler| {
            let status = autoscaler.status.clone().unwrap_or_default();
            let conditions = status.conditions.unwrap_or_default();
            let active = conditions.iter().any(|it| it.type_ == "ScalingActive" && it.status == "True");
            active && status.desired_replicas >= 1
        };
        if found.len() == wanted && found.iter().all(acts) {
            return Ok(());
        }
        Err(Failure::new(format!("{:?}", found.iter().map(|it| (&it.metadata.name, &it.status)).collect::<Vec<_>>())))
    };
    wait::until(&format!("{wanted} HorizontalPodAutoscalers that act"), LIMIT, look).await?;
    Ok(())
}
