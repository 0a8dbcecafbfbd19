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
    /// A form with files; its boundary.
    Multipart(String),
}

/// Content types that hold an image's bytes. Which format it is, the bytes themselves tell.
const IMAGE_TYPES: [&str; 5] = ["image/png", "image/jpeg", "image/jpg", "image/webp", "application/octet-stream"];

const EXPECTED: &str = "expected content type application/json, multipart/form-data, image/png, image/jpeg, image/webp or \
                        application/octet-stream";

/// Content types of a request of tensors. Clients often say none, or what their library says unless told otherwise; the
/// body is JSON all the same.
const TENSOR_TYPES: [&str; 4] =
    ["application/json", "application/octet-stream", "application/x-www-form-urlencoded", "text/plain"];

/// Judges a request by its headers alone, before the body is read.
///
/// # Errors
/// 413 where the announced length is over the limit, 415 where the content type is none that is read here.
pub fn kind_of(headers: &HeaderMap, max_body_bytes: u64) -> Result<BodyKind, ApiError> {
    check_length(headers, max_body_bytes)?;
    check_encoding(headers)?;
    let Some(value) = headers.get(header::CONTENT_TYPE) else {
        return Err(ApiError::unsupported_type(format!("{EXPECTED}, got none")));
    };
    let text = value.to_str().unwrap_or_default();
    let essence = text.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    match essence.as_str() {
        "application/json" => Ok(BodyKind::Json),
        "multipart/form-data" => multer::parse_boundary(text)
            .map(BodyKind::Multipart)
            .map_err(|_| ApiError::bad_input("content type multipart/form-data has no boundary")),
        known if IMAGE_TYPES.contains(&known) => Ok(BodyKind::Image),
        _ => Err(ApiError::unsupported_type(format!("{EXPECTED}, got {}", text.chars().take(100).collect::<String>()))),
    }
}

/// Judges a request of tensors by its headers alone.
///
/// # Errors
/// 413 where the announced length is over the limit, 415 where the content type is none that is taken for JSON.
pub fn expect_json(headers: &HeaderMap, max_body_bytes: u64) -> Result<(), ApiError> {
    check_length(headers, max_body_bytes)?;
    check_encoding(headers)?;
    let Some(value) = headers.get(header::CONTENT_TYPE) else { return Ok(()) };
    let text = value.to_str().unwrap_or_default();
    let essence = text.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    if TENSOR_TYPES.contains(&essence.as_str()) {
        return Ok(());
    }
    let got: String = text.chars().take(100).collect();
    Err(ApiError::unsupported_type(format!("expected content type {} or none, got {got}", TENSOR_TYPES.join(", "))))
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
    let lines = headers.get_all(header::CONTENT_ENCODING).into_iter().map(HeaderValue::as_bytes);
    let mut codings = lines.flat_map(|line| line.split(|byte| *byte == b',')).map(<[u8]>::trim_ascii);
    match codings.find(|coding| !coding.is_empty() && !coding.eq_ignore_ascii_case(b"identity")) {
        None => Ok(()),
        Some(other) => {
            let got = String::from_utf8_lossy(other);
            Err(ApiError::compressed(format!("expected a body that is not compressed, got encoding {got}")))
        }
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
}
