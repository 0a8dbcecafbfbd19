//! Tensors outside of ONNX Runtime: element types, shapes and row-major bytes.

use bytes::Bytes;

/// Type of a tensor's elements. The names are those of the Open Inference Protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ElementType {
    /// One byte, 0 or 1.
    Bool,
    /// Unsigned 8 bits.
    U8,
    /// Unsigned 16 bits.
    U16,
    /// Unsigned 32 bits.
    U32,
    /// Unsigned 64 bits.
    U64,
    /// Signed 8 bits.
    I8,
    /// Signed 16 bits.
    I16,
    /// Signed 32 bits.
    I32,
    /// Signed 64 bits.
    I64,
    /// IEEE half precision.
    F16,
    /// Truncated single precision.
    BF16,
    /// Single precision.
    F32,
    /// Double precision.
    F64,
}

impl ElementType {
    /// All of them.
    pub const ALL: [Self; 13] = [
        Self::Bool,
        Self::U8,
        Self::U16,
        Self::U32,
        Self::U64,
        Self::I8,
        Self::I16,
        Self::I32,
        Self::I64,
        Self::F16,
        Self::BF16,
        Self::F32,
        Self::F64,
    ];

    /// Size of one element in bytes.
    #[must_use]
    pub fn size_bytes(self) -> usize {
        match self {
            Self::Bool | Self::U8 | Self::I8 => 1,
            Self::U16 | Self::I16 | Self::F16 | Self::BF16 => 2,
            Self::U32 | Self::I32 | Self::F32 => 4,
            Self::U64 | Self::I64 | Self::F64 => 8,
        }
    }

    /// Name in the Open Inference Protocol.
    #[must_use]
    pub fn datatype(self) -> &'static str {
        match self {
            Self::Bool => "BOOL",
            Self::U8 => "UINT8",
            Self::U16 => "UINT16",
            Self::U32 => "UINT32",
            Self::U64 => "UINT64",
            Self::I8 => "INT8",
            Self::I16 => "INT16",
            Self::I32 => "INT32",
            Self::I64 => "INT64",
            Self::F16 => "FP16",
            Self::BF16 => "BF16",
            Self::F32 => "FP32",
            Self::F64 => "FP64",
        }
    }

    /// The type of that name in the Open Inference Protocol.
    #[must_use]
    pub fn from_datatype(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|element| element.datatype() == name)
    }
}

/// A dense tensor: row-major, little-endian.
///
/// # Shapes
/// `data` holds `shape.iter().product()` elements of `element`; the constructor checks it.
#[derive(Debug, Clone, PartialEq)]
pub struct Tensor {
    element: ElementType,
    shape: Vec<usize>,
    data: Bytes,
}

/// The bytes are not as many as type and shape ask for.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("a {} tensor of shape {shape:?} takes {expected} bytes, got {got}", element.datatype())]
pub struct WrongLength {
    element: ElementType,
    shape: Vec<usize>,
    expected: usize,
    got: usize,
}

impl Tensor {
    /// A tensor over the bytes, which are not copied.
    ///
    /// # Errors
    /// [`WrongLength`] where the bytes are not as many as type and shape ask for.
    pub fn new(element: ElementType, shape: Vec<usize>, data: Bytes) -> Result<Self, WrongLength> {
        let expected = elements(&shape).saturating_mul(element.size_bytes());
        // A size of 0 makes the product 0 whatever the other sizes say; they must be real all the same.
        let others: Vec<usize> = shape.iter().copied().filter(|size| *size != 0).collect();
        if expected != data.len() || elements(&others) > isize::MAX as usize / element.size_bytes() {
            return Err(WrongLength { element, shape, expected, got: data.len() });
        }
        Ok(Self { element, shape, data })
    }

    /// A tensor of single-precision numbers.
    ///
    /// # Errors
    /// [`WrongLength`] where the numbers are not as many as the shape asks for.
    pub fn from_f32(shape: Vec<usize>, numbers: &[f32]) -> Result<Self, WrongLength> {
        let data: Vec<u8> = numbers.iter().flat_map(|number| number.to_le_bytes()).collect();
        Self::new(ElementType::F32, shape, Bytes::from(data))
    }

    /// Type of the elements.
    #[must_use]
    pub fn element(&self) -> ElementType {
        self.element
    }

    /// Size of each dimension.
    #[must_use]
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// Row-major, little-endian.
    #[must_use]
    pub fn data(&self) -> &Bytes {
        &self.data
    }

    /// Rows `start..start + count` of the first dimension, sharing the bytes.
    ///
    /// # Panics
    /// Where the first dimension has not that many rows.
    #[must_use]
    pub fn rows(&self, start: usize, count: usize) -> Self {
        let row_bytes = elements(&self.shape[1..]) * self.element.size_bytes();
        let mut shape = self.shape.clone();
        shape[0] = count;
        let data = self.data.slice(start * row_bytes..(start + count) * row_bytes);
        Self { element: self.element, shape, data }
    }

    /// The elements as single precision; of integers and booleans too.
    pub fn to_f32(&self) -> Vec<f32> {
        fn read<const N: usize>(data: &[u8], convert: impl Fn([u8; N]) -> f32) -> Vec<f32> {
            data.as_chunks::<N>().0.iter().map(|chunk| convert(*chunk)).collect()
        }
        let data = &self.data;
        match self.element {
            ElementType::Bool | ElementType::U8 => read(data, |[byte]| f32::from(byte)),
            ElementType::I8 => read(data, |chunk| f32::from(i8::from_le_bytes(chunk))),
            ElementType::U16 => read(data, |chunk| f32::from(u16::from_le_bytes(chunk))),
            ElementType::I16 => read(data, |chunk| f32::from(i16::from_le_bytes(chunk))),
            ElementType::U32 => read(data, |chunk| u32::from_le_bytes(chunk) as f32),
            ElementType::I32 => read(data, |chunk| i32::from_le_bytes(chunk) as f32),
            ElementType::U64 => read(data, |chunk| u64::from_le_bytes(chunk) as f32),
            ElementType::I64 => read(data, |chunk| i64::from_le_bytes(chunk) as f32),
            ElementType::F16 => read(data, |chunk| half::f16::from_le_bytes(chunk).to_f32()),
            ElementType::BF16 => read(data, |chunk| half::bf16::from_le_bytes(chunk).to_f32()),
            ElementType::F32 => read(data, f32::from_le_bytes),
            ElementType::F64 => read(data, |chunk| f64::from_le_bytes(chunk) as f32),
        }
    }
}

/// Number of elements of a shape; saturates instead of wrapping, so that a made-up shape cannot look small.
#[must_use]
pub fn elements(shape: &[usize]) -> usize {
    shape.iter().fold(1, |product: usize, size| product.saturating_mul(*size))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_share_the_bytes_and_keep_the_other_dimensions() {
        let tensor = Tensor::from_f32(vec![3, 2], &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]).unwrap();
        let rows = tensor.rows(1, 2);
        assert_eq!(rows.shape(), [2, 2]);
        assert_eq!(rows.to_f32(), [3.0, 4.0, 5.0, 6.0]);
        assert_eq!(rows.data().as_ptr(), tensor.data()[8..].as_ptr());
    }

    #[test]
    fn wrong_lengths_are_refused_even_where_the_product_overflows() {
        let error = Tensor::new(ElementType::F32, vec![2, 2], Bytes::from_static(&[0; 15])).unwrap_err();
        assert_eq!(error.to_string(), "a FP32 tensor of shape [2, 2] takes 16 bytes, got 15");
        assert!(Tensor::new(ElementType::F64, vec![1 << 40, 1 << 40], Bytes::new()).is_err());
        assert!(Tensor::new(ElementType::I64, vec![1 << 62, 0], Bytes::new()).is_err());
        assert!(Tensor::new(ElementType::I64, vec![3, 0], Bytes::new()).is_ok());
    }

    #[test]
    fn every_datatype_name_leads_back_to_its_type() {
        for element in ElementType::ALL {
            assert_eq!(ElementType::from_datatype(element.datatype()), Some(element));
        }
        assert_eq!(ElementType::from_datatype("BYTES"), None);
    }
}
