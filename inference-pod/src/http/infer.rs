//! Tensors in, tensors out: the JSON form of the Open Inference Protocol's infer request.

use std::fmt;

use axum::body::Bytes;
use serde::{
    Deserialize, Serialize, Serializer,
    de::{DeserializeSeed, Deserializer, SeqAccess, Visitor},
};
use serde_json::{Map, Value, value::RawValue};

use super::error::ApiError;
use crate::{
    model::Model,
    session::Port,
    tensor::{ElementType, Tensor},
};

#[derive(Deserialize)]
struct Request<'a> {
    #[serde(default)]
    id: Option<String>,
    #[serde(borrow)]
    inputs: Vec<RequestInput<'a>>,
    #[serde(default)]
    outputs: Vec<RequestOutput>,
}

#[derive(Deserialize)]
struct RequestInput<'a> {
    name: String,
    shape: Vec<i64>,
    datatype: String,
    #[serde(default)]
    parameters: Map<String, Value>,
    #[serde(borrow, default)]
    data: Option<&'a RawValue>,
}

#[derive(Deserialize)]
struct RequestOutput {
    name: String,
    #[serde(default)]
    parameters: Map<String, Value>,
}

/// A request of tensors that fits its model by name.
#[derive(Debug)]
pub struct InferRequest {
    /// The client's own name for the request, given back.
    id: Option<String>,
    /// One tensor for each input of the model, in the model's order.
    pub inputs: Vec<Tensor>,
    /// The outputs asked for, as positions in the model's order.
    outputs: Vec<usize>,
}

impl InferRequest {
    /// Reads the JSON form.
    ///
    /// # Errors
    /// 400 with the input, what was expected and what came.
    pub fn from_json(body: &[u8], model: &Model) -> Result<Self, ApiError> {
        let request: Request<'_> = serde_json::from_slice(body).map_err(|error| {
            ApiError::bad_input(format!(r#"expected {{"inputs": [{{"name", "shape", "datatype", "data"}}]}}; {error}"#))
        })?;
        let ports = &model.signature.inputs;
        let known = || ports.iter().map(|port| port.name.as_str()).collect::<Vec<_>>().join(", ");
        if let Some(unknown) = request.inputs.iter().find(|input| ports.iter().all(|port| port.name != input.name)) {
            let message = format!("unknown input `{}`; the model's inputs are {}", unknown.name, known());
            return Err(ApiError::bad_input(message));
        }
        let inputs = ports.iter().map(|port| input_of(port, &request.inputs)).collect::<Result<_, _>>()?;
        let outputs = outputs_of(&model.signature.outputs, &request.outputs)?;
        Ok(Self { id: request.id, inputs, outputs })
    }

    /// Writes the JSON form of the answer.
    ///
    /// # Errors
    /// 500 where the outputs cannot be written.
    pub fn answer(&self, model: &Model, outputs: &[Tensor]) -> Result<Vec<u8>, ApiError> {
        let written = |at: &usize| {
            let (port, tensor) = (&model.signature.outputs[*at], &outputs[*at]);
            AnswerOutput {
                name: &port.name,
                datatype: tensor.element().datatype(),
                shape: tensor.shape(),
                data: Numbers(tensor),
            }
        };
        let answer = Answer {
            id: self.id.as_deref(),
            model_name: &model.name,
            model_version: super::MODEL_VERSION,
            outputs: self.outputs.iter().map(written).collect(),
        };
        serde_json::to_vec(&answer).map_err(|error| ApiError::internal(format!("cannot write the answer: {error}")))
    }
}

#[derive(Serialize)]
struct Answer<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<&'a str>,
    model_name: &'a str,
    model_version: &'static str,
    outputs: Vec<AnswerOutput<'a>>,
}

#[derive(Serialize)]
struct AnswerOutput<'a> {
    name: &'a str,
    datatype: &'static str,
    shape: &'a [usize],
    data: Numbers<'a>,
}

fn input_of(port: &Port, inputs: &[RequestInput<'_>]) -> Result<Tensor, ApiError> {
    let name = &port.name;
    let wrong = |message: String| ApiError::bad_input(format!("input `{name}`: {message}"));
    let mut named = inputs.iter().filter(|input| input.name == *name);
    let input = named.next().ok_or_else(|| wrong("required, but missing".to_owned()))?;
    if named.next().is_some() {
        return Err(wrong("comes twice".to_owned()));
    }
    if input.parameters.contains_key("binary_data_size") {
        return Err(wrong("binary data is not built yet; send `data`".to_owned()));
    }
    if input.datatype != port.element.datatype() {
        return Err(wrong(format!("expected datatype {}, got {}", port.element.datatype(), input.datatype)));
    }
    let shape = input.shape.iter().map(|size| usize::try_from(*size)).collect::<Result<Vec<_>, _>>();
    let shape = shape.map_err(|_| wrong(format!("expected sizes of 0 or more in shape, got {:?}", input.shape)))?;
    let data = input.data.ok_or_else(|| wrong("expected `data`, got none".to_owned()))?;
    let bytes = flat(port.element, data).map_err(|error| wrong(format!("data: {error}")))?;
    Tensor::new(port.element, shape, bytes).map_err(|error| wrong(error.to_string()))
}

fn outputs_of(ports: &[Port], wanted: &[RequestOutput]) -> Result<Vec<usize>, ApiError> {
    if wanted.is_empty() {
        return Ok((0..ports.len()).collect());
    }
    let position = |output: &RequestOutput| {
        if output.parameters.get("binary_data") == Some(&Value::Bool(true)) {
            let message = format!("output `{}`: binary data is not built yet; ask for JSON", output.name);
            return Err(ApiError::bad_input(message));
        }
        ports.iter().position(|port| port.name == output.name).ok_or_else(|| {
            let known = ports.iter().map(|port| port.name.as_str()).collect::<Vec<_>>().join(", ");
            ApiError::bad_input(format!("unknown output `{}`; the model's outputs are {known}", output.name))
        })
    };
    // Each output at most once: a name that comes a thousand times would make the answer a thousand times as long.
    if wanted.len() > ports.len() {
        let message = format!("outputs: expected at most {}, each once, got {}", ports.len(), wanted.len());
        return Err(ApiError::bad_input(message));
    }
    wanted.iter().map(position).collect()
}

/// Numbers of a flat or nested list as row-major bytes.
fn flat(element: ElementType, data: &RawValue) -> Result<Bytes, serde_json::Error> {
    let mut bytes = Vec::new();
    let mut reader = serde_json::Deserializer::from_str(data.get());
    Flat { element, bytes: &mut bytes }.deserialize(&mut reader)?;
    Ok(Bytes::from(bytes))
}

/// Appends a number, or every number of a list, to the bytes.
struct Flat<'a> {
    element: ElementType,
    bytes: &'a mut Vec<u8>,
}

impl<'de> DeserializeSeed<'de> for Flat<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl Flat<'_> {
    fn integer<E: serde::de::Error>(&mut self, number: i128) -> Result<(), E> {
        fn put<T: TryFrom<i128>, const N: usize>(
            bytes: &mut Vec<u8>,
            number: i128,
            write: impl Fn(T) -> [u8; N],
        ) -> Option<()> {
            bytes.extend_from_slice(&write(T::try_from(number).ok()?));
            Some(())
        }
        let bytes = &mut *self.bytes;
        let fits = match self.element {
            ElementType::U8 => put(bytes, number, u8::to_le_bytes),
            ElementType::U16 => put(bytes, number, u16::to_le_bytes),
            ElementType::U32 => put(bytes, number, u32::to_le_bytes),
            ElementType::U64 => put(bytes, number, u64::to_le_bytes),
            ElementType::I8 => put(bytes, number, i8::to_le_bytes),
            ElementType::I16 => put(bytes, number, i16::to_le_bytes),
            ElementType::I32 => put(bytes, number, i32::to_le_bytes),
            ElementType::I64 => put(bytes, number, i64::to_le_bytes),
            ElementType::Bool if number == 0 || number == 1 => put(bytes, number, u8::to_le_bytes),
            ElementType::Bool => None,
            ElementType::F16 | ElementType::BF16 | ElementType::F32 | ElementType::F64 => {
                return self.real(number as f64);
            }
        };
        fits.ok_or_else(|| E::custom(format!("expected {}, got {number}", self.element.datatype())))
    }

    fn real<E: serde::de::Error>(&mut self, number: f64) -> Result<(), E> {
        match self.element {
            ElementType::F16 => self.bytes.extend_from_slice(&half::f16::from_f64(number).to_le_bytes()),
            ElementType::BF16 => self.bytes.extend_from_slice(&half::bf16::from_f64(number).to_le_bytes()),
            ElementType::F32 => self.bytes.extend_from_slice(&(number as f32).to_le_bytes()),
            ElementType::F64 => self.bytes.extend_from_slice(&number.to_le_bytes()),
            _ => return Err(E::custom(format!("expected {}, got {number}", self.element.datatype()))),
        }
        Ok(())
    }
}

impl<'de> Visitor<'de> for Flat<'_> {
    type Value = ();

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "a number of {} or a list of them", self.element.datatype())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<(), A::Error> {
        let Self { element, bytes } = self;
        while items.next_element_seed(Flat { element, bytes: &mut *bytes })?.is_some() {}
        Ok(())
    }

    fn visit_bool<E: serde::de::Error>(self, value: bool) -> Result<(), E> {
        if self.element != ElementType::Bool {
            return Err(E::custom(format!("expected {}, got {value}", self.element.datatype())));
        }
        self.bytes.push(u8::from(value));
        Ok(())
    }

    fn visit_i64<E: serde::de::Error>(mut self, number: i64) -> Result<(), E> {
        self.integer(i128::from(number))
    }

    fn visit_u64<E: serde::de::Error>(mut self, number: u64) -> Result<(), E> {
        self.integer(i128::from(number))
    }

    fn visit_f64<E: serde::de::Error>(mut self, number: f64) -> Result<(), E> {
        self.real(number)
    }
}

/// The elements of a tensor as JSON numbers, written one after another.
struct Numbers<'a>(&'a Tensor);

impl Serialize for Numbers<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        fn write<const N: usize, T: Serialize, S: Serializer>(
            data: &[u8],
            serializer: S,
            convert: impl Fn([u8; N]) -> T,
        ) -> Result<S::Ok, S::Error> {
            serializer.collect_seq(data.as_chunks::<N>().0.iter().map(|chunk| convert(*chunk)))
        }
        let data = &self.0.data().contiguous();
        match self.0.element() {
            ElementType::Bool => write(data, serializer, |[byte]| byte != 0),
            ElementType::U8 => write(data, serializer, |[byte]| byte),
            ElementType::I8 => write(data, serializer, i8::from_le_bytes),
            ElementType::U16 => write(data, serializer, u16::from_le_bytes),
            ElementType::I16 => write(data, serializer, i16::from_le_bytes),
            ElementType::U32 => write(data, serializer, u32::from_le_bytes),
            ElementType::I32 => write(data, serializer, i32::from_le_bytes),
            ElementType::U64 => write(data, serializer, u64::from_le_bytes),
            ElementType::I64 => write(data, serializer, i64::from_le_bytes),
            ElementType::F16 => write(data, serializer, |chunk| half::f16::from_le_bytes(chunk).to_f32()),
            ElementType::BF16 => write(data, serializer, |chunk| half::bf16::from_le_bytes(chunk).to_f32()),
            ElementType::F32 => write(data, serializer, f32::from_le_bytes),
            ElementType::F64 => write(data, serializer, f64::from_le_bytes),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn read(element: ElementType, text: &str) -> Result<Vec<u8>, String> {
        let raw: Box<RawValue> = serde_json::from_str(text).unwrap();
        flat(element, &raw).map(|bytes| bytes.to_vec()).map_err(|error| error.to_string())
    }

    #[test]
    fn nested_and_flat_lists_give_the_same_bytes() {
        let flat = read(ElementType::F32, "[1, 2.5, -3, 4e1]").unwrap();
        assert_eq!(flat, [1.0_f32, 2.5, -3.0, 40.0].iter().flat_map(|n| n.to_le_bytes()).collect::<Vec<_>>());
        assert_eq!(read(ElementType::F32, "[[1, 2.5], [-3, 4e1]]").unwrap(), flat);
    }

    #[test]
    fn numbers_that_do_not_fit_their_type_are_refused() {
        assert_eq!(read(ElementType::U8, "[255]").unwrap(), [255]);
        assert!(read(ElementType::U8, "[256]").unwrap_err().starts_with("expected UINT8, got 256"));
        assert!(read(ElementType::I64, "[1.5]").unwrap_err().starts_with("expected INT64, got 1.5"));
        assert!(read(ElementType::U64, "[-1]").unwrap_err().starts_with("expected UINT64, got -1"));
        assert_eq!(read(ElementType::U64, "[18446744073709551615]").unwrap(), [255; 8]);
        assert!(read(ElementType::F32, "[true]").unwrap_err().starts_with("expected FP32, got true"));
        assert!(read(ElementType::F32, "[\"1\"]").unwrap_err().contains("a number of FP32 or a list of them"));
        assert_eq!(read(ElementType::Bool, "[true, false, 1, 0]").unwrap(), [1, 0, 1, 0]);
        assert!(read(ElementType::Bool, "[2]").is_err());
    }

    #[test]
    fn every_type_is_written_as_it_is_read() {
        for element in ElementType::ALL {
            let bytes = read(element, "[0, 1, 1]").unwrap();
            let tensor = Tensor::new(element, vec![3], Bytes::from(bytes)).unwrap();
            let expected = match element {
                ElementType::Bool => json!([false, true, true]),
                ElementType::F16 | ElementType::BF16 | ElementType::F32 | ElementType::F64 => json!([0.0, 1.0, 1.0]),
                _ => json!([0, 1, 1]),
            };
            assert_eq!(json!(Numbers(&tensor)), expected, "{element:?}");
        }
    }
}
