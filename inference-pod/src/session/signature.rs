//! What goes into a model and what comes out, and the names of element types here and in ONNX Runtime.

use ort::value::{Outlet, TensorElementType, ValueType};

use super::SessionError;
use crate::tensor::ElementType;

/// One input or output of a model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Port {
    /// Its name in the graph.
    pub name: String,
    /// Type of its elements.
    pub element: ElementType,
    /// Its dimensions; `None` where the model leaves one open.
    pub dims: Vec<Option<usize>>,
    /// What its author calls the first dimension, where that is open.
    pub batch_name: Option<String>,
}

/// What goes into a model and what comes out, in the graph's order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Signature {
    /// What goes in.
    pub inputs: Vec<Port>,
    /// What comes out.
    pub outputs: Vec<Port>,
}

impl Signature {
    /// Reads it from a session.
    ///
    /// # Errors
    /// [`SessionError::UnsupportedType`] for the first input or output that is no tensor of numbers.
    pub(super) fn of(session: &ort::session::Session) -> Result<Self, SessionError> {
        Ok(Self {
            inputs: session.inputs().iter().map(|outlet| port("input", outlet)).collect::<Result<_, _>>()?,
            outputs: session.outputs().iter().map(|outlet| port("output", outlet)).collect::<Result<_, _>>()?,
        })
    }
}

fn port(side: &'static str, outlet: &Outlet) -> Result<Port, SessionError> {
    let unsupported =
        || SessionError::UnsupportedType { side, name: outlet.name().to_owned(), found: outlet.dtype().to_string() };
    let ValueType::Tensor { ty, shape, dimension_symbols } = outlet.dtype() else { return Err(unsupported()) };
    let element = element_of(*ty).ok_or_else(unsupported)?;
    let dims = shape.iter().map(|size| usize::try_from(*size).ok()).collect();
    let batch_name = dimension_symbols.first().filter(|name| is_given(name)).cloned();
    Ok(Port { name: outlet.name().to_owned(), element, dims, batch_name })
}

/// Whether an author has given a dimension this name. Exporters that are told none make one up for each dimension, also where all are
/// the same batch: PyTorch `input_dynamic_axes_1`, tf2onnx `unk__7`, Paddle `DynamicDimension.0`.
fn is_given(name: &str) -> bool {
    const MADE_UP: [&str; 4] = ["_dynamic_axes_", "unk__", "DynamicDimension", "?"];
    !name.is_empty() && !MADE_UP.iter().any(|part| name.contains(part))
}

/// Our name of a type; `None` for types that are not served.
pub(super) fn element_of(element: TensorElementType) -> Option<ElementType> {
    Some(match element {
        TensorElementType::Bool => ElementType::Bool,
        TensorElementType::Uint8 => ElementType::U8,
        TensorElementType::Uint16 => ElementType::U16,
        TensorElementType::Uint32 => ElementType::U32,
        TensorElementType::Uint64 => ElementType::U64,
        TensorElementType::Int8 => ElementType::I8,
        TensorElementType::Int16 => ElementType::I16,
        TensorElementType::Int32 => ElementType::I32,
        TensorElementType::Int64 => ElementType::I64,
        TensorElementType::Float16 => ElementType::F16,
        TensorElementType::Bfloat16 => ElementType::BF16,
        TensorElementType::Float32 => ElementType::F32,
        TensorElementType::Float64 => ElementType::F64,
        _ => return None,
    })
}

/// ONNX Runtime's name of a type.
pub(super) fn runtime_element(element: ElementType) -> TensorElementType {
    match element {
        ElementType::Bool => TensorElementType::Bool,
        ElementType::U8 => TensorElementType::Uint8,
        ElementType::U16 => TensorElementType::Uint16,
        ElementType::U32 => TensorElementType::Uint32,
        ElementType::U64 => TensorElementType::Uint64,
        ElementType::I8 => TensorElementType::Int8,
        ElementType::I16 => TensorElementType::Int16,
        ElementType::I32 => TensorElementType::Int32,
        ElementType::I64 => TensorElementType::Int64,
        ElementType::F16 => TensorElementType::Float16,
        ElementType::BF16 => TensorElementType::Bfloat16,
        ElementType::F32 => TensorElementType::Float32,
        ElementType::F64 => TensorElementType::Float64,
    }
}
