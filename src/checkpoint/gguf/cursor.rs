//! Reads the header of a GGUF file from its bytes. Nothing is read beyond their end, and nothing is allocated
//! for a length before as many bytes are known to be there.

use std::ops::Range;

/// A position in the bytes of a file.
pub(super) struct Cursor<'a> {
    bytes: &'a [u8],
    at: usize,
}

/// A read that the file does not allow, as a sentence about its place.
pub(super) type Problem = String;

impl<'a> Cursor<'a> {
    pub fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, at: 0 }
    }

    /// Returns the offset of the next byte.
    pub fn at(&self) -> usize {
        self.at
    }

    /// Returns the number of bytes that are left.
    pub fn left(&self) -> usize {
        self.bytes.len() - self.at
    }

    /// Skips bytes and returns where they are.
    pub fn skip(&mut self, length: usize) -> Result<Range<usize>, Problem> {
        if length > self.left() {
            let (at, end) = (self.at, self.bytes.len());
            return Err(format!(
                "needs {length} bytes at offset {at}, but the file ends at {end}"
            ));
        }
        let from = self.at;
        self.at += length;
        Ok(from..self.at)
    }

    fn take(&mut self, length: usize) -> Result<&'a [u8], Problem> {
        let range = self.skip(length)?;
        Ok(self.bytes.get(range).unwrap_or_default())
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Problem> {
        let bytes = self.take(N)?;
        Ok(bytes.first_chunk().copied().unwrap_or([0; N]))
    }

    pub fn u32(&mut self) -> Result<u32, Problem> {
        self.array().map(u32::from_le_bytes)
    }

    pub fn u64(&mut self) -> Result<u64, Problem> {
        self.array().map(u64::from_le_bytes)
    }

    /// Reads a count of things that take at least `least` bytes each: no more than the rest of the file has
    /// room for, and at most `limit`.
    pub fn count(&mut self, things: &str, least: usize, limit: u64) -> Result<usize, Problem> {
        let count = self.u64()?;
        if count > limit {
            return Err(format!(
                "has {count} {things}; at most {limit} are supported"
            ));
        }
        let room = self.left() / least.max(1);
        match usize::try_from(count) {
            Ok(count) if count <= room => Ok(count),
            _ => Err(format!(
                "has {count} {things}, but the file has room for {room} at most"
            )),
        }
    }

    /// Skips a string of at most `limit` bytes and returns where its bytes are.
    pub fn string(&mut self, limit: u64) -> Result<Range<usize>, Problem> {
        let length = self.u64()?;
        if length > limit {
            return Err(format!(
                "has a string of {length} bytes; at most {limit} are supported"
            ));
        }
        self.skip(usize::try_from(length).unwrap_or(usize::MAX))
    }

    /// Reads a name of at most `limit` bytes.
    pub fn name(&mut self, limit: u64) -> Result<&'a str, Problem> {
        let range = self.string(limit)?;
        let bytes = self.bytes.get(range.clone()).unwrap_or_default();
        let not_text = |_| format!("has a name at offset {} that is not UTF-8", range.start);
        str::from_utf8(bytes).map_err(not_text)
    }
}
