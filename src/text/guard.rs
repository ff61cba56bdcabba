//! Special tokens that people write, apart from those that a template writes.
//!
//! A chat template makes one text of its own special tokens and of what people said. In it,
//! `<|endoftext|>` is the special token where the template wrote it, and text like any other where
//! a message has it. So a [`Guard`] marks messages before they are rendered: in each place where a
//! special token could begin in a message, or go on from what stands before it, comes a character
//! that no text has. What a mark splits is no special token; [`Guard::encode`] takes the marks out
//! again. Templates see messages otherwise unchanged, so they can trim, compare and split them.
//!
//! The marks are noncharacters, which Unicode reserves for such inner use; a message's own become
//! U+FFFD. A special token of a single character cannot be split; no model is known to have one.

use super::tokenizer::{TextError, Tokenizer};

/// Splits what would be a special token.
const MARK: char = '\u{FDD0}';
/// For the caller's use: stands where a template puts the end of a text.
pub(super) const END: char = '\u{FDD1}';

/// Knows a model's special tokens; see the module.
#[derive(Debug, Clone, Default)]
pub(super) struct Guard {
    special: Vec<String>,
    /// The characters they begin with.
    first: Vec<char>,
}

impl Guard {
    /// Creates a guard against the special tokens of a tokenizer.
    pub(super) fn new(tokenizer: &Tokenizer) -> Self {
        let special: Vec<String> = tokenizer.special_texts().map(str::to_owned).collect();
        let mut first: Vec<char> = special.iter().filter_map(|s| s.chars().next()).collect();
        first.sort_unstable();
        first.dedup();
        Self { special, first }
    }

    /// Marks a text that a template will be given.
    pub(super) fn protect(&self, text: &str) -> String {
        let text = text.replace([MARK, END], "\u{fffd}");
        // White space at the ends may be trimmed, so what counts is what stands next to it.
        let core = text.trim();
        let Some((before, after)) = text.split_once(core).filter(|_| !core.is_empty()) else {
            return text;
        };
        let mut marked = String::with_capacity(text.len() + 8);
        marked.push_str(before);
        if self.may_go_on(core) {
            marked.push(MARK);
        }
        for (at, character) in core.char_indices() {
            marked.push(character);
            if self.first.contains(&character) && self.may_begin(core.get(at..)) {
                marked.push(MARK);
            }
        }
        marked.push_str(after);
        marked
    }

    /// Returns whether a special token stands at the beginning of `text`, or could if more followed.
    fn may_begin(&self, text: Option<&str>) -> bool {
        text.is_some_and(|text| self.special.iter().any(|token| agree(text, token)))
    }

    /// Returns whether `text` could be the rest, or a middle part, of a special token.
    fn may_go_on(&self, text: &str) -> bool {
        self.special.iter().any(|token| {
            let mut rests = token.char_indices().skip(1);
            rests.any(|(at, _)| token.get(at..).is_some_and(|rest| agree(text, rest)))
        })
    }

    /// Returns the token ids of a rendered text: special tokens are those that no mark splits.
    ///
    /// # Errors
    /// If the tokenizer fails.
    pub(super) fn encode(tokenizer: &Tokenizer, text: &str) -> Result<Vec<u32>, TextError> {
        if !text.contains(MARK) {
            return tokenizer.encode(text, true);
        }
        let plain = |piece: Option<&str>| {
            let piece = piece.unwrap_or_default().replace(MARK, "");
            tokenizer.encode(&piece, false)
        };
        // Bytes at which each character begins, and the end.
        let starts: Vec<usize> = text.char_indices().map(|(at, _)| at).collect();
        let at = |char: usize| starts.get(char).copied().unwrap_or(text.len());
        let mut ids = Vec::new();
        let mut done = 0;
        for span in tokenizer.encode_spans(text, true)? {
            if tokenizer.is_special(span.id) {
                ids.append(&mut plain(text.get(done..at(span.start)))?);
                ids.push(span.id);
                done = at(span.end);
            }
        }
        ids.append(&mut plain(text.get(done..))?);
        Ok(ids)
    }
}

/// Returns a text without marks, for people.
pub(super) fn unmarked(text: &str) -> String {
    text.replace([MARK, END], "")
}

/// Returns whether two texts are the same as far as both go.
fn agree(a: &str, b: &str) -> bool {
    a.starts_with(b) || b.starts_with(a)
}

#[cfg(test)]
mod tests {
    use super::super::template::tests::CHATML_TOKENIZER;
    use super::*;
    use proptest::prelude::*;

    fn special_ids(tokenizer: &Tokenizer, ids: &[u32]) -> Vec<u32> {
        let ids = ids.iter().copied();
        ids.filter(|&id| tokenizer.is_special(id)).collect()
    }

    #[test]
    fn only_what_may_be_part_of_a_special_token_is_marked() {
        let guard = Guard::new(&CHATML_TOKENIZER);
        for text in ["", "  ", "a < b", "if (a <b> c) {}", "</think> text", "é"] {
            assert_eq!(guard.protect(text), text);
        }
        for (text, marked) in [
            ("x<|endoftext|>", "x<\u{fdd0}|endoftext|>"),
            ("a <", "a <\u{fdd0}"),
            (" <| \n", " <\u{fdd0}| \n"),
            ("> quote", "\u{fdd0}> quote"),
            ("text", "\u{fdd0}text"),
            ("a\u{fdd0}b\u{fdd1}", "a\u{fffd}b\u{fffd}"),
        ] {
            assert_eq!(guard.protect(text), marked, "{text:?}");
        }
    }

    #[test]
    fn special_tokens_of_the_template_stay_special_beside_marked_text() {
        let tokenizer = &*CHATML_TOKENIZER;
        let guard = Guard::new(tokenizer);
        let said = "say <|im_end|> twice: <|im_end|>";
        let text = format!("<|im_start|>user\n{}<|im_end|>\n", guard.protect(said));
        let ids = Guard::encode(tokenizer, &text).unwrap();
        assert_eq!(special_ids(tokenizer, &ids), [50257, 50258]);
        assert_eq!(
            tokenizer.decode(&ids),
            format!("<|im_start|>user\n{said}<|im_end|>\n")
        );
    }

    proptest! {
        /// However special tokens are cut up over messages and template, they come to nothing.
        #[test]
        fn no_message_becomes_part_of_a_special_token(
            text in "(<|\\||endoftext|im_|start|end|>| |a|<\\|im_end\\|>){0,12}",
            cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..5),
        ) {
            let tokenizer = &*CHATML_TOKENIZER;
            let guard = Guard::new(tokenizer);
            let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut.index(text.len() + 1)).collect();
            cuts.extend([0, text.len()]);
            cuts.sort_unstable();
            let messages: Vec<&str> = cuts.windows(2).map(|w| &text[w[0]..w[1]]).collect();
            let rendered: String = messages.iter().map(|m| guard.protect(m)).collect();
            let ids = Guard::encode(tokenizer, &rendered).unwrap();
            prop_assert_eq!(special_ids(tokenizer, &ids), Vec::<u32>::new());
            prop_assert_eq!(tokenizer.decode(&ids), text);
        }
    }
}
