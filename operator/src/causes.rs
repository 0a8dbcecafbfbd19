//! An error as one line of text, for logs and for people.

use std::{error::Error, net::SocketAddr};

use k8s_openapi::jiff::Timestamp;

/// An error and what caused it. `Display` of ours leaves out the cause, and the logs' JSON has nothing but that; others, such as
/// kube, may name theirs, which is not told twice.
#[must_use]
pub fn chain(error: &(dyn Error + 'static)) -> String {
    let (mut text, mut cause) = (error.to_string(), error.source());
    while let Some(error) = cause {
        let told = error.to_string();
        if !text.ends_with(&told) {
            text = format!("{text}: {told}");
        }
        cause = error.source();
    }
    text
}

/// A message without what is another each time it is told: the port of the connection that failed, the time, and what was made up for
/// this one try. A status that told of these would be another one at each try, and wake whoever watches it, ourselves as well.
#[must_use]
pub fn lasting(message: &str) -> String {
    let mut before = "";
    let words = message.split(' ').map(|word| {
        let last = std::mem::replace(&mut before, word).trim_matches(|letter: char| !letter.is_ascii_alphanumeric());
        let names_it = NAMED.iter().any(|name| name.eq_ignore_ascii_case(last));
        let is_between = |letter: char| !letter.is_ascii_alphanumeric() && !['-', ':', '.', '+'].contains(&letter);
        let bare = word.trim_end_matches([':', '.']).trim_matches(is_between);
        if names_it && is_made_up(bare) {
            return word.replace(bare, "…");
        }
        let addresses =
            word.split_once("->").filter(|(from, to)| is_address(from) && is_address(to.trim_end_matches(':')));
        let word = addresses.map_or(word, |(_, to)| to);
        match word.split_once("&time=") {
            Some((before, after)) => {
                let end = after.find(['&', '"']).unwrap_or(after.len());
                format!("{before}{}", &after[end..])
            }
            None => word.to_owned(),
        }
    });
    words.collect::<Vec<_>>().join(" ")
}

/// What is said before the name of something that is made for one try, and before the time of it. Elsewhere a digest, an id or a time is
/// what the message is about.
const NAMED: [&str; 7] = ["sandbox", "container", "request", "requestid", "id", "uid", "time"];

fn is_address(text: &str) -> bool {
    text.parse::<SocketAddr>().is_ok()
}

/// Whether it is an id or a time.
fn is_made_up(word: &str) -> bool {
    let digits = |text: &str| text.len() >= 32 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
    let is_uuid = word.len() == 36 && word.split('-').map(str::len).eq([8, 4, 4, 4, 12]);
    digits(word) || (is_uuid && digits(&word.replace('-', ""))) || word.parse::<Timestamp>().is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_another_each_time_is_left_out() {
        for (message, lasts) in [
            ("read tcp 10.0.0.1:43210->10.0.0.2:443: i/o timeout", "read tcp 10.0.0.2:443: i/o timeout"),
            (
                "Get \"http://prometheus:9090/api/v1/query?query=sum&time=2026-01-01T00:00:00Z\": no such host",
                "Get \"http://prometheus:9090/api/v1/query?query=sum\": no such host",
            ),
            ("q?a=1&time=1&b=2 x", "q?a=1&b=2 x"),
            ("no pods returned by selector", "no pods returned by selector"),
            (
                "for sandbox \"7d1b3c5a7d1b3c5a7d1b3c5a7d1b3c5a7d1b3c5a7d1b3c5a7d1b3c5a7d1b3c5a\": no network",
                "for sandbox \"…\": no network",
            ),
            ("expired: current time 2026-01-02T03:04:05Z is after 2025", "expired: current time … is after 2025"),
            ("(request 0c9a41a2-8a3b-4a57-9d3e-0123456789ab) denied", "(request …) denied"),
            ("403, RequestID: 0c9a41a2-8a3b-4a57-9d3e-0123456789ab, denied", "403, RequestID: …, denied"),
            ("expected 7d1b3c5a7d1b3c5a7d1b3c5a7d1b3c5a", "expected 7d1b3c5a7d1b3c5a7d1b3c5a7d1b3c5a"),
            ("rename /a -> /b: label team->owner is missing", "rename /a -> /b: label team->owner is missing"),
        ] {
            assert_eq!(lasting(message), lasts);
        }
    }

    #[derive(Debug, thiserror::Error)]
    enum Spilt {
        #[error("no coffee")]
        Silent(#[source] Box<Spilt>),
        #[error("the cup fell: {0}")]
        Talking(#[source] Box<Spilt>),
        #[error("the floor is wet")]
        First,
    }

    #[test]
    fn each_cause_is_told_once() {
        let talking = Spilt::Talking(Box::new(Spilt::First));
        assert_eq!(chain(&talking), "the cup fell: the floor is wet");
        assert_eq!(chain(&Spilt::Silent(Box::new(talking))), "no coffee: the cup fell: the floor is wet");
    }
}
