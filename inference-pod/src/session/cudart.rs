//! The few calls of CUDA's runtime library that copying to a GPU and back takes.
//!
//! It is the library that ONNX Runtime's CUDA provider is linked with, found at run time as that provider is: nothing of it
//! is needed where no model runs on a GPU. Device 0 is used throughout, as by the provider.

#![expect(unsafe_code, reason = "the C interface; each call says why it is sound")]

use std::{
    ffi::{CStr, c_char, c_int, c_uint, c_void},
    ptr::{self, NonNull},
    sync::{Arc, OnceLock},
};

use libloading::Library;

/// `cudaStreamNonBlocking`: work in the stream does not wait for work that names no stream.
const NON_BLOCKING: c_uint = 1;

/// `cudaMemcpyHostToDevice` and `cudaMemcpyDeviceToHost`.
const TO_DEVICE: c_int = 1;
const TO_HOST: c_int = 2;

/// `cudaStreamCaptureModeRelaxed`.
const RELAXED: c_int = 2;

type Code = c_int;

/// The library's functions.
struct Cudart {
    stream_create: unsafe extern "C" fn(*mut *mut c_void, c_uint) -> Code,
    stream_destroy: unsafe extern "C" fn(*mut c_void) -> Code,
    stream_synchronize: unsafe extern "C" fn(*mut c_void) -> Code,
    copy: unsafe extern "C" fn(*mut c_void, *const c_void, usize, c_int, *mut c_void) -> Code,
    host_allocate: unsafe extern "C" fn(*mut *mut c_void, usize, c_uint) -> Code,
    host_free: unsafe extern "C" fn(*mut c_void) -> Code,
    allocate: unsafe extern "C" fn(*mut *mut c_void, usize) -> Code,
    free: unsafe extern "C" fn(*mut c_void) -> Code,
    exchange_capture_mode: unsafe extern "C" fn(*mut c_int) -> Code,
    error_text: unsafe extern "C" fn(Code) -> *const c_char,
    /// What the functions are in.
    _library: Library,
}

static CUDART: OnceLock<Result<Cudart, String>> = OnceLock::new();

fn cudart() -> ort::Result<&'static Cudart> {
    CUDART.get_or_init(Cudart::load).as_ref().map_err(ort::Error::new)
}

impl Cudart {
    fn load() -> Result<Self, String> {
        let name = ort::ep::cuda::CUDA_DYLIBS.first().ok_or("ONNX Runtime names no CUDA library")?;
        // SAFETY: what the library does when it is loaded is what it does for ONNX Runtime, which loads it too.
        let library = unsafe { Library::new(*name) }.map_err(|error| error.to_string())?;
        macro_rules! function {
            ($name:literal) => {
                // SAFETY: the types are those that CUDA's documentation gives the function.
                *unsafe { library.get($name) }.map_err(|error| error.to_string())?
            };
        }
        Ok(Self {
            stream_create: function!(c"cudaStreamCreateWithFlags"),
            stream_destroy: function!(c"cudaStreamDestroy"),
            stream_synchronize: function!(c"cudaStreamSynchronize"),
            copy: function!(c"cudaMemcpyAsync"),
            host_allocate: function!(c"cudaHostAlloc"),
            host_free: function!(c"cudaFreeHost"),
            allocate: function!(c"cudaMalloc"),
            free: function!(c"cudaFree"),
            exchange_capture_mode: function!(c"cudaThreadExchangeStreamCaptureMode"),
            error_text: function!(c"cudaGetErrorString"),
            _library: library,
        })
    }

    fn checked(&self, what: &str, code: Code) -> ort::Result<()> {
        if code == 0 {
            return Ok(());
        }
        // SAFETY: takes any number, and answers a text of its own.
        let text = unsafe { CStr::from_ptr((self.error_text)(code)) };
        Err(ort::Error::new(format!("{what}: {} (CUDA error {code})", text.to_string_lossy())))
    }
}

/// Allows this thread, from now on, to get and give back memory while another one captures its runs; else CUDA refuses that.
///
/// # Errors
/// Where there is no CUDA.
pub(super) fn stand_captures_of_others() -> ort::Result<()> {
    let cudart = cudart()?;
    let mut mode = RELAXED;
    // SAFETY: `mode` holds a mode, and takes the one before.
    cudart.checked("no capture mode", unsafe { (cudart.exchange_capture_mode)(&raw mut mode) })
}

/// A queue of work on the GPU: copies and runs of one session, one after the other.
pub(super) struct Stream {
    raw: NonNull<c_void>,
    cudart: &'static Cudart,
}

// SAFETY: CUDA's streams may be used from any thread.
unsafe impl Send for Stream {}
// SAFETY: and from several at once.
unsafe impl Sync for Stream {}

impl Stream {
    /// A new stream.
    ///
    /// # Errors
    /// Where there is no CUDA, or no GPU.
    pub fn new() -> ort::Result<Arc<Self>> {
        let cudart = cudart()?;
        let mut raw = ptr::null_mut();
        // SAFETY: `raw` takes the stream.
        cudart.checked("no stream on a GPU", unsafe { (cudart.stream_create)(&raw mut raw, NON_BLOCKING) })?;
        let raw = NonNull::new(raw).ok_or_else(|| ort::Error::new("no stream on a GPU"))?;
        Ok(Arc::new(Self { raw, cudart }))
    }

    /// For ONNX Runtime.
    pub fn as_ptr(&self) -> *mut () {
        self.raw.as_ptr().cast()
    }

    /// Queues a copy of the first bytes to the GPU. They must not change until [`Stream::wait`] has returned.
    ///
    /// # Errors
    /// What CUDA said.
    pub fn upload(&self, to: &DeviceMemory, from: &PinnedMemory, length: usize) -> ort::Result<()> {
        assert!(length <= to.capacity && length <= from.capacity, "a copy is no longer than its memory");
        let (to, from) = (to.start.as_ptr().cast(), from.start.as_ptr().cast_const().cast());
        // SAFETY: both are `length` bytes at least, as just asserted, and live until the caller has waited.
        self.cudart
            .checked("copy to the GPU", unsafe { (self.cudart.copy)(to, from, length, TO_DEVICE, self.raw.as_ptr()) })
    }

    /// Queues a copy of the first bytes from the GPU. They are there when [`Stream::wait`] has returned.
    ///
    /// # Errors
    /// What CUDA said.
    pub fn download(&self, to: &PinnedMemory, from: &DeviceMemory, length: usize) -> ort::Result<()> {
        assert!(length <= to.capacity && length <= from.capacity, "a copy is no longer than its memory");
        let (to, from) = (to.start.as_ptr().cast(), from.start.as_ptr().cast_const().cast());
        // SAFETY: as above.
        self.cudart
            .checked("copy from the GPU", unsafe { (self.cudart.copy)(to, from, length, TO_HOST, self.raw.as_ptr()) })
    }

    /// Blocks until everything queued is done.
    ///
    /// # Errors
    /// What CUDA said, also of what was queued before.
    pub fn wait(&self) -> ort::Result<()> {
        // SAFETY: the stream lives.
        self.cudart.checked("the GPU failed", unsafe { (self.cudart.stream_synchronize)(self.raw.as_ptr()) })
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        // SAFETY: made once, destroyed once; CUDA lets queued work end first.
        unsafe { (self.cudart.stream_destroy)(self.raw.as_ptr()) };
    }
}

/// Main memory that the GPU reads and writes without the help of a processor.
pub(super) struct PinnedMemory {
    start: NonNull<u8>,
    capacity: usize,
    cudart: &'static Cudart,
}

// SAFETY: plain memory with one owner.
unsafe impl Send for PinnedMemory {}

impl PinnedMemory {
    /// So many bytes, not set to anything.
    ///
    /// # Errors
    /// Where there is no memory.
    pub fn new(capacity: usize) -> ort::Result<Self> {
        let cudart = cudart()?;
        let mut start = ptr::null_mut();
        // SAFETY: `start` takes the memory.
        let code = unsafe { (cudart.host_allocate)(&raw mut start, capacity.max(1), 0) };
        cudart.checked("no pinned memory for a batch", code)?;
        let start = NonNull::new(start.cast()).ok_or_else(|| ort::Error::new("no pinned memory for a batch"))?;
        Ok(Self { start, capacity, cudart })
    }

    pub fn start(&self) -> NonNull<u8> {
        self.start
    }

    pub fn capacity(&self) -> usize {
        self.capacity
    }
}

impl Drop for PinnedMemory {
    fn drop(&mut self) {
        // Outputs end on whatever thread has sent them.
        let _ = stand_captures_of_others();
        // SAFETY: allocated once, freed once.
        unsafe { (self.cudart.host_free)(self.start.as_ptr().cast()) };
    }
}

/// Memory of the GPU.
pub(super) struct DeviceMemory {
    start: NonNull<u8>,
    capacity: usize,
    cudart: &'static Cudart,
}

// SAFETY: an address that only the GPU reads and writes, with one owner.
unsafe impl Send for DeviceMemory {}

impl DeviceMemory {
    /// So many bytes.
    ///
    /// # Errors
    /// Where there is no memory.
    pub fn new(capacity: usize) -> ort::Result<Self> {
        let cudart = cudart()?;
        let mut start = ptr::null_mut();
        // SAFETY: `start` takes the memory.
        cudart.checked("no memory on the GPU for a batch", unsafe {
            (cudart.allocate)(&raw mut start, capacity.max(1))
        })?;
        let start = NonNull::new(start.cast()).ok_or_else(|| ort::Error::new("no memory on the GPU for a batch"))?;
        Ok(Self { start, capacity, cudart })
    }

    pub fn start(&self) -> NonNull<u8> {
        self.start
    }
}

impl Drop for DeviceMemory {
    fn drop(&mut self) {
        // SAFETY: allocated once, freed once; CUDA waits for what still uses it.
        unsafe { (self.cudart.free)(self.start.as_ptr().cast()) };
    }
}
