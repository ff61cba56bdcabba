//! Pre-tokenizers: a text is split into words, and no token reaches over the end of one.
//!
//! The regular expressions of GPT-2, Llama 3 and Qwen 2 are scanners here, which are ten times as
//! fast; any other one runs as the library does it. A scanner is its expression read aloud: the
//! alternatives in their order, each as long as it can be.

use std::sync::Arc;

use tokenizers::utils::SysRegex;

use super::classes::{Class, class};

/// GPT-2's expression (Radford et al. 2019).
pub(super) const GPT2: &str =
    r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";
/// Llama 3's expression.
pub(super) const LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
/// Qwen 2's expression.
pub(super) const QWEN2: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// What follows an apostrophe in a contraction.
const CONTRACTIONS: [&str; 7] = ["s", "t", "re", "ve", "m", "ll", "d"];

/// One pre-tokenizer; several run one after another, each on the words of the one before.
#[derive(Debug, Clone)]
pub(super) enum Splitter {
    /// [`GPT2`]
    Gpt2,
    /// [`LLAMA3`], or with numbers of one digit [`QWEN2`].
    Llama3 {
        /// Maximum digits of a number.
        digits: usize,
    },
    /// Numbers, or single digits, apart from all else.
    Digits {
        /// Whether each digit is a word.
        single: bool,
    },
    /// Before a character wherever another one precedes it that is not one of these.
    BeforeRuns {
        /// The character.
        mark: char,
        /// The characters after which a word goes on.
        except: Vec<char>,
    },
    /// Before each of these characters.
    Before(char),
    /// The matches of an expression, and what is between them.
    Matches(Arc<SysRegex>),
}

impl Splitter {
    /// Returns the pre-tokenizer of an expression.
    ///
    /// # Errors
    /// If the expression is not valid.
    pub(super) fn of_expression(expression: &str) -> Result<Self, String> {
        Ok(match expression {
            GPT2 => Self::Gpt2,
            LLAMA3 => Self::Llama3 { digits: 3 },
            QWEN2 => Self::Llama3 { digits: 1 },
            other => Self::Matches(Arc::new(
                SysRegex::new(other).map_err(|error| error.to_string())?,
            )),
        })
    }

    /// Calls `found` with each word of a text, in order.
    fn split<'t>(&self, text: &'t str, found: &mut dyn FnMut(&'t str)) {
        match self {
            Self::Gpt2 => scan(text, found, gpt2),
            Self::Llama3 { digits } => scan(text, found, |text| llama3(text, *digits)),
            Self::Digits { single } => scan(text, found, |text| digits(text, *single)),
            Self::BeforeRuns { mark, except } => {
                scan(text, found, |text| before_run(text, *mark, except));
            }
            Self::Before(mark) => scan(text, found, |text| {
                let mut marks = text.char_indices().skip(1);
                let next = marks.find(|(_, c)| c == mark);
                next.map_or(text.len(), |(at, _)| at)
            }),
            Self::Matches(expression) => {
                let mut done = 0;
                for (start, end) in expression.find_iter(text) {
                    for range in [done..start, start..end] {
                        if let Some(word) = text.get(range).filter(|word| !word.is_empty()) {
                            found(word);
                        }
                    }
                    done = end;
                }
                if let Some(rest) = text.get(done..).filter(|rest| !rest.is_empty()) {
                    found(rest);
                }
            }
        }
    }
}

/// Returns the length of a text up to the first mark that begins a run and does not follow an exception.
fn before_run(text: &str, mark: char, except: &[char]) -> usize {
    for (at, _) in text.match_indices(mark) {
        let before = text.get(..at).and_then(|before| before.chars().next_back());
        if before.is_some_and(|before| before != mark && !except.contains(&before)) {
            return at;
        }
    }
    text.len()
}

/// Calls `found` with each word of a text, in order.
pub(super) fn words<'t>(splitters: &[Splitter], text: &'t str, found: &mut dyn FnMut(&'t str)) {
    match splitters.split_first() {
        None if text.is_empty() => (),
        None => found(text),
        Some((first, [])) => first.split(text, found),
        Some((first, rest)) => first.split(text, &mut |part| words(rest, part, found)),
    }
}

/// Splits a text by a function that returns the length of its first word.
fn scan<'t>(text: &'t str, found: &mut dyn FnMut(&'t str), first: impl Fn(&str) -> usize) {
    let mut rest = text;
    while !rest.is_empty() {
        let Some((word, after)) = rest.split_at_checked(first(rest).max(1)) else {
            found(rest);
            return;
        };
        found(word);
        rest = after;
    }
}

/// Returns the first character of a text and its class.
#[inline]
fn next(text: &str) -> Option<(char, Class)> {
    let character = text.chars().next()?;
    Some((character, class(character)))
}

fn after(text: &str, at: usize) -> &str {
    text.get(at..).unwrap_or_default()
}

/// Returns the length of the run of characters of one class at the beginning of a text, of at most
/// `most` characters.
#[inline]
fn run(text: &str, of: Class, most: usize) -> usize {
    let same = text.chars().take(most).take_while(|&c| class(c) == of);
    same.map(char::len_utf8).sum()
}

/// Returns the length of the white space at the beginning of a text: without its last character, if
/// other characters follow, because that belongs to the next word (`\s+(?!\S)|\s+`).
fn white_space(text: &str) -> usize {
    let whole = run(text, Class::Space, usize::MAX);
    let space = text.get(..whole).unwrap_or_default();
    let last = space.chars().next_back().map_or(0, char::len_utf8);
    if whole == text.len() || whole == last {
        whole
    } else {
        whole - last
    }
}

/// Returns the length of the first word by [`GPT2`].
fn gpt2(text: &str) -> usize {
    let Some((first, of)) = next(text) else {
        return 0;
    };
    if first == '\'' {
        let follows = after(text, 1);
        let contraction = CONTRACTIONS.iter().find(|end| follows.starts_with(**end));
        if let Some(end) = contraction {
            return 1 + end.len();
        }
    }
    if of != Class::Space {
        return run(text, of, usize::MAX);
    }
    if first == ' '
        && let Some((_, of)) = next(after(text, 1)).filter(|(_, of)| *of != Class::Space)
    {
        return 1 + run(after(text, 1), of, usize::MAX);
    }
    white_space(text)
}

/// Returns the length of the first word by [`LLAMA3`] or [`QWEN2`].
fn llama3(text: &str, digits: usize) -> usize {
    let Some((first, of)) = next(text) else {
        return 0;
    };
    if let Some(length) = contraction(text) {
        return length;
    }
    let length = first.len_utf8();
    let rest = after(text, length);
    let second = next(rest).map(|(_, of)| of);
    if of == Class::Letter {
        return run(text, of, usize::MAX);
    }
    if of == Class::Number {
        return run(text, of, digits);
    }
    if !matches!(first, '\r' | '\n') && second == Some(Class::Letter) {
        return length + run(rest, Class::Letter, usize::MAX);
    }
    let line_ends = |from: usize| {
        let ends = after(text, from).bytes();
        from + ends
            .take_while(|byte| matches!(byte, b'\r' | b'\n'))
            .count()
    };
    if of == Class::Other {
        return line_ends(run(text, of, usize::MAX));
    }
    if first == ' ' && second == Some(Class::Other) {
        return line_ends(1 + run(rest, Class::Other, usize::MAX));
    }
    let space = text.get(..run(text, Class::Space, usize::MAX));
    match space.and_then(|space| space.rfind(['\r', '\n'])) {
        Some(last) => last + 1,
        None => white_space(text),
    }
}

/// Returns the length of a contraction at the beginning of a text, in upper or lower case.
fn contraction(text: &str) -> Option<usize> {
    let follows = text.strip_prefix('\'')?;
    // The long s is an s to an expression that ignores case.
    if follows.starts_with('\u{17f}') {
        return Some(1 + '\u{17f}'.len_utf8());
    }
    let found = CONTRACTIONS.iter().find(|end| {
        let start = follows.get(..end.len());
        start.is_some_and(|start| start.eq_ignore_ascii_case(end))
    });
    found.map(|end| 1 + end.len())
}

/// Returns the length of the digits, or of the text without digits, at the beginning of a text.
fn digits(text: &str, single: bool) -> usize {
    let is_digit = text.starts_with(char::is_numeric);
    if is_digit && single {
        return text.chars().next().map_or(0, char::len_utf8);
    }
    let end = text.find(|c: char| c.is_numeric() != is_digit);
    end.unwrap_or(text.len())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn split(splitters: &[Splitter], text: &str) -> Vec<String> {
        let mut found = Vec::new();
        words(splitters, text, &mut |word| found.push(word.to_owned()));
        found
    }

    /// Returns texts of characters that the expressions treat specially.
    fn texts() -> impl Strategy<Value = String> {
        let piece = prop::sample::select(vec![
            "a", "S", "re", "LL", "The", "1", "42", "12345", " ", "  ", "\n", "\r\n", "\t",
            "\u{b}", "\u{85}", "\u{a0}", "'", "'s", "'T", "'\u{17f}", ".", "!?", "é", "\u{301}",
            "中", "½", "①", "🐉", "\u{200d}", "\0", "\u{1c5}", "\u{212a}", "ß", "\u{3000}", "४",
            "\u{e000}",
        ]);
        prop::collection::vec(piece, 0..40).prop_map(|pieces| pieces.concat())
    }

    proptest! {
        #[test]
        fn a_scanner_does_what_its_expression_does(text in texts()) {
            for expression in [GPT2, LLAMA3, QWEN2] {
                let scanner = Splitter::of_expression(expression).unwrap();
                let matches = Splitter::Matches(Arc::new(SysRegex::new(expression).unwrap()));
                prop_assert_eq!(split(&[scanner], &text), split(&[matches], &text), "{}", expression);
            }
        }

        #[test]
        fn words_make_the_text(text in texts()) {
            for splitters in [
                vec![],
                vec![Splitter::Digits { single: true }, Splitter::Gpt2],
                vec![Splitter::Digits { single: false }],
                vec![Splitter::BeforeRuns { mark: ' ', except: vec!['a'] }],
                vec![Splitter::Before(' ')],
            ] {
                let words = split(&splitters, &text);
                prop_assert!(words.iter().all(|word| !word.is_empty()));
                prop_assert_eq!(words.concat(), text.clone());
            }
        }

        #[test]
        fn any_character_is_in_the_class_it_has_in_the_expressions(text in "\\PC{0,30}") {
            let scanner = Splitter::of_expression(LLAMA3).unwrap();
            let matches = Splitter::Matches(Arc::new(SysRegex::new(LLAMA3).unwrap()));
            prop_assert_eq!(split(&[scanner], &text), split(&[matches], &text));
        }
    }

    #[test]
    fn digits_and_marks_split() {
        let single = [Splitter::Digits { single: true }, Splitter::Gpt2];
        assert_eq!(split(&single, "a 12 b"), ["a", " ", "1", "2", " b"]);
        assert_eq!(
            split(&[Splitter::Digits { single: false }], "a12½b"),
            ["a", "12½", "b"]
        );
        let text = "\u{2581}\u{2581}a\u{2581}bc\u{2581}";
        let before_runs = |except: &[char]| Splitter::BeforeRuns {
            mark: '\u{2581}',
            except: except.to_vec(),
        };
        assert_eq!(
            split(&[before_runs(&[])], text),
            ["\u{2581}\u{2581}a", "\u{2581}bc", "\u{2581}"]
        );
        assert_eq!(
            split(&[before_runs(&['a'])], text),
            ["\u{2581}\u{2581}a\u{2581}bc", "\u{2581}"]
        );
        assert_eq!(
            split(&[Splitter::Before('\u{2581}')], text),
            ["\u{2581}", "\u{2581}a", "\u{2581}bc", "\u{2581}"]
        );
    }
}
