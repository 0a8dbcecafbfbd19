//! Runs on a GPU with everything in its place: for inputs of shapes that come again and again.
//!
//! Such a run is three things in one [`Stream`], with a single wait at the end: the inputs are copied to memory of the GPU
//! that was bound to the graph once, the graph runs, and its outputs are copied back. Where the provider captures graphs,
//! the run in the middle is one launch instead of one for each kernel: a CUDA graph, which is tied to shapes, addresses and
//! the thread that captured it.

#![expect(unsafe_code, reason = "the C interface; each call says why it is sound")]

use std::{
    ptr::{self, NonNull},
    sync::{Arc, Mutex, PoisonError, Weak},
};

use bytes::Bytes;
use ort::{AsPointer as _, session::RunOptions, sys::OrtIoBinding};

use super::{
    Stacked,
    buffer::byte_length,
    cudart::{DeviceMemory, PinnedMemory, Stream},
    graph::{Graph, View, checked},
};
use crate::tensor::{ElementType, Tensor};

/// The run option that names the CUDA graph of a run; -1 for none.
pub(super) const GRAPH_ID: &str = "gpu_graph_id";

/// Memory of outputs that nobody reads any more is kept for the next ones, up to so many pieces.
const KEPT: usize = 32;

/// What is bound for one shape of each input.
pub(super) struct Layout {
    /// Before what it points to.
    binding: Binding,
    inputs: Vec<Input>,
    outputs: Vec<Output>,
    /// Of its runs: they name its CUDA graph.
    pub options: Arc<RunOptions>,
    pool: Pool,
}

struct Input {
    element: ElementType,
    shape: Vec<usize>,
    _view: View,
    host: PinnedMemory,
    device: DeviceMemory,
    length: usize,
}

struct Output {
    element: ElementType,
    shape: Vec<usize>,
    _view: View,
    device: DeviceMemory,
    length: usize,
}

impl Layout {
    /// Binds memory for inputs like these, which give outputs like those. Its runs are captured under that number, if any.
    ///
    /// # Errors
    /// Where there is no memory, or ONNX Runtime refuses.
    pub fn new(graph: &Graph, inputs: &[Stacked<'_>], outputs: &[Tensor], number: Option<usize>) -> ort::Result<Self> {
        let mut binding = Binding::new(graph)?;
        let mut options = RunOptions::new()?;
        // The stream is waited for once, after the copies that follow the run.
        options.disable_device_sync()?;
        if let Some(number) = number {
            options.set(GRAPH_ID, number.to_string())?;
        }
        let mut bound_inputs = Vec::with_capacity(inputs.len());
        for (name, input) in graph.input_names().iter().zip(inputs) {
            let length = byte_length(input)?;
            let (host, device) = (PinnedMemory::new(length)?, DeviceMemory::new(length)?);
            // SAFETY: the memory has room for as many bytes as element and shape ask for, and lives in the layout.
            let view = unsafe { graph.view_on_device(input.element, &input.shape, device.start(), length) }?;
            binding.bind_input(*name, &view)?;
            let (element, shape) = (input.element, input.shape.clone());
            bound_inputs.push(Input { element, shape, _view: view, host, device, length });
        }
        let mut bound_outputs = Vec::with_capacity(outputs.len());
        for (name, output) in graph.output_names().iter().zip(outputs) {
            let (element, shape) = (output.element(), output.shape().to_vec());
            let length = output.data().len();
            let device = DeviceMemory::new(length)?;
            // SAFETY: as above.
            let view = unsafe { graph.view_on_device(element, &shape, device.start(), length) }?;
            binding.bind_output(*name, &view)?;
            bound_outputs.push(Output { element, shape, _view: view, device, length });
        }
        Ok(Self {
            binding,
            inputs: bound_inputs,
            outputs: bound_outputs,
            options: Arc::new(options),
            pool: Pool::default(),
        })
    }

    /// Whether it is for inputs like these.
    pub fn fits(&self, inputs: &[Stacked<'_>]) -> bool {
        let same = |(mine, its): (&Input, &Stacked<'_>)| mine.element == its.element && mine.shape == its.shape;
        self.inputs.len() == inputs.len() && self.inputs.iter().zip(inputs).all(same)
    }

    /// Lays the parts of each input behind one another, where the next run copies them from.
    ///
    /// # Errors
    /// Where the parts are not as many bytes as the shape asks for.
    pub fn fill(&mut self, inputs: &[Stacked<'_>]) -> ort::Result<()> {
        for (mine, input) in self.inputs.iter_mut().zip(inputs) {
            if byte_length(input)? != mine.length {
                return Err(ort::Error::new("another number of bytes than was bound"));
            }
            let mut at = mine.host.start();
            for part in &input.parts {
                // SAFETY: the parts are `length` bytes together, as just measured, and so is the memory, which is ours
                // alone: the last run has been waited for.
                unsafe {
                    at.copy_from_nonoverlapping(NonNull::from(*part).cast(), part.len());
                    at = at.add(part.len());
                }
            }
        }
        Ok(())
    }

    /// Runs on what was filled in last.
    ///
    /// # Errors
    /// What ONNX Runtime or CUDA said.
    pub fn run(&self, graph: &Graph, stream: &Stream) -> ort::Result<Vec<Tensor>> {
        let mut outputs = Vec::with_capacity(self.outputs.len());
        let queued = self.queue(graph, stream, &mut outputs);
        // Also after a failure: what was queued reads and writes memory of ours.
        let waited = stream.wait();
        queued?;
        waited?;
        let tensor = |(output, memory): (&Output, PinnedMemory)| {
            let lent = Lent { memory: Some(memory), length: output.length, pool: Arc::downgrade(&self.pool.0) };
            Tensor::new(output.element, output.shape.clone(), Bytes::from_owner(lent)).map_err(ort::Error::wrap)
        };
        self.outputs.iter().zip(outputs).map(tensor).collect()
    }

    /// What is copied to stays in `outputs`, also after a failure.
    fn queue(&self, graph: &Graph, stream: &Stream, outputs: &mut Vec<PinnedMemory>) -> ort::Result<()> {
        for input in &self.inputs {
            stream.upload(&input.device, &input.host, input.length)?;
        }
        graph.run_bound(&self.options, &self.binding)?;
        for output in &self.outputs {
            let memory = self.pool.take(output.length)?;
            let copied = stream.download(&memory, &output.device, output.length);
            outputs.push(memory);
            copied?;
        }
        Ok(())
    }
}

/// Which memory is which input and output.
pub(super) struct Binding {
    raw: NonNull<OrtIoBinding>,
}

// SAFETY: whoever holds the binding holds all of it.
unsafe impl Send for Binding {}

impl Binding {
    fn new(graph: &Graph) -> ort::Result<Self> {
        let mut raw = ptr::null_mut();
        // SAFETY: the session lives; whoever holds a layout holds its graph.
        checked(unsafe { (ort::api().CreateIoBinding)(graph.session().ptr().cast_mut(), &raw mut raw) })?;
        NonNull::new(raw).map(|raw| Self { raw }).ok_or_else(|| ort::Error::new("no binding was made"))
    }

    fn bind_input(&mut self, name: *const std::ffi::c_char, view: &View) -> ort::Result<()> {
        // SAFETY: the name is one of the graph's, the value lives, and the binding counts its own reference to it.
        checked(unsafe { (ort::api().BindInput)(self.raw.as_ptr(), name, view.as_ptr()) })
    }

    fn bind_output(&mut self, name: *const std::ffi::c_char, view: &View) -> ort::Result<()> {
        // SAFETY: as above.
        checked(unsafe { (ort::api().BindOutput)(self.raw.as_ptr(), name, view.as_ptr()) })
    }

    pub fn as_ptr(&self) -> *const OrtIoBinding {
        self.raw.as_ptr()
    }
}

impl Drop for Binding {
    fn drop(&mut self) {
        // SAFETY: made once, released once.
        unsafe { (ort::api().ReleaseIoBinding)(self.raw.as_ptr()) };
    }
}

/// Memory that outputs come back in. Pinning is a call into the driver, so what is pinned is used again.
#[derive(Default)]
struct Pool(Arc<Mutex<Vec<PinnedMemory>>>);

impl Pool {
    fn take(&self, length: usize) -> ort::Result<PinnedMemory> {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let found = kept.iter().position(|memory| memory.capacity() >= length.max(1));
        found.map_or_else(|| PinnedMemory::new(length.max(1)), |at| Ok(kept.swap_remove(at)))
    }
}

/// An output, which gives its memory back when nobody reads it any more.
struct Lent {
    memory: Option<PinnedMemory>,
    length: usize,
    pool: Weak<Mutex<Vec<PinnedMemory>>>,
}

impl AsRef<[u8]> for Lent {
    fn as_ref(&self) -> &[u8] {
        let Some(memory) = &self.memory else { return &[] };
        // SAFETY: a run has written as many bytes, and was waited for; the memory is not used again before this is gone.
        unsafe { std::slice::from_raw_parts(memory.start().as_ptr(), self.length) }
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        if let (Some(memory), Some(pool)) = (self.memory.take(), self.pool.upgrade()) {
            let mut kept = pool.lock().unwrap_or_else(PoisonError::into_inner);
            if kept.len() < KEPT {
                kept.push(memory);
            }
        }
    }
}
