//! `ModelInfer`: tensors in, tensors out.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use axum::{
    body::{Body, Bytes},
    extract::State,
    http::{HeaderMap, Request},
    response::Response,
};
use prost::Message as _;
use tonic::Status;

use super::{
    message::{self, Incoming, Parted},
    model_name,
    protocol::{
        InferParameter, InferTensorContents, ModelInferRequest, ModelInferResponse,
        infer_parameter::ParameterChoice,
        model_infer_request::{InferInputTensor, InferRequestedOutputTensor},
        model_infer_response::InferOutputTensor,
    },
};
use crate::{
    http::{
        App, MODEL_VERSION,
        error::ApiError,
        predict::{Admitted, MOST_COPIED_BYTES, SMALL_BYTES, admit_to_decoders, find, measured, timed},
    },
    infer::{
        NamedInput, check_dimensions, check_id, in_model_order, outputs_named, refuse_sequence, refuse_unsupported,
    },
    model::{Model, PredictError},
    tensor::{Chunks, ElementType, Tensor},
    worker::Reservation,
};

/// A client that does not even say which model it wants, or what else, is waited for no longer.
pub const NAME_TIMEOUT: Duration = Duration::from_secs(30);

/// Answers the call.
pub async fn model_infer(State(app): State<Arc<App>>, request: Request<Body>) -> Response {
    let (parts, body) = request.into_parts();
    infer(&app, &parts.headers, body).await.unwrap_or_else(|error| Status::from(error).into_http())
}

async fn infer(app: &App, headers: &HeaderMap, body: Body) -> Result<Response, ApiError> {
    let began = Instant::now();
    let patience = message::timeout_of(headers)?;
    let mut message = Incoming::new(body, app.server.max_body_bytes);
    let wait = patience.unwrap_or(NAME_TIMEOUT).min(NAME_TIMEOUT);
    let name = tokio::time::timeout(wait, message.model_name()).await.map_err(|_| ApiError::deadline(wait))??;
    let model = find(app, &model_name(name, String::new()))?;
    let timeout = left_of(patience, began.elapsed()).min(model.request_timeout());
    let caller = app.observer.caller(headers, "ModelInfer");
    measured(app, &model, &caller, timeout, async |admitted| predict(app, &model, message, admitted).await).await
}

/// What a client's own deadline leaves of its patience when that much is spent.
fn left_of(patience: Option<Duration>, spent: Duration) -> Duration {
    patience.map_or(Duration::MAX, |patience| patience.saturating_sub(spent))
}

async fn predict(app: &App, model: &Arc<Model>, message: Incoming, admitted: Admitted) -> Result<Response, ApiError> {
    let Admitted { mut reservation, due } = admitted;
    let message = message.whole(&mut reservation).await?;
    let began_decoding = Instant::now();
    let parted = message::parted(&message)?;
    // What no tensor shares need not stay until the answer is there.
    drop(message);
    let (InferCall { inputs, form }, reservation) = read(app, model, parted, reservation).await?;
    find(app, &model_name(model.name.clone(), form.version.clone()))?;
    let decode_time = due.progress.decoded(began_decoding);
    let predicted = model.predict(reservation, vec![inputs], &due).await?;
    let most = if form.raw { MOST_COPIED_BYTES } else { SMALL_BYTES };
    let answer = if form.bytes(&predicted.outputs) <= most {
        message::answer(&form.answer(model, &predicted.outputs))?
    } else {
        let (work, outputs) = (Arc::clone(model), predicted.outputs.clone());
        app.writers.run(move || message::answer(&form.answer(&work, &outputs))).await?
    };
    Ok(timed(answer, decode_time, &predicted))
}

/// Reads a request; a large one away from the loop, and not before there is room for what its numbers become.
async fn read(
    app: &App,
    model: &Arc<Model>,
    parted: Parted,
    mut reservation: Reservation,
) -> Result<(InferCall, Reservation), ApiError> {
    if parted.head.len() <= SMALL_BYTES {
        return Ok((InferCall::read(parted, model)?, reservation));
    }
    admit_to_decoders(app, &reservation, 1)?;
    let work = Arc::clone(model);
    let job = move || {
        let Parted { head, raw } = parted;
        let whole = head.contiguous();
        // Where it came in pieces, it is not needed twice.
        drop(head);
        reservation.hold(message::number_bytes(&whole)?).map_err(PredictError::Refused)?;
        Ok((InferCall::read(Parted { head: Chunks::from(whole), raw }, &work)?, reservation))
    };
    app.decoders.run(job).await
}

/// A request that fits its model by name.
struct InferCall {
    inputs: Vec<Tensor>,
    form: AnswerForm,
}

/// What the answer holds, and in which form.
struct AnswerForm {
    version: String,
    id: String,
    /// Positions in the model's order.
    outputs: Vec<usize>,
    /// As bytes, because the request's tensors were.
    raw: bool,
}

/// Where the elements of an input are.
enum Data {
    Raw(Chunks),
    Typed(InferTensorContents),
}

impl InferCall {
    fn read(parted: Parted, model: &Model) -> Result<Self, ApiError> {
        let Parted { head, raw } = parted;
        let request = ModelInferRequest::decode(head.contiguous())
            .map_err(|error| ApiError::bad_input(format!("expected a ModelInferRequest; {error}")))?;
        let ModelInferRequest { model_name, model_version, id, parameters, inputs, outputs, raw_input_contents: _ } =
            request;
        // Of a field that comes twice the last counts, but the first has been taken for the name by then.
        if model_name != model.name {
            let expected = &model.name;
            return Err(ApiError::bad_input(format!(
                "model_name: expected {expected} alone, got {model_name} as well"
            )));
        }
        check_id(&id).map_err(ApiError::bad_input)?;
        refuse_unsupported(parameters.keys()).map_err(ApiError::bad_input)?;
        refuse_sequence(parameters.iter().map(|(name, value)| (name.as_str(), is_set(value))))
            .map_err(ApiError::bad_input)?;
        let is_raw = !raw.is_empty();
        let named = with_data(inputs, raw).map_err(ApiError::bad_input)?;
        let inputs = in_model_order(&model.signature.inputs, named, |element, _, data| match data {
            Data::Raw(bytes) => Ok(bytes),
            Data::Typed(contents) => typed(element, &contents).map(Chunks::from),
        })?;
        let names = outputs.iter().map(wanted).collect::<Result<Vec<_>, _>>().map_err(ApiError::bad_input)?;
        let outputs = outputs_named(&model.signature.outputs, &names)?;
        Ok(Self { inputs, form: AnswerForm { version: model_version, id, outputs, raw: is_raw } })
    }
}

/// Whether a parameter says anything.
fn is_set(parameter: &InferParameter) -> bool {
    match &parameter.parameter_choice {
        None => false,
        Some(ParameterChoice::BoolParam(yes)) => *yes,
        Some(ParameterChoice::Int64Param(number)) => *number != 0,
        Some(ParameterChoice::Uint64Param(number)) => *number != 0,
        Some(ParameterChoice::DoubleParam(number)) => *number != 0.0,
        Some(ParameterChoice::StringParam(text)) => !text.is_empty(),
    }
}

fn wanted(output: &InferRequestedOutputTensor) -> Result<&str, String> {
    let wrong = |message| format!("output `{}`: {message}", output.name);
    refuse_unsupported(output.parameters.keys()).map_err(wrong).map(|()| output.name.as_str())
}

/// Gives each input its elements: its own, or the next of the raw ones.
fn with_data(inputs: Vec<InferInputTensor>, raw: Vec<Chunks>) -> Result<Vec<NamedInput<Data>>, String> {
    for input in &inputs {
        refuse_unsupported(input.parameters.keys())
            .and_then(|()| check_dimensions(input.shape.len()))
            .map_err(|message| format!("input `{}`: {message}", input.name))?;
    }
    if !raw.is_empty() && raw.len() != inputs.len() {
        let (expected, got) = (inputs.len(), raw.len());
        return Err(format!("raw_input_contents: expected {expected}, one for each input, got {got}"));
    }
    let mut raw = raw.into_iter();
    let one = |input: InferInputTensor| {
        let InferInputTensor { name, datatype, shape, parameters: _, contents } = input;
        let wrong = |message: String| format!("input `{name}`: {message}");
        let data = match (contents, raw.next()) {
            (Some(_), Some(_)) => {
                return Err(wrong("expected contents or raw_input_contents, got both".to_owned()));
            }
            (None, None) => {
                return Err(wrong("expected contents or raw_input_contents, got neither".to_owned()));
            }
            (Some(contents), None) => Data::Typed(contents),
            (None, Some(bytes)) => Data::Raw(bytes),
        };
        Ok(NamedInput { name, datatype, shape, data })
    };
    inputs.into_iter().map(one).collect()
}

/// The bytes of elements that came in the list of their type.
fn typed(element: ElementType, contents: &InferTensorContents) -> Result<Bytes, String> {
    fn bytes<T: Copy, const N: usize>(numbers: &[T], convert: impl Fn(T) -> [u8; N]) -> Result<Vec<u8>, String> {
        Ok(numbers.iter().flat_map(|number| convert(*number)).collect())
    }
    fn narrow<T: Copy + std::fmt::Display, U: TryFrom<T>, const N: usize>(
        numbers: &[T],
        element: ElementType,
        convert: impl Fn(U) -> [u8; N],
    ) -> Result<Vec<u8>, String> {
        let mut bytes = Vec::with_capacity(numbers.len() * N);
        for number in numbers {
            let fits = U::try_from(*number).map_err(|_| format!("expected {}, got {number}", element.datatype()))?;
            bytes.extend_from_slice(&convert(fits));
        }
        Ok(bytes)
    }
    let c = contents;
    let (used, bytes) = match element {
        ElementType::Bool => (c.bool_contents.len(), bytes(&c.bool_contents, |yes| [u8::from(yes)])),
        ElementType::U8 => (c.uint_contents.len(), narrow(&c.uint_contents, element, u8::to_le_bytes)),
        ElementType::U16 => (c.uint_contents.len(), narrow(&c.uint_contents, element, u16::to_le_bytes)),
        ElementType::U32 => (c.uint_contents.len(), bytes(&c.uint_contents, u32::to_le_bytes)),
        ElementType::U64 => (c.uint64_contents.len(), bytes(&c.uint64_contents, u64::to_le_bytes)),
        ElementType::I8 => (c.int_contents.len(), narrow(&c.int_contents, element, i8::to_le_bytes)),
        ElementType::I16 => (c.int_contents.len(), narrow(&c.int_contents, element, i16::to_le_bytes)),
        ElementType::I32 => (c.int_contents.len(), bytes(&c.int_contents, i32::to_le_bytes)),
        ElementType::I64 => (c.int64_contents.len(), bytes(&c.int64_contents, i64::to_le_bytes)),
        ElementType::F32 => (c.fp32_contents.len(), bytes(&c.fp32_contents, f32::to_le_bytes)),
        ElementType::F64 => (c.fp64_contents.len(), bytes(&c.fp64_contents, f64::to_le_bytes)),
        ElementType::F16 | ElementType::BF16 => {
            return Err(format!("expected raw_input_contents, for contents have no list for {}", element.datatype()));
        }
    };
    let all = c.bool_contents.len()
        + c.int_contents.len()
        + c.int64_contents.len()
        + c.uint_contents.len()
        + c.uint64_contents.len()
        + c.fp32_contents.len()
        + c.fp64_contents.len()
        + c.bytes_contents.len();
    if used != all {
        return Err(format!("contents: expected elements in the list of {} alone, got others", element.datatype()));
    }
    bytes.map(Bytes::from)
}

/// Elements in the list of their type; none where there is no such list.
fn typed_contents(tensor: &Tensor) -> Option<InferTensorContents> {
    fn numbers<const N: usize, T>(data: &[u8], convert: impl Fn([u8; N]) -> T) -> Vec<T> {
        data.as_chunks::<N>().0.iter().map(|chunk| convert(*chunk)).collect()
    }
    let data = &tensor.data().contiguous();
    let mut c = InferTensorContents::default();
    match tensor.element() {
        ElementType::Bool => c.bool_contents = numbers(data, |[byte]| byte != 0),
        ElementType::U8 => c.uint_contents = numbers(data, |[byte]| u32::from(byte)),
        ElementType::U16 => c.uint_contents = numbers(data, |chunk| u32::from(u16::from_le_bytes(chunk))),
        ElementType::U32 => c.uint_contents = numbers(data, u32::from_le_bytes),
        ElementType::U64 => c.uint64_contents = numbers(data, u64::from_le_bytes),
        ElementType::I8 => c.int_contents = numbers(data, |chunk| i32::from(i8::from_le_bytes(chunk))),
        ElementType::I16 => c.int_contents = numbers(data, |chunk| i32::from(i16::from_le_bytes(chunk))),
        ElementType::I32 => c.int_contents = numbers(data, i32::from_le_bytes),
        ElementType::I64 => c.int64_contents = numbers(data, i64::from_le_bytes),
        ElementType::F32 => c.fp32_contents = numbers(data, f32::from_le_bytes),
        ElementType::F64 => c.fp64_contents = numbers(data, f64::from_le_bytes),
        ElementType::F16 | ElementType::BF16 => return None,
    }
    Some(c)
}

impl AnswerForm {
    fn bytes(&self, outputs: &[Tensor]) -> usize {
        self.outputs.iter().map(|at| outputs[*at].data().len()).sum()
    }

    fn answer(&self, model: &Model, outputs: &[Tensor]) -> ModelInferResponse {
        let typed: Option<Vec<InferTensorContents>> =
            if self.raw { None } else { self.outputs.iter().map(|at| typed_contents(&outputs[*at])).collect() };
        let raw_output_contents = match typed {
            Some(_) => Vec::new(),
            None => self.outputs.iter().map(|at| outputs[*at].data().contiguous()).collect(),
        };
        let mut typed = typed.into_iter().flatten();
        let output = |at: &usize| InferOutputTensor {
            name: model.signature.outputs[*at].name.clone(),
            datatype: outputs[*at].element().datatype().to_owned(),
            shape: outputs[*at].shape().iter().map(|size| i64::try_from(*size).unwrap_or(i64::MAX)).collect(),
            parameters: Default::default(),
            contents: typed.next(),
        };
        ModelInferResponse {
            model_name: model.name.clone(),
            model_version: MODEL_VERSION.to_owned(),
            id: self.id.clone(),
            parameters: Default::default(),
            outputs: self.outputs.iter().map(output).collect(),
            raw_output_contents,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_type_with_a_list_comes_back_as_it_was() {
        for element in ElementType::ALL {
            let bytes: Vec<u8> = (0..element.size_bytes() * 3).map(|number| (number % 2) as u8).collect();
            let tensor = Tensor::new(element, vec![3], Bytes::from(bytes.clone())).unwrap();
            match typed_contents(&tensor) {
                Some(contents) => assert_eq!(typed(element, &contents).unwrap(), bytes, "{element:?}"),
                None => assert!(typed(element, &InferTensorContents::default()).is_err(), "{element:?}"),
            }
        }
    }

    #[test]
    fn the_wait_for_a_models_name_counts_in_its_callers_deadline() {
        let seconds = Duration::from_secs;
        assert_eq!(left_of(Some(seconds(5)), seconds(3)), seconds(2));
        assert_eq!(left_of(Some(seconds(5)), seconds(6)), Duration::ZERO);
        assert_eq!(left_of(None, seconds(3)), Duration::MAX);
    }

    #[test]
    fn numbers_in_another_list_or_too_large_are_refused() {
        let contents = InferTensorContents { uint_contents: vec![256], ..Default::default() };
        assert_eq!(typed(ElementType::U8, &contents).unwrap_err(), "expected UINT8, got 256");
        let other = "contents: expected elements in the list of FP32 alone, got others";
        assert_eq!(typed(ElementType::F32, &contents).unwrap_err(), other);
    }
}
