//! Arrays of numbers in an answer: compact in Base64, readable as JSON.

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use half::f16;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// How arrays of numbers are written.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
#[schema(as = InspectEncoding)]
pub(in crate::http) enum Encoding {
    /// Little-endian 16-bit or 32-bit floats in Base64, as `f16` or `f32`.
    #[default]
    Base64,
    /// Lists of numbers with all their digits, as `values`.
    Json,
}

/// An array of numbers, row by row.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub(in crate::http) enum Values {
    /// 16-bit floats in little-endian order, in Base64.
    F16(String),
    /// 32-bit floats in little-endian order, in Base64.
    F32(String),
    /// A list of numbers.
    #[serde(rename = "values")]
    List(Vec<f32>),
}

/// A matrix.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub(in crate::http) struct Matrix {
    /// Rows and columns.
    shape: [usize; 2],
    #[serde(flatten)]
    values: Values,
}

impl Encoding {
    /// Encodes numbers with 11 bits of precision, enough to draw them; as JSON with all digits, and exactly if
    /// one is beyond the range of 16-bit floats.
    pub(super) fn half(self, numbers: Vec<f32>) -> Values {
        let fits = |x: &f32| f16::from_f32(*x).is_finite() || !x.is_finite();
        match self {
            Self::Base64 if !numbers.iter().all(fits) => self.exact(numbers),
            Self::Base64 => {
                let halves = numbers.iter().map(|&x| f16::from_f32(x).to_le_bytes());
                let bytes: Vec<u8> = halves.flatten().collect();
                Values::F16(BASE64_STANDARD.encode(bytes))
            }
            Self::Json => Values::List(numbers),
        }
    }

    /// Encodes numbers exactly.
    pub(super) fn exact(self, numbers: Vec<f32>) -> Values {
        match self {
            Self::Base64 => {
                let bytes: Vec<u8> = numbers.iter().flat_map(|x| x.to_le_bytes()).collect();
                Values::F32(BASE64_STANDARD.encode(bytes))
            }
            Self::Json => Values::List(numbers),
        }
    }
}

impl Matrix {
    /// Creates a matrix of `rows` rows.
    pub(super) fn new(rows: usize, columns: usize, values: Values) -> Self {
        Self {
            shape: [rows, columns],
            values,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arrays_are_little_endian_floats_or_lists() {
        let json = |values| serde_json::to_string(&values).unwrap();
        let numbers = || vec![1.0f32, -0.5];
        // 00 3c 00 b8; 00 00 80 3f 00 00 00 bf.
        assert_eq!(
            json(Encoding::Base64.half(numbers())),
            r#"{"f16":"ADwAuA=="}"#
        );
        assert_eq!(
            json(Encoding::Base64.exact(numbers())),
            r#"{"f32":"AACAPwAAAL8="}"#
        );
        // 65504 is the greatest 16-bit float: 00 50 c3 47 is 100,000.
        assert_eq!(
            json(Encoding::Base64.half(vec![1e5])),
            r#"{"f32":"AFDDRw=="}"#
        );
        assert_eq!(json(Encoding::Json.half(vec![0.1])), r#"{"values":[0.1]}"#);
        let matrix = Matrix::new(1, 2, Encoding::Json.exact(numbers()));
        let written = serde_json::to_string(&matrix).unwrap();
        assert_eq!(written, r#"{"shape":[1,2],"values":[1.0,-0.5]}"#);
    }
}
