//! From an image file's bytes to a picture, upright, with every part of the file held to a bound.

use std::{
    io::Cursor,
    sync::{Condvar, LazyLock, Mutex, PoisonError},
};

use image::{ColorType, DynamicImage, ImageDecoder, ImageFormat, ImageReader, Limits, RgbImage, metadata::Orientation};

use crate::{
    jpeg::{Jpeg, JpegError},
    observe::process::memory_limit,
};

/// Memory for all that an image file holds beside its pixels.
const MAX_HEADER_BYTES: u64 = 16 << 20;

/// Why bytes did not become a picture.
#[derive(Debug, thiserror::Error)]
pub enum DecodeError {
    /// Nothing came.
    #[error("expected a PNG, JPEG or WebP image, got 0 bytes")]
    Empty,
    /// The bytes begin like none of the formats.
    #[error("expected a PNG, JPEG or WebP image, got {length} bytes that begin with {start}")]
    NoImage {
        /// How many bytes came.
        length: usize,
        /// The first of them.
        start: String,
    },
    /// The format is known, but not read here.
    #[error("expected a PNG, JPEG or WebP image, got {0}")]
    UnsupportedFormat(String),
    /// The image is damaged.
    #[error("{format} image is damaged: {reason}")]
    Damaged {
        /// `PNG`, `JPEG` or `WebP`.
        format: &'static str,
        /// What the decoder said.
        reason: String,
    },
    /// The image has too many pixels.
    #[error("image is {width}x{height}, {pixels} pixels; expected at most {max_pixels}")]
    TooManyPixels {
        /// Its width.
        width: u32,
        /// Its height.
        height: u32,
        /// Their product.
        pixels: u64,
        /// The limit.
        max_pixels: u64,
    },
}

/// A picture, upright: all of it, or made smaller while it was decoded.
pub struct Picture {
    /// Its pixels.
    pub pixels: RgbImage,
    /// Width and height that the file says.
    pub size: (u32, u32),
    /// Pixels here for one of the file's, along either side: 1 or less.
    pub scale: f64,
    /// What it has of the room for all of them.
    _room: Room,
}

/// Decodes an image file upright: the orientation that a camera noted is applied.
///
/// `wanted` says to which width and height a picture of a given size is to be resized. A format that can be decoded to
/// fewer pixels is, but never to fewer than that. The memory of `spare` is used again where the format allows.
///
/// # Errors
/// [`DecodeError`]. An image over the limit of pixels is refused by its header, before it is decoded.
pub fn read(
    bytes: &[u8],
    max_pixels: u64,
    wanted: impl FnOnce(u32, u32) -> (f64, f64),
    spare: Vec<u8>,
) -> Result<Picture, DecodeError> {
    match format_of(bytes)? {
        (ImageFormat::Jpeg, name) => {
            let damaged = |error: JpegError| DecodeError::Damaged { format: name, reason: error.to_string() };
            let jpeg = Jpeg::open(bytes).map_err(damaged)?;
            let size = jpeg.size();
            check_pixels(size, max_pixels)?;
            let wanted = wanted(size.0, size.1);
            let room = Room::take(jpeg.bytes(wanted));
            let (pixels, scale) = jpeg.decode(wanted, spare).map_err(damaged)?;
            Ok(Picture { pixels, size, scale, _room: room })
        }
        (format, name) => {
            let (pixels, room) = read_whole(bytes, format, name, max_pixels)?;
            Ok(Picture { size: pixels.dimensions(), pixels, scale: 1.0, _room: room })
        }
    }
}

fn read_whole(
    bytes: &[u8],
    format: ImageFormat,
    name: &'static str,
    max_pixels: u64,
) -> Result<(RgbImage, Room), DecodeError> {
    let damaged = |error: image::ImageError| DecodeError::Damaged { format: name, reason: error.to_string() };
    let mut reader = ImageReader::with_format(Cursor::new(bytes), format);
    // What stands before the pixels, a colour profile for example, may be compressed and become anything.
    let mut header_limits = Limits::no_limits();
    header_limits.max_alloc = Some(MAX_HEADER_BYTES);
    reader.limits(header_limits);
    let mut decoder = reader.into_decoder().map_err(damaged)?;
    let pixels = check_pixels(decoder.dimensions(), max_pixels)?;
    let mut limits = Limits::no_limits();
    // 16 bits of four channels, and as much again to work in.
    limits.max_alloc = Some(pixels.saturating_mul(16).saturating_add(1 << 20));
    decoder.set_limits(limits).map_err(damaged)?;
    let orientation = decoder.orientation().map_err(damaged)?;
    // As it is in the file, once more where it is turned, and as it is wanted, where that is something else.
    let copies = if orientation == Orientation::NoTransforms { 1 } else { 2 };
    let converted = if decoder.color_type() == ColorType::Rgb8 { 0 } else { 3 * pixels };
    let room = Room::take(copies * decoder.total_bytes() + converted);
    let mut picture = DynamicImage::from_decoder(decoder).map_err(damaged)?;
    picture.apply_orientation(orientation);
    Ok((picture.into_rgb8(), room))
}

/// What large pictures that are being decoded may take together, for each core that there is, and no more than a quarter of the memory: a
/// file of some kilobytes may hold 50 million pixels of eight bytes, and each thread could be at one of those. A single one may take more.
const ROOM_BYTES_PER_CORE: u64 = 64 << 20;
const ROOM_OF_MEMORY: u64 = 4;
const LEAST_ROOM_BYTES: u64 = 256 << 20;

/// What is smaller waits for nobody: all threads together take no more of it than that for each.
const SMALL_BYTES: u64 = 32 << 20;

/// What is taken of it, and who waits for some.
static ROOM: (Mutex<Taken>, Condvar) = (Mutex::new(Taken { bytes: 0, came: 0, begun: 0 }), Condvar::new());

struct Taken {
    bytes: u64,
    /// Pictures that came so far, and those that have got their part: first come, first served, else a large one would wait for ever
    /// beside many less large ones.
    came: u64,
    begun: u64,
}

/// A part of the room for pixels, until it is dropped.
pub struct Room(u64);

impl Room {
    /// Waits until there is as much; all of it for what is larger.
    fn take(bytes: u64) -> Self {
        static ALL: LazyLock<u64> = LazyLock::new(|| {
            let cores = std::thread::available_parallelism().map_or(1, usize::from) as u64;
            let of_memory = memory_limit().map_or(u64::MAX, |memory| memory / ROOM_OF_MEMORY);
            LEAST_ROOM_BYTES.max(of_memory.min(cores * ROOM_BYTES_PER_CORE))
        });
        if bytes <= SMALL_BYTES {
            return Self(0);
        }
        let (all, (taken, freed)) = (*ALL, &ROOM);
        let bytes = bytes.min(all);
        let mut taken = taken.lock().unwrap_or_else(PoisonError::into_inner);
        let turn = taken.came;
        taken.came += 1;
        let waits = |taken: &mut Taken| taken.begun < turn || taken.bytes + bytes > all;
        let mut taken = freed.wait_while(taken, waits).unwrap_or_else(PoisonError::into_inner);
        taken.begun += 1;
        taken.bytes += bytes;
        drop(taken);
        // There may be room for the next one, too.
        freed.notify_all();
        Self(bytes)
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        if self.0 > 0 {
            ROOM.0.lock().unwrap_or_else(PoisonError::into_inner).bytes -= self.0;
            ROOM.1.notify_all();
        }
    }
}

/// How many pixels there are, which is within the limit.
fn check_pixels((width, height): (u32, u32), max_pixels: u64) -> Result<u64, DecodeError> {
    let pixels = u64::from(width) * u64::from(height);
    if pixels > max_pixels { Err(DecodeError::TooManyPixels { width, height, pixels, max_pixels }) } else { Ok(pixels) }
}

fn format_of(bytes: &[u8]) -> Result<(ImageFormat, &'static str), DecodeError> {
    if bytes.is_empty() {
        return Err(DecodeError::Empty);
    }
    match image::guess_format(bytes) {
        Ok(format @ ImageFormat::Png) => Ok((format, "PNG")),
        Ok(format @ ImageFormat::Jpeg) => Ok((format, "JPEG")),
        Ok(format @ ImageFormat::WebP) => Ok((format, "WebP")),
        Ok(other) => Err(DecodeError::UnsupportedFormat(other.to_mime_type().to_owned())),
        Err(_) => Err(DecodeError::NoImage { length: bytes.len(), start: beginning(bytes) }),
    }
}

fn beginning(bytes: &[u8]) -> String {
    bytes.iter().take(16).flat_map(|byte| std::ascii::escape_default(*byte)).map(char::from).collect()
}
