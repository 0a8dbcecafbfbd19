//! Image archives of a single program, made without a builder: enough for the pause image and for small servers in tests.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use serde_json::json;
use sha2::{Digest, Sha256};

/// An archive could not be written.
#[derive(Debug, thiserror::Error)]
#[error("cannot make the image archive {} out of {}", archive.display(), program.display())]
pub struct ImageError {
    archive: PathBuf,
    program: PathBuf,
    #[source]
    source: io::Error,
}

/// Writes an archive of the image `name` in Docker's format. It holds the static `program` alone, as `/program`, and starts it.
///
/// # Errors
/// Names both files if one cannot be read or the other not written.
pub fn of_one_program(archive: &Path, name: &str, program: &Path) -> Result<(), ImageError> {
    of_program_at("program", archive, name, program)
}

/// The same with the program at this path from the root, for those who start it by its path.
///
/// # Errors
/// See [`of_one_program`].
pub fn of_program_at(place: &str, archive: &Path, name: &str, program: &Path) -> Result<(), ImageError> {
    write(place, archive, name, program).map_err(|source| ImageError {
        archive: archive.to_owned(),
        program: program.to_owned(),
        source,
    })
}

fn write(place: &str, archive: &Path, name: &str, program: &Path) -> io::Result<()> {
    let mut layer = tar::Builder::new(Vec::new());
    append(&mut layer, place, &fs::read(program)?, 0o755)?;
    let layer = layer.into_inner()?;
    let config = json!({
        "architecture": architecture(),
        "os": "linux",
        "config": {"Entrypoint": [format!("/{place}")]},
        "rootfs": {"type": "layers", "diff_ids": [format!("sha256:{}", digest(&layer))]},
    })
    .to_string();
    let config_name = format!("{}.json", digest(config.as_bytes()));
    let manifest = json!([{"Config": config_name, "RepoTags": [name], "Layers": ["layer.tar"]}]).to_string();
    let mut image = tar::Builder::new(File::create(archive)?);
    append(&mut image, &config_name, config.as_bytes(), 0o644)?;
    append(&mut image, "layer.tar", &layer, 0o644)?;
    append(&mut image, "manifest.json", manifest.as_bytes(), 0o644)?;
    image.into_inner()?.sync_data()
}

fn append<W: io::Write>(archive: &mut tar::Builder<W>, name: &str, content: &[u8], mode: u32) -> io::Result<()> {
    let mut header = tar::Header::new_gnu();
    header.set_size(content.len() as u64);
    header.set_mode(mode);
    archive.append_data(&mut header, name, content)
}

fn digest(content: &[u8]) -> String {
    Sha256::digest(content).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The name that images use for the machine's kind of processor.
fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}
