//! Where a model's files are: a `.onnx` file, or a folder with `model.onnx`, `labels.txt` and `model.yaml`.

use std::{
    fs, io,
    path::{Path, PathBuf},
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
        if path.is_file() {
            return Ok(Self { model: path.to_owned(), folder: None });
        }
        if !path.is_dir() {
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

    /// The names of the classes, from where the options say, else from `labels.txt`; none where there is none.
    ///
    /// # Errors
    /// [`FilesError`] where a file cannot be read.
    pub fn labels(&self, labels: Option<&Labels>) -> Result<Vec<String>, FilesError> {
        let beside = |name: &Path| self.model.parent().map_or_else(|| name.to_owned(), |folder| folder.join(name));
        let in_folder = |name: &Path| self.folder.as_ref().map_or_else(|| beside(name), |folder| folder.join(name));
        let file = match labels {
            Some(Labels::List(names)) => return Ok(names.clone()),
            Some(Labels::File(name)) => in_folder(name),
            None => match self.folder.as_ref().map(|folder| folder.join(LABELS_FILE)).filter(|file| file.exists()) {
                Some(file) => file,
                None => return Ok(Vec::new()),
            },
        };
        let text = read(&file)?;
        // Some editors put a byte order mark before the first label.
        Ok(text.trim_start_matches('\u{feff}').lines().map(|line| line.trim_end().to_owned()).collect())
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

    #[test]
    fn the_highest_version_counts_by_number_not_by_text() {
        let folder = folder(&[
            ("9/model.onnx", ""),
            ("10/model.onnx", ""),
            ("11/readme", ""),
            ("12", ""),
            ("labels.txt", "\u{feff}cup\ncat\n"),
        ]);
        let files = ModelFiles::find(folder.path()).unwrap();
        assert_eq!(files.model, folder.path().join("10/model.onnx"));
        assert_eq!(files.labels(None).unwrap(), ["cup", "cat"]);
    }

    #[test]
    fn a_lone_file_has_no_labels_of_its_own_but_may_be_given_some() {
        let folder = folder(&[("m.onnx", ""), ("labels.txt", "cup"), ("names.txt", "tripod\r\n")]);
        let files = ModelFiles::find(&folder.path().join("m.onnx")).unwrap();
        assert!(files.labels(None).unwrap().is_empty());
        assert_eq!(files.labels(Some(&Labels::File("names.txt".into()))).unwrap(), ["tripod"]);
        assert_eq!(files.labels(Some(&Labels::List(vec!["x".into()]))).unwrap(), ["x"]);
    }

    #[test]
    fn what_is_missing_is_named() {
        let folder = folder(&[("readme", "")]);
        let said = |path: &Path| ModelFiles::find(path).unwrap_err().to_string();
        assert!(said(folder.path()).contains("has neither model.onnx nor"), "{}", said(folder.path()));
        assert!(said(&folder.path().join("gone")).starts_with("nothing at "));
    }
}
