//! Clients that ask the same again and again, and what they are told.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use serde_json::{Value, json};

use crate::fixture::{Failure, Outcome, tell};
use crate::models::{inference_model, on_volume, with};
use crate::space::Space;
use crate::web::Connection;

/// What a client asks, and how long it waits before it asks again.
#[derive(Debug, Clone)]
pub(crate) struct Question {
    path: String,
    body: Vec<u8>,
    headers: &'static [(&'static str, &'static str)],
    pause: Duration,
}

/// With it a request is traced whatever the server's own share is.
const TRACED: &[(&str, &str)] = &[("traceparent", "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01")];

impl Question {
    /// Numbers for a model. To `obedient` they say what it does: steps, size of a product, row of a table.
    pub(crate) fn of(model: &str, numbers: [u32; 3]) -> Self {
        let [first, second, third] = numbers;
        let input = json!({"name": "input", "shape": [1, 4], "datatype": "FP32", "data": [first, second, third, 0]});
        let body = json!({"inputs": [input]}).to_string().into_bytes();
        Self { path: format!("/v2/models/{model}/infer"), body, headers: &[], pause: Duration::from_millis(20) }
    }

    /// With a trace that its caller began.
    pub(crate) fn traced(self) -> Self {
        Self { headers: TRACED, ..self }
    }

    /// With another pause.
    pub(crate) fn every(self, pause: Duration) -> Self {
        Self { pause, ..self }
    }
}

/// How often clients got which status; 0 stands for no answer at all.
type Counts = BTreeMap<u16, u64>;

/// Clients at work, until they are dropped.
pub(crate) struct Clients {
    address: SocketAddr,
    question: Question,
    stop: Arc<AtomicBool>,
    counts: Arc<Mutex<Counts>>,
    threads: Vec<JoinHandle<()>>,
}

impl Clients {
    pub(crate) fn start(address: (IpAddr, u16), count: usize, question: &Question) -> Self {
        let (stop, counts) = (Arc::default(), Arc::default());
        let mut clients =
            Self { address: address.into(), question: question.clone(), stop, counts, threads: Vec::new() };
        (0..count).for_each(|_| clients.join());
        clients
    }

    /// One client more.
    pub(crate) fn join(&mut self) {
        let (address, question) = (self.address, self.question.clone());
        let (stop, counts) = (Arc::clone(&self.stop), Arc::clone(&self.counts));
        self.threads.push(std::thread::spawn(move || ask_on(address, &question, &stop, &counts)));
    }

    /// How many there are.
    pub(crate) fn count(&self) -> usize {
        self.threads.len()
    }

    /// Lets each client end its request, and tells what they were answered.
    pub(crate) fn stop(self, whom: &str) -> Outcome {
        let counts = Arc::clone(&self.counts);
        drop(self);
        let counts = counts.lock().map_err(|_| Failure::new("a client panicked"))?;
        tell(&format!("{whom} were answered by status: {counts:?}"));
        Ok(())
    }
}

impl Drop for Clients {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for client in self.threads.drain(..) {
            // One that panicked is seen by what it did not count.
            let _ = client.join();
        }
    }
}

fn ask_on(address: SocketAddr, question: &Question, stop: &AtomicBool, counts: &Mutex<Counts>) {
    let mut kept: Option<Connection> = None;
    while !stop.load(Ordering::Relaxed) {
        let open = kept.take().filter(|connection| !connection.was_closed());
        let asked = open.map_or_else(|| Connection::open(address), Ok).and_then(|mut connection| {
            let answer = connection.ask_with(question.headers, "POST", &question.path, &question.body)?;
            kept = Some(connection).filter(|_| !answer.closes);
            Ok(answer.status)
        });
        *counts.lock().unwrap_or_else(PoisonError::into_inner).entry(asked.unwrap_or_default()).or_default() += 1;
        std::thread::sleep(question.pause);
    }
}

/// A single question whose answer nobody waits for any longer than that.
pub(crate) fn ask_once(address: (IpAddr, u16), question: &Question, patience: Duration) -> JoinHandle<()> {
    let question = question.clone();
    std::thread::spawn(move || {
        let asked = Connection::open(address).and_then(|mut connection| {
            connection.be_patient(patience)?;
            connection.ask_with(question.headers, "POST", &question.path, &question.body)
        });
        let said =
            asked.map_or_else(|error| error.to_string(), |answer| format!("{} {}", answer.status, answer.text()));
        tell(&format!("a single request: {said}"));
    })
}

/// An InferenceModel with one model of the volume, named like its folder, with `model` laid on the model and `spec` on the spec.
pub(crate) fn serving(name: &str, folder: &str, model: &Value, spec: &Value) -> Value {
    let mut entry = on_volume(folder, folder);
    if let (Some(entry), Some(model)) = (entry.as_object_mut(), model.as_object()) {
        entry.extend(model.clone());
    }
    with(inference_model(name, &[entry]), spec)
}

/// Makes the claim, applies it, waits until it serves, and returns its address.
pub(crate) async fn serve(space: &Space, inference_model: &Value) -> Outcome<(IpAddr, u16)> {
    space.claim_models().await?;
    space.apply_until_ready(inference_model).await?;
    space.address(inference_model["metadata"]["name"].as_str().unwrap_or_default()).await
}

/// Waits until the quick Prometheus scrapes what is in the namespace of a test.
pub(crate) async fn until_scraped(space: &Space) -> Outcome {
    space.stage.fast.until_it_has(&format!("up{{namespace=\"{}\"}} == 1", space.namespace)).await?;
    Ok(())
}

/// The matcher of alerts about what is in the namespace of a test.
pub(crate) fn of(space: &Space) -> String {
    format!(", namespace=\"{}\"", space.namespace)
}
