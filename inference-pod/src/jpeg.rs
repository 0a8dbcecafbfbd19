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

    /// Most bytes that decoding it takes: pixels, of ink four and three more; once more where it is turned; and all frequencies, at full
    /// size whatever the scale, where they come in several scans.
    pub fn bytes(&self, wanted: (f64, f64)) -> u64 {
        let DecompressHeader { width, height, colorspace, .. } = self.header.scaled(self.scale(wanted));
        let is_ink = matches!(colorspace, Colorspace::CMYK | Colorspace::YCCK);
        let copies = if self.orientation == Orientation::NoTransforms { 1 } else { 2 };
        let pixels = width as u64 * height as u64 * if is_ink { 7 } else { 3 * copies };
        let components = if is_ink { 4 } else { 3 };
        let frequencies = self.header.width as u64 * self.header.height as u64 * 2 * components;
        if self.notes.scans > 1 { pixels + frequencies } else { pixels }
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
        Orientation::Rotate90 | Orientation::Rotate270 | Orientation::Rotate90FlipH | Orientation::Rotate270FlipH => {
            true
        }
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
    scans: u32,
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
            0xDA => self.scans += 1,
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

#[cfg(test)]
mod tests {
    use image::{ImageEncoder, Rgb, codecs::jpeg::JpegEncoder};
    use turbojpeg::{Compressor, Subsamp};

    use super::*;

    type Settings = dyn Fn(&mut Compressor);

    const ALL: (f64, f64) = (f64::INFINITY, f64::INFINITY);

    /// Soft colours, none of them the same in any two corners.
    fn picture(width: u32, height: u32) -> RgbImage {
        let along = |at: u32, whole: u32| (at * 200 / whole) as u8;
        RgbImage::from_fn(width, height, |x, y| {
            Rgb([along(x, width), along(y, height), 255 - along(x + y, width + height)])
        })
    }

    fn compressed(
        pixels: &[u8],
        (width, height): (u32, u32),
        format: PixelFormat,
        set: impl Fn(&mut Compressor),
    ) -> Vec<u8> {
        let (width, height) = (width as usize, height as usize);
        let mut compressor = Compressor::new().unwrap();
        compressor.set_quality(90).unwrap();
        set(&mut compressor);
        let image = turbojpeg::Image { pixels, width, pitch: width * format.size(), height, format };
        compressor.compress_to_vec(image).unwrap()
    }

    fn jpeg_of(picture: &RgbImage, set: impl Fn(&mut Compressor)) -> Vec<u8> {
        compressed(picture.as_raw(), picture.dimensions(), PixelFormat::RGB, set)
    }

    fn progressive(compressor: &mut Compressor) {
        compressor.set_progressive(true).unwrap();
    }

    fn gray_only(compressor: &mut Compressor) {
        compressor.set_subsamp(Subsamp::Gray).unwrap();
    }

    fn decoded(jpeg: &[u8], wanted: (f64, f64)) -> Result<(RgbImage, f64), JpegError> {
        Jpeg::open(jpeg)?.decode(wanted, Vec::new())
    }

    fn said(jpeg: &[u8]) -> String {
        decoded(jpeg, ALL).unwrap_err().to_string()
    }

    fn mean_difference(a: &RgbImage, b: &RgbImage) -> f64 {
        assert_eq!(a.dimensions(), b.dimensions());
        let sum: u64 = a.iter().zip(b.iter()).map(|(a, b)| u64::from(a.abs_diff(*b))).sum();
        sum as f64 / a.len() as f64
    }

    /// The segment behind the first marker.
    fn with_segment(jpeg: &[u8], marker: u8, segment: &[u8]) -> Vec<u8> {
        let length = u16::try_from(segment.len() + 2).unwrap().to_be_bytes();
        [&jpeg[..2], &[0xFF, marker], &length, segment, &jpeg[2..]].concat()
    }

    fn exif(orientation: u8) -> Vec<u8> {
        let mut exif = b"Exif\0\0MM\0\x2A\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0".to_vec();
        exif.extend([orientation, 0, 0, 0, 0, 0, 0]);
        exif
    }

    #[test]
    fn every_kind_of_file_gives_the_same_picture() {
        let original = picture(203, 151);
        let kinds: [(&str, &Settings); 7] = [
            ("4:4:4", &|compressor| compressor.set_subsamp(Subsamp::None).unwrap()),
            ("4:2:2", &|compressor| compressor.set_subsamp(Subsamp::Sub2x1).unwrap()),
            ("4:2:0", &|compressor| compressor.set_subsamp(Subsamp::Sub2x2).unwrap()),
            ("4:1:1", &|compressor| compressor.set_subsamp(Subsamp::Sub4x1).unwrap()),
            ("progressive", &progressive),
            ("arithmetic", &|compressor| compressor.set_arithmetic(true).unwrap()),
            ("optimized", &|compressor| compressor.set_optimize(true).unwrap()),
        ];
        for (kind, set) in kinds {
            let (whole, scale) = decoded(&jpeg_of(&original, set), ALL).unwrap();
            assert!(mean_difference(&whole, &original) < 3.0, "{kind}: {}", mean_difference(&whole, &original));
            assert!((scale - 1.0).abs() < f64::EPSILON);
        }
    }

    #[test]
    fn gray_and_ink_become_red_green_and_blue() {
        let original = picture(64, 48);
        let gray: Vec<u8> = original.pixels().map(|pixel| pixel.0[1]).collect();
        let (read, _) = decoded(&compressed(&gray, (64, 48), PixelFormat::GRAY, gray_only), ALL).unwrap();
        assert!(read.pixels().all(|Rgb([red, green, blue])| red == green && green == blue));
        assert!(read.get_pixel(5, 40).0[0].abs_diff(gray[40 * 64 + 5]) < 8);

        // Half of the light by black ink; the rest by the other three. Stored as ink that is missing, as Adobe does.
        let missing: Vec<u8> =
            original.pixels().flat_map(|Rgb([red, green, blue])| [*red, *green, *blue, 128]).collect();
        let half = RgbImage::from_fn(64, 48, |x, y| Rgb(original.get_pixel(x, y).0.map(|light| light / 2)));
        for colorspace in [Colorspace::CMYK, Colorspace::YCCK] {
            let by_adobe = compressed(&missing, (64, 48), PixelFormat::CMYK, |compressor| {
                compressor.set_colorspace(colorspace).unwrap();
            });
            assert!(mean_difference(&decoded(&by_adobe, ALL).unwrap().0, &half) < 4.0, "{colorspace:?}");
        }
        assert_eq!(
            rgb_of_cmyk(&[0, 0, 0, 0, 0, 255, 255, 0, 9, 9, 9, 255], false),
            [255, 255, 255, 255, 0, 0, 0, 0, 0]
        );
        assert_eq!(rgb_of_cmyk(&[255, 255, 255, 255, 255, 0, 0, 255], true), [255, 255, 255, 255, 0, 0]);
    }

    #[test]
    fn the_scale_is_the_smallest_that_leaves_enough() {
        let jpeg = jpeg_of(&picture(1001, 800), |_| ());
        let cases =
            [(100.0, 0.125), (101.0, 0.25), (200.0, 0.25), (201.0, 0.5), (400.0, 0.5), (401.0, 1.0), (9e9, 1.0)];
        for (side, expected) in cases {
            let (small, scale) = decoded(&jpeg, (side, side)).unwrap();
            assert!((scale - expected).abs() < f64::EPSILON, "{side}: {scale}");
            // What is left of the last block counts as a pixel.
            assert_eq!(small.dimensions(), ((1001.0 * scale).ceil() as u32, (800.0 * scale).ceil() as u32));
        }
        // The longer side needs more than the shorter.
        assert!((decoded(&jpeg, (500.0, 100.0)).unwrap().1 - 0.5).abs() < f64::EPSILON);
    }

    #[test]
    fn a_small_scale_stays_near_the_mean_of_the_pixels_it_stands_for() {
        let original = picture(640, 480);
        for kind in [&(|_: &mut Compressor| ()) as &Settings, &progressive] {
            let jpeg = jpeg_of(&original, kind);
            for side in [60, 120, 240] {
                let (small, scale) = decoded(&jpeg, (f64::from(side), f64::from(side))).unwrap();
                assert_eq!(small.height(), side);
                let mean = image::imageops::thumbnail(&original, small.width(), small.height());
                assert!(mean_difference(&small, &mean) < 2.0, "{scale}: {}", mean_difference(&small, &mean));
            }
        }
    }

    #[test]
    fn pictures_of_any_shape_are_decoded() {
        for size in [(1, 1), (1, 65_500), (65_500, 1), (7, 9), (17, 1)] {
            let jpeg = jpeg_of(&picture(size.0, size.1), |_| ());
            for wanted in [(1.0, 1.0), (256.0, 256.0)] {
                let (small, scale) = decoded(&jpeg, wanted).unwrap();
                assert_eq!(small.width(), (f64::from(size.0) * scale).ceil() as u32, "{size:?}");
            }
        }
    }

    #[test]
    fn a_picture_is_turned_as_the_camera_was_held() {
        let original = picture(80, 40);
        let jpeg = jpeg_of(&original, |_| ());
        for orientation in 1..=8 {
            let turned = with_segment(&jpeg, 0xE1, &exif(orientation));
            let opened = Jpeg::open(&turned).unwrap();
            assert_eq!(opened.size(), if orientation < 5 { (80, 40) } else { (40, 80) }, "{orientation}");
            let mut expected = DynamicImage::ImageRgb8(original.clone());
            expected.apply_orientation(Orientation::from_exif(orientation).unwrap());
            let (upright, _) = opened.decode(ALL, Vec::new()).unwrap();
            assert!(mean_difference(&upright, &expected.into_rgb8()) < 4.0, "{orientation}");
        }
        // Upright it is 40 wide, and half of it is enough.
        let turned = with_segment(&jpeg, 0xE1, &exif(6));
        assert_eq!(decoded(&turned, (20.0, 1.0)).unwrap().0.dimensions(), (20, 40));
    }

    #[test]
    fn a_file_without_its_end_or_with_a_hole_is_refused() {
        let jpeg = jpeg_of(&picture(200, 200), progressive);
        for share in [1, 5, 10, 30, 60, 90, 99] {
            assert!(decoded(&jpeg[..jpeg.len() * share / 100], ALL).is_err(), "{share} %");
        }
        assert_eq!(said(&jpeg[..jpeg.len() - 2]), "it ends before its end marker, so it is truncated");
        let noise = RgbImage::from_fn(200, 200, |x, y| Rgb([(x * y) as u8, (x ^ y) as u8, (x * 7 + y * 3) as u8]));
        let jpeg = jpeg_of(&noise, |_| ());
        let holed = [&jpeg[..jpeg.len() / 2], &jpeg[jpeg.len() - 2..]].concat();
        assert!(said(&holed).contains("Corrupt JPEG data"), "{}", said(&holed));
        for wanted in [(1.0, 1.0), (50.0, 50.0), (100.0, 100.0)] {
            assert!(decoded(&holed, wanted).is_err(), "{wanted:?}");
        }
    }

    #[test]
    fn what_cameras_put_between_and_behind_does_no_harm() {
        let original = picture(100, 80);
        let mut jpeg = jpeg_of(&original, |_| ());
        let end = jpeg.len() - 2;
        jpeg.splice(end..end, [0; 24]);
        // A film behind the photo, as telephones write it.
        jpeg.extend([0xFF, 0xDA, 0, 8, 7, 0xFF]);
        assert!(mean_difference(&decoded(&jpeg, ALL).unwrap().0, &original) < 3.0);
    }

    #[test]
    fn a_thumbnails_end_marker_does_not_hide_a_truncated_photo() {
        let mut jpeg = Vec::new();
        let mut encoder = JpegEncoder::new(&mut jpeg);
        encoder.set_exif_metadata(vec![0xFF, 0xDA, 1, 2, 0xFF, 0xD9]).unwrap();
        encoder.encode_image(&picture(200, 200)).unwrap();
        let has_end = |jpeg: &[u8]| Notes::of(jpeg).has_end;
        assert!(has_end(&jpeg));
        assert!(!has_end(&jpeg[..jpeg.len() / 2]));
        assert!(!has_end(&[0xFF, 0xD8]) && !has_end(&[0xFF, 0xD8, 0xFF]) && !has_end(&[0xFF, 0xD8, 0xFF, 0xDA, 0xFF]));
        assert!(!has_end(&[]) && !has_end(&[0xFF]) && !has_end(&[0xFF, 0xD8, 0xFF, 0xE0, 0, 1, 0xFF, 0xD9]));
    }

    #[test]
    fn thousands_of_scans_are_refused() {
        let jpeg = jpeg_of(&RgbImage::new(2000, 2000), progressive);
        let last = jpeg.windows(2).rposition(|pair| pair == [0xFF, 0xDA]).unwrap();
        let end = jpeg.len() - 2;
        let scans = jpeg[last..end].repeat(5_000);
        let bomb = [&jpeg[..end], &scans, &jpeg[end..]].concat();
        // All of them would take a minute, and whoever runs the test would notice.
        assert_eq!(said(&bomb), "Progressive JPEG image has more than 100 scans");
    }

    #[test]
    fn a_file_is_not_read_by_the_tables_of_the_one_before() {
        let jpeg = jpeg_of(&picture(64, 64), |_| ());
        let mut bare = jpeg.clone();
        // Its tables of numbers, made a comment.
        let table = bare.windows(2).position(|pair| pair == [0xFF, 0xDB]).unwrap();
        bare[table + 1] = 0xFE;
        assert!(decoded(&jpeg, ALL).is_ok());
        assert!(decoded(&bare, ALL).is_err());
    }

    #[test]
    fn broken_bytes_never_panic() {
        let jpeg = with_segment(&jpeg_of(&picture(70, 50), progressive), 0xE1, &exif(6));
        let mut random = fastrand::Rng::with_seed(7);
        for _ in 0..3_000 {
            let mut broken = jpeg.clone();
            for _ in 0..random.usize(1..6) {
                let at = random.usize(0..broken.len());
                broken[at] = random.u8(..);
            }
            let is_small = Jpeg::open(&broken).is_ok_and(|opened| opened.size().0 < 2_000 && opened.size().1 < 2_000);
            if is_small {
                let _ = decoded(&broken, (20.0, 20.0));
            }
        }
    }
}
