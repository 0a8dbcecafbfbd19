//! Where a batch is laid out: memory that a session keeps for each input from run to run.

#![expect(unsafe_code, reason = "memory that is written before it is read, without being set to zero first")]

use std::{
    alloc::{Layout, alloc, dealloc},
    ptr::NonNull,
};

use super::{
    Stacked,
    cudart::PinnedMemory,
    graph::{Graph, View},
};
use crate::tensor::ElementType;

/// ONNX Runtime's own allocators align to this; its kernels may rely on it.
const ALIGNMENT: usize = 64;

/// Capacities are whole pages, so that a batch which grows by a little finds room.
const PAGE: usize = 4096;

/// The memory of one input. It grows to the largest batch and stays: a fresh allocation would be set to zero before it is
/// overwritten, and large ones are faulted in page by page at every run (of Lite0, 196 faults for a batch of 8).
///
/// The tensor over it is made anew only when memory, type or shape change.
pub(super) struct InputBuffer {
    /// Dropped before the memory that it looks at.
    tensor: Option<Tensor>,
    memory: Memory,
    /// For a session on a GPU, which copies from there.
    pinned: bool,
}

struct Tensor {
    view: View,
    element: ElementType,
    shape: Vec<usize>,
}

impl InputBuffer {
    /// An empty buffer.
    ///
    /// # Errors
    /// Where there is no memory.
    pub fn new(pinned: bool) -> ort::Result<Self> {
        Ok(Self { tensor: None, memory: Memory::new(PAGE, pinned)?, pinned })
    }

    /// Copies the parts into the buffer, behind one another.
    ///
    /// # Errors
    /// Where the parts are not as many bytes as the shape asks for, or there is no memory.
    pub fn fill(&mut self, graph: &Graph, input: &Stacked<'_>) -> ort::Result<()> {
        let length = byte_length(input)?;
        if length > self.memory.capacity() {
            self.tensor = None;
            self.memory = Memory::new(length, self.pinned)?;
        }
        self.memory.write(&input.parts);
        let same = |tensor: &Tensor| tensor.element == input.element && tensor.shape == input.shape;
        if !self.tensor.as_ref().is_some_and(same) {
            self.tensor = Some(self.tensor_over(graph, input, length)?);
        }
        Ok(())
    }

    /// The tensor over what was filled in last.
    pub fn view(&self) -> Option<&View> {
        self.tensor.as_ref().map(|tensor| &tensor.view)
    }

    /// Whether something lies in this buffer, which the next run overwrites.
    pub fn holds(&self, bytes: &[u8]) -> bool {
        let start = self.memory.start().as_ptr().cast_const();
        (start..start.wrapping_add(self.memory.capacity())).contains(&bytes.as_ptr())
    }

    fn tensor_over(&self, graph: &Graph, input: &Stacked<'_>, length: usize) -> ort::Result<Tensor> {
        // SAFETY: the memory has room for `length` bytes, which were written just now and are as many as type and shape
        // ask for; the tensor is dropped before the memory is, and replaced where they change.
        let view = unsafe { graph.view(input.element, &input.shape, self.memory.start(), length) }?;
        Ok(Tensor { view, element: input.element, shape: input.shape.clone() })
    }
}

/// Bytes of an input, by its shape and by its parts.
pub(super) fn byte_length(input: &Stacked<'_>) -> ort::Result<usize> {
    let sizes = input.shape.iter().copied();
    let wanted = sizes.chain([input.element.size_bytes()]).try_fold(1_usize, usize::checked_mul);
    let got = input.parts.iter().map(|part| part.len()).sum::<usize>();
    match wanted {
        Some(wanted) if wanted == got => Ok(got),
        Some(wanted) if wanted > got => Err(ort::Error::new("fewer bytes than the shape asks for")),
        _ => Err(ort::Error::new("more bytes than the shape asks for")),
    }
}

/// Memory that is not set to anything.
enum Memory {
    Main(Aligned),
    Pinned(PinnedMemory),
}

impl Memory {
    fn new(length: usize, pinned: bool) -> ort::Result<Self> {
        let refused = || ort::Error::new(format!("no memory for a batch of {length} bytes"));
        let capacity = length.max(PAGE).checked_next_multiple_of(PAGE).ok_or_else(refused)?;
        if pinned {
            return Ok(Self::Pinned(PinnedMemory::new(capacity)?));
        }
        Ok(Self::Main(Aligned::new(capacity).ok_or_else(refused)?))
    }

    fn start(&self) -> NonNull<u8> {
        match self {
            Self::Main(memory) => memory.start,
            Self::Pinned(memory) => memory.start(),
        }
    }

    fn capacity(&self) -> usize {
        match self {
            Self::Main(memory) => memory.layout.size(),
            Self::Pinned(memory) => memory.capacity(),
        }
    }

    /// Writes the parts behind one another; together they must fit.
    fn write(&mut self, parts: &[&[u8]]) {
        let mut at = 0;
        for part in parts {
            assert!(at + part.len() <= self.capacity(), "the parts of an input were measured before");
            // SAFETY: in bounds, as just asserted; the parts are borrowed from elsewhere, for the memory is ours alone.
            unsafe { self.start().add(at).copy_from_nonoverlapping(NonNull::from(*part).cast(), part.len()) };
            at += part.len();
        }
    }
}

/// Aligned main memory.
struct Aligned {
    start: NonNull<u8>,
    layout: Layout,
}

// SAFETY: plain memory with one owner.
unsafe impl Send for Aligned {}

impl Aligned {
    /// So many bytes, at least one.
    fn new(capacity: usize) -> Option<Self> {
        let layout = Layout::from_size_align(capacity, ALIGNMENT).ok().filter(|layout| layout.size() > 0)?;
        // SAFETY: the layout is not empty.
        let start = unsafe { alloc(layout) };
        NonNull::new(start).map(|start| Self { start, layout })
    }
}

impl Drop for Aligned {
    fn drop(&mut self) {
        // SAFETY: allocated with this layout, and freed once.
        unsafe { dealloc(self.start.as_ptr(), self.layout) };
    }
}
