//! OpenTelemetry's own variables, as its specification has them. Pure: the environment is an argument.

use std::time::Duration;

/// A collector that takes longer is none, where nobody says otherwise.
const TIMEOUT: Duration = Duration::from_secs(5);

/// The form that spans are sent in.
const PROTOCOL: &str = "http/protobuf";

/// Where spans go, and whose.
#[derive(Debug, Clone, PartialEq)]
pub struct Tracing {
    /// URL that takes spans.
    pub url: String,
    /// A collector that takes longer is none.
    pub timeout: Duration,
    /// Which requests are traced.
    pub sampling: Sampling,
}

/// Which requests are traced.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sampling {
    /// Share of those whose caller has no say.
    pub share: f64,
    /// Whether a caller has one: by the flag of its `traceparent`.
    pub follows_callers: bool,
}

/// What of the variables cannot be done.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{variable}: expected {PROTOCOL}, the only form that spans are sent in, got {got:?}")]
pub struct OtherProtocol {
    variable: &'static str,
    got: String,
}

/// Where spans go; `None` where nobody wants any. The config's endpoint wins over those of the variables, the variables'
/// sampler over the config's share. What is wrong with a variable that has a default is put into `faults`.
///
/// # Errors
/// [`OtherProtocol`].
pub fn tracing(
    endpoint: Option<String>,
    share: f64,
    variable: impl Fn(&str) -> Option<String>,
    faults: &mut Vec<String>,
) -> Result<Option<Tracing>, OtherProtocol> {
    let is_off = variable("OTEL_SDK_DISABLED").is_some_and(|off| off.trim().eq_ignore_ascii_case("true"));
    let below = |base: String| format!("{}/v1/traces", base.trim_end_matches('/'));
    let url = endpoint
        .map(below)
        .or_else(|| variable("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"))
        .or_else(|| variable("OTEL_EXPORTER_OTLP_ENDPOINT").map(below));
    let Some(url) = url.filter(|_| !is_off) else { return Ok(None) };
    for name in ["OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL"] {
        match variable(name) {
            Some(got) if got.trim() != PROTOCOL => return Err(OtherProtocol { variable: name, got }),
            // The one for traces alone decides.
            Some(_) => break,
            None => {}
        }
    }
    Ok(Some(Tracing { url, timeout: timeout(&variable, faults), sampling: sampling(share, &variable, faults) }))
}

fn timeout(variable: impl Fn(&str) -> Option<String>, faults: &mut Vec<String>) -> Duration {
    let named = |name: &'static str| variable(name).map(|text| (name, text));
    let written = named("OTEL_EXPORTER_OTLP_TRACES_TIMEOUT").or_else(|| named("OTEL_EXPORTER_OTLP_TIMEOUT"));
    let Some((name, text)) = written else { return TIMEOUT };
    match text.trim().parse() {
        Ok(millis) if millis > 0 => Duration::from_millis(millis),
        _ => {
            faults.push(format!("{name}: expected milliseconds, got {text:?}; it is {} ms", TIMEOUT.as_millis()));
            TIMEOUT
        }
    }
}

fn sampling(share: f64, variable: impl Fn(&str) -> Option<String>, faults: &mut Vec<String>) -> Sampling {
    const NAME: &str = "OTEL_TRACES_SAMPLER";
    const ARGUMENT: &str = "OTEL_TRACES_SAMPLER_ARG";
    let Some(name) = variable(NAME) else { return Sampling { share, follows_callers: true } };
    let (base, follows_callers) =
        name.trim().strip_prefix("parentbased_").map_or((name.trim(), false), |base| (base, true));
    let share = match base {
        "always_on" => 1.0,
        "always_off" => 0.0,
        "traceidratio" => match variable(ARGUMENT).map(|text| (text.trim().parse::<f64>(), text)) {
            None => 1.0,
            Some((Ok(share), _)) if (0.0..=1.0).contains(&share) => share,
            Some((_, text)) => {
                faults.push(format!("{ARGUMENT}: expected a share from 0 to 1, got {text:?}; it is 1"));
                1.0
            }
        },
        _ => {
            faults.push(format!("{NAME}: no such sampler here, got {name:?}; the config's share is taken"));
            return Sampling { share, follows_callers: true };
        }
    };
    Sampling { share, follows_callers }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GENERAL: (&str, &str) = ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://general:4318/");
    const OWN: (&str, &str) = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "http://own:4318/spans");

    fn read(
        endpoint: Option<&str>,
        variables: &[(&str, &str)],
    ) -> (Result<Option<Tracing>, OtherProtocol>, Vec<String>) {
        let mut faults = Vec::new();
        let variable =
            |name: &str| variables.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned());
        let read = tracing(endpoint.map(str::to_owned), 0.25, variable, &mut faults);
        (read, faults)
    }

    fn url(endpoint: Option<&str>, variables: &[(&str, &str)]) -> Option<String> {
        read(endpoint, variables).0.unwrap().map(|tracing| tracing.url)
    }

    #[test]
    fn the_config_s_endpoint_wins_then_the_one_of_traces_then_the_general_one() {
        let seen = |variables: &[(&str, &str)]| url(None, variables);
        assert_eq!(url(Some("http://ours:4318"), &[OWN, GENERAL]).as_deref(), Some("http://ours:4318/v1/traces"));
        assert_eq!(seen(&[GENERAL, OWN]).as_deref(), Some("http://own:4318/spans"), "as it stands");
        assert_eq!(seen(&[GENERAL]).as_deref(), Some("http://general:4318/v1/traces"));
        assert_eq!(seen(&[]), None);
    }

    #[test]
    fn the_switch_is_stronger_than_any_endpoint() {
        assert_eq!(url(Some("http://ours:4318"), &[("OTEL_SDK_DISABLED", "True")]), None);
        assert!(url(Some("http://ours:4318"), &[("OTEL_SDK_DISABLED", "false")]).is_some());
    }

    #[test]
    fn another_protocol_is_refused_where_spans_would_be_sent() {
        let grpc = ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc");
        let said = read(None, &[OWN, grpc]).0.unwrap_err().to_string();
        assert_eq!(
            said,
            "OTEL_EXPORTER_OTLP_PROTOCOL: expected http/protobuf, the only form that spans are sent in, got \"grpc\""
        );
        assert_eq!(read(None, &[grpc]).0, Ok(None));
        let own = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "http/protobuf");
        assert!(read(None, &[OWN, grpc, own]).0.is_ok());
    }

    #[test]
    fn a_sampler_is_a_share_and_whether_callers_have_a_say() {
        let argument = ("OTEL_TRACES_SAMPLER_ARG", "0.5");
        for (name, share, follows_callers) in [
            ("always_on", 1.0, false),
            ("always_off", 0.0, false),
            ("traceidratio", 0.5, false),
            ("parentbased_always_on", 1.0, true),
            ("parentbased_always_off", 0.0, true),
            ("parentbased_traceidratio", 0.5, true),
        ] {
            let (read, faults) = read(None, &[OWN, ("OTEL_TRACES_SAMPLER", name), argument]);
            assert_eq!(read.unwrap().unwrap().sampling, Sampling { share, follows_callers }, "{name}");
            assert!(faults.is_empty(), "{faults:?}");
        }
        let ours = Sampling { share: 0.25, follows_callers: true };
        assert_eq!(read(None, &[OWN, argument]).0.unwrap().unwrap().sampling, ours);
    }

    #[test]
    fn what_cannot_be_read_is_told_and_has_its_default() {
        let (own_name, ratio) = ("OTEL_TRACES_SAMPLER", "traceidratio");
        let (unknown, faults) = read(None, &[OWN, (own_name, "xray"), ("OTEL_EXPORTER_OTLP_TIMEOUT", "5s")]);
        let unknown = unknown.unwrap().unwrap();
        assert_eq!((unknown.sampling.share, unknown.timeout, faults.len()), (0.25, TIMEOUT, 2), "{faults:?}");
        let (wrong, faults) = read(None, &[OWN, (own_name, ratio), ("OTEL_TRACES_SAMPLER_ARG", "7")]);
        assert_eq!((wrong.unwrap().unwrap().sampling.share, faults.len()), (1.0, 1), "{faults:?}");
    }

    #[test]
    fn the_time_of_traces_alone_wins() {
        let general = ("OTEL_EXPORTER_OTLP_TIMEOUT", "1500");
        let seen = |variables: &[(&str, &str)]| read(None, variables).0.unwrap().unwrap().timeout;
        assert_eq!(seen(&[OWN, general]), Duration::from_millis(1500));
        assert_eq!(seen(&[OWN, general, ("OTEL_EXPORTER_OTLP_TRACES_TIMEOUT", "70")]), Duration::from_millis(70));
        assert_eq!(seen(&[OWN]), TIMEOUT);
    }
}
