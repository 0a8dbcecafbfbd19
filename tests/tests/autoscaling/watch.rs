//! How many replicas there were, the whole time.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::Pod;
use kube::api::{Api, ListParams};
use tokio::task::JoinHandle;

use crate::fixture::{Failure, Outcome, tell};
use crate::space::{MODEL_LABEL, Space};

/// Between two looks.
const PAUSE: Duration = Duration::from_millis(200);

/// What one look saw.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Moment {
    /// `spec.replicas`.
    pub(crate) wanted: i32,
    /// Pods that are ready and were not told to end.
    pub(crate) ready: usize,
}

/// Looks again and again, until it is stopped or dropped.
pub(crate) struct Watch {
    task: JoinHandle<()>,
    moments: Arc<Mutex<Moments>>,
    /// Those that saw something.
    looks: Arc<AtomicU64>,
    begun: Instant,
    name: String,
}

/// Each moment that differs from the one before, and when it began.
type Moments = Vec<(Instant, Moment)>;

impl Watch {
    pub(crate) fn start(space: &Space, name: &str) -> Self {
        let (moments, looks) = (Arc::<Mutex<Moments>>::default(), Arc::<AtomicU64>::default());
        let (models, pods, name) = (space.models(), space.api::<Pod>(), name.to_owned());
        let task = tokio::spawn({
            let (moments, looks, name) = (Arc::clone(&moments), Arc::clone(&looks), name.clone());
            async move {
                loop {
                    // An API that is busy for a moment shows nothing, and the next look shows more.
                    if let Ok(moment) = look(&models, &pods, &name).await {
                        note(&moments, moment);
                        looks.fetch_add(1, Ordering::Relaxed);
                    }
                    tokio::time::sleep(PAUSE).await;
                }
            }
        });
        Self { task, moments, looks, begun: Instant::now(), name }
    }

    /// Waits for a look that began after this, and returns the time: what is asked for [since](Self::since) then is not older.
    pub(crate) async fn caught_up(&self) -> Instant {
        let looks = || self.looks.load(Ordering::Relaxed);
        // One may be under way.
        let enough = looks() + 2;
        while looks() < enough {
            tokio::time::sleep(PAUSE).await;
        }
        Instant::now()
    }

    /// What was seen since `since`, the state at that time included, and it is told.
    pub(crate) fn since(&self, since: Instant) -> Outcome<Vec<Moment>> {
        let moments = self.moments.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let before = moments.iter().take_while(|(at, _)| *at <= since).count();
        let seen = &moments[before.saturating_sub(1)..];
        if seen.is_empty() {
            return Err(Failure::new(format!("nothing was seen of {}", self.name)));
        }
        let steps = seen.iter().map(|(at, moment)| {
            let at = at.saturating_duration_since(self.begun).as_secs_f64();
            format!("{at:.1} s: {} wanted, {} ready", moment.wanted, moment.ready)
        });
        tell(&format!("{}: {}", self.name, steps.collect::<Vec<_>>().join(" · ")));
        Ok(seen.iter().map(|(_, moment)| *moment).collect())
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn note(moments: &Mutex<Moments>, moment: Moment) {
    let mut moments = moments.lock().unwrap_or_else(PoisonError::into_inner);
    if moments.last().is_none_or(|(_, last)| *last != moment) {
        moments.push((Instant::now(), moment));
    }
}

async fn look(
    models: &Api<crds::resource::InferenceModel>,
    pods: &Api<Pod>,
    name: &str,
) -> Result<Moment, kube::Error> {
    let wanted = models.get(name).await?.spec.replicas;
    let labelled = ListParams::default().labels(&format!("{MODEL_LABEL}={name}"));
    let ready = pods.list(&labelled).await?.items.iter().filter(|pod| is_ready(pod)).count();
    Ok(Moment { wanted, ready })
}

fn is_ready(pod: &Pod) -> bool {
    let conditions = pod.status.iter().flat_map(|status| status.conditions.iter().flatten());
    let ready = conditions.into_iter().any(|condition| condition.type_ == "Ready" && condition.status == "True");
    ready && pod.metadata.deletion_timestamp.is_none()
}

/// Whether the wanted numbers only rise, and then only fall.
pub(crate) fn is_one_hill(moments: &[Moment]) -> bool {
    let wanted: Vec<i32> = moments.iter().map(|moment| moment.wanted).collect();
    let top = (0..wanted.len()).max_by_key(|at| wanted[*at]).unwrap_or(0);
    wanted[..=top].is_sorted() && wanted[top..].is_sorted_by(|earlier, later| earlier >= later)
}
