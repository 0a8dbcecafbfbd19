//! What the process finds around it: files, environment variables, cores. The only place that reads them.

use std::{
    env, fs,
    num::NonZeroUsize,
    path::{Path, PathBuf},
};

use crds::serving::{Layer, ServerConfig, environment_layer};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// A config file cannot be read.
#[derive(Debug, thiserror::Error)]
#[error("cannot read config file {}", path.display())]
pub struct UnreadableConfig {
    path: PathBuf,
    source: std::io::Error,
}

/// The config's layers: the files in order, then the environment.
///
/// # Errors
/// [`UnreadableConfig`] for the first file that cannot be read.
pub fn config_layers(files: &[PathBuf]) -> Result<Vec<Layer>, UnreadableConfig> {
    let mut layers = files.iter().map(|file| file_layer(file)).collect::<Result<Vec<_>, _>>()?;
    layers.push(environment_layer(variables()));
    Ok(layers)
}

fn file_layer(path: &Path) -> Result<Layer, UnreadableConfig> {
    let text = fs::read_to_string(path).map_err(|source| UnreadableConfig { path: path.to_owned(), source })?;
    Ok(Layer::yaml(path.display().to_string(), text))
}

#[expect(clippy::disallowed_methods, reason = "the one place that reads the environment")]
fn variables() -> impl Iterator<Item = (String, String)> {
    env::vars_os().filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
}

/// An environment variable that is set and not empty.
#[must_use]
#[expect(clippy::disallowed_methods, reason = "the one place that reads the environment")]
pub fn variable(name: &str) -> Option<String> {
    env::var(name).ok().filter(|value| !value.is_empty())
}

/// Name of this host: in Kubernetes that of the pod.
#[must_use]
pub fn host_name() -> Option<String> {
    let name = fs::read_to_string("/proc/sys/kernel/hostname").ok()?;
    Some(name.trim().to_owned()).filter(|name| !name.is_empty())
}

/// Tells ONNX Runtime, which reads this when it is loaded, to send nothing to anybody. Its Linux builds send usage events
/// by default, and the switch in its API comes too late for the first of them. To be called before there are threads.
#[expect(unsafe_code, reason = "a variable of the process can be set in no other way")]
pub fn switch_telemetry_off() {
    // SAFETY: called at the beginning of `main`, when no other thread is there that could read the environment.
    unsafe { env::set_var("ORT_DISABLE_TELEMETRY", "1") };
}

/// Has the C library keep one heap for each core, two at least, where it would keep eight for each, unless its own variables say how
/// many. To be called before there are threads.
///
/// What is freed stays in the heap that it was taken from, and of many heaps each has something in use at its end, so that little of
/// them goes back to the system. While photos came at three times what one core can do, again and again, there were up to 39 MiB more
/// than before with eight heaps, and 29 MiB with two.
pub fn keep_few_heaps() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    if variable("MALLOC_ARENA_MAX").is_none() && !variable("GLIBC_TUNABLES").is_some_and(|it| it.contains("arena_max"))
    {
        let heaps = i32::try_from(cores().max(2)).unwrap_or(i32::MAX);
        #[expect(unsafe_code, reason = "a function of the C library")]
        // SAFETY: takes numbers, and no other thread is there.
        unsafe {
            libc::mallopt(libc::M_ARENA_MAX, heaps);
        }
    }
}

/// Files that the process may have open, after raising the limit as far as it may be raised.
#[must_use]
pub fn open_files() -> usize {
    let mut limit = getrlimit(Resource::Nofile);
    if limit.current < limit.maximum || limit.maximum.is_none() {
        let wanted = Rlimit { current: limit.maximum, maximum: limit.maximum };
        match setrlimit(Resource::Nofile, wanted) {
            Ok(()) => limit = getrlimit(Resource::Nofile),
            Err(error) => tracing::debug!(%error, "the limit of open files stays as it is"),
        }
    }
    limit.current.and_then(|files| usize::try_from(files).ok()).unwrap_or(usize::MAX)
}

/// Threads for all models together: the config's, else the CPU quota of the cgroup (v1 or v2) and the CPU mask, which
/// the standard library reads, else all cores.
#[must_use]
pub fn threads(server: &ServerConfig) -> usize {
    server.threads.map_or_else(cores, |threads| threads as usize)
}

fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, NonZeroUsize::get)
}
