//! The texts of a vocabulary's tokens, in both directions.

use super::MAX_ID;

/// Start of the text of an id that no token has.
const ABSENT: u32 = u32::MAX;
/// A slot without a token.
const FREE: u32 = u32::MAX;

/// Tokens by text, and texts by token id. All texts are in one string.
#[derive(Debug, Clone)]
pub(super) struct Vocab {
    texts: String,
    /// Start and end of each id's text.
    spans: Vec<(u32, u32)>,
    /// Ids by the hash of their texts: a power of two of slots, at most half of them in use.
    slots: Vec<u32>,
}

impl Vocab {
    /// Creates a vocabulary of texts with ids; of equal texts the last one counts.
    ///
    /// # Errors
    /// If an id is too large.
    pub(super) fn new<'t>(
        tokens: impl ExactSizeIterator<Item = (&'t str, u32)>,
    ) -> Result<Self, String> {
        let mut vocab = Self {
            texts: String::new(),
            spans: Vec::with_capacity(tokens.len()),
            slots: vec![FREE; tokens.len().saturating_mul(2).next_power_of_two().max(16)],
        };
        for (text, id) in tokens {
            vocab.add(text, id)?;
        }
        Ok(vocab)
    }

    fn add(&mut self, text: &str, id: u32) -> Result<(), String> {
        // The table has one entry for each id up to the last, so a single absurd id would exhaust
        // memory.
        if id > MAX_ID {
            return Err(format!(
                "it has the token id {id}; the largest possible is {MAX_ID}"
            ));
        }
        let start = u32::try_from(self.texts.len());
        self.texts.push_str(text);
        let end = u32::try_from(self.texts.len());
        let (Ok(start), Ok(end)) = (start, end) else {
            return Err("its tokens have more than 4 GB of text".to_owned());
        };
        let at = id as usize;
        if self.spans.len() <= at {
            self.spans.resize(at + 1, (ABSENT, 0));
        }
        let slot = self.slot(text);
        if let Some(slot) = self.slots.get_mut(slot) {
            let before = std::mem::replace(slot, id);
            if let Some(span) = self.spans.get_mut(before as usize) {
                *span = (ABSENT, 0);
            }
        }
        if let Some(span) = self.spans.get_mut(at) {
            *span = (start, end);
        }
        Ok(())
    }

    /// Returns the id of a text.
    pub(super) fn id(&self, text: &str) -> Option<u32> {
        let id = self.slots.get(self.slot(text)).copied()?;
        (id != FREE).then_some(id)
    }

    /// Returns the text of an id.
    pub(super) fn text(&self, id: u32) -> Option<&str> {
        let &(start, end) = self.spans.get(id as usize)?;
        self.texts.get(start as usize..end as usize)
    }

    /// Returns the number of ids up to the last.
    pub(super) fn len(&self) -> usize {
        self.spans.len()
    }

    /// Returns the slot of a text, or the free one where it would be.
    fn slot(&self, text: &str) -> usize {
        let mask = self.slots.len() - 1;
        let mut slot = usize::try_from(hash(text.as_bytes()) >> 32).unwrap_or(0) & mask;
        while let Some(&id) = self.slots.get(slot) {
            if id == FREE || self.text(id) == Some(text) {
                break;
            }
            slot = (slot + 1) & mask;
        }
        slot
    }
}

/// Returns a hash of bytes, whose high half is the better one. Not meant against an adversary.
pub(super) fn hash(bytes: &[u8]) -> u64 {
    let mix = |hash: u64, word: u64| {
        let product = u128::from(hash ^ word) * 0x9e37_79b9_7f4a_7c15;
        let (low, high) = (product as u64, (product >> 64) as u64);
        low ^ high
    };
    let (chunks, rest) = bytes.as_chunks::<8>();
    let mut hash = 0x243f_6a88_85a3_08d3 ^ bytes.len() as u64;
    for &chunk in chunks {
        hash = mix(hash, u64::from_le_bytes(chunk));
    }
    let last = rest
        .iter()
        .fold(0, |word, &byte| word << 8 | u64::from(byte));
    mix(hash, last)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_and_ids_find_each_other() {
        let tokens: Vec<(String, u32)> = (0..3000).map(|n| (format!("t{n}"), n * 2)).collect();
        let vocab = Vocab::new(tokens.iter().map(|(text, id)| (text.as_str(), *id))).unwrap();
        assert_eq!(vocab.len(), 5999);
        for (text, id) in &tokens {
            assert_eq!(vocab.id(text), Some(*id));
            assert_eq!(vocab.text(*id), Some(text.as_str()));
            assert_eq!(vocab.text(id + 1), None);
        }
        assert_eq!(vocab.id(""), None);
    }

    #[test]
    fn of_equal_texts_the_last_counts() {
        let vocab = Vocab::new([("a", 0), ("b", 1), ("a", 2)].into_iter()).unwrap();
        assert_eq!((vocab.id("a"), vocab.text(0)), (Some(2), None));
        let absurd = Vocab::new([("a", MAX_ID + 1)].into_iter()).unwrap_err();
        assert!(absurd.contains("16777216"), "{absurd}");
    }
}
