//! A program that runs on this machine beside the cluster, and is told by a kubeconfig who it is to the API.

use std::fs::{self, File};
use std::io::Write;
use std::net::{IpAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use ortolan_tests::cluster::{Cluster, wait};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

use crate::fixture::{Failure, LIMIT, Outcome};

/// How much of a log is shown when a program fails.
const TAIL_LINES: usize = 20;

/// How a program is started.
pub(crate) struct Launch {
    /// Its name in messages and that of its log.
    pub(crate) name: &'static str,
    pub(crate) program: PathBuf,
    pub(crate) arguments: Vec<String>,
    pub(crate) environment: Vec<(&'static str, String)>,
}

/// A program that runs, until this is dropped.
pub(crate) struct Server {
    name: &'static str,
    child: Child,
    log: PathBuf,
}

impl Server {
    /// Starts it. Its log goes on where that of an earlier one of the same name has ended.
    pub(crate) fn start(cluster: &Cluster, launch: &Launch) -> Outcome<Self> {
        let log = folder(cluster, "log")?.join(format!("{}.log", launch.name));
        let file = File::options().create(true).append(true).open(&log)?;
        let mut command = Command::new(&launch.program);
        command.env_clear().env("HOME", folder(cluster, "")?).envs(launch.environment.iter().map(|(k, v)| (k, v)));
        cluster.adopt(&mut command)?;
        command.args(&launch.arguments).stdin(Stdio::null()).stdout(file.try_clone()?).stderr(file);
        Ok(Self { name: launch.name, child: command.spawn()?, log })
    }

    /// Waits until `look` is content, and fails at once if the program has ended.
    pub(crate) async fn until<Seen: std::fmt::Display>(
        &mut self,
        what: &str,
        mut look: impl AsyncFnMut() -> Result<(), Seen>,
    ) -> Outcome<Duration> {
        let Self { name, child, log } = self;
        let found = wait::until(&format!("{name} {what}"), LIMIT, async || {
            if let Ok(Some(status)) = child.try_wait() {
                return Ok(Err(status));
            }
            look().await.map(Ok)
        })
        .await;
        let tail = || tail_of(log);
        match found {
            Ok((Ok(()), time)) => Ok(time),
            Ok((Err(status), _)) => Err(Failure::new(format!("{name} has ended with {status}:\n{}", tail()))),
            Err(error) => Err(Failure::new(format!("{error}; the end of its log:\n{}", tail()))),
        }
    }

    /// Waits until the program has ended by itself.
    pub(crate) async fn until_it_ends(mut self) -> Outcome<ExitStatus> {
        let Self { name, child, log } = &mut self;
        let ended = async || match child.try_wait() {
            Ok(Some(status)) => Ok(status),
            Ok(None) => Err(format!("it runs; the end of its log:\n{}", tail_of(log))),
            Err(error) => Err(error.to_string()),
        };
        Ok(wait::until(&format!("{name} to end"), LIMIT, ended).await?.0)
    }

    /// Asks it to end, and waits until it has.
    pub(crate) fn terminate(mut self) -> Outcome {
        let begun = Instant::now();
        if let Some(pid) = Pid::from_raw(self.child.id().cast_signed()) {
            kill_process(pid, Signal::TERM)?;
        }
        while begun.elapsed() < Duration::from_secs(20) {
            if self.child.try_wait()?.is_some() {
                return Ok(());
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        Err(Failure::new(format!("{} does not end by SIGTERM", self.name)))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The account of a program: its namespace and its name.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Account {
    pub(crate) namespace: &'static str,
    pub(crate) name: &'static str,
}

impl Account {
    /// Writes a kubeconfig with a new token of the account.
    pub(crate) async fn kubeconfig(self, cluster: &Cluster) -> Outcome<PathBuf> {
        let Self { namespace, name } = self;
        let token = cluster.run_kubectl(&["create", "token", name, "-n", namespace, "--duration=24h"]).await?;
        let config = cluster.run_kubectl(&["config", "view", "--raw", "--flatten", "-o", "json"]).await?;
        let config: Value = serde_json::from_str(&config)?;
        let config = json!({
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "test", "cluster": config["clusters"][0]["cluster"]}],
            "users": [{"name": name, "user": {"token": token.trim()}}],
            "contexts": [{"name": "test", "context": {"cluster": "test", "user": name}}],
            "current-context": "test",
        });
        let file = folder(cluster, "config")?.join(format!("{namespace}-{name}.kubeconfig"));
        fs::write(&file, config.to_string())?;
        Ok(file)
    }
}

/// A folder of the cluster's files, which exists from now on.
pub(crate) fn folder(cluster: &Cluster, name: &str) -> Outcome<PathBuf> {
    let folder = cluster.kubeconfig().parent().unwrap_or(Path::new(".")).join(name);
    fs::create_dir_all(&folder)?;
    Ok(folder)
}

/// Applies objects as whoever installs the program does.
pub(crate) async fn apply(cluster: &Cluster, objects: &[Value]) -> Outcome {
    let file = folder(cluster, "config")?.join("applied.json");
    let list = json!({"apiVersion": "v1", "kind": "List", "items": objects});
    File::create(&file)?.write_all(list.to_string().as_bytes())?;
    cluster.run_kubectl(&["apply", "--server-side", "-f", &file.display().to_string()]).await?;
    Ok(())
}

/// A port of this machine at that address that was free a moment ago, and so it is now, unless somebody is very quick.
pub(crate) fn free_port(address: IpAddr) -> Outcome<u16> {
    Ok(TcpListener::bind((address, 0))?.local_addr()?.port())
}

fn tail_of(log: &Path) -> String {
    let text = fs::read_to_string(log).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(TAIL_LINES)..].join("\n")
}
