//! Mode KEDA: a ScaledObject by queries to Prometheus, and what becomes of it when Prometheus is away.

use ortolan_tests::cluster::wait;
use serde_json::Value;

use crate::busy::{self, BUSY, NAME};
use crate::fixture::{Failure, LIMIT, Outcome, tell, tell_time};
use crate::installed::Installed;
use crate::space::{Space, Verdict, no, yes};
use crate::watch::Watch;

/// So many looks of KEDA at a Prometheus that is away are waited for: they take several times as long as a scale-down would.
const FAILURES: i64 = 20;

/// What ScalingActive says while nobody knows the load.
const STALE: Verdict = no("ScalingActive", "MetricsStale");

pub(crate) async fn follows_the_load(space: &Space, installed: &Installed) -> Outcome {
    begin(space, installed).await?;
    let watch = Watch::start(space, NAME);
    busy::rises_and_falls(space, &watch, async || {
        space.shows(NAME, yes("ScalingActive", "Active")).await?;
        Ok(())
    })
    .await
}

pub(crate) async fn holds_without_prometheus(space: &Space, installed: &Installed) -> Outcome {
    begin(space, installed).await?;
    let watch = Watch::start(space, NAME);
    let load = busy::load(space).await?;
    busy::until_ready(space, BUSY).await?;

    let mut prometheus = installed.prometheus(space.cluster()).await?;
    let stopped = watch.caught_up().await;
    prometheus.stop()?;
    drop(prometheus);
    let (stale, time) = space.shows(NAME, STALE).await?;
    tell_time(&format!("from the end of Prometheus to ScalingActive=False MetricsStale: {}", stale.message), time);
    // Now there is no load, and nobody can know.
    let (_, failures) = load.stop()?;
    assert_eq!(failures, Vec::<String>::new());
    until_failed(space, FAILURES).await?;
    let moments = watch.since(stopped)?;
    assert!(moments.iter().all(|moment| moment.wanted == 3 && moment.ready == BUSY), "{moments:?}");
    space.shows(NAME, STALE).await?;

    drop(installed.prometheus(space.cluster()).await?);
    let (_, time) = space.shows(NAME, yes("ScalingActive", "Active")).await?;
    tell_time("from the return of Prometheus to ScalingActive=True Active", time);
    let time = busy::until_ready(space, 1).await?;
    tell_time("from there to one pod", time);
    Ok(())
}

/// Applies the model and waits until KEDA scales it.
async fn begin(space: &Space, installed: &Installed) -> Outcome {
    space.claim_models().await?;
    installed.keda(space.cluster()).await?;
    installed.operate_with_prometheus(space).await?;
    let (_, time) = space.apply_until_ready(&busy::model("KEDA")).await?;
    tell_time("from the apply of a model in mode KEDA to Ready", time);
    let (active, time) = space.shows(NAME, yes("ScalingActive", "Active")).await?;
    tell_time(&format!("until ScalingActive=True Active: {}", active.message), time);
    Ok(())
}

/// Waits until KEDA has failed so often to ask Prometheus.
async fn until_failed(space: &Space, times: i64) -> Outcome {
    let look = async || {
        let shown = space.kubectl(&["get", "scaledobjects", "-o", "json"]).await?;
        let shown: Value = serde_json::from_str(&shown)?;
        let health = &shown["items"][0]["status"]["health"];
        let failures = health.as_object().into_iter().flatten().filter_map(|(_, it)| it["numberOfFailures"].as_i64());
        match failures.max() {
            Some(most) if most >= times => Ok(most),
            _ => Err(Failure::new(health.to_string())),
        }
    };
    let (most, time) = wait::until("KEDA to fail again and again", LIMIT, look).await?;
    tell(&format!("{:.2} s until KEDA had failed {most} times in a row", time.as_secs_f64()));
    Ok(())
}
