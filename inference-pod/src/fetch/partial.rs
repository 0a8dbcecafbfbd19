//! What came of a file so far: beside its place, and kept over broken connections and restarts.
//!
//! ```text
//! model.onnx.partial        the bytes so far
//! model.onnx.partial.json   what they are the beginning of
//! model.onnx                the whole file, checked: renamed last, so never half of one
//! ```

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read as _, Write as _},
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::{
    digest::{BUFFER_BYTES, Digest},
    item::{Come, Fetched},
    place::{NOTE_SUFFIX, PARTIAL_SUFFIX},
};

/// Enough of a file to see that it is a page for people.
const HEAD_BYTES: usize = 512;

/// What the bytes so far are the beginning of.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Note {
    /// The whole file's digest, as asked for. Another one is another file.
    pub sha256: Option<Digest>,
    /// The server's word for this version of it (ETag or Last-Modified), for `If-Range`.
    pub validator: Option<String>,
    /// The whole file's length, where the server told.
    pub total: Option<u64>,
}

/// A file on its way.
#[derive(Debug)]
pub struct Partial {
    target: PathBuf,
    file: File,
    note: Note,
    hash: Sha256,
    bytes: u64,
    head: Vec<u8>,
}

impl Partial {
    /// Goes on with what an earlier process left of this very file, else begins. What is there is read and hashed.
    ///
    /// # Errors
    /// What the system says.
    pub fn open(target: &Path, sha256: Option<Digest>) -> io::Result<Self> {
        if let Some(folder) = target.parent() {
            fs::create_dir_all(folder)?;
        }
        let path = beside(target, PARTIAL_SUFFIX);
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path)?;
        let note = read_note(target).filter(|note| sha256.is_some() && note.sha256 == sha256);
        let fresh = Note { sha256, ..Note::default() };
        let mut partial = Self {
            target: target.to_owned(),
            file,
            note: fresh.clone(),
            hash: Sha256::new(),
            bytes: 0,
            head: Vec::new(),
        };
        match note {
            Some(note) => {
                partial.note = note;
                partial.take_in()?;
            }
            None => partial.begin(fresh)?,
        }
        Ok(partial)
    }

    /// Hashes what is there and comes to stand at its end.
    fn take_in(&mut self) -> io::Result<()> {
        let mut buffer = vec![0; BUFFER_BYTES];
        loop {
            let read = self.file.read(&mut buffer)?;
            if read == 0 {
                return Ok(());
            }
            self.count(&buffer[..read]);
        }
    }

    /// Throws away what came, and notes what will come.
    ///
    /// # Errors
    /// What the system says.
    pub fn begin(&mut self, note: Note) -> io::Result<()> {
        self.file.set_len(0)?;
        io::Seek::rewind(&mut self.file)?;
        self.hash = Sha256::new();
        self.bytes = 0;
        self.head.clear();
        // Before the first byte: a note that is older than the bytes would lie about them.
        fs::write(beside(&self.target, NOTE_SUFFIX), serde_json::to_vec(&note)?)?;
        self.note = note;
        Ok(())
    }

    /// Whether it is known that more is to come.
    #[must_use]
    pub fn is_short(&self) -> bool {
        self.note.total.is_some_and(|total| self.bytes < total)
    }

    /// The next bytes.
    ///
    /// # Errors
    /// What the system says; the disk may be full.
    pub fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.file.write_all(bytes)?;
        self.count(bytes);
        Ok(())
    }

    fn count(&mut self, bytes: &[u8]) {
        self.hash.update(bytes);
        self.bytes += bytes.len() as u64;
        let missing = HEAD_BYTES.saturating_sub(self.head.len()).min(bytes.len());
        self.head.extend_from_slice(&bytes[..missing]);
    }

    /// How much came.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Whether everything that was announced came. Nothing is never the whole.
    #[must_use]
    pub fn is_whole(&self) -> bool {
        self.bytes > 0 && self.note.total == Some(self.bytes)
    }

    /// What it is the beginning of.
    #[must_use]
    pub fn note(&self) -> &Note {
        &self.note
    }

    /// Digest of what came.
    #[must_use]
    pub fn digest(&self) -> Digest {
        Digest::of(&self.hash)
    }

    /// Whether it begins as a page for people does.
    #[must_use]
    pub fn looks_like_html(&self) -> bool {
        let text = self.head.strip_prefix(b"\xef\xbb\xbf").unwrap_or(&self.head).trim_ascii_start();
        [b"<!doctype html".as_slice(), b"<html"]
            .iter()
            .any(|mark| text.get(..mark.len()).is_some_and(|start| start.eq_ignore_ascii_case(mark)))
    }

    /// The whole file, safe against a loss of power. It stays where it is, and is gone on with, until it is put elsewhere.
    ///
    /// # Errors
    /// What the system says.
    pub fn finish(self) -> io::Result<Come> {
        let (path, note) = (beside(&self.target, PARTIAL_SUFFIX), beside(&self.target, NOTE_SUFFIX));
        self.file.sync_all()?;
        if self.note.total.is_none() {
            // Where the server told no length, the next process could not tell that this is all.
            fs::write(&note, serde_json::to_vec(&Note { total: Some(self.bytes), ..self.note.clone() })?)?;
        }
        let fetched = Fetched { bytes: self.bytes, sha256: self.digest(), fetched: true };
        Ok(Come { fetched, whole: Some(Whole { path, note: Some(note) }) })
    }

    /// Leaves nothing behind. What cannot be removed is no beginning of anything: its note goes first.
    pub fn discard(self) {
        let removed = [NOTE_SUFFIX, PARTIAL_SUFFIX].map(|suffix| fs::remove_file(beside(&self.target, suffix)));
        for error in removed.into_iter().filter_map(Result::err) {
            tracing::warn!(%error, file = %self.target.display(), "cannot remove what came of a file");
        }
    }
}

/// A whole file that is not in its place yet.
#[derive(Debug)]
pub struct Whole {
    path: PathBuf,
    note: Option<PathBuf>,
}

impl Whole {
    /// The file at that path, with no note beside it.
    #[must_use]
    pub fn at(path: PathBuf) -> Self {
        Self { path, note: None }
    }

    /// Puts it in its place.
    ///
    /// # Errors
    /// What the system says.
    pub fn put(&self, target: &Path) -> io::Result<()> {
        if let Some(folder) = target.parent() {
            fs::create_dir_all(folder)?;
        }
        fs::rename(&self.path, target)?;
        self.note.as_ref().map_or(Ok(()), fs::remove_file)
    }
}

fn read_note(target: &Path) -> Option<Note> {
    serde_json::from_slice(&fs::read(beside(target, NOTE_SUFFIX)).ok()?).ok()
}

fn beside(target: &Path, suffix: &str) -> PathBuf {
    let mut path = target.as_os_str().to_owned();
    path.push(suffix);
    PathBuf::from(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn digest(text: &str) -> Option<Digest> {
        Some(Digest::of(&Sha256::new().chain_update(text)))
    }

    #[test]
    fn what_an_earlier_process_left_is_gone_on_with_if_it_is_the_same_file() {
        let folder = tempfile::tempdir().unwrap();
        let target = folder.path().join("1/model.onnx");
        let note = Note { sha256: digest("espresso"), validator: Some("\"v1\"".to_owned()), total: Some(8) };
        let mut first = Partial::open(&target, digest("espresso")).unwrap();
        first.begin(note.clone()).unwrap();
        first.append(b"espr").unwrap();
        drop(first);

        let mut second = Partial::open(&target, digest("espresso")).unwrap();
        assert_eq!((second.bytes(), second.note()), (4, &note));
        second.append(b"esso").unwrap();
        assert_eq!(Some(second.digest()), digest("espresso"));
        second.finish().unwrap().whole.unwrap().put(&target).unwrap();
        assert_eq!(fs::read(&target).unwrap(), b"espresso");
        assert_eq!(fs::read_dir(folder.path().join("1")).unwrap().count(), 1, "only the file is left");
    }

    #[test]
    fn the_beginning_of_another_file_is_thrown_away() {
        let folder = tempfile::tempdir().unwrap();
        let target = folder.path().join("model.onnx");
        for sha256 in [digest("espresso"), digest("tripod"), None, None] {
            let mut partial = Partial::open(&target, sha256).unwrap();
            assert_eq!(partial.bytes(), 0);
            partial.append(b"something").unwrap();
        }
        Partial::open(&target, None).unwrap().discard();
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_page_is_told_from_a_model() {
        let folder = tempfile::tempdir().unwrap();
        let html = |bytes: &[u8]| {
            let mut partial = Partial::open(&folder.path().join("model.onnx"), None).unwrap();
            bytes.chunks(5).for_each(|chunk| partial.append(chunk).unwrap());
            partial.looks_like_html()
        };
        assert!(html(b"<!DOCTYPE html>\n<title>Log in"));
        assert!(html(b"\xef\xbb\xbf\r\n <HTML lang=en>"));
        assert!(!html(b"\x08\x07\x12\x07pytorch"));
        assert!(!html(b"<htm"));
        assert!(!html(b""));
    }
}
