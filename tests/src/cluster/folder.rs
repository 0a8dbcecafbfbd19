//! The folder of a cluster: its state, keys, configuration, data and logs, and the lock that makes commands on it take turns.

use std::fs::{self, File};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::network::Network;
use super::parts::Part;
use super::process::Process;
use super::space::Space;

/// Something about the files of a cluster went wrong.
#[derive(Debug, thiserror::Error)]
pub enum FolderError {
    /// The name would not do as part of a path, a control group and a command line.
    #[error("`{0}` is no name for a cluster: expected 1 to 32 of a-z, 0-9 and -, and a letter first")]
    Name(String),
    /// A file or folder.
    #[error("cannot {attempt} {}", path.display())]
    File {
        /// What was attempted.
        attempt: &'static str,
        /// On what.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The state was written by another version, or not by us.
    #[error("cannot understand {}", path.display())]
    State {
        /// The file.
        path: PathBuf,
        /// Where it is wrong.
        #[source]
        source: serde_json::Error,
    },
}

/// Where the parts of a cluster are, and under which addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Place {
    /// The control plane alone: plain processes of the machine, on ports of 127.0.0.1.
    Loopback { api: u16, etcd: u16, etcd_peer: u16 },
    /// With a node: in namespaces.
    Space { space: Space, network: Network },
}

/// What a later command must know of a cluster.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct State {
    pub(crate) profile: String,
    pub(crate) place: Place,
}

/// A cluster's folder. It need not exist.
#[derive(Debug, Clone)]
pub(crate) struct Folder {
    name: String,
    path: PathBuf,
}

impl Folder {
    /// The folder of the cluster `name` among all clusters in `base`.
    pub(crate) fn of(base: &Path, name: &str) -> Result<Self, FolderError> {
        let good = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
        let first = name.bytes().next().is_some_and(|byte| byte.is_ascii_lowercase());
        if !first || name.len() > 32 || !name.bytes().all(good) {
            return Err(FolderError::Name(name.to_owned()));
        }
        // Absolute, since parts run in another working folder.
        let base = std::path::absolute(base).map_err(file_error("resolve", base))?;
        Ok(Self { name: name.to_owned(), path: base.join(name) })
    }

    /// Every cluster folder in `base`, sorted by name.
    pub(crate) fn all(base: &Path) -> Result<Vec<Self>, FolderError> {
        let entries = match fs::read_dir(base) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(file_error("list", base)(error)),
        };
        let names =
            entries.flatten().filter(|entry| entry.path().is_dir()).flat_map(|entry| entry.file_name().into_string());
        let mut names: Vec<String> = names.collect();
        names.sort();
        names.iter().map(|name| Self::of(base, name)).collect()
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn join(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    pub(crate) fn log(&self, name: &str) -> PathBuf {
        self.path.join("log").join(format!("{name}.log"))
    }

    /// The name of the cluster's control group: one for each folder of the machine.
    pub(crate) fn cgroup(&self) -> String {
        let mut hasher = DefaultHasher::new();
        self.path.hash(&mut hasher);
        format!("ortolan-{}-{:08x}", self.name, hasher.finish() & 0xffff_ffff)
    }

    /// Makes the folder and those in it.
    pub(crate) fn create(&self, subfolders: &[&str]) -> Result<(), FolderError> {
        for subfolder in subfolders {
            let path = self.path.join(subfolder);
            fs::create_dir_all(&path).map_err(file_error("create", &path))?;
        }
        Ok(())
    }

    pub(crate) fn write(&self, name: &str, text: &str) -> Result<(), FolderError> {
        let path = self.path.join(name);
        fs::write(&path, text).map_err(file_error("write", &path))
    }

    /// Removes the folder; with `keep_logs` all but its logs.
    pub(crate) fn remove(&self, keep_logs: bool) -> Result<(), FolderError> {
        if !self.path.exists() {
            return Ok(());
        }
        if !keep_logs {
            return fs::remove_dir_all(&self.path).map_err(file_error("remove", &self.path));
        }
        for entry in fs::read_dir(&self.path).map_err(file_error("list", &self.path))?.flatten() {
            if entry.file_name() != "log" {
                let path = entry.path();
                let removed = if path.is_dir() { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
                removed.map_err(file_error("remove", &path))?;
            }
        }
        Ok(())
    }

    pub(crate) fn save(&self, state: &State) -> Result<(), FolderError> {
        let path = self.join("state.json");
        let text = serde_json::to_string_pretty(state).map_err(|source| FolderError::State { path, source })?;
        self.write("state.json", &text)
    }

    /// `None` if there is no such cluster, or one that never came so far as to have a state.
    pub(crate) fn load(&self) -> Result<Option<State>, FolderError> {
        self.read_json("state.json")
    }

    pub(crate) fn save_process(&self, part: Part, process: Process) -> Result<(), FolderError> {
        let path = process_file(part);
        let text =
            serde_json::to_string(&process).map_err(|source| FolderError::State { path: self.join(&path), source })?;
        self.write(&path, &text)
    }

    pub(crate) fn load_process(&self, part: Part) -> Result<Option<Process>, FolderError> {
        self.read_json(&process_file(part))
    }

    fn read_json<T: serde::de::DeserializeOwned>(&self, name: &str) -> Result<Option<T>, FolderError> {
        let path = self.join(name);
        match fs::read_to_string(&path) {
            Ok(text) => serde_json::from_str(&text).map(Some).map_err(|source| FolderError::State { path, source }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(file_error("read", &path)(error)),
        }
    }

    /// Waits until no other command works on this cluster.
    pub(crate) fn lock(&self) -> Result<Lock, FolderError> {
        let path = self.path.with_extension("lock");
        if let Some(base) = path.parent() {
            fs::create_dir_all(base).map_err(file_error("create", base))?;
        }
        loop {
            let file = File::create(&path).map_err(file_error("create", &path))?;
            file.lock().map_err(file_error("lock", &path))?;
            // Who held it before may have removed the file; a lock on a removed file keeps nobody out.
            if is_same_file(&file, &path) {
                return Ok(Lock { path, _file: file });
            }
        }
    }
}

/// Keeps other commands off a cluster until dropped, and leaves no file behind.
#[derive(Debug)]
pub(crate) struct Lock {
    path: PathBuf,
    _file: File,
}

impl Drop for Lock {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
    }
}

fn is_same_file(file: &File, path: &Path) -> bool {
    match (file.metadata(), fs::metadata(path)) {
        (Ok(held), Ok(there)) => held.ino() == there.ino() && held.dev() == there.dev(),
        _ => false,
    }
}

fn process_file(part: Part) -> String {
    format!("process/{part}.json")
}

fn file_error(attempt: &'static str, path: &Path) -> impl FnOnce(io::Error) -> FolderError {
    let path = path.to_owned();
    move |source| FolderError::File { attempt, path, source }
}
