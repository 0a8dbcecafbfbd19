//! Tensors in, tensors out: the Open Inference Protocol's infer request as JSON, and with tensors as bytes behind the JSON.

use std::{fmt, marker::PhantomData, ops::Range};

use axum::{
    body::Bytes,
    http::{HeaderMap, HeaderName, HeaderValue, header},
    response::{IntoResponse, Response},
};
use serde::{
    Deserialize, Deserializer,
    de::{Error as _, SeqAccess, Visitor},
};
use serde_json::value::RawValue;

use super::{body::without_mark, error::ApiError, numbers, object::Object};
use crate::{
    infer::{
        MOST_DIMENSIONS, NamedInput, check_bytes, check_id, in_model_order, outputs_named, refuse_sequence,
        refuse_unsupported,
    },
    model::{Model, PredictError},
    probe::Batching,
    session::Port,
    tensor::{Chunks, ElementType, Tensor, elements},
    worker::Reservation,
};

/// Bytes of the JSON before the tensors; 0 where there is none and the body is the one input's tensor.
const JSON_LENGTH: HeaderName = HeaderName::from_static("inference-header-content-length");

/// A body, told apart by its headers. Nothing is copied yet.
#[derive(Debug, Clone, PartialEq)]
pub enum Framed {
    /// All of it is JSON.
    Json(Chunks),
    /// JSON, then the tensors that it announces.
    Binary {
        /// The JSON.
        json: Chunks,
        /// The tensors, one behind the other.
        tensors: Chunks,
    },
    /// The tensor of a model's only input.
    Raw(Chunks),
}

impl Framed {
    /// Tells the parts of a body apart. Tensors are shared, not copied.
    ///
    /// # Errors
    /// 400 where the header is no number, or says more than there is.
    pub fn new(headers: &HeaderMap, body: &Chunks) -> Result<Self, ApiError> {
        let wrong = |message: String| ApiError::bad_input(format!("{JSON_LENGTH}: {message}"));
        let mut values = headers.get_all(JSON_LENGTH).iter();
        let Some(value) = values.next() else { return Ok(Self::Json(body.clone())) };
        // Where a proxy counts another one than we do, what it has looked at is not what is run.
        if values.next().is_some() {
            return Err(wrong("expected one such header, got more".to_owned()));
        }
        let text = String::from_utf8_lossy(value.as_bytes());
        // Digits alone: a number of Rust's may have a sign.
        let digits = Some(text.trim()).filter(|text| text.bytes().all(|byte| byte.is_ascii_digit()));
        let length: usize = digits
            .and_then(|digits| digits.parse().ok())
            .ok_or_else(|| wrong(format!("expected a number of bytes, got {text:?}")))?;
        let size = body.len();
        if length > size {
            return Err(wrong(format!("expected at most the {size} bytes of the body, got {length}")));
        }
        Ok(match length {
            0 => Self::Raw(body.clone()),
            _ => Self::Binary { json: body.slice(0..length), tensors: body.slice(length..size) },
        })
    }

    /// Bytes of JSON that are to be read.
    #[must_use]
    pub fn json_bytes(&self) -> usize {
        match self {
            Self::Json(json) | Self::Binary { json, .. } => json.len(),
            Self::Raw(_) => 0,
        }
    }
}

/// More than any model has inputs and outputs.
const MOST_TENSORS: usize = 4096;

#[derive(Deserialize)]
struct Request<'a> {
    #[serde(default)]
    id: Option<String>,
    #[serde(borrow, default, deserialize_with = "null_as_absent")]
    parameters: Parameters<'a>,
    #[serde(borrow)]
    inputs: Few<Object<RequestInput<'a>>, MOST_TENSORS>,
    #[serde(borrow, default)]
    outputs: Option<Few<Object<RequestOutput<'a>>, MOST_TENSORS>>,
}

/// The parameters that are heeded, of requests, inputs and outputs alike; no others cost memory.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Parameters<'a> {
    #[serde(borrow)]
    binary_data: Option<&'a RawValue>,
    #[serde(borrow)]
    binary_data_output: Option<&'a RawValue>,
    #[serde(borrow)]
    binary_data_size: Option<&'a RawValue>,
    #[serde(borrow)]
    classification: Option<&'a RawValue>,
    #[serde(borrow)]
    sequence_end: Option<&'a RawValue>,
    #[serde(borrow)]
    sequence_id: Option<&'a RawValue>,
    #[serde(borrow)]
    sequence_start: Option<&'a RawValue>,
    #[serde(borrow)]
    shared_memory_region: Option<&'a RawValue>,
}

impl Parameters<'_> {
    /// Refuses what asks for another way to send or get a tensor.
    fn refuse_unsupported(&self) -> Result<(), String> {
        let known = [("shared_memory_region", self.shared_memory_region), ("classification", self.classification)];
        refuse_unsupported(known.into_iter().filter_map(|(name, value)| value.map(|_| name)))
    }

    /// Refuses what makes the request one of several that belong together.
    fn refuse_sequence(&self) -> Result<(), String> {
        let known = [
            ("sequence_id", self.sequence_id),
            ("sequence_start", self.sequence_start),
            ("sequence_end", self.sequence_end),
        ];
        refuse_sequence(known.into_iter().map(|(name, value)| (name, value.is_some_and(is_set))))
    }
}

/// A list of no more than `MOST`: each item costs memory beyond its bytes.
struct Few<T, const MOST: usize>(Vec<T>);

impl<'de, T: Deserialize<'de>, const MOST: usize> Deserialize<'de> for Few<T, MOST> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_seq(FewItems(PhantomData))
    }
}

impl<T, const MOST: usize> Few<Object<T>, MOST> {
    fn objects(self) -> Vec<T> {
        self.0.into_iter().map(|Object(item)| item).collect()
    }
}

struct FewItems<T, const MOST: usize>(PhantomData<T>);

impl<'de, T: Deserialize<'de>, const MOST: usize> Visitor<'de> for FewItems<T, MOST> {
    type Value = Few<T, MOST>;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "a list of at most {MOST}")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Self::Value, A::Error> {
        let mut few = Vec::new();
        while let Some(item) = items.next_element()? {
            if few.len() == MOST {
                return Err(A::Error::custom(format!("expected a list of at most {MOST}, got more")));
            }
            few.push(item);
        }
        Ok(Few(few))
    }
}

/// Many libraries write `null` for what nobody set.
fn null_as_absent<'de, T: Default + Deserialize<'de>, D: Deserializer<'de>>(deserializer: D) -> Result<T, D::Error> {
    Ok(Option::<Object<T>>::deserialize(deserializer)?.map(|Object(set)| set).unwrap_or_default())
}

#[derive(Deserialize)]
struct RequestInput<'a> {
    name: String,
    shape: Few<i64, MOST_DIMENSIONS>,
    datatype: String,
    #[serde(borrow, default, deserialize_with = "null_as_absent")]
    parameters: Parameters<'a>,
    #[serde(borrow, default)]
    data: Option<&'a RawValue>,
}

#[derive(Deserialize)]
struct RequestOutput<'a> {
    name: String,
    #[serde(borrow, default, deserialize_with = "null_as_absent")]
    parameters: Parameters<'a>,
}

/// Where the elements of an input are.
enum Data<'a> {
    Numbers(&'a RawValue),
    /// Among the tensors behind the JSON.
    Bytes(Range<usize>),
}

/// A request of tensors that fits its model by name.
#[derive(Debug)]
pub struct InferRequest {
    /// One tensor for each input of the model, in the model's order.
    pub inputs: Vec<Tensor>,
    /// How it is to be answered.
    pub form: AnswerForm,
}

/// What the answer to a request holds, and in which form.
#[derive(Debug)]
pub struct AnswerForm {
    /// The client's own name for the request, given back.
    id: Option<String>,
    outputs: Vec<WantedOutput>,
}

#[derive(Debug)]
struct WantedOutput {
    /// Its position in the model's order.
    at: usize,
    binary: bool,
}

impl InferRequest {
    /// Reads a body, holding room first for the tensors that numbers become; where there is no reservation, for they are
    /// few, none is held.
    ///
    /// # Errors
    /// 400 with the input, what was expected and what came; 413 or 429 where there is no room.
    pub fn read(body: Framed, model: &Model, reservation: Option<&mut Reservation>) -> Result<Self, ApiError> {
        let (json, tensors) = match body {
            Framed::Json(json) => (json, None),
            Framed::Binary { json, tensors } => (json, Some(tensors)),
            Framed::Raw(tensor) => return Self::from_raw(tensor, model),
        };
        let text = json.contiguous();
        // Where it came in pieces, it is not needed twice.
        drop(json);
        Self::from_json(&text, tensors, model, reservation)
    }

    fn from_json(
        json: &[u8],
        tensors: Option<Chunks>,
        model: &Model,
        reservation: Option<&mut Reservation>,
    ) -> Result<Self, ApiError> {
        let json = without_mark(json);
        let quoted;
        let parsed = match serde_json::from_slice(json) {
            Err(error) if error.is_syntax() => {
                quoted = numbers::quoted(json);
                quoted.as_ref().map_or(Err(error), |json| serde_json::from_slice(json))
            }
            parsed => parsed,
        };
        let Object::<Request<'_>>(request) = parsed.map_err(|error| {
            ApiError::bad_input(format!(r#"expected {{"inputs": [{{"name", "shape", "datatype", "data"}}]}}; {error}"#))
        })?;
        request.id.as_deref().map_or(Ok(()), check_id).map_err(ApiError::bad_input)?;
        request.parameters.refuse_sequence().map_err(ApiError::bad_input)?;
        let wanted = request.outputs.map(Few::objects).unwrap_or_default();
        let form = AnswerForm::of(request.id, &request.parameters, &wanted, &model.signature.outputs)?;
        let available = tensors.as_ref().map(Chunks::len);
        let tensors = tensors.unwrap_or_else(|| Chunks::from(Bytes::new()));
        let named = with_data(request.inputs.objects(), available).map_err(ApiError::bad_input)?;
        if let Some(reservation) = reservation {
            reservation.hold(named.iter().map(number_bytes).sum()).map_err(PredictError::Refused)?;
        }
        let inputs = in_model_order(&model.signature.inputs, named, |element, shape, data| match data {
            Data::Bytes(range) => Ok(tensors.slice(range)),
            Data::Numbers(numbers) => {
                numbers::read(element, shape, numbers).map(Chunks::from).map_err(|error| format!("data: {error}"))
            }
        })?;
        Ok(Self { inputs, form })
    }

    fn from_raw(tensor: Chunks, model: &Model) -> Result<Self, ApiError> {
        let [port] = model.signature.inputs.as_slice() else {
            let count = model.signature.inputs.len();
            let message = format!("{JSON_LENGTH}: expected more than 0, for the model has {count} inputs");
            return Err(ApiError::bad_input(message));
        };
        let batches = matches!(model.batching, Batching::On(_));
        let wrong = |message: String| ApiError::bad_input(format!("input `{}`: {message}", port.name));
        let shape = raw_shape(port, batches, tensor.len()).map_err(wrong)?;
        check_bytes(port.element, &tensor).map_err(wrong)?;
        let tensor = Tensor::new(port.element, shape, tensor).map_err(|error| wrong(error.to_string()))?;
        let all = (0..model.signature.outputs.len()).map(|at| WantedOutput { at, binary: true });
        Ok(Self { inputs: vec![tensor], form: AnswerForm { id: None, outputs: all.collect() } })
    }
}

/// Shape of a tensor that came without one: a single sample, and at most one size that its length tells.
fn raw_shape(port: &Port, batches: bool, bytes: usize) -> Result<Vec<usize>, String> {
    let mut dims = port.dims.clone();
    if let Some(first) = dims.first_mut().filter(|_| batches) {
        *first = Some(1);
    }
    let open = dims.iter().filter(|size| size.is_none()).count();
    if open > 1 {
        return Err(format!("expected JSON with its shape, for {open} of its sizes are open"));
    }
    let known: Vec<usize> = dims.iter().copied().flatten().collect();
    let step = elements(&known).saturating_mul(port.element.size_bytes()).max(1);
    if open == 1 && (bytes == 0 || !bytes.is_multiple_of(step)) {
        return Err(format!("expected a multiple of {step} bytes, got {bytes}"));
    }
    Ok(dims.into_iter().map(|size| size.unwrap_or(bytes / step)).collect())
}

/// Gives each input its elements: those in the JSON, or the next of the bytes behind it, where there are any.
fn with_data(inputs: Vec<RequestInput<'_>>, available: Option<usize>) -> Result<Vec<NamedInput<Data<'_>>>, String> {
    let mut behind = Behind { available, announced: 0 };
    let mut named = Vec::with_capacity(inputs.len());
    for input in inputs {
        let RequestInput { name, shape, datatype, parameters, data } = input;
        let data = parameters.refuse_unsupported().and_then(|()| match (data, parameters.binary_data_size) {
            (Some(numbers), None) => Ok(Data::Numbers(numbers)),
            (None, Some(size)) => behind.next(size).map(Data::Bytes),
            (Some(_), Some(_)) => Err("expected `data` or `binary_data_size`, got both".to_owned()),
            (None, None) => Err("expected `data` or `binary_data_size`, got neither".to_owned()),
        });
        let data = data.map_err(|message| format!("input `{name}`: {message}"))?;
        named.push(NamedInput { name, datatype, shape: shape.0, data });
    }
    behind.end().map(|()| named)
}

/// Most bytes that an input's numbers become.
fn number_bytes(input: &NamedInput<Data<'_>>) -> usize {
    let (Data::Numbers(numbers), Some(element)) = (&input.data, ElementType::from_datatype(&input.datatype)) else {
        return 0;
    };
    // A size below 0 is refused before a number is read.
    let size = |size: &i64| usize::try_from(*size).unwrap_or(0);
    let count = input.shape.iter().map(size).fold(1, usize::saturating_mul);
    numbers::most_bytes(element, count, numbers)
}

/// The bytes behind the JSON, as the inputs announce them one after another.
struct Behind {
    /// None where nothing says that there are any.
    available: Option<usize>,
    announced: usize,
}

impl Behind {
    fn next(&mut self, size: &RawValue) -> Result<Range<usize>, String> {
        let Some(available) = self.available else {
            return Err(format!("binary_data_size: expected the header {JSON_LENGTH} too, got none"));
        };
        let bytes: Result<usize, _> = size.get().parse();
        let bytes = bytes.map_err(|_| format!("binary_data_size: expected a number of bytes, got {size}"))?;
        let left = available - self.announced;
        if bytes > left {
            return Err(format!("binary_data_size: expected at most the {left} bytes left, got {bytes}"));
        }
        let begin = self.announced;
        self.announced += bytes;
        Ok(begin..self.announced)
    }

    fn end(&self) -> Result<(), String> {
        let (available, announced) = (self.available.unwrap_or(0), self.announced);
        if announced == available {
            return Ok(());
        }
        Err(format!(
            "binary_data_size: expected {available} bytes in all inputs together, as follow the JSON, got {announced}"
        ))
    }
}

/// Whether a parameter says anything: nothing, zero, no and an empty text are what libraries send for what nobody set.
fn is_set(value: &RawValue) -> bool {
    let text = value.get();
    !matches!(text, "null" | "false" | "\"\"") && text.parse() != Ok(0.0)
}

/// A parameter that says yes or no.
fn switch(name: &str, value: Option<&RawValue>) -> Result<Option<bool>, String> {
    match value.map(RawValue::get) {
        None => Ok(None),
        Some("true") => Ok(Some(true)),
        Some("false") => Ok(Some(false)),
        Some(other) => Err(format!("{name}: expected true or false, got {other}")),
    }
}

impl AnswerForm {
    fn of(
        id: Option<String>,
        parameters: &Parameters<'_>,
        wanted: &[RequestOutput<'_>],
        ports: &[Port],
    ) -> Result<Self, ApiError> {
        let otherwise = switch("binary_data_output", parameters.binary_data_output);
        let otherwise = otherwise.map_err(ApiError::bad_input)?.unwrap_or(false);
        let names: Vec<&str> = wanted.iter().map(|output| output.name.as_str()).collect();
        let outputs = outputs_named(ports, &names)?.into_iter().enumerate().map(|(index, at)| {
            let Some(output) = wanted.get(index) else { return Ok(WantedOutput { at, binary: otherwise }) };
            let wrong = |message: String| ApiError::bad_input(format!("output `{}`: {message}", output.name));
            output.parameters.refuse_unsupported().map_err(wrong)?;
            let binary = switch("binary_data", output.parameters.binary_data).map_err(wrong)?.unwrap_or(otherwise);
            Ok(WantedOutput { at, binary })
        });
        Ok(Self { id: id.filter(|id| !id.is_empty()), outputs: outputs.collect::<Result<_, ApiError>>()? })
    }

    /// Bytes of all outputs that are asked for.
    #[must_use]
    pub fn bytes(&self, outputs: &[Tensor]) -> usize {
        self.outputs.iter().map(|wanted| outputs[wanted.at].data().len()).sum()
    }

    /// Bytes of the outputs that are to be written as JSON.
    #[must_use]
    pub fn json_bytes(&self, outputs: &[Tensor]) -> usize {
        self.outputs.iter().filter(|wanted| !wanted.binary).map(|wanted| outputs[wanted.at].data().len()).sum()
    }

    /// Writes the answer.
    ///
    /// # Errors
    /// 500 where the outputs cannot be written.
    pub fn write(&self, model: &Model, outputs: &[Tensor]) -> Result<Answer, ApiError> {
        let mut body =
            Vec::with_capacity(256 + self.outputs.iter().map(|wanted| written_bytes(wanted, outputs)).sum::<usize>());
        self.write_json(model, outputs, &mut body)
            .map_err(|error| ApiError::internal(format!("cannot write the answer: {error}")))?;
        let json_length = body.len();
        let binary = self.outputs.iter().filter(|wanted| wanted.binary);
        for piece in binary.clone().flat_map(|wanted| outputs[wanted.at].data().pieces()) {
            body.extend_from_slice(piece);
        }
        Ok(Answer { body, json_length: (binary.count() > 0).then_some(json_length) })
    }

    /// By hand around the numbers, for these are many.
    fn write_json(&self, model: &Model, outputs: &[Tensor], json: &mut Vec<u8>) -> serde_json::Result<()> {
        json.push(b'{');
        if let Some(id) = &self.id {
            json.extend_from_slice(b"\"id\":");
            serde_json::to_writer(&mut *json, id)?;
            json.push(b',');
        }
        json.extend_from_slice(b"\"model_name\":");
        serde_json::to_writer(&mut *json, &model.name)?;
        json.extend_from_slice(b",\"model_version\":");
        serde_json::to_writer(&mut *json, super::MODEL_VERSION)?;
        json.extend_from_slice(b",\"outputs\":[");
        for (index, wanted) in self.outputs.iter().enumerate() {
            let (port, tensor) = (&model.signature.outputs[wanted.at], &outputs[wanted.at]);
            json.extend_from_slice(if index == 0 { b"{\"name\":" } else { b",{\"name\":" });
            serde_json::to_writer(&mut *json, &port.name)?;
            json.extend_from_slice(b",\"datatype\":");
            serde_json::to_writer(&mut *json, tensor.element().datatype())?;
            json.extend_from_slice(b",\"shape\":");
            serde_json::to_writer(&mut *json, tensor.shape())?;
            if wanted.binary {
                json.extend_from_slice(b",\"parameters\":{\"binary_data_size\":");
                serde_json::to_writer(&mut *json, &tensor.data().len())?;
                json.push(b'}');
            } else {
                json.extend_from_slice(b",\"data\":");
                numbers::write(tensor, json);
            }
            json.push(b'}');
        }
        json.extend_from_slice(b"]}");
        Ok(())
    }
}

/// About the room that an output takes: a number of JSON is about three times as long as its bytes.
fn written_bytes(wanted: &WantedOutput, outputs: &[Tensor]) -> usize {
    let bytes = outputs[wanted.at].data().len();
    if wanted.binary { bytes } else { bytes.saturating_mul(3) }
}

/// A written answer: one piece, so that it leaves in one packet with its headers where it is small.
#[derive(Debug)]
pub struct Answer {
    body: Vec<u8>,
    /// Where tensors follow the JSON: its length.
    json_length: Option<usize>,
}

impl IntoResponse for Answer {
    fn into_response(self) -> Response {
        match self.json_length {
            None => ([(header::CONTENT_TYPE, "application/json")], self.body).into_response(),
            Some(length) => {
                let content_type = HeaderValue::from_static("application/octet-stream");
                let headers = [(header::CONTENT_TYPE, content_type), (JSON_LENGTH, HeaderValue::from(length))];
                (headers, self.body).into_response()
            }
        }
    }
}
