//! Texts by their first bytes: finds the longest of many texts at one place of another.

use super::table::PairTable;

/// A set of texts with a number each.
#[derive(Debug, Clone, Default)]
pub(in crate::text) struct Trie {
    /// The node after a node and a byte; node 0 is the root.
    next: PairTable,
    /// The number of the text that ends at each node.
    ends: Vec<Option<u32>>,
    /// Whether a text begins with each byte, which saves most look-ups.
    first: Vec<bool>,
}

impl Trie {
    /// Adds a text, unless it is empty; of equal texts the last one counts.
    pub(in crate::text) fn insert(&mut self, text: &[u8], number: u32) {
        let Some(&first) = text.first() else {
            return;
        };
        if self.ends.is_empty() {
            self.ends.push(None);
            self.first.resize(256, false);
        }
        if let Some(begins) = self.first.get_mut(usize::from(first)) {
            *begins = true;
        }
        let mut node = 0;
        for &byte in text {
            let known = self.next.get(node, u32::from(byte));
            node = known.map_or_else(|| self.add_node(node, byte), |(next, _)| next);
        }
        if let Some(end) = self.ends.get_mut(node as usize) {
            *end = Some(number);
        }
    }

    fn add_node(&mut self, node: u32, byte: u8) -> u32 {
        // A file of 256 MB has fewer nodes.
        let next = u32::try_from(self.ends.len()).unwrap_or(u32::MAX);
        self.next.insert(node, u32::from(byte), (next, 0));
        self.ends.push(None);
        next
    }

    /// Returns whether it has no texts.
    pub(in crate::text) fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    /// Returns whether a text begins with this byte.
    #[inline]
    pub(in crate::text) fn may_begin(&self, byte: u8) -> bool {
        self.first
            .get(usize::from(byte))
            .is_some_and(|&begins| begins)
    }

    /// Returns the length and number of the longest text that `text` begins with.
    pub(in crate::text) fn longest(&self, text: &[u8]) -> Option<(usize, u32)> {
        let mut node = 0;
        let mut longest = None;
        for (at, &byte) in text.iter().enumerate() {
            let Some((next, _)) = self.next.get(node, u32::from(byte)) else {
                break;
            };
            node = next;
            if let Some(number) = self.ends.get(node as usize).copied().flatten() {
                longest = Some((at + 1, number));
            }
        }
        longest
    }

    /// Returns whether `text` begins with one of the texts, or one of them with `text`.
    pub(in crate::text) fn agrees(&self, text: &[u8]) -> bool {
        let mut node = 0;
        for &byte in text {
            let Some((next, _)) = self.next.get(node, u32::from(byte)) else {
                return false;
            };
            node = next;
            if self.ends.get(node as usize).is_some_and(Option::is_some) {
                return true;
            }
        }
        !self.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_text_is_found() {
        let mut trie = Trie::default();
        assert!(trie.is_empty() && !trie.agrees(b"") && trie.longest(b"a").is_none());
        for (text, number) in [("\n", 1), ("\n\n\n", 3), ("<b>", 7), ("", 9)] {
            trie.insert(text.as_bytes(), number);
        }
        assert_eq!(trie.longest(b"\n\na"), Some((1, 1)));
        assert_eq!(trie.longest(b"\n\n\n\n"), Some((3, 3)));
        assert_eq!(trie.longest(b"<b"), None);
        assert!(trie.may_begin(b'<') && !trie.may_begin(b'b'));
    }

    #[test]
    fn texts_agree_if_one_begins_with_the_other() {
        let mut trie = Trie::default();
        trie.insert(b"<b>", 0);
        for (text, agrees) in [("", true), ("<", true), ("<b>x", true), ("<c", false)] {
            assert_eq!(trie.agrees(text.as_bytes()), agrees, "{text}");
        }
    }
}
