//! Checks of a Lark grammar before the library compiles it: the length of its expanded terminals,
//! embedded schemas, and special tokens.
//!
//! A terminal is one regular expression into which the terminals that it names are expanded, so a
//! kilobyte of terminals that each name another twice can exceed memory. The library itself reports
//! a grammar that is not valid.

use std::collections::HashMap;
use std::ops::Range;

use serde_json::Value;

use super::expression::Shape;
use super::{GrammarError, schema};

/// Length at which counting saturates; far beyond every limit.
const SATURATED: usize = 1 << 24;

/// A lexical unit of a grammar and its byte range.
struct Lexeme<'a> {
    kind: Kind<'a>,
    place: Range<usize>,
}

impl<'a> Lexeme<'a> {
    /// Returns the name if it is a terminal's.
    fn terminal(&self) -> Option<&'a str> {
        match self.kind {
            Kind::Name(name) if is_terminal(name) => Some(name),
            _ => None,
        }
    }
}

/// Returns whether this is the name of a terminal rather than a rule.
fn is_terminal(name: &str) -> bool {
    name.trim_start_matches('_').starts_with(char::is_uppercase)
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind<'a> {
    /// Name of a rule or terminal.
    Name(&'a str),
    /// A string or a regular expression.
    Expression(&'a str),
    /// `<…>`.
    Token(&'a str),
    /// JSON after `%json`.
    Schema(&'a str),
    Number(usize),
    Symbol(char),
    NewLine,
}

/// Returns the length in bytes of a grammar's text, or that of its longest expanded terminal if
/// that is more.
pub(super) fn expression_bytes(text: &str) -> usize {
    let (longest, _) = terminals(&lexemes(text));
    longest.max(text.len())
}

/// Returns the length in bytes of the longest expanded terminal, and the maximum number of optional
/// parts in one terminal.
fn terminals(parts: &[Lexeme]) -> (usize, usize) {
    let definitions = definitions(parts);
    let places: HashMap<&str, usize> = definitions.iter().map(|(name, _)| *name).zip(0..).collect();
    // A terminal is expanded once all that it names are known; recursive terminals never are.
    let mut waiting: Vec<usize> = Vec::with_capacity(definitions.len());
    let mut named_by: HashMap<usize, Vec<usize>> = HashMap::new();
    for (place, (_, body)) in definitions.iter().enumerate() {
        let names = body.iter().filter_map(Lexeme::terminal);
        let names: Vec<usize> = names.filter_map(|name| places.get(name).copied()).collect();
        waiting.push(names.len());
        for named in names {
            named_by.entry(named).or_default().push(place);
        }
    }
    let counts = waiting.iter().enumerate();
    let mut ready: Vec<usize> = counts.filter(|&(_, &n)| n == 0).map(|(at, _)| at).collect();
    let mut sizes: HashMap<&str, Size> = HashMap::new();
    let (mut known, mut longest, mut optional) = (0, 0, 0);
    while let Some(place) = ready.pop() {
        known += 1;
        if let Some((name, body)) = definitions.get(place) {
            let size = size(body, &sizes);
            sizes.insert(name, size);
            // Rules are not expanded.
            if is_terminal(name) {
                longest = longest.max(size.bytes);
                optional = optional.max(size.optional);
            }
        }
        for by in named_by.remove(&place).unwrap_or_default() {
            if let Some(count) = waiting.get_mut(by) {
                *count -= 1;
                if *count == 0 {
                    ready.push(by);
                }
            }
        }
    }
    if known == definitions.len() {
        (longest, optional)
    } else {
        (SATURATED, SATURATED)
    }
}

/// The expanded size of a part.
#[derive(Debug, Clone, Copy, Default)]
struct Size {
    bytes: usize,
    /// Number of optional parts.
    optional: usize,
}

impl Size {
    fn add(&mut self, other: Self, times: usize) {
        let more = other.bytes.saturating_mul(times);
        self.bytes = self.bytes.saturating_add(more).min(SATURATED);
        let more = other.optional.saturating_mul(times);
        self.optional = self.optional.saturating_add(more).min(SATURATED);
    }
}

/// Returns the grammar with the schemas in it prepared.
///
/// # Errors
/// If a schema can't be followed, or the grammar names a special token.
pub(super) fn prepare(text: &str) -> Result<String, GrammarError> {
    let parts = lexemes(text);
    let (_, optional) = terminals(&parts);
    let least = 0;
    Shape { optional, least }.check()?;
    let mut prepared = String::with_capacity(text.len());
    let mut done = 0;
    for part in parts {
        match part.kind {
            // `<[…]>` names tokens by id.
            Kind::Token(name) if !name.starts_with("<[") => {
                let name: String = name.chars().take(60).collect();
                return Err(GrammarError(format!(
                    "{name} is a special token, which a grammar can't use"
                )));
            }
            Kind::Schema(json) => {
                // The library itself reports invalid JSON.
                let Ok(mut schema) = serde_json::from_str::<Value>(json) else {
                    continue;
                };
                schema::prepare(&mut schema)?;
                prepared.push_str(text.get(done..part.place.start).unwrap_or_default());
                prepared.push_str(&schema.to_string());
                done = part.place.end;
            }
            _ => (),
        }
    }
    prepared.push_str(text.get(done..).unwrap_or_default());
    Ok(prepared)
}

/// Returns the terminals and rules with their definitions.
fn definitions<'a, 'p>(parts: &'p [Lexeme<'a>]) -> Vec<(&'a str, &'p [Lexeme<'a>])> {
    // A definition begins with a name at the start of a line, followed by a colon in that line.
    let mut heads = Vec::new();
    let mut at_line = true;
    for (at, part) in parts.iter().enumerate() {
        if let (Kind::Name(name), true) = (part.kind, at_line) {
            let line = parts.iter().enumerate().skip(at + 1);
            let mut line = line.take_while(|(_, part)| part.kind != Kind::NewLine);
            let colon = line.find(|(_, part)| part.kind == Kind::Symbol(':'));
            heads.extend(colon.map(|(colon, _)| (at, name, colon)));
        }
        at_line = part.kind == Kind::NewLine || (at_line && part.kind == Kind::Symbol('!'));
    }
    let ends = heads.iter().skip(1).map(|&(at, ..)| at);
    let ends: Vec<usize> = ends.chain([parts.len()]).collect();
    let heads = heads.iter().zip(ends);
    heads
        .filter_map(|(&(_, name, colon), end)| Some((name, parts.get(colon + 1..end)?)))
        .collect()
}

/// Returns the expanded size of a definition, given the sizes of the names in it.
fn size(body: &[Lexeme], known: &HashMap<&str, Size>) -> Size {
    // The sums of the open groups, and the last part, to which a repetition may apply.
    let mut open: Vec<Size> = Vec::new();
    let (mut sum, mut last) = (Size::default(), Size::default());
    for (at, part) in body.iter().enumerate() {
        let bytes = |bytes| Size { bytes, optional: 0 };
        last = match part.kind {
            // The part is already counted once.
            Kind::Symbol('{' | '~') => {
                sum.add(last, repeated(body.get(at + 1..).unwrap_or_default()) - 1);
                continue;
            }
            Kind::Symbol('?' | '*') => Size {
                bytes: 0,
                optional: 1,
            },
            Kind::Symbol('(' | '[') => {
                open.push(std::mem::take(&mut sum));
                Size::default()
            }
            Kind::Symbol(close @ (')' | ']')) => {
                let mut group = std::mem::replace(&mut sum, open.pop().unwrap_or_default());
                group.optional += usize::from(close == ']');
                group
            }
            Kind::Name(_) => {
                let size = part.terminal().and_then(|name| known.get(name));
                size.copied().unwrap_or(bytes(1))
            }
            Kind::Expression(text) => {
                let shape = text
                    .strip_prefix('/')
                    .and_then(|text| text.rsplit_once('/'));
                let shape = shape.map(|(regex, _)| Shape::of(regex)).unwrap_or_default();
                Size {
                    bytes: shape.least.max(part.place.len()),
                    optional: shape.optional,
                }
            }
            Kind::Token(_) | Kind::Schema(_) => bytes(1),
            Kind::Number(_) | Kind::Symbol(_) | Kind::NewLine => continue,
        };
        sum.add(last, 1);
    }
    for group in open {
        sum.add(group, 1);
    }
    sum
}

/// Returns the maximum count of the repetition at the beginning of `rest`.
fn repeated(rest: &[Lexeme]) -> usize {
    let numbers = rest.iter().take(5).map(|part| part.kind);
    let numbers =
        numbers.take_while(|kind| matches!(kind, Kind::Number(_) | Kind::Symbol('.' | ',')));
    let numbers = numbers.filter_map(|kind| match kind {
        Kind::Number(number) => Some(number),
        _ => None,
    });
    numbers.max().unwrap_or(1).max(1)
}

/// Returns the lexemes of a grammar, without white space and comments.
fn lexemes(text: &str) -> Vec<Lexeme<'_>> {
    let mut parts = Vec::new();
    let mut at = 0;
    while let Some(first) = text.get(at..).and_then(|rest| rest.chars().next()) {
        let rest = text.get(at..).unwrap_or_default();
        let (length, kind) = part(first, rest);
        let end = at + length.clamp(first.len_utf8(), rest.len());
        if let Some(kind) = kind {
            parts.push(Lexeme {
                kind,
                place: at..end,
            });
            if let Kind::Symbol('%') = kind
                && let Some(schema) = schema_after(text, end)
            {
                at = schema.place.end;
                parts.push(schema);
                continue;
            }
        }
        at = end;
    }
    parts
}

/// Returns the length in bytes and the kind of the lexeme at the beginning of `rest`, whose first
/// character is `first`.
fn part(first: char, rest: &str) -> (usize, Option<Kind<'_>>) {
    let run = |is: fn(char) -> bool| rest.find(|c| !is(c)).unwrap_or(rest.len());
    let line = || rest.find('\n').unwrap_or(rest.len());
    match first {
        '\n' => (1, Some(Kind::NewLine)),
        '#' => (line(), None),
        '/' if rest.starts_with("//") => (line(), None),
        '"' | '/' => {
            let length = quoted(rest, first);
            (length, rest.get(..length).map(Kind::Expression))
        }
        '<' => {
            let token = rest.find(|c: char| c == '>' || c.is_whitespace());
            match token.filter(|&end| rest.get(end..).is_some_and(|r| r.starts_with('>'))) {
                Some(end) => (end + 1, rest.get(..=end).map(Kind::Token)),
                None => (1, Some(Kind::Symbol('<'))),
            }
        }
        c if c.is_ascii_digit() => {
            let length = run(|c| c.is_ascii_digit());
            let number = rest.get(..length).and_then(|digits| digits.parse().ok());
            (length, Some(Kind::Number(number.unwrap_or(usize::MAX))))
        }
        c if c == '_' || c.is_alphabetic() => {
            let length = run(|c| c == '_' || c == '-' || c.is_alphanumeric());
            (length, rest.get(..length).map(Kind::Name))
        }
        c if c.is_whitespace() => (c.len_utf8(), None),
        c => (c.len_utf8(), Some(Kind::Symbol(c))),
    }
}

/// Returns the schema that follows a `%` ending at `at`, if the directive is `%json`.
fn schema_after(text: &str, at: usize) -> Option<Lexeme<'_>> {
    let json = text.get(at..)?.strip_prefix("json")?;
    let blank = json.len() - json.trim_start().len();
    let start = at + "json".len() + blank;
    let rest = text.get(start..)?;
    let mut values = serde_json::Deserializer::from_str(rest).into_iter::<Value>();
    values.next()?.ok()?;
    let end = start + values.byte_offset();
    Some(Lexeme {
        kind: Kind::Schema(text.get(start..end)?),
        place: start..end,
    })
}

/// Returns the bytes up to the closing quote, or to the end of the line if there is none.
fn quoted(rest: &str, quote: char) -> usize {
    let mut escaped = false;
    for (at, character) in rest.char_indices().skip(1) {
        match character {
            '\n' => return at,
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            c if c == quote => return at + 1,
            _ => (),
        }
    }
    rest.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn terminals_are_as_long_as_what_they_name() {
        let doubling = |levels: usize| {
            let names = (0..levels).map(|level| format!("T{level}: T{0} T{0}\n", level + 1));
            format!(
                "start: T0\n{}T{levels}: \"ab\"\n",
                names.collect::<String>()
            )
        };
        assert_eq!(expression_bytes(&doubling(10)), 4 << 10);
        assert_eq!(expression_bytes(&doubling(40)), SATURATED);
        for (text, bytes) in [
            ("start: A\nA: \"0123456789\" | /[a-z]+/ // \"\n", 41),
            ("start: A\nA: (\"ab\" B){100}\nB: \"c\"\n", 700),
            ("start: A\nA: (\"ab\" B)~2..50\nB: /x\\/y/\n", 500),
            ("start: A\nA: A A\n", SATURATED),
            // Rules are not.
            ("start: a a\na: b b\nb: c c\nc: \"x\"\n", 32),
        ] {
            assert_eq!(expression_bytes(text), bytes, "{text}");
        }
    }

    #[test]
    fn what_is_in_strings_expressions_and_comments_is_no_part_of_the_grammar() {
        for text in [
            "start: \"<|endoftext|>\" /<b>/ // <x>\n# <y>\n",
            "start: \"a\\\"<x>\"\n",
            "start: <[3]>\n",
            "start: a < b\n",
        ] {
            assert_eq!(prepare(text).ok().as_deref(), Some(text));
        }
        let refused = prepare("start: \"a\" <|endoftext|>\n").unwrap_err();
        assert!(
            refused
                .to_string()
                .contains("<|endoftext|> is a special token")
        );
    }

    #[test]
    fn schemas_within_it_are_prepared_too() {
        let text =
            "start: \"a\" x\nx: %json {\"type\": \"integer\", \"maximum\": 1e30}\ny: \"b\"\n";
        let prepared = prepare(text).unwrap();
        assert!(
            prepared.contains("\"maximum\":9223372036854775807"),
            "{prepared}"
        );
        assert!(prepared.ends_with("\ny: \"b\"\n"), "{prepared}");
        let refused = prepare("start: %json {\"multipleOf\": -1}").unwrap_err();
        let message = "`multipleOf` must be greater than 0, got -1";
        assert!(refused.to_string().contains(message), "{refused}");
        // The library reports invalid JSON.
        assert!(prepare("start: %json {").is_ok());
    }
}
