//! `fetch`: bring a model's files into a folder that `serve` can read, or say why not.
//!
//! ```text
//! flags ▸ plan ▸ {download | local} ▸ partial ▸ check ▸ place      each file, some at a time
//!                                               └▸ unpack          an archive
//! ```
//!
//! A file is written beside its place and comes into it only whole and checked, so a folder never holds half of one.
//! What a broken connection or an ended process leaves is gone on with. Memory does not grow with a file.
//!
//! Deliberately absent: credentials other than those of an address, and sources other than HTTP and files.

mod archive;
mod digest;
mod download;
mod error;
mod item;
mod local;
mod partial;
mod place;
mod plan;
mod space;
mod tries;

use std::{
    fs,
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use serde::Serialize;
use tokio::{
    runtime,
    signal::unix::{SignalKind, signal},
    sync::{OnceCell, Semaphore},
    task::JoinSet,
};

pub use self::error::FetchError;
use self::{
    archive::Workshop,
    download::Downloader,
    item::{Fetched, Item},
    plan::{Archive, Limits, Origin, Plan, Wanted, Work},
    space::Space,
};
use crate::{cli, files::ModelFiles};

/// More connections to one server hardly bring a model sooner, and each costs a thread.
const FILES_AT_ONCE: usize = 4;

/// What was fetched, for people and programs.
#[derive(Debug, Serialize)]
pub struct Report {
    /// The model's name.
    model: String,
    /// Its folder.
    path: PathBuf,
    /// Its files, or the archive that they came in.
    files: Vec<FileReport>,
    /// Size of these together.
    bytes: u64,
    /// How long it took.
    seconds: f64,
}

/// One file of a report.
#[derive(Debug, Serialize)]
struct FileReport {
    /// Place in the folder, or the archive's address.
    path: String,
    #[serde(flatten)]
    fetched: Fetched,
}

/// Fetches a model.
///
/// # Errors
/// [`FetchError`], with a reason for the operator.
pub fn fetch(flags: &cli::Fetch) -> Result<Report, FetchError> {
    let began = Instant::now();
    let plan = Plan::from_flags(flags)?;
    fs::create_dir_all(&plan.to).map_err(|source| FetchError::Unwritable { path: plan.to.clone(), source })?;
    let space = Space::under(&plan.to);
    let bringer = Arc::new(Bringer {
        model: flags.model.clone(),
        to: plan.to.clone(),
        limits: plan.limits,
        space,
        downloader: OnceCell::new(),
    });
    let runtime = runtime::Builder::new_multi_thread()
        .worker_threads(FILES_AT_ONCE)
        .thread_name("fetching")
        .enable_all()
        .build()
        .map_err(FetchError::Process)?;
    let result = runtime.block_on(async {
        tokio::select! {
            result = bringer.bring(plan.work) => result,
            stopped = stop_signal() => Err(stopped),
        }
    });
    // A thread in the middle of a file has nobody to report to.
    runtime.shutdown_background();
    let files = result?;
    ModelFiles::find(&plan.to).map_err(FetchError::NoModel)?;
    let bytes = files.iter().map(|file| file.fetched.bytes).sum();
    let seconds = began.elapsed().as_secs_f64();
    tracing::info!(model = flags.model, path = %plan.to.display(), bytes, seconds, "model is fetched");
    Ok(Report { model: flags.model.clone(), path: plan.to, files, bytes, seconds })
}

async fn stop_signal() -> FetchError {
    let signals = (signal(SignalKind::terminate()), signal(SignalKind::interrupt()));
    let (mut terminate, mut interrupt) = match signals {
        (Ok(terminate), Ok(interrupt)) => (terminate, interrupt),
        (Err(error), _) | (_, Err(error)) => return FetchError::Process(error),
    };
    tokio::select! {
        _ = terminate.recv() => FetchError::Stopped,
        _ = interrupt.recv() => FetchError::Stopped,
    }
}

/// Runs what waits for the disk where it keeps nobody from the network.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => std::panic::resume_unwind(error.into_panic()),
    }
}

/// Brings the files of one model.
#[derive(Debug)]
struct Bringer {
    model: String,
    to: PathBuf,
    limits: Limits,
    space: Arc<Space>,
    /// Made for the first file that needs it: files of this machine need no certificates.
    downloader: OnceCell<Downloader>,
}

impl Bringer {
    async fn bring(self: &Arc<Self>, work: Work) -> Result<Vec<FileReport>, FetchError> {
        match work {
            Work::Files(files) => self.files(files).await,
            Work::Archive(archive) => Ok(vec![self.archive(archive).await?]),
            Work::Folder(folder) => {
                let files = blocking(move || local::files(&folder)).await?;
                let wanted =
                    files.into_iter().map(|(path, place)| Wanted { from: Origin::File(path), place, sha256: None });
                self.files(wanted.collect()).await
            }
        }
    }

    /// Some at a time; the first error ends the others, which keep what came.
    async fn files(self: &Arc<Self>, files: Vec<Wanted>) -> Result<Vec<FileReport>, FetchError> {
        let places = Arc::new(Semaphore::new(FILES_AT_ONCE));
        let mut tasks = JoinSet::new();
        for wanted in files {
            let (bringer, places) = (Arc::clone(self), Arc::clone(&places));
            tasks.spawn(async move {
                // The semaphore is never closed, so a place always comes.
                let _place = places.acquire().await;
                bringer.file(wanted).await
            });
        }
        let mut reports = Vec::new();
        while let Some(joined) = tasks.join_next().await {
            match joined {
                Ok(report) => reports.push(report?),
                Err(error) => std::panic::resume_unwind(error.into_panic()),
            }
        }
        reports.sort_by(|one, other| one.path.cmp(&other.path));
        Ok(reports)
    }

    async fn file(&self, wanted: Wanted) -> Result<FileReport, FetchError> {
        let is_graph = wanted.place.to_string().ends_with(".onnx");
        let target = wanted.place.under(&self.to);
        let fetched = self.item(Item { from: wanted.from, target, sha256: wanted.sha256, is_graph }).await?;
        Ok(FileReport { path: wanted.place.to_string(), fetched })
    }

    async fn archive(&self, archive: Archive) -> Result<FileReport, FetchError> {
        let workshop = Workshop::within(&self.to);
        let (path, from) = (archive.from.to_string(), archive.from.clone());
        if let Some(fetched) = workshop.done(&archive) {
            self.tell(&path, &fetched, Duration::ZERO);
            return Ok(FileReport { path, fetched });
        }
        let item = Item { from, target: workshop.archive(), sha256: archive.sha256, is_graph: false };
        let fetched = self.item(item).await?;
        let (max_bytes, space) = (self.limits.max_unpacked_bytes, Arc::clone(&self.space));
        blocking(move || workshop.unpack(&archive, &fetched, max_bytes, &space)).await?;
        Ok(FileReport { path, fetched })
    }

    async fn item(&self, item: Item) -> Result<Fetched, FetchError> {
        let began = Instant::now();
        let from = item.from.to_string();
        let fetched = match self.already_there(&item).await {
            Some(fetched) => fetched,
            None => self.fetch(item).await?,
        };
        self.tell(&from, &fetched, began.elapsed());
        Ok(fetched)
    }

    fn tell(&self, url: &str, fetched: &Fetched, time: Duration) {
        let Fetched { bytes, sha256, fetched } = fetched;
        let done = if *fetched { "fetched" } else { "already there" };
        tracing::info!(model = self.model, url, bytes, seconds = time.as_secs_f64(), %sha256, "{done}");
    }

    async fn already_there(&self, item: &Item) -> Option<Fetched> {
        let item = item.clone();
        blocking(move || item.already_there()).await
    }

    async fn fetch(&self, item: Item) -> Result<Fetched, FetchError> {
        match item.from.clone() {
            Origin::Http(url) => self.downloader().await?.bring(&item, &url).await,
            Origin::File(path) => {
                let space = Arc::clone(&self.space);
                blocking(move || local::copy(&item, &path, &space)).await
            }
        }
    }

    async fn downloader(&self) -> Result<&Downloader, FetchError> {
        let make = || async { Downloader::new(&self.model, self.limits.clone(), Arc::clone(&self.space)) };
        self.downloader.get_or_try_init(make).await
    }
}
