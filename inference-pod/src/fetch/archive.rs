//! What an archive holds, put into the model's folder: nothing outside of it, no links, not without bounds.

use std::{
    cell::Cell,
    collections::BTreeMap,
    fs::{self, File},
    io::{self, BufReader, Read, Write},
    path::{Path, PathBuf},
    rc::Rc,
    sync::Arc,
};

use flate2::read::MultiGzDecoder;
use sha2::{Digest as _, Sha256};
use tar::{Entry, EntryType};

use super::{
    brought::Coming,
    digest::{BUFFER_BYTES, Digest},
    error::FetchError,
    item::{Come, Fetched},
    partial::Whole,
    place::{NoPlace, Place},
    plan::{Archive, Compression},
    space::Space,
    workshop::Workshop,
};
use crate::files::ModelFiles;

/// A model has few files; more are something else.
const MOST_ENTRIES: usize = 1000;

/// Names and extended headers are read into memory; none of an honest archive comes near.
const LONGEST_HEADERS_BYTES: u64 = 1 << 20;

/// What is wrong with an archive.
#[derive(Debug, thiserror::Error)]
pub enum ArchiveError {
    /// It cannot be read to its end.
    #[error("it is no whole tar archive: make it anew, by tar or tar with gzip as its name says")]
    Broken(#[source] io::Error),
    /// An entry leads out, or has a name of ours.
    #[error("an entry may not be unpacked: make the archive anew without it")]
    Place(#[from] NoPlace),
    /// A link or a device.
    #[error("entry {entry} is neither a file nor a folder: put the file itself into the archive")]
    NotAFile {
        /// Its name.
        entry: String,
    },
    /// More files than a model has.
    #[error("it has more than {MOST_ENTRIES} entries: give the archive of one model")]
    TooMany,
    /// No model in it.
    #[error("it holds no model.onnx: put one at its root, into its only folder or into a numbered version folder")]
    NoModel,
    /// More bytes than allowed.
    #[error("it unpacks to more than {limit} bytes: raise --max-unpacked-bytes if that is meant")]
    TooLarge {
        /// What is allowed.
        limit: u64,
    },
}

/// Unpacks the archive that lies in the workshop. Where everything lies in one folder and the model is in there, that
/// folder becomes the model's.
///
/// # Errors
/// [`FetchError`] where the archive cannot be used. It stays: it is the one that was asked for, and fetching it again
/// would not change it.
pub fn unpack(
    workshop: &Workshop,
    archive: &Archive,
    max_bytes: u64,
    space: &Arc<Space>,
) -> Result<Vec<Coming>, FetchError> {
    let staging = workshop.unpacking();
    let unwritable = |source| FetchError::writing(&staging, source, space, 0);
    if staging.exists() {
        fs::remove_dir_all(&staging).map_err(unwritable)?;
    }
    fs::create_dir_all(&staging).map_err(unwritable)?;
    let url = archive.from.to_string();
    let unpacking = Unpacking { url, staging: &staging, max_bytes, space, unpacked: BTreeMap::new() };
    unpacking.run(&workshop.archive(), archive.compression).inspect_err(|_| {
        let _ = fs::remove_dir_all(&staging);
    })
}

/// The folder in which the model is: the staging folder, or the only one in it.
fn root(staging: &Path) -> io::Result<Option<PathBuf>> {
    if ModelFiles::find(staging).is_ok() {
        return Ok(Some(staging.to_owned()));
    }
    let entries = fs::read_dir(staging)?.collect::<io::Result<Vec<_>>>()?;
    let [only] = entries.as_slice() else { return Ok(None) };
    Ok(Some(only.path()).filter(|folder| folder.is_dir() && ModelFiles::find(folder).is_ok()))
}

struct Unpacking<'a> {
    url: String,
    staging: &'a Path,
    max_bytes: u64,
    space: &'a Arc<Space>,
    /// By their places below `staging`. Of several entries of one name the last counts.
    unpacked: BTreeMap<Place, Fetched>,
}

impl Unpacking<'_> {
    fn run(mut self, archive: &Path, compression: Compression) -> Result<Vec<Coming>, FetchError> {
        let unreadable = |source| FetchError::Unreadable { path: archive.to_owned(), source };
        let file = BufReader::with_capacity(BUFFER_BYTES, File::open(archive).map_err(unreadable)?);
        match compression {
            Compression::None => self.entries(file)?,
            Compression::Gzip => self.entries(MultiGzDecoder::new(file))?,
        }
        let root = root(self.staging).map_err(|error| FetchError::writing(self.staging, error, self.space, 0))?;
        let root = root.ok_or_else(|| self.fault(ArchiveError::NoModel))?;
        self.unpacked.iter().filter_map(|(place, fetched)| self.coming(place, *fetched, &root).transpose()).collect()
    }

    /// The unpacked file with its place below that folder.
    fn coming(&self, place: &Place, fetched: Fetched, root: &Path) -> Result<Option<Coming>, FetchError> {
        let path = place.under(self.staging);
        let place = Place::of_entry(path.strip_prefix(root).unwrap_or(&path));
        let place = place.map_err(|error| self.fault(error.into()))?;
        Ok(place.map(|place| Coming { place, come: Come { fetched, whole: Some(Whole::at(path)) } }))
    }

    fn entries(&mut self, reader: impl Read) -> Result<(), FetchError> {
        let url = self.url.clone();
        let broken = |source| FetchError::Archive { url: url.clone(), source: ArchiveError::Broken(source) };
        let allowance = Rc::new(Cell::new(0));
        let mut archive = tar::Archive::new(Metered { reader, allowance: Rc::clone(&allowance) });
        let mut left = self.max_bytes;
        let mut entries = archive.entries().map_err(broken)?;
        for number in 0.. {
            allowance.set(LONGEST_HEADERS_BYTES);
            let Some(entry) = entries.next() else { break };
            let mut entry = entry.map_err(broken)?;
            if number >= MOST_ENTRIES {
                return Err(self.fault(ArchiveError::TooMany));
            }
            let too_large = ArchiveError::TooLarge { limit: self.max_bytes };
            left = left.checked_sub(entry.size()).ok_or_else(|| self.fault(too_large))?;
            allowance.set(entry.size());
            match self.destination(&entry)? {
                Some(place) => {
                    let fetched = self.file(&mut entry, &place)?;
                    self.unpacked.insert(place, fetched);
                }
                None => io::copy(&mut entry, &mut io::sink()).map(drop).map_err(broken)?,
            }
        }
        Ok(())
    }

    /// Where an entry goes; none for one that is left out. Folders are: a model's files bring their own.
    fn destination(&self, entry: &Entry<'_, impl Read>) -> Result<Option<Place>, FetchError> {
        let path = entry.path().map_err(|error| self.fault(ArchiveError::Broken(error)))?;
        let place = Place::of_entry(&path).map_err(|error| self.fault(error.into()))?;
        match entry.header().entry_type() {
            EntryType::Regular | EntryType::Continuous => Ok(place),
            EntryType::Directory | EntryType::XGlobalHeader => Ok(None),
            _ if place.is_none() => Ok(None),
            _ => Err(self.fault(ArchiveError::NotAFile { entry: path.display().to_string() })),
        }
    }

    fn file(&self, entry: &mut Entry<'_, impl Read>, place: &Place) -> Result<Fetched, FetchError> {
        let (path, size) = (place.under(self.staging), entry.size());
        let no_room = |room| FetchError::OutOfDisk { file: place.to_string(), room };
        let mut share = self.space.reserve(size).map_err(no_room)?;
        let unwritable = |source| FetchError::writing(&path, source, self.space, size);
        let broken = |error| self.fault(ArchiveError::Broken(error));
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder).map_err(unwritable)?;
        }
        let mut file = File::create(&path).map_err(unwritable)?;
        let mut hash = Sha256::new();
        let mut buffer = vec![0; BUFFER_BYTES];
        loop {
            let read = entry.read(&mut buffer).map_err(broken)?;
            if read == 0 {
                break;
            }
            file.write_all(&buffer[..read]).map_err(unwritable)?;
            hash.update(&buffer[..read]);
            share.used(read as u64);
        }
        if share.left() > 0 {
            return Err(broken(io::ErrorKind::UnexpectedEof.into()));
        }
        file.sync_all().map_err(unwritable)?;
        Ok(Fetched { bytes: size, sha256: Digest::of(&hash), fetched: true })
    }

    fn fault(&self, source: ArchiveError) -> FetchError {
        FetchError::Archive { url: self.url.clone(), source }
    }
}

/// A reader that gives no more than it is allowed to, for the next headers or for the next file.
struct Metered<R> {
    reader: R,
    allowance: Rc<Cell<u64>>,
}

impl<R: Read> Read for Metered<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let allowed = self.allowance.get();
        if allowed == 0 && !buffer.is_empty() {
            return Err(io::Error::other("the headers of an entry are too long"));
        }
        let most = buffer.len().min(usize::try_from(allowed).unwrap_or(usize::MAX));
        let read = self.reader.read(&mut buffer[..most])?;
        self.allowance.set(allowed - read as u64);
        Ok(read)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use super::*;
    use crate::fetch::plan::Origin;

    /// A tar with these entries, whatever their names.
    fn tar(entries: &[(&str, EntryType, &[u8])]) -> Vec<u8> {
        let mut builder = tar::Builder::new(Vec::new());
        for (name, kind, bytes) in entries {
            let mut header = tar::Header::new_gnu();
            header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
            header.set_entry_type(*kind);
            header.set_size(bytes.len() as u64);
            header.set_cksum();
            builder.append(&header, Cursor::new(bytes)).unwrap();
        }
        builder.into_inner().unwrap()
    }

    fn archive() -> Archive {
        Archive { from: Origin::File("/volume/m.tar".into()), sha256: None, compression: Compression::None }
    }

    /// Unpacks, and lists what came out.
    fn unpack(bytes: &[u8], max_bytes: u64) -> Result<Vec<String>, String> {
        let folder = tempfile::tempdir().unwrap();
        let inner = folder.path().join("espresso");
        fs::create_dir(&inner).unwrap();
        let workshop = Workshop::at_once(&inner);
        fs::write(workshop.archive(), bytes).unwrap();
        let result = super::unpack(&workshop, &archive(), max_bytes, &Space::under(&inner));
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "nothing outside of the folder");
        assert!(crate::fetch::local::files(&inner).unwrap().is_empty(), "nothing is in its place yet");
        match result {
            Ok(coming) => {
                for Coming { place, come } in &coming {
                    let target = folder.path().join("put").join(place.under(Path::new("")));
                    come.whole.as_ref().unwrap().put(&target).unwrap();
                    let Fetched { bytes, sha256, .. } = come.fetched;
                    assert_eq!(Digest::of_file(&target).unwrap(), (sha256, bytes));
                }
                Ok(coming.into_iter().map(|coming| coming.place.to_string()).collect())
            }
            Err(error) => {
                assert!(!workshop.unpacking().exists(), "nothing of a bad archive");
                Err(crate::termination::error_chain(&error))
            }
        }
    }

    const FILE: EntryType = EntryType::Regular;

    #[test]
    fn files_come_to_their_places_and_an_only_folder_is_left_out() {
        let folder = ("./espresso/", EntryType::Directory, b"".as_slice());
        let nested = tar(&[folder, ("./espresso/model.onnx", FILE, b"m"), ("./espresso/a/b.txt", FILE, b"b")]);
        assert_eq!(unpack(&nested, 100).unwrap(), ["a/b.txt", "model.onnx"]);
        let versions = tar(&[("1/model.onnx", FILE, b"m"), ("._1", FILE, b"of a Mac")]);
        assert_eq!(unpack(&versions, 100).unwrap(), ["1/model.onnx"]);
    }

    #[test]
    fn nothing_leads_out() {
        for name in ["../model.onnx", "/tmp/model.onnx", "a/../../model.onnx"] {
            let said = unpack(&tar(&[("model.onnx", FILE, b"m"), (name, FILE, b"x")]), 100).unwrap_err();
            assert!(said.contains("leads out of the folder") && said.contains(name), "{said}");
        }
        let link = tar(&[("model.onnx", EntryType::Symlink, b""), ("labels.txt", FILE, b"cup")]);
        assert!(unpack(&link, 100).unwrap_err().contains("model.onnx is neither a file nor a folder"));
    }

    #[test]
    fn what_is_no_archive_of_a_model_is_refused() {
        let said = |bytes: &[u8]| unpack(bytes, 100).unwrap_err();
        assert!(said(&tar(&[("a/b/model.onnx", FILE, b"m")])).contains("holds no model.onnx"));
        assert!(said(&tar(&[("espresso.onnx", FILE, b"m")])).contains("holds no model.onnx"));
        assert!(said(&[b'x'; 4096]).contains("no whole tar archive"));
        let whole = tar(&[("model.onnx", FILE, &[b'm'; 90])]);
        assert!(said(&whole[..540]).contains("no whole tar archive"));
    }

    #[test]
    fn it_has_bounds() {
        let two = tar(&[("model.onnx", FILE, &[1; 60]), (".hidden", FILE, &[2; 60])]);
        assert!(unpack(&two, 119).unwrap_err().contains("more than 119 bytes"));
        assert_eq!(unpack(&two, 120).unwrap(), ["model.onnx"]);
        let long_name = tar(&[("x", EntryType::GNULongName, &vec![b'n'; 2 << 20]), ("model.onnx", FILE, b"m")]);
        assert!(unpack(&long_name, u64::MAX).unwrap_err().contains("headers of an entry are too long"));
        let many: Vec<_> = (0..=MOST_ENTRIES).map(|_| ("a/", EntryType::Directory, b"".as_slice())).collect();
        assert!(unpack(&tar(&many), u64::MAX).unwrap_err().contains("more than 1000 entries"));
    }
}
