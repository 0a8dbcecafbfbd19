//! A program that cargo compiled already, in place of the stage of a Dockerfile that compiles it.

use std::fs;
use std::path::Path;

use super::buildah::Buildah;
use super::place::Place;
use super::{ImageError, ImageSpec, dockerfile};

/// The stage of our Dockerfiles that compiles; what it leaves below `out` is what the image gets.
pub(super) const BUILDER: &str = "builder";

/// Whether what this machine compiles runs in the image, for it is linked to libraries that are not compiled into it.
pub(super) fn runs_in(spec: &ImageSpec, place: &Place) -> Result<bool, ImageError> {
    let release = fs::read_to_string("/etc/os-release").unwrap_or_default();
    Ok(is_release_of(&release, &dockerfile::bases(&place.repository, spec, Some(BUILDER))?))
}

fn is_release_of(release: &str, bases: &[String]) -> bool {
    let codename = release.lines().find_map(|line| line.strip_prefix("VERSION_CODENAME="));
    codename.is_some_and(|codename| bases.contains(&format!("debian:{codename}-slim")))
}

/// Puts the program where the stage would leave it; returns buildah's argument that names this folder instead of the stage.
pub(super) fn in_place_of_stage(
    buildah: &Buildah<'_>,
    place: &Place,
    spec: &ImageSpec,
    program: &Path,
) -> Result<String, ImageError> {
    let stage = place.scratch.join("compiled");
    let folder = stage.join("out/usr/local/bin");
    fs::create_dir_all(&folder).map_err(ImageError::file("create", &folder))?;
    // What describes it to a debugger is more than the program.
    let stripped = folder.join(spec.program).display().to_string();
    buildah.run("strip", &["-o", &stripped, &program.display().to_string()])?;
    Ok(format!("--build-context={BUILDER}={}", stage.display()))
}

#[cfg(test)]
mod tests {
    use super::super::ALL;
    use super::*;

    #[test]
    fn a_program_runs_on_the_release_it_was_compiled_on() {
        let bases = ["debian:bookworm-slim".to_owned()];
        assert!(is_release_of("ID=debian\nVERSION_CODENAME=bookworm\n", &bases));
        assert!(!is_release_of("ID=debian\nVERSION_CODENAME=trixie\n", &bases));
        assert!(!is_release_of("ID=alpine\n", &bases));
    }

    #[test]
    fn every_dockerfile_has_the_stage_that_is_replaced() {
        let repository = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        for spec in ALL {
            let text = fs::read_to_string(repository.join(spec.dockerfile)).unwrap();
            assert!(text.contains(&format!(" AS {BUILDER}\n")), "{}", spec.dockerfile);
            assert!(text.contains(&format!("COPY --from={BUILDER} /out /\n")), "{}", spec.dockerfile);
            assert!(text.contains(&format!(" /out/usr/local/bin/{} ", spec.program)), "{}", spec.dockerfile);
        }
    }
}
