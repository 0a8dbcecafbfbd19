//! ONNX Runtime: the library, and sessions over a model file. Nothing outside of this folder names it.
//!
//! `library` is loaded once; `open` makes sessions; `graph` is the C interface of a run; `buffer` is where batches are laid
//! out; `signature` says what goes in and comes out.

mod buffer;
mod graph;
mod library;
mod open;
mod signature;

use std::{path::PathBuf, sync::Arc};

use bytes::Bytes;
use crds::serving::ExecutionProvider;
use ort::session::RunOptions;

use self::{
    buffer::InputBuffer,
    graph::{Graph, Output, OutputBytes, View},
};
pub use self::{
    library::Runtime,
    open::{SessionFactory, SessionSettings},
    signature::{Port, Signature},
};
use crate::{
    observe::Memory,
    tensor::{ElementType, Tensor},
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
    /// A run failed.
    #[error("ONNX Runtime failed")]
    Run(#[source] ort::Error),
}

/// Ends a run from another thread.
#[derive(Clone)]
pub struct RunCanceller(Arc<RunOptions>);

impl RunCanceller {
    /// Asks the current run to end; it does so between two operators.
    pub fn cancel(&self) {
        if let Err(error) = self.0.terminate() {
            tracing::error!(%error, "cannot terminate a run");
        }
    }
}

/// A place to run a model, on one thread at a time. Sessions of one model may share its graph; see [`SessionFactory`].
pub struct Session {
    graph: Arc<Graph>,
    options: Arc<RunOptions>,
    buffers: Vec<InputBuffer>,
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
    fn over(graph: Arc<Graph>) -> Result<Self, SessionError> {
        let buffers = graph.signature.inputs.iter().map(|_| InputBuffer::new()).collect::<ort::Result<_>>();
        Ok(Self {
            options: Arc::new(RunOptions::new().map_err(SessionError::Run)?),
            buffers: buffers.map_err(SessionError::Run)?,
            graph,
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
        RunCanceller(Arc::clone(&self.options))
    }

    /// Runs the model. The parts of each input are copied once, into memory that the session keeps and ONNX Runtime
    /// reads; the outputs are not copied, and later runs do not touch them.
    ///
    /// # Errors
    /// [`SessionError::Run`] with what ONNX Runtime said, also after [`RunCanceller::cancel`].
    pub fn run(&mut self, inputs: &[Stacked<'_>]) -> Result<Vec<Tensor>, SessionError> {
        let outputs = self.fill(inputs).and_then(|()| self.run_filled());
        let tensors = outputs.and_then(|outputs| outputs.into_iter().map(|output| self.tensor(output)).collect());
        tensors.map_err(SessionError::Run)
    }

    /// Lays inputs out for runs that all have the same: the bare loop that a server is measured against.
    ///
    /// # Errors
    /// As [`Session::run`].
    pub fn repeat(&mut self, inputs: &[Stacked<'_>]) -> Result<Repeat<'_>, SessionError> {
        self.fill(inputs).map_err(SessionError::Run)?;
        Ok(Repeat(self))
    }

    fn fill(&mut self, inputs: &[Stacked<'_>]) -> ort::Result<()> {
        if inputs.len() != self.buffers.len() {
            return Err(ort::Error::new(format!("expected {} inputs, got {}", self.buffers.len(), inputs.len())));
        }
        self.buffers.iter_mut().zip(inputs).try_for_each(|(buffer, input)| buffer.fill(&self.graph, input))
    }

    fn run_filled(&self) -> ort::Result<Vec<Output>> {
        self.options.unterminate()?;
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

/// Runs over inputs that stay as they are.
pub struct Repeat<'a>(&'a mut Session);

impl Repeat<'_> {
    /// Runs once and drops the outputs.
    ///
    /// # Errors
    /// As [`Session::run`].
    pub fn run(&mut self) -> Result<(), SessionError> {
        self.0.run_filled().map(drop).map_err(SessionError::Run)
    }
}
