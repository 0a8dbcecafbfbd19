//! Where a model's files are: a `.onnx` file, or a folder with `model.onnx`, `labels.txt` and `model.yaml`.

use std::{
    fs, io,
    path::{Component, Path, PathBuf},
};

use crds::serving::{Faults, Labels, Layer, ModelOptions, parse_options};

/// Name of the graph in a folder.
pub const MODEL_FILE: &str = "model.onnx";
const LABELS_FILE: &str = "labels.txt";
const OPTIONS_FILE: &str = "model.yaml";

/// Why a model's files cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum FilesError {
    /// There is nothing at the path.
    #[error("nothing at {}: expected a .onnx file, or a folder with {MODEL_FILE}", .0.display())]
    Missing(PathBuf),
    /// The folder holds no model.
    #[error("folder {} has neither {MODEL_FILE} nor a numbered version folder with one", .0.display())]
    NoModel(PathBuf),
    /// A file cannot be read.
    #[error("cannot read {}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The folder's options are wrong.
    #[error(transparent)]
    Options(#[from] Faults),
    /// The folder's options name labels elsewhere. Who brings a model's files may not choose among those of the machine.
    #[error(
        "{} names labels `{}`: expected a file in the same folder or below, by a relative path without ..",
        options.display(), labels.display()
    )]
    LabelsElsewhere {
        /// The folder's `model.yaml`.
        options: PathBuf,
        /// What it names.
        labels: PathBuf,
    },
}

/// The files of one model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModelFiles {
    /// The graph.
    pub model: PathBuf,
    /// Where labels and options lie, if the model is a folder.
    folder: Option<PathBuf>,
}

impl ModelFiles {
    /// Finds the files. Of a folder with numbered version folders the highest number counts.
    ///
    /// # Errors
    /// [`FilesError`] where there is no model.
    pub fn find(path: &Path) -> Result<Self, FilesError> {
        let found = fs::metadata(path).map_err(|source| match source.kind() {
            io::ErrorKind::NotFound => FilesError::Missing(path.to_owned()),
            // A folder above it that may not be looked into, say.
            _ => FilesError::Unreadable { path: path.to_owned(), source },
        })?;
        if found.is_file() {
            return Ok(Self { model: path.to_owned(), folder: None });
        }
        if !found.is_dir() {
            return Err(FilesError::Missing(path.to_owned()));
        }
        let version = latest_version(path)?;
        let candidates = [Some(path.join(MODEL_FILE)), version.map(|folder| folder.join(MODEL_FILE))];
        let model = candidates.into_iter().flatten().find(|file| file.is_file());
        let model = model.ok_or_else(|| FilesError::NoModel(path.to_owned()))?;
        Ok(Self { model, folder: Some(path.to_owned()) })
    }

    /// Size of the graph's file; weights that it keeps in files of their own do not count.
    ///
    /// # Errors
    /// [`FilesError`] where the file cannot be looked at.
    pub fn bytes(&self) -> Result<u64, FilesError> {
        let unreadable = |source| FilesError::Unreadable { path: self.model.clone(), source };
        Ok(fs::metadata(&self.model).map_err(unreadable)?.len())
    }

    /// The folder's `model.yaml` with the config's options laid on it.
    ///
    /// # Errors
    /// [`FilesError`] where the file cannot be read or is wrong.
    pub fn options(&self, over: &ModelOptions) -> Result<ModelOptions, FilesError> {
        let file = self.folder.as_ref().map(|folder| folder.join(OPTIONS_FILE)).filter(|file| file.exists());
        let Some(file) = file else { return Ok(over.clone()) };
        Ok(parse_options(&Layer::yaml(file.display().to_string(), read(&file)?), over)?)
    }

    /// The names of the classes, from where the options say, else from `labels.txt`; none where there is none. `over` are
    /// the config's own options: these may name any file, and the folder's `model.yaml` only one of the folder.
    ///
    /// # Errors
    /// [`FilesError`] where a file cannot be read, or may not be.
    pub fn labels(&self, options: &ModelOptions, over: &ModelOptions) -> Result<Vec<String>, FilesError> {
        let beside = |name: &Path| self.model.parent().map_or_else(|| name.to_owned(), |folder| folder.join(name));
        let in_folder = |name: &Path| self.folder.as_ref().map_or_else(|| beside(name), |folder| folder.join(name));
        let file = match (&options.labels, &self.folder) {
            (Some(Labels::List(names)), _) => return Ok(names.clone()),
            (Some(Labels::File(name)), Some(folder)) if over.labels.is_none() => inside(folder, name)?,
            (Some(Labels::File(name)), _) => in_folder(name),
            (None, folder) => match folder.as_ref().map(|folder| folder.join(LABELS_FILE)).filter(|file| file.exists())
            {
                Some(file) => file,
                None => return Ok(Vec::new()),
            },
        };
        let text = read(&file)?;
        // Some editors put a byte order mark before the first label, and empty lines behind the last.
        let text = text.trim_start_matches('\u{feff}').trim_end_matches(['\r', '\n']);
        Ok(text.lines().map(|line| line.trim_end().to_owned()).collect())
    }
}

fn latest_version(folder: &Path) -> Result<Option<PathBuf>, FilesError> {
    let unreadable = |source| FilesError::Unreadable { path: folder.to_owned(), source };
    let mut latest: Option<(u64, PathBuf)> = None;
    for entry in fs::read_dir(folder).map_err(unreadable)? {
        let path = entry.map_err(unreadable)?.path();
        let number = path.file_name().and_then(|name| name.to_str()).and_then(|name| name.parse().ok());
        let number = number.filter(|_| path.join(MODEL_FILE).is_file());
        if let Some(number) = number
            && latest.as_ref().is_none_or(|(known, _)| number > *known)
        {
            latest = Some((number, path));
        }
    }
    Ok(latest.map(|(_, path)| path))
}

/// A regular file in a folder or below it. Links are followed first: those of a ConfigMap stay inside of its mount.
fn inside(folder: &Path, name: &Path) -> Result<PathBuf, FilesError> {
    let elsewhere = || FilesError::LabelsElsewhere { options: folder.join(OPTIONS_FILE), labels: name.to_owned() };
    if !name.components().all(|part| matches!(part, Component::Normal(_) | Component::CurDir)) {
        return Err(elsewhere());
    }
    let real =
        |path: &Path| path.canonicalize().map_err(|source| FilesError::Unreadable { path: path.to_owned(), source });
    let file = real(&folder.join(name))?;
    if file.starts_with(real(folder)?) && file.is_file() { Ok(file) } else { Err(elsewhere()) }
}

fn read(path: &Path) -> Result<String, FilesError> {
    fs::read_to_string(path).map_err(|source| FilesError::Unreadable { path: path.to_owned(), source })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder(files: &[(&str, &str)]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        for (name, text) in files {
            let path = folder.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        folder
    }

    /// The labels where the config says so much.
    fn labels(files: &ModelFiles, labels: Option<Labels>) -> Result<Vec<String>, FilesError> {
        let over = ModelOptions { labels, ..ModelOptions::default() };
        files.labels(&files.options(&over)?, &over)
    }

    #[test]
    fn the_highest_version_counts_by_number_not_by_text() {
        let folder = folder(&[
            ("9/model.onnx", ""),
            ("10/model.onnx", ""),
            ("11/readme", ""),
            ("12", ""),
            ("labels.txt", "\u{feff}cup\ncat\n\r\n\n"),
        ]);
        let files = ModelFiles::find(folder.path()).unwrap();
        assert_eq!(files.model, folder.path().join("10/model.onnx"));
        assert_eq!(labels(&files, None).unwrap(), ["cup", "cat"]);
    }

    #[test]
    fn a_lone_file_has_no_labels_of_its_own_but_may_be_given_some() {
        let folder = folder(&[("m.onnx", ""), ("labels.txt", "cup"), ("names.txt", "tripod\r\n")]);
        let files = ModelFiles::find(&folder.path().join("m.onnx")).unwrap();
        assert!(labels(&files, None).unwrap().is_empty());
        assert_eq!(labels(&files, Some(Labels::File("names.txt".into()))).unwrap(), ["tripod"]);
        assert_eq!(labels(&files, Some(Labels::List(vec!["x".into()]))).unwrap(), ["x"]);
    }

    #[test]
    fn a_folders_own_options_name_labels_of_the_folder_only() {
        let outside = folder(&[("secret", "token")]);
        let folder = folder(&[("model.onnx", ""), ("names/de.txt", "Tasse"), ("..2026/labels.txt", "cup")]);
        let link = |to: &Path, name: &str| std::os::unix::fs::symlink(to, folder.path().join(name)).unwrap();
        // As a ConfigMap is mounted.
        link(Path::new("..2026"), "..data");
        link(Path::new("..data/labels.txt"), "labels.txt");
        link(&outside.path().join("secret"), "link.txt");
        let files = ModelFiles::find(folder.path()).unwrap();
        let said = |name: &str| {
            fs::write(folder.path().join(OPTIONS_FILE), format!("labels: {name}\n")).unwrap();
            labels(&files, None).map_err(|error| error.to_string())
        };
        assert_eq!(said("names/de.txt").unwrap(), ["Tasse"]);
        assert_eq!(said("./labels.txt").unwrap(), ["cup"]);
        assert_eq!(said("[a, b]").unwrap(), ["a", "b"]);
        let secret = outside.path().join("secret").display().to_string();
        for name in ["/proc/self/environ", &secret, "../x", "names/../../x", "link.txt", "names"] {
            let error = said(name).unwrap_err();
            assert!(error.contains(&format!("names labels `{name}`")), "{error}");
        }
        // The config is free.
        assert_eq!(labels(&files, Some(Labels::File(secret.into()))).unwrap(), ["token"]);
    }

    #[test]
    fn what_is_missing_is_named() {
        let folder = folder(&[("readme", "")]);
        let said = |path: &Path| ModelFiles::find(path).unwrap_err().to_string();
        assert!(said(folder.path()).contains("has neither model.onnx nor"), "{}", said(folder.path()));
        assert!(said(&folder.path().join("gone")).starts_with("nothing at "));
    }
}
