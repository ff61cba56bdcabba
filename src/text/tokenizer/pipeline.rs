//! From text to tokens: added tokens are cut out, what is between them is normalized and split into
//! words, and each word is encoded.
//!
//! Memory stays proportional to the text. Most words occur again in a long text, so each call keeps
//! a table of the words it has encoded.

use super::added::{AddedTokens, Form, Section};
use super::bpe::{Bpe, Scratch};
use super::normalize::{Normalized, Place, Step};
use super::split::{Splitter, words};
use super::vocab::{Vocab, hash};

/// Texts shorter than this are encoded without a table of words.
const MIN_CACHED_TEXT: usize = 2048;
/// Maximum number of words in the table.
const CACHED_WORDS: usize = 1 << 15;
/// Maximum bytes of a word in the table.
const MAX_CACHED_WORD: usize = 48;
/// Bytes of words, and number of their tokens, after which the table is emptied.
const MAX_CACHED: usize = 1 << 21;

/// Encodes texts.
#[derive(Debug, Clone)]
pub(super) struct Pipeline {
    pub(super) vocab: Vocab,
    pub(super) added: AddedTokens,
    pub(super) steps: Vec<Step>,
    pub(super) splitters: Vec<Splitter>,
    /// Whether a space is put before a section that does not begin with one.
    pub(super) prefix_space: bool,
    pub(super) bpe: Bpe,
}

/// What the special tokens in a text are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Reading {
    /// Whether control tokens in the text are tokens, rather than plain text.
    pub control: bool,
    /// Place of its beginning in the whole text.
    pub place: Place,
}

/// A token and its part of a section.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Encoded {
    id: u32,
    /// Its bytes in the normalized section.
    length: u32,
}

/// A section of a text with its tokens.
pub(super) struct EncodedSection<'t, 'e> {
    text: &'t str,
    normalized: Option<&'e Normalized<'t>>,
    tokens: &'e [Encoded],
}

impl EncodedSection<'_, '_> {
    /// Returns the token ids.
    pub(super) fn ids(&self) -> impl Iterator<Item = u32> {
        self.tokens.iter().map(|token| token.id)
    }

    /// Calls `found` with each token and its first and last character (exclusive) in the section.
    /// Tokens that share a character all have the whole of it. Returns the characters of the section.
    pub(super) fn spans(&self, mut found: impl FnMut(u32, usize, usize)) -> usize {
        let normalized = self.normalized.map(|normalized| &*normalized.text);
        let mut characters = normalized.unwrap_or(self.text).char_indices().peekable();
        // The end of the last token, and the characters that begin before it.
        let (mut end, mut begun) = (0, 0);
        for token in self.tokens {
            let is_whole = characters.peek().is_none_or(|(at, _)| *at == end);
            let first = if is_whole { begun } else { begun.max(1) - 1 };
            end += token.length as usize;
            while characters.next_if(|(at, _)| *at < end).is_some() {
                begun += 1;
            }
            let (first, last) = match self.normalized {
                Some(normalized) => normalized.original(first, begun),
                None => (first, begun),
            };
            found(token.id, first.min(last), last);
        }
        self.text.chars().count()
    }
}

impl Pipeline {
    /// Returns whether a text may begin with a space that is not part of it.
    pub(super) fn adds_space(&self) -> bool {
        let adds = |step: &Step| matches!(step, Step::Prepend(_) | Step::PrependMissing { .. });
        self.prefix_space || self.steps.iter().any(adds)
    }

    /// Encodes a text, section by section.
    pub(super) fn encode<'t>(
        &self,
        text: &'t str,
        reading: Reading,
        mut found: impl FnMut(EncodedSection<'t, '_>),
    ) {
        let mut encoder = Encoder::new(self, text.len());
        let sections = if self.added.is_searched(Form::Raw) {
            self.added.sections(text, Form::Raw, reading.control)
        } else {
            vec![Section {
                range: 0..text.len(),
                token: None,
            }]
        };
        for Section { range, token } in sections {
            let start = range.start;
            let section = text.get(range).unwrap_or_default();
            encoder.tokens.clear();
            if let Some(id) = token {
                encoder.push(id, section.len());
                found(EncodedSection {
                    text: section,
                    normalized: None,
                    tokens: &encoder.tokens,
                });
                continue;
            }
            let place = if start == 0 {
                reading.place
            } else {
                Place::Later
            };
            let normalized = Normalized::new(&self.steps, section, place);
            encoder.section(&normalized.text, place, reading.control);
            found(EncodedSection {
                text: section,
                normalized: Some(&normalized),
                tokens: &encoder.tokens,
            });
        }
    }
}

/// Encodes the sections of one text.
struct Encoder<'p> {
    pipeline: &'p Pipeline,
    scratch: Scratch,
    /// The tokens of the section.
    tokens: Vec<Encoded>,
    /// The words that have been encoded; `None` for a short text.
    words: Option<Words>,
}

impl<'p> Encoder<'p> {
    fn new(pipeline: &'p Pipeline, bytes: usize) -> Self {
        Self {
            pipeline,
            scratch: Scratch::default(),
            tokens: Vec::with_capacity(bytes / 4),
            words: (bytes >= MIN_CACHED_TEXT).then(|| Words::of_text(bytes)),
        }
    }

    fn push(&mut self, id: u32, length: usize) {
        self.tokens.push(Encoded {
            id,
            length: u32::try_from(length).unwrap_or(u32::MAX),
        });
    }

    /// Encodes a normalized section.
    fn section(&mut self, text: &str, place: Place, control: bool) {
        let pipeline = self.pipeline;
        if !pipeline.added.is_searched(Form::Normalized) {
            self.plain(text, place);
            return;
        }
        let sections = pipeline.added.sections(text, Form::Normalized, control);
        for Section { range, token } in sections {
            let section = text.get(range).unwrap_or_default();
            match token {
                Some(id) => self.push(id, section.len()),
                None => self.plain(section, place),
            }
        }
    }

    /// Encodes text without added tokens.
    fn plain(&mut self, text: &str, place: Place) {
        let pipeline = self.pipeline;
        let lacks_space = pipeline.prefix_space && place != Place::Continued;
        if lacks_space && !text.is_empty() && !text.starts_with(' ') {
            let first = self.tokens.len();
            let spaced = format!(" {text}");
            words(&pipeline.splitters, &spaced, &mut |word| self.word(word));
            // The space is not part of the text.
            if let Some(token) = self.tokens.get_mut(first) {
                token.length = token.length.saturating_sub(1);
            }
        } else {
            words(&pipeline.splitters, text, &mut |word| self.word(word));
        }
    }

    fn word(&mut self, word: &str) {
        let (bpe, vocab) = (&self.pipeline.bpe, &self.pipeline.vocab);
        let Some(words) = self
            .words
            .as_mut()
            .filter(|_| word.len() <= MAX_CACHED_WORD)
        else {
            bpe.encode(vocab, word, &mut self.scratch);
            self.tokens.extend(encoded(&self.scratch));
            return;
        };
        let hash = hash(word.as_bytes());
        if let Some(tokens) = words.get(hash, word) {
            self.tokens.extend_from_slice(tokens);
            return;
        }
        bpe.encode(vocab, word, &mut self.scratch);
        let first = self.tokens.len();
        self.tokens.extend(encoded(&self.scratch));
        words.insert(hash, word, self.tokens.get(first..).unwrap_or_default());
    }
}

fn encoded(scratch: &Scratch) -> impl Iterator<Item = Encoded> {
    scratch.symbols.iter().map(|symbol| Encoded {
        id: symbol.id,
        length: symbol.length,
    })
}

/// Words and their tokens. A word takes the place of another one with the same slot.
struct Words {
    slots: Vec<Slot>,
    bytes: Vec<u8>,
    tokens: Vec<Encoded>,
}

#[derive(Clone, Copy, Default)]
struct Slot {
    /// First byte of the word, and the number of its bytes: 0 in a free slot.
    word: (u32, u32),
    /// First token, and the number of tokens.
    tokens: (u32, u32),
}

impl Words {
    /// Creates a table for a text of this length.
    fn of_text(bytes: usize) -> Self {
        let slots = (bytes / 8).next_power_of_two().min(CACHED_WORDS);
        Self {
            slots: vec![Slot::default(); slots],
            bytes: Vec::new(),
            tokens: Vec::new(),
        }
    }

    fn slot(&self, hash: u64) -> usize {
        usize::try_from(hash >> 32).unwrap_or(0) % self.slots.len().max(1)
    }

    #[inline]
    fn get(&self, hash: u64, word: &str) -> Option<&[Encoded]> {
        let slot = self.slots.get(self.slot(hash))?;
        let found = part(&self.bytes, slot.word)?;
        if found != word.as_bytes() {
            return None;
        }
        part(&self.tokens, slot.tokens)
    }

    fn insert(&mut self, hash: u64, word: &str, tokens: &[Encoded]) {
        if self.bytes.len() + self.tokens.len() > MAX_CACHED {
            self.slots.fill(Slot::default());
            self.bytes.clear();
            self.tokens.clear();
        }
        let range = |start: usize, length: usize| {
            Some((u32::try_from(start).ok()?, u32::try_from(length).ok()?))
        };
        let word_range = range(self.bytes.len(), word.len());
        let token_range = range(self.tokens.len(), tokens.len());
        let slot = self.slot(hash);
        if let (Some(entry), Some(word), Some(tokens)) =
            (self.slots.get_mut(slot), word_range, token_range)
        {
            *entry = Slot { word, tokens };
        }
        self.bytes.extend_from_slice(word.as_bytes());
        self.tokens.extend_from_slice(tokens);
    }
}

fn part<T>(of: &[T], (start, length): (u32, u32)) -> Option<&[T]> {
    of.get(start as usize..start as usize + length as usize)
}
