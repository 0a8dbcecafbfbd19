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
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/configs");
    for environment in ["dev", "prod"] {
        let layers = ["base", environment].map(|name| {
            let file = folder.join(format!("{name}.yaml"));
            ortolan_crds::serving::Layer::yaml(file.display().to_string(), fs::read_to_string(file).unwrap())
        });
        let config = ortolan_crds::serving::parse(&layers).unwrap();
        assert_eq!(config.models[0].name, "espresso");
    }
}
