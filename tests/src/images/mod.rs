//! Container images, built from the Dockerfiles that users build, without a registry and without Docker.
//!
//! ```text
//! Dockerfile ▸ inputs (digest of all that goes in) ▸ bases (debootstrap) ▸ buildah ▸ archive
//! ```
//!
//! A *base* is an image that a Dockerfile starts from. No registry is asked for it: it is made here, once, and committed under the
//! very name that the Dockerfile says. An *archive* is the tar file that comes out, named by the digest of what went in, so that an
//! unchanged image is not built again; the name inside is the one that a container runtime looks up.
//!
//! All that is made lies in the cache folder, and every command runs in a mount namespace of its own: nothing stays mounted,
//! whatever way a command ends.

mod bases;
mod buildah;
mod dockerfile;
mod inputs;
mod place;
mod stage;
mod tools;

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use buildah::Buildah;
use place::Place;

use crate::compiled::{self, NotCompiled};

pub use dockerfile::render;

/// The repository part of our images' names, as a container runtime completes it.
const REPOSITORY: &str = "docker.io/ortolan";

/// One image: a Dockerfile with arguments.
#[derive(Debug, Clone, Copy)]
pub struct ImageSpec {
    /// What people call it; also the first part of the archive's name.
    pub name: &'static str,
    /// The Dockerfile, from the repository's root.
    pub dockerfile: &'static str,
    /// The image's name in the repository.
    pub repository: &'static str,
    /// The program that it runs.
    pub program: &'static str,
    /// What follows the version in the tag.
    pub tag_suffix: &'static str,
    /// Arguments of the build.
    pub arguments: &'static [(&'static str, &'static str)],
    /// Files and folders that the image is made of, from the repository's root.
    pub inputs: &'static [&'static str],
}

const POD_INPUTS: &[&str] = &[
    ".dockerignore",
    "Cargo.lock",
    "Cargo.toml",
    "Dockerfile.pod",
    "LICENSE",
    "crds/Cargo.toml",
    "crds/src",
    "deploy/images",
    "deploy/profile",
    "deploy/onnxruntime",
    "deploy/pypi.py",
    "inference-pod/Cargo.toml",
    "inference-pod/src",
];

/// The model server on CPUs.
pub const POD: ImageSpec = ImageSpec {
    name: "pod",
    dockerfile: "Dockerfile.pod",
    repository: "inference-pod",
    program: "inference-pod",
    tag_suffix: "",
    arguments: &[("RUNTIME", "cpu")],
    inputs: POD_INPUTS,
};

/// The model server with CUDA.
pub const POD_CUDA: ImageSpec =
    ImageSpec { name: "pod-cuda", tag_suffix: "-cuda", arguments: &[("RUNTIME", "cuda")], ..POD };

/// The operator.
pub const OPERATOR: ImageSpec = ImageSpec {
    name: "operator",
    dockerfile: "Dockerfile.operator",
    repository: "operator",
    program: "ortolan-operator",
    tag_suffix: "",
    arguments: &[],
    inputs: &[
        ".dockerignore",
        "Cargo.lock",
        "Cargo.toml",
        "Dockerfile.operator",
        "LICENSE",
        "crds/Cargo.toml",
        "crds/src",
        "deploy/dashboards/model.json",
        "deploy/images",
        "deploy/rules/models.yaml",
        "operator/Cargo.toml",
        "operator/src",
    ],
};

/// Every image.
pub const ALL: &[ImageSpec] = &[POD, POD_CUDA, OPERATOR];

impl ImageSpec {
    /// The name under which a container runtime finds the image once its archive is imported.
    pub fn reference(&self) -> String {
        format!("{REPOSITORY}/{}:{}{}", self.repository, env!("CARGO_PKG_VERSION"), self.tag_suffix)
    }
}

/// An image that is there to be imported.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BuiltImage {
    /// The name inside the archive.
    pub reference: String,
    /// The archive, in the format of `docker save`.
    pub archive: PathBuf,
    /// The archive's size; it is not compressed.
    pub bytes: u64,
}

/// Why there is no image.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// Base images have files of many owners.
    #[error("building images takes root: debootstrap and buildah create files of other users")]
    NotRoot,
    /// Programs that the machine lacks, and that could not be installed.
    #[error("{programs} missing; install with: apt-get install --no-install-recommends {packages}")]
    MissingPrograms {
        /// What was looked for.
        programs: String,
        /// The Debian packages that have them.
        packages: String,
    },
    /// A Dockerfile starts from something that cannot be made here.
    #[error("cannot make base image `{base}`, only debian:SUITE-slim and rust:VERSION-slim-SUITE")]
    UnknownBase {
        /// The name after FROM.
        base: String,
    },
    /// The image is to have a program that cargo compiled.
    #[error(transparent)]
    NotCompiled(#[from] NotCompiled),
    /// A command of the build failed.
    #[error("`{command}` failed; {} ends with\n{tail}", log.display())]
    Command {
        /// The command and its first arguments.
        command: String,
        /// Everything that the build's commands said.
        log: PathBuf,
        /// The log's last lines.
        tail: String,
    },
    /// A file could not be read or written.
    #[error("cannot {action} {}", path.display())]
    File {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
}

impl ImageError {
    /// For `map_err` behind a call on a file.
    fn file(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::File { action, path, source }
    }
}

/// Builds the image as it is published, unless an archive of exactly these inputs is there already.
///
/// Two processes may ask at once: one builds, the other waits. `progress` is told every step that takes time.
///
/// # Errors
/// See [`ImageError`]. A failed build leaves no archive and nothing mounted; its log stays.
pub fn build(spec: &ImageSpec, progress: &dyn Fn(&str)) -> Result<BuiltImage, ImageError> {
    let place = Place::find()?;
    let digest = inputs::digest(&place.repository, spec, &[])?;
    Making { spec, place: &place, program: None, progress }.archive(spec.name, &digest)
}

/// Builds the image with the program that was compiled with the tests, and so again within seconds; all else in it is as published.
/// Where this machine's programs do not run in it, or the environment has `ORTOLAN_PUBLISHED_IMAGES`, it is [`build`].
///
/// # Errors
/// As [`build`]; [`ImageError::NotCompiled`] if there is no such program.
pub fn build_with_compiled(spec: &ImageSpec, progress: &dyn Fn(&str)) -> Result<BuiltImage, ImageError> {
    if std::env::var_os("ORTOLAN_PUBLISHED_IMAGES").is_some() {
        return build(spec, progress);
    }
    let place = Place::find()?;
    if !stage::runs_in(spec, &place)? {
        progress("this machine is another Debian than the image, so the image is built as it is published");
        return build(spec, progress);
    }
    let program = compiled::find(spec.program)?;
    let digest = inputs::digest(&place.repository, spec, &[&program])?;
    let name = format!("{}-{COMPILED}", spec.name);
    Making { spec, place: &place, program: Some(&program), progress }.archive(&name, &digest)
}

/// What an archive with a program from outside has in its name.
const COMPILED: &str = "compiled";

/// How one image is made.
struct Making<'a> {
    spec: &'a ImageSpec,
    place: &'a Place,
    /// Compiled already.
    program: Option<&'a Path>,
    progress: &'a dyn Fn(&str),
}

impl Making<'_> {
    /// The archive of these inputs, made if it is not there.
    fn archive(&self, name: &str, digest: &str) -> Result<BuiltImage, ImageError> {
        let archive = self.place.images.join(format!("{name}-{digest}.tar"));
        if !archive.exists() {
            let _lock = lock(&self.place.images.join(".lock"))?;
            // Whoever had the lock may have built it.
            if !archive.exists() {
                self.make(name, &archive)?;
            }
        }
        let bytes = fs::metadata(&archive).map_err(ImageError::file("read", &archive))?.len();
        Ok(BuiltImage { reference: self.spec.reference(), archive, bytes })
    }

    fn make(&self, name: &str, archive: &Path) -> Result<(), ImageError> {
        tools::require(self.progress)?;
        let log = self.place.images.join(format!("{name}.log"));
        let buildah = Buildah::new(self.place, &log, self.progress)?;
        buildah.remove_leftovers()?;
        let unbuilt = self.program.map(|_| stage::BUILDER);
        for base in dockerfile::bases(&self.place.repository, self.spec, unbuilt)? {
            bases::ensure(&buildah, self.place, &base)?;
        }
        (self.progress)(&format!("building {}", self.spec.reference()));
        let place_of_stage = match self.program {
            Some(program) => Some(stage::in_place_of_stage(&buildah, self.place, self.spec, program)?),
            None => None,
        };
        buildah.build(self.spec, self.place, place_of_stage)?;
        let partial = archive.with_extension("partial");
        buildah.save(&self.spec.reference(), &partial)?;
        remove_older(name, &self.place.images)?;
        fs::rename(&partial, archive).map_err(ImageError::file("rename", &partial))
    }
}

/// Waits until nobody else builds; the lock is released with the file.
fn lock(path: &Path) -> Result<File, ImageError> {
    let file = File::create(path).map_err(ImageError::file("create", path))?;
    file.lock().map_err(ImageError::file("lock", path))?;
    Ok(file)
}

/// Archives of former inputs serve nobody and are large.
fn remove_older(name: &str, images: &Path) -> Result<(), ImageError> {
    for entry in fs::read_dir(images).map_err(ImageError::file("list", images))? {
        let path = entry.map_err(ImageError::file("list", images))?.path();
        let file = path.file_name().and_then(|file| file.to_str()).and_then(|file| file.strip_suffix(".tar"));
        // `pod-cuda-1a2b` is not one of `pod`.
        let is_of_name = file
            .and_then(|file| file.strip_prefix(name))
            .and_then(|rest| rest.strip_prefix('-'))
            .is_some_and(|digest| digest.len() == inputs::DIGEST_LENGTH && !digest.contains('-'));
        if is_of_name {
            fs::remove_file(&path).map_err(ImageError::file("remove", &path))?;
        }
    }
    Ok(())
}
