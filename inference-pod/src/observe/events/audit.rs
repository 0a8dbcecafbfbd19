//! Events as lines of a file that is put aside when it is large.

use std::{
    error::Error,
    fs::{self, File, OpenOptions},
    io::{self, Write as _},
    path::{Path, PathBuf},
    sync::Arc,
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
        if before > 0 && before + lines.len() as u64 > self.max_bytes {
            self.put_aside()?;
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

    fn put_aside(&self) -> io::Result<()> {
        for number in (1..self.keep).rev() {
            rename_if_there(&self.aside(number), &self.aside(number + 1))?;
        }
        rename_if_there(&self.path, &self.aside(1))
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
    fn a_folder_that_is_not_there_is_named() {
        let error = audit(PathBuf::from("/nowhere/audit"), 10).consume(&[]).unwrap_err();
        assert_eq!(error.to_string(), "cannot write /nowhere/audit");
    }
}
