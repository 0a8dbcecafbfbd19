//! KEDA: its operator makes HorizontalPodAutoscalers of ScaledObjects, and its second program serves their numbers under
//! `external.metrics.k8s.io`.
//!
//! Kinds and permissions are those of KEDA's own release. Its admission webhooks are left out.

use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};

use k8s_openapi::api::core::v1::Secret;
use kube::api::Api;
use ortolan_tests::cluster::{Cluster, wait};
use ortolan_tests::programs::{self, Profile, Programs, Purpose};
use ortolan_tests::report::Report;
use serde_json::json;

use crate::fixture::{Failure, LIMIT, Outcome};
use crate::installed::aggregated::Aggregated;
use crate::installed::server::{self, Account, Launch, Server, free_port};
use crate::web;

const NAMESPACE: &str = "keda";
const ACCOUNT: Account = Account { namespace: NAMESPACE, name: "keda-operator" };
const API: Aggregated =
    Aggregated { namespace: NAMESPACE, service: "keda-metrics-apiserver", api: "v1beta1.external.metrics.k8s.io" };

/// Where KEDA's operator keeps the certificates that it makes.
const CERTIFICATES: &str = "kedaorg-certs";

/// Kinds and accounts first, then what refers to them.
const MANIFESTS: [&str; 12] = [
    "keda-scaledobjects.yaml",
    "keda-scaledjobs.yaml",
    "keda-authentications.yaml",
    "keda-cluster-authentications.yaml",
    "keda-event-sources.yaml",
    "keda-cluster-event-sources.yaml",
    "keda-account.yaml",
    "keda-role.yaml",
    "keda-role-binding.yaml",
    "keda-metrics-role.yaml",
    "keda-metrics-role-binding.yaml",
    "keda-metrics-api.yaml",
];

/// Both programs of KEDA.
pub(crate) struct Keda {
    _operator: Server,
    _metrics: Server,
}

/// What both programs are started with.
struct Plan {
    programs: Programs,
    kubeconfig: String,
    certificates: PathBuf,
    /// Where the operator tells the other program its numbers.
    numbers_port: u16,
    health_port: u16,
}

impl Keda {
    /// Installs it and waits until the API shows what it serves.
    pub(crate) async fn start(cluster: &Cluster) -> Outcome<Self> {
        let programs = programs::ensure(Profile::newest(), &[Purpose::Keda], Report::to_stderr())?;
        let (address, loopback) = (cluster.machine_address()?, IpAddr::V4(Ipv4Addr::LOCALHOST));
        let port = free_port(IpAddr::V4(address))?;
        install(cluster, &programs, address, port).await?;
        let plan = Plan {
            programs,
            kubeconfig: ACCOUNT.kubeconfig(cluster).await?.display().to_string(),
            certificates: server::folder(cluster, "keda-certificates")?,
            numbers_port: free_port(loopback)?,
            health_port: free_port(loopback)?,
        };
        bring_certificates(cluster, &plan).await?;
        let mut operator = Server::start(cluster, &plan.operator()?)?;
        operator
            .until("to be ready", async || match web::get(("127.0.0.1", plan.health_port), "/readyz") {
                Ok(answer) if answer.status == 200 => Ok(()),
                Ok(answer) => Err(answer.text()),
                Err(error) => Err(error.to_string()),
            })
            .await?;
        let mut metrics = Server::start(cluster, &plan.metrics(address, port)?)?;
        API.until_available(cluster, &mut metrics).await?;
        Ok(Self { _operator: operator, _metrics: metrics })
    }
}

async fn install(cluster: &Cluster, programs: &Programs, address: Ipv4Addr, port: u16) -> Outcome {
    let mut objects = vec![json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}})];
    objects.extend(API.objects(address, port));
    server::apply(cluster, &objects).await?;
    let files = MANIFESTS.iter().map(|name| Ok(programs.path(name)?.display().to_string()));
    let files: Vec<String> = files.collect::<Outcome<_>>()?;
    let mut command = vec!["apply", "--server-side"];
    command.extend(files.iter().flat_map(|file| ["-f", file]));
    cluster.run_kubectl(&command).await?;
    Ok(())
}

/// Lets the operator make its certificates, and lays them where both programs look for them, as a node does for their pods.
///
/// Having made them, the operator ends, so that it is started again with them.
async fn bring_certificates(cluster: &Cluster, plan: &Plan) -> Outcome {
    let status = Server::start(cluster, &plan.operator()?)?.until_it_ends().await?;
    if !status.success() {
        return Err(Failure::new(format!("keda-operator has ended with {status} instead of making its certificates")));
    }
    let secrets: Api<Secret> = Api::namespaced(cluster.client(), NAMESPACE);
    let (data, _) = wait::until("KEDA's certificates", LIMIT, async || match secrets.get(CERTIFICATES).await {
        Ok(secret) => secret.data.filter(|data| data.contains_key("tls.crt")).ok_or("no tls.crt in it".to_owned()),
        Err(error) => Err(error.to_string()),
    })
    .await?;
    for (name, content) in data {
        std::fs::write(plan.certificates.join(name), content.0)?;
    }
    Ok(())
}

impl Plan {
    fn operator(&self) -> Outcome<Launch> {
        Ok(Launch {
            name: "keda-operator",
            program: self.programs.path("keda-operator")?.to_owned(),
            arguments: vec![
                "--zap-encoder=console".to_owned(),
                "--zap-time-encoding=rfc3339".to_owned(),
                "--metrics-bind-address=0".to_owned(),
                format!("--health-probe-bind-address=127.0.0.1:{}", self.health_port),
                format!("--metrics-service-bind-address=127.0.0.1:{}", self.numbers_port),
                "--enable-cert-rotation=true".to_owned(),
                "--enable-webhook-patching=false".to_owned(),
                format!("--cert-dir={}", self.certificates.display()),
            ],
            environment: self.environment(),
        })
    }

    fn metrics(&self, address: Ipv4Addr, port: u16) -> Outcome<Launch> {
        let (certificates, kubeconfig) = (&self.certificates, &self.kubeconfig);
        let file = |name: &str| Path::new(certificates).join(name).display().to_string();
        Ok(Launch {
            name: "keda-metrics-apiserver",
            program: self.programs.path("keda-metrics-apiserver")?.to_owned(),
            arguments: vec![
                format!("--bind-address={address}"),
                format!("--secure-port={port}"),
                format!("--port={}", free_port(IpAddr::V4(Ipv4Addr::UNSPECIFIED))?),
                format!("--client-ca-file={}", file("ca.crt")),
                format!("--tls-cert-file={}", file("tls.crt")),
                format!("--tls-private-key-file={}", file("tls.key")),
                format!("--cert-dir={}", certificates.display()),
                format!("--metrics-service-address=127.0.0.1:{}", self.numbers_port),
                // The name in the operator's certificate.
                format!("--metrics-service-grpc-authority=keda-operator.{NAMESPACE}.svc"),
                format!("--lister-kubeconfig={kubeconfig}"),
                format!("--authentication-kubeconfig={kubeconfig}"),
                format!("--authorization-kubeconfig={kubeconfig}"),
            ],
            environment: self.environment(),
        })
    }

    fn environment(&self) -> Vec<(&'static str, String)> {
        vec![
            ("KUBECONFIG", self.kubeconfig.clone()),
            ("POD_NAMESPACE", NAMESPACE.to_owned()),
            ("KEDA_CLUSTER_OBJECT_NAMESPACE", NAMESPACE.to_owned()),
            ("WATCH_NAMESPACE", String::new()),
        ]
    }
}
