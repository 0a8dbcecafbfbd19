//! Images in, predictions out: the body of `POST /predict/{model}` for image classification.

use std::{borrow::Cow, collections::VecDeque, fmt};

use axum::body::Bytes;
use serde::{
    Deserialize, Deserializer as _, Serialize,
    de::{IgnoredAny, SeqAccess, Visitor},
};
use serde_json::value::RawValue;

use super::{body::without_mark, error::ApiError, object::Object};
use crate::{
    classify::{Classes, Prediction},
    decode::ImageInput,
    model::PredictError,
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
    /// Read when it is known how many there may be: each costs memory beyond its bytes.
    #[serde(borrow, default)]
    images: Option<&'a RawValue>,
}

/// Text that is borrowed from the body where it has no escapes.
#[derive(Deserialize)]
struct Text<'a>(#[serde(borrow)] Cow<'a, str>);

const EXPECTED: &str = r#"expected {"image": base64} or {"images": [base64, …]}"#;

/// Reads the texts of a list, no more of them than there may be, and counts all.
struct Listed {
    most: usize,
}

impl<'de> Visitor<'de> for Listed {
    type Value = (Vec<Text<'de>>, usize);

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("a list of base64")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Self::Value, A::Error> {
        let mut texts = Vec::new();
        while texts.len() < self.most
            && let Some(text) = items.next_element()?
        {
            texts.push(text);
        }
        let mut count = texts.len();
        while items.next_element::<IgnoredAny>()?.is_some() {
            count += 1;
        }
        Ok((texts, count))
    }
}

impl Images {
    /// `{"image": base64}` or `{"images": [base64, …]}`, of which there may be `most`.
    ///
    /// # Errors
    /// 400 with the field, what was expected and what came; 413 where there are more, before any is decoded.
    pub fn from_json(body: &[u8], most: usize) -> Result<Self, ApiError> {
        let Object::<JsonBody<'_>>(body) = serde_json::from_slice(without_mark(body))
            .map_err(|error| ApiError::bad_input(format!("{EXPECTED}; {error}")))?;
        match (body.image, body.images) {
            (Some(image), None) => {
                Ok(Self { files: [("image".to_owned(), decode_base64("image", &image.0)?)].into(), listed: false })
            }
            (None, Some(images)) => Self::from_list(images, most),
            (Some(_), Some(_)) => Err(ApiError::bad_input(format!("{EXPECTED}, got both"))),
            (None, None) => Err(ApiError::bad_input(format!("{EXPECTED}, got neither"))),
        }
    }

    fn from_list(images: &RawValue, most: usize) -> Result<Self, ApiError> {
        let (texts, samples) = serde_json::Deserializer::from_str(images.get())
            .deserialize_seq(Listed { most })
            .map_err(|error| ApiError::bad_input(format!("{EXPECTED}; images: {error}")))?;
        if samples == 0 {
            return Err(ApiError::bad_input("images: expected at least one image, got none"));
        }
        if samples > most {
            return Err(PredictError::TooManySamples { samples, limit: most }.into());
        }
        let file = |(index, text): (usize, &Text<'_>)| {
            let field = format!("images[{index}]");
            decode_base64(&field, &text.0).map(|bytes| (field, bytes))
        };
        Ok(Self { files: texts.iter().enumerate().map(file).collect::<Result<_, _>>()?, listed: true })
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
    let data = data_of_url(text.trim_start()).unwrap_or(text);
    // Most senders use the standard alphabet, so no time is spent on looking first.
    base64_simd::forgiving_decode_to_vec(data.as_bytes())
        .or_else(|_| base64_simd::forgiving_decode_to_vec(&in_standard_alphabet(data)))
        .map(Bytes::from)
        .map_err(|_| {
            let start: String = text.chars().take(16).collect();
            ApiError::bad_input(format!("{field}: expected base64, got text that begins with {start:?}"))
        })
}

/// What a URL holds (RFC 2397): `data:image/png;base64,…`; `None` where the text is none, or its data no base64.
fn data_of_url(text: &str) -> Option<&str> {
    const SCHEME: &str = "data:";
    const CODING: &str = ";base64";
    if !text.get(..SCHEME.len())?.eq_ignore_ascii_case(SCHEME) {
        return None;
    }
    let (kind, data) = text.split_once(',')?;
    let coding = kind.get(kind.len().checked_sub(CODING.len())?..)?;
    coding.eq_ignore_ascii_case(CODING).then_some(data)
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
///
/// # Errors
/// 500 where the model's scores are no numbers.
pub fn answers(classes: &Classes, scores: &Tensor) -> Result<Vec<Answer>, ApiError> {
    let rows = scores.shape().first().copied().unwrap_or(0);
    let answer = |row| {
        let predictions = classes.predictions(&scores.rows(row, 1));
        let no_numbers = || ApiError::internal("expected finite scores of the model, got NaN or infinite ones");
        Ok(Answer { predictions: predictions.ok_or_else(no_numbers)?, inference_time_ms: None })
    };
    (0..rows).map(answer).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(body: &str) -> String {
        format!("{:?}", Images::from_json(body.as_bytes(), 2).unwrap_err())
    }

    #[test]
    fn every_common_way_to_write_base64_is_read() {
        assert!(!Images::from_json(b"\xEF\xBB\xBF{\"image\": \"aGk=\"}", 1).unwrap().listed, "with a byte order mark");
        for text in ["_-8_", "/+8/", "/+8/\\n", "data:image/png;base64,/+8/", " DATA:image/png;x=1;BASE64,/+8/"] {
            let images = Images::from_json(format!(r#"{{"image": "{text}"}}"#).as_bytes(), 1).unwrap();
            assert_eq!(images.files[0].1[..], [0xFF, 0xEF, 0x3F], "{text}");
            assert!(!images.listed);
        }
        let unpadded = Images::from_json(br#"{"image": "aGk"}"#, 1).unwrap();
        assert_eq!(unpadded.files[0].1[..], *b"hi");
    }

    #[test]
    fn a_list_of_one_is_still_a_list() {
        let images = Images::from_json(br#"{"images": ["aGk="]}"#, 1).unwrap();
        assert!(images.listed);
        assert_eq!(images.files[0].0, "images[0]");
    }

    #[test]
    fn more_images_than_there_may_be_are_counted_and_not_decoded() {
        let body = r#"{"images": ["no base64!", "%", 7, ["%"]]}"#;
        assert!(said(body).contains("request has 4 samples; expected at most 2"), "{}", said(body));
    }

    #[test]
    fn what_is_wrong_is_named() {
        assert!(said(r#"{"image": "not base64!"}"#).contains("image: expected base64, got text that begins with"));
        assert!(said(r#"{"images": ["aGk=", "%"]}"#).contains("images[1]: expected base64"));
        assert!(said(r#"{"images": []}"#).contains("images: expected at least one image"));
        assert!(said(r#"{"img": "aGk="}"#).contains("got neither"));
        assert!(said(r#"{"image": "aGk=", "images": []}"#).contains("got both"));
        assert!(said(r#"{"images": ["aGk=", 7]}"#).contains("images: invalid type: integer `7`, expected a string"));
        assert!(said(r#"{"images": "aGk="}"#).contains("expected a list of base64"));
        assert!(said(r#"{"image": 7}"#).contains("invalid type: integer `7`, expected a string"));
        assert!(said("{").contains("line 1 column 1"));
    }
}
