//! Which trace a request belongs to.

use std::{
    collections::HashMap,
    fmt,
    sync::atomic::{AtomicU64, Ordering},
};

use axum::http::{HeaderMap, HeaderName};
use opentelemetry::{Context, baggage::BaggageExt as _, propagation::TextMapPropagator as _};
use opentelemetry_sdk::propagation::BaggagePropagator;

use super::otel::Sampling;

const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");

/// A piece of work in a trace that is recorded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Span {
    /// The trace.
    pub trace: TraceId,
    /// The piece of work.
    pub id: u64,
    /// What it is a part of; 0 for the first of its trace.
    pub parent: u64,
}

/// A trace's id, written as 32 hexadecimal digits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TraceId(pub u128);

impl fmt::Display for TraceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

impl Span {
    /// The first of a new trace.
    #[must_use]
    pub fn root() -> Self {
        // Not secrets, and never 0, which says that there is none.
        Self { trace: TraceId(fastrand::u128(1..)), id: fastrand::u64(1..), parent: 0 }
    }

    /// A part of this one.
    #[must_use]
    pub fn child(self) -> Self {
        Self { trace: self.trace, id: fastrand::u64(1..), parent: self.id }
    }
}

/// Decides which requests are traced: those whose caller says so, and a share of those whose caller says nothing.
#[derive(Debug)]
pub struct Sampler {
    /// The bits of a number from 0 to 1.
    share: AtomicU64,
    follows_callers: bool,
}

impl Sampler {
    /// One that goes by these terms.
    #[must_use]
    pub fn new(sampling: Sampling) -> Self {
        let Sampling { share, follows_callers } = sampling;
        Self { share: AtomicU64::new(share.to_bits()), follows_callers }
    }

    /// The share of those whose caller says nothing.
    #[must_use]
    pub fn share(&self) -> f64 {
        f64::from_bits(self.share.load(Ordering::Relaxed))
    }

    /// Another share.
    pub fn set_share(&self, share: f64) {
        self.share.store(share.to_bits(), Ordering::Relaxed);
    }

    /// The span of a request, where it is traced.
    #[must_use]
    pub fn begin(&self, headers: &HeaderMap) -> Option<Span> {
        match caller(headers) {
            Some(caller) if self.follows_callers => caller.is_sampled.then(|| continued(&caller)),
            Some(caller) => Some(continued(&caller)).filter(|span| self.takes(span.trace)),
            None => (fastrand::f64() < self.share()).then(Span::root),
        }
    }
}

impl Sampler {
    /// Whether a trace is among the share: by its id, and as OpenTelemetry's SDK reckons, so that all who look at the share
    /// alone agree.
    fn takes(&self, trace: TraceId) -> bool {
        let share = self.share();
        // The low half of the id, less its last bit.
        let place = u64::try_from(trace.0 & u128::from(u64::MAX)).unwrap_or(u64::MAX) >> 1;
        share >= 1.0 || place < (share.max(0.0) * 2_f64.powi(63)) as u64
    }
}

/// The trace that a request's caller names, whether it is recorded or not.
#[must_use]
pub fn trace_id(headers: &HeaderMap) -> Option<TraceId> {
    caller(headers).map(|caller| continued(&caller).trace)
}

fn continued(caller: &Named) -> Span {
    Span { trace: caller.trace, id: fastrand::u64(1..), parent: caller.parent }
}

/// What a request's caller says of itself.
struct Named {
    trace: TraceId,
    parent: u64,
    is_sampled: bool,
}

/// W3C Trace Context, level 1: what is not written as it says is as good as nothing.
fn caller(headers: &HeaderMap) -> Option<Named> {
    let mut lines = headers.get_all(&TRACEPARENT).iter();
    let (Some(line), None) = (lines.next(), lines.next()) else { return None };
    let mut fields = line.to_str().ok()?.split('-');
    let version = hex(fields.next()?, 2)?;
    let (trace, parent) = (hex(fields.next()?, 32)?, hex(fields.next()?, 16)?);
    let flags = hex(fields.next()?, 2)?;
    // A later version may say more.
    let is_known = version != 0xff && (version != 0 || fields.next().is_none());
    let parent = u64::try_from(parent).ok()?;
    (is_known && trace != 0 && parent != 0).then_some(Named {
        trace: TraceId(trace),
        parent,
        is_sampled: flags & 1 == 1,
    })
}

/// A number of exactly so many digits, in lower case.
fn hex(text: &str, digits: usize) -> Option<u128> {
    let is_digit = |byte: u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
    if text.len() != digits || !text.bytes().all(is_digit) {
        return None;
    }
    u128::from_str_radix(text, 16).ok()
}

/// What the systems before us say of the trace, to be passed on as it is.
#[must_use]
pub fn trace_state(headers: &HeaderMap) -> Option<String> {
    caller(headers).and_then(|_| joined(headers, "tracestate"))
}

/// The lines of a list in one, as HTTP has it.
fn joined(headers: &HeaderMap, name: &str) -> Option<String> {
    let lines: Vec<&str> = headers.get_all(name).iter().filter_map(|line| line.to_str().ok()).collect();
    (!lines.is_empty()).then(|| lines.join(","))
}

/// The values of these keys in W3C Baggage.
#[must_use]
pub fn baggage(headers: &HeaderMap, keys: &[String]) -> Vec<(String, String)> {
    let line: HashMap<String, String> =
        joined(headers, "baggage").map(|line| ("baggage".to_owned(), line)).into_iter().collect();
    let context = BaggagePropagator::new().extract_with_context(&Context::new(), &line);
    let value = |key: &String| Some((key.clone(), context.baggage().get(key)?.to_string()));
    keys.iter().filter_map(value).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sampler(share: f64) -> Sampler {
        Sampler::new(Sampling { share, follows_callers: true })
    }

    fn headers(traceparent: &str) -> HeaderMap {
        [("traceparent".parse().unwrap(), traceparent.parse().unwrap())].into_iter().collect()
    }

    #[test]
    fn a_caller_who_says_so_is_followed_whatever_the_share() {
        let headers = |flags: &str| headers(&format!("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-{flags}"));
        let span = sampler(0.0).begin(&headers("01")).unwrap();
        assert_eq!(span.trace.to_string(), "0af7651916cd43dd8448eb211c80319c");
        assert_eq!(format!("{:016x}", span.parent), "b7ad6b7169203331");
        assert!(span.id != 0 && span.id != span.parent);
        assert_eq!(sampler(1.0).begin(&headers("00")), None);
        assert_eq!(trace_id(&headers("00")), Some(span.trace));
    }

    #[test]
    fn a_header_that_is_none_is_as_good_as_none() {
        const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
        const SPAN: &str = "b7ad6b7169203331";
        let wrong = [
            String::new(),
            "00-0-0-01".to_owned(),
            "ff-x-y-z".to_owned(),
            format!("00-{}-{SPAN}-01", "0".repeat(32)),
            format!("00-{TRACE}-{}-01", "0".repeat(16)),
            format!("ff-{TRACE}-{SPAN}-01"),
            format!("00-{}-{SPAN}-01", &TRACE[1..]),
            format!("00-+{}-{SPAN}-01", &TRACE[1..]),
            format!("00-{TRACE}-{}-01", &SPAN[1..]),
            format!("00-{TRACE}-{SPAN}-1"),
            format!("0-{TRACE}-{SPAN}-01"),
            format!("00-{TRACE}-{SPAN}-01-more"),
            format!("00-{}-{SPAN}-01", TRACE.to_uppercase()),
        ];
        for wrong in wrong.iter().map(String::as_str) {
            assert_eq!(trace_id(&headers(wrong)), None, "{wrong}");
            assert!(sampler(1.0).begin(&headers(wrong)).is_some_and(|span| span.parent == 0), "{wrong}");
        }
    }

    #[test]
    fn a_later_version_may_say_more_and_two_headers_say_nothing() {
        let later = headers("01-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-more");
        assert!(trace_id(&later).is_some());
        let mut twice = headers("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01");
        assert!(trace_id(&twice).is_some());
        twice.append("traceparent", twice["traceparent"].clone());
        assert_eq!(trace_id(&twice), None);
    }

    #[test]
    fn the_trace_s_state_is_that_of_all_lines_and_needs_a_trace() {
        let mut headers = headers("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01");
        assert_eq!(trace_state(&headers), None);
        headers.append("tracestate", "blue=1".parse().unwrap());
        headers.append("tracestate", "red=2".parse().unwrap());
        assert_eq!(trace_state(&headers).as_deref(), Some("blue=1,red=2"));
        headers.remove("traceparent");
        assert_eq!(trace_state(&headers), None);
    }

    #[test]
    fn a_share_of_the_others_is_traced() {
        let sampler = sampler(0.1);
        let traced = (0..10_000).filter(|_| sampler.begin(&HeaderMap::new()).is_some()).count();
        assert!((700..1300).contains(&traced), "{traced}");
    }

    #[test]
    fn where_callers_have_no_say_the_trace_s_id_decides() {
        let headers = |id: &str| headers(&format!("00-0af7651916cd43dd{id}-b7ad6b7169203331-00"));
        let sampler = Sampler::new(Sampling { share: 0.5, follows_callers: false });
        assert!(sampler.begin(&headers("7fffffffffffffff")).is_some_and(|span| span.parent != 0));
        assert_eq!(sampler.begin(&headers("8000000000000000")), None);
        sampler.set_share(1.0);
        assert!(sampler.begin(&headers("ffffffffffffffff")).is_some());
        sampler.set_share(0.0);
        assert_eq!(sampler.begin(&headers("0000000000000001")), None);
    }

    #[test]
    fn a_share_is_what_the_sdk_of_a_caller_makes_of_it() {
        use opentelemetry::trace::SpanKind;
        use opentelemetry_sdk::trace::{Sampler as Theirs, SamplingDecision, ShouldSample as _};

        for share in [0.0, 0.01, 0.3, 0.999, 1.0] {
            let ours = Sampler::new(Sampling { share, follows_callers: false });
            for _ in 0..1000 {
                let trace = fastrand::u128(1..);
                let theirs = Theirs::TraceIdRatioBased(share);
                let theirs = theirs.should_sample(None, trace.into(), "request", &SpanKind::Server, &[], &[]).decision;
                assert_eq!(ours.takes(TraceId(trace)), theirs == SamplingDecision::RecordAndSample, "{trace:032x}");
            }
        }
    }

    #[test]
    fn baggage_is_kept_by_key() {
        let headers =
            [("baggage".parse().unwrap(), "tenant=blue%20one,secret=x".parse().unwrap())].into_iter().collect();
        let kept = baggage(&headers, &["tenant".to_owned(), "missing".to_owned()]);
        assert_eq!(kept, [("tenant".to_owned(), "blue one".to_owned())]);
    }
    #[test]
    fn lines_of_baggage_are_one_list() {
        let lines = ["tenant=blue", "team=red"].map(|line| ("baggage".parse().unwrap(), line.parse().unwrap()));
        let mut headers = HeaderMap::new();
        lines.into_iter().for_each(|(name, line): (HeaderName, axum::http::HeaderValue)| {
            headers.append(name, line);
        });
        let kept = baggage(&headers, &["tenant".to_owned(), "team".to_owned()]);
        assert_eq!(kept.iter().map(|(_, value)| value.as_str()).collect::<Vec<_>>(), ["blue", "red"]);
    }
}
