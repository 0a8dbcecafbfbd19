//! Alerts about the consumers of events: a collector of traces that comes and goes, until it stays.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use serde_json::json;

use crate::clients::{Clients, Question, of, serve, serving};
use crate::fixture::Outcome;
use crate::space::Space;

/// A collector that comes and goes is there for so long, and away for so long: long enough to be cut off each time.
const TURN: Duration = Duration::from_secs(5);

/// A server of this machine that takes what is posted to it, at first only now and then. It ends with the tests.
struct Collector {
    address: SocketAddr,
    works: Arc<AtomicBool>,
}

impl Collector {
    fn start(address: Ipv4Addr) -> Outcome<Self> {
        let listener = TcpListener::bind((address, 0))?;
        let address = listener.local_addr()?;
        let works = Arc::<AtomicBool>::default();
        let (seen, begun) = (Arc::clone(&works), Instant::now());
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let is_there = begun.elapsed().as_secs() / TURN.as_secs() % 2 == 1;
                let takes = seen.load(Ordering::Relaxed) || is_there;
                // A client that has gone is none of ours.
                let _ = answer(stream, if takes { "200 OK" } else { "503 Service Unavailable" });
            }
        });
        Ok(Self { address, works })
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

pub(crate) async fn comes_and_goes(space: &Space) -> Outcome {
    let collector = Collector::start(space.cluster().machine_address()?)?;
    let env = json!([{"name": "OTEL_EXPORTER_OTLP_ENDPOINT", "value": format!("http://{}", collector.address)}]);
    let address = serve(space, &serving("traced", "tiny", &json!({}), &json!({"server": {"env": env}}))).await?;
    let clients = Clients::start(address, 1, &Question::of("tiny", [1, 2, 3]).traced());
    let trace = format!("{}, consumer=\"trace\"", of(space));
    for alert in ["OrtolanEventConsumerCutOff", "OrtolanEventsDropped"] {
        space.stage.fires(alert, &trace).await?;
    }
    collector.works.store(true, Ordering::Relaxed);
    for alert in ["OrtolanEventConsumerCutOff", "OrtolanEventsDropped"] {
        space.stage.ends(alert, &trace).await?;
    }
    clients.stop("clients whose traces were lost")
}
