//! One file to bring, whatever it comes from, and what it has to be when it is there.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::{
    digest::Digest,
    error::FetchError,
    partial::{Partial, Whole},
    plan::Origin,
};

/// One file to bring.
#[derive(Debug, Clone)]
pub struct Item {
    /// Where it is.
    pub from: Origin,
    /// Where it goes.
    pub target: PathBuf,
    /// Beside which path its bytes lie until it is whole.
    pub beside: PathBuf,
    /// What it has to be; none where anything will do.
    pub sha256: Option<Digest>,
    /// Whether it is a graph, which is neither a page for people nor empty.
    pub is_graph: bool,
}

/// One file that is there, whole and checked.
#[derive(Debug)]
pub struct Come {
    /// What is known of it.
    pub fetched: Fetched,
    /// The file itself, where it is not in its place yet.
    pub whole: Option<Whole>,
}

/// What is known of a file that was brought.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fetched {
    /// Its size.
    pub bytes: u64,
    /// Its digest.
    pub sha256: Digest,
    /// False where it was there already.
    pub fetched: bool,
}

impl Item {
    /// What is in its place already, if it is the right file.
    #[must_use]
    pub fn already_there(&self) -> Option<Come> {
        let expected = self.sha256?;
        let (sha256, bytes) = Digest::of_file(&self.target).ok()?;
        (sha256 == expected).then_some(Come { fetched: Fetched { bytes, sha256, fetched: false }, whole: None })
    }

    /// Whether what came is what was asked for.
    ///
    /// # Errors
    /// [`FetchError::HtmlPage`] and [`FetchError::Empty`] first, for they say more than that the digests differ.
    pub fn check(&self, came: &Partial) -> Result<(), FetchError> {
        let (bytes, got) = (came.bytes(), came.digest());
        let differs = self.sha256.filter(|expected| *expected != got);
        let suspicious = self.is_graph || differs.is_some();
        if suspicious && bytes == 0 {
            return Err(FetchError::Empty(self.from.to_string()));
        }
        if suspicious && came.looks_like_html() {
            return Err(FetchError::HtmlPage(self.from.to_string()));
        }
        match differs {
            Some(expected) => Err(FetchError::Checksum { file: self.from.to_string(), expected, got, bytes }),
            None => Ok(()),
        }
    }
}
