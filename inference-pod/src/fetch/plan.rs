//! From the flags to what is to be done; all faults at once, before anything is asked of anybody.

use std::{collections::BTreeSet, fmt, path::PathBuf, time::Duration};

use reqwest::Url;

use super::{digest::Digest, place::Place};
use crate::{cli, files};

/// What is wrong with the flags.
#[derive(Debug, thiserror::Error)]
#[error("{}", .0.join("; "))]
pub struct Faults(pub Vec<String>);

/// Why there is no plan.
#[derive(Debug, thiserror::Error)]
pub enum PlanError {
    /// The flags are wrong.
    #[error(transparent)]
    Faults(#[from] Faults),
    /// The files named make no model.
    #[error(
        "--file names no {0}: name it too, at the folder's root or in a numbered version folder",
        files::MODEL_FILE
    )]
    NoModelNamed,
}

/// What is to be done.
#[derive(Debug)]
pub struct Plan {
    /// The folder that becomes the model's.
    pub to: PathBuf,
    /// What comes into it.
    pub work: Work,
    /// What bounds it.
    pub limits: Limits,
}

/// What comes into the folder.
#[derive(Debug, PartialEq)]
pub enum Work {
    /// These files.
    Files(Vec<Wanted>),
    /// What an archive holds.
    Archive(Archive),
    /// Everything in a folder of this machine.
    Folder(PathBuf),
}

/// A file to bring.
#[derive(Debug, Clone, PartialEq)]
pub struct Wanted {
    /// Where it comes from.
    pub from: Origin,
    /// Where it goes, in the model's folder.
    pub place: Place,
    /// What it has to be; none where anything will do.
    pub sha256: Option<Digest>,
}

/// An archive to bring and unpack.
#[derive(Debug, Clone, PartialEq)]
pub struct Archive {
    /// Where it comes from.
    pub from: Origin,
    /// What it has to be.
    pub sha256: Option<Digest>,
    /// Whether it is compressed by gzip.
    pub compression: Compression,
}

/// How an archive is compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compression {
    /// Not at all.
    None,
    /// By gzip.
    Gzip,
}

/// Where a file comes from. Shown without what may be secret: user, password and query.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// A server.
    Http(Url),
    /// This machine.
    File(PathBuf),
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Http(url) => {
                let host = url.host_str().unwrap_or_default();
                let port = url.port().map(|port| format!(":{port}")).unwrap_or_default();
                write!(f, "{}://{host}{port}{}", url.scheme(), url.path())
            }
            Self::File(path) => path.display().fmt(f),
        }
    }
}

impl Origin {
    fn parse(text: &str) -> Result<Self, String> {
        // The text itself may hold a password and is not repeated.
        let url = Url::parse(text).map_err(|error| format!("--uri: expected an address: {error}"))?;
        match url.scheme() {
            "http" | "https" => Ok(Self::Http(url)),
            "file" => url.to_file_path().map(Self::File).map_err(|()| {
                "--uri: expected an absolute path after file://, as in file:///opt/espresso/model.onnx".to_owned()
            }),
            other => Err(format!("--uri: expected http://, https:// or file://; {other}:// is not built yet")),
        }
    }

    fn file_name(&self) -> String {
        let name = match self {
            Self::Http(url) => url.path_segments().and_then(|mut parts| parts.next_back()).map(str::to_owned),
            Self::File(path) => path.file_name().map(|name| name.to_string_lossy().into_owned()),
        };
        name.unwrap_or_default()
    }

    /// The file at that place below this one, which is taken for a folder.
    fn below(&self, place: &Place) -> Self {
        match self {
            Self::Http(folder) => {
                let mut url = folder.clone();
                if let Ok(mut path) = url.path_segments_mut() {
                    path.pop_if_empty().extend(place.parts());
                }
                Self::Http(url)
            }
            Self::File(folder) => Self::File(place.under(folder)),
        }
    }
}

/// What bounds a fetch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// Until a connection stands.
    pub connect_timeout: Duration,
    /// Without a byte.
    pub stall_timeout: Duration,
    /// Failures in a row without progress.
    pub retries: u32,
    /// What an archive may unpack to.
    pub max_unpacked_bytes: u64,
}

impl Plan {
    /// Reads the flags.
    ///
    /// # Errors
    /// [`PlanError`] with all that is wrong with them.
    pub fn from_flags(flags: &cli::Fetch) -> Result<Self, PlanError> {
        let mut faults = Vec::new();
        let origin = Origin::parse(&flags.uri).map_err(|fault| faults.push(fault)).ok();
        let sha256 = flags.sha256.as_deref().and_then(|text| sha256(text, "--sha256", &mut faults));
        let named = named_files(&flags.file, &mut faults);
        if flags.sha256.is_some() && !flags.file.is_empty() {
            faults.push("--sha256 is for one file and --file for a folder: expected one of them".to_owned());
        }
        let nothing_to_check = flags.sha256.is_none() && flags.file.is_empty();
        if matches!(origin, Some(Origin::Http(_))) && nothing_to_check {
            faults.push("--sha256 or --file: required for http:// and https://".to_owned());
        }
        let work = origin.and_then(|from| work(from, sha256, &named, &mut faults));
        let (Some(work), true) = (work, faults.is_empty()) else { return Err(Faults(faults).into()) };
        if !named.is_empty() && !named.iter().any(|(place, _)| is_model(place)) {
            return Err(PlanError::NoModelNamed);
        }
        let limits = Limits {
            connect_timeout: Duration::from_secs(flags.connect_timeout_seconds),
            stall_timeout: Duration::from_secs(flags.stall_timeout_seconds),
            retries: flags.retries,
            max_unpacked_bytes: flags.max_unpacked_bytes,
        };
        Ok(Self { to: flags.to.clone(), work, limits })
    }
}

fn sha256(text: &str, flag: &str, faults: &mut Vec<String>) -> Option<Digest> {
    Digest::parse(text).map_err(|error| faults.push(format!("{flag}: {error}, got {text:?}"))).ok()
}

fn named_files(flags: &[String], faults: &mut Vec<String>) -> Vec<(Place, Digest)> {
    let mut files = Vec::new();
    let mut known = BTreeSet::new();
    for flag in flags {
        let Some((path, digest)) = flag.rsplit_once('=') else {
            faults.push(format!("--file: expected PATH=SHA256, got {flag:?}"));
            continue;
        };
        let place = Place::parse(path).map_err(|error| faults.push(format!("--file: {error}"))).ok();
        let digest = sha256(digest, &format!("--file {path}"), faults);
        if !known.insert(path) {
            faults.push(format!("--file: `{path}` is named twice"));
        }
        files.extend(place.zip(digest));
    }
    files
}

fn work(from: Origin, sha256: Option<Digest>, named: &[(Place, Digest)], faults: &mut Vec<String>) -> Option<Work> {
    if !named.is_empty() {
        let wanted = |(place, digest): &(Place, Digest)| Wanted {
            from: from.below(place),
            place: place.clone(),
            sha256: Some(*digest),
        };
        return Some(Work::Files(named.iter().map(wanted).collect()));
    }
    let name = from.file_name();
    let compression = compression(&name);
    if let Some(compression) = compression {
        return Some(Work::Archive(Archive { from, sha256, compression }));
    }
    if name.to_lowercase().ends_with(".onnx") {
        let place = Place::parse(files::MODEL_FILE).map_err(|error| faults.push(error.to_string())).ok()?;
        return Some(Work::Files(vec![Wanted { from, place, sha256 }]));
    }
    match from {
        Origin::File(folder) if sha256.is_none() => Some(Work::Folder(folder)),
        Origin::File(_) | Origin::Http(_) => {
            faults.push(format!(
                "--uri: expected a .onnx file, a .tar, .tar.gz or .tgz archive, or a folder whose files --file names; got {name:?}"
            ));
            None
        }
    }
}

fn compression(name: &str) -> Option<Compression> {
    let name = name.to_lowercase();
    match name {
        _ if name.ends_with(".tar") => Some(Compression::None),
        _ if name.ends_with(".tar.gz") || name.ends_with(".tgz") => Some(Compression::Gzip),
        _ => None,
    }
}

/// Whether a file at that place can be a model's graph: `model.onnx`, alone or in a numbered version folder.
#[must_use]
pub fn is_model(place: &Place) -> bool {
    match place.parts().collect::<Vec<_>>().as_slice() {
        [name] => name == files::MODEL_FILE,
        [version, name] => name == files::MODEL_FILE && version.parse::<u64>().is_ok(),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;

    const DIGEST: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    fn plan(flags: &[&str]) -> Result<Plan, PlanError> {
        let fixed = ["inference-pod", "fetch", "--model", "espresso", "--to", "/models/espresso"];
        match cli::Cli::parse_from(fixed.iter().chain(flags)).command {
            cli::Command::Fetch(flags) => Plan::from_flags(&flags),
            other => panic!("{other:?}"),
        }
    }

    fn faults(flags: &[&str]) -> Vec<String> {
        match plan(flags) {
            Err(PlanError::Faults(Faults(faults))) => faults,
            other => panic!("expected faults, got {other:?}"),
        }
    }

    #[test]
    fn a_file_becomes_the_folders_model_whatever_its_name() {
        let plan = plan(&["--uri", "https://host/v7/espresso.ONNX?sig=1", "--sha256", DIGEST]).unwrap();
        let Work::Files(files) = plan.work else { panic!("{:?}", plan.work) };
        assert_eq!(files.len(), 1);
        assert_eq!(files[0].place.to_string(), "model.onnx");
        assert_eq!(files[0].sha256, Some(Digest::parse(DIGEST).unwrap()));
    }

    #[test]
    fn a_folders_files_keep_its_query_and_are_written_as_addresses() {
        let (model, labels) = (format!("1/model.onnx={DIGEST}"), format!("my labels=?.txt={DIGEST}"));
        for uri in ["http://host/folder/?sig=1", "http://host/folder?sig=1"] {
            let plan = plan(&["--uri", uri, "--file", &model, "--file", &labels]).unwrap();
            let Work::Files(files) = plan.work else { panic!("{:?}", plan.work) };
            let addresses: Vec<_> = files.iter().map(|file| file.from.clone()).collect();
            let expected = ["http://host/folder/1/model.onnx?sig=1", "http://host/folder/my%20labels=%3F.txt?sig=1"];
            assert_eq!(addresses, expected.map(|url| Origin::Http(Url::parse(url).unwrap())));
            assert_eq!(files[1].place.to_string(), "my labels=?.txt");
        }
    }

    #[test]
    fn archives_are_known_by_their_names() {
        for (name, compression) in
            [("m.tar", Compression::None), ("m.tar.gz", Compression::Gzip), ("m.TGZ", Compression::Gzip)]
        {
            let from = Origin::File(PathBuf::from(format!("/volume/{name}")));
            let plan = plan(&["--uri", &format!("file:///volume/{name}")]).unwrap();
            assert_eq!(plan.work, Work::Archive(Archive { from, sha256: None, compression }));
        }
        let zip = faults(&["--uri", "https://host/m.zip", "--sha256", DIGEST]);
        assert!(zip[0].contains(".tar.gz") && zip[0].ends_with("got \"m.zip\""), "{zip:?}");
    }

    #[test]
    fn a_folder_of_this_machine_needs_no_list() {
        assert_eq!(plan(&["--uri", "file:///volume/m/"]).unwrap().work, Work::Folder("/volume/m/".into()));
    }

    #[test]
    fn all_faults_come_at_once() {
        let got = faults(&[
            "--uri",
            "s3://bucket/model.onnx",
            "--sha256",
            "abc",
            "--file",
            "../model.onnx=12",
            "--file",
            "labels.txt",
        ]);
        let expected = [
            "--uri: expected http://, https:// or file://; s3:// is not built yet",
            "--sha256: expected a sha256 of 64 hexadecimal digits, got \"abc\"",
            "--file: `../model.onnx` leads out of the folder: expected a relative path without . and .. as parts",
            "--file ../model.onnx: expected a sha256 of 64 hexadecimal digits, got \"12\"",
            "--file: expected PATH=SHA256, got \"labels.txt\"",
            "--sha256 is for one file and --file for a folder: expected one of them",
        ];
        assert_eq!(got, expected);
    }

    #[test]
    fn other_faults_have_their_sentence() {
        let one = |flags: &[&str]| faults(flags).join("|");
        assert!(one(&["--uri", "http://host/model.onnx"]).contains("required for http://"));
        assert!(one(&["--uri", "file://models/model.onnx"]).contains("file:///opt"));
        let twice = format!("model.onnx={DIGEST}");
        assert!(one(&["--uri", "http://host/", "--file", &twice, "--file", &twice]).contains("named twice"));
        let secret = one(&["--uri", "http://user:secret@host:99999/m.onnx", "--sha256", DIGEST]);
        assert!(!secret.contains("secret"), "{secret}");
        let no_model = plan(&["--uri", "http://host/", "--file", &format!("a/model.onnx={DIGEST}")]).unwrap_err();
        assert!(matches!(no_model, PlanError::NoModelNamed), "{no_model}");
    }

    #[test]
    fn an_address_is_shown_without_its_secrets() {
        let shown =
            Origin::parse("https://user:secret@host:8443/a/model.onnx?token=secret#secret").unwrap().to_string();
        assert_eq!(shown, "https://host:8443/a/model.onnx");
    }
}
