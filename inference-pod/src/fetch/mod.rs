//! `fetch`: bring a model's files into a folder that `serve` can read, or say why not.
//!
//! ```text
//! flags ▸ plan ▸ turn ▸ {download | local} ▸ partial ▸ check ▸ settle      each file, some at a time
//!                                                      └▸ unpack ┘        an archive
//! ```
//!
//! A file is written beside its place and comes into it only whole and checked, so a folder never holds half of one.
//! When all are there they come into their places together, and what an earlier fetch brought goes. One process at a
//! time fetches into a folder. What a broken connection or an ended process leaves is gone on with. Memory does not
//! grow with a file.
//!
//! Deliberately absent: credentials other than those of an address, and sources other than HTTP and files.

mod archive;
mod brought;
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
mod workshop;

use std::{
    fs,
    path::PathBuf,
    pin::pin,
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
    brought::Coming,
    download::Downloader,
    item::{Come, Fetched, Item},
    plan::{Archive, Limits, Origin, Plan, Wanted, Work},
    space::Space,
    workshop::Workshop,
};
use crate::{cli, files::FilesError};

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
    let runtime = runtime::Builder::new_multi_thread()
        .worker_threads(FILES_AT_ONCE)
        .thread_name("fetching")
        .enable_all()
        .build()
        .map_err(FetchError::Process)?;
    let to = plan.to.clone();
    let result = runtime.block_on(bring(&flags.model, plan));
    // A thread in the middle of a file has nobody to report to.
    runtime.shutdown_background();
    let files = result?;
    let bytes = files.iter().map(|file| file.fetched.bytes).sum();
    let seconds = began.elapsed().as_secs_f64();
    tracing::info!(model = flags.model, path = %to.display(), bytes, seconds, "model is fetched");
    Ok(Report { model: flags.model.clone(), path: to, files, bytes, seconds })
}

/// Waits for the folder and brings the model, unless a signal comes before.
async fn bring(model: &str, plan: Plan) -> Result<Vec<FileReport>, FetchError> {
    let mut stopped = pin!(stop_signal()?);
    let workshop = tokio::select! {
        workshop = Workshop::open(&plan.to, model) => workshop,
        stopped = &mut stopped => return Err(stopped),
    };
    let bringer = Arc::new(Bringer {
        model: model.to_owned(),
        limits: plan.limits,
        space: Space::under(&plan.to),
        workshop,
        downloader: OnceCell::new(),
    });
    let result = tokio::select! {
        result = bringer.bring(plan.work) => result,
        stopped = &mut stopped => Err(stopped),
    };
    match &result {
        Ok(_) => bringer.workshop.clear(),
        Err(_) => {
            bringer.workshop.abandon();
            // A thread may be in the middle of a file still, so the folder is locked until the process is gone.
            std::mem::forget(bringer);
        }
    }
    result
}

/// Ends with the first signal to stop. Signals are taken from the call on, not from the first poll: none may end the process by
/// itself once there is work in the folder.
fn stop_signal() -> Result<impl Future<Output = FetchError>, FetchError> {
    let signals = |kind| signal(kind).map_err(FetchError::Process);
    let (mut terminate, mut interrupt) = (signals(SignalKind::terminate())?, signals(SignalKind::interrupt())?);
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => FetchError::Stopped,
            _ = interrupt.recv() => FetchError::Stopped,
        }
    })
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
    workshop: Workshop,
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
                let named = folder.clone();
                let files = blocking(move || local::files(&folder)).await?;
                // Before anything is changed: else a good model would make room for a folder named by mistake.
                if !files.iter().any(|(_, place)| plan::is_model(place)) {
                    return Err(FetchError::NoModel(FilesError::NoModel(named)));
                }
                let wanted =
                    files.into_iter().map(|(path, place)| Wanted { from: Origin::File(path), place, sha256: None });
                self.files(wanted.collect()).await
            }
        }
    }

    async fn files(self: &Arc<Self>, files: Vec<Wanted>) -> Result<Vec<FileReport>, FetchError> {
        let coming = self.all(files).await?;
        let report = |coming: &Coming| FileReport { path: coming.place.to_string(), fetched: coming.come.fetched };
        let reports = coming.iter().map(report).collect();
        self.settle(None, coming).await?;
        Ok(reports)
    }

    /// Some at a time; the first error ends the others, which keep what came. In order of their places.
    async fn all(self: &Arc<Self>, files: Vec<Wanted>) -> Result<Vec<Coming>, FetchError> {
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
        let mut coming = Vec::new();
        while let Some(joined) = tasks.join_next().await {
            match joined {
                Ok(file) => coming.push(file?),
                Err(error) => std::panic::resume_unwind(error.into_panic()),
            }
        }
        coming.sort_by(|one, other| one.place.cmp(&other.place));
        Ok(coming)
    }

    async fn file(&self, wanted: Wanted) -> Result<Coming, FetchError> {
        let Wanted { from, place, sha256 } = wanted;
        let is_graph = place.to_string().ends_with(".onnx");
        let (target, beside) = (place.under(self.workshop.folder()), self.workshop.beside(&place));
        let come = self.item(Item { from, target, beside, sha256, is_graph }).await?;
        Ok(Coming { place, come })
    }

    async fn archive(self: &Arc<Self>, archive: Archive) -> Result<FileReport, FetchError> {
        let (path, from, sha256) = (archive.from.to_string(), archive.from.clone(), archive.sha256);
        let bringer = Arc::clone(self);
        if let Some(fetched) = blocking(move || brought::archive_in(bringer.workshop.folder(), sha256)).await? {
            self.tell(&path, &fetched, Duration::ZERO);
            return Ok(FileReport { path, fetched });
        }
        let target = self.workshop.archive();
        let item = Item { from, target: target.clone(), beside: target, sha256, is_graph: false };
        let come = self.item(item).await?;
        let (bringer, fetched) = (Arc::clone(self), come.fetched);
        let coming = blocking(move || bringer.unpack(&archive, &come)).await?;
        self.settle(Some(fetched), coming).await?;
        Ok(FileReport { path, fetched })
    }

    fn unpack(&self, archive: &Archive, come: &Come) -> Result<Vec<Coming>, FetchError> {
        let target = self.workshop.archive();
        let put = come.whole.as_ref().map_or(Ok(()), |whole| whole.put(&target));
        put.map_err(|error| FetchError::writing(&target, error, &self.space, 0))?;
        archive::unpack(&self.workshop, archive, self.limits.max_unpacked_bytes, &self.space)
    }

    async fn settle(self: &Arc<Self>, archive: Option<Fetched>, coming: Vec<Coming>) -> Result<(), FetchError> {
        let bringer = Arc::clone(self);
        blocking(move || brought::settle(&bringer.workshop, archive, &coming, &bringer.space)).await
    }

    async fn item(&self, item: Item) -> Result<Come, FetchError> {
        let began = Instant::now();
        let from = item.from.to_string();
        let come = match self.already_there(&item).await {
            Some(come) => come,
            None => self.fetch(item).await?,
        };
        self.tell(&from, &come.fetched, began.elapsed());
        Ok(come)
    }

    fn tell(&self, url: &str, fetched: &Fetched, time: Duration) {
        let Fetched { bytes, sha256, fetched } = fetched;
        let done = if *fetched { "fetched" } else { "already there" };
        tracing::info!(model = self.model, url, bytes, seconds = time.as_secs_f64(), %sha256, "{done}");
    }

    async fn already_there(&self, item: &Item) -> Option<Come> {
        let item = item.clone();
        blocking(move || item.already_there()).await
    }

    async fn fetch(&self, item: Item) -> Result<Come, FetchError> {
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
