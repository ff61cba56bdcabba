//! What a pickled index would take in memory, found before it is read.
//!
//! An index can ask for more than it has: each object that it fetches from its memo is a copy, so a few hundred
//! bytes can double a list until no memory is left, and objects can be nested deeper than the stack. The sizes of
//! objects follow from the opcodes alone, without building any.
//!
//! Opcodes: `pickletools` of Python. Those that the reader does not know are left to it to refuse.

use std::collections::HashMap;

/// Maximum size of all objects, copies included, in units of about 64 bytes. The index of 25,000 tensors takes
/// half of it.
const MAX_SIZE: u64 = 8 << 20;
/// Maximum depth of nested objects.
const MAX_DEPTH: u32 = 200;
/// Bytes of text in a unit of size.
const TEXT_UNIT: usize = 64;

/// The size of an object with all that it contains.
#[derive(Debug, Clone, Copy)]
struct Size {
    units: u64,
    depth: u32,
}

impl Size {
    fn text(bytes: usize) -> Self {
        Self {
            units: 1 + (bytes / TEXT_UNIT) as u64,
            depth: 1,
        }
    }

    /// Returns the size of an object around this one and others.
    fn around(self, others: impl IntoIterator<Item = Self>) -> Self {
        others.into_iter().fold(self, |all, other| Self {
            units: all.units.saturating_add(other.units),
            depth: all.depth.max(other.depth.saturating_add(1)),
        })
    }
}

/// Checks an index.
///
/// # Errors
/// What it has too much of.
pub(super) fn check(pickle: &[u8]) -> Result<(), String> {
    let mut machine = Machine {
        rest: pickle,
        stack: Vec::new(),
        memo: HashMap::new(),
        total: 0,
    };
    // Whatever ends it early is refused by the reader.
    while machine.step().is_some() {
        if machine.total > MAX_SIZE {
            return Err("its index of tensors takes too much memory".to_owned());
        }
        let last = machine.stack.last().copied().flatten();
        if last.is_some_and(|last| last.depth > MAX_DEPTH) {
            return Err(format!(
                "its index of tensors is nested more than {MAX_DEPTH} deep"
            ));
        }
    }
    Ok(())
}

/// The reader's stack and memo, in sizes.
struct Machine<'a> {
    rest: &'a [u8],
    /// `None` is a mark.
    stack: Vec<Option<Size>>,
    memo: HashMap<u32, Size>,
    total: u64,
}

impl Machine<'_> {
    /// Runs the next opcode; `None` at the end, or if the reader would fail.
    fn step(&mut self) -> Option<()> {
        let opcode = self.take(1)?[0];
        match opcode {
            // PROTO
            0x80 => {
                self.take(1)?;
            }
            // GLOBAL
            b'c' => {
                let bytes = self.line()? + self.line()?;
                self.push(Size::text(bytes));
            }
            // BININT, BININT1, BININT2, BINFLOAT
            b'J' => self.leaf(4)?,
            b'K' => self.leaf(1)?,
            b'M' => self.leaf(2)?,
            b'G' => self.leaf(8)?,
            // BINUNICODE
            b'X' => {
                let length = self.number(4)? as usize;
                self.take(length)?;
                self.push(Size::text(length));
            }
            // LONG1
            0x8a => {
                let length = self.number(1)? as usize;
                self.leaf(length)?;
            }
            // NONE, NEWTRUE, NEWFALSE, EMPTY_TUPLE, EMPTY_LIST, EMPTY_DICT
            b'N' | 0x88 | 0x89 | b')' | b']' | b'}' => self.push(Size::text(0)),
            // MARK
            b'(' => self.stack.push(None),
            // BINPERSID, TUPLE1
            b'Q' | 0x85 => self.wrap(1)?,
            // TUPLE2, REDUCE, NEWOBJ, BUILD
            0x86 | b'R' | 0x81 | b'b' => self.wrap(2)?,
            // TUPLE3
            0x87 => self.wrap(3)?,
            // TUPLE, DICT
            b't' | b'd' => {
                let parts = self.pop_to_mark()?;
                self.push_around(parts);
            }
            // APPEND
            b'a' => {
                let value = self.pop()?;
                self.extend([value])?;
            }
            // SETITEM
            b's' => {
                let pair = [self.pop()?, self.pop()?];
                self.extend(pair)?;
            }
            // APPENDS, SETITEMS
            b'e' | b'u' => {
                let parts = self.pop_to_mark()?;
                self.extend(parts)?;
            }
            // BINGET, LONG_BINGET
            b'h' | b'j' => {
                let id = self.number(if opcode == b'h' { 1 } else { 4 })?;
                let object = *self.memo.get(&id)?;
                self.push(object);
            }
            // BINPUT, LONG_BINPUT
            b'q' | b'r' => {
                let id = self.number(if opcode == b'q' { 1 } else { 4 })?;
                let object = (*self.stack.last()?)?;
                self.total = self.total.saturating_add(object.units);
                self.memo.insert(id, object);
            }
            // STOP, and what the reader does not know.
            _ => return None,
        }
        Some(())
    }

    fn take(&mut self, bytes: usize) -> Option<&[u8]> {
        let (taken, rest) = self.rest.split_at_checked(bytes)?;
        self.rest = rest;
        Some(taken)
    }

    fn number(&mut self, bytes: usize) -> Option<u32> {
        let digits = self.take(bytes)?.iter().rev();
        Some(digits.fold(0, |number, &byte| number << 8 | u32::from(byte)))
    }

    /// Reads a line; returns its length.
    fn line(&mut self) -> Option<usize> {
        let length = self.rest.iter().position(|&byte| byte == b'\n')?;
        self.take(length + 1)?;
        Some(length)
    }

    /// Pushes a new object.
    fn push(&mut self, object: Size) {
        self.total = self.total.saturating_add(object.units);
        self.stack.push(Some(object));
    }

    fn leaf(&mut self, bytes: usize) -> Option<()> {
        self.take(bytes)?;
        self.push(Size::text(0));
        Some(())
    }

    fn pop(&mut self) -> Option<Size> {
        self.stack.pop()?
    }

    fn pop_to_mark(&mut self) -> Option<Vec<Size>> {
        let mark = self.stack.iter().rposition(Option::is_none)?;
        let parts = self.stack.split_off(mark + 1);
        self.stack.pop();
        Some(parts.into_iter().flatten().collect())
    }

    /// Replaces the last objects by one that contains them.
    fn wrap(&mut self, count: usize) -> Option<()> {
        let parts = (0..count).map(|_| self.pop()).collect::<Option<Vec<_>>>()?;
        self.push_around(parts);
        Some(())
    }

    /// Pushes an object that contains others, which have been counted.
    fn push_around(&mut self, parts: Vec<Size>) {
        self.total = self.total.saturating_add(1);
        self.stack.push(Some(Size::text(0).around(parts)));
    }

    /// Adds objects to the last one.
    fn extend(&mut self, parts: impl IntoIterator<Item = Size>) -> Option<()> {
        let last = self.stack.last_mut()?.as_mut()?;
        *last = last.around(parts);
        Some(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_index_that_doubles_itself_is_refused() {
        // A tuple of the memo's object twice, put back, again and again.
        let mut bomb = b"\x80\x02)q\x00".to_vec();
        for _ in 0..40 {
            bomb.extend(b"h\x00h\x00\x86q\x00");
        }
        bomb.push(b'.');
        let refused = check(&bomb).expect_err("a bomb");
        assert!(refused.contains("memory"), "{refused}");

        // A text of 1 MB, a thousand times.
        let mut copies = b"\x80\x02X\x00\x00\x10\x00".to_vec();
        copies.resize(copies.len() + (1 << 20), b'a');
        copies.extend(b"q\x00");
        copies.extend(b"h\x00".repeat(1000));
        assert!(check(&copies).is_err());
    }

    #[test]
    fn an_index_that_is_nested_too_deep_is_refused() {
        let nested = [&b"\x80\x02)"[..], &b"\x85".repeat(100_000)].concat();
        let refused = check(&nested).expect_err("too deep");
        assert!(refused.contains("200 deep"), "{refused}");
        let lists = [&b"\x80\x02"[..], &b"]".repeat(300), &b"a".repeat(299)].concat();
        assert!(check(&lists).is_err());
    }

    #[test]
    fn what_the_reader_refuses_is_left_to_it() {
        for broken in [
            &b""[..],
            b"\x80",
            b"h\x07",
            b"X\xff\xff\xff\xff",
            b"t",
            b"\xff",
            b"a",
        ] {
            assert_eq!(check(broken), Ok(()), "{broken:?}");
        }
    }
}
