//! The images that our Dockerfiles start from, made here under the same names.
//!
//! They stand in for the published ones and hold the same Debian release and what a Dockerfile counts on; they are not the same
//! bytes. The Rust toolchain is the machine's own.

use std::fs;
use std::path::Path;
use std::process::Command;

use super::ImageError;
use super::buildah::Buildah;
use super::place::Place;

/// Changes whenever the images that are made here do, so that older ones in a cache are made anew.
pub(super) const RECIPE: &str = "1";
const LABEL: &str = "dev.ortolan.recipe";

/// What a Dockerfile may start from.
#[derive(Debug, PartialEq, Eq)]
enum Base<'a> {
    /// `debian:SUITE-slim`
    Debian { suite: &'a str },
    /// `rust:VERSION-slim-SUITE`
    Rust { suite: &'a str },
}

impl<'a> Base<'a> {
    fn parse(name: &'a str) -> Option<Self> {
        if let Some(tag) = name.strip_prefix("debian:") {
            return tag.strip_suffix("-slim").map(|suite| Self::Debian { suite });
        }
        let (_version, suite) = name.strip_prefix("rust:")?.split_once("-slim-")?;
        Some(Self::Rust { suite })
    }
}

/// Makes the base unless it is there.
pub(super) fn ensure(buildah: &Buildah<'_>, place: &Place, name: &str) -> Result<(), ImageError> {
    match Base::parse(name) {
        Some(Base::Debian { suite }) => ensure_debian(buildah, place, name, suite),
        Some(Base::Rust { suite }) => ensure_rust(buildah, place, name, suite),
        None => Err(ImageError::UnknownBase { base: name.to_owned() }),
    }
}

fn ensure_debian(buildah: &Buildah<'_>, place: &Place, name: &str, suite: &str) -> Result<(), ImageError> {
    if buildah.label(name, LABEL).as_deref() == Some(RECIPE) {
        return Ok(());
    }
    buildah.say(&format!("making {name} with debootstrap"));
    let root = place.scratch.join("debootstrap");
    remove_folder(&root)?;
    let path = root.to_string_lossy();
    buildah.run("debootstrap", &["--variant=minbase", suite, &path])?;
    remove_downloads(&root)?;
    buildah.commit("scratch", name, |container| {
        buildah.buildah(&["add", "--quiet", container, &path, "/"])?;
        buildah.buildah(&["config", "--cmd", "bash", "--label", &format!("{LABEL}={RECIPE}"), container])?;
        Ok(())
    })?;
    remove_folder(&root)
}

fn remove_folder(folder: &Path) -> Result<(), ImageError> {
    if folder.exists() {
        fs::remove_dir_all(folder).map_err(ImageError::file("remove", folder))?;
    }
    Ok(())
}

/// What debootstrap and apt keep of their downloads is half of the image.
fn remove_downloads(root: &Path) -> Result<(), ImageError> {
    for folder in ["var/cache/apt/archives", "var/lib/apt/lists"] {
        let folder = root.join(folder);
        remove_folder(&folder)?;
        fs::create_dir_all(folder.join("partial")).map_err(ImageError::file("create", &folder))?;
    }
    Ok(())
}

fn ensure_rust(buildah: &Buildah<'_>, place: &Place, name: &str, suite: &str) -> Result<(), ImageError> {
    let toolchain = Toolchain::of_this_machine()?;
    let recipe = format!("{RECIPE} {}", toolchain.version);
    if buildah.label(name, LABEL).as_deref() == Some(recipe.as_str()) {
        return Ok(());
    }
    let debian = format!("debian:{suite}-slim");
    ensure_debian(buildah, place, &debian, suite)?;
    buildah.say(&format!("making {name} with {}", toolchain.version));
    let install = "apt-get update && apt-get install --yes --no-install-recommends ca-certificates gcc libc6-dev \
                   && rm -rf /var/lib/apt/lists/*";
    buildah.commit(&debian, name, |container| {
        buildah.buildah(&["run", "--isolation", "chroot", container, "--", "sh", "-c", install])?;
        // Without the documentation, which is more than the rest.
        for part in ["bin", "lib", "libexec"] {
            let source = format!("{}/{part}", toolchain.root);
            buildah.buildah(&["add", "--quiet", container, &source, &format!("/usr/local/rust/{part}")])?;
        }
        let path = "PATH=/usr/local/rust/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
        let label = format!("{LABEL}={recipe}");
        buildah.buildah(&[
            "config",
            "--env",
            "CARGO_HOME=/usr/local/cargo",
            "--env",
            path,
            "--label",
            &label,
            container,
        ])?;
        Ok(())
    })
}

/// The Rust that the image gets.
struct Toolchain {
    version: String,
    root: String,
}

impl Toolchain {
    fn of_this_machine() -> Result<Self, ImageError> {
        Ok(Self { version: rustc(&["--version"])?, root: rustc(&["--print", "sysroot"])? })
    }
}

fn rustc(arguments: &[&str]) -> Result<String, ImageError> {
    let output = Command::new("rustc").args(arguments).output();
    let output = output.map_err(ImageError::file("run", Path::new("rustc")))?;
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_say_which_debian_and_unknown_ones_are_refused() {
        assert_eq!(Base::parse("debian:bookworm-slim"), Some(Base::Debian { suite: "bookworm" }));
        assert_eq!(Base::parse("rust:1.95-slim-trixie"), Some(Base::Rust { suite: "trixie" }));
        assert_eq!(Base::parse("debian:bookworm"), None);
        assert_eq!(Base::parse("alpine:3"), None);
    }
}
