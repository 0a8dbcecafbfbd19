//! ONNX Runtime: the library, and sessions over a model file. Nothing outside of this folder names it.
//!
//! `library` is loaded once; `open` makes sessions; `graph` is the C interface of a run; `buffer` is where batches are laid
//! out; `bound` is a run on a GPU with everything in its place, over `cudart`; `pages` moves weights into huge pages;
//! `signature` says what goes in and comes out.

mod bound;
mod buffer;
mod cudart;
mod graph;
mod library;
mod open;
mod pages;
mod signature;

use std::{
    collections::HashMap,
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use crds::serving::ExecutionProvider;
use ort::session::RunOptions;
use parking_lot::RwLock;

use self::{
    bound::Layout,
    buffer::InputBuffer,
    cudart::stand_captures_of_others,
    graph::{Graph, Output, OutputBytes, View},
    open::Settling,
};
pub use self::{
    library::Runtime,
    open::{SessionFactory, SessionSettings},
    pages::make_huge,
    signature::{Port, Signature},
};
use crate::{
    observe::Memory,
    tensor::{ElementType, Tensor, elements},
    termination::error_chain,
};

/// Why something could not be done with ONNX Runtime.
#[derive(Debug, thiserror::Error)]
pub enum SessionError {
    /// The library is missing or too old.
    #[error("cannot load ONNX Runtime from {}: {reason}; set ORT_DYLIB_PATH to libonnxruntime.so, version 1.{} or newer", path.display(), ort::MINOR_VERSION)]
    Library {
        /// Where it was looked for.
        path: PathBuf,
        /// What the loader said.
        reason: String,
    },
    /// The file is no model that ONNX Runtime can run.
    #[error("cannot load model file {}", path.display())]
    Load {
        /// The model file.
        path: PathBuf,
        /// What ONNX Runtime said.
        source: ort::Error,
    },
    /// An input or output has a type that cannot be served.
    #[error("{side} `{name}` is of type {found}; expected a tensor of numbers")]
    UnsupportedType {
        /// `input` or `output`.
        side: &'static str,
        /// Its name.
        name: String,
        /// Its type.
        found: String,
    },
    /// None of the wanted execution providers is to be had.
    #[error(
        "execution provider `{wanted}` is not available: {reason}; add `cpu` to execution_providers to allow falling back"
    )]
    Provider {
        /// The provider asked for.
        wanted: &'static str,
        /// What ONNX Runtime said.
        reason: String,
    },
    /// A further session of a model is not to be had where the first one runs.
    #[error("the model runs on `{provider}`, and another session cannot be opened there: {reason}")]
    Further {
        /// The provider of the first.
        provider: &'static str,
        /// What ONNX Runtime said.
        reason: String,
    },
    /// A session whose runs have all failed for a while.
    #[error("its last {0} runs failed")]
    Suspect(u32),
    /// A run failed.
    #[error("ONNX Runtime failed")]
    Run(#[source] ort::Error),
}

/// Written by who captures a run, read by who runs, on a GPU: what another run asks of CUDA meanwhile would fail, and the
/// capture with it, whichever model and stream it is of.
static CAPTURES: RwLock<()> = RwLock::new(());

/// How long a capture waits for runs to end, and keeps others from beginning. A run that hangs must not stop those of others.
const LONGEST_WAIT: Duration = Duration::from_millis(500);

/// While a session is opened it is tried so often, with pauses in which the others go on.
const TRIES_AT_START: u32 = 15;
const PAUSE_AT_START: Duration = Duration::from_millis(1500);

/// Ends a run from another thread.
#[derive(Clone)]
pub struct RunCanceller(Arc<Mutex<CurrentRun>>);

struct CurrentRun {
    options: Arc<RunOptions>,
    was_asked_to_end: bool,
}

impl RunCanceller {
    fn new(options: &Arc<RunOptions>) -> Self {
        Self(Arc::new(Mutex::new(CurrentRun { options: Arc::clone(options), was_asked_to_end: false })))
    }

    fn current(&self) -> MutexGuard<'_, CurrentRun> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Asks the current run to end; it does so between two operators.
    pub fn cancel(&self) {
        let mut current = self.current();
        current.was_asked_to_end = true;
        if let Err(error) = current.options.terminate() {
            tracing::error!(%error, "cannot terminate a run");
        }
    }

    /// Whether the current run, or the last one, was asked to end.
    fn was_asked(&self) -> bool {
        self.current().was_asked_to_end
    }

    /// A run with these options begins.
    fn begin(&self, options: &Arc<RunOptions>) -> ort::Result<()> {
        let mut current = self.current();
        if !Arc::ptr_eq(&current.options, options) {
            current.options = Arc::clone(options);
        }
        current.was_asked_to_end = false;
        current.options.unterminate()
    }
}

/// A place to run a model, on one thread at a time. Sessions of one model may share its graph; see [`SessionFactory`].
pub struct Session {
    /// What is bound to the graph, and so goes before it.
    layouts: Vec<Layout>,
    graph: Arc<Graph>,
    options: Arc<RunOptions>,
    canceller: RunCanceller,
    buffers: Vec<InputBuffer>,
    settling: Settling,
    /// So often it is tried while it is opened.
    tries_left: u32,
    common: Common,
}

/// One input of a run: what is laid behind one another along the first dimension.
pub struct Stacked<'a> {
    /// Type of the elements.
    pub element: ElementType,
    /// Shape of the whole.
    pub shape: Vec<usize>,
    /// The bytes of the parts, in order; together as many as the shape asks for.
    pub parts: Vec<&'a [u8]>,
}

impl Session {
    fn over(graph: Arc<Graph>, settling: Settling) -> Result<Self, SessionError> {
        let pinned = graph.device.is_some();
        let buffers = graph.signature.inputs.iter().map(|_| InputBuffer::new(pinned)).collect::<ort::Result<_>>();
        let mut options = RunOptions::new().map_err(SessionError::Run)?;
        if graph.device.as_ref().is_some_and(|device| device.captures) {
            // Only runs that were settled are captured.
            options.set(bound::GRAPH_ID, "-1").map_err(SessionError::Run)?;
        }
        let options = Arc::new(options);
        Ok(Self {
            layouts: Vec::new(),
            canceller: RunCanceller::new(&options),
            options,
            buffers: buffers.map_err(SessionError::Run)?,
            graph,
            settling,
            tries_left: TRIES_AT_START,
            common: Common::default(),
        })
    }

    /// What goes in and what comes out.
    #[must_use]
    pub fn signature(&self) -> &Signature {
        &self.graph.signature
    }

    /// The provider really in use.
    #[must_use]
    pub fn provider(&self) -> ExecutionProvider {
        self.graph.provider
    }

    /// What the arena holds that its runs take their memory from, where that is known.
    #[must_use]
    pub fn memory(&self) -> Option<Memory> {
        self.graph.memory()
    }

    /// Whether another session runs the same graph.
    #[must_use]
    pub fn shares_its_graph(&self) -> bool {
        Arc::strong_count(&self.graph) > 1
    }

    /// A handle that ends this session's runs from another thread.
    #[must_use]
    pub fn canceller(&self) -> RunCanceller {
        self.canceller.clone()
    }

    /// Prepares for inputs of these shapes, which will come again and again: on a GPU, runs like this one are bound and
    /// captured. To be called on the thread that will run them. Does nothing where there is nothing to prepare, and where the others
    /// never pause: then it may be done when these shapes have come often.
    ///
    /// # Errors
    /// [`SessionError::Run`] where that fails. The session is of no more use then; the next one that is opened asks for
    /// less.
    pub fn settle(&mut self, inputs: &[Stacked<'_>]) -> Result<(), SessionError> {
        while !self.settle_now(inputs)? {
            // All of these together: whoever opens a session waits for it.
            self.tries_left = self.tries_left.saturating_sub(1);
            if self.tries_left == 0 {
                tracing::warn!("runs are not captured yet: those of other sessions do not end");
                return Ok(());
            }
            std::thread::sleep(PAUSE_AT_START);
        }
        Ok(())
    }

    /// Whether that is done. Not where a run of another session does not end.
    fn settle_now(&mut self, inputs: &[Stacked<'_>]) -> Result<bool, SessionError> {
        if !self.settles() || self.layouts.iter().any(|layout| layout.fits(inputs)) {
            return Ok(true);
        }
        stand_captures_of_others().map_err(SessionError::Run)?;
        let outputs = self.run(inputs)?;
        let Some(_alone) = CAPTURES.try_write_for(LONGEST_WAIT) else { return Ok(false) };
        self.keep(inputs, &outputs).map_err(SessionError::Run)?;
        Ok(true)
    }

    /// Runs the model. The parts of each input are copied once, into memory that the session keeps and ONNX Runtime
    /// reads; the outputs are not copied, and later runs do not touch them.
    ///
    /// # Errors
    /// [`SessionError::Run`] with what ONNX Runtime said, also after [`RunCanceller::cancel`].
    pub fn run(&mut self, inputs: &[Stacked<'_>]) -> Result<Vec<Tensor>, SessionError> {
        let is_on_gpu = self.graph.device.is_some();
        let _no_capture = is_on_gpu.then(|| CAPTURES.read());
        let filled = self.fill(inputs).map_err(SessionError::Run)?;
        if matches!(filled, Filled::Buffers) && self.settles() {
            self.common.came(inputs);
        }
        let ran = self.run_filled(filled);
        match (ran, filled) {
            (Err(error), Filled::Layout(_)) if !self.canceller.was_asked() => self.run_unbound(inputs, error),
            (ran, _) => ran,
        }
        .map_err(SessionError::Run)
    }

    /// Runs once more what failed while it was bound. Where that goes well the model's outputs have shapes that depend on more than
    /// those of its inputs, as those of a detector do, and nothing of it can be bound.
    fn run_unbound(&mut self, inputs: &[Stacked<'_>], error: ort::Error) -> ort::Result<Vec<Tensor>> {
        self.fill_buffers(inputs)?;
        let outputs = self.run_filled(Filled::Buffers)?;
        tracing::warn!(
            error = error_chain(&error),
            "runs are not bound any more: one that was failed, and went well without"
        );
        self.layouts.clear();
        self.settling.ask_for_less(false);
        Ok(outputs)
    }

    /// Whether shapes have come often that it is not prepared for.
    #[must_use]
    pub fn is_to_tend(&self) -> bool {
        self.common.due.is_some()
    }

    /// Prepares for shapes that have come often. Between two runs: those who wait for the last one have their answers.
    pub fn tend(&mut self) {
        let Some(shapes) = self.common.due.take() else { return };
        let zeros: Vec<Vec<u8>> =
            shapes.iter().map(|(element, shape)| vec![0; elements(shape) * element.size_bytes()]).collect();
        let of = |((element, shape), zeros)| Stacked { element, shape, parts: vec![zeros] };
        let inputs: Vec<Stacked<'_>> = shapes.into_iter().zip(zeros.iter().map(Vec::as_slice)).map(of).collect();
        match self.settle_now(&inputs) {
            Ok(true) => {}
            // They may when these shapes have come as often once more; but each try keeps the others from theirs.
            Ok(false) => self.common.in_vain(),
            Err(error) => {
                tracing::warn!(error = error_chain(&error), "runs of further shapes are not captured");
                self.common = Common { left: 0, ..Common::default() };
            }
        }
    }

    /// Whether runs are to be bound at all.
    fn settles(&self) -> bool {
        self.graph.device.as_ref().is_some_and(|device| device.binds) && !self.settling.is_over()
    }

    /// Binds what inputs like these, which gave those outputs, need.
    fn keep(&mut self, inputs: &[Stacked<'_>], outputs: &[Tensor]) -> ort::Result<()> {
        let captures = self.graph.device.as_ref().is_some_and(|device| device.captures);
        let at = self.layouts.len();
        let settled = Layout::new(&self.graph, inputs, outputs, captures.then_some(at + 1)).and_then(|layout| {
            self.layouts.push(layout);
            let filled = self.fill(inputs)?;
            // The first run captures; the second is what all later ones are.
            self.run_filled(filled).and_then(|_| self.run_filled(filled))
        });
        let agreed = settled.and_then(|again| {
            let same = outputs.iter().zip(&again).all(|(one, other)| agree(one, other));
            if same { Ok(()) } else { Err(ort::Error::new("a bound run gave other outputs than one that is not")) }
        });
        agreed.inspect_err(|_| {
            self.layouts.truncate(at);
            self.settling.ask_for_less(captures);
        })
    }

    /// Lays inputs out for runs that all have the same: the bare loop that a server is measured against.
    ///
    /// # Errors
    /// As [`Session::run`].
    pub fn repeat(&mut self, inputs: &[Stacked<'_>]) -> Result<Repeat<'_>, SessionError> {
        let filled = self.fill(inputs).map_err(SessionError::Run)?;
        Ok(Repeat { session: self, filled })
    }

    fn fill(&mut self, inputs: &[Stacked<'_>]) -> ort::Result<Filled> {
        if inputs.len() != self.buffers.len() {
            return Err(ort::Error::new(format!("expected {} inputs, got {}", self.buffers.len(), inputs.len())));
        }
        if let Some(at) = self.layouts.iter().position(|layout| layout.fits(inputs)) {
            self.layouts[at].fill(inputs)?;
            return Ok(Filled::Layout(at));
        }
        self.fill_buffers(inputs)?;
        Ok(Filled::Buffers)
    }

    fn fill_buffers(&mut self, inputs: &[Stacked<'_>]) -> ort::Result<()> {
        self.buffers.iter_mut().zip(inputs).try_for_each(|(buffer, input)| buffer.fill(&self.graph, input))
    }

    fn run_filled(&self, filled: Filled) -> ort::Result<Vec<Tensor>> {
        if let (Filled::Layout(at), Some(device)) = (filled, &self.graph.device) {
            let layout = &self.layouts[at];
            self.canceller.begin(&layout.options)?;
            return layout.run(&self.graph, &device.stream);
        }
        self.run_buffers()?.into_iter().map(|output| self.tensor(output)).collect()
    }

    fn run_buffers(&self) -> ort::Result<Vec<Output>> {
        self.canceller.begin(&self.options)?;
        let views: Vec<&View> = self.buffers.iter().filter_map(InputBuffer::view).collect();
        self.graph.run(&self.options, &views)
    }

    fn tensor(&self, output: Output) -> ort::Result<Tensor> {
        let (element, shape) = output.description()?;
        let bytes = OutputBytes::new(output, element, &shape);
        // A graph whose output is one of its inputs hands out our own buffer.
        let borrowed = self.buffers.iter().any(|buffer| buffer.holds(bytes.as_ref()));
        let bytes = if borrowed { Bytes::copy_from_slice(bytes.as_ref()) } else { Bytes::from_owner(bytes) };
        Tensor::new(element, shape, bytes).map_err(ort::Error::wrap)
    }
}

/// Which shapes of inputs come again and again.
struct Common {
    /// How often each came.
    seen: HashMap<Vec<Vec<usize>>, u32>,
    /// Those that have just come often enough.
    due: Option<Vec<(ElementType, Vec<usize>)>>,
    /// How many more are prepared for: each keeps memory of the GPU.
    left: usize,
    /// Tries that prepared nothing, for the others did not pause.
    vain: u32,
}

impl Default for Common {
    fn default() -> Self {
        Self { seen: HashMap::new(), due: None, left: 64, vain: 0 }
    }
}

impl Common {
    /// Preparing costs three runs, and the first ones of a new shape are slow anyway.
    const OFTEN: u32 = 8;
    /// Shapes that come seldom are forgotten by then.
    const MOST_SEEN: usize = 4096;

    /// More tries that prepare nothing are not made.
    const MOST_VAIN: u32 = 3;

    fn in_vain(&mut self) {
        self.left += 1;
        self.vain += 1;
        if self.vain == Self::MOST_VAIN {
            tracing::warn!("runs of further shapes are not captured: those of other sessions do not end");
            self.left = 0;
        }
    }

    fn came(&mut self, inputs: &[Stacked<'_>]) {
        if self.left == 0 {
            return;
        }
        if self.seen.len() >= Self::MOST_SEEN {
            self.seen.clear();
        }
        let times = self.seen.entry(inputs.iter().map(|input| input.shape.clone()).collect()).or_default();
        *times += 1;
        if *times == Self::OFTEN {
            self.left -= 1;
            *times = 0;
            self.due = Some(inputs.iter().map(|input| (input.element, input.shape.clone())).collect());
        }
    }
}

/// Where the inputs of the next run lie.
#[derive(Debug, Clone, Copy)]
enum Filled {
    Buffers,
    Layout(usize),
}

/// Whether two runs on the same inputs gave the same, as far as a GPU that adds in another order lets them.
fn agree(one: &Tensor, other: &Tensor) -> bool {
    const TOLERANCE: f32 = 0.01;
    let near = |(one, other): (&f32, &f32)| {
        one == other || (one.is_nan() && other.is_nan()) || (one - other).abs() <= TOLERANCE * one.abs().max(1.0)
    };
    let (numbers, others) = (one.to_f32(), other.to_f32());
    one.shape() == other.shape() && numbers.len() == others.len() && numbers.iter().zip(&others).all(near)
}

/// Runs over inputs that stay as they are.
pub struct Repeat<'a> {
    session: &'a mut Session,
    filled: Filled,
}

impl Repeat<'_> {
    /// Runs once and drops the outputs.
    ///
    /// # Errors
    /// As [`Session::run`].
    pub fn run(&mut self) -> Result<(), SessionError> {
        let outputs = match self.filled {
            Filled::Buffers => self.session.run_buffers().map(drop),
            filled @ Filled::Layout(_) => self.session.run_filled(filled).map(drop),
        };
        outputs.map_err(SessionError::Run)
    }
}
