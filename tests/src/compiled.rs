//! Programs of this workspace, where cargo leaves them.

use std::path::{Path, PathBuf};

/// Cargo compiles it with the tests, if the whole workspace is asked for.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("there is no {program} beside {}: run `cargo build --workspace --bins` first", asker.display())]
pub struct NotCompiled {
    program: String,
    asker: PathBuf,
}

/// The program of this name that was compiled last with the settings of the command or the test that asks.
///
/// # Errors
/// [`NotCompiled`] if there is none.
pub fn find(program: &str) -> Result<PathBuf, NotCompiled> {
    // The same, if it cannot be told, as if nothing were beside it.
    let asker = std::env::current_exe().unwrap_or_default();
    beside(&asker, program).ok_or_else(|| NotCompiled { program: program.to_owned(), asker })
}

/// A command has it in its own folder, as `target/debug/images`; a test, as `target/debug/deps/operator-1a2b`, in the one above.
fn beside(asker: &Path, program: &str) -> Option<PathBuf> {
    asker.ancestors().skip(1).take(2).map(|folder| folder.join(program)).find(|path| path.is_file())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_is_found_from_a_test_and_one_that_is_not_there_is_named() {
        let images = find("images").unwrap();
        assert_eq!(beside(&images, "cluster"), Some(images.with_file_name("cluster")));
        let said = find("no-such-program").unwrap_err().to_string();
        assert!(said.starts_with("there is no no-such-program beside /"), "{said}");
    }
}
