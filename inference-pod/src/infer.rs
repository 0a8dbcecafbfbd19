//! A request of tensors: its inputs brought into the model's order, whatever format they came in.
//!
//! A format (JSON, JSON with binary tensors, gRPC) reads names, types and shapes, and says how the bytes of a tensor are
//! got out of what it has; everything else is the same for all of them, and is here.

use bytes::Bytes;

use crate::{
    model::InvalidInput,
    session::Port,
    tensor::{Chunks, ElementType, Tensor},
};

/// More than any tensor has dimensions.
pub const MOST_DIMENSIONS: usize = 64;

/// Whether an input may have so many dimensions.
///
/// # Errors
/// What was expected, and how many there are.
pub fn check_dimensions(got: usize) -> Result<(), String> {
    if got > MOST_DIMENSIONS {
        return Err(format!("shape: expected at most {MOST_DIMENSIONS} sizes, got {got}"));
    }
    Ok(())
}

/// A client's own name for its request is given back as it came, and is no place for data.
const LONGEST_ID_BYTES: usize = 64 << 10;

/// Whether a client may name its request so.
///
/// # Errors
/// What was expected, and how long it is.
pub fn check_id(id: &str) -> Result<(), String> {
    if id.len() > LONGEST_ID_BYTES {
        return Err(format!("id: expected at most {LONGEST_ID_BYTES} bytes, got {}", id.len()));
    }
    Ok(())
}

/// An input as a client names it.
#[derive(Debug)]
pub struct NamedInput<D> {
    /// Its name.
    pub name: String,
    /// Name of its type in the Open Inference Protocol.
    pub datatype: String,
    /// Size of each dimension.
    pub shape: Vec<i64>,
    /// What its bytes are read from.
    pub data: D,
}

/// One tensor for each input of a model, in the model's order. `read` makes the bytes for
/// a shape, or says what is wrong with them.
///
/// # Errors
/// [`InvalidInput`] with the input, what was expected and what came.
pub fn in_model_order<D>(
    ports: &[Port],
    inputs: Vec<NamedInput<D>>,
    mut read: impl FnMut(ElementType, &[usize], D) -> Result<Chunks, String>,
) -> Result<Vec<Tensor>, InvalidInput> {
    let mut slots: Vec<Option<NamedInput<D>>> = ports.iter().map(|_| None).collect();
    for input in inputs {
        let Some(at) = ports.iter().position(|port| port.name == input.name) else {
            let message = format!("unknown input `{}`; the model's inputs are {}", input.name, names(ports));
            return Err(InvalidInput(message));
        };
        if slots[at].is_some() {
            return Err(InvalidInput(format!("input `{}`: comes twice", input.name)));
        }
        slots[at] = Some(input);
    }
    let one = |(port, input): (&Port, Option<NamedInput<D>>)| {
        let input = input.ok_or_else(|| "required, but missing".to_owned());
        input
            .and_then(|input| tensor(port, input, &mut read))
            .map_err(|message| InvalidInput(format!("input `{}`: {message}", port.name)))
    };
    ports.iter().zip(slots).map(one).collect()
}

fn tensor<D>(
    port: &Port,
    input: NamedInput<D>,
    read: &mut impl FnMut(ElementType, &[usize], D) -> Result<Chunks, String>,
) -> Result<Tensor, String> {
    let expected = port.element.datatype();
    if input.datatype == "BYTES" {
        return Err(format!("expected datatype {expected}, got BYTES; models of strings are not served yet"));
    }
    if input.datatype != expected {
        return Err(format!("expected datatype {expected}, got {}", input.datatype));
    }
    let shape: Result<Vec<usize>, _> = input.shape.iter().map(|size| usize::try_from(*size)).collect();
    let shape = shape.map_err(|_| format!("expected sizes of 0 or more in shape, got {:?}", input.shape))?;
    let data = read(port.element, &shape, input.data)?;
    check_bytes(port.element, &data)?;
    Tensor::new(port.element, shape, data).map_err(|error| error.to_string())
}

/// Whether bytes may be elements of that type.
///
/// # Errors
/// The first that may not: BOOL is 0 or 1, and what ONNX Runtime makes of others is undefined.
pub fn check_bytes(element: ElementType, data: &Chunks) -> Result<(), String> {
    if element != ElementType::Bool {
        return Ok(());
    }
    // All of a piece at once: a search that may end at each byte takes ten times as long.
    let is_wrong = |piece: &&Bytes| piece.iter().fold(0, |all, byte| all | byte) > 1;
    match data.pieces().iter().find(is_wrong).and_then(|piece| piece.iter().find(|byte| **byte > 1)) {
        Some(byte) => Err(format!("expected bytes of BOOL to be 0 or 1, got {byte}")),
        None => Ok(()),
    }
}

/// The outputs that a client asks for by name, as positions in the model's order; all of them where it names none.
///
/// # Errors
/// [`InvalidInput`] where a name is unknown, or comes more often than the answer should have it.
pub fn outputs_named(ports: &[Port], wanted: &[&str]) -> Result<Vec<usize>, InvalidInput> {
    if wanted.is_empty() {
        return Ok((0..ports.len()).collect());
    }
    // Each output at most once: a name that comes a thousand times would make the answer a thousand times as long.
    if wanted.len() > ports.len() {
        let message = format!("outputs: expected at most {}, each once, got {}", ports.len(), wanted.len());
        return Err(InvalidInput(message));
    }
    let position = |name: &&str| {
        ports
            .iter()
            .position(|port| port.name == *name)
            .ok_or_else(|| InvalidInput(format!("unknown output `{name}`; the model's outputs are {}", names(ports))))
    };
    let positions = wanted.iter().map(position).collect::<Result<Vec<_>, _>>()?;
    match (1..positions.len()).find(|at| positions[..*at].contains(&positions[*at])) {
        Some(at) => Err(InvalidInput(format!("output `{}`: comes twice", wanted[at]))),
        None => Ok(positions),
    }
}

/// Ways to send or get a tensor that other servers know. Ignored, they would bring something else than was asked for.
///
/// # Errors
/// Which of them there is.
pub fn refuse_unsupported<N: AsRef<str>>(mut parameters: impl Iterator<Item = N>) -> Result<(), String> {
    const UNSUPPORTED: [&str; 2] = ["shared_memory_region", "classification"];
    match parameters.find(|name| UNSUPPORTED.contains(&name.as_ref())) {
        Some(name) => Err(format!("parameter {} is not supported", name.as_ref())),
        None => Ok(()),
    }
}

/// Parameters of requests that belong together, and whether each is set. Without their state the answer would be another.
///
/// # Errors
/// Which of them there is.
pub fn refuse_sequence<'a>(mut parameters: impl Iterator<Item = (&'a str, bool)>) -> Result<(), String> {
    match parameters.find(|(name, is_set)| *is_set && name.starts_with("sequence_")) {
        Some((name, _)) => Err(format!("parameters.{name}: sequences are not supported; expected none, 0 or empty")),
        None => Ok(()),
    }
}

fn names(ports: &[Port]) -> String {
    ports.iter().map(|port| port.name.as_str()).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    fn ports() -> Vec<Port> {
        let port = |name: &str, element| Port { name: name.to_owned(), element, dims: vec![None], batch_name: None };
        vec![port("ids", ElementType::I64), port("mask", ElementType::U8)]
    }

    fn input(name: &str, datatype: &str, size: i64, data: &'static [u8]) -> NamedInput<&'static [u8]> {
        NamedInput { name: name.to_owned(), datatype: datatype.to_owned(), shape: vec![size], data }
    }

    fn read(inputs: Vec<NamedInput<&'static [u8]>>) -> Result<Vec<Tensor>, String> {
        let bytes = |_, _: &[usize], data| Ok(Chunks::from(Bytes::from_static(data)));
        in_model_order(&ports(), inputs, bytes).map_err(|error| error.to_string())
    }

    #[test]
    fn inputs_come_in_the_models_order() {
        let tensors = read(vec![input("mask", "UINT8", 3, &[1, 1, 0]), input("ids", "INT64", 1, &[0; 8])]).unwrap();
        assert_eq!(tensors.iter().map(Tensor::element).collect::<Vec<_>>(), [ElementType::I64, ElementType::U8]);
    }

    #[test]
    fn what_is_wrong_names_the_input() {
        let ids = || input("ids", "INT64", 1, &[0; 8]);
        let said = |second| read(vec![ids(), second]).unwrap_err();
        assert_eq!(read(vec![ids()]).unwrap_err(), "input `mask`: required, but missing");
        assert_eq!(said(ids()), "input `ids`: comes twice");
        assert_eq!(said(input("x", "UINT8", 1, &[1])), "unknown input `x`; the model's inputs are ids, mask");
        assert_eq!(said(input("mask", "INT8", 1, &[1])), "input `mask`: expected datatype UINT8, got INT8");
        let strings = "input `mask`: expected datatype UINT8, got BYTES; models of strings are not served yet";
        assert_eq!(said(input("mask", "BYTES", 1, &[1])), strings);
        assert_eq!(
            said(input("mask", "UINT8", 2, &[1])),
            "input `mask`: a UINT8 tensor of shape [2] takes 2 bytes, got 1"
        );
    }

    #[test]
    fn outputs_are_found_by_name_each_once() {
        assert_eq!(outputs_named(&ports(), &[]).unwrap(), [0, 1]);
        assert_eq!(outputs_named(&ports(), &["mask"]).unwrap(), [1]);
        assert!(outputs_named(&ports(), &["x"]).unwrap_err().0.starts_with("unknown output `x`"));
        assert!(outputs_named(&ports(), &["ids", "ids", "ids"]).unwrap_err().0.contains("at most 2"));
        assert_eq!(outputs_named(&ports(), &["ids", "ids"]).unwrap_err().0, "output `ids`: comes twice");
    }

    #[test]
    fn bytes_that_are_neither_true_nor_false_are_refused() {
        let bytes = Chunks::from(Bytes::from_static(&[0, 1, 2]));
        assert_eq!(check_bytes(ElementType::Bool, &bytes).unwrap_err(), "expected bytes of BOOL to be 0 or 1, got 2");
        assert_eq!(check_bytes(ElementType::U8, &bytes), Ok(()));
    }
}
