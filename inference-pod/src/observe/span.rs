//! Which trace a request belongs to.

use std::{
    fmt,
    sync::atomic::{AtomicU64, Ordering},
};

use axum::http::HeaderMap;
use opentelemetry::{
    Context,
    baggage::BaggageExt as _,
    propagation::TextMapPropagator as _,
    trace::{SpanContext, TraceContextExt as _},
};
use opentelemetry_http::HeaderExtractor;
use opentelemetry_sdk::propagation::{BaggagePropagator, TraceContextPropagator};

use super::otel::Sampling;

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
            Some(caller) if self.follows_callers => caller.is_sampled().then(|| continued(&caller)),
            Some(caller) => Some(continued(&caller)).filter(|span| self.takes(span.trace)),
            None => (fastrand::f64() < self.share()).then(Span::root),
        }
    }
}

impl Sampler {
    /// Whether a trace is among the share: by its id, so that all who look at the share alone agree.
    fn takes(&self, trace: TraceId) -> bool {
        const BITS: u32 = 56;
        let place = trace.0 & ((1 << BITS) - 1);
        place < (self.share() * 2_f64.powi(BITS.cast_signed())) as u128
    }
}

/// The trace that a request's caller names, whether it is recorded or not.
#[must_use]
pub fn trace_id(headers: &HeaderMap) -> Option<TraceId> {
    caller(headers).map(|caller| continued(&caller).trace)
}

fn continued(caller: &SpanContext) -> Span {
    let (trace, parent) = (TraceId(u128::from_be_bytes(caller.trace_id().to_bytes())), caller.span_id().to_bytes());
    Span { trace, id: fastrand::u64(1..), parent: u64::from_be_bytes(parent) }
}

/// W3C Trace Context.
fn caller(headers: &HeaderMap) -> Option<SpanContext> {
    if !headers.contains_key("traceparent") {
        return None;
    }
    let context = TraceContextPropagator::new().extract_with_context(&Context::new(), &HeaderExtractor(headers));
    let caller = context.span().span_context().clone();
    caller.is_valid().then_some(caller)
}

/// The values of these keys in W3C Baggage.
#[must_use]
pub fn baggage(headers: &HeaderMap, keys: &[String]) -> Vec<(String, String)> {
    let context = BaggagePropagator::new().extract_with_context(&Context::new(), &HeaderExtractor(headers));
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
        for wrong in ["", "00-0-0-01", "00-00000000000000000000000000000000-b7ad6b7169203331-01", "ff-x-y-z"] {
            assert_eq!(trace_id(&headers(wrong)), None, "{wrong}");
            assert!(sampler(1.0).begin(&headers(wrong)).is_some_and(|span| span.parent == 0), "{wrong}");
        }
    }

    #[test]
    fn a_share_of_the_others_is_traced() {
        let sampler = sampler(0.1);
        let traced = (0..10_000).filter(|_| sampler.begin(&HeaderMap::new()).is_some()).count();
        assert!((700..1300).contains(&traced), "{traced}");
    }

    #[test]
    fn where_callers_have_no_say_the_trace_s_id_decides() {
        let headers = |id: &str| headers(&format!("00-0af7651916cd43dd84{id}-b7ad6b7169203331-00"));
        let sampler = Sampler::new(Sampling { share: 0.5, follows_callers: false });
        assert!(sampler.begin(&headers("7fffffffffffff")).is_some_and(|span| span.parent != 0));
        assert_eq!(sampler.begin(&headers("80000000000000")), None);
        sampler.set_share(1.0);
        assert!(sampler.begin(&headers("ffffffffffffff")).is_some());
    }

    #[test]
    fn baggage_is_kept_by_key() {
        let headers =
            [("baggage".parse().unwrap(), "tenant=blue%20one,secret=x".parse().unwrap())].into_iter().collect();
        let kept = baggage(&headers, &["tenant".to_owned(), "missing".to_owned()]);
        assert_eq!(kept, [("tenant".to_owned(), "blue one".to_owned())]);
    }
}
