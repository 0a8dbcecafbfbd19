//! The few calls of ONNX Runtime's C interface that a run is made of.
//!
//! The `ort` crate makes them too, but at every run it converts names, describes inputs and makes an allocator for each
//! output: 1.1 µs beyond the run of a tiny model, where these calls and the copying take 0.25 µs. And it lets one thread at a
//! time run a session, which costs a copy of the weights for each instance. See [`Graph`] for why several may.

#![expect(unsafe_code, reason = "the C interface; each call says why it is sound")]

use std::{
    ffi::{CStr, CString, c_char, c_void},
    ptr::{self, NonNull},
    sync::Arc,
};

use crds::serving::ExecutionProvider;
use ort::{
    AsPointer as _,
    memory::{AllocationDevice, Allocator, AllocatorType, MemoryInfo, MemoryType},
    session::RunOptions,
    sys::{ONNXTensorElementDataType, OrtMemoryInfo, OrtStatusPtr, OrtValue},
    value::TensorElementType,
};

use super::{
    SessionError,
    bound::Binding,
    cudart::Stream,
    signature::{Port, Signature, element_of, runtime_element},
};
use crate::{observe::Memory, tensor::ElementType};

/// A loaded graph with its weights: what the instances of a model on the CPU share.
///
/// ONNX Runtime lets several threads run one session at once (its API promises it, `InferenceSession::Run` keeps the state
/// of a run in the run's own frame, its allocators lock, and it takes turns by itself for a provider which says that it
/// cannot). `ort` is stricter on account of providers like CUDA; those get a graph for each instance here too.
pub(super) struct Graph {
    session: ort::session::Session,
    inputs: Names,
    outputs: Names,
    memory: MemoryInfo<'static>,
    /// What goes in and what comes out.
    pub signature: Signature,
    /// The provider really in use.
    pub provider: ExecutionProvider,
    /// What a session on a GPU has besides.
    pub device: Option<Device>,
}

/// What a session on a GPU has.
pub(super) struct Device {
    /// Where its runs take place; made before the session, and gone after it.
    pub stream: Arc<Stream>,
    memory: MemoryInfo<'static>,
    /// Whether its runs may be captured.
    pub captures: bool,
    /// Whether all its inputs are read, and all its outputs written, in memory of the GPU.
    pub binds: bool,
}

impl Device {
    /// Of a session whose runs take place in that stream, and may be captured or not.
    ///
    /// # Errors
    /// What ONNX Runtime said.
    pub fn new(session: &ort::session::Session, stream: Arc<Stream>, captures: bool) -> ort::Result<Self> {
        let memory = MemoryInfo::new(AllocationDevice::CUDA, 0, AllocatorType::Device, MemoryType::Default)?;
        Ok(Self { stream, memory, captures, binds: keeps_to_the_gpu(session)? })
    }
}

/// Whether everything that goes into the graph and comes out of it is wanted in the GPU's memory. A graph may read a shape,
/// for example, in main memory.
fn keeps_to_the_gpu(session: &ort::session::Session) -> ort::Result<bool> {
    let mut inputs = vec![ptr::null(); session.inputs().len()];
    let mut outputs = vec![ptr::null(); session.outputs().len()];
    // SAFETY: the session lives, and owns what the pointers are set to; there are as many as it has inputs and outputs.
    unsafe {
        checked((ort::api().SessionGetMemoryInfoForInputs)(session.ptr(), inputs.as_mut_ptr(), inputs.len()))?;
        checked((ort::api().SessionGetMemoryInfoForOutputs)(session.ptr(), outputs.as_mut_ptr(), outputs.len()))?;
    }
    let is_on_gpu = |place: &*const OrtMemoryInfo| {
        let mut name = ptr::null();
        // SAFETY: `place` is one of the session's.
        let found = checked(unsafe { (ort::api().MemoryInfoGetName)(*place, &raw mut name) });
        // SAFETY: a name that ends in a null, of the session's.
        found.is_ok() && unsafe { CStr::from_ptr(name) } == c"Cuda"
    };
    Ok(inputs.iter().chain(&outputs).all(|place| !place.is_null() && is_on_gpu(place)))
}

/// Names as the C interface takes them.
struct Names {
    pointers: Vec<*const c_char>,
    /// What the pointers point to.
    _owned: Vec<CString>,
}

// SAFETY: the pointers point into `_owned`, which lives as long and is never written to.
unsafe impl Send for Names {}
// SAFETY: as above.
unsafe impl Sync for Names {}

impl Names {
    fn new(ports: &[Port]) -> ort::Result<Self> {
        let name = |port: &Port| CString::new(port.name.as_str()).map_err(ort::Error::wrap);
        let owned = ports.iter().map(name).collect::<ort::Result<Vec<_>>>()?;
        Ok(Self { pointers: owned.iter().map(|name| name.as_ptr()).collect(), _owned: owned })
    }
}

impl Graph {
    /// Takes over a session.
    ///
    /// # Errors
    /// [`SessionError::UnsupportedType`] where an input or output is no tensor of numbers.
    pub fn new(
        session: ort::session::Session,
        provider: ExecutionProvider,
        device: Option<Device>,
    ) -> Result<Self, SessionError> {
        let signature = Signature::of(&session)?;
        let names = |ports: &[Port]| Names::new(ports).map_err(SessionError::Run);
        let (inputs, outputs) = (names(&signature.inputs)?, names(&signature.outputs)?);
        Ok(Self { session, inputs, outputs, memory: MemoryInfo::default(), signature, provider, device })
    }

    /// Runs the graph on `inputs`, one for each input in order, and gives back a value for each output in order.
    ///
    /// # Errors
    /// What ONNX Runtime said.
    pub fn run(self: &Arc<Self>, options: &RunOptions, inputs: &[&View]) -> ort::Result<Vec<Output>> {
        if inputs.len() != self.inputs.pointers.len() {
            return Err(ort::Error::new(format!(
                "expected {} inputs, got {}",
                self.inputs.pointers.len(),
                inputs.len()
            )));
        }
        let values: Vec<*const OrtValue> = inputs.iter().map(|view| view.value.as_ptr().cast_const()).collect();
        let mut results: Vec<*mut OrtValue> = vec![ptr::null_mut(); self.outputs.pointers.len()];
        // SAFETY: the session lives as long as `self`; names and values are as many as their counts say, and outlive the
        // call; null results ask for values that ONNX Runtime allocates. Threads may run a session at once, see `Graph`.
        let status = unsafe {
            (ort::api().Run)(
                self.session.ptr().cast_mut(),
                options.ptr(),
                self.inputs.pointers.as_ptr(),
                values.as_ptr(),
                values.len(),
                self.outputs.pointers.as_ptr(),
                results.len(),
                results.as_mut_ptr(),
            )
        };
        let owned = |value| NonNull::new(value).map(|value| Output { value, _graph: Arc::clone(self) });
        let outputs: Vec<Option<Output>> = results.into_iter().map(owned).collect();
        checked(status)?;
        outputs.into_iter().collect::<Option<_>>().ok_or_else(|| ort::Error::new("the model left out an output"))
    }

    /// Runs the graph on what is bound.
    ///
    /// # Errors
    /// What ONNX Runtime said.
    pub fn run_bound(&self, options: &RunOptions, binding: &Binding) -> ort::Result<()> {
        // SAFETY: session, options and binding live through the call, and only one thread at a time has this binding.
        checked(unsafe { (ort::api().RunWithBinding)(self.session.ptr().cast_mut(), options.ptr(), binding.as_ptr()) })
    }

    /// The session, for calls of the C interface.
    pub fn session(&self) -> &ort::session::Session {
        &self.session
    }

    /// The inputs' names, in order, as the C interface takes them.
    pub fn input_names(&self) -> &[*const c_char] {
        &self.inputs.pointers
    }

    /// The outputs' names, in order.
    pub fn output_names(&self) -> &[*const c_char] {
        &self.outputs.pointers
    }

    /// What the arena holds that runs of the graph take their memory from; `None` where there is no such arena, or it does not
    /// say.
    pub fn memory(&self) -> Option<Memory> {
        if self.provider != ExecutionProvider::Cpu {
            return None;
        }
        let (device, kind) = (AllocationDevice::CPU, AllocatorType::Arena);
        let info = MemoryInfo::new(device, 0, kind, MemoryType::Default).ok()?;
        let arena = Allocator::new(&self.session, info).ok()?;
        let mut facts = ptr::null_mut();
        // SAFETY: the allocator lives through the call, which makes `facts`, or says why it does not.
        checked(unsafe { (ort::api().AllocatorGetStats)(arena.ptr(), &raw mut facts) }).ok()?;
        let number = |key: &CStr| -> Option<u64> {
            // SAFETY: `facts` is not released yet, and the text that is found lives as long.
            let text = NonNull::new(unsafe { (ort::api().GetKeyValue)(facts, key.as_ptr()) }.cast_mut())?;
            // SAFETY: what is found ends with a zero.
            unsafe { CStr::from_ptr(text.as_ptr()) }.to_str().ok()?.parse().ok()
        };
        let memory = number(c"InUse").zip(number(c"MaxInUse"));
        // SAFETY: made above, and not used any more.
        unsafe { (ort::api().ReleaseKeyValuePairs)(facts) };
        // Sessions share an arena with their graph.
        let arena = ptr::from_ref(self).addr();
        memory.map(|(in_use, peak)| Memory { arena, in_use, peak })
    }

    /// A tensor over somebody else's memory.
    ///
    /// # Safety
    /// `start` must be valid for `length` initialised bytes, as many as element and shape ask for, for as long as the
    /// view is used.
    ///
    /// # Errors
    /// What ONNX Runtime said.
    pub unsafe fn view(
        &self,
        element: ElementType,
        shape: &[usize],
        start: NonNull<u8>,
        length: usize,
    ) -> ort::Result<View> {
        // SAFETY: the caller's promise.
        unsafe { View::new(&self.memory, element, shape, start, length) }
    }

    /// The same over memory of the GPU that the session runs on.
    ///
    /// # Safety
    /// As [`Graph::view`].
    ///
    /// # Errors
    /// What ONNX Runtime said, and where the session runs on none.
    pub unsafe fn view_on_device(
        &self,
        element: ElementType,
        shape: &[usize],
        start: NonNull<u8>,
        length: usize,
    ) -> ort::Result<View> {
        let device = self.device.as_ref().ok_or_else(|| ort::Error::new("the session runs on no GPU"))?;
        // SAFETY: the caller's promise.
        unsafe { View::new(&device.memory, element, shape, start, length) }
    }
}

/// The provider of each group of nodes, as ONNX Runtime assigned them; only of a session that was told to keep them.
///
/// # Errors
/// What ONNX Runtime said.
pub(super) fn assigned_providers(session: &ort::session::Session) -> ort::Result<Vec<String>> {
    let (mut groups, mut count) = (ptr::null(), 0);
    // SAFETY: the session lives; it owns what the pointer is set to.
    checked(unsafe { (ort::api().Session_GetEpGraphAssignmentInfo)(session.ptr(), &raw mut groups, &raw mut count) })?;
    if groups.is_null() {
        return Ok(Vec::new());
    }
    // SAFETY: the call succeeded, so there are `count` groups, which live as long as the session.
    let groups = unsafe { std::slice::from_raw_parts(groups, count) };
    let name_of = |group: &*const _| {
        let mut name = ptr::null();
        // SAFETY: `group` is one of the session's.
        checked(unsafe { (ort::api().EpAssignedSubgraph_GetEpName)(*group, &raw mut name) })?;
        // SAFETY: a name that ends in a null, of the session's.
        Ok(unsafe { CStr::from_ptr(name) }.to_string_lossy().into_owned())
    };
    groups.iter().map(name_of).collect()
}

/// A tensor over memory that is not its own.
pub(super) struct View {
    value: NonNull<OrtValue>,
}

// SAFETY: the value is plain memory on the heap; whoever holds the view holds all of it.
unsafe impl Send for View {}

impl View {
    /// # Safety
    /// As [`Graph::view`], in memory of the kind that is named.
    unsafe fn new(
        memory: &MemoryInfo<'_>,
        element: ElementType,
        shape: &[usize],
        start: NonNull<u8>,
        length: usize,
    ) -> ort::Result<Self> {
        let sizes: Vec<i64> =
            shape.iter().map(|size| i64::try_from(*size)).collect::<Result<_, _>>().map_err(ort::Error::wrap)?;
        let mut value = ptr::null_mut();
        // SAFETY: the description of the memory is read during the call; the rest is the caller's promise.
        checked(unsafe {
            (ort::api().CreateTensorWithDataAsOrtValue)(
                memory.ptr(),
                start.as_ptr().cast::<c_void>(),
                length,
                sizes.as_ptr(),
                sizes.len(),
                runtime_element(element).into(),
                &raw mut value,
            )
        })?;
        NonNull::new(value).map(|value| Self { value }).ok_or_else(|| ort::Error::new("no tensor was made"))
    }

    /// The value, which lives as long as the view.
    pub fn as_ptr(&self) -> *const OrtValue {
        self.value.as_ptr()
    }
}

impl Drop for View {
    fn drop(&mut self) {
        // SAFETY: made once, released once.
        unsafe { (ort::api().ReleaseValue)(self.value.as_ptr()) };
    }
}

/// An output in ONNX Runtime's memory, which it keeps for as long as somebody reads it, and the graph with it.
pub(super) struct Output {
    value: NonNull<OrtValue>,
    /// Its allocator belongs to the session.
    _graph: Arc<Graph>,
}

// SAFETY: nobody but the holder knows the value, and its allocator may be called from any thread.
unsafe impl Send for Output {}

impl Drop for Output {
    fn drop(&mut self) {
        // SAFETY: came from a run, and is released once.
        unsafe { (ort::api().ReleaseValue)(self.value.as_ptr()) };
    }
}

impl Output {
    /// Type and shape.
    ///
    /// # Errors
    /// Where it is no tensor of numbers.
    pub fn description(&self) -> ort::Result<(ElementType, Vec<usize>)> {
        let mut element = ONNXTensorElementDataType::ONNX_TENSOR_ELEMENT_DATA_TYPE_UNDEFINED;
        let (mut sizes, mut rank) = (ptr::null(), 0);
        // SAFETY: the value lives; it owns what `sizes` is set to.
        checked(unsafe {
            (ort::api().GetTensorElementTypeAndShapeDataReference)(
                self.value.as_ptr(),
                &raw mut element,
                &raw mut sizes,
                &raw mut rank,
            )
        })?;
        let shape = if rank == 0 || sizes.is_null() {
            Vec::new()
        } else {
            // SAFETY: the call succeeded, so there are `rank` sizes, and the value is borrowed.
            let sizes = unsafe { std::slice::from_raw_parts(sizes, rank) };
            sizes.iter().map(|size| usize::try_from(*size).unwrap_or(0)).collect()
        };
        let element = TensorElementType::from(element);
        let served = element_of(element);
        served.map(|element| (element, shape)).ok_or_else(|| ort::Error::new(format!("an output is of type {element}")))
    }

    /// Where its elements are; null where there is nothing to point to.
    fn start(&self) -> *const u8 {
        let mut start = ptr::null_mut();
        // SAFETY: the value lives.
        let found = checked(unsafe { (ort::api().GetTensorMutableData)(self.value.as_ptr(), &raw mut start) });
        if found.is_ok() { start.cast_const().cast() } else { ptr::null() }
    }
}

/// The elements of an output, owned.
pub(super) struct OutputBytes {
    output: Output,
    length: usize,
}

impl OutputBytes {
    /// Of an output with this type and shape, which must be its own.
    pub fn new(output: Output, element: ElementType, shape: &[usize]) -> Self {
        Self { output, length: crate::tensor::elements(shape).saturating_mul(element.size_bytes()) }
    }
}

impl AsRef<[u8]> for OutputBytes {
    fn as_ref(&self) -> &[u8] {
        let start = self.output.start();
        if self.length == 0 || start.is_null() {
            return &[];
        }
        // SAFETY: `start` points to the output's elements, as many bytes as its own description asks for, in main memory
        // (where outputs come back that nobody placed elsewhere). The run has written them, and whoever could overwrite
        // them looks for that first, see `Session::tensor`.
        unsafe { std::slice::from_raw_parts(start, self.length) }
    }
}

/// What a call answered.
pub(super) fn checked(status: OrtStatusPtr) -> ort::Result<()> {
    // SAFETY: the status comes from a call just made, and is looked at once.
    unsafe { ort::Error::result_from_status(status) }
}
