//! Archives, and folders that were fetched into before.

use std::{
    fs,
    io::{BufRead as _, BufReader, Write as _},
    process::Command,
};

use crate::{
    Bench,
    common::{
        eventually,
        site::{Answer, Site},
    },
    contains, large, sha256, silent_halfway,
};

/// A tar with these files; their names are written as they are, for a builder would refuse some.
fn tar(files: &[(&str, &[u8])]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for (name, bytes) in files {
        let mut header = tar::Header::new_gnu();
        header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
        header.set_size(bytes.len() as u64);
        header.set_cksum();
        builder.append(&header, *bytes).unwrap();
    }
    builder.into_inner().unwrap()
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

#[test]
fn an_archive_is_unpacked_once() {
    let plain = tar(&[("espresso/model.onnx", b"graph"), ("espresso/labels.txt", b"cup\n")]);
    for (name, archive) in [("/m.tar", plain.clone()), ("/m.tar.gz", gzip(&plain)), ("/m.tgz", gzip(&plain))] {
        let (site, bench) = (Site::of(&archive), Bench::new());
        bench.fetch_file(&site.url(name), &archive).report();
        assert_eq!(bench.names(), ["labels.txt", "model.onnx"]);
        assert!(bench.file(".fetch.done").exists());
        assert_eq!(bench.read("model.onnx"), b"graph");
        let again = bench.fetch_file(&site.url(name), &archive).report();
        assert_eq!((again["files"][0]["fetched"].clone(), site.seen().len()), (false.into(), 1));
    }
}

#[test]
fn an_archive_is_unpacked_again_after_something_else() {
    let archive = tar(&[("model.onnx", b"of the archive"), ("labels.txt", b"cup\n")]);
    let (in_archive, single, bench) = (Site::of(&archive), Site::of(b"single"), Bench::new());
    let archived = || bench.fetch_file(&in_archive.url("/m.tar"), &archive).report();
    archived();
    bench.fetch_file(&single.url("/model.onnx"), b"single").report();
    assert_eq!((bench.names(), bench.read("model.onnx")), (vec!["model.onnx".to_owned()], b"single".to_vec()));
    assert_eq!(archived()["files"][0]["fetched"], true);
    assert_eq!(bench.read("model.onnx"), b"of the archive");
    // A change by somebody else is seen too.
    fs::write(bench.file("labels.txt"), "tripod\n").unwrap();
    archived();
    assert_eq!(bench.read("labels.txt"), b"cup\n");
    assert_eq!(archived()["files"][0]["fetched"], false);
}

#[test]
fn what_an_earlier_fetch_brought_goes_and_nothing_else() {
    let site = Site::new(|asked, _| Answer::new(200, asked.path.as_bytes()));
    let bench = Bench::new();
    let fetch = |names: &[&str]| {
        let mut flags = vec!["--uri".to_owned(), site.url("/")];
        for name in names {
            flags.extend(["--file".to_owned(), format!("{name}={}", sha256(format!("/{name}").as_bytes()))]);
        }
        bench.fetch(&flags.iter().map(String::as_str).collect::<Vec<_>>())
    };
    fetch(&["model.onnx", "labels.txt"]).report();
    fs::write(bench.file("readme"), "").unwrap();
    fetch(&["2/model.onnx"]).report();
    assert_eq!(bench.names(), ["2", "readme"]);
    fetch(&["model.onnx"]).report();
    assert_eq!(bench.names(), ["model.onnx", "readme"]);

    // A model of somebody else's is not removed, but it is not served as if it were the one that was fetched either.
    fs::write(bench.file("model.onnx"), "of somebody else").unwrap();
    let said = fetch(&["2/model.onnx"]).failure("InvalidModel");
    contains(&said, &[&bench.file("model.onnx").display().to_string(), "would be served instead", "remove it"]);
    assert_eq!(bench.read("model.onnx"), b"of somebody else");
}

#[test]
fn a_folder_named_by_mistake_is_no_model_whatever_was_there_before() {
    let source = tempfile::tempdir().unwrap();
    fs::write(source.path().join("labels.txt"), "cup\n").unwrap();
    let (site, bench) = (Site::of(b"graph"), Bench::new());
    bench.fetch_file(&site.url("/model.onnx"), b"graph").report();
    let said = bench.fetch(&["--uri", &format!("file://{}/", source.path().display())]).failure("InvalidModel");
    contains(&said, &[&source.path().display().to_string(), "has neither model.onnx nor"]);
    assert_eq!(bench.names(), ["model.onnx"], "nothing was changed");
}

#[test]
fn of_two_fetches_into_a_folder_the_second_waits() {
    let file = large();
    let site = silent_halfway(&file);
    let bench = Bench::new();
    let (url, digest) = (site.url("/model.onnx"), sha256(&file));
    let flags = ["--uri", &url, "--sha256", &digest, "--stall-timeout-seconds", "600"];
    let mut first = bench.start(&flags);
    let partial = bench.file("model.onnx.partial");
    eventually("half of it is there", || fs::metadata(&partial).is_ok_and(|file| file.len() == 5_000_000));

    // The folder must be waited for, and not for longer than the process is wanted.
    let mut unwanted = bench.start(&flags);
    let mut said = BufReader::new(unwanted.stderr.take().unwrap());
    let mut line = String::new();
    said.read_line(&mut line).unwrap();
    contains(&line, &["waiting for another fetch into the same folder to end"]);
    let ended = Command::new("kill").arg(unwanted.id().to_string()).status().unwrap();
    assert!(ended.success());
    assert_eq!(unwanted.wait().unwrap().code(), Some(1));
    fs::remove_file(bench.folder.path().join("message")).unwrap();

    let second = bench.start(&flags);
    first.kill().unwrap();
    first.wait().unwrap();
    bench.ended(second.wait_with_output().unwrap()).report();
    assert!(bench.read("model.onnx") == file);
    assert_eq!(site.sent(), file.len() as u64, "the second went on where the first was");
}

#[test]
fn a_folder_without_locks_is_written_under_names_of_ones_own() {
    let archive = tar(&[("model.onnx", b"graph")]);
    for (name, file) in [("/model.onnx", b"graph".as_slice()), ("/m.tar", &archive)] {
        let (site, bench) = (Site::of(file), Bench::new());
        // A folder in the lock's place can be locked by nobody.
        fs::create_dir_all(bench.file(".fetch.lock")).unwrap();
        let ended = bench.fetch_file(&site.url(name), file);
        contains(&ended.log(), &["the folder cannot be locked"]);
        ended.report();
        assert_eq!((bench.names(), bench.read("model.onnx")), (vec!["model.onnx".to_owned()], b"graph".to_vec()));
        bench.fetch_file(&site.url(name), b"other").failure("ChecksumMismatch");
        assert_eq!(bench.names(), ["model.onnx"], "nothing is left that nobody goes on with");
    }
}

#[test]
fn an_archive_that_leads_out_or_holds_no_model_is_refused() {
    let fails = |archive: &[u8]| {
        let (site, bench) = (Site::of(archive), Bench::new());
        let said = bench.fetch_file(&site.url("/m.tar.gz"), archive).failure("InvalidModel");
        assert!(!bench.folder.path().join("evil").exists());
        assert!(!bench.file("model.onnx").exists());
        contains(&said, &[&format!("cannot unpack {}", site.url("/m.tar.gz"))]);
        said
    };
    let evil = fails(&gzip(&tar(&[("model.onnx", b"graph"), ("../evil", b"x")])));
    contains(&evil, &["`../evil` leads out of the folder"]);
    contains(&fails(&gzip(&tar(&[("a/b/model.onnx", b"graph")]))), &["holds no model.onnx"]);
    contains(&fails(b"PK\x03\x04 a zip by another name"), &["no whole tar archive"]);
}
