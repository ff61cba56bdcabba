//! Where a long text can be cut so that its parts have the tokens of the whole.
//!
//! The tokenizer library takes up to 400 times a text in memory while it encodes it, so long ones are encoded in
//! parts of [`PART`] bytes. GPT-2's pre-tokenizer splits a text into runs of letters, of digits, of other
//! characters and of white space, with a space joined to what follows and contractions (`'s`) apart (Radford
//! et al. 2019). A split is certain where one run meets another, whatever stands around it, except
//! after white space, which looks ahead, and after an apostrophe. Which run a character belongs to is asked of
//! the pre-tokenizer itself.
//!
//! Nothing here may cut a text of a tokenizer that is not known to split like this: its texts stay whole.

use tokenizers::pre_tokenizers::PreTokenizerWrapper;
use tokenizers::processors::PostProcessorWrapper;
use tokenizers::{
    OffsetReferential, OffsetType, PreTokenizedString, PreTokenizer, Tokenizer as Inner,
};

/// Bytes of a part, but for the way to the next cut.
pub(super) const PART: usize = 64 << 10;
/// Characters that are looked at for a cut before the part gets longer.
const LOOKED_AT: usize = 4096;

/// How a tokenizer's texts can be cut.
pub(super) struct Cuts {
    pre_tokenizer: PreTokenizerWrapper,
    /// Texts of tokens that are found before a text is split.
    added: Vec<String>,
    /// The places of tokens are those in the part too.
    keeps_places: bool,
}

impl Cuts {
    /// Returns how; `None` if a tokenizer's texts have to stay whole.
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
            // Where it trims, the first token of a text is a case of its own.
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

    /// Returns whether the places of tokens can be told from those in the parts.
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

    /// Returns the first certain split from `length` bytes on; the end if there is none.
    fn cut(&self, text: &str, length: usize) -> usize {
        let mut from = length;
        while from < text.len() {
            while !text.is_char_boundary(from) {
                from += 1;
            }
            let before = text.get(..from).and_then(|text| text.chars().next_back());
            let mut before = before.unwrap_or(' ');
            let after = text.get(from..).unwrap_or_default();
            for (at, next) in after.char_indices().take(LOOKED_AT) {
                if self.is_split(before, next) && !self.is_in_added(text, from + at) {
                    return from + at;
                }
                before = next;
            }
            from += length.max(LOOKED_AT);
        }
        text.len()
    }

    /// Returns whether a text is split between these two wherever they stand.
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

/// Returns whether two characters are of the same run for certain: there is no need to ask.
fn is_same_run(before: char, next: char) -> bool {
    before == next
        || (before.is_ascii_alphabetic() && next.is_ascii_alphabetic())
        || (before.is_ascii_digit() && next.is_ascii_digit())
}
