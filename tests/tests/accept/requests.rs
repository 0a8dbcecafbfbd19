//! Alerts about requests and the queue.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use serde_json::json;

use crate::clients::{Clients, Question, ask_once, of, serve, serving};
use crate::fixture::{Failure, Outcome, tell};
use crate::space::Space;

pub(crate) async fn fail(space: &Space) -> Outcome {
    let address = serve(space, &serving("told", "obedient", &json!({}), &json!({}))).await?;
    let good = Clients::start(address, 1, &Question::of("obedient", [1, 0, 0]));
    // There is no such row.
    let bad = Clients::start(address, 1, &Question::of("obedient", [1, 0, 5]));
    space.stage.fires("OrtolanRequestsFailing", &of(space)).await?;
    bad.stop("clients who ask for a row that is not there")?;
    space.stage.ends("OrtolanRequestsFailing", &of(space)).await?;
    good.stop("the others")
}

pub(crate) async fn are_refused(space: &Space) -> Outcome {
    let short = json!({"batching": {"batchSize": 1, "maxQueueTime": "50ms"}});
    let address = serve(space, &serving("busy", "slow", &short, &json!({}))).await?;
    let many = Clients::start(address, 12, &Question::of("slow", [1, 2, 3]));
    space.stage.fires("OrtolanRequestsRefused", &of(space)).await?;
    many.stop("a dozen clients at once")?;
    let one = Clients::start(address, 1, &Question::of("slow", [1, 2, 3]));
    space.stage.ends("OrtolanRequestsRefused", &of(space)).await?;
    one.stop("a client alone")
}

pub(crate) async fn expire(space: &Space) -> Outcome {
    let hurried = json!({"batching": {"batchSize": 1}, "requestTimeout": "100ms"});
    let address = serve(space, &serving("hurried", "obedient", &hurried, &json!({}))).await?;
    let quick = Clients::start(address, 1, &Question::of("obedient", [1, 0, 0]).every(Duration::from_millis(100)));
    let long = Question::of("obedient", [200_000, 0, 0]).every(Duration::from_secs(1));
    let long = Clients::start(address, 1, &long);
    space.stage.fires("OrtolanDeadlinesExpired", &of(space)).await?;
    long.stop("clients whose runs take longer than they may")?;
    space.stage.ends("OrtolanDeadlinesExpired", &of(space)).await?;
    quick.stop("the others")
}

/// Each request is quick when it comes alone, and there are eight at a time.
pub(crate) async fn miss_the_objective(space: &Space) -> Outcome {
    let strict = json!({"batching": {"batchSize": 1, "maxQueueTime": "5s"}, "latencyObjective": "200ms"});
    let address = serve(space, &serving("strict", "slow", &strict, &json!({}))).await?;
    let many = Clients::start(address, 16, &Question::of("slow", [1, 2, 3]));
    for alert in ["OrtolanLatencyObjectiveBurnsFast", "OrtolanLatencyObjectiveBurnsSlowly"] {
        space.stage.fires(alert, &of(space)).await?;
    }
    many.stop("sixteen clients at once")?;
    let one = Clients::start(address, 1, &Question::of("slow", [1, 2, 3]).every(Duration::from_millis(100)));
    for alert in ["OrtolanLatencyObjectiveBurnsFast", "OrtolanLatencyObjectiveBurnsSlowly"] {
        space.stage.ends(alert, &of(space)).await?;
    }
    one.stop("a client alone")
}

pub(crate) async fn have_no_chance(space: &Space) -> Outcome {
    let objective = |time: &str| {
        serving("hopeful", "slow", &json!({"batching": {"batchSize": 1}, "latencyObjective": time}), &json!({}))
    };
    serve(space, &objective("10ms")).await?;
    space.stage.fires("OrtolanLatencyObjectiveInfeasible", &of(space)).await?;
    space.apply_until_ready(&objective("5s")).await?;
    space.stage.ends("OrtolanLatencyObjectiveInfeasible", &of(space)).await
}

/// Every second there is a client more, and none leaves: whatever the machine does, more come than go.
pub(crate) async fn pile_up(space: &Space) -> Outcome {
    let long = json!({"batching": {"batchSize": 1, "maxQueueTime": "10m"}, "requestTimeout": "20m"});
    let address = serve(space, &serving("patient", "obedient", &long, &json!({}))).await?;
    let question = Question::of("obedient", [1_000, 0, 0]).every(Duration::ZERO);
    let clients = Mutex::new(Clients::start(address, 5, &question));
    let begun = Instant::now();
    let one_more = async || {
        let mut clients = clients.lock().unwrap_or_else(PoisonError::into_inner);
        while clients.count() < 5 + usize::try_from(begun.elapsed().as_secs()).unwrap_or_default() {
            clients.join();
        }
        Ok(())
    };
    space.stage.fires_while("OrtolanQueueGrowing", &of(space), one_more).await?;
    let clients = clients.into_inner().unwrap_or_else(PoisonError::into_inner);
    clients.stop("more and more clients")?;
    space.stage.ends("OrtolanQueueGrowing", &of(space)).await
}

/// A little less than a request may take: longer than the alert looks, and no longer than a run may take, though the machine be twice as
/// busy as when it was told how long a step takes.
const HANGING: Duration = Duration::from_secs(28);

/// A run that takes far longer than those before, and somebody behind it.
pub(crate) async fn wait_too_long(space: &Space) -> Outcome {
    let address =
        serve(space, &serving("held", "obedient", &json!({"batching": {"batchSize": 1}}), &json!({}))).await?;
    let patience = Duration::from_secs(90);
    let run = |steps: u32| ask_once(address, &Question::of("obedient", [steps, 0, 0]), patience);
    // The quickest of some: others that work beside it make a step look longer than it is.
    let (some, mut taken) = (200_000, Duration::MAX);
    for _ in 0..5 {
        let begun = Instant::now();
        run(some).join().map_err(|_| Failure::new("a client panicked"))?;
        taken = taken.min(begun.elapsed());
    }
    let steps = (HANGING.as_secs_f64() / taken.as_secs_f64() * f64::from(some)) as u32;
    tell(&format!("{some} steps took {taken:.2?}: {steps} should take {HANGING:?}"));
    let quick = Question::of("obedient", [1, 0, 0]);
    let before = Clients::start(address, 1, &quick);
    let mean = format!("model:ortolan_inference_time_seconds:mean_rate5m{{namespace=\"{}\"}}", space.namespace);
    space.stage.fast.until_it_has(&mean).await?;
    before.stop("clients before the long run")?;
    let mut asked = vec![run(steps)];
    // A run that is half a second over its time is expected to take as long again: who comes then is refused. Who comes before the run
    // does not wait for it.
    for _ in 0..4 {
        tokio::time::sleep(Duration::from_millis(100)).await;
        asked.push(ask_once(address, &quick, patience));
    }
    space.stage.fires("OrtolanSamplesWaitTooLong", &of(space)).await?;
    space.stage.ends("OrtolanSamplesWaitTooLong", &of(space)).await?;
    for client in asked {
        client.join().map_err(|_| Failure::new("a client panicked"))?;
    }
    Ok(())
}
