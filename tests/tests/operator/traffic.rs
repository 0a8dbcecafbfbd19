//! Steady clients that keep their connections, as most do.

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use crate::fixture::Outcome;
use crate::models;
use crate::web::{Answer, Connection};

/// Between two requests of a client, for each client that there is: all of them together ask as often, however many they are.
const PAUSE: Duration = Duration::from_millis(10);

/// What the clients have seen.
#[derive(Debug, Default, Clone)]
pub(crate) struct Seen {
    /// Good answers, by what they were.
    pub(crate) answers: BTreeMap<String, u64>,
    /// Connections that were made.
    pub(crate) connections: u64,
    /// Whatever a client may complain of.
    pub(crate) failures: Vec<String>,
}

/// Clients at work, until they are stopped.
pub(crate) struct Traffic {
    stop: Arc<AtomicBool>,
    seen: Arc<Mutex<Seen>>,
    clients: Vec<JoinHandle<()>>,
}

impl Traffic {
    pub(crate) fn start(address: (IpAddr, u16), clients: usize) -> Self {
        let (stop, seen) = (Arc::<AtomicBool>::default(), Arc::<Mutex<Seen>>::default());
        let client = |_| {
            let (stop, seen) = (Arc::clone(&stop), Arc::clone(&seen));
            let pause = PAUSE * u32::try_from(clients).unwrap_or(u32::MAX);
            std::thread::spawn(move || ask_on(address.into(), pause, &stop, &seen))
        };
        let clients = (0..clients).map(client).collect();
        Self { stop, seen, clients }
    }

    /// Lets each client end its request.
    pub(crate) fn stop(self) -> Outcome<Seen> {
        self.stop.store(true, Ordering::Relaxed);
        let seen = Arc::clone(&self.seen);
        for client in self.clients {
            client.join().map_err(|_| crate::fixture::Failure::new("a client panicked"))?;
        }
        Ok(seen.lock().unwrap_or_else(PoisonError::into_inner).clone())
    }
}

fn ask_on(address: SocketAddr, pause: Duration, stop: &AtomicBool, seen: &Mutex<Seen>) {
    let question = models::question();
    let mut kept: Option<Connection> = None;
    while !stop.load(Ordering::Relaxed) {
        // A client may notice before it sends that the server has closed; what happens to a request it has sent counts.
        let open = kept.take().filter(|connection| !connection.was_closed());
        let is_new = open.is_none();
        let asked = open.map_or_else(|| Connection::open(address), Ok).and_then(|mut connection| {
            let answer = connection.ask("POST", models::QUESTION_PATH, &question)?;
            kept = Some(connection).filter(|_| !answer.closes);
            Ok(answer)
        });
        seen.lock().unwrap_or_else(PoisonError::into_inner).count(is_new, asked);
        std::thread::sleep(pause);
    }
}

impl Seen {
    fn count(&mut self, is_new: bool, asked: io::Result<Answer>) {
        self.connections += u64::from(is_new);
        let connection = if is_new { "a new connection" } else { "a kept connection" };
        match asked {
            Ok(answer) if answer.status == 200 => {
                *self.answers.entry(format!("{:?}", models::numbers(&answer.json()))).or_default() += 1;
            }
            Ok(answer) => self.failures.push(format!("{connection}: {} {}", answer.status, answer.text())),
            Err(error) => self.failures.push(format!("{connection}: {error}")),
        }
    }
}
