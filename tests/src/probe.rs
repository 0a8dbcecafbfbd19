//! The image of the program `probe`: a small server and a small client, for pods of tests and of the demo.

use std::path::PathBuf;

use crate::cluster::image::{self, ImageError};
use crate::programs::{self, Profile, ProgramError, Purpose};
use crate::report::Report;

/// The name under which a cluster finds the image once its archive is imported.
pub const IMAGE: &str = "localhost/ortolan-probe:1";

/// Why there is no such image.
#[derive(Debug, thiserror::Error)]
pub enum ProbeError {
    /// The program could not be built.
    #[error(transparent)]
    Program(#[from] ProgramError),
    /// It could not be packed.
    #[error(transparent)]
    Image(#[from] ImageError),
}

/// Builds the program, unless it is in the cache, and packs it into an archive beside it.
///
/// # Errors
/// See [`ProbeError`].
pub fn archive(report: Report) -> Result<PathBuf, ProbeError> {
    let programs = programs::ensure(Profile::newest(), &[Purpose::Probe], report)?;
    let program = programs.path("probe")?;
    let archive = program.with_extension("tar");
    image::of_one_program(&archive, IMAGE, program)?;
    Ok(archive)
}
