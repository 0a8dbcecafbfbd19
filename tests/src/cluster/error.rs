//! What can go wrong with a cluster.

use std::io;
use std::path::PathBuf;

use super::cgroups::CgroupError;
use super::config::AccessError;
use super::folder::FolderError;
use super::image::ImageError;
use super::network::NetworkError;
use super::parts::Part;
use super::process::SignalError;
use super::remains::RemainsError;
use super::space::SpaceError;
use super::wait::WaitError;
use crate::programs::ProgramError;
use crate::requirements::RequirementError;
use crate::run::RunError;

/// Why a cluster did not do what it was asked to.
#[derive(Debug, thiserror::Error)]
pub enum ClusterError {
    /// The machine lacks something.
    #[error(transparent)]
    Requirement(#[from] RequirementError),
    /// A program could not be built.
    #[error(transparent)]
    Program(#[from] ProgramError),
    /// A file of the cluster.
    #[error(transparent)]
    Folder(#[from] FolderError),
    /// Keys and certificates.
    #[error(transparent)]
    Access(#[from] AccessError),
    /// Namespaces.
    #[error(transparent)]
    Space(#[from] SpaceError),
    /// Addresses and cables.
    #[error("cannot connect the cluster to the machine")]
    Network(#[from] NetworkError),
    /// Control groups.
    #[error(transparent)]
    Cgroup(#[from] CgroupError),
    /// The pause image.
    #[error(transparent)]
    Image(#[from] ImageError),
    /// Ending a cluster, or what was left of one.
    #[error("cannot remove the cluster `{name}` entirely")]
    Remains {
        /// The cluster.
        name: String,
        /// What is left.
        #[source]
        source: RemainsError,
    },
    /// A part did not start.
    #[error("cannot start {part}")]
    Start {
        /// Which.
        part: Part,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// A command did not start inside.
    #[error("cannot start {program} inside the cluster")]
    Inside {
        /// Which.
        program: String,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// A part ended by itself.
    #[error("{part} has ended; the end of {}:\n{tail}", log.display())]
    Ended {
        /// Which.
        part: Part,
        /// Its log.
        log: PathBuf,
        /// The last lines of it.
        tail: String,
    },
    /// A signal.
    #[error(transparent)]
    Signal(#[from] SignalError),
    /// A signal without effect.
    #[error("{part} (pid {pid}) does not obey a signal")]
    Stubborn {
        /// Which.
        part: Part,
        /// Its process.
        pid: i32,
    },
    /// A command.
    #[error(transparent)]
    Run(#[from] RunError),
    /// A state that was not reached, with the logs that may say why.
    #[error("the cluster did not get ready{logs}")]
    NotReady {
        /// What was waited for.
        #[source]
        source: WaitError,
        /// The ends of the logs.
        logs: String,
    },
    /// The API said no.
    #[error("the API refused to {attempt}")]
    Api {
        /// What was attempted.
        attempt: &'static str,
        /// What it said.
        #[source]
        source: Box<kube::Error>,
    },
    /// A kubeconfig that is of no use.
    #[error("cannot use the kubeconfig {from}")]
    Kubeconfig {
        /// Where it was read from.
        from: String,
        /// What is wrong.
        #[source]
        source: Box<kube::config::KubeconfigError>,
    },
    /// There is no such cluster.
    #[error("there is no cluster `{name}` in {}; `cluster list` shows those there are", base.display())]
    Absent {
        /// What was asked for.
        name: String,
        /// Where it was looked for.
        base: PathBuf,
    },
    /// The control plane alone has no node to do this on.
    #[error("cannot {0}: this cluster has no node of ours")]
    NoNode(&'static str),
    /// A second process of a part would stand in the way of the first.
    #[error("{0} runs already; end it first, or restart it")]
    RunsAlready(Part),
    /// Somebody else's cluster.
    #[error("cannot {0}: the cluster is not ours (CONTEXT is set); {1}")]
    NotOurs(&'static str, String),
    /// The image's archive names nothing.
    #[error("`{}` holds no image with a name; make it with `buildah push IMAGE docker-archive:FILE:NAME`", .0.display())]
    NamelessImage(PathBuf),
}

/// For `map_err` behind a call of the API.
pub(super) fn api_error(attempt: &'static str) -> impl FnOnce(kube::Error) -> ClusterError {
    move |source| ClusterError::Api { attempt, source: Box::new(source) }
}
