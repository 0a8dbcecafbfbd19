//! What fetch brought into a model's folder: noted there, so that the next fetch knows what it may trust and take away.
//!
//! The note is written before anything in the folder changes, then with what was there before and what comes, and again
//! when everything is in its place. Whenever a process ends, the note names every file that fetch brought, and vouches
//! for an archive only where all of it is there.

use std::{
    collections::BTreeSet,
    fs::{self, File},
    io::{self, Write as _},
    path::{Path, PathBuf},
    sync::Arc,
};

use serde::{Deserialize, Serialize};

use super::{
    digest::Digest,
    error::FetchError,
    item::{Come, Fetched},
    place::{OWN_PREFIX, Place},
    space::Space,
    workshop::Workshop,
};
use crate::files::ModelFiles;

/// A file that comes into the folder: whole and checked, and in its place already or not yet.
#[derive(Debug)]
pub struct Coming {
    /// Where it goes.
    pub place: Place,
    /// The file.
    pub come: Come,
}

/// What fetch brought.
#[derive(Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Brought {
    /// The archive that all of it came in, if it did.
    archive: Option<Fetched>,
    /// The files. Of a fetch that did not end, one place may be named twice: with the old file and with the new one.
    files: BTreeSet<Known>,
}

/// A file as fetch brought it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
struct Known {
    path: Place,
    bytes: u64,
    sha256: Digest,
}

impl Known {
    /// Whether it still lies there as it was brought.
    fn is_in(&self, folder: &Path) -> bool {
        let path = self.path.under(folder);
        let same_size = fs::symlink_metadata(&path).is_ok_and(|file| file.is_file() && file.len() == self.bytes);
        same_size && Digest::of_file(&path).is_ok_and(|(sha256, _)| sha256 == self.sha256)
    }
}

impl From<&Coming> for Known {
    fn from(coming: &Coming) -> Self {
        let Fetched { bytes, sha256, fetched: _ } = coming.come.fetched;
        Self { path: coming.place.clone(), bytes, sha256 }
    }
}

/// The archive of that digest, if all that came in it is still there.
///
/// # Errors
/// [`FetchError::OtherModel`] where another model would be served.
pub fn archive_in(folder: &Path, sha256: Option<Digest>) -> Result<Option<Fetched>, FetchError> {
    let brought = Brought::read(folder);
    let Some(archive) = brought.archive.filter(|archive| sha256 == Some(archive.sha256)) else { return Ok(None) };
    if !brought.files.iter().all(|known| known.is_in(folder)) {
        return Ok(None);
    }
    require_model(folder, &brought.files.iter().map(|known| &known.path).collect())?;
    Ok(Some(Fetched { fetched: false, ..archive }))
}

/// Puts files in their places, and takes away what an earlier fetch brought and this one does not. What somebody else
/// put there or changed since stays.
///
/// # Errors
/// [`FetchError`] where something cannot be written, or where another model than one of these would be served.
pub fn settle(
    workshop: &Workshop,
    archive: Option<Fetched>,
    coming: &[Coming],
    space: &Arc<Space>,
) -> Result<(), FetchError> {
    let folder = workshop.folder();
    let before = Brought::read(folder);
    let is_new = |coming: &&Coming| coming.come.whole.is_some();
    // What was there already is fetch's own only if fetch brought it.
    let ours = coming.iter().filter(|coming| is_new(coming) || before.files.contains(&Known::from(*coming)));
    let now = Brought { archive, files: ours.map(Known::from).collect() };
    let places = coming.iter().map(|coming| &coming.place).collect();
    if now != before || coming.iter().any(|coming| is_new(&coming)) {
        let noted = |note: &Brought| {
            note.write(workshop).map_err(|error| FetchError::writing(&note_in(folder), error, space, 0))
        };
        noted(&Brought { archive: None, files: &before.files | &now.files })?;
        // First, for a folder may come where a file was.
        before.take_away(folder, &places).map_err(|(path, error)| FetchError::writing(&path, error, space, 0))?;
        put(folder, coming).map_err(|(path, error)| FetchError::writing(&path, error, space, 0))?;
        noted(&now)?;
    }
    require_model(folder, &places)
}

impl Brought {
    /// What the note says; nothing where there is none that can be read.
    fn read(folder: &Path) -> Self {
        let note = fs::read(note_in(folder)).ok();
        note.and_then(|text| serde_json::from_slice(&text).ok()).unwrap_or_default()
    }

    /// Writes the note in one step, safe against a loss of power.
    fn write(&self, workshop: &Workshop) -> io::Result<()> {
        let (new, note) = (workshop.new_note(), note_in(workshop.folder()));
        if let Some(folder) = new.parent() {
            fs::create_dir_all(folder)?;
        }
        let mut file = File::create(&new)?;
        file.write_all(&serde_json::to_vec(self)?)?;
        file.sync_all()?;
        fs::rename(new, note)?;
        File::open(workshop.folder())?.sync_all()
    }

    fn take_away(&self, folder: &Path, coming: &BTreeSet<&Place>) -> Result<(), (PathBuf, io::Error)> {
        for known in self.files.iter().filter(|known| !coming.contains(&known.path) && known.is_in(folder)) {
            let path = known.path.under(folder);
            fs::remove_file(&path).map_err(|error| (path.clone(), error))?;
            tracing::info!(path = %path.display(), "removed what an earlier fetch brought");
            let parents = path.ancestors().skip(1).take_while(|parent| *parent != folder);
            // Ends at the first that holds something else.
            let _ = parents.map(fs::remove_dir).take_while(Result::is_ok).count();
        }
        Ok(())
    }
}

fn put(folder: &Path, coming: &[Coming]) -> Result<(), (PathBuf, io::Error)> {
    let mut folders = BTreeSet::new();
    for Coming { place, come } in coming {
        let target = place.under(folder);
        let Some(whole) = &come.whole else { continue };
        whole.put(&target).map_err(|error| (target.clone(), error))?;
        folders.extend(target.parent().map(Path::to_owned));
    }
    folders.into_iter().try_for_each(|folder| {
        let synced = File::open(&folder).and_then(|file| file.sync_all());
        synced.map_err(|error| (folder, error))
    })
}

/// The model that would be served has to be one of these.
fn require_model(folder: &Path, places: &BTreeSet<&Place>) -> Result<(), FetchError> {
    let found = ModelFiles::find(folder).map_err(FetchError::NoModel)?.model;
    if places.iter().any(|place| place.under(folder) == found) { Ok(()) } else { Err(FetchError::OtherModel(found)) }
}

fn note_in(folder: &Path) -> PathBuf {
    folder.join(format!("{OWN_PREFIX}done"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fetch::partial::Partial;

    /// A model's folder with fetch at work in it.
    struct Bench {
        folder: tempfile::TempDir,
        workshop: Workshop,
    }

    impl Bench {
        fn new() -> Self {
            let folder = tempfile::tempdir().unwrap();
            let workshop = Workshop::at_once(folder.path());
            Self { folder, workshop }
        }

        fn path(&self, place: &str) -> PathBuf {
            self.folder.path().join(place)
        }

        fn coming(&self, place: &str, text: &str) -> Coming {
            let place = Place::parse(place).unwrap();
            let mut partial = Partial::open(&self.workshop.beside(&place), None).unwrap();
            partial.append(text.as_bytes()).unwrap();
            Coming { place, come: partial.finish().unwrap() }
        }

        /// Puts these files in their places, as if they came in an archive of that name.
        fn bring(&self, archive: &str, files: &[(&str, &str)]) -> Result<(), FetchError> {
            let coming: Vec<_> = files.iter().map(|(place, text)| self.coming(place, text)).collect();
            let archive = Fetched { bytes: 1, sha256: Self::digest(archive), fetched: true };
            settle(&self.workshop, Some(archive), &coming, &Space::under(self.folder.path()))
        }

        fn digest(text: &str) -> Digest {
            Digest::of(&sha2::Digest::chain_update(<sha2::Sha256 as sha2::Digest>::new(), text))
        }

        fn is_there(&self, archive: &str) -> bool {
            archive_in(self.folder.path(), Some(Self::digest(archive))).unwrap().is_some()
        }

        fn names(&self) -> Vec<String> {
            let files = crate::fetch::local::files(self.folder.path()).unwrap();
            files.into_iter().map(|(_, place)| place.to_string()).collect()
        }
    }

    #[test]
    fn an_archive_is_there_only_while_all_that_came_in_it_is() {
        let bench = Bench::new();
        bench.bring("A", &[("model.onnx", "a"), ("labels.txt", "cup")]).unwrap();
        assert!(bench.is_there("A") && !bench.is_there("B"));
        fs::write(bench.path("model.onnx"), "b").unwrap();
        assert!(!bench.is_there("A"));
        bench.bring("B", &[("model.onnx", "b")]).unwrap();
        assert!(bench.is_there("B") && !bench.is_there("A"));
    }

    #[test]
    fn a_fetch_that_ends_midway_vouches_for_nothing_and_is_tidied_by_the_next() {
        let bench = Bench::new();
        bench.bring("A", &[("model.onnx", "a"), ("a.txt", "a"), ("same.txt", "s")]).unwrap();
        // A folder that is not fetch's stands in the way of the last file.
        fs::create_dir(bench.path("z.txt")).unwrap();
        fs::write(bench.path("z.txt/mine"), "").unwrap();
        bench.bring("B", &[("model.onnx", "b"), ("same.txt", "s"), ("z.txt", "b")]).unwrap_err();
        assert!(!bench.is_there("A") && !bench.is_there("B"));
        assert_eq!(fs::read(bench.path("model.onnx")).unwrap(), b"b");
        for left in ["z.txt.partial", "z.txt.partial.json"] {
            fs::remove_file(bench.path(left)).unwrap();
        }
        bench.bring("C", &[("2/model.onnx", "c")]).unwrap();
        assert_eq!(bench.names(), ["2/model.onnx", "z.txt/mine"]);
        assert!(bench.is_there("C"));
    }

    #[test]
    fn only_what_fetch_brought_is_taken_away() {
        let bench = Bench::new();
        fs::create_dir(bench.path("1")).unwrap();
        fs::write(bench.path("1/mine.txt"), "").unwrap();
        let first = [("1/model.onnx", "a"), ("b/c/d.txt", "d"), ("labels.txt", "cup"), ("notes.txt", "n")];
        bench.bring("A", &first).unwrap();
        fs::write(bench.path("notes.txt"), "changed since").unwrap();
        bench.bring("B", &[("model.onnx", "b")]).unwrap();
        assert_eq!(bench.names(), ["1/mine.txt", "model.onnx", "notes.txt"]);
        assert!(!bench.path("b").exists());
    }

    #[test]
    fn another_model_than_the_one_that_came_is_an_error() {
        let bench = Bench::new();
        fs::write(bench.path("model.onnx"), "of somebody else").unwrap();
        let error = bench.bring("A", &[("2/model.onnx", "a")]).unwrap_err();
        assert!(matches!(&error, FetchError::OtherModel(path) if *path == bench.path("model.onnx")), "{error}");
        assert!(archive_in(bench.folder.path(), Some(Bench::digest("A"))).is_err());
        fs::remove_file(bench.path("model.onnx")).unwrap();
        assert!(bench.is_there("A"));
    }

    #[test]
    fn a_note_that_leads_out_is_none() {
        let bench = Bench::new();
        let known = |path: &str| format!(r#"{{"path":"{path}","bytes":0,"sha256":"{}"}}"#, Bench::digest(""));
        for path in ["../x", "/etc/passwd"] {
            fs::write(bench.path(".fetch.done"), format!(r#"{{"archive":null,"files":[{}]}}"#, known(path))).unwrap();
            assert_eq!(Brought::read(bench.folder.path()), Brought::default());
        }
    }
}
