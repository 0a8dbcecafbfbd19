//! Writes `crds/generated/inferencemodels.ortolan.dev.yaml` from the types.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/generated/inferencemodels.ortolan.dev.yaml");
    std::fs::write(file, ortolan_crds::resource::definition_yaml()?)?;
    Ok(())
}
