//! Opening sessions: threads, memory and providers.

use std::{
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, PoisonError, Weak,
        atomic::{AtomicU8, Ordering},
    },
    time::Instant,
};

use crds::serving::{CudaOptions, ExecutionProvider};
use ort::{ep, session::builder::SessionBuilder};

use super::{
    Session, SessionError,
    cudart::{Stream, stand_captures_of_others},
    graph::{Device, Graph, assigned_providers},
    library::Runtime,
};
use crate::termination::error_chain;

/// Name of the CUDA provider inside ONNX Runtime.
const CUDA: &str = "CUDAExecutionProvider";

/// Makes a session remember which provider got which nodes.
const REMEMBER_PROVIDERS: &str = "session.record_ep_graph_assignment_info";

/// How a session is opened.
#[derive(Debug, Clone)]
pub struct SessionSettings {
    /// Threads inside one operator, for each instance.
    pub threads: usize,
    /// Whether those threads may spin while they wait; only where nobody else wants the cores.
    pub spinning: bool,
    /// Providers, best first; empty means the CPU.
    pub providers: Vec<ExecutionProvider>,
    /// How the GPU is used, where one is.
    pub cuda: CudaOptions,
}

impl SessionSettings {
    /// Whether sessions on this provider may share a graph.
    ///
    /// Not where each has threads of its own: the threads of a session are a pool, and callers that share one wait for each
    /// other's work (two of Lite0 with two threads each, on two busy cores: 70 samples/s from one pool, 115 from two).
    fn may_share(&self, provider: ExecutionProvider) -> bool {
        provider == ExecutionProvider::Cpu && self.threads <= 1
    }
}

/// How much [`Session::settle`] asks for, on behalf of all sessions of a model. What fails once is not asked for again.
#[derive(Clone)]
pub(super) struct Settling(Arc<AtomicU8>);

const NOTHING: u8 = 0;
const BOUND: u8 = 1;
const CAPTURED: u8 = 2;

impl Settling {
    fn new(cuda: &CudaOptions) -> Self {
        Self(Arc::new(AtomicU8::new(if cuda.graphs == Some(false) { NOTHING } else { CAPTURED })))
    }

    fn captures(&self) -> bool {
        self.0.load(Ordering::Relaxed) == CAPTURED
    }

    /// Whether sessions stay as they are opened.
    pub fn is_over(&self) -> bool {
        self.0.load(Ordering::Relaxed) == NOTHING
    }

    /// After a failure of a session that captured runs, or only bound them.
    pub fn ask_for_less(&self, captured: bool) {
        self.0.fetch_min(if captured { BOUND } else { NOTHING }, Ordering::Relaxed);
    }
}

/// Opens the sessions of one model: one for each instance, and another where one has to be given up.
///
/// On the CPU, with one thread each, they are one graph with several places to run it, so a second one costs no weights, no
/// load and no warm-up. What it does cost is the intermediate results of a run of its own, once both run at the same time.
/// Measured with ONNX Runtime 1.31.1, MiB of PSS that three sessions take beyond the first:
///
/// | model | opened, apart | opened, one graph | one graph, after runs of one sample, all at once |
/// |---|---|---|---|
/// | ResNet-50, weights made by the graph (convolutions) | 134 | 0 | 24 |
/// | EfficientNet-Lite0 (convolutions, depthwise too) | 56 | 0 | 28 |
/// | MiniLM (8 bits in the file, unpacked to 32) | 264 | 0 | 2 |
///
/// ONNX Runtime has other ways, which share less. Initializers that the caller adds (`AddInitializer`) are shared as far as
/// they keep their names through optimisation: nothing of MiniLM, whose weights are folded into new constants, nor of Lite0,
/// whose convolutions are laid out anew for the processor (88 and 19 MiB for each further session, with and without). The
/// container of packed weights holds only what was added so. A graph optimised beforehand and written with its weights
/// beside it was not tried: it needs a second copy of the model on disk, and is bound to the processor that it was made on.
#[derive(Clone)]
pub struct SessionFactory {
    runtime: Runtime,
    path: PathBuf,
    settings: SessionSettings,
    settling: Settling,
    /// Whether sessions have to be where the first one is.
    is_kept: bool,
    shared: Arc<Mutex<Option<Latest>>>,
}

/// The graph that was loaded last.
struct Latest {
    graph: Weak<Graph>,
    loaded: Instant,
}

impl SessionFactory {
    /// A factory over a model file.
    #[must_use]
    pub fn new(runtime: &Runtime, path: &Path, settings: SessionSettings) -> Self {
        let settling = Settling::new(&settings.cuda);
        Self {
            runtime: runtime.clone(),
            path: path.to_owned(),
            settings,
            settling,
            is_kept: false,
            shared: Arc::default(),
        }
    }

    /// Opens a session; from any thread. It shares its graph with the others of this factory where it can.
    ///
    /// # Errors
    /// [`SessionError::Load`] where the file is no model, [`SessionError::UnsupportedType`] where its inputs or outputs
    /// cannot be served, [`SessionError::Provider`] where no wanted provider is to be had.
    pub fn open(&self) -> Result<Session, SessionError> {
        // Held while loading: of two that come at once, the second finds what the first has loaded.
        let mut shared = self.shared.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(graph) = shared.as_ref().and_then(|latest| latest.graph.upgrade()) {
            return Session::over(graph, self.settling.clone());
        }
        let graph = Arc::new(self.load()?);
        if self.settings.may_share(graph.provider) {
            *shared = Some(Latest { graph: Arc::downgrade(&graph), loaded: Instant::now() });
        }
        Session::over(graph, self.settling.clone())
    }

    /// Shares nothing any more with the sessions of a graph that was loaded before then: the next one loads the model again. For when
    /// a session breaks and what it shares cannot be relied on. Of several that break together the first loads for all of them.
    pub fn part(&self, broke: Instant) {
        let mut shared = self.shared.lock().unwrap_or_else(PoisonError::into_inner);
        shared.take_if(|latest| latest.loaded < broke);
    }

    /// Opens no session with another provider from now on, be it a better one.
    pub fn keep_to(&mut self, provider: ExecutionProvider) {
        (self.settings.providers, self.is_kept) = (vec![provider], true);
    }

    fn load(&self) -> Result<Graph, SessionError> {
        let graph = self.load_with_best_provider()?;
        return_free_memory();
        Ok(graph)
    }

    fn load_with_best_provider(&self) -> Result<Graph, SessionError> {
        let providers = &self.settings.providers;
        for (index, provider) in providers.iter().enumerate() {
            match provider {
                ExecutionProvider::Cpu => break,
                ExecutionProvider::Cuda => match self.load_on_cuda()? {
                    Ok(graph) => return Ok(graph),
                    Err(reason) if providers[index..].contains(&ExecutionProvider::Cpu) => {
                        tracing::warn!(wanted = "cuda", used = "cpu", reason, "falling back to another provider");
                    }
                    Err(reason) if self.is_kept => return Err(SessionError::Further { provider: "cuda", reason }),
                    Err(reason) => {
                        // Weights go to the GPU while a session is opened. Whether the file is to blame, the CPU can tell.
                        drop(self.commit(self.builder())?);
                        return Err(SessionError::Provider { wanted: "cuda", reason });
                    }
                },
            }
        }
        Graph::new(self.commit(self.builder())?, ExecutionProvider::Cpu, None)
    }

    /// The inner error says why it cannot run on CUDA.
    fn load_on_cuda(&self) -> Result<Result<Graph, String>, SessionError> {
        let stream = match stand_captures_of_others().and_then(|()| Stream::new()) {
            Ok(stream) => stream,
            Err(error) => return Ok(Err(error.message().to_owned())),
        };
        let mut captures = self.settling.captures();
        let session = loop {
            let builder = match self.builder().and_then(|builder| self.with_cuda(builder, &stream, captures)) {
                Ok(builder) => builder,
                Err(error) => return Ok(Err(error.message().to_owned())),
            };
            match self.commit(Ok(builder)) {
                // It refuses graphs with control flow, and such of which some operators run elsewhere.
                Err(error) if captures => {
                    captures = false;
                    self.settling.ask_for_less(true);
                    tracing::info!(reason = error_chain(&error), "runs are not captured as CUDA graphs");
                }
                Ok(session) => break session,
                Err(error) => return Ok(Err(error_chain(&error))),
            }
        };
        // Registered is not used: a provider that finds no node it can run leaves all of them to the CPU, silently.
        let used = assigned_providers(&session).map_err(SessionError::Run)?;
        let on_cuda = used.iter().filter(|provider| *provider == CUDA).count();
        if on_cuda == 0 {
            return Ok(Err("it runs none of the model's operators".to_owned()));
        }
        let device = Device::new(&session, stream, captures).map_err(SessionError::Run)?;
        tracing::info!(on_cuda, elsewhere = used.len() - on_cuda, captures, binds = device.binds, "graph is assigned");
        Ok(Ok(Graph::new(session, ExecutionProvider::Cuda, Some(device))?))
    }

    fn builder(&self) -> ort::Result<SessionBuilder> {
        SessionBuilder::new(&self.runtime.environment)?
            .with_intra_threads(self.settings.threads)
            .map_err(plain)?
            .with_intra_op_spinning(self.settings.spinning)
            .map_err(plain)?
            // The pattern of one batch size is of no use to the next, and planning for each costs memory.
            .with_memory_pattern(false)
            .map_err(plain)
    }

    fn with_cuda(&self, builder: SessionBuilder, stream: &Stream, captures: bool) -> ort::Result<SessionBuilder> {
        let mut cuda = ep::CUDA::default()
            // The search through all algorithms takes seconds for each new shape.
            .with_conv_algorithm_search(ep::cuda::ConvAlgorithmSearch::Heuristic)
            // Doubling wastes up to half of a memory that models share.
            .with_arena_extend_strategy(ep::ArenaExtendStrategy::SameAsRequested)
            .with_cuda_graph(captures);
        if let Some(bytes) = self.settings.cuda.memory_limit_bytes {
            cuda = cuda.with_memory_limit(usize::try_from(bytes).unwrap_or(usize::MAX));
        }
        #[expect(unsafe_code, reason = "a promise about the stream's life")]
        // SAFETY: the graph keeps the stream for longer than the session.
        let cuda = unsafe { cuda.with_compute_stream(stream.as_ptr()) };
        builder
            // ONNX Runtime falls back silently; an error is what tells.
            .with_execution_providers([cuda.build().error_on_failure()])
            .map_err(plain)?
            .with_config_entry(REMEMBER_PROVIDERS, "1")
            .map_err(plain)
    }

    fn commit(&self, builder: ort::Result<SessionBuilder>) -> Result<ort::session::Session, SessionError> {
        let committed = builder.and_then(|mut builder| builder.commit_from_file(&self.path));
        committed.map_err(|source| SessionError::Load { path: self.path.clone(), source })
    }
}

/// Drops the builder that an error carries.
fn plain(error: ort::Error<SessionBuilder>) -> ort::Error {
    ort::Error::new_with_code(error.code(), error.message())
}

/// Gives memory that loading has freed back to the system.
///
/// Loading reads the file, folds constants and packs weights, and the C library keeps what that needed at its peak:
/// of MiniLM (23 MB) 61 MiB, of Lite0 (18 MB) 30 MiB, of ResNet-50 25 MiB, which would stay unused for ever.
fn return_free_memory() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    #[expect(unsafe_code, reason = "a function of the C library")]
    // SAFETY: may be called at any time and from any thread.
    unsafe {
        libc::malloc_trim(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::surroundings;

    #[test]
    fn a_graph_is_shared_on_the_cpu_where_no_pool_of_threads_is() {
        let share = |threads, provider| settings(threads).may_share(provider);
        assert!(share(1, ExecutionProvider::Cpu));
        assert!(!share(2, ExecutionProvider::Cpu));
        assert!(!share(1, ExecutionProvider::Cuda));
    }

    #[test]
    fn what_fails_once_is_not_asked_for_again() {
        assert!(Settling::new(&CudaOptions { graphs: Some(false), ..CudaOptions::default() }).is_over());
        let settling = Settling::new(&CudaOptions::default());
        assert!(settling.captures());
        settling.clone().ask_for_less(true);
        assert!(!settling.captures() && !settling.is_over(), "bound, and not captured");
        settling.ask_for_less(false);
        assert!(settling.is_over());
        settling.ask_for_less(true);
        assert!(settling.is_over(), "never more than before");
    }

    fn settings(threads: usize) -> SessionSettings {
        SessionSettings { threads, spinning: false, providers: Vec::new(), cuda: CudaOptions::default() }
    }

    #[test]
    fn which_provider_got_which_nodes_is_known_after_load() {
        let cache = surroundings::variable("ORTOLAN_CACHE").map_or_else(|| "../.cache".into(), PathBuf::from);
        let runtime = Runtime::load(Some(cache.join("onnxruntime/lib/libonnxruntime.so"))).unwrap();
        let factory = SessionFactory::new(&runtime, &cache.join("models/tiny/model.onnx"), settings(1));
        let builder = factory.builder().unwrap().with_config_entry(REMEMBER_PROVIDERS, "1").map_err(plain);
        assert_eq!(assigned_providers(&factory.commit(builder).unwrap()).unwrap(), ["CPUExecutionProvider"]);
        let untold = factory.commit(factory.builder()).unwrap();
        assert!(assigned_providers(&untold).is_err(), "a session that was not told to remember does not guess");
    }
}
