//! Where things lie.

use std::fs;
use std::path::{Path, PathBuf};

use super::ImageError;

/// The repository, and the folders of the cache that images use.
#[derive(Debug)]
pub(super) struct Place {
    /// The repository's root.
    pub(super) repository: PathBuf,
    /// Archives, logs and the lock.
    pub(super) images: PathBuf,
    /// buildah's layers.
    pub(super) storage: PathBuf,
    /// buildah's state.
    pub(super) state: PathBuf,
    /// Scratch, and the caches that Dockerfiles mount.
    pub(super) scratch: PathBuf,
}

impl Place {
    /// The folders of `$ORTOLAN_CACHE`, else of `.cache` in the repository; they exist afterwards.
    pub(super) fn find() -> Result<Self, ImageError> {
        let package = Path::new(env!("CARGO_MANIFEST_DIR"));
        let repository = package.parent().unwrap_or(package).to_owned();
        let cache = std::env::var_os("ORTOLAN_CACHE").map_or_else(|| repository.join(".cache"), PathBuf::from);
        let buildah = cache.join("buildah");
        let place = Self {
            repository,
            images: cache.join("images"),
            storage: buildah.join("storage"),
            state: buildah.join("state"),
            scratch: buildah.join("scratch"),
        };
        for folder in [&place.images, &place.storage, &place.state, &place.scratch] {
            fs::create_dir_all(folder).map_err(ImageError::file("create", folder))?;
        }
        Ok(place)
    }
}
