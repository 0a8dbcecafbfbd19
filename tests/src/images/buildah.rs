//! buildah, with its storage in the cache and its mounts in a namespace of their own.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::place::Place;
use super::{ImageError, ImageSpec};

/// How many of a failed command's last lines are shown.
const TAIL_LINES: usize = 20;

/// Debian's place for the machine's trusted certificates.
const CA_BUNDLE: &str = "/etc/ssl/certs/ca-certificates.crt";

/// Where buildah keeps the caches that Dockerfiles mount, below the folder of temporary files.
const MOUNTED_CACHES: &str = "buildah-cache";

/// Runs commands of one build. All they say goes to the build's log.
pub(super) struct Buildah<'a> {
    place: &'a Place,
    log: PathBuf,
    progress: &'a dyn Fn(&str),
}

impl<'a> Buildah<'a> {
    /// Begins the log anew.
    pub(super) fn new(place: &'a Place, log: &Path, progress: &'a dyn Fn(&str)) -> Result<Self, ImageError> {
        File::create(log).map_err(ImageError::file("create", log))?;
        Ok(Self { place, log: log.to_owned(), progress })
    }

    /// Tells a step.
    pub(super) fn say(&self, step: &str) {
        (self.progress)(step);
    }

    /// Builds the image from its Dockerfile, under its own name. Layers of unchanged steps are taken from the storage. `further` is
    /// one more argument.
    pub(super) fn build(&self, spec: &ImageSpec, place: &Place, further: Option<String>) -> Result<(), ImageError> {
        let mut arguments = vec!["build".to_owned(), "--layers".to_owned(), "--pull-never".to_owned()];
        arguments.extend(["--isolation".to_owned(), "chroot".to_owned()]);
        arguments.extend(["--file".to_owned(), spec.dockerfile.to_owned(), "--tag".to_owned(), spec.reference()]);
        for (name, value) in spec.arguments {
            arguments.extend(["--build-arg".to_owned(), format!("{name}={value}")]);
        }
        arguments.extend(["--build-arg".to_owned(), format!("VERSION={}", env!("CARGO_PKG_VERSION"))]);
        arguments.extend(["--build-arg".to_owned(), format!("REVISION={}", revision(&place.repository))]);
        if Path::new(CA_BUNDLE).exists() {
            // The machine may stand behind a proxy with a certificate of its own.
            arguments.extend(["--secret".to_owned(), format!("id=ca-bundle,src={CA_BUNDLE}")]);
        }
        arguments.extend(further);
        arguments.push(".".to_owned());
        self.buildah(&arguments)?;
        Ok(())
    }

    /// Writes the image into an archive.
    pub(super) fn save(&self, reference: &str, archive: &Path) -> Result<(), ImageError> {
        self.say(&format!("saving {reference}"));
        // buildah adds to an archive that is there, as one left by a build that was interrupted.
        let _ = fs::remove_file(archive);
        let target = format!("docker-archive:{}:{reference}", archive.display());
        self.buildah(&["push", reference, &target])?;
        Ok(())
    }

    /// Makes an image by hand: `work` gets a container that started from `base`, which is then committed as `name`.
    pub(super) fn commit(
        &self,
        base: &str,
        name: &str,
        work: impl FnOnce(&str) -> Result<(), ImageError>,
    ) -> Result<(), ImageError> {
        let container = self.buildah(&["from", "--pull-never", base])?;
        let done = work(&container).and_then(|()| self.buildah(&["commit", &container, name]));
        // Removed either way: a container left behind keeps its layers for ever.
        self.buildah(&["rm", &container])?;
        done.map(|_| ())
    }

    /// Removes what builds that were killed left behind. Nobody else builds in this storage: builds hold a lock.
    pub(super) fn remove_leftovers(&self) -> Result<(), ImageError> {
        self.buildah(&["rm", "--all"])?;
        let scratch = &self.place.scratch;
        for entry in fs::read_dir(scratch).map_err(ImageError::file("list", scratch))? {
            let path = entry.map_err(ImageError::file("list", scratch))?.path();
            if path.ends_with(MOUNTED_CACHES) {
                continue;
            }
            let removed = if path.is_dir() { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
            removed.map_err(ImageError::file("remove", &path))?;
        }
        Ok(())
    }

    /// The value of an image's label, if there is such an image and such a label.
    pub(super) fn label(&self, image: &str, label: &str) -> Option<String> {
        let format = format!("{{{{index .OCIv1.Config.Labels \"{label}\"}}}}");
        let mut command = self.command("buildah");
        let output = command.args(["inspect", "--type", "image", "--format", &format, image]).output().ok()?;
        let value = String::from_utf8(output.stdout).ok()?;
        output.status.success().then(|| value.trim().to_owned())
    }

    /// Runs buildah; returns the last line of its output, which is the name of what it made.
    pub(super) fn buildah(&self, arguments: &[impl AsRef<str>]) -> Result<String, ImageError> {
        self.run("buildah", arguments)
    }

    /// Runs a program that may mount what it likes.
    pub(super) fn run(&self, program: &str, arguments: &[impl AsRef<str>]) -> Result<String, ImageError> {
        let failed = || ImageError::file("write", &self.log);
        let mut log = File::options().append(true).open(&self.log).map_err(failed())?;
        let arguments: Vec<&str> = arguments.iter().map(AsRef::as_ref).collect();
        writeln!(log, "\n$ {program} {}", arguments.join(" ")).map_err(failed())?;

        let mut command = self.command(program);
        command.args(&arguments).stderr(log.try_clone().map_err(failed())?).stdout(Stdio::piped());
        let mut child = command.spawn().map_err(ImageError::file("start", Path::new(program)))?;
        let mut last = String::new();
        for line in child.stdout.take().into_iter().flat_map(|output| BufReader::new(output).lines()) {
            last = line.map_err(failed())?;
            writeln!(log, "{last}").map_err(failed())?;
            if last.contains("STEP ") {
                self.say(first_words(&last));
            }
        }
        let status = child.wait().map_err(ImageError::file("wait for", Path::new(program)))?;
        if status.success() { Ok(last) } else { Err(self.failure(program, &arguments)) }
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new("unshare");
        command.args(["--mount", program]).current_dir(&self.place.repository).stdin(Stdio::null());
        // Temporary files of buildah are as large as an image.
        command.env("TMPDIR", &self.place.scratch);
        if program == "buildah" {
            command.arg("--root").arg(&self.place.storage).arg("--runroot").arg(&self.place.state);
            command.args(["--storage-driver", "overlay"]);
        }
        command
    }

    fn failure(&self, program: &str, arguments: &[&str]) -> ImageError {
        let text = fs::read(&self.log).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        let lines: Vec<&str> = text.lines().collect();
        let tail = lines[lines.len().saturating_sub(TAIL_LINES)..].join("\n");
        let command = [&[program], &arguments[..arguments.len().min(3)]].concat().join(" ");
        ImageError::Command { command, log: self.log.clone(), tail }
    }
}

/// A step without the rest of a long command.
fn first_words(step: &str) -> &str {
    step.char_indices().nth(100).map_or(step, |(end, _)| &step[..end])
}

/// The commit that is checked out, for the image's label.
fn revision(repository: &Path) -> String {
    let output = Command::new("git").args(["rev-parse", "HEAD"]).current_dir(repository).output();
    let known = output.ok().filter(|output| output.status.success());
    known.map_or_else(|| "unknown".to_owned(), |output| String::from_utf8_lossy(&output.stdout).trim().to_owned())
}
