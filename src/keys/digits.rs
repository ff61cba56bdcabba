//! Hexadecimal digits, the form of ids, secrets and hashes.

use std::fmt::Write;

use ring::error::Unspecified;
use ring::rand::{SecureRandom, SystemRandom};

/// Digits of an id.
pub(super) const ID_DIGITS: usize = 12;

/// Returns whether a byte is a digit or one of the letters a to f.
pub(super) fn is_digit(byte: u8) -> bool {
    matches!(byte, b'0'..=b'9' | b'a'..=b'f')
}

/// Returns `BYTES` random bytes as hexadecimal digits.
pub(super) fn random_digits<const BYTES: usize>() -> Result<String, Unspecified> {
    let mut bytes = [0; BYTES];
    SystemRandom::new().fill(&mut bytes)?;
    let mut digits = String::with_capacity(2 * BYTES);
    for byte in bytes {
        // Writing to a string does not fail.
        let _ = write!(digits, "{byte:02x}");
    }
    Ok(digits)
}
