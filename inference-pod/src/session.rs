//! ONNX Runtime: the library, and one session over a model file. Nothing outside of this file names it.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use bytes::Bytes;
use crds::serving::ExecutionProvider;
use ort::{
    environment::Environment,
    ep,
    logging::LogLevel,
    memory::Allocator,
    session::{RunOptions, SessionInputValue, builder::SessionBuilder},
    value::{DynTensor, Outlet, TensorElementType, ValueType},
};

use crate::tensor::{ElementType, Tensor};

/// File that the library has beside the binary and in the images.
const LIBRARY: &str = "libonnxruntime.so";

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

/// The loaded library. One for the process.
#[derive(Clone)]
pub struct Runtime {
    environment: Environment,
    library: PathBuf,
    version: String,
}

impl Runtime {
    /// Loads the library from `path` (the value of `ORT_DYLIB_PATH`), else from beside the binary.
    ///
    /// # Errors
    /// [`SessionError::Library`] where there is none, or an older one than this program was made for.
    pub fn load(path: Option<PathBuf>) -> Result<Self, SessionError> {
        let library = path.unwrap_or_else(beside_the_binary);
        let failed = |reason: String| SessionError::Library { path: library.clone(), reason };
        let builder = ort::init_from(&library).map_err(|error| failed(error.to_string()))?;
        let environment = builder.with_name("ortolan").build().map_err(|error| failed(error.to_string()))?;
        environment.set_log_level(LogLevel::Warning);
        let version = version_of(&library);
        Ok(Self { environment, library, version })
    }

    /// Version of ONNX Runtime, for example `1.31.1`.
    #[must_use]
    pub fn version(&self) -> &str {
        &self.version
    }

    /// File that the library came from.
    #[must_use]
    pub fn library(&self) -> &Path {
        &self.library
    }
}

fn beside_the_binary() -> PathBuf {
    std::env::current_exe()
        .ok()
        .and_then(|binary| binary.parent().map(|folder| folder.join(LIBRARY)))
        .filter(|file| file.exists())
        .unwrap_or_else(|| PathBuf::from(LIBRARY))
}

/// The library's file carries its version: `libonnxruntime.so.1.31.1`, which shorter names are links to.
fn version_of(library: &Path) -> String {
    let file = library.canonicalize().unwrap_or_else(|_| library.to_owned());
    let name = file.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let version =
        name.split_once(".so.").map(|(_, version)| version.to_owned()).filter(|version| version.contains('.'));
    version.unwrap_or_else(|| format!("1.{}", ort::MINOR_VERSION))
}

/// One input or output of a model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Port {
    /// Its name in the graph.
    pub name: String,
    /// Type of its elements.
    pub element: ElementType,
    /// Its dimensions; `None` where the model leaves one open.
    pub dims: Vec<Option<usize>>,
}

/// What goes into a model and what comes out, in the graph's order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Signature {
    /// What goes in.
    pub inputs: Vec<Port>,
    /// What comes out.
    pub outputs: Vec<Port>,
}

/// How a session is opened.
#[derive(Debug, Clone)]
pub struct SessionSettings {
    /// Threads inside one operator.
    pub threads: usize,
    /// Whether those threads may spin while they wait; only where nobody else wants the cores.
    pub spinning: bool,
    /// Providers, best first; empty means the CPU.
    pub providers: Vec<ExecutionProvider>,
}

/// Opens the sessions of one model: one for each instance, and another where one has to be given up.
#[derive(Clone)]
pub struct SessionFactory {
    runtime: Runtime,
    path: PathBuf,
    settings: SessionSettings,
}

impl SessionFactory {
    /// A factory over a model file.
    #[must_use]
    pub fn new(runtime: &Runtime, path: &Path, settings: SessionSettings) -> Self {
        Self { runtime: runtime.clone(), path: path.to_owned(), settings }
    }

    /// Opens a session.
    ///
    /// # Errors
    /// As [`Session::open`].
    pub fn open(&self) -> Result<Session, SessionError> {
        Session::open(&self.runtime, &self.path, &self.settings)
    }
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

/// A model ready to run, on one thread at a time.
pub struct Session {
    inner: ort::session::Session,
    signature: Signature,
    provider: ExecutionProvider,
    options: Arc<RunOptions>,
    allocator: Allocator,
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
    /// Opens a session over a model file.
    ///
    /// # Errors
    /// [`SessionError::Load`] where the file is no model, [`SessionError::UnsupportedType`] where its inputs or outputs
    /// cannot be served, [`SessionError::Provider`] where no wanted provider is to be had.
    pub fn open(runtime: &Runtime, path: &Path, settings: &SessionSettings) -> Result<Self, SessionError> {
        let failed = |source: ort::Error| SessionError::Load { path: path.to_owned(), source };
        let (mut builder, provider) = with_provider(runtime, settings, &failed)?;
        let inner = builder.commit_from_file(path).map_err(failed)?;
        let signature = Signature {
            inputs: inner.inputs().iter().map(|outlet| port("input", outlet)).collect::<Result<_, _>>()?,
            outputs: inner.outputs().iter().map(|outlet| port("output", outlet)).collect::<Result<_, _>>()?,
        };
        let options = Arc::new(RunOptions::new().map_err(SessionError::Run)?);
        Ok(Self { inner, signature, provider, options, allocator: Allocator::default() })
    }

    /// What goes in and what comes out.
    #[must_use]
    pub fn signature(&self) -> &Signature {
        &self.signature
    }

    /// The provider really in use.
    #[must_use]
    pub fn provider(&self) -> ExecutionProvider {
        self.provider
    }

    /// A handle that ends this session's runs from another thread.
    #[must_use]
    pub fn canceller(&self) -> RunCanceller {
        RunCanceller(Arc::clone(&self.options))
    }

    /// Runs the model. The parts of each input are copied once, into the buffer that ONNX Runtime reads; the outputs
    /// are not copied.
    ///
    /// # Errors
    /// [`SessionError::Run`] with what ONNX Runtime said, also after [`RunCanceller::cancel`].
    pub fn run(&mut self, inputs: &[Stacked<'_>]) -> Result<Vec<Tensor>, SessionError> {
        self.options.unterminate().map_err(SessionError::Run)?;
        let inputs = inputs
            .iter()
            .map(|input| filled(&self.allocator, input).map(SessionInputValue::from))
            .collect::<ort::Result<Vec<_>>>()
            .map_err(SessionError::Run)?;
        let mut outputs = self.inner.run_with_options(inputs.as_slice(), &*self.options).map_err(SessionError::Run)?;
        let missing = || SessionError::Run(ort::Error::new("the model left out an output"));
        let ports = &self.signature.outputs;
        ports.iter().map(|port| tensor_of(outputs.remove(&port.name).ok_or_else(missing)?)).collect()
    }
}

fn with_provider(
    runtime: &Runtime,
    settings: &SessionSettings,
    failed: &dyn Fn(ort::Error) -> SessionError,
) -> Result<(SessionBuilder, ExecutionProvider), SessionError> {
    let fresh = || base_builder(runtime, settings).map_err(failed);
    for (index, provider) in settings.providers.iter().enumerate() {
        let may_fall_back = settings.providers[index..].contains(&ExecutionProvider::Cpu);
        match provider {
            ExecutionProvider::Cpu => return Ok((fresh()?, ExecutionProvider::Cpu)),
            ExecutionProvider::Cuda => match with_cuda(fresh()?) {
                Ok(builder) => return Ok((builder, ExecutionProvider::Cuda)),
                Err(error) if may_fall_back => {
                    tracing::warn!(wanted = "cuda", used = "cpu", reason = %error, "falling back to another provider");
                }
                Err(error) => {
                    return Err(SessionError::Provider { wanted: "cuda", reason: error.message().to_owned() });
                }
            },
        }
    }
    Ok((fresh()?, ExecutionProvider::Cpu))
}

fn base_builder(runtime: &Runtime, settings: &SessionSettings) -> ort::Result<SessionBuilder> {
    SessionBuilder::new(&runtime.environment)?
        .with_intra_threads(settings.threads)
        .map_err(plain)?
        .with_intra_op_spinning(settings.spinning)
        .map_err(plain)?
        // The pattern of one batch size is of no use to the next, and planning for each costs memory.
        .with_memory_pattern(false)
        .map_err(plain)
}

fn with_cuda(builder: SessionBuilder) -> ort::Result<SessionBuilder> {
    // ONNX Runtime falls back silently; an error is what tells.
    builder.with_execution_providers([ep::CUDA::default().build().error_on_failure()]).map_err(plain)
}

/// Drops the builder that an error carries.
fn plain(error: ort::Error<SessionBuilder>) -> ort::Error {
    ort::Error::new_with_code(error.code(), error.message())
}

fn port(side: &'static str, outlet: &Outlet) -> Result<Port, SessionError> {
    let unsupported =
        || SessionError::UnsupportedType { side, name: outlet.name().to_owned(), found: outlet.dtype().to_string() };
    let ValueType::Tensor { ty, shape, .. } = outlet.dtype() else { return Err(unsupported()) };
    let element = element_of(*ty).ok_or_else(unsupported)?;
    let dims = shape.iter().map(|size| usize::try_from(*size).ok()).collect();
    Ok(Port { name: outlet.name().to_owned(), element, dims })
}

fn element_of(element: TensorElementType) -> Option<ElementType> {
    Some(match element {
        TensorElementType::Bool => ElementType::Bool,
        TensorElementType::Uint8 => ElementType::U8,
        TensorElementType::Uint16 => ElementType::U16,
        TensorElementType::Uint32 => ElementType::U32,
        TensorElementType::Uint64 => ElementType::U64,
        TensorElementType::Int8 => ElementType::I8,
        TensorElementType::Int16 => ElementType::I16,
        TensorElementType::Int32 => ElementType::I32,
        TensorElementType::Int64 => ElementType::I64,
        TensorElementType::Float16 => ElementType::F16,
        TensorElementType::Bfloat16 => ElementType::BF16,
        TensorElementType::Float32 => ElementType::F32,
        TensorElementType::Float64 => ElementType::F64,
        _ => return None,
    })
}

fn runtime_element(element: ElementType) -> TensorElementType {
    match element {
        ElementType::Bool => TensorElementType::Bool,
        ElementType::U8 => TensorElementType::Uint8,
        ElementType::U16 => TensorElementType::Uint16,
        ElementType::U32 => TensorElementType::Uint32,
        ElementType::U64 => TensorElementType::Uint64,
        ElementType::I8 => TensorElementType::Int8,
        ElementType::I16 => TensorElementType::Int16,
        ElementType::I32 => TensorElementType::Int32,
        ElementType::I64 => TensorElementType::Int64,
        ElementType::F16 => TensorElementType::Float16,
        ElementType::BF16 => TensorElementType::Bfloat16,
        ElementType::F32 => TensorElementType::Float32,
        ElementType::F64 => TensorElementType::Float64,
    }
}

fn filled(allocator: &Allocator, input: &Stacked<'_>) -> ort::Result<DynTensor> {
    let mut tensor = DynTensor::new(allocator, runtime_element(input.element), input.shape.as_slice())?;
    let target = bytes_mut(&mut tensor);
    let mut at = 0;
    for part in &input.parts {
        let end = at + part.len();
        let slot = target.get_mut(at..end).ok_or_else(|| ort::Error::new("more bytes than the shape asks for"))?;
        slot.copy_from_slice(part);
        at = end;
    }
    if at == target.len() { Ok(tensor) } else { Err(ort::Error::new("fewer bytes than the shape asks for")) }
}

#[expect(unsafe_code, reason = "ONNX Runtime hands out typed slices only; tensors are copied as bytes")]
fn bytes_mut(tensor: &mut DynTensor) -> &mut [u8] {
    let length = tensor.size().unwrap_or(0);
    let start = tensor.data_ptr_mut().cast::<u8>();
    if length == 0 || start.is_null() {
        return &mut [];
    }
    // SAFETY: `start` points to `length` bytes in main memory (the default allocator's) which `tensor` owns and which
    // were set to zero when it was made; the borrow of `tensor` keeps everyone else away.
    unsafe { std::slice::from_raw_parts_mut(start, length) }
}

/// An output that keeps ONNX Runtime's memory alive for as long as somebody reads it.
struct OutputBytes(DynTensor);

impl AsRef<[u8]> for OutputBytes {
    #[expect(unsafe_code, reason = "ONNX Runtime hands out typed slices only; tensors are sliced as bytes")]
    fn as_ref(&self) -> &[u8] {
        let length = self.0.size().unwrap_or(0);
        let start = self.0.data_ptr().cast::<u8>();
        if length == 0 || start.is_null() {
            return &[];
        }
        // SAFETY: `start` points to `length` initialised bytes which `self` owns and nobody writes to any more.
        unsafe { std::slice::from_raw_parts(start, length) }
    }
}

fn tensor_of(output: ort::value::DynValue) -> Result<Tensor, SessionError> {
    let failed = |message: String| SessionError::Run(ort::Error::new(message));
    let tensor: DynTensor = output.downcast().map_err(SessionError::Run)?;
    let element = element_of(*tensor.data_type())
        .ok_or_else(|| failed(format!("an output is of type {:?}", tensor.data_type())))?;
    let shape = tensor.shape().iter().map(|size| usize::try_from(*size).unwrap_or(0)).collect();
    Tensor::new(element, shape, Bytes::from_owner(OutputBytes(tensor))).map_err(|error| failed(error.to_string()))
}
