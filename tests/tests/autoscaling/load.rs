//! Clients that each keep one connection and always wait for one answer: as many samples are in the pods as there are clients, however
//! many pods there are.

use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use crate::fixture::{Failure, Outcome};
use crate::web::{Answer, Connection};

/// What a client waits after a failure, so that a server which refuses is not asked without end.
const AFTER_FAILURE: Duration = Duration::from_millis(200);

/// What is asked, over and over.
#[derive(Debug, Clone)]
pub(crate) struct Question {
    pub(crate) address: (IpAddr, u16),
    pub(crate) path: &'static str,
    pub(crate) content_type: &'static str,
    pub(crate) body: Vec<u8>,
}

/// What the clients have seen.
#[derive(Debug, Default)]
struct Seen {
    answers: AtomicU64,
    failures: Mutex<Vec<String>>,
}

/// Clients at work, until they are stopped.
pub(crate) struct Load {
    stop: Arc<AtomicBool>,
    seen: Arc<Seen>,
    clients: Vec<JoinHandle<()>>,
}

impl Load {
    pub(crate) fn start(question: &Question, clients: usize) -> Self {
        let (stop, seen) = (Arc::<AtomicBool>::default(), Arc::<Seen>::default());
        let client = |_| {
            let (question, stop, seen) = (question.clone(), Arc::clone(&stop), Arc::clone(&seen));
            std::thread::spawn(move || ask_on(&question, &stop, &seen))
        };
        let clients = (0..clients).map(client).collect();
        Self { stop, seen, clients }
    }

    /// Lets each client end its request. Returns how many had an answer, and what the others had instead.
    pub(crate) fn stop(mut self) -> Outcome<(u64, Vec<String>)> {
        self.stop.store(true, Ordering::Relaxed);
        for client in std::mem::take(&mut self.clients) {
            client.join().map_err(|_| Failure::new("a client panicked"))?;
        }
        let failures = self.seen.failures.lock().unwrap_or_else(PoisonError::into_inner).clone();
        Ok((self.seen.answers.load(Ordering::Relaxed), failures))
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

fn ask_on(question: &Question, stop: &AtomicBool, seen: &Seen) {
    let mut kept = None;
    while !stop.load(Ordering::Relaxed) {
        match ask(question, &mut kept) {
            Ok(answer) if answer.status == 200 => {
                seen.answers.fetch_add(1, Ordering::Relaxed);
            }
            Ok(answer) => seen.fail(format!("{} {}", answer.status, answer.text())),
            Err(error) => seen.fail(error.to_string()),
        }
    }
}

fn ask(question: &Question, kept: &mut Option<Connection>) -> std::io::Result<Answer> {
    // A client may notice before it sends that the server has closed.
    let open = kept.take().filter(|connection| !connection.was_closed());
    let mut connection = match open {
        Some(connection) => connection,
        None => Connection::open(SocketAddr::from(question.address))?,
    };
    let answer = connection.send(&[("content-type", question.content_type)], "POST", question.path, &question.body)?;
    *kept = Some(connection).filter(|_| !answer.closes);
    Ok(answer)
}

impl Seen {
    fn fail(&self, what: String) {
        self.failures.lock().unwrap_or_else(PoisonError::into_inner).push(what);
        std::thread::sleep(AFTER_FAILURE);
    }
}
