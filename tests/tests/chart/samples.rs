//! The samples that users begin with.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;

use crds::resource::{InferenceModel, invalid_options, not_implemented};
use sha2::{Digest, Sha256};

use crate::repository;

/// Where the samples' models come from, inside the cluster.
const SERVER: &str = "http://models.models.svc/";

/// Every sample with its file.
pub(crate) fn all() -> Vec<(PathBuf, InferenceModel)> {
    let files = fs::read_dir(repository().join("deploy/samples")).unwrap().map(|entry| entry.unwrap().path());
    let samples: Vec<_> = files
        .filter(|file| file.extension().is_some_and(|extension| extension == "yaml"))
        .map(|file| {
            let read = serde_saphyr::from_str(&fs::read_to_string(&file).unwrap());
            (file, read.unwrap())
        })
        .collect();
    assert!(!samples.is_empty());
    samples
}

pub(crate) fn are_built() {
    for (file, sample) in all() {
        let faults = [not_implemented(&sample.spec), invalid_options(&sample.spec)].concat();
        assert!(faults.is_empty(), "{}: {faults:?}", file.display());
    }
}

pub(crate) fn have_the_digests() {
    let made = digests();
    for (file, sample) in all() {
        for model in sample.spec.models {
            let Some(place) = model.source.uri.as_deref().and_then(|uri| uri.strip_prefix(SERVER)) else { continue };
            let folder = model.files.iter().map(|file| (format!("{place}/{}", file.path), &file.sha256));
            let single = model.sha256.iter().map(|digest| (place.to_owned(), digest));
            for (path, digest) in folder.chain(single) {
                assert_eq!(made.get(&path), Some(digest), "{} in {}", path, file.display());
            }
        }
    }
}

/// The digest of each file that `make models` makes: those that are committed, and those of the options, which it copies.
fn digests() -> BTreeMap<String, String> {
    let models = repository().join("deploy/models");
    let checksums = fs::read_to_string(models.join("checksums.txt")).unwrap();
    let lines = checksums.lines().filter_map(|line| line.split_once("  "));
    let mut digests: BTreeMap<_, _> = lines.map(|(digest, path)| (path.to_owned(), digest.to_owned())).collect();
    for entry in fs::read_dir(models.join("options")).unwrap() {
        let path = entry.unwrap().path();
        let digest: String =
            Sha256::digest(fs::read(&path).unwrap()).iter().map(|byte| format!("{byte:02x}")).collect();
        digests.insert(format!("{}/model.yaml", path.file_stem().unwrap().display()), digest);
    }
    digests
}
