//! Tokens that are cut out of a text before anything else: special tokens, and texts that a
//! vocabulary was given beside its merges.
//!
//! The rules are those of the `tokenizers` library: from left to right, the longest token at each
//! place; tokens marked `normalized` are looked for in the normalized text, the others in the text
//! itself. A token that is not to be parsed hides the tokens within it.

use std::collections::BTreeMap;
use std::ops::Range;

use serde::Deserialize;

use super::trie::Trie;

/// A token that is cut out of a text.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
#[expect(clippy::struct_excessive_bools, reason = "the fields of the file")]
pub struct AddedToken {
    /// Text of the token.
    pub content: String,
    /// Whether it is hidden in generated text.
    pub special: bool,
    /// Whether it is looked for in the normalized text.
    pub normalized: bool,
    /// Whether it must not touch the letters of a word.
    pub single_word: bool,
    /// Whether it takes the white space before it.
    pub lstrip: bool,
    /// Whether it takes the white space after it.
    pub rstrip: bool,
}

impl AddedToken {
    /// Returns whether it directs the model rather than being text: it is special, or looks like
    /// the tokens with which the makers of models do so and which not all of them mark as special.
    pub(super) fn is_control(&self) -> bool {
        let text = self.content.as_str();
        let within = |start: &str, end: &str| {
            text.len() > start.len() + end.len() && text.starts_with(start) && text.ends_with(end)
        };
        self.special
            || matches!(text, "<pad>" | "<mask>" | "<2mass>" | "[@BOS@]")
            || within("<|", "|>")
            || within("<\u{ff5c}", "\u{ff5c}>")
            || within("<unused", ">")
            || within("<start_of_", ">")
            || within("<end_of_", ">")
    }
}

/// The added tokens of a tokenizer, by id.
#[derive(Debug, Clone, Default)]
pub(super) struct AddedTokens {
    tokens: BTreeMap<u32, AddedToken>,
    raw: Trie,
    normalized: Trie,
}

/// A part of a text: an added token, or text between them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Section {
    /// Its bytes in the text.
    pub range: Range<usize>,
    /// The added token.
    pub token: Option<u32>,
}

/// The text that added tokens are looked for in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Form {
    /// The text itself.
    Raw,
    /// The text after normalization.
    Normalized,
}

impl AddedTokens {
    /// Adds a token; `pattern` is its text as the normalizer makes it.
    pub(super) fn add(&mut self, id: u32, token: AddedToken, pattern: &str) {
        if token.content.is_empty() {
            return;
        }
        if token.normalized {
            self.normalized.insert(pattern.as_bytes(), id);
        } else {
            self.raw.insert(token.content.as_bytes(), id);
        }
        self.tokens.insert(id, token);
    }

    /// Returns a token by its id.
    pub(super) fn get(&self, id: u32) -> Option<&AddedToken> {
        self.tokens.get(&id)
    }

    /// Returns all tokens.
    pub(super) fn iter(&self) -> impl Iterator<Item = (u32, &AddedToken)> {
        self.tokens.iter().map(|(&id, token)| (id, token))
    }

    /// Returns the id of a token's text.
    pub(super) fn id(&self, text: &str) -> Option<u32> {
        let mut tokens = self.iter();
        tokens
            .find(|(_, token)| token.content == text)
            .map(|(id, _)| id)
    }

    /// Returns whether tokens are looked for in this form of a text.
    pub(super) fn is_searched(&self, form: Form) -> bool {
        !self.trie(form).is_empty()
    }

    fn trie(&self, form: Form) -> &Trie {
        match form {
            Form::Raw => &self.raw,
            Form::Normalized => &self.normalized,
        }
    }

    /// Returns the parts of a text, in order; without `control` the tokens that direct the model are
    /// plain text.
    pub(super) fn sections(&self, text: &str, form: Form, control: bool) -> Vec<Section> {
        let trie = self.trie(form);
        let bytes = text.as_bytes();
        let mut sections = Vec::new();
        // End of the last section, and where to look next.
        let (mut done, mut at) = (0, 0);
        while let Some(skipped) = bytes
            .get(at..)
            .and_then(|rest| rest.iter().position(|&byte| trie.may_begin(byte)))
        {
            at += skipped;
            let rest = bytes.get(at..).unwrap_or_default();
            let Some((length, id)) = trie.longest(rest) else {
                at += 1;
                continue;
            };
            let found = at..at + length;
            at = found.end;
            let Some(range) = self.placed(text, found, id, control, done) else {
                continue;
            };
            if done < range.start {
                sections.push(Section {
                    range: done..range.start,
                    token: None,
                });
            }
            done = range.end;
            at = at.max(done);
            sections.push(Section {
                range,
                token: Some(id),
            });
        }
        if done < text.len() {
            sections.push(Section {
                range: done..text.len(),
                token: None,
            });
        }
        sections
    }

    /// Returns the part of the text that a token found in it takes; `None` if it is not to be one.
    fn placed(
        &self,
        text: &str,
        found: Range<usize>,
        id: u32,
        control: bool,
        done: usize,
    ) -> Option<Range<usize>> {
        let token = self.tokens.get(&id)?;
        if !control && token.is_control() {
            return None;
        }
        let (before, after) = (text.get(..found.start)?, text.get(found.end..)?);
        let is_word = |c: char| c.is_alphanumeric() || c == '_';
        if token.single_word
            && (before.chars().next_back().is_some_and(is_word)
                || after.chars().next().is_some_and(is_word))
        {
            return None;
        }
        let (mut start, mut end) = (found.start, found.end);
        if token.lstrip {
            start = before.trim_end().len().max(done);
        }
        if token.rstrip {
            end += after.len() - after.trim_start().len();
        }
        Some(start..end)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tokens() -> AddedTokens {
        let mut tokens = AddedTokens::default();
        let token = |content: &str| AddedToken {
            content: content.to_owned(),
            ..AddedToken::default()
        };
        let special = AddedToken {
            special: true,
            ..token("<s>")
        };
        let stripping = AddedToken {
            lstrip: true,
            rstrip: true,
            ..token("[M]")
        };
        let word = AddedToken {
            single_word: true,
            ..token("xy")
        };
        let all = [special, token("\n"), token("\n\n"), stripping, word];
        for (id, token) in (0..).zip(all) {
            let pattern = token.content.clone();
            tokens.add(id, token, &pattern);
        }
        tokens
    }

    fn found(text: &str, control: bool) -> Vec<(&str, Option<u32>)> {
        let sections = tokens().sections(text, Form::Raw, control);
        let shown = sections.into_iter();
        shown.map(|s| (&text[s.range], s.token)).collect()
    }

    #[test]
    fn the_longest_token_at_each_place_is_cut_out() {
        assert_eq!(
            found("a<s>\n\n\nb", true),
            [
                ("a", None),
                ("<s>", Some(0)),
                ("\n\n", Some(2)),
                ("\n", Some(1)),
                ("b", None)
            ]
        );
        assert_eq!(found("a<s>b", false), [("a<s>b", None)]);
        assert_eq!(found("", true), []);
    }

    #[test]
    fn white_space_and_words_beside_a_token_count() {
        assert_eq!(
            found("a [M]  [M]b", true),
            [
                ("a", None),
                (" [M]  ", Some(3)),
                ("[M]", Some(3)),
                ("b", None)
            ]
        );
        assert_eq!(found("xyz", true), [("xyz", None)]);
        assert_eq!(found("xy z", true), [("xy", Some(4)), (" z", None)]);
    }

    #[test]
    fn tokens_that_look_like_control_are() {
        for (text, control) in [
            ("<|im_start|>", true),
            ("<unused42>", true),
            ("<end_of_turn>", true),
            ("<mask>", true),
            ("<table>", false),
            ("<|>", false),
            ("\n\n", false),
        ] {
            let token = AddedToken {
                content: text.to_owned(),
                ..AddedToken::default()
            };
            assert_eq!(token.is_control(), control, "{text}");
        }
    }
}
