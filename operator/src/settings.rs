//! How the operator is told what to do: flags, each also an environment variable.

use std::{convert::Infallible, net::SocketAddr};

use clap::{ArgAction, Parser};

use crate::{build::monitoring::Labels, causes::chain, logging, traces::Destination};

/// Turns InferenceModels into pods that serve them.
#[derive(Debug, Clone, Parser)]
#[command(name = "ortolan-operator", version)]
pub struct Settings {
    /// Namespace of the Lease by which one of several operators leads.
    #[arg(long, env = "POD_NAMESPACE", default_value = "default")]
    pub namespace: String,
    /// Name of this process in the Lease, different from that of every other.
    #[arg(long, env = "POD_NAME")]
    pub identity: String,
    /// The only namespace to act in; empty: all.
    #[arg(long, env = "WATCH_NAMESPACE", default_value = "")]
    pub watch_namespace: String,
    /// Image of the server, for models without an NVIDIA accelerator.
    #[arg(long, env = "POD_IMAGE")]
    pub pod_image: String,
    /// Image of the server, for models with one.
    #[arg(long, env = "POD_IMAGE_CUDA")]
    pub pod_image_cuda: String,
    /// When nodes pull these images.
    #[arg(long, env = "POD_IMAGE_PULL_POLICY", default_value = "IfNotPresent", value_parser = ["Always", "IfNotPresent", "Never"])]
    pub pod_image_pull_policy: String,
    /// Address of Prometheus as KEDA reaches it, for scaling in mode KEDA; empty: that mode is refused.
    #[arg(long, env = "PROMETHEUS_URL", default_value = "", value_parser = address)]
    pub prometheus_url: String,
    /// Labels by which a Prometheus selects ServiceMonitors and rules, for those that the operator makes: key=value, separated by
    /// commas.
    #[arg(long, env = "MONITORING_LABELS", default_value = "", value_parser = labels)]
    pub monitoring_labels: Labels,
    /// Name of the Lease.
    #[arg(long, env = "LEASE_NAME", default_value = "ortolan-operator")]
    pub lease_name: String,
    /// Address of /health, /ready, /metrics and /observability.
    #[arg(long, env = "LISTEN", default_value = "0.0.0.0:9090")]
    pub listen: SocketAddr,
    /// Base address of a collector of traces, which takes OTLP over HTTP (protobuf); empty: there are none.
    #[arg(long, env = "OTEL_EXPORTER_OTLP_ENDPOINT", default_value = "", value_parser = address)]
    pub tracing_endpoint: String,
    /// The whole address that traces are sent to, where it is another than /v1/traces of the base address.
    #[arg(long, env = "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", default_value = "", value_parser = web_address)]
    pub tracing_url: String,
    /// Share of the reconciles that are traced, from 0 to 1; left out: what OTEL_TRACES_SAMPLER says, else all.
    #[arg(long, env = "TRACING_SAMPLE", value_parser = share)]
    pub tracing_sample: Option<f64>,
    /// true: no traces, whatever else is said.
    #[arg(long, env = "OTEL_SDK_DISABLED", default_value = "false", action = ArgAction::Set, value_parser = is_true)]
    pub tracing_disabled: bool,
    /// A level (info) or a filter (info,ortolan_operator=debug).
    #[arg(long, env = "LOG_LEVEL", default_value = "info", value_parser = log_level)]
    pub log_level: String,
    /// Form of a log line.
    #[arg(long, env = "LOG_FORMAT", default_value = "json", value_parser = ["json", "plain"])]
    pub log_format: String,
}

impl Settings {
    /// The only namespace to act in, if there is one.
    #[must_use]
    pub fn only_namespace(&self) -> Option<String> {
        Some(self.watch_namespace.clone()).filter(|namespace| !namespace.is_empty())
    }

    /// The address of Prometheus, if one was told.
    #[must_use]
    pub fn prometheus(&self) -> Option<String> {
        Some(self.prometheus_url.clone()).filter(|url| !url.is_empty())
    }

    /// Where traces go, if there are any.
    #[must_use]
    pub fn traces(&self) -> Option<Destination> {
        if self.tracing_disabled {
            return None;
        }
        let of_base = || format!("{}/v1/traces", self.tracing_endpoint);
        let url = Some(self.tracing_url.clone()).filter(|url| !url.is_empty());
        let url = url.or_else(|| (!self.tracing_endpoint.is_empty()).then(of_base))?;
        Some(Destination { url, sample: self.tracing_sample, identity: self.identity.clone() })
    }
}

/// Others put a path behind it.
fn address(text: &str) -> Result<String, String> {
    web_address(text).map(|text| text.trim_end_matches('/').to_owned())
}

fn web_address(text: &str) -> Result<String, String> {
    if text.is_empty() || text.starts_with("http://") || text.starts_with("https://") {
        return Ok(text.to_owned());
    }
    Err("expected an address that begins with http:// or https://".to_owned())
}

fn share(text: &str) -> Result<f64, String> {
    let share = text.parse().ok().filter(|share| (0.0..=1.0).contains(share));
    share.ok_or_else(|| "expected a number from 0 to 1".to_owned())
}

/// By the standard of that variable everything else is false.
#[expect(clippy::unnecessary_wraps, reason = "a parser may fail")]
fn is_true(text: &str) -> Result<bool, Infallible> {
    Ok(text.eq_ignore_ascii_case("true"))
}

fn log_level(text: &str) -> Result<String, String> {
    logging::filter(text).map(|_| text.to_owned()).map_err(|error| chain(&error))
}

/// Prefixes of labels that say what an object is: to others, and to us.
const TAKEN: [&str; 2] = ["app.kubernetes.io/", "ortolan.dev/"];

fn labels(text: &str) -> Result<Labels, String> {
    text.split(',').filter(|label| !label.is_empty()).map(label).collect()
}

/// A label as the API server takes it. One that it refuses would leave all models without monitoring.
fn label(text: &str) -> Result<(String, String), String> {
    let (key, value) = text.split_once('=').ok_or("expected key=value")?;
    let (prefix, name) = key.split_once('/').map_or((None, key), |(prefix, name)| (Some(prefix), name));
    if !is_name(name) || !prefix.is_none_or(is_domain) {
        return Err(format!("`{key}` is no key of a label"));
    }
    if !value.is_empty() && !is_name(value) {
        return Err(format!("`{value}` is no value of a label"));
    }
    if let Some(taken) = TAKEN.into_iter().find(|taken| key.starts_with(taken)) {
        return Err(format!("labels that begin with {taken} are set by the operator"));
    }
    Ok((key.to_owned(), value.to_owned()))
}

fn is_name(text: &str) -> bool {
    let is_inside = |char: char| char.is_ascii_alphanumeric() || "-_.".contains(char);
    let ends_well = |char: Option<char>| char.is_some_and(|char| char.is_ascii_alphanumeric());
    text.len() <= 63
        && text.chars().all(is_inside)
        && ends_well(text.chars().next())
        && ends_well(text.chars().next_back())
}

/// Parts of lower case letters, digits and hyphens.
fn is_domain(text: &str) -> bool {
    let is_part = |part: &str| is_name(part) && !part.contains(|char: char| char == '_' || char.is_ascii_uppercase());
    text.len() <= 253 && text.split('.').all(is_part)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(flags: &[&str]) -> Result<Settings, String> {
        let needed = ["operator", "--identity=a", "--pod-image=b", "--pod-image-cuda=c"];
        Settings::try_parse_from(needed.iter().chain(flags)).map_err(|error| error.to_string())
    }

    fn told(flags: &[&str]) -> Result<Labels, String> {
        parsed(flags).map(|settings| settings.monitoring_labels)
    }

    #[test]
    fn there_are_traces_only_where_a_collector_was_told() {
        let url = |flags: &[&str]| parsed(flags).unwrap().traces().map(|to| to.url);
        let base = "--tracing-endpoint=http://collector:4318/";
        assert_eq!(url(&[]), None);
        assert_eq!(url(&["--tracing-sample=0.5"]), None);
        assert_eq!(url(&[base]).as_deref(), Some("http://collector:4318/v1/traces"));
        assert_eq!(url(&[base, "--tracing-url=https://other/a/"]).as_deref(), Some("https://other/a/"));
        assert_eq!(url(&[base, "--tracing-disabled=True"]), None);
        assert!(url(&[base, "--tracing-disabled=no"]).is_some());
        let sample = |flag| parsed(&[base, flag]).map(|settings| settings.tracing_sample);
        assert_eq!(sample("--tracing-sample=0.25"), Ok(Some(0.25)));
        assert!(sample("--tracing-sample=2").unwrap_err().contains("expected a number from 0 to 1"));
        assert!(sample("--tracing-url=collector:4318").unwrap_err().contains("expected an address"));
    }

    #[test]
    fn a_log_level_that_would_be_taken_for_a_part_of_the_program_is_refused_at_the_start() {
        let said = told(&["--log-level=warning"]).unwrap_err();
        assert!(said.contains("expected a level (off, error, warn,") && said.contains("got warning"), "{said}");
        assert_eq!(told(&["--log-level=warn,ortolan_operator=debug"]), Ok(Labels::new()));
    }

    #[test]
    fn labels_are_separated_by_commas() {
        let pairs = |pairs: &[(&str, &str)]| -> Labels {
            pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
        };
        assert_eq!(told(&[]), Ok(Labels::new()));
        assert_eq!(told(&["--monitoring-labels=release=watch"]), Ok(pairs(&[("release", "watch")])));
        let two = told(&["--monitoring-labels=example.com/team=7,prometheus="]);
        assert_eq!(two, Ok(pairs(&[("example.com/team", "7"), ("prometheus", "")])));
    }

    #[test]
    fn labels_that_the_api_server_refuses_or_that_are_ours_are_refused_at_the_start() {
        for (flag, says) in [
            ("release", "expected key=value"),
            ("=watch", "`` is no key"),
            ("re lease=watch", "`re lease` is no key"),
            ("a/b/c=d", "`a/b/c` is no key"),
            ("Example.com/team=7", "`Example.com/team` is no key"),
            ("release=-watch", "`-watch` is no value"),
            ("app.kubernetes.io/name=other", "set by the operator"),
            ("ortolan.dev/scraped=no", "set by the operator"),
        ] {
            let said = told(&[&format!("--monitoring-labels={flag}")]).unwrap_err();
            assert!(said.contains(says), "{flag}: {said}");
        }
    }
}
