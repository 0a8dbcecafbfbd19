//! Events as lines of a file that is put aside when it is large.

use std::{
    error::Error,
    fs::{self, File, OpenOptions},
    io::{self, Write as _},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use super::{Event, consumer::Consumer, line::Fields};

/// Writes events as JSON lines.
pub struct Audit {
    /// The file.
    pub path: PathBuf,
    /// It is put aside when it is larger.
    pub max_bytes: u64,
    /// Files that are kept beside it.
    pub keep: u32,
    /// The revision that this process belongs to, where it has one.
    pub revision: Option<String>,
}

/// Whether the file could not be put aside last time: told once, not with each line.
static STUCK: AtomicBool = AtomicBool::new(false);

/// Why events are not in the file.
#[derive(Debug, thiserror::Error)]
#[error("cannot write {}", path.display())]
pub struct AuditError {
    path: PathBuf,
    source: io::Error,
}

impl Consumer for Audit {
    fn consume(&mut self, events: &[Arc<Event>]) -> Result<(), Box<dyn Error + Send + Sync>> {
        let mut lines = Vec::new();
        for event in events {
            serde_json::to_writer(&mut lines, &Fields::of(event, self.revision.as_deref()))?;
            lines.push(b'\n');
        }
        self.write(&lines).map_err(|source| AuditError { path: self.path.clone(), source })?;
        Ok(())
    }
}

impl Audit {
    /// All lines or none: of a disk that is full nothing is kept that was not whole. The file is opened each time, so that it
    /// may be moved or removed under us.
    fn write(&self, lines: &[u8]) -> io::Result<()> {
        let mut file = self.open()?;
        let mut before = file.metadata()?.len();
        if before > 0 && before + lines.len() as u64 > self.max_bytes && self.makes_room() {
            file = self.open()?;
            before = file.metadata()?.len();
        }
        file.write_all(lines).and_then(|()| file.flush()).inspect_err(|_| {
            // What cannot be taken back either stays; readers skip a line that is no JSON.
            let _ = file.set_len(before);
        })
    }

    fn open(&self) -> io::Result<File> {
        OpenOptions::new().create(true).append(true).open(&self.path)
    }

    /// Whether the file was put aside. Where it cannot be, it grows: it may be a mount of its own, or one that may only be
    /// appended to.
    fn makes_room(&self) -> bool {
        let result = self.put_aside();
        let is_stuck = result.is_err();
        let was_stuck = STUCK.swap(is_stuck, Ordering::Relaxed);
        if let Err(error) = result
            && !was_stuck
        {
            let (path, error) = (self.path.display().to_string(), crate::termination::error_chain(&error));
            tracing::warn!(path, error, "the audit file cannot be put aside, and grows");
        }
        !is_stuck
    }

    /// The file itself goes first: where it cannot, those before it stay as they are.
    fn put_aside(&self) -> io::Result<()> {
        // One that an earlier attempt left on its way is not written over.
        if self.aside(0).try_exists()? {
            self.shift()?;
        }
        rename_if_there(&self.path, &self.aside(0))?;
        self.shift()
    }

    /// Each one further, up to the first free place: after an attempt that ended halfway none is lost for it.
    fn shift(&self) -> io::Result<()> {
        let mut free = 1;
        while free < self.keep && self.aside(free).try_exists()? {
            free += 1;
        }
        (0..free).rev().try_for_each(|number| rename_if_there(&self.aside(number), &self.aside(number + 1)))
    }

    fn aside(&self, number: u32) -> PathBuf {
        let mut name = self.path.clone().into_os_string();
        name.push(format!(".{number}"));
        name.into()
    }
}

fn rename_if_there(from: &Path, to: &Path) -> io::Result<()> {
    match fs::rename(from, to) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn audit(path: PathBuf, max_bytes: u64) -> Audit {
        Audit { path, max_bytes, keep: 2, revision: None }
    }

    #[test]
    fn a_large_file_is_put_aside_and_so_many_are_kept() {
        let folder = tempfile::tempdir().unwrap();
        let audit = audit(folder.path().join("audit"), 10);
        for line in ["first\n", "second\n", "third\n", "fourth\n"] {
            audit.write(line.as_bytes()).unwrap();
        }
        let read = |name: &str| fs::read_to_string(folder.path().join(name)).unwrap();
        assert_eq!(
            (read("audit"), read("audit.1"), read("audit.2")),
            ("fourth\n".into(), "third\n".into(), "second\n".into())
        );
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 3);
    }

    #[test]
    fn a_file_that_cannot_be_put_aside_grows() {
        let folder = tempfile::tempdir().unwrap();
        // No name is longer, so it cannot be renamed to one that is.
        let path = folder.path().join("a".repeat(255));
        let audit = audit(path.clone(), 10);
        for line in ["first\n", "second\n", "third\n"] {
            audit.write(line.as_bytes()).unwrap();
        }
        assert_eq!(fs::read_to_string(path).unwrap(), "first\nsecond\nthird\n");
    }

    #[test]
    fn attempts_that_end_halfway_lose_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let audit = Audit { keep: 4, ..audit(folder.path().join("audit"), 10) };
        let write = |name: &str, text: &str| fs::write(folder.path().join(name), text).unwrap();
        write("audit", "fourth, long enough\n");
        write("audit.1", "third\n");
        write("audit.2", "second\n");
        write("audit.3", "first\n");
        // Stands in the way of the live file and cannot be moved on: a folder takes no file's place.
        fs::create_dir_all(folder.path().join("audit.0/full")).unwrap();
        fs::create_dir_all(folder.path().join("audit.4/full")).unwrap();
        (0..5).for_each(|_| audit.write(b"fifth\n").unwrap());
        let read = |name: &str| fs::read_to_string(folder.path().join(name)).unwrap();
        assert_eq!(
            (read("audit.1"), read("audit.2"), read("audit.3")),
            ("third\n".into(), "second\n".into(), "first\n".into())
        );
        assert!(read("audit").ends_with(&"fifth\n".repeat(5)));
        fs::remove_dir_all(folder.path().join("audit.0")).unwrap();
        fs::remove_dir_all(folder.path().join("audit.4")).unwrap();
        audit.write(b"sixth\n").unwrap();
        assert_eq!((read("audit"), read("audit.4")), ("sixth\n".into(), "first\n".into()));
    }

    #[test]
    fn a_folder_that_is_not_there_is_named() {
        let error = audit(PathBuf::from("/nowhere/audit"), 10).consume(&[]).unwrap_err();
        assert_eq!(error.to_string(), "cannot write /nowhere/audit");
    }
}
