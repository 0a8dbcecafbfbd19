//! Fetch's own files in a model's folder, and whose turn it is to write there.
//!
//! ```text
//! .fetch.lock        held by the process that fetches into the folder; never removed, for another may be waiting for it
//! .fetch.done        what fetch brought
//! .fetch.archive     an archive on its way
//! .fetch.unpacking   what came out of it so far
//! .fetch.1a2b3c4d    all that is on its way, where the volume knows no locks
//! ```

use std::{
    fs::{self, File, OpenOptions, TryLockError},
    io,
    path::{Path, PathBuf},
    time::Duration,
};

use super::place::{NOTE_SUFFIX, OWN_PREFIX, PARTIAL_SUFFIX, Place};

/// Soon enough for people, and seldom enough for a server of files.
const LOCK_PAUSE: Duration = Duration::from_millis(200);

/// The right to write into a model's folder, and where things lie there until they are whole.
#[derive(Debug)]
pub struct Workshop {
    to: PathBuf,
    turn: Turn,
}

#[derive(Debug)]
enum Turn {
    /// Nobody else writes, so names may stay the same and what an ended process left is gone on with.
    Locked { _lock: File },
    /// Somebody else may write: all that is on its way lies in a folder of this process alone.
    Unlocked { own: PathBuf },
}

impl Workshop {
    /// Waits until no other process fetches into this folder. Where it cannot be locked, nothing is waited for, and
    /// nothing of an ended process is gone on with.
    pub async fn open(to: &Path, model: &str) -> Self {
        let path = own(to, "lock");
        let file = match OpenOptions::new().write(true).create(true).truncate(false).open(&path) {
            Ok(file) => file,
            Err(error) => return Self::unlocked(to, model, &error),
        };
        let mut told = false;
        loop {
            match file.try_lock() {
                Ok(()) => return Self { to: to.to_owned(), turn: Turn::Locked { _lock: file } },
                Err(TryLockError::WouldBlock) => {}
                Err(TryLockError::Error(error)) => return Self::unlocked(to, model, &error),
            }
            if !told {
                tracing::info!(model, lock = %path.display(), "waiting for another fetch into the same folder to end");
                told = true;
            }
            tokio::time::sleep(LOCK_PAUSE).await;
        }
    }

    fn unlocked(to: &Path, model: &str, error: &io::Error) -> Self {
        tracing::warn!(
            model,
            path = %to.display(),
            %error,
            "the folder cannot be locked: let no other fetch write into it; what an ended one left is not gone on with"
        );
        let own = own(to, &format!("{:08x}", fastrand::u32(..)));
        Self { to: to.to_owned(), turn: Turn::Unlocked { own } }
    }

    /// The model's folder.
    #[must_use]
    pub fn folder(&self) -> &Path {
        &self.to
    }

    /// Beside which path the bytes of that file lie until it is whole.
    #[must_use]
    pub fn beside(&self, place: &Place) -> PathBuf {
        match &self.turn {
            Turn::Locked { .. } => place.under(&self.to),
            Turn::Unlocked { own } => place.under(&own.join("files")),
        }
    }

    /// Where an archive goes.
    #[must_use]
    pub fn archive(&self) -> PathBuf {
        self.own("archive")
    }

    /// Where it is unpacked.
    #[must_use]
    pub fn unpacking(&self) -> PathBuf {
        self.own("unpacking")
    }

    /// Where a new note is written before it takes the place of the old one.
    #[must_use]
    pub fn new_note(&self) -> PathBuf {
        self.own("new")
    }

    fn own(&self, name: &str) -> PathBuf {
        match &self.turn {
            Turn::Locked { .. } => own(&self.to, name),
            Turn::Unlocked { own } => own.join(name),
        }
    }

    /// Everything is in its place: what was needed on the way goes.
    pub fn clear(&self) {
        removed(&self.unpacking(), fs::remove_dir_all);
        removed(&self.archive(), fs::remove_file);
        if matches!(self.turn, Turn::Locked { .. }) {
            remove_beginnings(&self.to);
        }
        self.abandon();
    }

    /// It failed: what the next process cannot go on with goes.
    pub fn abandon(&self) {
        if let Turn::Unlocked { own } = &self.turn {
            removed(own, fs::remove_dir_all);
        }
    }
}

/// Removes beginnings of files that an earlier fetch was to bring and that are not wanted any more: those of this one are whole. A folder
/// within that another fetch writes to has a lock of its own.
fn remove_beginnings(folder: &Path) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        let name = entry.file_name();
        let is_beginning = [PARTIAL_SUFFIX, NOTE_SUFFIX].iter().any(|end| name.to_string_lossy().ends_with(end));
        match entry.file_type() {
            Ok(kind) if kind.is_dir() && !own(&path, "lock").exists() => remove_beginnings(&path),
            Ok(kind) if kind.is_file() && is_beginning => removed(&path, fs::remove_file),
            _ => {}
        }
    }
}

fn own(to: &Path, name: &str) -> PathBuf {
    to.join(format!("{OWN_PREFIX}{name}"))
}

fn removed(path: &Path, remove: fn(PathBuf) -> io::Result<()>) {
    match remove(path.to_owned()) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            tracing::warn!(%error, path = %path.display(), "cannot remove what is needed no more");
        }
        _ => {}
    }
}

#[cfg(test)]
impl Workshop {
    /// A turn in that folder, without waiting.
    pub fn at_once(to: &Path) -> Self {
        let file = File::create(own(to, "lock")).unwrap();
        file.try_lock().unwrap();
        Self { to: to.to_owned(), turn: Turn::Locked { _lock: file } }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_second_waits_for_the_first() {
        let folder = tempfile::tempdir().unwrap();
        let first = Workshop::open(folder.path(), "espresso").await;
        let second = Workshop::open(folder.path(), "espresso");
        tokio::pin!(second);
        assert!(tokio::time::timeout(Duration::ZERO, &mut second).await.is_err());
        drop(first);
        assert!(matches!(second.await.turn, Turn::Locked { .. }));
    }

    #[tokio::test]
    async fn beginnings_that_nobody_wants_any_more_are_removed_and_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        fs::create_dir_all(path("1")).unwrap();
        fs::create_dir_all(path("other")).unwrap();
        for name in [
            "1/model.onnx",
            "1/old.onnx.partial",
            "1/old.onnx.partial.json",
            ".fetch.archive.partial",
            "notes.partially",
        ] {
            fs::write(path(name), "").unwrap();
        }
        fs::write(path("other/.fetch.lock"), "").unwrap();
        fs::write(path("other/model.onnx.partial"), "").unwrap();
        Workshop::open(folder.path(), "espresso").await.clear();
        let left = |folder: &str| {
            let entries =
                fs::read_dir(path(folder)).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
            entries.collect::<std::collections::BTreeSet<_>>().into_iter().collect::<Vec<_>>()
        };
        assert_eq!(left(""), [".fetch.lock", "1", "notes.partially", "other"]);
        assert_eq!(left("1"), ["model.onnx"]);
        assert_eq!(left("other"), [".fetch.lock", "model.onnx.partial"]);
    }

    #[tokio::test]
    async fn where_no_lock_is_to_be_had_names_are_unique_and_leave_nothing() {
        let folder = tempfile::tempdir().unwrap();
        // A folder in the lock's place cannot be opened as a file.
        fs::create_dir(folder.path().join(".fetch.lock")).unwrap();
        let place = Place::parse("1/model.onnx").unwrap();
        let one = Workshop::open(folder.path(), "espresso").await;
        let other = Workshop::open(folder.path(), "espresso").await;
        assert_ne!(one.beside(&place), other.beside(&place));
        assert_ne!(one.archive(), other.archive());
        fs::create_dir_all(one.beside(&place)).unwrap();
        one.abandon();
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "the folder in the lock's place");
    }
}
