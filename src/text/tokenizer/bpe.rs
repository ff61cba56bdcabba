//! Byte-pair encoding (Sennrich et al. 2016, <https://arxiv.org/abs/1508.07909>): the symbols of a
//! word are merged pair by pair, the pair of the lowest rank first, the leftmost among equals.
//!
//! A word may be a whole text, as for `SentencePiece` vocabularies, so the time is at most that of
//! sorting the word's symbols. The ids are those of the `tokenizers` library.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use super::spelling::MARK;
use super::table::PairTable;
use super::vocab::Vocab;

/// Words of at most this many symbols are searched for the next merge; longer ones keep a heap.
const SEARCHED: usize = 24;

/// No rank: two symbols that don't merge.
const NEVER: u32 = u32::MAX;

/// A byte-pair encoding.
#[derive(Debug, Clone)]
pub(super) struct Bpe {
    /// Rank and result of each pair of tokens that merges.
    merges: PairTable,
    symbols: Symbols,
    /// Whether a word that is a token is taken as it is, whatever the merges make of it.
    whole_words: bool,
}

/// The symbols that words consist of before the first merge.
#[derive(Debug, Clone)]
pub(super) struct Symbols {
    /// What a symbol is.
    pub unit: Unit,
    /// The token for a character that no token has.
    pub unknown: Option<u32>,
    /// Whether several unknown characters in a row are one token.
    pub fuse_unknown: bool,
}

/// What a symbol is.
#[derive(Debug, Clone)]
pub(super) enum Unit {
    /// A byte: the token of each.
    Byte(Box<[Option<u32>; 256]>),
    /// A character.
    Character {
        /// The token of each ASCII character.
        ascii: Box<[Option<u32>; 128]>,
        /// The token of the mark that stands for a space, the most frequent of the others.
        mark: Option<u32>,
        /// The token `<0xNN>` of each byte, for the bytes of unknown characters.
        bytes: Option<Box<[Option<u32>; 256]>>,
    },
}

/// A part of a word while it is merged: a token, and its length in bytes.
#[derive(Debug, Clone, Copy)]
pub(super) struct Symbol {
    /// The token.
    pub id: u32,
    /// Its bytes in the word; 0 once it is merged into the one before it.
    pub length: u32,
    /// Rank and result of the merge with the next symbol.
    rank: u32,
    merged: u32,
    /// Places of its neighbours in a long word.
    previous: u32,
    next: u32,
}

/// Memory that is used again from word to word.
#[derive(Debug, Default)]
pub(super) struct Scratch {
    /// The tokens of the last word.
    pub symbols: Vec<Symbol>,
    heap: BinaryHeap<Reverse<u64>>,
}

/// One merge on the way to a token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Merge {
    /// Rank in the tokenizer's list; lower ranks go first.
    pub rank: u32,
    /// The parts of the token after it.
    pub parts: Vec<Vec<u8>>,
}

impl Bpe {
    /// Creates an encoding.
    pub(super) fn new(merges: PairTable, symbols: Symbols, whole_words: bool) -> Self {
        Self {
            merges,
            symbols,
            whole_words,
        }
    }

    /// Returns whether its symbols are bytes.
    pub(super) fn is_byte_level(&self) -> bool {
        matches!(self.symbols.unit, Unit::Byte(_))
    }

    /// Encodes a word into `scratch`.
    pub(super) fn encode(&self, vocab: &Vocab, word: &str, scratch: &mut Scratch) {
        scratch.symbols.clear();
        if self.whole_words
            && let Some(id) = self.whole(vocab, word)
        {
            push(&mut scratch.symbols, id, word.len());
            return;
        }
        self.symbols.split(vocab, word, &mut scratch.symbols);
        if scratch.symbols.len() <= SEARCHED {
            self.merge_short(&mut scratch.symbols);
        } else {
            self.merge_long(scratch);
        }
    }

    /// Returns the token of a whole word.
    fn whole(&self, vocab: &Vocab, word: &str) -> Option<u32> {
        match self.symbols.unit {
            Unit::Byte(_) => vocab.id(&super::spelling::to_alphabet(word.as_bytes())),
            Unit::Character { .. } => vocab.id(word),
        }
    }

    #[inline]
    fn rank(&self, left: u32, right: u32) -> (u32, u32) {
        self.merges.get(left, right).unwrap_or((NEVER, 0))
    }

    fn merge_short(&self, symbols: &mut Vec<Symbol>) {
        for at in 1..symbols.len() {
            self.rank_at(symbols, at - 1, at);
        }
        loop {
            let ranks = symbols
                .iter()
                .enumerate()
                .map(|(at, symbol)| (symbol.rank, at));
            let Some((rank, at)) = ranks.min().filter(|(rank, _)| *rank != NEVER) else {
                return;
            };
            debug_assert!(rank != NEVER && at + 1 < symbols.len());
            let right = symbols.remove(at + 1);
            if let Some(left) = symbols.get_mut(at) {
                left.id = left.merged;
                left.length += right.length;
                left.rank = NEVER;
            }
            self.rank_at(symbols, at, at + 1);
            if at > 0 {
                self.rank_at(symbols, at - 1, at);
            }
        }
    }

    /// Sets the rank of a symbol's merge with its next one.
    fn rank_at(&self, symbols: &mut [Symbol], at: usize, next: usize) -> u32 {
        let right = symbols.get(next).map(|symbol| symbol.id);
        let Some(left) = symbols.get_mut(at) else {
            return NEVER;
        };
        (left.rank, left.merged) = right.map_or((NEVER, 0), |right| self.rank(left.id, right));
        left.rank
    }

    fn merge_long(&self, scratch: &mut Scratch) {
        let Scratch { symbols, heap } = scratch;
        heap.clear();
        let mut first = Vec::with_capacity(symbols.len());
        for at in 0..symbols.len() {
            if let (Some(symbol), Ok(place)) = (symbols.get_mut(at), u32::try_from(at)) {
                symbol.previous = place.wrapping_sub(1);
                symbol.next = place + 1;
            }
            let rank = self.rank_at(symbols, at, at + 1);
            if rank != NEVER {
                first.push(entry(rank, at));
            }
        }
        heap.extend(first);
        while let Some(Reverse(top)) = heap.pop() {
            let (rank, at) = ((top >> 32) as u32, (top & u64::from(u32::MAX)) as usize);
            let Some(&left) = symbols.get(at) else {
                continue;
            };
            // Outdated: its symbols have been merged with others since.
            if left.length == 0 || left.rank != rank {
                continue;
            }
            let removed = left.next as usize;
            let Some(right) = symbols.get_mut(removed) else {
                continue;
            };
            let (length, next) = (right.length, right.next);
            right.length = 0;
            if let Some(symbol) = symbols.get_mut(at) {
                symbol.id = left.merged;
                symbol.length += length;
                symbol.next = next;
            }
            if let Some(after) = symbols.get_mut(next as usize) {
                after.previous = (top & u64::from(u32::MAX)) as u32;
            }
            for (at, next) in [(at, next as usize), (left.previous as usize, at)] {
                let rank = self.rank_at(symbols, at, next);
                if rank != NEVER {
                    heap.push(entry(rank, at));
                }
            }
        }
        symbols.retain(|symbol| symbol.length > 0);
    }

    /// Returns the merges from single symbols to a token, in order; `bytes` returns the bytes of one.
    pub(super) fn steps<'t>(
        &self,
        vocab: &Vocab,
        token: u32,
        bytes: impl Fn(u32) -> &'t [u8],
    ) -> Vec<Merge> {
        let mut symbols = Vec::new();
        match &self.symbols.unit {
            Unit::Byte(tokens) => self.symbols.split_bytes(tokens, bytes(token), &mut symbols),
            Unit::Character { .. } => {
                let text = vocab.text(token).unwrap_or_default();
                self.symbols.split(vocab, text, &mut symbols);
            }
        }
        let mut ids: Vec<u32> = symbols.iter().map(|symbol| symbol.id).collect();
        let mut merges = Vec::new();
        loop {
            let pairs = ids.windows(2).enumerate().filter_map(|(at, pair)| {
                let [left, right] = pair else { return None };
                let (rank, merged) = self.rank(*left, *right);
                (rank != NEVER).then_some((rank, at, merged))
            });
            let Some((rank, at, merged)) = pairs.min() else {
                return merges;
            };
            ids.remove(at + 1);
            if let Some(left) = ids.get_mut(at) {
                *left = merged;
            }
            merges.push(Merge {
                rank,
                parts: ids.iter().map(|&id| bytes(id).to_vec()).collect(),
            });
        }
    }
}

/// Returns an entry of the heap: the lowest rank first, then the leftmost place.
#[inline]
fn entry(rank: u32, at: usize) -> Reverse<u64> {
    Reverse(u64::from(rank) << 32 | at as u64)
}

fn push(symbols: &mut Vec<Symbol>, id: u32, length: usize) {
    symbols.push(Symbol {
        id,
        length: u32::try_from(length).unwrap_or(u32::MAX),
        rank: NEVER,
        merged: 0,
        previous: 0,
        next: 0,
    });
}

impl Symbols {
    /// Adds the symbols of a word. Characters that no token has become the tokens of their bytes,
    /// else the unknown token, else nothing.
    fn split(&self, vocab: &Vocab, word: &str, symbols: &mut Vec<Symbol>) {
        let (ascii, mark, bytes) = match &self.unit {
            Unit::Byte(tokens) => return self.split_bytes(tokens, word.as_bytes(), symbols),
            Unit::Character { ascii, mark, bytes } => (ascii, mark, bytes),
        };
        let mut unknown = Unknown::default();
        for (at, character) in word.char_indices() {
            let text = word.get(at..at + character.len_utf8()).unwrap_or_default();
            let id = match ascii.get(character as usize) {
                Some(id) => *id,
                None if character == MARK => *mark,
                None => vocab.id(text),
            };
            if let Some(id) = id {
                unknown.flush(symbols);
                push(symbols, id, text.len());
                continue;
            }
            let ids = text.bytes().map(|byte| {
                let tokens = bytes.as_ref()?;
                tokens.get(usize::from(byte)).copied().flatten()
            });
            match ids.collect::<Option<Vec<u32>>>() {
                // The library does not flush here either.
                Some(ids) => ids.into_iter().for_each(|id| push(symbols, id, 1)),
                None => unknown.add(self, symbols, text.len()),
            }
        }
        unknown.flush(symbols);
    }

    fn split_bytes(&self, tokens: &[Option<u32>; 256], bytes: &[u8], symbols: &mut Vec<Symbol>) {
        let mut unknown = Unknown::default();
        for &byte in bytes {
            match tokens.get(usize::from(byte)).copied().flatten() {
                Some(id) => {
                    unknown.flush(symbols);
                    push(symbols, id, 1);
                }
                None => unknown.add(self, symbols, 1),
            }
        }
        unknown.flush(symbols);
    }
}

/// Unknown characters that are not yet a symbol.
#[derive(Default)]
struct Unknown {
    id: Option<u32>,
    length: usize,
}

impl Unknown {
    fn add(&mut self, rules: &Symbols, symbols: &mut Vec<Symbol>, length: usize) {
        if rules.unknown.is_none() {
            // It has no token; the one before it covers its place.
            if let (Some(last), Ok(length)) = (symbols.last_mut(), u32::try_from(length)) {
                last.length += length;
            }
            return;
        }
        if !rules.fuse_unknown {
            self.flush(symbols);
        }
        self.id = rules.unknown;
        self.length += length;
    }

    fn flush(&mut self, symbols: &mut Vec<Symbol>) {
        if let Some(id) = self.id.take() {
            push(symbols, id, std::mem::take(&mut self.length));
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Returns an encoding of characters with these merges, the vocabulary's texts in order.
    fn bpe(texts: &[&str], merges: &[(&str, &str)], unknown: Option<u32>) -> (Bpe, Vocab) {
        let tokens = texts.iter().copied().zip(0..).collect::<Vec<_>>();
        let vocab = Vocab::new(tokens.into_iter()).unwrap();
        let mut table = PairTable::default();
        for (rank, (left, right)) in (0..).zip(merges) {
            let id = |text: &str| vocab.id(text).unwrap();
            table.insert(id(left), id(right), (rank, id(&format!("{left}{right}"))));
        }
        let mut ascii = Box::new([None; 128]);
        for (byte, id) in (0..128_u8).zip(ascii.iter_mut()) {
            *id = vocab.id(char::from(byte).encode_utf8(&mut [0; 4]));
        }
        let symbols = Symbols {
            unit: Unit::Character {
                ascii,
                mark: None,
                bytes: None,
            },
            unknown,
            fuse_unknown: true,
        };
        (Bpe::new(table, symbols, false), vocab)
    }

    fn ids(bpe: &(Bpe, Vocab), word: &str, long: bool) -> Vec<(u32, u32)> {
        let mut scratch = Scratch::default();
        bpe.0.symbols.split(&bpe.1, word, &mut scratch.symbols);
        if long {
            bpe.0.merge_long(&mut scratch);
        } else {
            bpe.0.merge_short(&mut scratch.symbols);
        }
        scratch.symbols.iter().map(|s| (s.id, s.length)).collect()
    }

    const TEXTS: [&str; 9] = ["a", "b", "c", "ab", "bc", "aa", "aaaa", "abc", "?"];
    const MERGES: [(&str, &str); 5] = [
        ("b", "c"),
        ("a", "b"),
        ("a", "a"),
        ("a", "bc"),
        ("aa", "aa"),
    ];

    #[test]
    fn the_lowest_rank_goes_first_and_the_leftmost_among_equals() {
        let bpe = bpe(&TEXTS, &MERGES, Some(8));
        for long in [false, true] {
            assert_eq!(ids(&bpe, "abc", long), [(7, 3)]);
            assert_eq!(ids(&bpe, "aaa", long), [(5, 2), (0, 1)]);
            assert_eq!(ids(&bpe, "aaaaa", long), [(6, 4), (0, 1)]);
            assert_eq!(ids(&bpe, "xyab", long), [(8, 2), (3, 2)]);
            assert_eq!(ids(&bpe, "", long), []);
        }
        let steps = bpe.0.steps(&bpe.1, 7, |id| TEXTS[id as usize].as_bytes());
        let parts = |parts: &[&str]| parts.iter().map(|part| part.as_bytes().to_vec()).collect();
        let expected: Vec<(u32, Vec<Vec<u8>>)> =
            vec![(0, parts(&["a", "bc"])), (3, parts(&["abc"]))];
        let steps: Vec<_> = steps.into_iter().map(|m| (m.rank, m.parts)).collect();
        assert_eq!(steps, expected);
    }

    #[test]
    fn without_an_unknown_token_unknown_characters_are_dropped() {
        let bpe = bpe(&TEXTS, &MERGES, None);
        for long in [false, true] {
            assert_eq!(ids(&bpe, "axb", long), [(3, 3)]);
            assert_eq!(ids(&bpe, "x", long), []);
        }
    }

    proptest! {
        #[test]
        fn the_heap_and_the_search_merge_alike(word in "[abcx]{0,80}") {
            let bpe = bpe(&TEXTS, &MERGES, Some(8));
            prop_assert_eq!(ids(&bpe, &word, true), ids(&bpe, &word, false));
        }
    }
}
