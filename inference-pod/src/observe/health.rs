//! `/health/detailed`: what a person on call looks at first, made of facts and criteria. Knows nothing of HTTP.

use std::time::{Duration, Instant};

use crds::serving::{Bounds, HealthConfig};
use serde::Serialize;

use super::{
    asked::STALE,
    lines::LOST,
    process::{Disk, ProcessFacts},
    window::{Quantiles, Seen},
};

/// Fewer requests that failed or were late are worth a warning, never an error.
const ENOUGH_ERRORS: u64 = 5;

/// How something is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// As it should be.
    Ok,
    /// Somebody should look.
    Warning,
    /// Somebody should look now.
    Error,
}

impl Status {
    /// Its name.
    #[must_use]
    pub fn name(self) -> &'static str {
        ["ok", "warning", "error"][self as usize]
    }
}

/// What is known of a model.
#[derive(Debug, Clone)]
pub struct ModelFacts {
    /// Its name.
    pub name: String,
    /// Its instances.
    pub instances: usize,
    /// Those that work.
    pub available: usize,
    /// Those that run.
    pub busy: usize,
    /// Samples that wait.
    pub queued: usize,
    /// How long one more would wait.
    pub predicted_wait: Duration,
    /// With how long a wait one is let in.
    pub longest_wait: Duration,
    /// What was counted and timed lately.
    pub seen: Seen,
    /// The latency that it is to keep.
    pub latency_objective: Option<Duration>,
    /// Whether any batch keeps it.
    pub objective_feasible: bool,
    /// Memory that its arena holds, in bytes, where that is known.
    pub memory_bytes: Option<u64>,
    /// The provider that it uses.
    pub provider: &'static str,
    /// The one that it was to use.
    pub wanted_provider: &'static str,
}

/// What is known of all.
#[derive(Debug, Clone)]
pub struct Facts {
    /// The models that are loaded.
    pub models: Vec<ModelFacts>,
    /// Names of those that are not.
    pub loading: Vec<String>,
    /// What makes `/health` fail.
    pub faults: Vec<String>,
    /// What the process is doing.
    pub phase: String,
    /// What the kernel knows of it.
    pub process: Option<ProcessFacts>,
    /// Memory that it may take, in bytes.
    pub memory_limit: Option<u64>,
    /// The disk that is written to, where there is one.
    pub disk: Option<Disk>,
    /// Consumers of events that are cut off.
    pub cut_off: Vec<&'static str>,
    /// Since the process began.
    pub uptime: Duration,
    /// Now, by the clock of people (RFC 3339).
    pub timestamp: String,
}

/// The answer.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// The worst of the checks.
    pub status: Status,
    timestamp: String,
    phase: String,
    loading: Vec<String>,
    /// What the status is made of.
    pub checks: Vec<Check>,
    models: Vec<ModelReport>,
    system: System,
}

/// A check.
#[derive(Debug, Clone, Serialize)]
pub struct Check {
    /// What is looked at.
    pub name: &'static str,
    /// The model; none where it concerns the process.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    /// How it is.
    pub status: Status,
    /// Why.
    pub message: String,
    /// From where on it warns, and from where on it is an error; none where it is a matter of yes and no.
    #[serde(skip_serializing_if = "Option::is_none")]
    threshold: Option<Bounds>,
}

#[derive(Debug, Clone, Serialize)]
struct ModelReport {
    model: String,
    status: Status,
    instances: Instances,
    queue_depth: usize,
    predicted_wait_ms: f64,
    window_seconds: f64,
    requests: u64,
    refused: u64,
    error_rate: f64,
    latency_ms: Option<Latency>,
    memory_bytes: Option<u64>,
    provider: &'static str,
}

#[derive(Debug, Clone, Serialize)]
struct Instances {
    total: usize,
    available: usize,
    busy: usize,
}

#[derive(Debug, Clone, Serialize)]
struct Latency {
    average: f64,
    p50: f64,
    p95: f64,
    p99: f64,
    max: f64,
}

#[derive(Debug, Clone, Serialize)]
struct System {
    memory: MemoryReport,
    uptime_seconds: u64,
    threads: Option<u64>,
    cpu_seconds: Option<f64>,
    open_files: Option<u64>,
}

#[derive(Debug, Clone, Serialize)]
struct MemoryReport {
    used_bytes: Option<u64>,
    total_bytes: Option<u64>,
    percent: Option<f64>,
}

/// Puts the answer together.
#[must_use]
pub fn report(facts: &Facts, criteria: &HealthConfig) -> Report {
    let lines_are_lost = LOST.any_lately(Instant::now());
    let mut checks =
        vec![serving(facts), loaded(facts), memory(facts, criteria), consumers(&facts.cut_off, lines_are_lost)];
    checks.extend(disk(facts, criteria));
    let mut models = Vec::new();
    for model in &facts.models {
        let own = of_model(model, criteria);
        models.push(written(model, worst(&own)));
        checks.extend(own);
    }
    Report {
        status: worst(&checks),
        timestamp: facts.timestamp.clone(),
        phase: facts.phase.clone(),
        loading: facts.loading.clone(),
        checks,
        models,
        system: system(facts),
    }
}

fn worst(checks: &[Check]) -> Status {
    checks.iter().map(|check| check.status).max().unwrap_or(Status::Ok)
}

fn check(name: &'static str, status: Status, message: impl Into<String>) -> Check {
    Check { name, model: None, status, message: message.into(), threshold: None }
}

/// A number beside its bounds.
fn measured(name: &'static str, number: f64, bounds: Bounds, message: String) -> Check {
    let status = match number {
        number if number >= bounds.error => Status::Error,
        number if number >= bounds.warning => Status::Warning,
        _ => Status::Ok,
    };
    Check { threshold: Some(bounds), ..check(name, status, message) }
}

fn serving(facts: &Facts) -> Check {
    match facts.faults.as_slice() {
        [] => check("serving", Status::Ok, "the serving loop moves"),
        faults => check("serving", Status::Error, faults.join("; ")),
    }
}

fn loaded(facts: &Facts) -> Check {
    match facts.loading.as_slice() {
        [] => check("models", Status::Ok, format!("{} loaded", facts.models.len())),
        loading => check("models", Status::Warning, format!("loading {}", loading.join(", "))),
    }
}

fn consumers(cut_off: &[&str], lines_are_lost: bool) -> Check {
    let cut_off = (!cut_off.is_empty()).then(|| format!("cut off: {}", cut_off.join(", ")));
    let lost = lines_are_lost.then(|| "lines of the log were lost in the last minute".to_owned());
    match cut_off.into_iter().chain(lost).collect::<Vec<_>>().as_slice() {
        [] => check("events", Status::Ok, "every consumer works"),
        troubles => check("events", Status::Warning, troubles.join("; ")),
    }
}

fn memory(facts: &Facts, criteria: &HealthConfig) -> Check {
    match (facts.process, facts.memory_limit) {
        (Some(process), Some(limit)) => {
            let share = share(process.resident_bytes, limit);
            let message = format!("{} of {} MiB", process.resident_bytes >> 20, limit >> 20);
            measured("memory", share, criteria.memory, message)
        }
        _ => check("memory", Status::Ok, "not known on this system"),
    }
}

fn disk(facts: &Facts, criteria: &HealthConfig) -> Option<Check> {
    let Disk { room, age } = facts.disk?;
    if age >= STALE {
        let message = format!("the disk has not said for {:.0} s how much is free", age.as_secs_f64());
        return Some(check("disk", Status::Warning, message));
    }
    let (free, all) = room?;
    let message = format!("{} of {} MiB are free", free >> 20, all >> 20);
    Some(measured("disk", 1.0 - share(free, all), criteria.disk, message))
}

fn share(part: u64, whole: u64) -> f64 {
    part as f64 / whole.max(1) as f64
}

fn of_model(model: &ModelFacts, criteria: &HealthConfig) -> Vec<Check> {
    let mut checks = vec![instances(model), error_rate(model, criteria), queue(model, criteria), provider(model)];
    checks.extend(objective(model, criteria));
    for check in &mut checks {
        check.model = Some(model.name.clone());
    }
    checks
}

fn instances(model: &ModelFacts) -> Check {
    let ModelFacts { instances, available, busy, .. } = model;
    let status = match available {
        0 => Status::Error,
        some if some < instances => Status::Warning,
        _ => Status::Ok,
    };
    check("instances", status, format!("{available} of {instances} work, {busy} of them now"))
}

fn error_rate(model: &ModelFacts, criteria: &HealthConfig) -> Check {
    let seen = &model.seen;
    let all = seen.answered + seen.late_or_failed;
    let message =
        format!("{} of {all} requests failed or were late in {:.0} s", seen.late_or_failed, seen.covers.as_secs_f64());
    let mut check = measured("error_rate", seen.error_rate(), criteria.error_rate, message);
    // One of five is a fifth, and says little.
    if seen.late_or_failed < ENOUGH_ERRORS {
        check.status = check.status.min(Status::Warning);
    }
    check
}

fn queue(model: &ModelFacts, criteria: &HealthConfig) -> Check {
    let (wait, limit) = (model.predicted_wait.as_secs_f64(), model.longest_wait.as_secs_f64());
    let message = format!(
        "{} samples wait, one more would for {:.0} ms; the limit is {:.0} ms",
        model.queued,
        wait * 1e3,
        limit * 1e3
    );
    measured("queue", wait / limit.max(1e-3), criteria.queue, message)
}

fn provider(model: &ModelFacts) -> Check {
    if model.provider == model.wanted_provider {
        return check("provider", Status::Ok, format!("runs on {}", model.provider));
    }
    let message = format!("runs on {} instead of {}", model.provider, model.wanted_provider);
    check("provider", Status::Warning, message)
}

fn objective(model: &ModelFacts, criteria: &HealthConfig) -> Option<Check> {
    let objective = model.latency_objective?;
    let millis = objective.as_secs_f64() * 1e3;
    if !model.objective_feasible {
        let message = format!("even the smallest batch takes longer than {millis:.0} ms");
        return Some(check("latency_objective", Status::Warning, message));
    }
    let p95 = model.seen.latency.map_or(0.0, |latency| latency.p95.as_secs_f64() * 1e3);
    let message = format!("p95 is {p95:.1} ms; the objective is {millis:.0} ms");
    Some(measured("latency_objective", p95 / millis.max(1e-3), criteria.latency_objective, message))
}

fn written(model: &ModelFacts, status: Status) -> ModelReport {
    let seen = &model.seen;
    ModelReport {
        model: model.name.clone(),
        status,
        instances: Instances { total: model.instances, available: model.available, busy: model.busy },
        queue_depth: model.queued,
        predicted_wait_ms: millis(model.predicted_wait),
        window_seconds: seen.covers.as_secs_f64(),
        requests: seen.answered + seen.late_or_failed,
        refused: seen.refused,
        error_rate: seen.error_rate(),
        latency_ms: seen.latency.map(|Quantiles { mean, p50, p95, p99, max }| Latency {
            average: millis(mean),
            p50: millis(p50),
            p95: millis(p95),
            p99: millis(p99),
            max: millis(max),
        }),
        memory_bytes: model.memory_bytes,
        provider: model.provider,
    }
}

fn system(facts: &Facts) -> System {
    let used = facts.process.map(|process| process.resident_bytes);
    let percent = used.zip(facts.memory_limit).map(|(used, limit)| (share(used, limit) * 1e4).round() / 1e2);
    System {
        memory: MemoryReport { used_bytes: used, total_bytes: facts.memory_limit, percent },
        uptime_seconds: facts.uptime.as_secs(),
        threads: facts.process.map(|process| process.threads),
        cpu_seconds: facts.process.map(|process| process.cpu_seconds),
        open_files: facts.process.map(|process| process.open_files),
    }
}

/// Milliseconds to the microsecond.
fn millis(time: Duration) -> f64 {
    (time.as_secs_f64() * 1e6).round() / 1e3
}

#[cfg(test)]
mod tests {
    use super::*;

    fn model() -> ModelFacts {
        ModelFacts {
            name: "espresso".to_owned(),
            instances: 2,
            available: 2,
            busy: 1,
            queued: 3,
            predicted_wait: Duration::from_millis(20),
            longest_wait: Duration::from_millis(500),
            seen: Seen { answered: 99, ..Seen::default() },
            latency_objective: None,
            objective_feasible: true,
            memory_bytes: None,
            provider: "cpu",
            wanted_provider: "cpu",
        }
    }

    fn disk(free: u64, age: Duration) -> Disk {
        Disk { room: Some((free, 100)), age }
    }

    fn facts(models: Vec<ModelFacts>) -> Facts {
        Facts {
            models,
            loading: Vec::new(),
            faults: Vec::new(),
            phase: "serving".to_owned(),
            process: Some(ProcessFacts { resident_bytes: 50 << 20, ..ProcessFacts::default() }),
            memory_limit: Some(100 << 20),
            disk: Some(disk(90, Duration::ZERO)),
            cut_off: Vec::new(),
            uptime: Duration::from_secs(9),
            timestamp: "2026-01-01T00:00:00Z".to_owned(),
        }
    }

    /// The status of the whole, and the one check that makes it.
    fn blamed(facts: &Facts) -> (Status, &'static str) {
        let report = report(facts, &HealthConfig::default());
        let guilty: Vec<&str> =
            report.checks.iter().filter(|check| check.status == report.status).map(|check| check.name).collect();
        assert_eq!(guilty.len(), 1, "{report:?}");
        (report.status, guilty[0])
    }

    #[test]
    fn all_is_well_where_nothing_is_wrong() {
        let report = report(&facts(vec![model()]), &HealthConfig::default());
        assert_eq!(report.status, Status::Ok, "{report:?}");
        assert!(report.checks.iter().any(|check| check.name == "queue" && check.model.as_deref() == Some("espresso")));
        let json = serde_json::to_value(&report).unwrap();
        assert_eq!(json["models"][0]["instances"], serde_json::json!({"total": 2, "available": 2, "busy": 1}));
        assert_eq!(json["system"]["memory"]["percent"], 50.0);
    }

    #[test]
    fn each_criterion_warns_and_fails_by_itself() {
        let with = |change: fn(&mut ModelFacts)| {
            let mut model = model();
            change(&mut model);
            facts(vec![model])
        };
        for (facts, expected) in [
            (with(|m| m.available = 1), (Status::Warning, "instances")),
            (with(|m| m.available = 0), (Status::Error, "instances")),
            (with(|m| m.seen.late_or_failed = 2), (Status::Warning, "error_rate")),
            (with(|m| m.seen.late_or_failed = 50), (Status::Error, "error_rate")),
            (with(|m| (m.seen.answered, m.seen.late_or_failed) = (0, 4)), (Status::Warning, "error_rate")),
            (with(|m| (m.seen.answered, m.seen.late_or_failed) = (0, 5)), (Status::Error, "error_rate")),
            (with(|m| m.predicted_wait = Duration::from_millis(450)), (Status::Warning, "queue")),
            (with(|m| m.predicted_wait = Duration::from_millis(500)), (Status::Error, "queue")),
            (with(|m| m.wanted_provider = "cuda"), (Status::Warning, "provider")),
            (Facts { memory_limit: Some(51 << 20), ..facts(Vec::new()) }, (Status::Error, "memory")),
            (Facts { disk: Some(disk(10, Duration::ZERO)), ..facts(Vec::new()) }, (Status::Warning, "disk")),
            (Facts { disk: Some(disk(90, STALE)), ..facts(Vec::new()) }, (Status::Warning, "disk")),
            (Facts { faults: vec!["stuck".to_owned()], ..facts(Vec::new()) }, (Status::Error, "serving")),
            (Facts { loading: vec!["espresso".to_owned()], ..facts(Vec::new()) }, (Status::Warning, "models")),
            (Facts { cut_off: vec!["audit"], ..facts(Vec::new()) }, (Status::Warning, "events")),
        ] {
            assert_eq!(blamed(&facts), expected);
        }
    }

    #[test]
    fn lines_of_the_log_that_are_lost_are_told_beside_consumers_that_are_cut_off() {
        let told = |cut_off: &[&str], lines_are_lost| {
            let Check { status, message, .. } = consumers(cut_off, lines_are_lost);
            (status, message)
        };
        assert_eq!(told(&[], false), (Status::Ok, "every consumer works".to_owned()));
        let lost = "lines of the log were lost in the last minute";
        assert_eq!(told(&[], true), (Status::Warning, lost.to_owned()));
        assert_eq!(told(&["audit"], true), (Status::Warning, format!("cut off: audit; {lost}")));
    }

    #[test]
    fn an_objective_that_is_not_kept_or_cannot_be_is_told() {
        let quantiles = |p95| Quantiles {
            mean: Duration::ZERO,
            p50: Duration::ZERO,
            p95: Duration::from_millis(p95),
            p99: Duration::ZERO,
            max: Duration::ZERO,
        };
        let status = |p95, feasible| {
            let seen = Seen { answered: 9, latency: Some(quantiles(p95)), ..Seen::default() };
            let objective = Some(Duration::from_millis(30));
            let model = ModelFacts { seen, latency_objective: objective, objective_feasible: feasible, ..model() };
            report(&facts(vec![model]), &HealthConfig::default()).status
        };
        assert_eq!(
            [status(29, true), status(30, true), status(60, true)],
            [Status::Ok, Status::Warning, Status::Error]
        );
        assert_eq!(status(1, false), Status::Warning);
    }
}
