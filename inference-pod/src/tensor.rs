//! Tensors outside of ONNX Runtime: element types, shapes and row-major bytes.

use std::ops::Range;

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

/// Bytes in the pieces in which they came over the network. They are shared, never laid together: the one copy of a
/// tensor goes into the buffer of its batch. Where a piece ends says nothing; an element may be cut in two.
#[derive(Debug, Clone)]
pub struct Chunks(Pieces);

/// One piece is what most tensors are, and needs no memory of its own.
#[derive(Debug, Clone)]
enum Pieces {
    One(Bytes),
    Several(Vec<Bytes>),
}

impl Chunks {
    /// The pieces, in order.
    #[must_use]
    pub fn pieces(&self) -> &[Bytes] {
        match &self.0 {
            Pieces::One(piece) => std::slice::from_ref(piece),
            Pieces::Several(pieces) => pieces,
        }
    }

    /// Bytes of all pieces together.
    #[must_use]
    pub fn len(&self) -> usize {
        self.pieces().iter().map(Bytes::len).sum()
    }

    /// Whether there is not one byte.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The bytes of a range, shared.
    ///
    /// # Panics
    /// Where the range ends beyond the bytes, or before it begins.
    #[must_use]
    pub fn slice(&self, range: Range<usize>) -> Self {
        match &self.0 {
            Pieces::One(piece) => Self(Pieces::One(piece.slice(range))),
            Pieces::Several(pieces) => slice_of(pieces, &range),
        }
    }

    /// The bytes as one piece: copied where they are in several.
    #[must_use]
    pub fn contiguous(&self) -> Bytes {
        match &self.0 {
            Pieces::One(piece) => piece.clone(),
            Pieces::Several(pieces) => Bytes::from(pieces.concat()),
        }
    }
}

fn slice_of(pieces: &[Bytes], range: &Range<usize>) -> Chunks {
    let mut begin = 0;
    let mut within = Vec::new();
    for piece in pieces {
        let end = begin + piece.len();
        let (from, to) = (range.start.max(begin), range.end.min(end));
        if from < to {
            within.push(piece.slice(from - begin..to - begin));
        }
        begin = end;
    }
    assert!(range.start <= range.end && range.end <= begin, "range {range:?} is not within {begin} bytes");
    Chunks::from(within)
}

impl From<Bytes> for Chunks {
    fn from(piece: Bytes) -> Self {
        Self(Pieces::One(piece))
    }
}

impl From<Vec<Bytes>> for Chunks {
    fn from(mut pieces: Vec<Bytes>) -> Self {
        match pieces.len() {
            0 => Self(Pieces::One(Bytes::new())),
            1 => Self(Pieces::One(pieces.swap_remove(0))),
            _ => Self(Pieces::Several(pieces)),
        }
    }
}

/// Equal bytes are equal, in whatever pieces they are.
impl PartialEq for Chunks {
    fn eq(&self, other: &Self) -> bool {
        let bytes = |chunks: &Self| chunks.contiguous();
        self.len() == other.len() && bytes(self) == bytes(other)
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
    data: Chunks,
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
    pub fn new(element: ElementType, shape: Vec<usize>, data: impl Into<Chunks>) -> Result<Self, WrongLength> {
        let data = data.into();
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
    pub fn data(&self) -> &Chunks {
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
        let data = &self.data.contiguous();
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
        assert_eq!(rows.data().contiguous().as_ptr(), tensor.data().contiguous()[8..].as_ptr());
    }

    /// Cuts bytes after each of these positions.
    fn cut(bytes: &Bytes, positions: &[usize]) -> Chunks {
        let mut begin = 0;
        let mut piece = |end: usize| {
            let piece = bytes.slice(begin..end);
            begin = end;
            piece
        };
        let mut pieces: Vec<Bytes> = positions.iter().map(|end| piece(*end)).collect();
        pieces.push(piece(bytes.len()));
        Chunks::from(pieces)
    }

    #[test]
    fn where_bytes_are_cut_makes_no_difference() {
        let bytes = Bytes::from_iter(0..24);
        let whole = Chunks::from(bytes.clone());
        for cuts in [&[][..], &[0], &[24], &[1, 2, 3], &[7, 7, 13], &[8, 16], &[3, 23]] {
            let chunks = cut(&bytes, cuts);
            assert_eq!(chunks, whole, "{cuts:?}");
            for start in 0..=24 {
                for end in start..=24 {
                    assert_eq!(
                        chunks.slice(start..end).contiguous(),
                        bytes.slice(start..end),
                        "{cuts:?} {start} {end}"
                    );
                }
            }
            let tensor = Tensor::new(ElementType::F32, vec![3, 2], chunks).unwrap();
            assert_eq!(tensor, Tensor::new(ElementType::F32, vec![3, 2], bytes.clone()).unwrap());
            assert_eq!(tensor.rows(1, 1).to_f32(), tensor.to_f32()[2..4]);
        }
        assert_ne!(cut(&bytes, &[5]), Chunks::from(Bytes::from_iter(1..25)));
    }

    #[test]
    fn pieces_are_shared_and_none_is_left_without_bytes() {
        let bytes = Bytes::from_iter(0..24);
        let slice = cut(&bytes, &[5, 10]).slice(5..12);
        assert_eq!(slice.pieces(), [bytes.slice(5..10), bytes.slice(10..12)]);
        assert_eq!(slice.pieces()[0].as_ptr(), bytes[5..].as_ptr());
        assert!(Chunks::from(Vec::new()).is_empty());
    }

    #[test]
    #[should_panic(expected = "range 20..25 is not within 24 bytes")]
    fn a_range_beyond_the_bytes_panics_as_a_slice_does() {
        let _ = cut(&Bytes::from_iter(0..24), &[5]).slice(20..25);
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
