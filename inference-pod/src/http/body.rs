//! Bodies: what kind a request has, judged by its headers, and how it is read up to the limit.

use std::time::Duration;

use axum::{
    body::{Body, Bytes},
    http::{HeaderMap, HeaderValue, header},
};
use bytes::BytesMut;
use http_body_util::{BodyExt, LengthLimitError, Limited};

use super::error::ApiError;
use crate::{
    model::PredictError,
    queue::{Bound, Refused},
    tensor::Chunks,
    worker::Reservation,
};

/// What a body holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BodyKind {
    /// A JSON object.
    Json,
    /// The bytes of an image file.
    Image,
    /// JSON or an image: its first byte tells.
    Unsaid,
    /// A form with files; its boundary.
    Multipart(String),
}

const EXPECTED: &str = "expected content type application/json, multipart/form-data, image/png, image/jpeg, image/webp or \
                        application/octet-stream";

/// What clients say who were not told what to say: nothing, or what their library says of text and of forms.
const UNTOLD_TYPES: [&str; 3] = ["", "application/x-www-form-urlencoded", "text/plain"];

/// Content types of a request of tensors, whose body is JSON even where they are [none](UNTOLD_TYPES).
const TENSOR_TYPES: [&str; 2] = ["application/json", "application/octet-stream"];

/// Judges a request by its headers alone, before the body is read.
///
/// # Errors
/// 413 where the announced length is over the limit, 415 where the content type is none that is read here.
pub fn kind_of(headers: &HeaderMap, max_body_bytes: u64) -> Result<BodyKind, ApiError> {
    check_length(headers, max_body_bytes)?;
    check_encoding(headers)?;
    let (text, essence) = content_type(headers);
    match essence.as_str() {
        "application/json" => Ok(BodyKind::Json),
        "multipart/form-data" => multer::parse_boundary(text)
            .map(BodyKind::Multipart)
            .map_err(|_| ApiError::bad_input("content type multipart/form-data has no boundary")),
        // Which format it is, the bytes themselves tell.
        "application/octet-stream" => Ok(BodyKind::Image),
        image if image.starts_with("image/") => Ok(BodyKind::Image),
        untold if UNTOLD_TYPES.contains(&untold) => Ok(BodyKind::Unsaid),
        _ => Err(ApiError::unsupported_type(format!("{EXPECTED}, got {}", text.chars().take(100).collect::<String>()))),
    }
}

/// The content type as it came, and without parameters and in small letters. Empty where there is none.
fn content_type(headers: &HeaderMap) -> (&str, String) {
    let text = headers.get(header::CONTENT_TYPE).map_or("", |value| value.to_str().unwrap_or("what is no text"));
    (text, text.split(';').next().unwrap_or_default().trim().to_ascii_lowercase())
}

/// Whether a body is a JSON object, or begins as one.
#[must_use]
pub fn is_object(body: &[u8]) -> bool {
    without_mark(body).trim_ascii_start().starts_with(b"{")
}

/// Judges a request of tensors by its headers alone.
///
/// # Errors
/// 413 where the announced length is over the limit, 415 where the content type is none that is taken for JSON.
pub fn expect_json(headers: &HeaderMap, max_body_bytes: u64) -> Result<(), ApiError> {
    check_length(headers, max_body_bytes)?;
    check_encoding(headers)?;
    let (text, essence) = content_type(headers);
    if TENSOR_TYPES.contains(&essence.as_str()) || UNTOLD_TYPES.contains(&essence.as_str()) {
        return Ok(());
    }
    let got: String = text.chars().take(100).collect();
    let expected = [&TENSOR_TYPES[..], &UNTOLD_TYPES[1..]].concat().join(", ");
    Err(ApiError::unsupported_type(format!("expected content type {expected} or none, got {got}")))
}

/// Judges by its announced length whether a body can ever have room in the queue, which has so many bytes.
///
/// # Errors
/// 413 where it cannot.
pub fn expect_room(headers: &HeaderMap, queue_bytes: u64) -> Result<(), ApiError> {
    let Some(length) = announced(headers).filter(|length| *length > queue_bytes) else { return Ok(()) };
    let [bytes, limit] = [length, queue_bytes].map(|number| usize::try_from(number).unwrap_or(usize::MAX));
    let refused = Refused { bound: Bound::Request { bytes, limit }, retry_after: Duration::ZERO };
    Err(PredictError::Refused(refused).into())
}

/// Text without the byte order mark that some editors and libraries put before UTF-8.
#[must_use]
pub fn without_mark(text: &[u8]) -> &[u8] {
    text.strip_prefix("\u{feff}".as_bytes()).unwrap_or(text)
}

fn check_encoding(headers: &HeaderMap) -> Result<(), ApiError> {
    let not_read = |name, read: &[u8]| {
        let lines = headers.get_all(name).into_iter().map(HeaderValue::as_bytes);
        let mut codings = lines.flat_map(|line| line.split(|byte| *byte == b',')).map(<[u8]>::trim_ascii);
        let other = codings.find(|coding| !coding.is_empty() && !coding.eq_ignore_ascii_case(read))?;
        Some(String::from_utf8_lossy(other).chars().take(100).collect::<String>())
    };
    if let Some(got) = not_read(header::CONTENT_ENCODING, b"identity") {
        return Err(ApiError::compressed(format!("expected a body that is not compressed, got encoding {got}")));
    }
    match not_read(header::TRANSFER_ENCODING, b"chunked") {
        Some(got) => Err(ApiError::not_implemented(format!("expected transfer encoding chunked, got {got}"))),
        None => Ok(()),
    }
}

/// Bytes of the body, where the headers say so.
fn announced(headers: &HeaderMap) -> Option<u64> {
    headers.get(header::CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse().ok())
}

/// Bytes of a body that its client sends whatever it is answered: none where it asked first whether to.
#[must_use]
pub fn on_its_way(headers: &HeaderMap) -> u64 {
    announced(headers).filter(|_| !headers.contains_key(header::EXPECT)).unwrap_or_default()
}

fn check_length(headers: &HeaderMap, max_body_bytes: u64) -> Result<(), ApiError> {
    match announced(headers) {
        Some(length) if length > max_body_bytes => Err(body_too_large(&format!("{length} bytes"), max_body_bytes)),
        _ => Ok(()),
    }
}

fn body_too_large(got: &str, max_body_bytes: u64) -> ApiError {
    ApiError::too_large(format!("body is {got}; expected at most {max_body_bytes} bytes"))
}

/// Reads a body up to the limit, holding room for its bytes as they come: what is only announced costs nothing. The
/// pieces stay as they came.
///
/// # Errors
/// 413 where it is longer, however it was announced, or longer than the queue has room; 400 where it ends early; 429 where
/// others have the room.
pub async fn read(body: Body, max_body_bytes: u64, reservation: &mut Reservation) -> Result<Chunks, ApiError> {
    let limit = usize::try_from(max_body_bytes).unwrap_or(usize::MAX);
    let mut body = Limited::new(body, limit);
    let mut pieces = Pieces::default();
    while let Some(frame) = body.frame().await {
        let frame = match frame {
            Ok(frame) => frame,
            Err(error) if error.is::<LengthLimitError>() => {
                return Err(body_too_large("longer than allowed", max_body_bytes));
            }
            Err(error) => return Err(ApiError::ended_early(format!("body ended early: {error}"))),
        };
        if let Ok(data) = frame.into_data() {
            reservation.hold(data.len()).map_err(PredictError::Refused)?;
            pieces.push(data);
        }
    }
    reservation.complete().map_err(PredictError::Refused)?;
    Ok(pieces.finish())
}

/// The pieces of a body as they come. Small ones are laid together: one by one they would cost more memory than they
/// hold, and each keeps the buffer that it was read into.
#[derive(Debug, Default)]
pub struct Pieces {
    whole: Vec<Bytes>,
    small: BytesMut,
}

impl Pieces {
    /// Puts a few bytes behind the others.
    pub fn lay(&mut self, few: &[u8]) {
        self.small.extend_from_slice(few);
    }

    /// Puts a piece behind the others.
    pub fn push(&mut self, piece: Bytes) {
        const SMALL: usize = 4 << 10;
        if piece.len() < SMALL {
            self.lay(&piece);
        } else {
            self.end_small();
            self.whole.push(piece);
        }
    }

    /// All that came.
    #[must_use]
    pub fn finish(mut self) -> Chunks {
        self.end_small();
        Chunks::from(self.whole)
    }

    fn end_small(&mut self) {
        if !self.small.is_empty() {
            self.whole.push(self.small.split().freeze());
        }
    }
}

/// The files of a form, of which there may be `most`. It takes as long as there are parts, so it is no work for the loop.
///
/// # Errors
/// 400 where the form is broken or holds no file, 413 where it has more parts than allowed; those behind are not looked at.
pub async fn files(body: Bytes, boundary: String, most: usize) -> Result<Vec<Bytes>, ApiError> {
    /// More than any form has beside its files.
    const MOST_OTHERS: usize = 1024;
    let broken = |error: multer::Error| ApiError::bad_input(format!("multipart form is broken: {error}"));
    let mut form = multer::Multipart::new(Body::from(body).into_data_stream(), boundary);
    let mut files = Vec::new();
    let mut others = Vec::new();
    while let Some(part) = form.next_field().await.map_err(broken)? {
        let name = part.name().unwrap_or_default().to_owned();
        if part.file_name().is_some() || matches!(name.as_str(), "image" | "images" | "images[]" | "file") {
            files.push(part.bytes().await.map_err(broken)?);
            if files.len() > most {
                return Err(ApiError::too_large(format!("form has more than {most} files, the most of a request")));
            }
        } else {
            if others.len() == MOST_OTHERS {
                return Err(ApiError::too_large(format!("form has more than {MOST_OTHERS} parts that are no files")));
            }
            others.push(name);
        }
    }
    if files.is_empty() {
        let got = if others.is_empty() { "no part".to_owned() } else { format!("parts {}", others.join(", ")) };
        return Err(ApiError::bad_input(format!("expected a part `image` with the bytes of an image, got {got}")));
    }
    Ok(files)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn encodings_are_read_from_every_line_and_whatever_their_case() {
        let refused = |lines: &[&'static str]| {
            let line = |text: &&'static str| (header::CONTENT_ENCODING, HeaderValue::from_static(text));
            expect_json(&lines.iter().map(line).collect(), 1).err().map(|error| error.message())
        };
        for lines in [&[][..], &["identity"], &["Identity"], &[" identity, IDENTITY"], &["identity", ""]] {
            assert_eq!(refused(lines), None, "{lines:?}");
        }
        for lines in [&["gzip"][..], &["identity, gzip"], &["identity", "gzip"]] {
            let expected = "expected a body that is not compressed, got encoding gzip";
            assert_eq!(refused(lines).as_deref(), Some(expected), "{lines:?}");
        }
    }

    #[test]
    fn a_body_that_was_compressed_on_its_way_is_not_taken_for_what_it_holds() {
        let judged = |text: &'static str| {
            let header = (header::TRANSFER_ENCODING, HeaderValue::from_static(text));
            expect_json(&HeaderMap::from_iter([header]), 1).map_err(|error| (error.status().as_u16(), error.message()))
        };
        assert_eq!(judged("Chunked"), Ok(()));
        let message = "expected transfer encoding chunked, got gzip".to_owned();
        assert_eq!(judged("gzip, chunked"), Err((501, message)));
    }

    #[test]
    fn who_does_not_say_what_a_body_is_sends_json_or_an_image() {
        let kind = |text: Option<&'static str>| {
            let header = text.map(|text| (header::CONTENT_TYPE, HeaderValue::from_static(text)));
            kind_of(&header.into_iter().collect(), 1).map_err(|error| error.status().as_u16())
        };
        for untold in [None, Some(""), Some("text/plain;charset=UTF-8"), Some("application/x-www-form-urlencoded")] {
            assert_eq!(kind(untold), Ok(BodyKind::Unsaid), "{untold:?}");
        }
        assert_eq!(kind(Some("image/*")), Ok(BodyKind::Image));
        assert_eq!(kind(Some("text/html")), Err(415));
        assert!(is_object("\u{feff} \n{}".as_bytes()));
        assert!(!is_object(b"\x89PNG"));
    }
}
