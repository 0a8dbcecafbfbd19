//! What the pod answers to `GET /load`: the few numbers that autoscaling reads. Here because the pod writes them and the operator
//! reads them, and the two may be of different versions.
//!
//! Nothing in it is an average: whoever reads takes the difference of two readings, over whatever time lies between them.
//!
//! ```text
//! samples that waited, on average   Δ queued_sample_seconds ÷ Δ uptime_seconds
//! requests refused in a second      Δ refused_total ÷ Δ uptime_seconds
//! share of the answers in time      Δ within_total ÷ (Δ answered_total + Δ expired_total)
//! ```
//!
//! What is missing is read as its default and what is unknown is ignored, so that an older or a newer pod can be read.

use serde::{Deserialize, Serialize};

/// Where it is answered: on the admin port only.
pub const PATH: &str = "/load";

/// The parameter of the query that asks for [`ModelLoad::within_total`]: whole milliseconds, within [`WITHIN_MS`].
pub const WITHIN: &str = "within_ms";

/// Latencies that can be asked about: 1 ms to 10 min.
pub const WITHIN_MS: std::ops::RangeInclusive<u64> = 1..=600_000;

/// What a pod has to do, and has done since it began.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Load {
    /// When the process began, RFC 3339. Never another text while the process lives: where it differs from that of the reading
    /// before, all counters and integrals have begun anew.
    pub started: String,
    /// From the process's begin to these numbers, by its monotonic clock. What the integrals and counters are divided by.
    pub uptime_seconds: f64,
    /// It was told to stop. It still serves, and gets no new connections from its Service.
    pub draining: bool,
    /// Requests that it decodes at once, those of all models together: of [`ModelLoad::decoding`] the others wait. 0 where that is not
    /// known.
    pub decoders: u64,
    /// The models that are loaded, by name.
    pub models: Vec<ModelLoad>,
}

/// What a model of a pod has to do, and has done. Totals and integrals count from the begin of the process and never fall.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct ModelLoad {
    /// Its name.
    pub name: String,
    /// Requests that have come in whole and are being decoded now, or wait for it. Their samples wait once they are decoded.
    pub decoding: u64,
    /// Samples that wait now.
    pub queued: u64,
    /// Samples that run now, on all of its instances together.
    pub inflight: u64,
    /// Integral of the requests that are being decoded over time, up to now; see [`Self::queued_sample_seconds`].
    pub decoding_request_seconds: f64,
    /// Integral of the waiting samples over time, up to now: the difference of two readings divided by the time between them
    /// is the exact average between them, however seldom one looks.
    pub queued_sample_seconds: f64,
    /// The same of the samples that run.
    pub inflight_sample_seconds: f64,
    /// Requests that were refused because the queue was full, or the predicted wait too long.
    pub refused_total: u64,
    /// Requests that were answered with a prediction.
    pub answered_total: u64,
    /// Those of them whose latency, from the headers to the answer, was at most the one asked about, right to 1 % of it. `None`
    /// where nobody asked.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub within_total: Option<u64>,
    /// Requests that passed their deadline: late, whatever is aimed at.
    pub expired_total: u64,
    /// Instances that work; one that was given up does not count.
    pub instances: u64,
    /// How long loading and warming up took.
    pub load_seconds: f64,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load() -> Load {
        let model = ModelLoad {
            name: "espresso".to_owned(),
            decoding: 2,
            queued: 3,
            inflight: 8,
            decoding_request_seconds: 4.5,
            queued_sample_seconds: 12.5,
            inflight_sample_seconds: 99.25,
            refused_total: 7,
            answered_total: 1000,
            within_total: Some(990),
            expired_total: 3,
            instances: 2,
            load_seconds: 1.75,
        };
        let tea = ModelLoad { name: "tea".to_owned(), ..ModelLoad::default() };
        Load {
            started: "2026-03-01T12:00:00.5Z".to_owned(),
            uptime_seconds: 60.5,
            draining: true,
            decoders: 2,
            models: vec![model, tea],
        }
    }

    #[test]
    fn what_is_written_is_read_again() {
        let text = serde_json::to_string(&load()).unwrap();
        assert_eq!(serde_json::from_str::<Load>(&text).unwrap(), load());
        assert_eq!(text.matches("within_total").count(), 1, "only where it was asked for: {text}");
    }

    #[test]
    fn what_a_newer_pod_says_beyond_it_is_ignored_and_what_an_older_one_lacks_is_zero() {
        let newer =
            r#"{"started": "then", "zone": {"a": 1}, "models": [{"name": "tea", "queued": 4, "shards": [1, 2]}]}"#;
        let tea = ModelLoad { name: "tea".to_owned(), queued: 4, ..ModelLoad::default() };
        let wanted = Load { started: "then".to_owned(), models: vec![tea], ..Load::default() };
        assert_eq!(serde_json::from_str::<Load>(newer).unwrap(), wanted);
        assert_eq!(serde_json::from_str::<Load>("{}").unwrap(), Load::default());
    }
}
