//! The committed reference is the one that the types give.

use std::{fs, path::Path};

#[test]
#[allow(clippy::disallowed_methods, reason = "a person asks by it for the page to be written anew")]
fn the_reference_of_the_resource_is_up_to_date() {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/inferencemodel.md");
    let page = ortolan_crds::resource::reference().unwrap();
    if std::env::var("UPDATE").is_ok() {
        fs::write(&file, &page).unwrap();
    }
    let committed = fs::read_to_string(&file).unwrap_or_default();
    assert!(committed == page, "docs/inferencemodel.md is stale; write it anew with UPDATE=1");
}
