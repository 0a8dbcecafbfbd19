//! Pods on a real node.

use std::io::{Read, Write};
use std::net::TcpStream;

use k8s_openapi::api::core::v1::{Pod, Service};
use kube::api::{Api, DeleteParams, LogParams, PostParams};
use ortolan_tests::cluster::{Cluster, wait};
use serde_json::{Value, json};

use crate::fixture::{Failure, Fixture, LIMIT, Outcome, PROBE, ready_pod, tell};

/// A pod that answers every request on port 8080 with `text`.
fn server(name: &str, text: &str, limits: &Value) -> Value {
    json!({
        "metadata": {"name": name, "labels": {"app": name}},
        "spec": {
            "terminationGracePeriodSeconds": 1,
            "containers": [{
                "name": "probe",
                "image": PROBE,
                "imagePullPolicy": "IfNotPresent",
                "args": ["serve", text],
                "readinessProbe": {"httpGet": {"path": "/ready", "port": 8080}, "periodSeconds": 1},
                "resources": {"limits": limits},
            }],
        },
    })
}

pub(crate) async fn create_server(cluster: &Cluster, name: &str, text: &str) -> Result<Pod, Failure> {
    let pods: Api<Pod> = Api::namespaced(cluster.client(), "default");
    pods.create(&PostParams::default(), &serde_json::from_value(server(name, text, &json!({})))?).await?;
    ready_pod(&pods, name).await
}

async fn create_service(cluster: &Cluster, name: &str) -> Result<Service, Failure> {
    let services: Api<Service> = Api::namespaced(cluster.client(), "default");
    let service = json!({
        "metadata": {"name": name},
        "spec": {"selector": {"app": name}, "ports": [{"port": 80, "targetPort": 8080}]},
    });
    Ok(services.create(&PostParams::default(), &serde_json::from_value(service)?).await?)
}

pub(crate) async fn delete_pod(cluster: &Cluster, name: &str) -> Outcome {
    let pods: Api<Pod> = Api::namespaced(cluster.client(), "default");
    pods.delete(name, &DeleteParams::default().grace_period(0)).await?;
    Ok(())
}

/// What `client` gets from `url`, asked again until it gets something: a new Service takes a moment to reach the node's rules.
async fn asked_from(cluster: &Cluster, client: &str, url: &str) -> Result<String, Failure> {
    let (answer, time) = wait::until(&format!("an answer from {url}"), LIMIT, async || {
        cluster.run_kubectl(&["exec", client, "--", "/program", "get", url]).await
    })
    .await?;
    tell(&format!("{url} answered {client} after {:.1} s", time.as_secs_f64()));
    Ok(answer)
}

pub(crate) async fn answers_by_name(fixture: &Fixture) -> Outcome {
    let cluster = fixture.node().await?;
    create_server(cluster, "echo", "good morning").await?;
    create_server(cluster, "client", "nobody asks").await?;
    create_service(cluster, "echo").await?;
    assert_eq!(asked_from(cluster, "client", "http://echo/").await?, "good morning");
    assert_eq!(asked_from(cluster, "client", "http://echo.default.svc.cluster.local/").await?, "good morning");
    // A pod that is behind a Service reaches itself through it too. By the full name: `echo` is the pod's own in its /etc/hosts.
    assert_eq!(asked_from(cluster, "echo", "http://echo.default.svc.cluster.local/").await?, "good morning");
    delete_pod(cluster, "client").await?;
    delete_pod(cluster, "echo").await
}

pub(crate) async fn logs_and_exec(fixture: &Fixture) -> Outcome {
    let cluster = fixture.node().await?;
    create_server(cluster, "talker", "hello").await?;
    let said =
        cluster.run_kubectl(&["exec", "talker", "--", "/program", "get", "http://127.0.0.1:8080/from-exec"]).await?;
    assert_eq!(said, "hello");
    let pods: Api<Pod> = Api::namespaced(cluster.client(), "default");
    let log = pods.logs("talker", &LogParams::default()).await?;
    assert!(log.contains("serving hello") && log.contains("asked for /from-exec"), "{log}");
    delete_pod(cluster, "talker").await
}

pub(crate) async fn machine_and_pods(fixture: &Fixture) -> Outcome {
    let cluster = fixture.node().await?;
    create_server(cluster, "outward", "from inside").await?;
    let service = create_service(cluster, "outward").await?;
    let address = service.spec.unwrap_or_default().cluster_ip.unwrap_or_default();
    let (answer, _) = wait::until("the Service to answer the machine", LIMIT, async || get(&address, 80)).await?;
    assert!(answer.ends_with("from inside"), "{answer}");
    let listener = std::net::TcpListener::bind((cluster.machine_address()?, 0))?;
    let url = format!("http://{}/", listener.local_addr()?);
    let server = std::thread::spawn(move || answer_once(&listener));
    assert_eq!(asked_from(cluster, "outward", &url).await?, "from outside");
    server.join().expect("the server of the test")?;
    delete_pod(cluster, "outward").await
}

fn get(host: &str, port: u16) -> std::io::Result<String> {
    let mut stream = TcpStream::connect((host, port))?;
    write!(stream, "GET / HTTP/1.0\r\nHost: {host}\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}

fn answer_once(listener: &std::net::TcpListener) -> std::io::Result<()> {
    let (mut stream, _) = listener.accept()?;
    // However much of the request comes at once: the answer is the same.
    let _ = stream.read(&mut [0; 1024])?;
    stream.write_all(b"HTTP/1.0 200 OK\r\nContent-Length: 12\r\n\r\nfrom outside")
}

pub(crate) async fn one_gpu(fixture: &Fixture) -> Outcome {
    let cluster = fixture.node().await?;
    cluster.set_extended_resource("nvidia.com/gpu", 1).await?;
    let pods: Api<Pod> = Api::namespaced(cluster.client(), "default");
    let wish = json!({"nvidia.com/gpu": "1"});
    pods.create(&PostParams::default(), &serde_json::from_value(server("lucky", "lucky", &wish))?).await?;
    ready_pod(&pods, "lucky").await?;
    pods.create(&PostParams::default(), &serde_json::from_value(server("waiting", "waiting", &wish))?).await?;
    let (message, _) = wait::until("the second pod to wait for a GPU", LIMIT, async || {
        let status = pods.get("waiting").await.map_err(|error| error.to_string())?.status.unwrap_or_default();
        let mut messages = status.conditions.into_iter().flatten().filter_map(|condition| condition.message);
        messages.find(|message| message.contains("Insufficient nvidia.com/gpu")).ok_or("no such condition".to_owned())
    })
    .await?;
    tell(&message);
    delete_pod(cluster, "lucky").await?;
    ready_pod(&pods, "waiting").await?;
    delete_pod(cluster, "waiting").await?;
    cluster.set_extended_resource("nvidia.com/gpu", 0).await?;
    Ok(())
}

pub(crate) async fn nameless_image(fixture: &Fixture) -> Outcome {
    let cluster = fixture.node().await?;
    let archive = cluster.kubeconfig().with_file_name("no-image.tar");
    std::fs::write(&archive, "this is no archive")?;
    let error = cluster.import_image(&archive).await.expect_err("no image").to_string();
    assert!(error.contains("ctr"), "{error}");
    Ok(())
}
