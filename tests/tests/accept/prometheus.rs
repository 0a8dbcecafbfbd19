//! The Prometheus Operator, and two Prometheus that it makes: of images of our own build, else as their documentation says.

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::path::PathBuf;
use std::time::Duration;

use k8s_openapi::api::core::v1::Service;
use kube::api::Api;
use ortolan_tests::cluster::{Cluster, image, wait};
use ortolan_tests::programs::{self, Profile, Programs, Purpose};
use ortolan_tests::report::Report;
use serde_json::{Value, json};

use crate::fixture::{Failure, OPERATOR_NAMESPACE, Outcome, Stage, apply, apply_text, tell_time};
use crate::rules;

/// Where both Prometheus are.
pub(crate) const NAMESPACE: &str = "monitoring";

/// What tells the rules at a quicker pace from all others.
pub(crate) const PACE_LABEL: &str = "pace";

/// The longest that an alert is waited for: the longest takes four minutes at the quicker pace, and beside others more.
pub(crate) const ALERT_LIMIT: Duration = Duration::from_secs(600);

/// 2 minutes: pods start, and the node looks for the config that they wait for once a minute.
const START_LIMIT: Duration = Duration::from_secs(120);

const ANSWER_LIMIT: Duration = Duration::from_secs(10);

/// A program of theirs, and the image that is made of it.
struct Packed {
    program: &'static str,
    /// Where it is in the image.
    place: &'static str,
    image: &'static str,
    /// What their manifests call it.
    theirs: &'static str,
}

const OPERATOR: Packed = Packed {
    program: "prometheus-operator",
    place: "program",
    image: "localhost/ortolan-prometheus-operator:1",
    theirs: "quay.io/prometheus-operator/prometheus-operator:v0.93.0",
};

/// The Prometheus Operator starts it by its path.
const RELOADER: Packed = Packed {
    program: "prometheus-config-reloader",
    place: "bin/prometheus-config-reloader",
    image: "localhost/ortolan-prometheus-config-reloader:1",
    theirs: "quay.io/prometheus-operator/prometheus-config-reloader:v0.93.0",
};

const SERVER: Packed = Packed {
    program: "prometheus",
    place: "program",
    image: "localhost/ortolan-prometheus:1",
    theirs: "quay.io/prometheus/prometheus:v3.15.0",
};

fn built() -> Outcome<Programs> {
    Ok(programs::ensure(Profile::newest(), &[Purpose::Prometheus], Report::to_stderr())?)
}

/// Archives of their images, beside the programs.
pub(crate) fn archives() -> Outcome<Vec<PathBuf>> {
    let programs = built()?;
    let pack = |packed: &Packed| {
        let program = programs.path(packed.program)?;
        let archive = program.with_extension("tar");
        image::of_program_at(packed.place, &archive, packed.image, program)?;
        Ok(archive)
    };
    [OPERATOR, RELOADER, SERVER].iter().map(pack).collect()
}

/// Applies the manifest that the Prometheus Operator is shipped with.
pub(crate) async fn install_operator(cluster: &Cluster) -> Outcome {
    let mut bundle = std::fs::read_to_string(built()?.path("bundle.yaml")?)?;
    let flag = "--kubelet-service=kube-system/kubelet";
    let changes = [
        (OPERATOR.theirs, OPERATOR.image),
        (RELOADER.theirs, RELOADER.image),
        // What became of objects such as ours is told in their status only if it is asked to.
        (flag, "--feature-gates=StatusForConfigurationResources=true"),
    ];
    for (theirs, ours) in changes {
        if !bundle.contains(theirs) {
            return Err(Failure::new(format!("the Prometheus Operator's manifest does not have {theirs}")));
        }
        bundle = bundle.replace(theirs, ours);
    }
    apply_text(cluster, "bundle", &bundle).await?;
    cluster.run_kubectl(&["rollout", "status", "deployment/prometheus-operator", "--timeout=120s"]).await?;
    Ok(())
}

/// Makes both Prometheus, and waits until they answer.
pub(crate) async fn install(cluster: &Cluster) -> Outcome<(Prometheus, Prometheus)> {
    apply(cluster, "access", &access()).await?;
    let without_pace = json!({"matchExpressions": [{"key": PACE_LABEL, "operator": "DoesNotExist"}]});
    apply(cluster, "main", &resource("main", &json!({"ruleSelector": without_pace}))).await?;
    let paced = json!({
        "ruleSelector": {"matchLabels": {PACE_LABEL: "fast"}},
        "scrapeInterval": "2s",
        "evaluationInterval": "2s",
    });
    apply(cluster, "fast", &resource("fast", &paced)).await?;
    apply(cluster, "operator-monitor", &operator_monitor()).await?;
    apply(cluster, "operator-rules", &rules::object("ortolan-operator", None, &rules::read("operator")?)).await?;
    for file in ["models", "operator"] {
        let object = rules::object(&format!("fast-{file}"), Some("fast"), &rules::at_pace(rules::read(file)?)?);
        apply(cluster, &format!("fast-{file}"), &object).await?;
    }
    Ok((Prometheus::of(cluster, "main").await?, Prometheus::of(cluster, "fast").await?))
}

/// What a Prometheus may read.
fn access() -> Value {
    let read = json!(["get", "list", "watch"]);
    let name = json!({"name": "prometheus"});
    let account = json!({"name": "prometheus", "namespace": NAMESPACE});
    list(&[
        json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}}),
        json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": account}),
        json!({
            "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole", "metadata": name,
            "rules": [
                {"apiGroups": [""], "resources": ["services", "endpoints", "pods"], "verbs": read},
                {"apiGroups": ["discovery.k8s.io"], "resources": ["endpointslices"], "verbs": read},
            ],
        }),
        json!({
            "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding", "metadata": name,
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "prometheus"},
            "subjects": [{"kind": "ServiceAccount", "name": "prometheus", "namespace": NAMESPACE}],
        }),
    ])
}

/// A Prometheus that takes all that it is given, and a Service in front of it.
fn resource(name: &str, more: &Value) -> Value {
    let metadata = json!({"name": name, "namespace": NAMESPACE});
    let mut spec = json!({
        "image": SERVER.image,
        "version": "v3.15.0",
        "serviceAccountName": "prometheus",
        "serviceMonitorSelector": {},
        "serviceMonitorNamespaceSelector": {},
        "ruleNamespaceSelector": {},
        "enableFeatures": ["exemplar-storage"],
        "resources": {"requests": {"cpu": "10m", "memory": "64Mi"}},
    });
    if let (Some(spec), Some(more)) = (spec.as_object_mut(), more.as_object()) {
        spec.extend(more.clone());
    }
    list(&[
        json!({"apiVersion": "monitoring.coreos.com/v1", "kind": "Prometheus", "metadata": metadata, "spec": spec}),
        json!({
            "apiVersion": "v1", "kind": "Service", "metadata": metadata,
            "spec": {"selector": {"prometheus": name}, "ports": [{"name": "web", "port": 9090, "targetPort": "web"}]},
        }),
    ])
}

/// Scrapes our operator, as docs/observability.md says.
fn operator_monitor() -> Value {
    json!({
        "apiVersion": "monitoring.coreos.com/v1",
        "kind": "ServiceMonitor",
        "metadata": {"name": "ortolan-operator", "namespace": OPERATOR_NAMESPACE},
        "spec": {
            "selector": {"matchLabels": {"app.kubernetes.io/name": "ortolan", "app.kubernetes.io/component": "operator"}},
            "endpoints": [{"port": "metrics"}],
        },
    })
}

fn list(items: &[Value]) -> Value {
    json!({"apiVersion": "v1", "kind": "List", "items": items})
}

/// One that runs.
pub(crate) struct Prometheus {
    name: &'static str,
    address: SocketAddr,
}

impl Prometheus {
    async fn of(cluster: &Cluster, name: &'static str) -> Outcome<Self> {
        let services: Api<Service> = Api::namespaced(cluster.client(), NAMESPACE);
        let spec = services.get(name).await?.spec.unwrap_or_default();
        let address: IpAddr = spec.cluster_ip.unwrap_or_default().parse()?;
        let prometheus = Self { name, address: (address, 9090).into() };
        let look = async || prometheus.query("vector(1)").map_err(|error| error.to_string());
        let (_, time) = wait::until(&format!("the Prometheus {name} to answer"), START_LIMIT, look).await?;
        tell_time(&format!("until the Prometheus {name} answers"), time);
        Ok(prometheus)
    }

    /// What an expression is worth now: each series with its labels and its number.
    pub(crate) fn query(&self, expression: &str) -> Outcome<Vec<Series>> {
        let answer = self.ask(&format!("/api/v1/query?query={}", encoded(expression)))?;
        let series = answer["result"].as_array().into_iter().flatten().map(|series| Series {
            labels: series["metric"].clone(),
            value: series["value"][1].as_str().and_then(|value| value.parse().ok()).unwrap_or(f64::NAN),
        });
        Ok(series.collect())
    }

    /// Whether an expression is worth a number.
    pub(crate) fn has_data(&self, expression: &str) -> Outcome<bool> {
        Ok(self.query(expression)?.iter().any(|series| !series.value.is_nan()))
    }

    /// Waits until an expression is worth a number.
    pub(crate) async fn until_it_has(&self, expression: &str) -> Outcome<Duration> {
        let look = async || match self.has_data(expression) {
            Ok(true) => Ok(()),
            Ok(false) => Err("it has none".to_owned()),
            Err(error) => Err(error.to_string()),
        };
        Ok(wait::until(&format!("the Prometheus {} to have data of {expression}", self.name), ALERT_LIMIT, look)
            .await?
            .1)
    }

    /// The data of an answer.
    pub(crate) fn ask(&self, path: &str) -> Outcome<Value> {
        let mut stream = TcpStream::connect_timeout(&self.address, ANSWER_LIMIT)?;
        stream.set_read_timeout(Some(ANSWER_LIMIT))?;
        // By the older version an answer is never cut into chunks, and ends with the connection.
        write!(stream, "GET {path} HTTP/1.0\r\nhost: {}\r\n\r\n", self.name)?;
        let mut text = String::new();
        stream.read_to_string(&mut text)?;
        let (_, body) = text.split_once("\r\n\r\n").ok_or_else(|| Failure::new("no answer"))?;
        let mut answer: Value = serde_json::from_str(body).map_err(|error| Failure::new(format!("{error}: {body}")))?;
        if answer["status"] == "success" { Ok(answer["data"].take()) } else { Err(Failure::new(body)) }
    }

    fn firing(&self, alert: &str, matchers: &str) -> Result<bool, String> {
        let alerts = format!("ALERTS{{alertname=\"{alert}\", alertstate=\"firing\"{matchers}}}");
        self.query(&alerts).map(|series| !series.is_empty()).map_err(|error| error.to_string())
    }
}

/// A series, now.
#[derive(Debug)]
pub(crate) struct Series {
    pub(crate) labels: Value,
    pub(crate) value: f64,
}

impl Stage {
    /// Waits until an alert fires at the quicker pace; `matchers` begin with a comma.
    pub(crate) async fn fires(&self, alert: &str, matchers: &str) -> Outcome {
        self.fires_while(alert, matchers, async || Ok(())).await
    }

    /// The same, with something done again and again meanwhile.
    pub(crate) async fn fires_while(&self, alert: &str, matchers: &str, done: impl AsyncFn() -> Outcome) -> Outcome {
        let look = async || {
            done().await.map_err(|error| error.to_string())?;
            if self.fast.firing(alert, matchers)? { Ok(()) } else { Err("it does not".to_owned()) }
        };
        let ((), time) = wait::until(&format!("{alert} to fire ({matchers})"), ALERT_LIMIT, look).await?;
        tell_time(&format!("{alert} fires"), time);
        Ok(())
    }

    /// Waits until an alert that fired fires no more.
    pub(crate) async fn ends(&self, alert: &str, matchers: &str) -> Outcome {
        self.ends_while(alert, matchers, async || Ok(())).await
    }

    /// The same, with something done again and again meanwhile.
    pub(crate) async fn ends_while(&self, alert: &str, matchers: &str, done: impl AsyncFn() -> Outcome) -> Outcome {
        let look = async || {
            done().await.map_err(|error| error.to_string())?;
            if self.fast.firing(alert, matchers)? { Err("it does".to_owned()) } else { Ok(()) }
        };
        let ((), time) = wait::until(&format!("{alert} to end ({matchers})"), ALERT_LIMIT, look).await?;
        tell_time(&format!("{alert} has ended"), time);
        self.saw(alert);
        Ok(())
    }
}

/// As part of a URL.
fn encoded(text: &str) -> String {
    let byte = |byte: u8| {
        if byte.is_ascii_alphanumeric() { char::from(byte).to_string() } else { format!("%{byte:02X}") }
    };
    text.bytes().map(byte).collect()
}
