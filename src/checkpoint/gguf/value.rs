//! Metadata values: where they are in the file, and their content.

use std::ops::Range;

use super::cursor::{Cursor, Problem};

/// Maximum depth of arrays in arrays; published files have none.
const MAX_DEPTH: usize = 4;
/// Maximum length of a string, in bytes; chat templates are the longest.
const MAX_STRING: u64 = 64 << 20;
/// Maximum number of elements of an array; the merges of a large vocabulary are about 500,000.
const MAX_ELEMENTS: u64 = 1 << 26;

/// The type of a value (`gguf_type` in gguf.h).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ValueType {
    U8,
    I8,
    U16,
    I16,
    U32,
    I32,
    F32,
    Bool,
    String,
    Array,
    U64,
    I64,
    F64,
}

impl ValueType {
    fn read(cursor: &mut Cursor<'_>) -> Result<Self, Problem> {
        Ok(match cursor.u32()? {
            0 => Self::U8,
            1 => Self::I8,
            2 => Self::U16,
            3 => Self::I16,
            4 => Self::U32,
            5 => Self::I32,
            6 => Self::F32,
            7 => Self::Bool,
            8 => Self::String,
            9 => Self::Array,
            10 => Self::U64,
            11 => Self::I64,
            12 => Self::F64,
            other => return Err(format!("has a value of type {other}; expected 0 to 12")),
        })
    }

    /// Returns the minimum size of a value, in bytes: the size itself, but for strings and arrays.
    const fn least(self) -> usize {
        match self {
            Self::U8 | Self::I8 | Self::Bool => 1,
            Self::U16 | Self::I16 => 2,
            Self::U32 | Self::I32 | Self::F32 => 4,
            Self::U64 | Self::I64 | Self::F64 | Self::String => 8,
            Self::Array => 12,
        }
    }

    const fn name(self) -> &'static str {
        match self {
            Self::U8 => "u8",
            Self::I8 => "i8",
            Self::U16 => "u16",
            Self::I16 => "i16",
            Self::U32 => "u32",
            Self::I32 => "i32",
            Self::F32 => "f32",
            Self::Bool => "bool",
            Self::String => "string",
            Self::Array => "array",
            Self::U64 => "u64",
            Self::I64 => "i64",
            Self::F64 => "f64",
        }
    }
}

/// A value in the bytes of a file; nothing of it is copied.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Value {
    /// Type of the value, or of an array's elements.
    kind: ValueType,
    /// Number of elements of an array; `None` if it is not one.
    elements: Option<usize>,
    /// Its bytes, without the length of a string or array.
    bytes: Range<usize>,
}

impl Value {
    /// Reads the type and the place of a value, and checks that the file has all of it.
    pub fn read(cursor: &mut Cursor<'_>) -> Result<Self, Problem> {
        match ValueType::read(cursor)? {
            ValueType::Array => Self::array(cursor, 1),
            ValueType::String => Ok(Self {
                kind: ValueType::String,
                elements: None,
                bytes: cursor.string(MAX_STRING)?,
            }),
            kind => Ok(Self {
                kind,
                elements: None,
                bytes: cursor.skip(kind.least())?,
            }),
        }
    }

    fn array(cursor: &mut Cursor<'_>, depth: usize) -> Result<Self, Problem> {
        if depth > MAX_DEPTH {
            return Err(format!(
                "has arrays in arrays more than {MAX_DEPTH} deep, at offset {}",
                cursor.at()
            ));
        }
        let kind = ValueType::read(cursor)?;
        let elements = cursor.count("elements", kind.least(), MAX_ELEMENTS)?;
        let from = cursor.at();
        match kind {
            ValueType::String => {
                for _ in 0..elements {
                    cursor.string(MAX_STRING)?;
                }
            }
            ValueType::Array => {
                for _ in 0..elements {
                    Self::array(cursor, depth + 1)?;
                }
            }
            // The count is known to fit, so the product is.
            _ => {
                cursor.skip(elements * kind.least())?;
            }
        }
        Ok(Self {
            kind,
            elements: Some(elements),
            bytes: from..cursor.at(),
        })
    }

    /// Returns the type in words: `u32`, `array of string`.
    pub fn type_name(&self) -> String {
        match self.elements {
            None => self.kind.name().to_owned(),
            Some(_) => format!("array of {}", self.kind.name()),
        }
    }

    /// Returns the number of elements of an array.
    pub fn elements(&self) -> Option<usize> {
        self.elements
    }

    /// Returns an integer of any type.
    pub fn integer(&self, file: &[u8]) -> Option<i128> {
        self.single().and_then(|()| self.integers(file)?.next())
    }

    /// Returns a number of any type. An f32 becomes the f64 with the same shortest decimal form, as if the
    /// file had been written from that.
    pub fn number(&self, file: &[u8]) -> Option<f64> {
        self.single()?;
        if let Some(mut integers) = self.integers(file) {
            return integers.next().map(|value| value as f64);
        }
        let bytes = self.slice(file);
        match self.kind {
            ValueType::F32 => {
                let value = f32::from_le_bytes(*bytes.first_chunk()?);
                Some(value.to_string().parse().unwrap_or(f64::from(value)))
            }
            ValueType::F64 => Some(f64::from_le_bytes(*bytes.first_chunk()?)),
            _ => None,
        }
    }

    /// Returns a bool.
    pub fn bool(&self, file: &[u8]) -> Option<bool> {
        self.single()?;
        match (self.kind, self.slice(file)) {
            (ValueType::Bool, [byte]) => Some(*byte != 0),
            _ => None,
        }
    }

    /// Returns the bytes of a string.
    pub fn string<'a>(&self, file: &'a [u8]) -> Option<&'a [u8]> {
        self.single()?;
        (self.kind == ValueType::String).then(|| self.slice(file))
    }

    /// Returns the elements of an array of integers or bools, or the one integer of a value.
    pub fn integers<'a>(&self, file: &'a [u8]) -> Option<impl Iterator<Item = i128> + use<'a>> {
        let read: fn(&[u8]) -> i128 = match self.kind {
            ValueType::U8 | ValueType::Bool => |b| little(b) as i128,
            ValueType::U16 | ValueType::U32 | ValueType::U64 => |b| little(b) as i128,
            ValueType::I8 => |b| i128::from((little(b) as u8).cast_signed()),
            ValueType::I16 => |b| i128::from((little(b) as u16).cast_signed()),
            ValueType::I32 => |b| i128::from((little(b) as u32).cast_signed()),
            ValueType::I64 => |b| i128::from((little(b) as u64).cast_signed()),
            ValueType::F32 | ValueType::F64 | ValueType::String | ValueType::Array => return None,
        };
        Some(self.slice(file).chunks_exact(self.kind.least()).map(read))
    }

    /// Returns the elements of an array of f32.
    pub fn floats<'a>(&self, file: &'a [u8]) -> Option<impl Iterator<Item = f32> + use<'a>> {
        if self.kind != ValueType::F32 || self.elements.is_none() {
            return None;
        }
        let values = self.slice(file).as_chunks().0;
        Some(values.iter().map(|bytes| f32::from_le_bytes(*bytes)))
    }

    /// Returns the bytes of the elements of an array of strings.
    pub fn strings<'a>(&self, file: &'a [u8]) -> Option<impl Iterator<Item = &'a [u8]> + use<'a>> {
        if self.kind != ValueType::String {
            return None;
        }
        self.elements?;
        let mut rest = self.slice(file);
        Some(std::iter::from_fn(move || {
            let (length, bytes) = rest.split_first_chunk()?;
            let length = usize::try_from(u64::from_le_bytes(*length)).ok()?;
            let (string, after) = bytes.split_at_checked(length)?;
            rest = after;
            Some(string)
        }))
    }

    fn single(&self) -> Option<()> {
        self.elements.is_none().then_some(())
    }

    fn slice<'a>(&self, file: &'a [u8]) -> &'a [u8] {
        file.get(self.bytes.clone()).unwrap_or_default()
    }
}

/// Returns up to 8 bytes as an unsigned integer.
fn little(bytes: &[u8]) -> u128 {
    let each = bytes.iter().rev();
    each.fold(0, |value, &byte| value << 8 | u128::from(byte))
}
