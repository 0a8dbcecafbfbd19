//! What the machine must have.

use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::{Command, Stdio};

use super::ImageError;

/// Programs, and the Debian packages that have them.
const PROGRAMS: &[(&str, &str)] = &[("buildah", "buildah"), ("debootstrap", "debootstrap"), ("unshare", "util-linux")];

/// Makes sure that the programs are there; on a Debian they are installed, since this runs as root anyway.
pub(super) fn require(progress: &dyn Fn(&str)) -> Result<(), ImageError> {
    if !is_root() {
        return Err(ImageError::NotRoot);
    }
    let missing = missing();
    if missing.is_empty() {
        return Ok(());
    }
    let packages: Vec<_> = missing.iter().map(|(_, package)| *package).collect();
    progress(&format!("installing {}", packages.join(" ")));
    let _ = quietly(Command::new("apt-get").arg("update"));
    let _ = quietly(Command::new("apt-get").args(["install", "--yes", "--no-install-recommends"]).args(&packages));
    // What counts is not how that ended, but what is there now.
    let missing = self::missing();
    if missing.is_empty() {
        return Ok(());
    }
    let programs: Vec<_> = missing.iter().map(|(program, _)| *program).collect();
    Err(ImageError::MissingPrograms { programs: programs.join(", "), packages: packages.join(" ") })
}

fn missing() -> Vec<&'static (&'static str, &'static str)> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let is_missing = |program: &str| !std::env::split_paths(&path).any(|folder| folder.join(program).is_file());
    PROGRAMS.iter().filter(|(program, _)| is_missing(program)).collect()
}

fn is_root() -> bool {
    Path::new("/proc/self").metadata().is_ok_and(|me| me.uid() == 0)
}

fn quietly(command: &mut Command) -> std::io::Result<std::process::ExitStatus> {
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).status()
}
