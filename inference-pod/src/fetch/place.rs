//! Where a file lies below a model's folder.

use std::{
    fmt,
    path::{Component, Path, PathBuf},
};

use serde::{Deserialize, Serialize};

/// What fetch itself writes into a model's folder begins so.
pub const OWN_PREFIX: &str = ".fetch.";

/// What came of a file so far ends so.
pub const PARTIAL_SUFFIX: &str = ".partial";

/// What is known of it, for going on after a restart, ends so.
pub const NOTE_SUFFIX: &str = ".partial.json";

/// Why a path is no place in a model's folder.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NoPlace {
    /// It leads out of the folder.
    #[error("`{0}` leads out of the folder: expected a relative path without . and .. as parts")]
    Outside(String),
    /// It is one of fetch's own files.
    #[error("`{0}` is a name that fetch keeps for itself")]
    Reserved(String),
}

/// A relative path that stays inside its folder: at least one part, none of them `.` or `..`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct Place(PathBuf);

impl Place {
    /// Reads a path as people write it.
    ///
    /// # Errors
    /// [`NoPlace`] for one that leads out, that has `.`, `..` or nothing between two slashes, or that fetch itself uses.
    pub fn parse(text: &str) -> Result<Self, NoPlace> {
        if text.contains('\0') || text.split('/').any(|part| matches!(part, "" | "." | "..")) {
            return Err(NoPlace::Outside(text.to_owned()));
        }
        Self(PathBuf::from(text)).unreserved()
    }

    /// The place of a file found in a folder or an archive; none for what is to be left out. That is the folder itself
    /// (`./`, which archives often have) and what is hidden: `.git`, the `..data` of a ConfigMap, the `._model.onnx` of a
    /// Mac's archive lie beside a model and belong to none.
    ///
    /// # Errors
    /// [`NoPlace`] for one that leads out or that fetch itself uses.
    pub fn of_entry(path: &Path) -> Result<Option<Self>, NoPlace> {
        let mut place = PathBuf::new();
        for part in path.components() {
            match part {
                Component::CurDir => {}
                Component::Normal(part) => place.push(part),
                Component::ParentDir | Component::RootDir | Component::Prefix(_) => {
                    return Err(NoPlace::Outside(path.display().to_string()));
                }
            }
        }
        let place = Self(place);
        let left_out = place.0.as_os_str().is_empty() || place.parts().any(|part| part.starts_with('.'));
        if left_out { Ok(None) } else { place.unreserved().map(Some) }
    }

    fn unreserved(self) -> Result<Self, NoPlace> {
        let text = self.to_string();
        let own = text.starts_with(OWN_PREFIX) || text.ends_with(PARTIAL_SUFFIX) || text.ends_with(NOTE_SUFFIX);
        if own { Err(NoPlace::Reserved(text)) } else { Ok(self) }
    }

    /// The path in that folder.
    #[must_use]
    pub fn under(&self, folder: &Path) -> PathBuf {
        folder.join(&self.0)
    }

    /// Its parts, the file's name last.
    pub fn parts(&self) -> impl Iterator<Item = String> {
        self.0.iter().map(|part| part.to_string_lossy().into_owned())
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.display().fmt(f)
    }
}

impl From<Place> for String {
    fn from(place: Place) -> Self {
        place.to_string()
    }
}

impl TryFrom<String> for Place {
    type Error = NoPlace;
    fn try_from(text: String) -> Result<Self, NoPlace> {
        Self::parse(&text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_that_leads_out_is_no_place() {
        for text in ["", "/etc/passwd", "../model.onnx", "1/../../model.onnx", "./model.onnx", "1//model.onnx", "1/"] {
            assert_eq!(Place::parse(text), Err(NoPlace::Outside(text.to_owned())));
        }
        for text in ["model.onnx.partial", ".fetch.archive", "a.partial.json"] {
            assert_eq!(Place::parse(text), Err(NoPlace::Reserved(text.to_owned())));
        }
        assert_eq!(Place::parse("1/..model.onnx").unwrap().to_string(), "1/..model.onnx");
        assert_eq!(Place::parse("1/model.onnx").unwrap().parts().collect::<Vec<_>>(), ["1", "model.onnx"]);
    }

    #[test]
    fn an_archives_entry_may_begin_with_a_dot_but_not_lead_out() {
        let of_entry = |text: &str| Place::of_entry(Path::new(text));
        assert_eq!(of_entry("./1/./model.onnx"), Ok(Some(Place::parse("1/model.onnx").unwrap())));
        assert_eq!(of_entry("./"), Ok(None));
        for text in ["/etc/passwd", "../model.onnx", "a/../../model.onnx", "a/.."] {
            assert!(of_entry(text).is_err(), "{text}");
        }
        for hidden in ["._model.onnx", "1/._model.onnx", "..data/model.onnx", ".fetch.archive"] {
            assert_eq!(of_entry(hidden), Ok(None), "{hidden}");
        }
        assert_eq!(Place::parse("1/.keep").unwrap().to_string(), "1/.keep", "what is named is taken");
    }
}
