//! `cluster`: a Kubernetes on this machine, by hand.

#![allow(clippy::disallowed_methods, reason = "a harness is told by its environment what to use")]

use std::fmt::Display;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};
use ortolan_tests::cluster::{Cluster, ClusterError, Listed, Options, Part, clusters_folder};
use ortolan_tests::programs::{self, Profile, Purpose};
use ortolan_tests::report::{self, Report};
use ortolan_tests::requirements;

/// A real Kubernetes on this Linux machine, without a registry and without Docker.
#[derive(Parser)]
struct Arguments {
    #[command(subcommand)]
    command: Action,
}

#[derive(Subcommand)]
enum Action {
    /// Starts a cluster and leaves it running. One of the same name is ended first.
    Up(Up),
    /// Ends a cluster, or what is left of one, and removes all of it.
    Down(Down),
    /// Shows the clusters and which of their parts run.
    List,
    /// Prints the path of the kubeconfig.
    Kubeconfig(Named),
    /// Prints the log of a part.
    Logs(OnPart),
    /// Kills a part as a crash would.
    Kill(OnPart),
    /// Asks a part to end, and waits until it has.
    Stop(OnPart),
    /// Starts a part that has ended.
    Start(OnPart),
    /// Kills a part, if it runs, and starts it again.
    Restart(OnPart),
    /// Stops a part in its tracks, with its connections open.
    Freeze(OnPart),
    /// Lets a frozen part go on.
    Thaw(OnPart),
    /// Brings images from archives (OCI's or Docker's format) to the node.
    Import(Import),
    /// Says everything that this machine lacks, and installs nothing.
    Check,
    /// Builds all programs that the cache lacks and prints where they are.
    Programs(OfProfile),
}

#[derive(Args)]
struct Named {
    /// Which cluster.
    #[arg(long, default_value = "ortolan")]
    name: String,
}

#[derive(Args)]
struct OfProfile {
    /// The versions, named after that of Kubernetes.
    #[arg(long, default_value = Profile::newest().name)]
    profile: String,
}

#[derive(Args)]
struct Up {
    #[command(flatten)]
    named: Named,
    #[command(flatten)]
    of: OfProfile,
    /// The API and its controllers alone, which needs no root.
    #[arg(long)]
    control_plane_only: bool,
    /// How many nodes kwok plays.
    #[arg(long, default_value_t = 0)]
    kwok_nodes: usize,
    /// How many GPUs the node says it has.
    #[arg(long, default_value_t = 0, conflicts_with = "control_plane_only")]
    gpus: u32,
}

#[derive(Args)]
struct Down {
    #[command(flatten)]
    named: Named,
    /// Every cluster.
    #[arg(long, conflicts_with = "name")]
    all: bool,
}

#[derive(Args)]
struct OnPart {
    /// The part, for instance kubelet.
    part: Part,
    #[command(flatten)]
    named: Named,
}

#[derive(Args)]
struct Import {
    /// The archives.
    #[arg(required = true)]
    archives: Vec<PathBuf>,
    #[command(flatten)]
    named: Named,
}

type Outcome = Result<(), Box<dyn std::error::Error>>;

#[tokio::main]
async fn main() -> ExitCode {
    match run(Arguments::parse().command).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            Report::to_stderr().say(&format!("error: {}", report::chain(&*error)));
            ExitCode::FAILURE
        }
    }
}

async fn run(action: Action) -> Outcome {
    match action {
        Action::Up(arguments) => up_unless_interrupted(arguments).await,
        Action::Down(arguments) => down(&arguments),
        Action::List => list(),
        Action::Kubeconfig(named) => print(open(&named).await?.kubeconfig().display()),
        Action::Logs(on) => logs(&open(&on.named).await?.log(on.part)?),
        Action::Kill(on) => Ok(open(&on.named).await?.kill(on.part)?),
        Action::Stop(on) => Ok(open(&on.named).await?.stop(on.part)?),
        Action::Start(on) => Ok(open(&on.named).await?.start(on.part)?),
        Action::Restart(on) => Ok(open(&on.named).await?.restart(on.part)?),
        Action::Freeze(on) => Ok(open(&on.named).await?.freeze(on.part)?),
        Action::Thaw(on) => Ok(open(&on.named).await?.thaw(on.part)?),
        Action::Import(arguments) => import(&arguments).await,
        Action::Check => check(),
        Action::Programs(of) => build_programs(&of),
    }
}

/// An interrupted start leaves nothing behind.
async fn up_unless_interrupted(arguments: Up) -> Outcome {
    let name = arguments.named.name.clone();
    let interrupted = tokio::select! {
        outcome = up(arguments) => return outcome,
        signal = tokio::signal::ctrl_c() => signal,
    };
    interrupted?;
    Report::to_stderr().say("interrupted: removing what was started");
    Cluster::remove(&clusters_folder(), &name)?;
    Err("interrupted".into())
}

async fn up(arguments: Up) -> Outcome {
    let mut options = Options::named(&arguments.named.name);
    options.profile = Profile::named(&arguments.of.profile)?;
    options.node = !arguments.control_plane_only;
    Cluster::must_be_ours("start a cluster")?;
    let cluster = Cluster::up(&options).await?;
    if arguments.kwok_nodes > 0 {
        cluster.add_kwok_nodes(arguments.kwok_nodes).await?;
    }
    if arguments.gpus > 0 {
        cluster.set_extended_resource("nvidia.com/gpu", arguments.gpus).await?;
    }
    let kubectl = cluster.kubectl()?;
    print(format_args!("export KUBECONFIG={}", cluster.kubeconfig().display()))?;
    print(format_args!("alias kubectl={}", Path::new(kubectl.get_program()).display()))?;
    cluster.leave_running();
    Ok(())
}

fn down(arguments: &Down) -> Outcome {
    let base = clusters_folder();
    let names = if arguments.all {
        Cluster::list(&base)?.into_iter().map(|listed| listed.name).collect()
    } else {
        vec![arguments.named.name.clone()]
    };
    for name in names {
        let step = Report::to_stderr().step(format!("remove the cluster `{name}`"));
        Cluster::remove(&base, &name)?;
        step.done();
    }
    Ok(())
}

fn list() -> Outcome {
    for Listed { name, api, running } in Cluster::list(&clusters_folder())? {
        let running = running.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ");
        let api = api.unwrap_or_else(|| "no API".to_owned());
        print(format_args!("{name}\t{api}\t{}", if running.is_empty() { "nothing runs" } else { &running }))?;
    }
    Ok(())
}

fn logs(path: &Path) -> Outcome {
    io::copy(&mut std::fs::File::open(path)?, &mut io::stdout())?;
    Ok(())
}

async fn import(arguments: &Import) -> Outcome {
    let cluster = open(&arguments.named).await?;
    for archive in &arguments.archives {
        for image in cluster.import_image(archive).await? {
            print(image)?;
        }
    }
    Ok(())
}

fn check() -> Outcome {
    let purposes = [Purpose::ControlPlane, Purpose::Node, Purpose::Images];
    match requirements::missing(&purposes) {
        missing if missing.is_empty() => print("nothing is missing"),
        missing => Err(requirements::RequirementError::Missing(missing).into()),
    }
}

fn build_programs(of: &OfProfile) -> Outcome {
    let purposes = [
        Purpose::ControlPlane,
        Purpose::Node,
        Purpose::Kwok,
        Purpose::Helm,
        Purpose::Rules,
        Purpose::Traces,
        Purpose::PrometheusOperator,
    ];
    let programs = programs::ensure(Profile::named(&of.profile)?, &purposes, Report::to_stderr())?;
    for (_, path) in programs.iter() {
        print(path.display())?;
    }
    Ok(())
}

async fn open(named: &Named) -> Result<Cluster, ClusterError> {
    Cluster::open(&clusters_folder(), &named.name, Report::to_stderr()).await
}

/// A reader that has gone away is an error here, not a panic.
fn print(line: impl Display) -> Outcome {
    writeln!(io::stdout(), "{line}")?;
    Ok(())
}
