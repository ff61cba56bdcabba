//! A buffer with a size limit, for text of unknown length.

use std::fmt;
use std::io;

/// Text of at most `limit` bytes; a write beyond the limit fails and leaves the text unchanged.
#[derive(Debug)]
pub(super) struct Bounded {
    text: Vec<u8>,
    limit: usize,
    /// Number of empty writes; at most `limit`, since they take time too.
    empty: usize,
}

impl Bounded {
    /// Creates an empty buffer of at most `limit` bytes.
    pub(super) fn new(limit: usize) -> Self {
        Self {
            text: Vec::new(),
            limit,
            empty: 0,
        }
    }

    /// Returns the text, with U+FFFD for invalid UTF-8.
    pub(super) fn into_text(self) -> String {
        String::from_utf8(self.text)
            .unwrap_or_else(|error| String::from_utf8_lossy(error.as_bytes()).into_owned())
    }

    fn push(&mut self, bytes: &[u8]) -> bool {
        let fits = bytes.len() <= self.limit - self.text.len();
        if fits {
            self.text.extend_from_slice(bytes);
        }
        fits
    }
}

impl io::Write for Bounded {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.push(bytes) {
            Ok(bytes.len())
        } else {
            Err(io::ErrorKind::FileTooLarge.into())
        }
    }

    fn write_all(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.empty += usize::from(bytes.is_empty());
        if self.empty <= self.limit && self.push(bytes) {
            Ok(())
        } else {
            Err(io::ErrorKind::FileTooLarge.into())
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl fmt::Write for Bounded {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        if self.push(text.as_bytes()) {
            Ok(())
        } else {
            Err(fmt::Error)
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fmt::Write as _;

    use super::*;

    #[test]
    fn a_write_beyond_the_limit_fails_and_changes_nothing() {
        let mut text = Bounded::new(4);
        assert!(text.write_str("abc").is_ok());
        assert_eq!(text.write_str("de"), Err(fmt::Error));
        assert!(text.write_str("d").is_ok());
        let refused = io::Write::write_all(&mut text, b"e").unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::FileTooLarge);
        assert_eq!(text.into_text(), "abcd");
    }
}
