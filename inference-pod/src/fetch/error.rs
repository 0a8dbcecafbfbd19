//! Why a model was not fetched: each with its cause and what to do, and a reason for the operator.

use std::{
    io,
    path::{Path, PathBuf},
};

use reqwest::StatusCode;

use super::{
    archive::ArchiveError,
    digest::Digest,
    download::Broken,
    plan::PlanError,
    space::{NoRoom, Space},
    tries::Made,
};
use crate::{
    files::FilesError,
    termination::{Termination, error_chain},
};

/// Why a model was not fetched. No sentence holds a user, a password or a query of an address.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// The flags.
    #[error(transparent)]
    Plan(#[from] PlanError),
    /// The last of several tries failed.
    #[error(
        "cannot fetch {url}, given up after {tries}: see that the server works and that this pod can reach it \
         (address, DNS, network policy, proxy)"
    )]
    GivenUp {
        /// The address.
        url: String,
        /// Tries made.
        tries: Made,
        /// What the last one met.
        source: Broken,
    },
    /// An answer that trying again does not change.
    #[error("{url} answered {status} (after {tries}): correct the address, or put the file there")]
    Status {
        /// The address.
        url: String,
        /// The answer.
        status: StatusCode,
        /// Tries made.
        tries: Made,
    },
    /// 401 or 403.
    #[error("{url} answered {status}: give credentials that may read it, or let it be read without")]
    Denied {
        /// The address.
        url: String,
        /// The answer.
        status: StatusCode,
    },
    /// The server's certificate.
    #[error("{url} has a certificate that is not trusted: correct it, or name the right roots by SSL_CERT_FILE")]
    Certificate {
        /// The address.
        url: String,
        /// What is wrong with it.
        source: rustls::Error,
    },
    /// The server sends elsewhere, and that way is not taken.
    #[error("{url} redirects where fetch does not go: give the address of the file itself")]
    Redirect {
        /// The address.
        url: String,
        /// Which rule was broken.
        source: reqwest::Error,
    },
    /// No client, so no request.
    #[error("cannot set the HTTP client up: see that SSL_CERT_FILE names the certificates of this system")]
    Client(#[source] reqwest::Error),
    /// The disk.
    #[error("no room for {file}: {room}")]
    OutOfDisk {
        /// What was to be written.
        file: String,
        /// The numbers.
        room: NoRoom,
    },
    /// The file is another one.
    #[error(
        "{file} is not the file that was asked for: {bytes} bytes with sha256 {got}, expected {expected}; correct the \
         sha256 if the file was changed on purpose, else the address"
    )]
    Checksum {
        /// The file, by its address.
        file: String,
        /// What was asked for.
        expected: Digest,
        /// What came.
        got: Digest,
        /// How much came.
        bytes: u64,
    },
    /// A page instead of a file.
    #[error(
        "{0} is an HTML page, not a model: the address shows the file to people or asks them to log in; give the one that \
         downloads it"
    )]
    HtmlPage(String),
    /// Nothing instead of a file.
    #[error("{0} is empty: put the model there again")]
    Empty(String),
    /// The archive.
    #[error("cannot unpack {url}")]
    Archive {
        /// Its address.
        url: String,
        /// What is wrong with it.
        source: ArchiveError,
    },
    /// What was fetched is no model.
    #[error("what was fetched holds no model")]
    NoModel(#[source] FilesError),
    /// A file that fetch did not bring goes before those that it brought.
    #[error(
        "{} would be served instead of the model that was fetched, and fetch did not bring it: remove it, or fetch into \
         another folder",
        .0.display()
    )]
    OtherModel(PathBuf),
    /// A file of this machine.
    #[error("cannot read {}: correct the address, or mount the volume that it is on", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A folder of this machine.
    #[error("folder {} holds more than {limit} files or is nested too deeply: give the folder of one model", path.display())]
    FolderTooLarge {
        /// The folder.
        path: PathBuf,
        /// How many there may be.
        limit: usize,
    },
    /// The model's folder.
    #[error("cannot write {}: see that the volume may be written by this user", path.display())]
    Unwritable {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Threads or signals.
    #[error("cannot set the process up")]
    Process(#[source] io::Error),
    /// Somebody wanted the process to end.
    #[error("a signal ended the fetch; what came so far is kept, and the next fetch goes on from there")]
    Stopped,
}

impl FetchError {
    /// A file that cannot be written: for want of room, or for another reason. `needed` is what was still to come.
    #[must_use]
    pub fn writing(path: &Path, source: io::Error, space: &Space, needed: u64) -> Self {
        match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
                Self::OutOfDisk { file: path.display().to_string(), room: space.exhausted(needed) }
            }
            _ => Self::Unwritable { path: path.to_owned(), source },
        }
    }

    /// What the operator shows of it.
    #[must_use]
    pub fn termination(&self, model: &str) -> Termination {
        Termination { model: Some(model.to_owned()), reason: self.reason(), message: error_chain(self) }
    }

    fn reason(&self) -> &'static str {
        match self {
            Self::Plan(PlanError::Faults(_)) => "InvalidOptions",
            Self::Denied { .. } => "CredentialsDenied",
            Self::OutOfDisk { .. } => "OutOfDisk",
            Self::Checksum { .. } => "ChecksumMismatch",
            Self::Plan(PlanError::NoModelNamed)
            | Self::HtmlPage(_)
            | Self::Empty(_)
            | Self::Archive { .. }
            | Self::NoModel(_)
            | Self::OtherModel(_)
            | Self::FolderTooLarge { .. } => "InvalidModel",
            Self::GivenUp { .. }
            | Self::Status { .. }
            | Self::Certificate { .. }
            | Self::Redirect { .. }
            | Self::Client(_)
            | Self::Unreadable { .. }
            | Self::Unwritable { .. }
            | Self::Process(_)
            | Self::Stopped => "FetchFailed",
        }
    }
}
