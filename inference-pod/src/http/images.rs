//! Images in, predictions out: the body of `POST /predict/{model}` for image classification.

use std::{borrow::Cow, collections::VecDeque};

use axum::body::Bytes;
use serde::{Deserialize, Serialize};

use super::{body::without_mark, error::ApiError};
use crate::{
    classify::{Classes, Prediction},
    decode::ImageInput,
    tensor::Tensor,
};

/// The images of a request, and whether they came as a list. A list is answered by a list, also one of one.
#[derive(Debug)]
pub struct Images {
    /// The bytes of each image file, with the field to name where it is broken.
    pub files: VecDeque<(String, Bytes)>,
    /// Whether they came as a list.
    pub listed: bool,
}

#[derive(Deserialize)]
struct JsonBody<'a> {
    #[serde(borrow, default)]
    image: Option<Text<'a>>,
    #[serde(borrow, default)]
    images: Option<Vec<Text<'a>>>,
}

/// Text that is borrowed from the body where it has no escapes.
#[derive(Deserialize)]
struct Text<'a>(#[serde(borrow)] Cow<'a, str>);

impl Images {
    /// `{"image": base64}` or `{"images": [base64, …]}`.
    ///
    /// # Errors
    /// 400 with the field, what was expected and what came.
    pub fn from_json(body: &[u8]) -> Result<Self, ApiError> {
        const EXPECTED: &str = r#"expected {"image": base64} or {"images": [base64, …]}"#;
        let body: JsonBody<'_> = serde_json::from_slice(without_mark(body))
            .map_err(|error| ApiError::bad_input(format!("{EXPECTED}; {error}")))?;
        match (body.image, body.images) {
            (Some(image), None) => {
                Ok(Self { files: [("image".to_owned(), decode_base64("image", &image.0)?)].into(), listed: false })
            }
            (None, Some(images)) if images.is_empty() => {
                Err(ApiError::bad_input("images: expected at least one image, got none"))
            }
            (None, Some(images)) => {
                let file = |(index, text): (usize, &Text<'_>)| {
                    let field = format!("images[{index}]");
                    decode_base64(&field, &text.0).map(|bytes| (field, bytes))
                };
                Ok(Self { files: images.iter().enumerate().map(file).collect::<Result<_, _>>()?, listed: true })
            }
            (Some(_), Some(_)) => Err(ApiError::bad_input(format!("{EXPECTED}, got both"))),
            (None, None) => Err(ApiError::bad_input(format!("{EXPECTED}, got neither"))),
        }
    }

    /// A body that is an image file.
    #[must_use]
    pub fn from_file(body: Bytes) -> Self {
        Self { files: [("body".to_owned(), body)].into(), listed: false }
    }

    /// The files of a form.
    #[must_use]
    pub fn from_form(files: Vec<Bytes>) -> Self {
        let listed = files.len() > 1;
        let named = files.into_iter().enumerate().map(|(index, file)| (format!("part {index}"), file));
        Self { files: named.collect(), listed }
    }
}

/// Decodes one image into a sample.
///
/// # Errors
/// 400, 413 or 415, naming the image.
pub fn decode(field: &str, file: &[u8], input: &ImageInput) -> Result<Tensor, ApiError> {
    input.decode(file).map_err(|error| ApiError::from(error).at(field))
}

/// Standard or URL-safe base64, with or without padding, line breaks and a `data:` prefix.
fn decode_base64(field: &str, text: &str) -> Result<Bytes, ApiError> {
    let data = match text.strip_prefix("data:") {
        Some(url) => url.split_once(";base64,").map_or(text, |(_, data)| data),
        None => text,
    };
    // Most senders use the standard alphabet, so no time is spent on looking first.
    base64_simd::forgiving_decode_to_vec(data.as_bytes())
        .or_else(|_| base64_simd::forgiving_decode_to_vec(&in_standard_alphabet(data)))
        .map(Bytes::from)
        .map_err(|_| {
            let start: String = text.chars().take(16).collect();
            ApiError::bad_input(format!("{field}: expected base64, got text that begins with {start:?}"))
        })
}

fn in_standard_alphabet(url_safe: &str) -> Vec<u8> {
    let standard = |byte| match byte {
        b'-' => b'+',
        b'_' => b'/',
        other => other,
    };
    url_safe.bytes().map(standard).collect()
}

/// The answer to one image.
#[derive(Debug, Serialize)]
pub struct Answer {
    /// The most likely classes.
    pub predictions: Vec<Prediction>,
    /// Queue and run together, in milliseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub inference_time_ms: Option<f64>,
}

/// The answer to a list of images, in their order.
#[derive(Debug, Serialize)]
pub struct ListAnswer {
    /// One for each image.
    pub results: Vec<Answer>,
    /// Queue and run together, in milliseconds.
    pub inference_time_ms: f64,
}

/// The predictions of each row of the scores.
pub fn answers(classes: &Classes, scores: &Tensor) -> Vec<Answer> {
    let rows = scores.shape().first().copied().unwrap_or(0);
    let answer = |row| Answer { predictions: classes.predictions(&scores.rows(row, 1)), inference_time_ms: None };
    (0..rows).map(answer).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(body: &str) -> String {
        format!("{:?}", Images::from_json(body.as_bytes()).unwrap_err())
    }

    #[test]
    fn every_common_way_to_write_base64_is_read() {
        assert!(!Images::from_json(b"\xEF\xBB\xBF{\"image\": \"aGk=\"}").unwrap().listed, "with a byte order mark");
        for text in ["_-8_", "/+8/", "/+8/\\n", "data:image/png;base64,/+8/"] {
            let images = Images::from_json(format!(r#"{{"image": "{text}"}}"#).as_bytes()).unwrap();
            assert_eq!(images.files[0].1[..], [0xFF, 0xEF, 0x3F], "{text}");
            assert!(!images.listed);
        }
        let unpadded = Images::from_json(br#"{"image": "aGk"}"#).unwrap();
        assert_eq!(unpadded.files[0].1[..], *b"hi");
    }

    #[test]
    fn a_list_of_one_is_still_a_list() {
        let images = Images::from_json(br#"{"images": ["aGk="]}"#).unwrap();
        assert!(images.listed);
        assert_eq!(images.files[0].0, "images[0]");
    }

    #[test]
    fn what_is_wrong_is_named() {
        assert!(said(r#"{"image": "not base64!"}"#).contains("image: expected base64, got text that begins with"));
        assert!(said(r#"{"images": ["aGk=", "%"]}"#).contains("images[1]: expected base64"));
        assert!(said(r#"{"images": []}"#).contains("images: expected at least one image"));
        assert!(said(r#"{"img": "aGk="}"#).contains("got neither"));
        assert!(said(r#"{"image": "aGk=", "images": []}"#).contains("got both"));
        assert!(said(r#"{"image": 7}"#).contains("invalid type: integer `7`, expected a string"));
        assert!(said("{").contains("line 1 column 1"));
    }
}
