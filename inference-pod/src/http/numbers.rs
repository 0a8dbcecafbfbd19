//! Lists of JSON numbers from and to the bytes of a tensor.

use std::{fmt, ops::Range};

use axum::body::Bytes;
use serde::de::{DeserializeSeed, Deserializer, Error as _, SeqAccess, Visitor};
use serde_json::value::RawValue;

use crate::tensor::{ElementType, Tensor, elements};

/// Most bytes that reading numbers takes: of no more than the shape has, and than their text is long enough for.
#[must_use]
pub fn most_bytes(element: ElementType, count: usize, data: &RawValue) -> usize {
    count.min(data.get().len() / 2 + 1).saturating_mul(element.size_bytes())
}

/// Numbers of a list as row-major bytes. It may be flat, nested as the shape is, or nested at first and then flat: each list
/// within has as many numbers as its part of the shape.
///
/// # Errors
/// What is no number, or does not fit the type; and the first list of other numbers than its part of the shape has.
pub fn read(element: ElementType, shape: &[usize], data: &RawValue) -> Result<Bytes, serde_json::Error> {
    let mut bytes = Vec::with_capacity(most_bytes(element, elements(shape), data));
    let mut reader = serde_json::Deserializer::from_str(data.get());
    Flat { element, shape, bytes: &mut bytes }.deserialize(&mut reader)?;
    Ok(Bytes::from(bytes))
}

/// Appends a number, or every number of a list, to the bytes.
struct Flat<'a> {
    element: ElementType,
    /// Of what is read, where it is a list.
    shape: &'a [usize],
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

    /// A number that is not finite, and says so.
    fn special<E: serde::de::Error>(&mut self, text: &str, number: f64) -> Result<(), E> {
        match self.element {
            ElementType::F16 => self.bytes.extend(half::f16::from_f64(number).to_le_bytes()),
            ElementType::BF16 => self.bytes.extend(half::bf16::from_f64(number).to_le_bytes()),
            ElementType::F32 => self.bytes.extend((number as f32).to_le_bytes()),
            ElementType::F64 => self.bytes.extend(number.to_le_bytes()),
            whole => return Err(E::custom(format!("expected {}, got {text}", whole.datatype()))),
        }
        Ok(())
    }

    fn real<E: serde::de::Error>(&mut self, number: f64) -> Result<(), E> {
        fn put<const N: usize>(bytes: &mut Vec<u8>, is_finite: bool, number: [u8; N]) -> bool {
            bytes.extend_from_slice(&number);
            is_finite
        }
        let bytes = &mut *self.bytes;
        // What is too large for its type must not become infinity unseen.
        let fits = match self.element {
            ElementType::F16 => {
                let half = half::f16::from_f64(number);
                put(bytes, half.is_finite(), half.to_le_bytes())
            }
            ElementType::BF16 => {
                let half = half::bf16::from_f64(number);
                put(bytes, half.is_finite(), half.to_le_bytes())
            }
            ElementType::F32 => put(bytes, (number as f32).is_finite(), (number as f32).to_le_bytes()),
            ElementType::F64 => put(bytes, number.is_finite(), number.to_le_bytes()),
            // As JSON is read here, -0 is a real number; it is as whole as 0.
            _ if number == 0.0 && number.is_sign_negative() => return self.integer(0),
            _ => false,
        };
        // With its point, for 1 would be an integer.
        if fits { Ok(()) } else { Err(E::custom(format!("expected {}, got {number:?}", self.element.datatype()))) }
    }
}

impl<'de> Visitor<'de> for Flat<'_> {
    type Value = ();

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "a number of {} or a list of them", self.element.datatype())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<(), A::Error> {
        let Self { element, shape, bytes } = self;
        let wrong = |got| A::Error::custom(format!("shape {shape:?} has {} numbers, got {got}", elements(shape)));
        let (begin, expected) = (bytes.len(), elements(shape).saturating_mul(element.size_bytes()));
        let within = shape.get(1..).unwrap_or_default();
        while items.next_element_seed(Flat { element, shape: within, bytes: &mut *bytes })?.is_some() {
            if bytes.len() - begin > expected {
                return Err(wrong("more".to_owned()));
            }
        }
        let got = bytes.len() - begin;
        if got < expected { Err(wrong((got / element.size_bytes()).to_string())) } else { Ok(()) }
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

    /// Not a number, as it is written here.
    fn visit_unit<E: serde::de::Error>(mut self) -> Result<(), E> {
        self.special("null", f64::NAN)
    }

    fn visit_str<E: serde::de::Error>(mut self, text: &str) -> Result<(), E> {
        match SPECIAL.iter().find(|(known, _)| *known == text) {
            Some((_, number)) => self.special(text, *number),
            None => Err(E::invalid_type(serde::de::Unexpected::Str(text), &self)),
        }
    }
}

/// What JSON has no word for, as JSON of Protocol Buffers writes it: as strings.
const SPECIAL: [(&str, f64); 3] = [("NaN", f64::NAN), ("Infinity", f64::INFINITY), ("-Infinity", f64::NEG_INFINITY)];

/// Puts the names of numbers that are not finite in quotes, where a text has any: Python's json writes them as they are, which is no JSON.
#[must_use]
pub fn quoted(text: &[u8]) -> Option<Vec<u8>> {
    let count = names(text).count();
    let mut quoted = Vec::with_capacity(text.len() + 2 * count);
    let mut begin = 0;
    for name in names(text) {
        quoted.extend_from_slice(&text[begin..name.start]);
        quoted.push(b'"');
        quoted.extend_from_slice(&text[name.clone()]);
        quoted.push(b'"');
        begin = name.end;
    }
    quoted.extend_from_slice(&text[begin..]);
    (count > 0).then_some(quoted)
}

/// Where such names stand outside of strings.
fn names(text: &[u8]) -> impl Iterator<Item = Range<usize>> {
    let (mut at, mut in_string) = (0, false);
    std::iter::from_fn(move || {
        while at < text.len() {
            let rest = &text[at..];
            let may_begin = !in_string && matches!(rest[0], b'N' | b'I' | b'-');
            let name = SPECIAL.iter().find(|(name, _)| may_begin && rest.starts_with(name.as_bytes()));
            if let Some((name, _)) = name {
                at += name.len();
                return Some(at - name.len()..at);
            }
            in_string ^= rest[0] == b'"';
            // What is escaped ends no string.
            at += if in_string && rest[0] == b'\\' { 2 } else { 1 };
        }
        None
    })
}

/// Writes the elements of a tensor as a flat list of JSON numbers.
pub fn write(tensor: &Tensor, json: &mut Vec<u8>) {
    fn each<const N: usize, T: Number>(data: &[u8], json: &mut Vec<u8>, convert: impl Fn([u8; N]) -> T) {
        let mut line = Line::default();
        let (groups, rest) = data.as_chunks::<N>().0.as_chunks::<GROUP>();
        for group in groups {
            let mut buffers = <[T::Buffer; GROUP]>::default();
            let [a, b, c, d] = buffers.each_mut();
            let [first, second, third, fourth] = group.map(&convert);
            let texts = [first.text(a), second.text(b), third.text(c), fourth.text(d)];
            texts.iter().for_each(|text| line.push(text, json));
        }
        for chunk in rest {
            line.push(convert(*chunk).text(&mut T::Buffer::default()), json);
        }
        line.flush(json);
    }
    json.push(b'[');
    let begin = json.len();
    let data = &tensor.data().contiguous();
    match tensor.element() {
        ElementType::Bool => each(data, json, |[byte]| byte != 0),
        ElementType::U8 => each(data, json, |[byte]| byte),
        ElementType::I8 => each(data, json, i8::from_le_bytes),
        ElementType::U16 => each(data, json, u16::from_le_bytes),
        ElementType::I16 => each(data, json, i16::from_le_bytes),
        ElementType::U32 => each(data, json, u32::from_le_bytes),
        ElementType::I32 => each(data, json, i32::from_le_bytes),
        ElementType::U64 => each(data, json, u64::from_le_bytes),
        ElementType::I64 => each(data, json, i64::from_le_bytes),
        ElementType::F16 => each(data, json, |chunk| half::f16::from_le_bytes(chunk).to_f32()),
        ElementType::BF16 => each(data, json, |chunk| half::bf16::from_le_bytes(chunk).to_f32()),
        ElementType::F32 => each(data, json, f32::from_le_bytes),
        ElementType::F64 => each(data, json, f64::from_le_bytes),
    }
    // The comma after the last number.
    json.truncate(begin.max(json.len() - usize::from(json.len() > begin)));
    json.push(b']');
}

/// Numbers that are written before the first of them is copied. What was written byte by byte the moment before cannot be read eight
/// bytes at a time without waiting; this takes a tenth off the time of a number.
const GROUP: usize = 4;

/// Something that JSON writes in a few characters.
trait Number {
    /// Where it is written.
    type Buffer: Default;

    fn text(self, buffer: &mut Self::Buffer) -> &str;
}

impl Number for bool {
    type Buffer = ();

    fn text(self, (): &mut ()) -> &str {
        if self { "true" } else { "false" }
    }
}

macro_rules! integers {
    ($($integer:ty)*) => {$(
        impl Number for $integer {
            type Buffer = itoa::Buffer;

            fn text(self, buffer: &mut itoa::Buffer) -> &str {
                buffer.format(self)
            }
        }
    )*};
}
integers!(u8 i8 u16 i16 u32 i32 u64 i64);

macro_rules! reals {
    ($($real:ty)*) => {$(
        impl Number for $real {
            type Buffer = zmij::Buffer;

            /// JSON has no word for what is not a finite number. What is none at all is `null`, as everywhere; but that of an
            /// infinite one would be read as none.
            fn text(self, buffer: &mut zmij::Buffer) -> &str {
                if self.is_finite() {
                    buffer.format_finite(self)
                } else if self.is_nan() {
                    "null"
                } else if self > 0.0 {
                    "\"Infinity\""
                } else {
                    "\"-Infinity\""
                }
            }
        }
    )*};
}
reals!(f32 f64);

/// Numbers on their way into the answer: the short copies of single numbers stay in a small array, the answer itself
/// is appended to in long ones. This takes a fifth off the time of a large answer.
struct Line {
    text: [u8; 512],
    used: usize,
}

impl Default for Line {
    fn default() -> Self {
        Self { text: [0; 512], used: 0 }
    }
}

impl Line {
    fn push(&mut self, text: &str, json: &mut Vec<u8>) {
        /// No number's text is longer; neither is it with its comma.
        const LONGEST: usize = 32;
        if self.used + LONGEST > self.text.len() {
            self.flush(json);
        }
        let to = &mut self.text[self.used..self.used + LONGEST];
        let length = copy_short(text.as_bytes(), to);
        self.text[self.used + length] = b',';
        self.used += length + 1;
    }

    fn flush(&mut self, json: &mut Vec<u8>) {
        json.extend_from_slice(&self.text[..self.used]);
        self.used = 0;
    }
}

/// Two copies of eight bytes, which may overlap, take a sixth off the time of a number beside one of a length that the compiler does
/// not know. Returns the length.
fn copy_short(from: &[u8], to: &mut [u8]) -> usize {
    let length = from.len();
    match (from.first_chunk::<8>(), from.last_chunk::<8>()) {
        (Some(first), Some(last)) if length <= 16 => {
            to[..8].copy_from_slice(first);
            to[length - 8..length].copy_from_slice(last);
        }
        _ => to[..length].copy_from_slice(from),
    }
    length
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn read_as(shape: &[usize], element: ElementType, text: &str) -> Result<Vec<u8>, String> {
        let raw: Box<RawValue> = serde_json::from_str(text).unwrap();
        super::read(element, shape, &raw).map(|bytes| bytes.to_vec()).map_err(|error| error.to_string())
    }

    fn read(element: ElementType, text: &str) -> Result<Vec<u8>, String> {
        read_as(&[text.split(',').count()], element, text)
    }

    fn written(tensor: &Tensor) -> serde_json::Value {
        let mut json = Vec::new();
        write(tensor, &mut json);
        serde_json::from_slice(&json).unwrap()
    }

    #[test]
    fn nested_and_flat_lists_give_the_same_bytes() {
        let flat = read(ElementType::F32, "[1, 2.5, -3, 4e1]").unwrap();
        assert_eq!(flat, [1.0_f32, 2.5, -3.0, 40.0].iter().flat_map(|n| n.to_le_bytes()).collect::<Vec<_>>());
        assert_eq!(read_as(&[2, 2], ElementType::F32, "[[1, 2.5], [-3, 4e1]]").unwrap(), flat);
    }

    #[test]
    fn each_number_is_read_as_the_nearest_that_there_is() {
        let mut random = fastrand::Rng::with_seed(7);
        let numbers: Vec<f64> = (0..2000).map(|_| random.f64()).chain([0.952_244_455_291_193_7, 5e-324]).collect();
        let text: Vec<String> = numbers.iter().map(f64::to_string).collect();
        let bytes: Vec<u8> = numbers.iter().flat_map(|number| number.to_le_bytes()).collect();
        assert!(read(ElementType::F64, &format!("[{}]", text.join(","))).unwrap() == bytes);
    }

    #[test]
    fn reading_ends_with_the_first_number_that_the_shape_has_no_place_for() {
        // What follows is no number, and nobody looks at it.
        let said = read_as(&[1, 2], ElementType::I64, "[1, 2, 3, \"x\"]").unwrap_err();
        assert!(said.starts_with("shape [1, 2] has 2 numbers, got more"), "{said}");
        assert!(read_as(&[usize::MAX, 2], ElementType::F64, "[1]").unwrap_err().ends_with("got 1 at line 1 column 3"));
        assert!(read_as(&[0], ElementType::U8, "[]").unwrap().is_empty());
        for (text, element) in
            [("7", ElementType::U8), ("[1,2,3,4]", ElementType::I64), ("[[1],[2]]", ElementType::F32)]
        {
            let raw: Box<RawValue> = serde_json::from_str(text).unwrap();
            assert!(read(element, text).unwrap().len() <= most_bytes(element, 4, &raw), "{text}");
        }
    }

    #[test]
    fn lists_within_a_list_are_as_long_as_the_shape_says() {
        let said = |shape: &[usize], text| read_as(shape, ElementType::U8, text).unwrap_err();
        for (text, got) in [("[[1, 2, 3], [4]]", "more"), ("[[1], [2, 3, 4]]", "1"), ("[[1, 2, 3, 4]]", "more")] {
            assert!(said(&[2, 2], text).starts_with(&format!("shape [2] has 2 numbers, got {got}")), "{text}");
        }
        assert!(said(&[2, 2], "[[1, 2], [3, 4], [5, 6]]").starts_with("shape [2, 2] has 4 numbers, got more"));
        assert!(said(&[2, 2], "[[1, 2]]").starts_with("shape [2, 2] has 4 numbers, got 2"));
        assert!(said(&[4], "[[1, 2, 3, 4]]").starts_with("shape [] has 1 numbers, got more"));
        for text in ["[1, 2, 3, 4]", "[[1, 2, 3, 4]]", "[[[1, 2], [3, 4]]]"] {
            assert_eq!(read_as(&[1, 2, 2], ElementType::U8, text).unwrap(), [1, 2, 3, 4], "{text}");
        }
    }

    #[test]
    fn numbers_that_do_not_fit_their_type_are_refused() {
        assert_eq!(read(ElementType::U8, "[255]").unwrap(), [255]);
        assert!(read(ElementType::U8, "[256]").unwrap_err().starts_with("expected UINT8, got 256"));
        assert!(read(ElementType::I64, "[1.5]").unwrap_err().starts_with("expected INT64, got 1.5"));
        assert!(read(ElementType::I64, "[1.0]").unwrap_err().starts_with("expected INT64, got 1.0"));
        assert!(read(ElementType::F32, "[3e38, -1e39]").unwrap_err().starts_with("expected FP32, got -1e39"));
        assert!(read(ElementType::F16, "[65504, 70000]").unwrap_err().starts_with("expected FP16, got 70000.0"));
        assert!(read(ElementType::BF16, "[1e39]").is_err());
        assert!(read(ElementType::U64, "[-1]").unwrap_err().starts_with("expected UINT64, got -1"));
        assert_eq!(read(ElementType::U64, "[18446744073709551615]").unwrap(), [255; 8]);
        assert!(read(ElementType::F32, "[true]").unwrap_err().starts_with("expected FP32, got true"));
        assert!(read(ElementType::F32, "[\"1\"]").unwrap_err().contains("a number of FP32 or a list of them"));
        assert_eq!(read(ElementType::Bool, "[true, false, 1, 0]").unwrap(), [1, 0, 1, 0]);
        assert!(read(ElementType::Bool, "[2]").is_err());
        for element in ElementType::ALL {
            let is_real = matches!(element, ElementType::F16 | ElementType::BF16 | ElementType::F32 | ElementType::F64);
            let sign = if is_real { 0x80 } else { 0 };
            assert_eq!(read(element, "[-0]").unwrap().last(), Some(&sign), "{element:?}");
        }
    }

    #[test]
    fn every_type_is_written_as_it_is_read() {
        for element in ElementType::ALL {
            // More than are written at a time, and not a multiple of it.
            let is_bool = element == ElementType::Bool;
            let text = if is_bool { "[0, 1, 1, 0, 1, 0, 0]" } else { "[0, 1, 2, 3, 4, 5, 6]" };
            let tensor = Tensor::new(element, vec![7], Bytes::from(read(element, text).unwrap())).unwrap();
            let expected = match element {
                ElementType::Bool => json!([false, true, true, false, true, false, false]),
                ElementType::F16 | ElementType::BF16 | ElementType::F32 | ElementType::F64 => {
                    json!([0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0])
                }
                _ => json!([0, 1, 2, 3, 4, 5, 6]),
            };
            assert_eq!(written(&tensor), expected, "{element:?}");
        }
    }

    #[test]
    fn numbers_of_every_length_are_written_whole() {
        let odd = [f64::MIN, f64::MAX, f64::MIN_POSITIVE, 5e-324, -0.0, 0.1, 1e21, 123_456_789.123_456_78];
        let numbers: Vec<f64> = odd.iter().copied().cycle().take(1003).collect();
        let data: Vec<u8> = numbers.iter().flat_map(|number| number.to_le_bytes()).collect();
        assert_eq!(written(&Tensor::new(ElementType::F64, vec![1003], Bytes::from(data)).unwrap()), json!(numbers));
        let strange = Tensor::from_f32(vec![5], &[2.5, f32::NAN, f32::INFINITY, 1.5, f32::NAN]).unwrap();
        assert_eq!(written(&strange), json!([2.5, null, "Infinity", 1.5, null]));
        let empty = Tensor::new(ElementType::I64, vec![0], Bytes::new()).unwrap();
        assert_eq!(written(&empty), json!([]));
    }
}
