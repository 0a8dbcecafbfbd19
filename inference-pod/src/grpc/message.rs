//! Messages as they travel: five bytes before each, frames that end anywhere, and what is looked at of a request before it is decoded.

use std::{
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use axum::{
    body::{Body, Bytes},
    http::{HeaderMap, HeaderValue, header},
    response::Response,
};
use bytes::BytesMut;
use http_body_util::{BodyExt as _, Full};
use hyper::body::{Frame, SizeHint};
use prost::Message;

use super::fields::{Field, Fields, Value};
use crate::{
    http::{body::Pieces, error::ApiError},
    infer::check_dimensions,
    model::PredictError,
    tensor::Chunks,
    worker::Reservation,
};

/// Compressed or not, and the length.
const PREFIX: usize = 5;

/// The name of the model is the first field of a request, and all known clients write fields in their order.
const NAME_WITHIN: usize = 4 << 10;

/// More fields than any model has inputs and outputs; each costs memory beyond its bytes.
const MOST_FIELDS: usize = 4096;

const MODEL_NAME: u64 = 1;
const INPUTS: u64 = 5;
const OUTPUTS: u64 = 6;
const RAW_INPUT_CONTENTS: u64 = 7;

/// Fields of an input.
const SHAPE: u64 = 3;
const CONTENTS: u64 = 5;

/// How long the client waits, where it says so: at most eight digits and a unit.
///
/// # Errors
/// 400 where it cannot be read.
pub fn timeout_of(headers: &HeaderMap) -> Result<Option<Duration>, ApiError> {
    let Some(value) = headers.get("grpc-timeout") else { return Ok(None) };
    let text = value.to_str().unwrap_or_default();
    let wrong =
        || ApiError::bad_input(format!("grpc-timeout: expected digits and one of H, M, S, m, u, n, got {text:?}"));
    let (digits, unit) = text.split_at_checked(text.len().saturating_sub(1)).ok_or_else(wrong)?;
    // Digits alone: a number of Rust's may have a sign.
    let is_count = digits.len() <= 8 && digits.bytes().all(|byte| byte.is_ascii_digit());
    let count: u64 = digits.parse().ok().filter(|_| is_count).ok_or_else(wrong)?;
    Ok(Some(match unit {
        "H" => Duration::from_secs(count * 3600),
        "M" => Duration::from_secs(count * 60),
        "S" => Duration::from_secs(count),
        "m" => Duration::from_millis(count),
        "u" => Duration::from_micros(count),
        "n" => Duration::from_nanos(count),
        _ => return Err(wrong()),
    }))
}

/// The only message of a call, while it comes.
pub struct Incoming {
    body: Body,
    /// What came before the model was known.
    start: Vec<Bytes>,
    limit: usize,
}

impl Incoming {
    /// Nothing is read yet.
    #[must_use]
    pub fn new(body: Body, max_body_bytes: u64) -> Self {
        let limit = usize::try_from(max_body_bytes).unwrap_or(usize::MAX).saturating_sub(PREFIX);
        Self { body, start: Vec::new(), limit }
    }

    /// Reads no more than it takes to know the model, or an eighth more where it comes in many frames.
    ///
    /// # Errors
    /// 400 where the message begins without a name, 413 where it says that it is too large.
    pub async fn model_name(&mut self) -> Result<String, ApiError> {
        let mut head = BytesMut::new();
        let (mut look_from, mut is_whole, mut announced) = (0, false, usize::MAX);
        loop {
            // Not after each frame: there may be as many as bytes.
            if head.len() >= look_from.min(announced) || is_whole {
                look_from = head.len() + head.len() / 8 + 1;
                let known = Chunks::from(vec![Bytes::copy_from_slice(&head)]);
                if let Some(length) = message_length(&known, self.limit)? {
                    announced = length.saturating_add(PREFIX);
                    let end = head.len().min(announced).max(PREFIX);
                    if let Some(name) = name_in(&known.slice(PREFIX..end)) {
                        return Ok(name);
                    }
                    // Who sends no more may wait for the answer before saying so.
                    is_whole |= head.len() >= announced;
                }
            }
            if is_whole {
                return Err(ApiError::bad_input("model_name: expected at the beginning of the message, got none"));
            }
            match self.frame().await? {
                Some(frame) => {
                    let room = PREFIX + NAME_WITHIN - head.len();
                    head.extend_from_slice(&frame[..frame.len().min(room)]);
                    is_whole = frame.len() >= room;
                    self.start.push(frame);
                }
                None => is_whole = true,
            }
        }
    }

    /// Reads the whole message, holding room for its bytes as they come.
    ///
    /// # Errors
    /// 400 where it ends early or goes on beyond its length, 413 where it is too large, 429 where there is no room.
    pub async fn whole(mut self, reservation: &mut Reservation) -> Result<Chunks, ApiError> {
        let mut pieces = Pieces::default();
        let mut came = 0_usize;
        let mut start = std::mem::take(&mut self.start).into_iter();
        loop {
            let frame = match start.next() {
                Some(frame) => frame,
                None => match self.frame().await? {
                    Some(frame) => frame,
                    None => break,
                },
            };
            reservation.hold(frame.len()).map_err(PredictError::Refused)?;
            came += frame.len();
            if came > self.limit.saturating_add(PREFIX) {
                return Err(too_large(came - PREFIX, self.limit));
            }
            pieces.push(frame);
        }
        reservation.complete().map_err(PredictError::Refused)?;
        let all = pieces.finish();
        let got = came.saturating_sub(PREFIX);
        match message_length(&all, self.limit)? {
            Some(length) if length == got => Ok(all.slice(PREFIX..came)),
            Some(length) if length < got => {
                Err(ApiError::bad_input(format!("expected one message of {length} bytes, got {got} bytes")))
            }
            _ => Err(ApiError::ended_early(format!("message ended early, after {got} bytes"))),
        }
    }

    async fn frame(&mut self) -> Result<Option<Bytes>, ApiError> {
        loop {
            match self.body.frame().await {
                None => return Ok(None),
                Some(Err(error)) => return Err(ApiError::ended_early(format!("message ended early: {error}"))),
                Some(Ok(frame)) => {
                    if let Ok(data) = frame.into_data() {
                        return Ok(Some(data));
                    }
                }
            }
        }
    }
}

fn too_large(got: usize, limit: usize) -> ApiError {
    ApiError::too_large(format!("message has {got} bytes; expected at most {limit} bytes"))
}

/// The length that the five bytes before a message say, once they are there.
fn message_length(start: &Chunks, limit: usize) -> Result<Option<usize>, ApiError> {
    if start.len() < PREFIX {
        return Ok(None);
    }
    let prefix = start.slice(0..PREFIX).contiguous();
    if prefix[0] != 0 {
        // Headers that name an encoding were refused before.
        return Err(ApiError::internal("expected a message that is not compressed, got one without grpc-encoding"));
    }
    let length = u32::from_be_bytes([prefix[1], prefix[2], prefix[3], prefix[4]]) as usize;
    if length > limit { Err(too_large(length, limit)) } else { Ok(Some(length)) }
}

/// The model's name, where it is among these bytes.
fn name_in(start: &Chunks) -> Option<String> {
    let mut fields = Fields::new(start);
    while let Some(Field { number, value }) = fields.next() {
        if let (MODEL_NAME, Value::Bytes(name)) = (number, value) {
            return String::from_utf8(name.contiguous().to_vec()).ok();
        }
    }
    None
}

/// A request without its tensors, and the tensors.
#[derive(Debug, PartialEq)]
pub struct Parted {
    /// All other fields, as a message.
    pub head: Chunks,
    /// The elements of each input, shared with the message.
    pub raw: Vec<Chunks>,
}

/// Takes the tensors out of a request, so that only what is left has to be in one piece.
///
/// # Errors
/// 400 where the message is broken.
pub fn parted(message: &Chunks) -> Result<Parted, ApiError> {
    let mut fields = Fields::new(message);
    let mut head = Pieces::default();
    let mut raw = Vec::new();
    let mut count = 0;
    while !fields.is_at_end() {
        let broken = || ApiError::bad_input("expected a ModelInferRequest, got a message that is broken");
        let Field { number, value } = fields.next().ok_or_else(broken)?;
        count += 1;
        if count > MOST_FIELDS {
            return Err(too_many_fields());
        }
        match value {
            Value::Bytes(bytes) if number == RAW_INPUT_CONTENTS => raw.push(bytes),
            value => value.write(number, &mut head),
        }
    }
    Ok(Parted { head: head.finish(), raw })
}

fn too_many_fields() -> ApiError {
    ApiError::bad_input(format!("expected at most {MOST_FIELDS} fields in the message, got more"))
}

/// Bytes that the numbers of a request take once it is decoded: up to eight times as many as they came in. All else takes
/// little more than it came in, for its fields are counted.
///
/// # Errors
/// 400 where it has more fields than allowed, at all levels together, or an input more dimensions. Numbers one by one count as fields,
/// packed ones do not.
pub fn number_bytes(head: &Bytes) -> Result<usize, ApiError> {
    let mut left = MOST_FIELDS;
    let mut bytes = 0;
    for (number, message) in parts(head, &mut left)? {
        if number == INPUTS {
            let mut dimensions = 0;
            for (number, list) in parts(&message, &mut left)? {
                bytes += match number {
                    SHAPE => {
                        let sizes = varints(&list);
                        dimensions += sizes;
                        check_dimensions(dimensions).map_err(ApiError::bad_input)?;
                        sizes * size_of::<i64>()
                    }
                    CONTENTS => parts(&list, &mut left)?.iter().map(listed_bytes).sum(),
                    _ => 0,
                };
            }
        } else if number == OUTPUTS {
            parts(&message, &mut left)?;
        }
    }
    Ok(bytes)
}

/// The fields of a message in one piece that have a length, by their numbers. Fields beyond the end of it are for the decoder
/// to refuse.
fn parts(message: &Bytes, left: &mut usize) -> Result<Vec<(u64, Bytes)>, ApiError> {
    let mut fields = Fields::new(&Chunks::from(message.clone()));
    let mut parts = Vec::new();
    while let Some(Field { number, value }) = fields.next() {
        *left = left.checked_sub(1).ok_or_else(too_many_fields)?;
        if let Value::Bytes(bytes) = value {
            parts.push((number, bytes.contiguous()));
        }
    }
    Ok(parts)
}

/// Bytes of a packed list of `InferTensorContents` as numbers.
fn listed_bytes((number, list): &(u64, Bytes)) -> usize {
    match number {
        2 | 4 => varints(list) * size_of::<i32>(),
        3 | 5 => varints(list) * size_of::<i64>(),
        // Their bytes are as many as they came in: BOOL, FP32 and FP64.
        _ => list.len(),
    }
}

/// How many numbers of variable length there are: each ends with a byte below 0x80.
fn varints(list: &Bytes) -> usize {
    list.iter().filter(|byte| **byte < 0x80).count()
}

/// The answer to a call that went well: one message, then the status.
///
/// # Errors
/// 500 where the message is longer than gRPC can say.
pub fn answer(message: &impl Message) -> Result<Response, ApiError> {
    let length = message.encoded_len();
    let prefix = u32::try_from(length).map_err(|_| ApiError::internal("the answer is longer than 4 GiB"))?;
    let mut bytes = Vec::with_capacity(PREFIX + length);
    bytes.push(0);
    bytes.extend_from_slice(&prefix.to_be_bytes());
    message.encode(&mut bytes).map_err(|error| ApiError::internal(format!("cannot write the answer: {error}")))?;
    let trailers = HeaderMap::from_iter([(tonic::Status::GRPC_STATUS, HeaderValue::from_static("0"))]);
    let body = Full::new(Bytes::from(bytes)).with_trailers(std::future::ready(Some(Ok(trailers))));
    let mut response = Response::new(Body::new(Unannounced(body)));
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    Ok(response)
}

/// A body whose length is not announced: answers of gRPC have no content-length, and proxies that find one end the answer there, before
/// the trailers with its status.
pub struct Unannounced<B>(pub B);

impl<B: hyper::body::Body + Unpin> hyper::body::Body for Unannounced<B> {
    type Data = B::Data;
    type Error = B::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Self::Data>, Self::Error>>> {
        Pin::new(&mut self.0).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.0.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        let mut hint = SizeHint::new();
        hint.set_lower(self.0.size_hint().lower());
        hint
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use super::*;
    use crate::grpc::protocol::{InferTensorContents, ModelInferRequest, model_infer_request::InferInputTensor};

    fn request() -> ModelInferRequest {
        let input = |name: &str| InferInputTensor {
            name: name.to_owned(),
            datatype: "FP32".to_owned(),
            shape: vec![2, 300],
            ..Default::default()
        };
        ModelInferRequest {
            model_name: "tiny".to_owned(),
            id: "seven".to_owned(),
            inputs: vec![input("a"), input("b")],
            raw_input_contents: vec![Bytes::from(vec![1; 2400]), Bytes::from(vec![2; 2400])],
            ..Default::default()
        }
    }

    fn pieces_of(bytes: &Bytes, size: usize) -> Vec<Bytes> {
        (0..bytes.len()).step_by(size).map(|at| bytes.slice(at..bytes.len().min(at + size))).collect()
    }

    #[test]
    fn a_message_cut_anywhere_gives_the_same_parts() {
        let mut request = request();
        let numbers = (0_u16..9000).map(f32::from).collect();
        request.inputs[0].contents = Some(InferTensorContents { fp32_contents: numbers, ..Default::default() });
        let bytes = Bytes::from(request.encode_to_vec());
        for size in [1, 2, 3, 7, 100, 2399, 2400, 2401, 5000, 10_000, 100_000] {
            let parts = parted(&Chunks::from(pieces_of(&bytes, size))).unwrap();
            let head = ModelInferRequest { raw_input_contents: Vec::new(), ..request.clone() };
            assert_eq!(ModelInferRequest::decode(parts.head.contiguous()).unwrap(), head, "{size}");
            let raw: Vec<Bytes> = parts.raw.iter().map(Chunks::contiguous).collect();
            assert_eq!(raw, request.raw_input_contents, "{size}");
        }
    }

    #[test]
    fn tensors_are_slices_of_the_message() {
        let bytes = Bytes::from(request().encode_to_vec());
        let raw = parted(&Chunks::from(bytes.clone())).unwrap().raw;
        assert_eq!(raw[1].pieces()[0].as_ptr(), bytes[bytes.len() - 2400..].as_ptr());
    }

    #[test]
    fn what_is_no_message_is_refused() {
        let bytes = Bytes::from(request().encode_to_vec());
        for broken in [bytes.slice(..bytes.len() - 1), Bytes::from_static(&[0xFF; 20]), Bytes::from_static(&[0x0B])] {
            assert!(parted(&Chunks::from(broken)).is_err());
        }
        let many = Bytes::from([8, 0].repeat(MOST_FIELDS + 1));
        assert!(format!("{:?}", parted(&Chunks::from(many)).unwrap_err()).contains("at most 4096 fields"));
    }

    #[test]
    fn numbers_take_what_their_type_takes_whatever_they_came_in() {
        let bytes_of = |contents: InferTensorContents| {
            let mut request = request();
            request.raw_input_contents.clear();
            request.inputs[1].contents = Some(contents);
            number_bytes(&Bytes::from(request.encode_to_vec())).unwrap()
        };
        let shapes = bytes_of(InferTensorContents::default());
        assert_eq!(shapes, 2 * 2 * 8);
        let c = InferTensorContents::default;
        for (contents, bytes) in [
            (InferTensorContents { bool_contents: vec![true; 100], ..c() }, 100),
            (InferTensorContents { int_contents: vec![-1; 100], ..c() }, 400),
            (InferTensorContents { int64_contents: vec![1; 100], ..c() }, 800),
            (InferTensorContents { uint_contents: vec![300; 100], ..c() }, 400),
            (InferTensorContents { uint64_contents: vec![u64::MAX; 100], ..c() }, 800),
            (InferTensorContents { fp32_contents: vec![0.5; 100], ..c() }, 400),
            (InferTensorContents { fp64_contents: vec![0.5; 100], ..c() }, 800),
        ] {
            assert_eq!(bytes_of(contents.clone()) - shapes, bytes, "{contents:?}");
        }
    }

    #[test]
    fn fields_are_counted_at_every_level() {
        let input = |change: fn(&mut InferInputTensor)| {
            let mut request = request();
            change(&mut request.inputs[0]);
            number_bytes(&Bytes::from(request.encode_to_vec()))
        };
        let texts = |input: &mut InferInputTensor| {
            let bytes_contents = vec![Bytes::new(); MOST_FIELDS];
            input.contents = Some(InferTensorContents { bytes_contents, ..Default::default() });
        };
        let parameters = |input: &mut InferInputTensor| {
            input.parameters = (0..MOST_FIELDS).map(|number| (number.to_string(), Default::default())).collect();
        };
        let outputs = Bytes::from([&[0x32, 0x80, 0x80, 0x01][..], &[0x12, 0].repeat(8192)].concat());
        for refused in [input(texts), input(parameters), number_bytes(&outputs)] {
            assert!(format!("{:?}", refused.unwrap_err()).contains("at most 4096 fields"));
        }
        let numbers = |input: &mut InferInputTensor| {
            let fp32_contents = vec![1.0; 2 * MOST_FIELDS];
            input.contents = Some(InferTensorContents { fp32_contents, ..Default::default() });
        };
        assert!(input(numbers).is_ok(), "a packed list is one field");
        assert!(input(|input| input.shape = vec![1; 64]).is_ok());
        let deep = input(|input| input.shape = vec![1; 65]).unwrap_err();
        assert!(format!("{deep:?}").contains("shape: expected at most 64 sizes, got 65"), "{deep:?}");
    }

    fn framed(message: &[u8]) -> Bytes {
        let length = u32::try_from(message.len()).unwrap();
        Bytes::from([&[0], &length.to_be_bytes()[..], message].concat())
    }

    fn incoming(bytes: &Bytes, size: usize, limit: u64) -> Incoming {
        let mut frames = VecDeque::from(pieces_of(bytes, size));
        let stream = body_of(move || frames.pop_front());
        Incoming::new(stream, limit)
    }

    /// A body of frames.
    fn body_of(next: impl FnMut() -> Option<Bytes> + Send + Unpin + 'static) -> Body {
        struct Frames<F>(F);
        impl<F: FnMut() -> Option<Bytes> + Unpin> hyper::body::Body for Frames<F> {
            type Data = Bytes;
            type Error = std::convert::Infallible;
            fn poll_frame(
                mut self: Pin<&mut Self>,
                _: &mut Context<'_>,
            ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
                Poll::Ready((self.0)().map(|data| Ok(Frame::data(data))))
            }
        }
        Body::new(Frames(next))
    }

    #[tokio::test]
    async fn the_model_is_known_before_the_message_is_read() {
        let bytes = framed(&request().encode_to_vec());
        for size in [1, 4, 5, 6, 11, 4000] {
            let mut message = incoming(&bytes, size, 10_000);
            assert_eq!(message.model_name().await.unwrap(), "tiny");
            let read: usize = message.start.iter().map(Bytes::len).sum();
            assert!(read < 12 + size, "{read} bytes were read in frames of {size}");
        }
    }

    #[tokio::test]
    async fn a_message_that_is_there_is_not_waited_for() {
        let nameless = ModelInferRequest { model_name: String::new(), ..request() };
        for bytes in [framed(&[]), framed(&nameless.encode_to_vec()[..80])] {
            for size in [1, 7, 100] {
                // The client leaves its side open.
                let mut frames = VecDeque::from(pieces_of(&bytes, size));
                let body = body_of(move || Some(frames.pop_front().expect("nothing more to be asked for")));
                let error = Incoming::new(body, 10_000).model_name().await.unwrap_err();
                assert!(format!("{error:?}").contains("model_name: expected at the beginning"), "{error:?}");
            }
        }
    }

    #[tokio::test]
    async fn a_message_without_a_name_or_too_large_is_refused_by_its_beginning() {
        let said =
            async |bytes: Bytes, limit| format!("{:?}", incoming(&bytes, 100, limit).model_name().await.unwrap_err());
        let nameless = ModelInferRequest { model_name: String::new(), ..request() };
        assert!(
            said(framed(&nameless.encode_to_vec()), 10_000).await.contains("model_name: expected at the beginning")
        );
        let large = said(framed(&request().encode_to_vec()), 4005).await;
        assert!(large.contains("bytes; expected at most 4000 bytes"), "{large}");
        assert!(said(Bytes::from_static(&[1, 0, 0, 0, 1, 0]), 4005).await.contains("not compressed"));
        assert!(said(Bytes::new(), 4005).await.contains("model_name"));
        // A first field of 5,000 bytes, one by one.
        let long = framed(&[&[0x4a, 0x88, 0x27][..], &[0; 5000]].concat());
        let error = incoming(&long, 1, 10_000).model_name().await.unwrap_err();
        assert!(format!("{error:?}").contains("model_name: expected at the beginning"), "{error:?}");
    }

    #[test]
    fn the_time_a_client_waits_is_read_in_every_unit() {
        let read = |text: &str| {
            let headers =
                HeaderMap::from_iter([("grpc-timeout".parse().unwrap(), HeaderValue::from_str(text).unwrap())]);
            timeout_of(&headers)
        };
        for (text, time) in
            [("2H", 7200.0), ("3M", 180.0), ("4S", 4.0), ("150m", 0.15), ("7u", 7e-6), ("99999999n", 0.099_999_999)]
        {
            assert_eq!(read(text).unwrap(), Some(Duration::from_secs_f64(time)), "{text}");
        }
        assert_eq!(timeout_of(&HeaderMap::new()).unwrap(), None);
        for text in ["", "m", "5", "5x", "123456789m", "-5m", "+5S", "5µ"] {
            assert!(read(text).is_err(), "{text}");
        }
    }
}
