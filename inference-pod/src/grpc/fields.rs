//! The fields of a message, as Protocol Buffers encode them.

use std::collections::VecDeque;

use axum::body::Bytes;

use crate::{http::body::Pieces, tensor::Chunks};

/// A field of a message.
pub struct Field {
    pub number: u64,
    pub value: Value,
}

pub enum Value {
    Number(u64),
    Eight(Chunks),
    Bytes(Chunks),
    Four(Chunks),
}

impl Value {
    pub fn write(self, number: u64, head: &mut Pieces) {
        let (kind, bytes) = match self {
            Self::Number(value) => {
                write_varint(number << 3, head);
                return write_varint(value, head);
            }
            Self::Eight(bytes) => (1, bytes),
            Self::Bytes(bytes) => (2, bytes),
            Self::Four(bytes) => (5, bytes),
        };
        write_varint(number << 3 | kind, head);
        if kind == 2 {
            write_varint(bytes.len() as u64, head);
        }
        bytes.pieces().iter().for_each(|piece| head.push(piece.clone()));
    }
}

fn write_varint(mut number: u64, head: &mut Pieces) {
    while number > 0x7F {
        head.lay(&[number as u8 | 0x80]);
        number >>= 7;
    }
    head.lay(&[number as u8]);
}

/// The fields of a message, one after another.
pub struct Fields(VecDeque<Bytes>);

impl Fields {
    pub fn new(message: &Chunks) -> Self {
        Self(message.pieces().iter().filter(|piece| !piece.is_empty()).cloned().collect())
    }

    pub fn is_at_end(&self) -> bool {
        self.0.is_empty()
    }

    /// The next field; none where the bytes end, within a field or after it, or are no field.
    pub fn next(&mut self) -> Option<Field> {
        let key = self.varint()?;
        let value = match key & 7 {
            0 => Value::Number(self.varint()?),
            1 => Value::Eight(self.take(8)?),
            2 => {
                let length = usize::try_from(self.varint()?).ok()?;
                Value::Bytes(self.take(length)?)
            }
            5 => Value::Four(self.take(4)?),
            _ => return None,
        };
        Some(Field { number: key >> 3, value })
    }

    fn varint(&mut self) -> Option<u64> {
        let mut number = 0;
        for shift in (0..64).step_by(7) {
            let byte = self.byte()?;
            number |= u64::from(byte & 0x7F) << shift;
            if byte & 0x80 == 0 {
                return Some(number);
            }
        }
        None
    }

    fn byte(&mut self) -> Option<u8> {
        let front = self.0.front_mut()?;
        let byte = front.split_to(1)[0];
        if front.is_empty() {
            self.0.pop_front();
        }
        Some(byte)
    }

    fn take(&mut self, mut length: usize) -> Option<Chunks> {
        let mut pieces = Vec::new();
        while length > 0 {
            let front = self.0.front_mut()?;
            let piece = front.split_to(length.min(front.len()));
            length -= piece.len();
            pieces.push(piece);
            if front.is_empty() {
                self.0.pop_front();
            }
        }
        Some(Chunks::from(pieces))
    }
}
