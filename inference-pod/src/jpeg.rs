//! From a JPEG's bytes to its pixels, by libjpeg-turbo. The format stores blocks of 8 by 8 pixels as frequencies, so a
//! smaller picture can be made without making the large one first.

use image::{DynamicImage, RgbImage, metadata::Orientation};
use turbojpeg::{Colorspace, DecompressHeader, Decompressor, PixelFormat, ScalingFactor};

/// Every scan of a progressive JPEG goes through the whole picture, however few bytes it has. Encoders write 10 or so.
const MAX_SCANS: u32 = 100;

/// The smaller scales that libjpeg-turbo has SIMD code for; the smallest is but one number of each block.
const SMALLER: [ScalingFactor; 3] = [ScalingFactor::ONE_EIGHTH, ScalingFactor::ONE_QUARTER, ScalingFactor::ONE_HALF];

/// What the decoder calls corrupt and is not: bytes that some cameras put before a marker, and a number in the head of a
/// scan that means nothing in files of that kind.
const HARMLESS: [&str; 2] = ["extraneous bytes before marker", "Invalid SOS parameters for sequential JPEG"];

/// Why a JPEG was not decoded.
#[derive(Debug, thiserror::Error)]
pub enum JpegError {
    /// Its end is missing.
    #[error("it ends before its end marker, so it is truncated")]
    Truncated,
    /// The decoder's words.
    #[error("{0}")]
    Decoder(String),
}

impl From<turbojpeg::Error> for JpegError {
    fn from(error: turbojpeg::Error) -> Self {
        match error {
            turbojpeg::Error::TurboJpegError(message) => Self::Decoder(message),
            other => Self::Decoder(other.to_string()),
        }
    }
}

/// A JPEG of which the header was read.
pub struct Jpeg<'a> {
    bytes: &'a [u8],
    decompressor: Decompressor,
    header: DecompressHeader,
    notes: Notes<'a>,
    orientation: Orientation,
}

impl<'a> Jpeg<'a> {
    /// Reads the header.
    ///
    /// # Errors
    /// [`JpegError`].
    pub fn open(bytes: &'a [u8]) -> Result<Self, JpegError> {
        // One for each file: a used one remembers tables, and a file that has none of its own would be read by them.
        let mut decompressor = Decompressor::new()?;
        decompressor.set_scan_limit(MAX_SCANS)?;
        let header = decompressor.read_header(bytes)?;
        let notes = Notes::of(bytes);
        let orientation = notes.exif.and_then(Orientation::from_exif_chunk).unwrap_or(Orientation::NoTransforms);
        Ok(Self { bytes, decompressor, header, notes, orientation })
    }

    /// Width and height, upright. Either is at most 65,500.
    #[must_use]
    pub fn size(&self) -> (u32, u32) {
        let (width, height) = (self.header.width as u32, self.header.height as u32);
        if is_turned(self.orientation) { (height, width) } else { (width, height) }
    }

    /// Decodes the picture, upright, at the smallest scale that leaves it at least `wanted` pixels wide and high. Says
    /// the scale: pixels that come out for one of [`Jpeg::size`], along either side. The memory of `spare` is used again.
    ///
    /// # Errors
    /// [`JpegError`] also where the decoder could go on by guessing: what it guesses is gray.
    pub fn decode(mut self, wanted: (f64, f64), spare: Vec<u8>) -> Result<(RgbImage, f64), JpegError> {
        if !self.notes.has_end {
            return Err(JpegError::Truncated);
        }
        let scale = self.scale(wanted);
        self.decompressor.set_scaling_factor(scale)?;
        let mut picture = DynamicImage::ImageRgb8(self.pixels(scale, spare)?);
        picture.apply_orientation(self.orientation);
        Ok((picture.into_rgb8(), factor(scale)))
    }

    fn scale(&self, wanted: (f64, f64)) -> ScalingFactor {
        let (width, height) = self.size();
        let is_enough = |scale: &ScalingFactor| {
            // A lossless file has no frequencies.
            !self.header.is_lossless
                && f64::from(width) * factor(*scale) >= wanted.0
                && f64::from(height) * factor(*scale) >= wanted.1
        };
        SMALLER.into_iter().find(is_enough).unwrap_or(ScalingFactor::ONE)
    }

    fn pixels(&mut self, scale: ScalingFactor, mut pixels: Vec<u8>) -> Result<RgbImage, JpegError> {
        let DecompressHeader { width, height, colorspace, .. } = self.header.scaled(scale);
        let format = match colorspace {
            Colorspace::CMYK | Colorspace::YCCK => PixelFormat::CMYK,
            Colorspace::RGB | Colorspace::YCbCr | Colorspace::Gray => PixelFormat::RGB,
        };
        let pitch = width * format.size();
        // Nothing of an earlier picture may shine through.
        pixels.clear();
        pixels.resize(pitch * height, 0);
        let output = turbojpeg::Image { pixels: pixels.as_mut_slice(), width, pitch, height, format };
        match self.decompressor.decompress(self.bytes, output).map_err(JpegError::from) {
            Err(JpegError::Decoder(said)) if HARMLESS.iter().any(|harmless| said.contains(harmless)) => {}
            result => result?,
        }
        if format == PixelFormat::CMYK {
            pixels = rgb_of_cmyk(&pixels, self.notes.by_adobe);
        }
        match RgbImage::from_raw(width as u32, height as u32, pixels) {
            Some(picture) => Ok(picture),
            None => unreachable!("the buffer was made for this size"),
        }
    }
}

fn factor(scale: ScalingFactor) -> f64 {
    scale.num() as f64 / scale.denom() as f64
}

/// Whether width and height change places.
fn is_turned(orientation: Orientation) -> bool {
    match orientation {
        Orientation::NoTransforms
        | Orientation::Rotate180
        | Orientation::FlipHorizontal
        | Orientation::FlipVertical => false,
        Orientation::Rotate90
        | Orientation::Rotate270
        | Orientation::Rotate90FlipH
        | Orientation::Rotate270FlipH => true,
    }
}

/// Ink becomes light. Adobe's programs store how much ink is missing.
fn rgb_of_cmyk(pixels: &[u8], is_inverted: bool) -> Vec<u8> {
    let light = |ink: u8| u16::from(if is_inverted { ink } else { 255 - ink });
    let mix = |[cyan, magenta, yellow, black]: [u8; 4]| {
        [cyan, magenta, yellow].map(|ink| ((light(ink) * light(black) + 127) / 255) as u8)
    };
    pixels.as_chunks::<4>().0.iter().flat_map(|pixel| mix(*pixel)).collect()
}

/// What a JPEG says beside its picture, and whether it is whole. The decoder fills what is missing with gray.
#[derive(Debug, Default, PartialEq)]
struct Notes<'a> {
    has_end: bool,
    exif: Option<&'a [u8]>,
    by_adobe: bool,
}

impl<'a> Notes<'a> {
    /// Walks the file as ITU-T T.81, B.1.1 lays it out: segments say their length, and in scan data a marker cannot be
    /// mistaken for data. What comes behind the end marker is nobody's business; cameras put films there.
    fn of(jpeg: &'a [u8]) -> Self {
        let mut notes = Notes::default();
        let mut rest = jpeg.get(2..).unwrap_or_default();
        while let Some((marker, behind)) = marker_at(rest) {
            rest = match marker {
                0xD9 => {
                    notes.has_end = true;
                    break;
                }
                // Markers that stand alone.
                0x01 | 0xD0..=0xD8 => behind,
                _ => {
                    let Some((segment, behind)) = segment_at(behind) else { break };
                    notes.take(marker, segment);
                    if marker == 0xDA { from_next_marker(behind) } else { behind }
                }
            };
        }
        notes
    }

    fn take(&mut self, marker: u8, segment: &'a [u8]) {
        match marker {
            0xE1 if self.exif.is_none() => self.exif = segment.strip_prefix(b"Exif\0\0"),
            0xEE => self.by_adobe |= segment.starts_with(b"Adobe"),
            _ => {}
        }
    }
}

/// The marker that the bytes begin with, and what follows. Fill bytes may stand before it.
fn marker_at(bytes: &[u8]) -> Option<(u8, &[u8])> {
    let fill = bytes.iter().position(|byte| *byte != 0xFF).filter(|fill| *fill > 0)?;
    Some((bytes[fill], &bytes[fill + 1..]))
}

/// The segment that the bytes begin with, without its length, and what follows.
fn segment_at(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let (length, rest) = bytes.split_first_chunk()?;
    rest.split_at_checked(usize::from(u16::from_be_bytes(*length)).checked_sub(2)?)
}

/// From the marker on that ends the scan data: not a stuffed byte (FF 00), not a restart.
fn from_next_marker(scan: &[u8]) -> &[u8] {
    let is_marker = |at: &usize| scan.get(at + 1).is_some_and(|next| !matches!(next, 0x00 | 0xD0..=0xD7 | 0xFF));
    let at = memchr::memchr_iter(0xFF, scan).find(is_marker);
    &scan[at.unwrap_or(scan.len())..]
}
