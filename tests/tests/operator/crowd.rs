//! A thousand models that are scaled, on nodes that are only played: what it costs to look at each of them every two seconds.

use std::fs;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::Pod;
use kube::api::{Api, ListParams};
use ortolan_tests::{cluster::wait, compiled};
use serde_json::{Value, json};

use crate::fixture::{Failure, Outcome, tell};
use crate::models::{small, with};
use crate::space::{MODEL_LABEL, Space};
use crate::web;

const MODELS: usize = 1000;

/// A node takes at most 110 pods.
const NODES: usize = 20;

/// The addresses of pods that kwok plays.
const ADDRESSES: &str = "10.128.0.0/9";

/// They come as quickly as kwok plays them.
const LIMIT: Duration = Duration::from_secs(300);

/// For so long it is watched.
const WATCHED: Duration = Duration::from_secs(60);

/// Ended when dropped.
struct StandIn(Child);

impl Drop for StandIn {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Answers under the addresses of all played pods, inside of the cluster.
fn stand_in(space: &Space) -> Outcome<StandIn> {
    let program = compiled::find("load-stand-in")?;
    let inside = |program: &str, arguments: &str| {
        let mut command = Command::new(program);
        command.args(arguments.split(' ')).stdin(Stdio::null());
        space.cluster().spawn_inside(command)
    };
    inside("ip", &format!("route replace local {ADDRESSES} dev lo"))?.wait()?;
    Ok(StandIn(inside(&program.display().to_string(), "0.0.0.0:9090")?))
}

/// The machine sends what is for these addresses into the cluster; the way ends with the cluster's cable.
async fn lead_there(space: &Space) -> Outcome {
    let service = Api::<k8s_openapi::api::core::v1::Service>::namespaced(space.cluster().client(), "default");
    let ip = service.get("kubernetes").await?.spec.and_then(|spec| spec.cluster_ip).unwrap_or_default();
    let told = Command::new("ip").args(["-json", "route", "get", &ip]).output()?;
    let told: Value = serde_json::from_slice(&told.stdout)?;
    let way = |key: &str| told[0][key].as_str().map(str::to_owned);
    let (Some(gateway), Some(device)) = (way("gateway"), way("dev")) else {
        return Err(Failure::new(format!("no way into the cluster: {told}")));
    };
    let added = Command::new("ip").args(["route", "replace", ADDRESSES, "via", &gateway, "dev", &device]).status()?;
    if added.success() { Ok(()) } else { Err(Failure::new("no way to the played pods")) }
}

/// An InferenceModel whose pods are played.
fn played(number: usize) -> Value {
    let pods = json!({"spec": {
        "nodeSelector": {"type": "kwok"},
        "tolerations": [{"key": "kwok.x-k8s.io/node", "operator": "Exists"}],
    }});
    let scaling = json!({"maxReplicas": 3, "targets": {"inflightPerReplica": 4}});
    with(small(&format!("m{number}")), &json!({"podTemplate": pods, "scaling": scaling}))
}

pub(crate) async fn is_looked_at(space: &Space) -> Outcome {
    space.claim_models().await?;
    space.cluster().add_kwok_nodes(NODES).await?;
    let answering = stand_in(space)?;
    lead_there(space).await?;
    let applied = Instant::now();
    for number in 0..MODELS {
        space.apply(&played(number)).await?;
    }
    tell(&format!("{MODELS} models applied in {:.1} s", applied.elapsed().as_secs_f64()));
    let pods: Api<Pod> = space.api();
    let labelled = ListParams::default().labels(MODEL_LABEL);
    let look = async || {
        let pods = pods.list(&labelled).await.map_err(|error| error.to_string())?;
        let with_address = pods.items.iter().filter(|pod| pod.status.as_ref().is_some_and(|it| it.pod_ip.is_some()));
        match with_address.count() {
            MODELS.. => Ok(pods.items),
            count => Err(format!("{count} pods")),
        }
    };
    let (all, time) = wait::until("all pods to be played", LIMIT, look).await?;
    tell(&format!("all are played {:.1} s later", time.as_secs_f64()));
    let first = all.iter().find_map(|pod| pod.status.as_ref()?.pod_ip.clone()).unwrap_or_default();
    let address = (first.parse::<std::net::IpAddr>()?, 9090);
    // What it takes to bring them up is not what it takes to look at them.
    tokio::time::sleep(Duration::from_secs(30)).await;
    let _ = web::get(address, "/stats")?;
    let operator = space.stage.operator().await;
    let process = operator.as_ref().ok_or_else(|| Failure::new("no operator runs"))?.id();
    let (began, before) = (Instant::now(), cpu_seconds(process)?);
    tokio::time::sleep(WATCHED).await;
    let (seconds, used) = (began.elapsed().as_secs_f64(), cpu_seconds(process)? - before);
    let stats = web::get(address, "/stats")?.json();
    let (pods, asked) = (stats["pods"].as_f64().unwrap_or_default(), stats["asked"].as_f64().unwrap_or_default());
    tell(&format!(
        "{pods} pods asked every {:.2} s on average; the longest gap of each: {} s at p50, {} s at p99, {} s at most; operator: \
         {:.3} of a core, {:.0} MiB",
        pods * seconds / asked,
        stats["longest_gap_p50"],
        stats["longest_gap_p99"],
        stats["longest_gap"],
        used / seconds,
        resident_mib(process)?
    ));
    assert!(pods >= MODELS as f64, "{stats}");
    drop(answering);
    Ok(())
}

/// Time that a process has run, in seconds.
fn cpu_seconds(process: u32) -> Outcome<f64> {
    let stat = fs::read_to_string(format!("/proc/{process}/stat"))?;
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    // utime and stime, counted from the third field on; 100 ticks a second on every Linux.
    let ticks = |index: usize| fields.get(index).and_then(|text| text.parse::<f64>().ok()).unwrap_or_default();
    Ok((ticks(11) + ticks(12)) / 100.0)
}

fn resident_mib(process: u32) -> Outcome<f64> {
    let status = fs::read_to_string(format!("/proc/{process}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap_or_default();
    let kib: f64 = line.split_whitespace().next().unwrap_or_default().parse()?;
    Ok(kib / 1024.0)
}
