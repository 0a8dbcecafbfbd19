//! The little that has to be read out of a Dockerfile.

use std::fs;
use std::path::Path;

use super::place::Place;
use super::{ImageError, ImageSpec};

/// The image's Dockerfile with its arguments filled in as their defaults, for people who build it with other tools.
///
/// # Errors
/// [`ImageError::File`] if the Dockerfile cannot be read.
pub fn render(spec: &ImageSpec) -> Result<String, ImageError> {
    Ok(with_arguments(&read(&Place::find()?.repository, spec)?, spec.arguments))
}

fn with_arguments(text: &str, arguments: &[(&str, &str)]) -> String {
    let mut lines = Vec::new();
    for line in text.lines() {
        let filled = arguments.iter().find(|(name, _)| line.starts_with(&format!("ARG {name}=")));
        lines.push(filled.map_or_else(|| line.to_owned(), |(name, value)| format!("ARG {name}={value}")));
    }
    lines.join("\n") + "\n"
}

/// The images that the Dockerfile starts from, but for a stage that is not built: not `scratch`, and not its own stages.
pub(super) fn bases(repository: &Path, spec: &ImageSpec, unbuilt: Option<&str>) -> Result<Vec<String>, ImageError> {
    Ok(bases_of(&read(repository, spec)?, unbuilt))
}

fn bases_of(text: &str, unbuilt: Option<&str>) -> Vec<String> {
    let mut bases = Vec::new();
    let mut stages = vec!["scratch"];
    for line in text.lines() {
        let Some(("FROM", rest)) = line.split_once(' ') else { continue };
        let (base, stage) = rest.split_once(" AS ").unwrap_or((rest, ""));
        let is_built = unbuilt != Some(stage);
        if is_built && !stages.contains(&base) && !bases.iter().any(|known| known == base) {
            bases.push(base.to_owned());
        }
        stages.push(stage);
    }
    bases
}

fn read(repository: &Path, spec: &ImageSpec) -> Result<String, ImageError> {
    let path = repository.join(spec.dockerfile);
    fs::read_to_string(&path).map_err(ImageError::file("read", &path))
}

#[cfg(test)]
mod tests {
    use super::super::{POD, POD_CUDA};
    use super::*;

    #[test]
    fn bases_are_what_a_dockerfile_starts_from_and_does_not_define() {
        let text =
            "FROM rust:1 AS builder\nRUN x\nFROM debian:a AS one\nFROM debian:a\nFROM one AS two\nFROM scratch\n";
        assert_eq!(bases_of(text, None), ["rust:1", "debian:a"]);
        assert_eq!(bases_of(text, Some("builder")), ["debian:a"]);
        assert_eq!(bases_of(text, Some("one")), ["rust:1", "debian:a"]);
    }

    #[test]
    fn a_rendered_file_differs_in_its_argument_only() {
        assert_eq!(
            with_arguments("ARG RUNTIME=cpu\nARG RUNTIME\nRUN x\n", &[("RUNTIME", "cuda")]),
            "ARG RUNTIME=cuda\nARG RUNTIME\nRUN x\n"
        );
    }

    #[test]
    fn both_images_of_the_server_come_out_of_one_file() {
        let repository = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        let text = read(&repository, &POD_CUDA).unwrap();
        let rendered = with_arguments(&text, POD_CUDA.arguments);
        let others: Vec<_> = text.lines().zip(rendered.lines()).filter(|(before, after)| before != after).collect();
        assert_eq!(others, [("ARG RUNTIME=cpu", "ARG RUNTIME=cuda")]);
        assert_eq!(with_arguments(&text, POD.arguments), text);
        assert_eq!(bases_of(&rendered, None), bases_of(&text, None));
    }
}
