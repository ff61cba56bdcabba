//! What a pickled index would take in memory, and which tensors it has, found before it is read.
//!
//! An index can ask for more than it has: each object that it fetches from its memo is a copy, so a few hundred
//! bytes can double a list until no memory is left, and objects can be nested deeper than the stack. The sizes of
//! objects follow from the opcodes alone, without building any. The reader leaves out tensors of kinds that it does
//! not know; the names say which.
//!
//! Opcodes: `pickletools` of Python, those that the reader knows.

use std::collections::HashMap;

/// Maximum size of all objects, copies included, in units of about 64 bytes. The index of 25,000 tensors takes
/// half of it.
const MAX_SIZE: u64 = 8 << 20;
/// Maximum depth of nested objects.
const MAX_DEPTH: u32 = 200;
/// Bytes of text in a unit of size.
const TEXT_UNIT: usize = 64;

/// The size of an object with all that it contains, and what of its kind matters.
#[derive(Debug, Clone, Copy)]
struct Size<'a> {
    units: u64,
    depth: u32,
    kind: Kind<'a>,
}

#[derive(Debug, Clone, Copy)]
enum Kind<'a> {
    Text(&'a [u8]),
    /// A function that makes a tensor.
    Rebuild,
    Tensor,
    Other,
}

impl Size<'_> {
    fn text(bytes: usize) -> Self {
        Self {
            units: 1 + (bytes / TEXT_UNIT) as u64,
            depth: 1,
            kind: Kind::Other,
        }
    }

    /// Returns the size of an object around this one and others.
    fn around(self, others: impl IntoIterator<Item = Self>) -> Self {
        others.into_iter().fold(self, |all, other| Self {
            units: all.units.saturating_add(other.units),
            depth: all.depth.max(other.depth.saturating_add(1)),
            kind: all.kind,
        })
    }
}

/// Checks an index; returns the names of all tensors in its dictionaries.
///
/// # Errors
/// What it has too much of, or if it is cut off or has an opcode that the reader does not know.
pub(super) fn check(pickle: &[u8]) -> Result<Vec<String>, String> {
    let mut machine = Machine {
        rest: pickle,
        stack: Vec::new(),
        memo: HashMap::new(),
        total: 0,
        tensors: Vec::new(),
    };
    loop {
        match machine.step() {
            Some(true) => (),
            Some(false) => return Ok(machine.tensors),
            None => return Err("its index of tensors is not valid".to_owned()),
        }
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
}

/// The reader's stack and memo, in sizes.
struct Machine<'a> {
    rest: &'a [u8],
    /// `None` is a mark.
    stack: Vec<Option<Size<'a>>>,
    memo: HashMap<u32, Size<'a>>,
    total: u64,
    /// Names of tensors so far.
    tensors: Vec<String>,
}

impl<'a> Machine<'a> {
    /// Runs the next opcode; `Some(false)` at the end, `None` if the reader would fail.
    fn step(&mut self) -> Option<bool> {
        let opcode = self.take(1)?[0];
        match opcode {
            // PROTO
            0x80 => {
                self.take(1)?;
            }
            // GLOBAL
            b'c' => {
                let (module, name) = (self.line()?, self.line()?);
                let is_rebuild = name.starts_with(b"_rebuild_");
                self.push(Size {
                    kind: if is_rebuild {
                        Kind::Rebuild
                    } else {
                        Kind::Other
                    },
                    ..Size::text(module.len() + name.len())
                });
            }
            // BININT, BININT1, BININT2, BINFLOAT
            b'J' => self.leaf(4)?,
            b'K' => self.leaf(1)?,
            b'M' => self.leaf(2)?,
            b'G' => self.leaf(8)?,
            // BINUNICODE
            b'X' => {
                let length = self.number(4)? as usize;
                let text = self.take(length)?;
                self.push(Size {
                    kind: Kind::Text(text),
                    ..Size::text(length)
                });
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
            // REDUCE
            b'R' => {
                let (arguments, function) = (self.pop()?, self.pop()?);
                self.push_around(vec![arguments, function]);
                let made = self.stack.last_mut()?.as_mut()?;
                if matches!(function.kind, Kind::Rebuild) {
                    made.kind = Kind::Tensor;
                }
            }
            // TUPLE2, NEWOBJ, BUILD
            0x86 | 0x81 | b'b' => self.wrap(2)?,
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
                let (value, key) = (self.pop()?, self.pop()?);
                self.name(&[key, value]);
                self.extend([key, value])?;
            }
            // APPENDS, SETITEMS
            b'e' | b'u' => {
                let parts = self.pop_to_mark()?;
                if opcode == b'u' {
                    self.name(&parts);
                }
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
            // STOP
            b'.' => return Some(false),
            _ => return None,
        }
        Some(true)
    }

    /// Notes the names of the tensors among keys and values.
    fn name(&mut self, pairs: &[Size<'a>]) {
        for pair in pairs.as_chunks::<2>().0 {
            if let (Kind::Text(name), Kind::Tensor) = (pair[0].kind, pair[1].kind) {
                self.tensors
                    .push(String::from_utf8_lossy(name).into_owned());
            }
        }
    }

    fn take(&mut self, bytes: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.rest.split_at_checked(bytes)?;
        self.rest = rest;
        Some(taken)
    }

    fn number(&mut self, bytes: usize) -> Option<u32> {
        let digits = self.take(bytes)?.iter().rev();
        Some(digits.fold(0, |number, &byte| number << 8 | u32::from(byte)))
    }

    /// Reads a line.
    fn line(&mut self) -> Option<&'a [u8]> {
        let length = self.rest.iter().position(|&byte| byte == b'\n')?;
        let line = self.take(length + 1)?;
        line.split_last().map(|(_, line)| line)
    }

    /// Pushes a new object.
    fn push(&mut self, object: Size<'a>) {
        self.total = self.total.saturating_add(object.units);
        self.stack.push(Some(object));
    }

    fn leaf(&mut self, bytes: usize) -> Option<()> {
        self.take(bytes)?;
        self.push(Size::text(0));
        Some(())
    }

    fn pop(&mut self) -> Option<Size<'a>> {
        self.stack.pop()?
    }

    fn pop_to_mark(&mut self) -> Option<Vec<Size<'a>>> {
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
    fn push_around(&mut self, parts: Vec<Size<'a>>) {
        self.total = self.total.saturating_add(1);
        self.stack.push(Some(Size::text(0).around(parts)));
    }

    /// Adds objects to the last one.
    fn extend(&mut self, parts: impl IntoIterator<Item = Size<'a>>) -> Option<()> {
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
    fn an_index_that_is_cut_off_is_refused() {
        // Among them a text of 4 GB, which the reader would make room for.
        for broken in [
            &b""[..],
            b"\x80",
            b"h\x07",
            b"X\xff\xff\xff\xff",
            b"t",
            b"\xff",
            b"a",
        ] {
            assert!(check(broken).is_err(), "{broken:?}");
        }
        assert_eq!(check(b"\x80\x02}."), Ok(Vec::new()));
    }

    #[test]
    fn the_names_of_tensors_are_known_whatever_they_are_made_by() {
        // {"a": rebuild(()), "b": 1, "c": rebuild(())}
        let mut pickle =
            b"\x80\x02}(X\x01\x00\x00\x00actorch._utils\n_rebuild_tensor_v2\nq\x00)R".to_vec();
        pickle.extend(b"X\x01\x00\x00\x00bK\x01X\x01\x00\x00\x00ch\x00)Ru.");
        assert_eq!(check(&pickle), Ok(vec!["a".to_owned(), "c".to_owned()]));
    }
}
