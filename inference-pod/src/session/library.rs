//! The library of ONNX Runtime, loaded once for the process.

use std::path::{Path, PathBuf};

use ort::{environment::Environment, logging::LogLevel};

use super::SessionError;

/// File that the library has beside the binary and in the images.
const LIBRARY: &str = "libonnxruntime.so";

/// The loaded library. One for the process.
#[derive(Clone)]
pub struct Runtime {
    pub(super) environment: Environment,
    library: PathBuf,
    version: String,
}

impl Runtime {
    /// Loads the library from `path` (the value of `ORT_DYLIB_PATH`), else from beside the binary.
    ///
    /// # Errors
    /// [`SessionError::Library`] where there is none, or an older one than this program was made for.
    pub fn load(path: Option<PathBuf>) -> Result<Self, SessionError> {
        let library = path.unwrap_or_else(beside_the_binary);
        let failed = |reason: String| SessionError::Library { path: library.clone(), reason };
        let builder = ort::init_from(&library).map_err(|error| failed(error.to_string()))?;
        let environment = builder.with_name("ortolan").build().map_err(|error| failed(error.to_string()))?;
        environment.set_log_level(LogLevel::Warning);
        let version = version_of(&library);
        Ok(Self { environment, library, version })
    }

    /// Version of ONNX Runtime, for example `1.31.1`.
    #[must_use]
    pub fn version(&self) -> &str {
        &self.version
    }

    /// File that the library came from.
    #[must_use]
    pub fn library(&self) -> &Path {
        &self.library
    }
}

fn beside_the_binary() -> PathBuf {
    std::env::current_exe()
        .ok()
        .and_then(|binary| binary.parent().map(|folder| folder.join(LIBRARY)))
        .filter(|file| file.exists())
        .unwrap_or_else(|| PathBuf::from(LIBRARY))
}

/// The library's file carries its version: `libonnxruntime.so.1.31.1`, which shorter names are links to.
fn version_of(library: &Path) -> String {
    let file = library.canonicalize().unwrap_or_else(|_| library.to_owned());
    let name = file.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let version =
        name.split_once(".so.").map(|(_, version)| version.to_owned()).filter(|version| version.contains('.'));
    version.unwrap_or_else(|| format!("1.{}", ort::MINOR_VERSION))
}
