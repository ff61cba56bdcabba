//! Finds places where a long text can be split without changing its tokens.
//!
//! The tokenizer library needs up to 400 times the size of a text to encode it, so long texts are
//! encoded in parts of about [`PART`] bytes. GPT-2's pre-tokenizer splits a text into runs of
//! letters, of digits, of other characters and of white space, with a space joined to the next run
//! and contractions (`'s`) separate (Radford et al. 2019). The boundary between two runs is a split
//! in every context, except after white space, which looks ahead, and after an apostrophe. The
//! pre-tokenizer itself decides which run a character belongs to.
//!
//! A text must never be cut for a tokenizer that is not known to split in this way.

use tokenizers::pre_tokenizers::PreTokenizerWrapper;
use tokenizers::processors::PostProcessorWrapper;
use tokenizers::{
    OffsetReferential, OffsetType, PreTokenizedString, PreTokenizer, Tokenizer as Inner,
};

/// Minimum bytes of a part; it extends to the next certain split.
pub(super) const PART: usize = 64 << 10;
/// Maximum characters searched for a split at a time, before the part is extended.
const MAX_SEARCHED: usize = 4096;

/// The rules for cutting a tokenizer's texts.
pub(super) struct Cuts {
    pre_tokenizer: PreTokenizerWrapper,
    /// Texts of added tokens, which are matched before a text is split.
    added: Vec<String>,
    /// Whether the offsets of tokens within a part are valid.
    keeps_places: bool,
}

impl Cuts {
    /// Returns the rules of a tokenizer; `None` if its texts must not be cut.
    pub(super) fn of(tokenizer: &Inner) -> Option<Self> {
        let pre_tokenizer = tokenizer.get_pre_tokenizer()?.clone();
        let PreTokenizerWrapper::ByteLevel(split) = &pre_tokenizer else {
            return None;
        };
        let is_known =
            split.use_regex && !split.add_prefix_space && tokenizer.get_normalizer().is_none();
        let added = tokenizer.get_added_tokens_decoder();
        let stands_alone = added
            .values()
            .all(|token| !token.lstrip && !token.rstrip && !token.single_word);
        let keeps_places = match tokenizer.get_post_processor() {
            None => true,
            // With trimming, the first token of a text would be a special case.
            Some(PostProcessorWrapper::ByteLevel(places)) => {
                !places.trim_offsets || !places.add_prefix_space
            }
            Some(_) => false,
        };
        (is_known && stands_alone).then(|| Self {
            pre_tokenizer,
            added: added.into_values().map(|token| token.content).collect(),
            keeps_places,
        })
    }

    /// Returns whether token offsets in the text follow from offsets in the parts.
    pub(super) fn keeps_places(&self) -> bool {
        self.keeps_places
    }

    /// Returns the parts of a text, each of about `length` bytes.
    pub(super) fn parts<'a>(
        &'a self,
        text: &'a str,
        length: usize,
    ) -> impl Iterator<Item = &'a str> + 'a {
        let mut rest = text;
        std::iter::from_fn(move || {
            if rest.is_empty() {
                return None;
            }
            let (part, after) = rest.split_at(self.cut(rest, length));
            rest = after;
            Some(part)
        })
    }

    /// Returns the first certain split at or after `length` bytes; the end of the text if there is
    /// none.
    fn cut(&self, text: &str, length: usize) -> usize {
        let mut from = length;
        while from < text.len() {
            while !text.is_char_boundary(from) {
                from += 1;
            }
            let before = text.get(..from).and_then(|text| text.chars().next_back());
            let mut before = before.unwrap_or(' ');
            let after = text.get(from..).unwrap_or_default();
            for (at, next) in after.char_indices().take(MAX_SEARCHED) {
                if self.is_split(before, next) && !self.is_in_added(text, from + at) {
                    return from + at;
                }
                before = next;
            }
            from += length.max(MAX_SEARCHED);
        }
        text.len()
    }

    /// Returns whether a text is split between these two characters in every context.
    fn is_split(&self, before: char, next: char) -> bool {
        let may_contract = before == '\'' && !next.is_whitespace();
        if before.is_whitespace() || may_contract || is_same_run(before, next) {
            return false;
        }
        let mut both = PreTokenizedString::from(String::from_iter([before, next]));
        self.pre_tokenizer.pre_tokenize(&mut both).is_ok()
            && both
                .get_splits(OffsetReferential::Original, OffsetType::Char)
                .len()
                == 2
    }

    /// Returns whether an added token begins before this byte and ends after it.
    fn is_in_added(&self, text: &str, at: usize) -> bool {
        self.added.iter().any(|token| {
            let first = at.saturating_sub(token.len().saturating_sub(1));
            (first..at).any(|start| {
                start + token.len() > at
                    && text.as_bytes().get(start..start + token.len()) == Some(token.as_bytes())
            })
        })
    }
}

/// Returns whether two characters certainly belong to the same run, which saves a call of the
/// pre-tokenizer.
fn is_same_run(before: char, next: char) -> bool {
    before == next
        || (before.is_ascii_alphabetic() && next.is_ascii_alphabetic())
        || (before.is_ascii_digit() && next.is_ascii_digit())
}
