//! The committed reference is the one that the types give.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::{fs, path::Path};

#[test]
#[allow(clippy::disallowed_methods, reason = "a person asks by it for the page to be written anew")]
fn the_reference_of_the_config_is_up_to_date() {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/configuration.md");
    let page = ortolan_crds::serving::reference();
    if std::env::var("UPDATE").is_ok() {
        fs::write(&file, &page).unwrap();
    }
    let committed = fs::read_to_string(&file).unwrap_or_default();
    assert!(committed == page, "docs/configuration.md is stale; write it anew with UPDATE=1");
}

#[test]
fn the_shipped_configs_are_read() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy");
    let shipped: [&[&str]; 3] = [
        &["configs/base.yaml", "configs/dev.yaml"],
        &["configs/base.yaml", "configs/prod.yaml"],
        &["compose/config.yaml"],
    ];
    for files in shipped {
        let layers = files.iter().map(|file| {
            let file = folder.join(file);
            ortolan_crds::serving::Layer::yaml(file.display().to_string(), fs::read_to_string(file).unwrap())
        });
        let config = ortolan_crds::serving::parse(&layers.collect::<Vec<_>>()).unwrap();
        assert_eq!(config.models[0].name, "espresso");
    }
}
