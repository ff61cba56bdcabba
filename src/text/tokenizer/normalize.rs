//! What a tokenizer does to a text before it is split: Unicode's form C, marks for spaces, and a
//! mark before the first word.

use std::borrow::Cow;

use tokenizers::NormalizedString;
use tokenizers::Normalizer as _;
use tokenizers::normalizers::unicode::NFC;

/// One step of a normalizer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Step {
    /// Canonical composition; only as the first step.
    Nfc,
    /// Replaces one character by another.
    Replace(char, char),
    /// Puts a text before each section.
    Prepend(String),
    /// Puts a text before a section that does not begin with it.
    PrependMissing {
        /// The text.
        text: String,
        /// Whether only at the very beginning.
        first_only: bool,
    },
}

/// A place of a section in the text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    /// At its beginning.
    Start,
    /// After an added token.
    Later,
    /// At the beginning of a text that continues another, so nothing is put before it.
    Continued,
}

/// A part of a normalized text that has other characters than the original.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Change {
    /// First character in the normalized text.
    at: usize,
    /// Characters in the normalized text.
    length: usize,
    /// Characters in the original.
    original: usize,
}

/// A normalized section.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Normalized<'t> {
    /// The text.
    pub text: Cow<'t, str>,
    changes: Vec<Change>,
}

impl<'t> Normalized<'t> {
    /// Normalizes a section.
    pub(super) fn new(steps: &[Step], section: &'t str, place: Place) -> Self {
        let mut normalized = Self {
            text: Cow::Borrowed(section),
            changes: Vec::new(),
        };
        if section.is_empty() {
            return normalized;
        }
        for step in steps {
            match step {
                Step::Nfc => normalized.compose(section),
                Step::Replace(from, to) => {
                    if normalized.text.contains(*from) {
                        let text = normalized.text.replace(*from, to.encode_utf8(&mut [0; 4]));
                        normalized.text = Cow::Owned(text);
                    }
                }
                Step::Prepend(text) if place != Place::Continued => normalized.prepend(text),
                Step::PrependMissing { text, first_only } => {
                    let applies = match place {
                        Place::Start => true,
                        Place::Later => !first_only,
                        Place::Continued => false,
                    };
                    if applies && !normalized.text.starts_with(text.as_str()) {
                        normalized.prepend(text);
                    }
                }
                Step::Prepend(_) => (),
            }
        }
        normalized
    }

    fn prepend(&mut self, text: &str) {
        let length = text.chars().count();
        self.changes
            .iter_mut()
            .for_each(|change| change.at += length);
        self.changes.insert(
            0,
            Change {
                at: 0,
                length,
                original: 0,
            },
        );
        self.text = Cow::Owned(format!("{text}{}", self.text));
    }

    /// Composes the characters of a section. An ASCII character composes with nothing before it, so
    /// only runs of other characters, each with the ASCII character before it, need to be looked at.
    fn compose(&mut self, section: &'t str) {
        let mut composed = String::new();
        let (mut done, mut chars) = (0, 0);
        while let Some((start, end)) = next_run(section, done) {
            let (before, run) = (
                section.get(done..start).unwrap_or_default(),
                section.get(start..end).unwrap_or_default(),
            );
            composed.push_str(before);
            chars += before.chars().count();
            let mut normal = NormalizedString::from(run);
            // The library's normalizer never fails.
            let changed = NFC.normalize(&mut normal).is_ok() && normal.get() != run;
            let shown = if changed { normal.get() } else { run };
            let length = shown.chars().count();
            if changed {
                self.changes.push(Change {
                    at: chars,
                    length,
                    original: run.chars().count(),
                });
            }
            composed.push_str(shown);
            chars += length;
            done = end;
        }
        if !self.changes.is_empty() {
            composed.push_str(section.get(done..).unwrap_or_default());
            self.text = Cow::Owned(composed);
        }
    }

    /// Returns the range of characters in the section that a range in the normalized text comes
    /// from.
    pub(super) fn original(&self, start: usize, end: usize) -> (usize, usize) {
        (self.place(start, false), self.place(end, true))
    }

    /// Returns the place in the section of one in the normalized text. A place within a change is at
    /// its beginning or its end.
    fn place(&self, place: usize, is_end: bool) -> usize {
        let (mut normalized, mut original) = (0, 0);
        for change in &self.changes {
            let is_before = place < change.at || (is_end && place == change.at);
            if is_before {
                break;
            }
            original += change.at - normalized;
            normalized = change.at + change.length;
            let is_within = place < normalized || (is_end && place == normalized);
            if is_within {
                return original + if is_end { change.original } else { 0 };
            }
            original += change.original;
        }
        original + place - normalized
    }
}

/// Returns the next run of characters that may compose.
fn next_run(text: &str, from: usize) -> Option<(usize, usize)> {
    let bytes = text.as_bytes();
    let first = from
        + bytes
            .get(from..)?
            .iter()
            .position(|byte| !byte.is_ascii())?;
    let start = first.saturating_sub(1).max(from);
    let rest = bytes.get(first..)?.iter();
    let end = rest.take_while(|byte| !byte.is_ascii()).count();
    Some((start, first + end))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn characters_are_composed_and_know_where_they_came_from() {
        let text = "cafe\u{301} e\u{301}e\u{301}x ABC";
        let normal = Normalized::new(&[Step::Nfc], text, Place::Start);
        assert_eq!(normal.text, "caf\u{e9} \u{e9}\u{e9}x ABC");
        assert_eq!(normal.original(0, 4), (0, 5));
        assert_eq!(normal.original(3, 4), (3, 5));
        assert_eq!(normal.original(4, 5), (5, 6));
        assert_eq!(normal.original(7, 8), (10, 11));
        let plain = Normalized::new(&[Step::Nfc], "h\u{e9}llo \u{4e2d}", Place::Start);
        assert!(matches!(plain.text, Cow::Borrowed(_)));
        assert_eq!(plain.original(1, 2), (1, 2));
    }

    #[test]
    fn marks_take_the_place_of_spaces_and_go_before_the_text() {
        let steps = [
            Step::Prepend("\u{2581}".to_owned()),
            Step::Replace(' ', '\u{2581}'),
        ];
        let normal = Normalized::new(&steps, "a b", Place::Later);
        assert_eq!(normal.text, "\u{2581}a\u{2581}b");
        assert_eq!(normal.original(0, 2), (0, 1));
        assert_eq!(normal.original(2, 4), (1, 3));
        let normal = Normalized::new(&steps, "a b", Place::Continued);
        assert_eq!(normal.text, "a\u{2581}b");
        assert_eq!(Normalized::new(&steps, "", Place::Start).text, "");
        let first = [
            Step::Replace(' ', '\u{2581}'),
            Step::PrependMissing {
                text: "\u{2581}".to_owned(),
                first_only: true,
            },
        ];
        for (text, place, expected) in [
            ("a", Place::Start, "\u{2581}a"),
            (" a", Place::Start, "\u{2581}a"),
            ("a", Place::Later, "a"),
        ] {
            assert_eq!(Normalized::new(&first, text, place).text, expected);
        }
    }
}
