//! The types of tensors in GGUF files (`ggml_type` in ggml.h).

use crate::kernels::stored::StoredType;

/// Returns the stored type of a number, or the name of a type that is not supported.
pub(super) fn stored_type(number: u32) -> Result<StoredType, String> {
    let other = match number {
        0 => return Ok(StoredType::F32),
        1 => return Ok(StoredType::F16),
        2 => return Ok(StoredType::Q4_0),
        3 => return Ok(StoredType::Q4_1),
        6 => return Ok(StoredType::Q5_0),
        7 => return Ok(StoredType::Q5_1),
        8 => return Ok(StoredType::Q8_0),
        12 => return Ok(StoredType::Q4K),
        13 => return Ok(StoredType::Q5K),
        14 => return Ok(StoredType::Q6K),
        30 => return Ok(StoredType::Bf16),
        9 => "Q8_1",
        10 => "Q2_K",
        11 => "Q3_K",
        15 => "Q8_K",
        16 => "IQ2_XXS",
        17 => "IQ2_XS",
        18 => "IQ3_XXS",
        19 => "IQ1_S",
        20 => "IQ4_NL",
        21 => "IQ3_S",
        22 => "IQ2_S",
        23 => "IQ4_XS",
        24 => "I8",
        25 => "I16",
        26 => "I32",
        27 => "I64",
        28 => "F64",
        29 => "IQ1_M",
        34 => "TQ1_0",
        35 => "TQ2_0",
        39 => "MXFP4",
        _ => return Err(format!("number {number}")),
    };
    Err(other.to_owned())
}
