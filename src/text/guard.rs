//! Tells special tokens in a template from the same text in messages.
//!
//! A chat template writes its own special tokens and the content of messages into one text.
//! `<|endoftext|>` must be a special token if the template wrote it, and plain text if a message
//! contains it. So a [`Guard`] marks messages before they are rendered: it inserts a reserved
//! character wherever a special token could begin in a message or continue into it. Text that a
//! mark splits is not a special token; [`Guard::encode`] removes the marks again. Messages are
//! otherwise unchanged, so that templates can trim, compare and split them.
//!
//! The marks are noncharacters, which Unicode reserves for internal use; noncharacters in a message
//! become U+FFFD. A special token of a single character cannot be split; no model is known to have
//! one.

use super::tokenizer::trie::Trie;
use super::tokenizer::{TextError, Tokenizer};

/// Mark that splits a would-be special token.
const MARK: char = '\u{FDD0}';
/// Marks the end of a text in a template's output; inserted by callers.
pub(super) const END: char = '\u{FDD1}';

/// A guard against a model's special tokens in messages; see the module docs.
#[derive(Debug, Clone, Default)]
pub(super) struct Guard {
    /// The special tokens.
    tokens: Trie,
    /// What is left of each special token after any of its characters.
    rests: Trie,
}

impl Guard {
    /// Creates a guard against the special tokens of a tokenizer, and against those that direct the
    /// model without being marked as special.
    pub(super) fn new(tokenizer: &Tokenizer) -> Self {
        let mut guard = Self::default();
        for token in tokenizer.control_texts() {
            guard.tokens.insert(token.as_bytes(), 0);
            for (at, _) in token.char_indices().skip(1) {
                let rest = token.as_bytes().get(at..);
                guard.rests.insert(rest.unwrap_or_default(), 0);
            }
        }
        guard
    }

    /// Marks a text before it is passed to a template.
    pub(super) fn protect(&self, text: &str) -> String {
        let text = text.replace([MARK, END], "\u{fffd}");
        // White space at the ends may be trimmed, so the text without it decides.
        let core = text.trim();
        let Some((before, after)) = text.split_once(core).filter(|_| !core.is_empty()) else {
            return text;
        };
        let mut marked = String::with_capacity(text.len() + 8);
        marked.push_str(before);
        if self.rests.agrees(core.as_bytes()) {
            marked.push(MARK);
        }
        for (at, character) in core.char_indices() {
            marked.push(character);
            if self.may_begin(core.as_bytes().get(at..).unwrap_or_default()) {
                marked.push(MARK);
            }
        }
        marked.push_str(after);
        marked
    }

    /// Returns whether `text` begins with a special token, or could with more text.
    fn may_begin(&self, text: &[u8]) -> bool {
        let first = text.first();
        first.is_some_and(|&first| self.tokens.may_begin(first)) && self.tokens.agrees(text)
    }

    /// Returns the token ids of a rendered text; only special tokens without marks are special.
    ///
    /// # Errors
    /// If the tokenizer fails.
    pub(super) fn encode(tokenizer: &Tokenizer, text: &str) -> Result<Vec<u32>, TextError> {
        if !text.contains(MARK) {
            return tokenizer.encode(text, true);
        }
        let plain = |start: usize, end: usize| {
            let piece = text.get(start..end).unwrap_or_default().replace(MARK, "");
            tokenizer.encode_part(&piece, start == 0)
        };
        // Byte offset of each character, and of the end.
        let starts: Vec<usize> = text.char_indices().map(|(at, _)| at).collect();
        let at = |char: usize| starts.get(char).copied().unwrap_or(text.len());
        let mut ids = Vec::new();
        let mut done = 0;
        for span in tokenizer.encode_spans(text, true)? {
            if tokenizer.is_control(span.id) {
                ids.append(&mut plain(done, at(span.start))?);
                ids.push(span.id);
                done = at(span.end);
            }
        }
        ids.append(&mut plain(done, text.len())?);
        Ok(ids)
    }
}

/// Returns a text without marks, for messages.
pub(super) fn unmarked(text: &str) -> String {
    text.replace([MARK, END], "")
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
        /// Checks special tokens split in any way over messages and template.
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
