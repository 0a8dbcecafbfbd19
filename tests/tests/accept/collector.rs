//! Alerts about the consumers of events: a collector of traces that is away, one that fails now and then, and one that works again.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::time::Duration;

use serde_json::json;

use crate::clients::{Clients, Question, of, serve, serving};
use crate::fixture::Outcome;
use crate::space::Space;

/// How a collector answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mood {
    /// It takes nothing.
    Refuses,
    /// Every other time it takes nothing.
    Wavers,
    /// It takes everything.
    Works,
}

/// A server of this machine that takes what is posted to it. It ends with the tests.
struct Collector {
    address: SocketAddr,
    mood: Arc<AtomicU8>,
}

impl Collector {
    fn start(address: Ipv4Addr) -> Outcome<Self> {
        let listener = TcpListener::bind((address, 0))?;
        let address = listener.local_addr()?;
        let mood = Arc::new(AtomicU8::new(Mood::Refuses as u8));
        let (seen, asked) = (Arc::clone(&mood), AtomicU64::new(0));
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let turn = asked.fetch_add(1, Ordering::Relaxed);
                let mood = seen.load(Ordering::Relaxed);
                let takes = mood == Mood::Works as u8 || (mood == Mood::Wavers as u8 && turn % 2 == 1);
                // A client that has gone is none of ours.
                let _ = answer(stream, if takes { "200 OK" } else { "503 Service Unavailable" });
            }
        });
        Ok(Self { address, mood })
    }

    fn turn(&self, mood: Mood) {
        self.mood.store(mood as u8, Ordering::Relaxed);
    }
}

/// Reads a request, and answers it without a word.
fn answer(stream: TcpStream, status: &str) -> std::io::Result<()> {
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    let mut stream = BufReader::new(stream);
    let mut length = 0;
    loop {
        let mut line = String::new();
        stream.read_line(&mut line)?;
        let Some((name, value)) = line.trim_end().split_once(':') else {
            // The first line has no colon, and the last has nothing.
            if line.trim_end().is_empty() {
                break;
            }
            continue;
        };
        if name.eq_ignore_ascii_case("content-length") {
            length = value.trim().parse().map_err(std::io::Error::other)?;
        }
    }
    std::io::copy(&mut stream.by_ref().take(length), &mut std::io::sink())?;
    write!(stream.get_mut(), "HTTP/1.1 {status}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")
}

pub(crate) async fn fails(space: &Space) -> Outcome {
    let collector = Collector::start(space.cluster().machine_address()?)?;
    let env = json!([{"name": "OTEL_EXPORTER_OTLP_ENDPOINT", "value": format!("http://{}", collector.address)}]);
    let address = serve(space, &serving("traced", "tiny", &json!({}), &json!({"server": {"env": env}}))).await?;
    let clients = Clients::start(address, 1, &Question::of("tiny", [1, 2, 3]).traced());
    let trace = format!("{}, consumer=\"trace\"", of(space));
    space.stage.fires("OrtolanEventConsumerCutOff", &trace).await?;
    collector.turn(Mood::Wavers);
    space.stage.fires("OrtolanEventsDropped", &trace).await?;
    space.stage.ends("OrtolanEventConsumerCutOff", &trace).await?;
    collector.turn(Mood::Works);
    space.stage.ends("OrtolanEventsDropped", &trace).await?;
    clients.stop("clients whose traces were lost")
}
