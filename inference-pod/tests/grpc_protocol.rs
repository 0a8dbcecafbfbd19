//! The committed code of the protocol is what its description gives.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test may panic")]

use std::{fs, path::Path};

#[test]
#[expect(clippy::disallowed_methods, reason = "tests are told by the environment to write files anew")]
fn the_generated_code_is_fresh() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/grpc");
    let files = protox::Compiler::new([&folder])
        .unwrap()
        .include_source_info(true)
        .open_file("protocol.proto")
        .unwrap()
        .file_descriptor_set();
    let out = tempfile::tempdir().unwrap();
    tonic_prost_build::configure()
        .build_client(false)
        .build_transport(false)
        .generate_default_stubs(true)
        // Tensors stay slices of the message that they came in.
        .bytes(".")
        .out_dir(out.path())
        .compile_fds(files)
        .unwrap();
    let fresh = fs::read_to_string(out.path().join("inference.rs")).unwrap();
    let committed = folder.join("protocol.rs");
    if std::env::var("UPDATE").is_ok() {
        fs::write(&committed, &fresh).unwrap();
    }
    let committed = fs::read_to_string(committed).unwrap_or_default();
    assert!(committed == fresh, "src/grpc/protocol.rs is stale; write it anew with UPDATE=1");
}
