//! Files of this machine: copied, not linked, so that they are checked and stay what they were.

use std::{
    fs::{self, File},
    io::{self, Read as _},
    path::{Path, PathBuf},
    sync::Arc,
};

use super::{
    digest::BUFFER_BYTES,
    error::FetchError,
    item::{Come, Item},
    partial::Partial,
    place::Place,
    space::Space,
};

/// A model has few files; more are a folder named by mistake.
const MOST_FILES: usize = 1000;

/// Versions, and a folder or two of a tokenizer below them.
const DEEPEST: usize = 8;

/// Made by the file system itself, at the root of most volumes.
const LOST_AND_FOUND: &str = "lost+found";

/// Copies a file beside its place.
///
/// # Errors
/// [`FetchError`] where it cannot be read or written, or is not what was asked for.
pub fn copy(item: &Item, from: &Path, space: &Arc<Space>) -> Result<Come, FetchError> {
    let unreadable = |source| FetchError::Unreadable { path: from.to_owned(), source };
    let kind = fs::metadata(from).map_err(unreadable)?;
    if !kind.is_file() {
        // Opening a FIFO would wait for ever.
        return Err(unreadable(io::Error::new(io::ErrorKind::InvalidInput, "it is no regular file")));
    }
    let mut file = File::open(from).map_err(unreadable)?;
    let total = kind.len();
    let mut share =
        space.reserve(total).map_err(|room| FetchError::OutOfDisk { file: item.target.display().to_string(), room })?;
    let unwritable = |source, needed| FetchError::writing(&item.target, source, space, needed);
    // Copying again is quicker than finding out whether the beginning may be kept: no digest, no note.
    let mut partial = Partial::open(&item.beside, None).map_err(|error| unwritable(error, total))?;
    let mut buffer = vec![0; BUFFER_BYTES];
    loop {
        let read = file.read(&mut buffer).map_err(unreadable)?;
        if read == 0 {
            break;
        }
        partial.append(&buffer[..read]).map_err(|error| unwritable(error, share.left()))?;
        share.used(read as u64);
    }
    if let Err(error) = item.check(&partial) {
        partial.discard();
        return Err(error);
    }
    partial.finish().map_err(|error| unwritable(error, 0))
}

/// All files below a folder, with their places in it, in order of these. Left out are hidden ones, `lost+found`,
/// and, with a warning, what is neither a folder nor a regular file: opening a FIFO would wait for ever.
///
/// # Errors
/// [`FetchError::Unreadable`], [`FetchError::FolderTooLarge`].
pub fn files(folder: &Path) -> Result<Vec<(PathBuf, Place)>, FetchError> {
    let mut files = Vec::new();
    let mut folders = vec![(folder.to_owned(), 0)];
    while let Some((path, depth)) = folders.pop() {
        let unreadable = |source| FetchError::Unreadable { path: path.clone(), source };
        for entry in fs::read_dir(&path).map_err(unreadable)? {
            let path = entry.map_err(unreadable)?.path();
            let Some(place) = place(folder, &path)? else { continue };
            if path == folder.join(LOST_AND_FOUND) {
                continue;
            }
            let kind = fs::metadata(&path).map_err(|source| FetchError::Unreadable { path: path.clone(), source })?;
            if kind.is_dir() {
                folders.push((path, depth + 1));
            } else if kind.is_file() {
                files.push((path, place));
            } else {
                tracing::warn!(path = %path.display(), "left out: neither a folder nor a regular file");
            }
            if files.len() > MOST_FILES || depth > DEEPEST {
                return Err(FetchError::FolderTooLarge { path: folder.to_owned(), limit: MOST_FILES });
            }
        }
    }
    files.sort_by(|(_, one), (_, other)| one.cmp(other));
    Ok(files)
}

fn place(folder: &Path, path: &Path) -> Result<Option<Place>, FetchError> {
    let below = path.strip_prefix(folder).unwrap_or(path);
    Place::of_entry(below).map_err(|error| FetchError::Unreadable {
        path: path.to_owned(),
        source: io::Error::new(io::ErrorKind::InvalidInput, error),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_found_in_folders_and_loops_end() {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir_all(folder.path().join("2")).unwrap();
        for name in ["2/model.onnx", "labels.txt", ".DS_Store"] {
            fs::write(folder.path().join(name), name).unwrap();
        }
        let places: Vec<_> = files(folder.path()).unwrap().into_iter().map(|(_, place)| place.to_string()).collect();
        assert_eq!(places, ["2/model.onnx", "labels.txt"]);
        std::os::unix::fs::symlink(folder.path(), folder.path().join("2/again")).unwrap();
        assert!(matches!(files(folder.path()).unwrap_err(), FetchError::FolderTooLarge { .. }));
    }

    #[test]
    fn what_is_no_file_of_a_model_is_left_out() {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join(LOST_AND_FOUND)).unwrap();
        for name in ["model.onnx", "lost+found/#12"] {
            fs::write(folder.path().join(name), name).unwrap();
        }
        let pipe = folder.path().join("pipe");
        let made = std::process::Command::new("mkfifo").arg(&pipe).status().unwrap();
        assert!(made.success());
        std::os::unix::fs::symlink(&pipe, folder.path().join("labels.txt")).unwrap();
        let places: Vec<_> = files(folder.path()).unwrap().into_iter().map(|(_, place)| place.to_string()).collect();
        assert_eq!(places, ["model.onnx"]);
    }
}
