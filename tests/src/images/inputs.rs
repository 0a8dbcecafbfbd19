//! The digest of all that an image is made of.

use std::fs;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use super::{ImageError, ImageSpec, bases};

/// Enough hexadecimal digits that two states of a repository never meet.
pub(super) const DIGEST_LENGTH: usize = 12;

/// The digest of the image's inputs, and of files from elsewhere.
pub(super) fn digest(repository: &Path, spec: &ImageSpec, others: &[&Path]) -> Result<String, ImageError> {
    let mut contents = Vec::new();
    for input in spec.inputs {
        for file in files(&repository.join(input))? {
            let data = fs::read(&file).map_err(ImageError::file("read", &file))?;
            contents.push((file.strip_prefix(repository).unwrap_or(&file).to_owned(), data));
        }
    }
    for file in others {
        let data = fs::read(file).map_err(ImageError::file("read", file))?;
        contents.push((PathBuf::from(file.file_name().unwrap_or_default()), data));
    }
    Ok(digest_of(spec, &contents))
}

/// The digest of files with their paths, of the arguments and the name, and of how bases are made.
fn digest_of(spec: &ImageSpec, contents: &[(PathBuf, Vec<u8>)]) -> String {
    let mut hash = Sha256::new();
    for text in [&spec.reference(), spec.dockerfile, bases::RECIPE] {
        add(&mut hash, text.as_bytes());
    }
    for (name, value) in spec.arguments {
        add(&mut hash, name.as_bytes());
        add(&mut hash, value.as_bytes());
    }
    for (path, data) in contents {
        add(&mut hash, path.as_os_str().as_encoded_bytes());
        add(&mut hash, data);
    }
    let mut text: String = hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
    text.truncate(DIGEST_LENGTH);
    text
}

/// Adds a part with its length, so that two parts never read as one.
fn add(hash: &mut Sha256, part: &[u8]) {
    hash.update(part.len().to_le_bytes());
    hash.update(part);
}

/// The files below a path, or the path itself, in a fixed order and without Python's compiled ones.
fn files(path: &Path) -> Result<Vec<PathBuf>, ImageError> {
    if !path.is_dir() {
        return Ok(vec![path.to_owned()]);
    }
    let mut entries = Vec::new();
    for entry in fs::read_dir(path).map_err(ImageError::file("list", path))? {
        entries.push(entry.map_err(ImageError::file("list", path))?.path());
    }
    entries.sort();
    let mut found = Vec::new();
    for entry in entries.iter().filter(|entry| !entry.ends_with("__pycache__")) {
        found.extend(files(entry)?);
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::super::POD;
    use super::*;

    fn contents(path: &str, data: &str) -> Vec<(PathBuf, Vec<u8>)> {
        vec![(PathBuf::from(path), data.as_bytes().to_owned())]
    }

    #[test]
    fn the_digest_changes_with_a_file_its_path_and_an_argument() {
        let first = digest_of(&POD, &contents("crds/lib.rs", "one"));
        assert_eq!(first.len(), DIGEST_LENGTH);
        assert_eq!(digest_of(&POD, &contents("crds/lib.rs", "one")), first);
        assert_ne!(digest_of(&POD, &contents("crds/lib.rs", "two")), first);
        assert_ne!(digest_of(&POD, &contents("crds/main.rs", "one")), first);
        assert_ne!(
            digest_of(&ImageSpec { arguments: &[("RUNTIME", "cuda")], ..POD }, &contents("crds/lib.rs", "one")),
            first
        );
    }

    #[test]
    fn a_missing_input_is_named() {
        let error = digest(Path::new("/"), &ImageSpec { inputs: &["nowhere"], ..POD }, &[]).unwrap_err();
        assert_eq!(error.to_string(), "cannot read /nowhere");
    }
}
