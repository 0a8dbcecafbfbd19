//! What a pod tells of itself: `GET :9090/info`, asked once when the pod has turned ready.
//!
//! Asked in the background: a pod that does not answer delays nobody. Whoever looks gets what is known by then, and the
//! InferenceModel is looked at again when an answer comes.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use crds::{resource::InferenceModel, serving::ServerConfig};
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::TokioExecutor,
};
use k8s_openapi::api::core::v1::Pod;
use kube::runtime::reflector::ObjectRef;
use serde::Deserialize;
use tokio::{
    sync::{Semaphore, mpsc},
    time,
};

use crate::waiting::Change;

/// A pod that does not answer by then is asked again.
const TIMEOUT: Duration = Duration::from_secs(2);

/// Questions under way at once.
const CONCURRENT: usize = 64;

/// Between two questions to a pod that does not answer: doubled each time, from the first to the last. It is asked for as long as
/// it is there: what keeps the answer away, such as a NetworkPolicy, may be taken away.
const FIRST_PAUSE: Duration = Duration::from_secs(5);
const LONGEST_PAUSE: Duration = Duration::from_secs(300);

/// An answer is never longer than this.
const LONGEST_BYTES: usize = 1 << 20;

/// What a pod tells.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
pub struct Info {
    /// The models that it has loaded.
    #[serde(default)]
    pub models: Vec<ModelInfo>,
}

/// What a pod tells of one model.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct ModelInfo {
    /// Its name.
    pub name: String,
    /// Where it really runs.
    pub provider: Option<String>,
    /// Size of its file.
    pub bytes: Option<i64>,
    /// Time that loading took, in seconds.
    pub load_seconds: f64,
    /// Time that warming up took, in seconds.
    pub warmup_seconds: f64,
}

/// A container's life: the pod's uid and how often it was restarted.
pub type Life = (String, i32);

/// What the pods have told. Cheap to clone.
#[derive(Clone)]
pub struct Infos {
    known: Arc<Mutex<HashMap<Life, Option<Arc<Info>>>>>,
    client: Client<HttpConnector, Empty<Bytes>>,
    permits: Arc<Semaphore>,
    changed: mpsc::Sender<Change>,
}

impl Infos {
    /// Nothing is known yet; whom an answer concerns is told through `changed`.
    #[must_use]
    pub fn new(changed: mpsc::Sender<Change>) -> Self {
        let mut connector = HttpConnector::new();
        connector.set_connect_timeout(Some(TIMEOUT));
        let client = Client::builder(TokioExecutor::new()).pool_max_idle_per_host(0).build(connector);
        Self { known: Arc::default(), client, permits: Arc::new(Semaphore::new(CONCURRENT)), changed }
    }

    /// What a ready pod has told; if nothing yet, it is asked.
    #[must_use]
    pub fn of(&self, pod: &Pod, model: &ObjectRef<InferenceModel>) -> Option<Arc<Info>> {
        let life = life(pod)?;
        let address = address(pod)?;
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(info) = known.get(&life) {
            return info.clone();
        }
        // Of an earlier life of its container nobody asks any more.
        known.retain(|(uid, restarts), _| *uid != life.0 || *restarts >= life.1);
        known.insert(life.clone(), None);
        let (infos, model) = (self.clone(), model.clone());
        tokio::spawn(async move { infos.ask_until_told(life, &address, model).await });
        None
    }

    /// Forgets pods that are gone.
    pub fn keep_only(&self, is_there: impl Fn(&str) -> bool) {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.retain(|(uid, _), _| is_there(uid));
    }

    async fn ask_until_told(&self, life: Life, address: &str, model: ObjectRef<InferenceModel>) {
        let url = format!("http://{address}/info");
        let mut pause = FIRST_PAUSE;
        loop {
            let answer = {
                let Ok(_permit) = self.permits.acquire().await else { return };
                time::timeout(TIMEOUT, self.ask(&url)).await.ok().flatten()
            };
            if let Some(info) = answer {
                self.known.lock().unwrap_or_else(PoisonError::into_inner).insert(life, Some(Arc::new(info)));
                // The other end is gone when the process ends.
                let _ = self.changed.send(Change::of(model)).await;
                return;
            }
            let inference_model = &model.name;
            tracing::debug!(
                namespace = model.namespace,
                inference_model,
                url,
                "a ready pod does not tell what it serves"
            );
            time::sleep(pause).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
            if !self.known.lock().unwrap_or_else(PoisonError::into_inner).contains_key(&life) {
                return;
            }
        }
    }

    async fn ask(&self, url: &str) -> Option<Info> {
        let answer = self.client.get(url.parse().ok()?).await.ok()?;
        let body = Limited::new(answer.into_body(), LONGEST_BYTES).collect().await.ok()?;
        serde_json::from_slice(&body.to_bytes()).ok()
    }
}

/// Where a pod's admin port answers.
#[must_use]
pub fn address(pod: &Pod) -> Option<String> {
    let ip = pod.status.as_ref()?.pod_ip.as_ref()?;
    let host = if ip.contains(':') { format!("[{ip}]") } else { ip.clone() };
    Some(format!("{host}:{}", ServerConfig::default().metrics_port))
}

/// The life of a pod's container.
#[must_use]
pub fn life(pod: &Pod) -> Option<Life> {
    let restarts = pod.status.as_ref()?.container_statuses.as_ref()?.iter().map(|status| status.restart_count).sum();
    Some((pod.metadata.uid.clone()?, restarts))
}
