//! From an image file's bytes to a picture, upright, with every part of the file held to a bound.

use std::io::Cursor;

use image::{DynamicImage, ImageDecoder, ImageFormat, ImageReader, Limits};

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

/// Decodes an image file upright: the orientation that a camera noted is applied.
///
/// # Errors
/// [`DecodeError`]. An image over the limit of pixels is refused by its header, before it is decoded.
pub fn read(bytes: &[u8], max_pixels: u64) -> Result<DynamicImage, DecodeError> {
    let (format, name) = format_of(bytes)?;
    let damaged = |error: image::ImageError| DecodeError::Damaged { format: name, reason: error.to_string() };
    let mut reader = ImageReader::with_format(Cursor::new(bytes), format);
    // What stands before the pixels, a colour profile for example, may be compressed and become anything.
    let mut header_limits = Limits::no_limits();
    header_limits.max_alloc = Some(MAX_HEADER_BYTES);
    reader.limits(header_limits);
    let mut decoder = reader.into_decoder().map_err(damaged)?;
    let (width, height) = decoder.dimensions();
    let pixels = u64::from(width) * u64::from(height);
    if pixels > max_pixels {
        return Err(DecodeError::TooManyPixels { width, height, pixels, max_pixels });
    }
    if format == ImageFormat::Jpeg && !has_end(bytes) {
        let reason = "it ends before its end marker, so it is truncated".to_owned();
        return Err(DecodeError::Damaged { format: name, reason });
    }
    let mut limits = Limits::no_limits();
    // 16 bits of four channels, and as much again to work in.
    limits.max_alloc = Some(pixels.saturating_mul(16).saturating_add(1 << 20));
    decoder.set_limits(limits).map_err(damaged)?;
    let orientation = decoder.orientation().map_err(damaged)?;
    let mut picture = DynamicImage::from_decoder(decoder).map_err(damaged)?;
    picture.apply_orientation(orientation);
    Ok(picture)
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

/// Whether a JPEG is there up to its end marker. The decoder fills what is missing with gray and says nothing.
///
/// Walks the file as ITU-T T.81, B.1.1 lays it out: segments say their length, and in scan data a marker cannot be
/// mistaken for data. What comes behind the end marker is nobody's business; cameras put films there.
fn has_end(jpeg: &[u8]) -> bool {
    let mut at = 2;
    loop {
        // Fill bytes may stand before a marker.
        let Some(fill) = jpeg.get(at..).and_then(|rest| rest.iter().position(|byte| *byte != 0xFF)) else {
            return false;
        };
        let Some(marker) = jpeg.get(at + fill).filter(|_| fill > 0) else { return false };
        at += fill + 1;
        match marker {
            0xD9 => return true,
            // Markers that stand alone.
            0x01 | 0xD0..=0xD8 => {}
            _ => {
                let Some([high, low]) = jpeg.get(at..at + 2) else { return false };
                at += usize::from(u16::from_be_bytes([*high, *low]));
                if *marker == 0xDA {
                    let Some(next) = next_marker(jpeg, at) else { return false };
                    at = next;
                }
            }
        }
    }
}

/// The next marker in scan data: not a stuffed byte (FF 00), not a restart.
fn next_marker(jpeg: &[u8], from: usize) -> Option<usize> {
    let is_marker = |pair: &[u8; 2]| pair[0] == 0xFF && !matches!(pair[1], 0x00 | 0xD0..=0xD7 | 0xFF);
    Some(from + jpeg.get(from..)?.array_windows::<2>().position(is_marker)?)
}

#[cfg(test)]
mod tests {
    use image::{ImageEncoder, Rgb, RgbImage, codecs::jpeg::JpegEncoder};

    use super::*;

    #[test]
    fn a_thumbnails_end_marker_does_not_hide_a_truncated_photo() {
        let picture = RgbImage::from_fn(200, 200, |x, y| Rgb([(x * y) as u8, (x ^ y) as u8, y as u8]));
        let mut jpeg = Vec::new();
        let mut encoder = JpegEncoder::new(&mut jpeg);
        encoder.set_exif_metadata(vec![0xFF, 0xDA, 1, 2, 0xFF, 0xD9]).unwrap();
        encoder.encode_image(&picture).unwrap();
        assert!(has_end(&jpeg));
        assert!(!has_end(&jpeg[..jpeg.len() / 2]));
        assert!(!has_end(&[0xFF, 0xD8]) && !has_end(&[0xFF, 0xD8, 0xFF]) && !has_end(&[0xFF, 0xD8, 0xFF, 0xDA, 0xFF]));
        // A film behind the photo, as telephones write it.
        jpeg.extend([0xFF, 0xDA, 0, 8, 7, 0xFF]);
        assert!(has_end(&jpeg));
    }
}
