//! From a picture to a sample.

use std::{cell::RefCell, mem};

use bytes::Bytes;
use crds::serving::{Channels, ImageOptions, Layout, Resize};
use fast_image_resize::{
    FilterType, PixelType, ResizeAlg, ResizeOptions, Resizer,
    images::{Image, ImageRef},
};

use crate::{
    picture::{self, DecodeError, Picture},
    session::Port,
    tensor::{ElementType, Tensor},
};

/// Mean and standard deviation of ImageNet's training pictures, red, green, blue, on the scale 0..1; what most published
/// classifiers were trained with.
const IMAGENET_MEAN: [f32; 3] = [0.485, 0.456, 0.406];
const IMAGENET_STD: [f32; 3] = [0.229, 0.224, 0.225];

/// Share of the shorter side that the crop keeps by default: 224 of 256, the usual evaluation set-up.
const DEFAULT_CROP_SHARE: f64 = 224.0 / 256.0;

/// A thread keeps no more memory than this from one picture to the next. A larger one takes so long to decode that
/// getting memory does not count.
const MAX_SPARE_BYTES: usize = 4 << 20;

thread_local! {
    /// Getting memory from the system and giving it back took a sixth of the time of a photo of 1024 by 768 pixels.
    static TOOLS: RefCell<Tools> = RefCell::default();
}

/// What a thread uses again for its next picture.
#[derive(Default)]
struct Tools {
    spare: Vec<u8>,
    resizer: Resizer,
}

impl Tools {
    fn keep(&mut self, pixels: Vec<u8>) {
        if pixels.capacity() <= MAX_SPARE_BYTES {
            self.spare = pixels;
        }
        if self.resizer.size_of_internal_buffers() > MAX_SPARE_BYTES {
            self.resizer.reset_internal_buffers();
        }
    }
}

/// Why a model's input cannot take pictures.
#[derive(Debug, thiserror::Error)]
pub enum ImageInputError {
    /// Its input is no picture.
    #[error(
        "task image-classification takes a model with one input of 4 dimensions and 1 or 3 channels, float or uint8; input is {0}"
    )]
    Shape(String),
    /// The options do not fit the input.
    #[error("options.image.{option}: expected {expected}, got {got}")]
    Option {
        /// The option.
        option: &'static str,
        /// What the model takes.
        expected: String,
        /// What the options say.
        got: String,
    },
}

/// How one model's pictures are made. Built only from options that fit the model's input.
#[derive(Debug, Clone, PartialEq)]
pub struct ImageInput {
    width: u32,
    height: u32,
    layout: Layout,
    channels: Channels,
    resize: Resize,
    element: ElementType,
    /// What a byte of each channel becomes, in the model's channel order.
    tables: Vec<[f32; 256]>,
    max_pixels: u64,
}

impl ImageInput {
    /// Fits the options to a model's input.
    ///
    /// # Errors
    /// [`ImageInputError`] where the input takes no pictures, or other ones than the options make.
    pub fn new(input: &Port, options: &ImageOptions, max_pixels: u64) -> Result<Self, ImageInputError> {
        let shape_error = || ImageInputError::Shape(describe(input));
        let &[_, second, third, fourth] = input.dims.as_slice() else { return Err(shape_error()) };
        if !matches!(input.element, ElementType::F32 | ElementType::F16 | ElementType::U8) {
            return Err(shape_error());
        }
        let layout = options.layout.or_else(|| layout_of(second, fourth)).ok_or_else(shape_error)?;
        let (count, height, width) = match layout {
            Layout::Nchw => (second, third, fourth),
            Layout::Nhwc => (fourth, second, third),
        };
        let channels = channels_of(count, options.channels)?;
        let (width, height) = size_of(width, height, options)?;
        let resize = options.resize.unwrap_or_else(|| default_resize(width.min(height)));
        check_resize(resize, width, height)?;
        let tables = tables(channels, input.element, options)?;
        Ok(Self { width, height, layout, channels, resize, element: input.element, tables, max_pixels })
    }

    /// Width and height that the model sees.
    #[must_use]
    pub fn size(&self) -> (u32, u32) {
        (self.width, self.height)
    }

    /// Shape of one sample, without the batch dimension.
    #[must_use]
    pub fn sample_shape(&self) -> Vec<usize> {
        let (count, height, width) = (self.tables.len(), self.height as usize, self.width as usize);
        match self.layout {
            Layout::Nchw => vec![count, height, width],
            Layout::Nhwc => vec![height, width, count],
        }
    }

    /// Makes one sample of an image file's bytes.
    ///
    /// # Shapes
    /// `[1, 3, height, width]` or `[1, height, width, 3]`, as the model takes it.
    ///
    /// # Errors
    /// [`DecodeError`]. An image over the limit of pixels is refused by its header, before it is decoded.
    pub fn decode(&self, bytes: &[u8]) -> Result<Tensor, DecodeError> {
        let pixels = TOOLS.with_borrow_mut(|tools| self.pixels(bytes, tools))?;
        let mut shape = vec![1];
        shape.extend(self.sample_shape());
        let data = match self.element {
            ElementType::U8 => self.laid_out(&pixels, |_, byte| [byte]),
            ElementType::F16 => {
                self.laid_out(&pixels, |table, byte| half::f16::from_f32(table[usize::from(byte)]).to_le_bytes())
            }
            _ => self.laid_out(&pixels, |table, byte| table[usize::from(byte)].to_le_bytes()),
        };
        match Tensor::new(self.element, shape, Bytes::from(data)) {
            Ok(tensor) => Ok(tensor),
            Err(error) => unreachable!("the buffer was made for this shape: {error}"),
        }
    }

    /// Red, green and blue of every pixel that the model sees.
    fn pixels(&self, bytes: &[u8], tools: &mut Tools) -> Result<Vec<u8>, DecodeError> {
        let wanted = |width, height| self.resized_size(width, height);
        let picture = picture::read(bytes, self.max_pixels, wanted, mem::take(&mut tools.spare))?;
        let seen = self.resized(&picture, &mut tools.resizer);
        tools.keep(picture.pixels.into_raw());
        Ok(seen)
    }

    /// Resizes and crops in one step: only the part of the picture that the model sees is worked on, so that a picture
    /// of one by a million pixels costs no more than any other.
    fn resized(&self, picture: &Picture, resizer: &mut Resizer) -> Vec<u8> {
        let (left, top, width, height) = self.seen_part(picture.size.0, picture.size.1);
        let [left, top, width, height] = [left, top, width, height].map(|length| length * picture.scale);
        let options = ResizeOptions::new()
            .resize_alg(ResizeAlg::Convolution(FilterType::Bilinear))
            .crop(left, top, width, height);
        let mut target = Image::new(self.width, self.height, PixelType::U8x3);
        let pixels = &picture.pixels;
        let resized = ImageRef::new(pixels.width(), pixels.height(), pixels.as_raw(), PixelType::U8x3)
            .map_err(|error| error.to_string())
            .and_then(|source| resizer.resize(&source, &mut target, &options).map_err(|error| error.to_string()));
        if let Err(error) = resized {
            unreachable!("the crop lies inside of the picture: {error}");
        }
        target.into_vec()
    }

    /// Width and height that a picture has once it is resized, before it is cropped. The rounding is that of the usual
    /// evaluation set-up (torchvision): the longer side is cut to a whole number.
    fn resized_size(&self, width: u32, height: u32) -> (f64, f64) {
        let (width, height) = (f64::from(width), f64::from(height));
        match self.resize {
            Resize::Stretch([to_width, to_height]) => (f64::from(to_width), f64::from(to_height)),
            Resize::ShorterSide(side) if width <= height => {
                (f64::from(side), (f64::from(side) * height / width).floor())
            }
            Resize::ShorterSide(side) => ((f64::from(side) * width / height).floor(), f64::from(side)),
        }
    }

    /// Left, top, width and height of what the model sees, in pixels of the picture. As in the usual evaluation set-up,
    /// the crop begins at a whole pixel of the resized picture.
    fn seen_part(&self, width: u32, height: u32) -> (f64, f64, f64, f64) {
        let (to_width, to_height) = self.resized_size(width, height);
        let along = |whole: f64, resized: f64, seen: u32| {
            // A picture narrower than the model's aspect is cut where it ends.
            let seen = f64::from(seen).min(resized);
            let scale = whole / resized;
            let start = ((resized - seen) / 2.0).round_ties_even() * scale;
            (start, (seen * scale).min(whole - start))
        };
        let (left, seen_width) = along(f64::from(width), to_width, self.width);
        let (top, seen_height) = along(f64::from(height), to_height, self.height);
        (left, top, seen_width, seen_height)
    }

    /// Lays the pixels out as the model takes them, each byte converted by the table of its channel.
    fn laid_out<const N: usize>(&self, rgb: &[u8], convert: impl Fn(&[f32; 256], u8) -> [u8; N]) -> Vec<u8> {
        let (pixels, _) = rgb.as_chunks::<3>();
        let channels = || self.tables.iter().enumerate();
        let mut values: Vec<[u8; N]> = Vec::with_capacity(pixels.len() * self.tables.len());
        match self.layout {
            Layout::Nchw => channels().for_each(|(channel, table)| {
                values.extend(pixels.iter().map(|pixel| convert(table, self.byte(channel, *pixel))));
            }),
            Layout::Nhwc => pixels.iter().for_each(|pixel| {
                values.extend(channels().map(|(channel, table)| convert(table, self.byte(channel, *pixel))));
            }),
        }
        values.into_flattened()
    }

    /// What the model's channel takes from a pixel.
    fn byte(&self, channel: usize, [red, green, blue]: [u8; 3]) -> u8 {
        match (self.channels, channel) {
            (Channels::Rgb, 0) | (Channels::Bgr, 2) => red,
            (Channels::Rgb, 2) | (Channels::Bgr, 0) => blue,
            (Channels::Rgb | Channels::Bgr, _) => green,
            (Channels::Gray, _) => luma(red, green, blue),
        }
    }
}

/// Brightness by ITU-R BT.601, as image libraries convert to gray.
fn luma(red: u8, green: u8, blue: u8) -> u8 {
    let weighted = 299 * u32::from(red) + 587 * u32::from(green) + 114 * u32::from(blue);
    u8::try_from((weighted + 500) / 1000).unwrap_or(u8::MAX)
}

/// An input as people write it: `pixels float32 [?, 3, 224, 224]`.
fn describe(input: &Port) -> String {
    let dims: Vec<String> =
        input.dims.iter().map(|size| size.map_or_else(|| "?".to_owned(), |size| size.to_string())).collect();
    format!("`{}` {} [{}]", input.name, input.element.datatype(), dims.join(", "))
}

fn layout_of(second: Option<usize>, fourth: Option<usize>) -> Option<Layout> {
    let is_channels = |size: Option<usize>| matches!(size, Some(1 | 3));
    match (is_channels(second), is_channels(fourth)) {
        (true, _) => Some(Layout::Nchw),
        (false, true) => Some(Layout::Nhwc),
        (false, false) => None,
    }
}

fn channels_of(count: Option<usize>, wanted: Option<Channels>) -> Result<Channels, ImageInputError> {
    let of_three = |got: &str| ImageInputError::Option {
        option: "channels",
        expected: format!("an order for the model's {} channel(s)", count.unwrap_or(0)),
        got: got.to_owned(),
    };
    match (count, wanted) {
        (None | Some(3), Some(order @ (Channels::Rgb | Channels::Bgr))) => Ok(order),
        (None | Some(3), None) => Ok(Channels::Rgb),
        (None | Some(1), Some(Channels::Gray)) | (Some(1), None) => Ok(Channels::Gray),
        (_, Some(Channels::Gray)) => Err(of_three("gray")),
        (_, Some(_)) => Err(of_three("an order of three")),
        (Some(_), None) => Err(of_three("neither 1 nor 3")),
    }
}

fn size_of(width: Option<usize>, height: Option<usize>, options: &ImageOptions) -> Result<(u32, u32), ImageInputError> {
    let fixed = |size: Option<usize>| size.and_then(|size| u32::try_from(size).ok());
    let wanted = options.crop.map(|side| (side, side)).or(match options.resize {
        Some(Resize::Stretch([width, height])) => Some((width, height)),
        _ => None,
    });
    let size = match (fixed(width), fixed(height), wanted) {
        (Some(width), Some(height), _) => (width, height),
        (width, height, Some((to_width, to_height))) => (width.unwrap_or(to_width), height.unwrap_or(to_height)),
        (_, _, None) => {
            return Err(ImageInputError::Option {
                option: "crop",
                expected: "a side, for the model leaves width or height open".to_owned(),
                got: "nothing".to_owned(),
            });
        }
    };
    match options.crop {
        Some(side) if size != (side, side) => Err(ImageInputError::Option {
            option: "crop",
            expected: format!("the model's {}x{}", size.0, size.1),
            got: side.to_string(),
        }),
        _ => Ok(size),
    }
}

fn default_resize(crop: u32) -> Resize {
    Resize::ShorterSide((f64::from(crop) / DEFAULT_CROP_SHARE).round() as u32)
}

fn check_resize(resize: Resize, width: u32, height: u32) -> Result<(), ImageInputError> {
    let (fits, got) = match resize {
        Resize::ShorterSide(side) => (side >= width.min(height), side.to_string()),
        Resize::Stretch([to_width, to_height]) => {
            (to_width >= width && to_height >= height, format!("[{to_width}, {to_height}]"))
        }
    };
    let error =
        || ImageInputError::Option { option: "resize", expected: format!("at least the crop, {width}x{height}"), got };
    if fits { Ok(()) } else { Err(error()) }
}

fn tables(
    channels: Channels,
    element: ElementType,
    options: &ImageOptions,
) -> Result<Vec<[f32; 256]>, ImageInputError> {
    let count = if channels == Channels::Gray { 1 } else { 3 };
    let mean = per_channel("mean", options.mean.as_deref(), &IMAGENET_MEAN, channels)?;
    let std = per_channel("std", options.std.as_deref(), &IMAGENET_STD, channels)?;
    if element == ElementType::U8 && (options.mean.is_some() || options.std.is_some()) {
        return Err(ImageInputError::Option {
            option: if options.mean.is_some() { "mean" } else { "std" },
            expected: "nothing, for the model takes bytes".to_owned(),
            got: "numbers".to_owned(),
        });
    }
    let table = |channel: usize| std::array::from_fn(|byte| (byte as f32 / 255.0 - mean[channel]) / std[channel]);
    Ok((0..count).map(table).collect())
}

/// The numbers of the options, one for all channels or one each, else ImageNet's in the model's order.
fn per_channel(
    option: &'static str,
    given: Option<&[f32]>,
    imagenet: &[f32; 3],
    channels: Channels,
) -> Result<Vec<f32>, ImageInputError> {
    let count = if channels == Channels::Gray { 1 } else { 3 };
    match (given, channels) {
        (Some([one]), _) => Ok(vec![*one; count]),
        (Some(given), _) if given.len() == count => Ok(given.to_vec()),
        (Some(given), _) => Err(ImageInputError::Option {
            option,
            expected: format!("1 or {count} numbers"),
            got: given.len().to_string(),
        }),
        (None, Channels::Rgb) => Ok(imagenet.to_vec()),
        (None, Channels::Bgr) => Ok(imagenet.iter().rev().copied().collect()),
        (None, Channels::Gray) => Ok(vec![imagenet.iter().sum::<f32>() / 3.0]),
    }
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use image::{DynamicImage, ImageFormat, Rgb, RgbImage};

    use super::*;

    const MAX_PIXELS: u64 = 1_000_000;

    fn port(dims: [Option<usize>; 4]) -> Port {
        Port { name: "pixels".to_owned(), element: ElementType::F32, dims: dims.to_vec(), batch_name: None }
    }

    /// No resize beyond the crop and no scaling but to 0..1, so that what comes out can be said by hand.
    fn plain(layout: Layout, channels: Channels) -> ImageInput {
        let options = ImageOptions {
            resize: Some(Resize::ShorterSide(2)),
            channels: Some(channels),
            mean: Some(vec![0.0]),
            std: Some(vec![1.0]),
            ..ImageOptions::default()
        };
        let dims = match layout {
            Layout::Nchw => [None, Some(3), Some(2), Some(2)],
            Layout::Nhwc => [None, Some(2), Some(2), Some(3)],
        };
        ImageInput::new(&port(dims), &options, MAX_PIXELS).unwrap()
    }

    fn encoded(picture: &RgbImage, format: ImageFormat) -> Vec<u8> {
        let mut bytes = Cursor::new(Vec::new());
        picture.write_to(&mut bytes, format).unwrap();
        bytes.into_inner()
    }

    /// Red, green over blue, white.
    fn four_colours() -> RgbImage {
        RgbImage::from_raw(2, 2, vec![255, 0, 0, 0, 255, 0, 0, 0, 255, 255, 255, 255]).unwrap()
    }

    #[test]
    fn channels_come_in_the_models_order_and_layout() {
        let png = encoded(&four_colours(), ImageFormat::Png);
        let rgb = plain(Layout::Nchw, Channels::Rgb).decode(&png).unwrap();
        assert_eq!(rgb.shape(), [1, 3, 2, 2]);
        assert_eq!(rgb.to_f32(), [1.0, 0.0, 0.0, 1.0, 0.0, 1.0, 0.0, 1.0, 0.0, 0.0, 1.0, 1.0]);
        let bgr = plain(Layout::Nchw, Channels::Bgr).decode(&png).unwrap();
        assert_eq!(bgr.to_f32()[..4], [0.0, 0.0, 1.0, 1.0]);
        let nhwc = plain(Layout::Nhwc, Channels::Rgb).decode(&png).unwrap();
        assert_eq!(nhwc.shape(), [1, 2, 2, 3]);
        assert_eq!(nhwc.to_f32(), [1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0, 1.0, 1.0, 1.0]);
    }

    #[test]
    fn mean_and_std_are_per_channel_and_default_to_imagenet() {
        let input = ImageInput::new(&port([None, Some(3), Some(1), Some(1)]), &ImageOptions::default(), MAX_PIXELS);
        let white = encoded(&RgbImage::from_pixel(4, 4, Rgb([255, 255, 255])), ImageFormat::Png);
        let numbers = input.unwrap().decode(&white).unwrap().to_f32();
        let expected = [(1.0 - 0.485) / 0.229, (1.0 - 0.456) / 0.224, (1.0 - 0.406) / 0.225];
        for (got, expected) in numbers.iter().zip(expected) {
            assert!((got - expected).abs() < 1e-5, "{numbers:?}");
        }
    }

    #[test]
    fn every_format_gives_the_same_picture() {
        let picture = RgbImage::from_fn(64, 48, |x, y| Rgb([(x * 4) as u8, (y * 5) as u8, 128]));
        let options = ImageOptions { mean: Some(vec![0.0]), std: Some(vec![1.0]), ..ImageOptions::default() };
        let input = ImageInput::new(&port([None, Some(3), Some(32), Some(32)]), &options, MAX_PIXELS).unwrap();
        let png = input.decode(&encoded(&picture, ImageFormat::Png)).unwrap().to_f32();
        let webp = input.decode(&encoded(&picture, ImageFormat::WebP)).unwrap().to_f32();
        assert_eq!(png, webp, "both are without loss");
        let jpeg = input.decode(&encoded(&picture, ImageFormat::Jpeg)).unwrap().to_f32();
        let worst = png.iter().zip(&jpeg).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert!(worst < 0.1, "JPEG differs by {worst}");
    }

    #[test]
    fn the_smallest_and_the_longest_picture_are_taken() {
        let input = ImageInput::new(&port([None, Some(3), Some(224), Some(224)]), &ImageOptions::default(), MAX_PIXELS)
            .unwrap();
        for (width, height) in [(1, 1), (1, 100_000), (100_000, 1), (3, 7)] {
            let png = encoded(&RgbImage::from_pixel(width, height, Rgb([9, 9, 9])), ImageFormat::Png);
            assert_eq!(input.decode(&png).unwrap().shape(), [1, 3, 224, 224], "{width}x{height}");
        }
    }

    #[test]
    fn gray_alpha_and_sixteen_bits_are_taken() {
        let input =
            ImageInput::new(&port([None, Some(3), Some(8), Some(8)]), &ImageOptions::default(), MAX_PIXELS).unwrap();
        let pictures = [
            DynamicImage::new_luma8(20, 20),
            DynamicImage::new_luma_a8(20, 20),
            DynamicImage::new_rgba8(20, 20),
            DynamicImage::new_luma16(20, 20),
            DynamicImage::new_rgba16(20, 20),
        ];
        for picture in pictures {
            let mut bytes = Cursor::new(Vec::new());
            picture.write_to(&mut bytes, ImageFormat::Png).unwrap();
            assert_eq!(input.decode(&bytes.into_inner()).unwrap().shape(), [1, 3, 8, 8], "{:?}", picture.color());
        }
    }

    #[test]
    fn what_is_no_image_is_said_to_be_none() {
        let input = plain(Layout::Nchw, Channels::Rgb);
        let said = |bytes: &[u8]| input.decode(bytes).unwrap_err().to_string();
        assert_eq!(said(b""), "expected a PNG, JPEG or WebP image, got 0 bytes");
        assert_eq!(said(b"hello"), "expected a PNG, JPEG or WebP image, got 5 bytes that begin with hello");
        assert_eq!(said(b"GIF89a......"), "expected a PNG, JPEG or WebP image, got image/gif");
    }

    #[test]
    fn a_truncated_file_is_refused_in_every_format() {
        let picture = RgbImage::from_fn(200, 200, |x, y| Rgb([(x * y) as u8, (x ^ y) as u8, y as u8]));
        let input = plain(Layout::Nchw, Channels::Rgb);
        for format in [ImageFormat::Png, ImageFormat::Jpeg, ImageFormat::WebP] {
            let whole = encoded(&picture, format);
            assert!(input.decode(&whole).is_ok(), "{format:?}");
            for share in [2, 10, 50, 90, 99] {
                let cut = &whole[..whole.len() * share / 100];
                assert!(input.decode(cut).is_err(), "{format:?} cut to {share} %");
            }
        }
    }

    #[test]
    fn the_part_that_is_seen_is_rounded_as_in_training() {
        let options = ImageOptions::default();
        let input = ImageInput::new(&port([None, Some(3), Some(224), Some(224)]), &options, MAX_PIXELS).unwrap();
        // 1201x333 becomes 923x256, and the crop begins at column 350 (349.5, to even) and row 16.
        let (left, top, width, height) = input.seen_part(1201, 333);
        let scale = 1201.0 / 923.0;
        assert!((left - 350.0 * scale).abs() < 1e-9 && (width - 224.0 * scale).abs() < 1e-9, "{left} {width}");
        assert!((top - 16.0 * 333.0 / 256.0).abs() < 1e-9 && (height - 224.0 * 333.0 / 256.0).abs() < 1e-9);
        for (width, height) in [(1, 1), (1, 100_000), (3, 2), (257, 256), (224, 224)] {
            let (left, top, seen_width, seen_height) = input.seen_part(width, height);
            assert!(left >= 0.0 && left + seen_width <= f64::from(width) && seen_width > 0.0, "{width}x{height}");
            assert!(top >= 0.0 && top + seen_height <= f64::from(height) && seen_height > 0.0, "{width}x{height}");
        }
    }

    #[test]
    fn a_bomb_is_refused_by_its_header() {
        let input = plain(Layout::Nchw, Channels::Rgb);
        let mut bomb = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR".to_vec();
        bomb.extend(20_000_u32.to_be_bytes());
        bomb.extend(20_000_u32.to_be_bytes());
        bomb.extend([8, 2, 0, 0, 0]);
        bomb.extend(png_crc(&bomb[12..29]));
        bomb.extend(b"\0\0\0\0IDAT");
        bomb.extend(png_crc(b"IDAT"));
        let error = input.decode(&bomb).unwrap_err();
        assert_eq!(error.to_string(), "image is 20000x20000, 400000000 pixels; expected at most 1000000");
    }

    /// CRC-32 as PNG has it.
    fn png_crc(bytes: &[u8]) -> [u8; 4] {
        let crc = bytes.iter().fold(!0_u32, |crc, byte| {
            (0..8).fold(crc ^ u32::from(*byte), |crc, _| if crc & 1 == 1 { (crc >> 1) ^ 0xEDB8_8320 } else { crc >> 1 })
        });
        (!crc).to_be_bytes()
    }

    #[test]
    fn options_that_do_not_fit_the_model_are_named() {
        let said = |options: ImageOptions, dims| ImageInput::new(&port(dims), &options, 1).unwrap_err().to_string();
        let fixed = [None, Some(3), Some(224), Some(224)];
        let crop = ImageOptions { crop: Some(240), ..ImageOptions::default() };
        assert_eq!(said(crop, fixed), "options.image.crop: expected the model's 224x224, got 240");
        let small = ImageOptions { resize: Some(Resize::ShorterSide(100)), ..ImageOptions::default() };
        assert_eq!(said(small, fixed), "options.image.resize: expected at least the crop, 224x224, got 100");
        let gray = ImageOptions { channels: Some(Channels::Gray), ..ImageOptions::default() };
        assert!(said(gray, fixed).starts_with("options.image.channels"));
        let open = said(ImageOptions::default(), [None, Some(3), None, None]);
        assert!(open.starts_with("options.image.crop: expected a side"), "{open}");
        let none = said(ImageOptions::default(), [None, Some(7), Some(5), Some(9)]);
        assert!(none.contains("`pixels` FP32 [?, 7, 5, 9]"), "{none}");
    }
}
