//! Bounds the cost of a regular expression before the library compiles it.
//!
//! For a sequence of optional parts the library stores every suffix, which takes memory and time
//! quadratic in their number: a gigabyte for 16 kB of `.?`. It also expands mandatory text byte by
//! byte. Both are counted here; the library itself reports an expression that is not valid.

use regex_syntax::hir::{Hir, HirKind};

use super::GrammarError;

/// Maximum optional parts of one expression.
const MAX_OPTIONAL: usize = 1024;
/// Maximum bytes of the shortest matching text.
const MAX_SHORTEST_MATCH: usize = 8192;

/// The measures that make an expression expensive.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Shape {
    /// Number of optional parts.
    pub optional: usize,
    /// Bytes of the shortest matching text.
    pub least: usize,
}

impl Shape {
    /// Returns the shape of an expression; an empty shape if it is not valid.
    pub(super) fn of(regex: &str) -> Self {
        let mut parser = regex_syntax::ParserBuilder::new().utf8(false).build();
        let Ok(hir) = parser.parse(regex) else {
            return Self::default();
        };
        Self {
            optional: optional(&hir),
            least: hir.properties().minimum_len().unwrap_or(0),
        }
    }

    /// Checks the shape against the limits.
    ///
    /// # Errors
    /// The measure that exceeds its limit, with value and limit.
    pub(super) fn check(self) -> Result<(), GrammarError> {
        if self.optional > MAX_OPTIONAL {
            return Err(GrammarError(format!(
                "an expression can have at most {MAX_OPTIONAL} optional parts (`?`, `*`, `{{0,…}}`), got {}",
                self.optional
            )));
        }
        if self.least > MAX_SHORTEST_MATCH {
            return Err(GrammarError(format!(
                "the shortest text that matches an expression can have at most {MAX_SHORTEST_MATCH} bytes, got {}",
                self.least
            )));
        }
        Ok(())
    }
}

/// Counts the optional parts. The parser bounds their depth.
fn optional(hir: &Hir) -> usize {
    let own = usize::from(hir.properties().minimum_len() == Some(0));
    match hir.kind() {
        HirKind::Repetition(repetition) => own + optional(&repetition.sub),
        HirKind::Capture(group) => optional(&group.sub),
        HirKind::Concat(parts) => parts.iter().map(optional).sum(),
        HirKind::Alternation(parts) => own + parts.iter().map(optional).sum::<usize>(),
        HirKind::Empty | HirKind::Literal(_) | HirKind::Class(_) | HirKind::Look(_) => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn optional_parts_and_the_shortest_text_are_counted() {
        for (regex, optional, least) in [
            ("abc", 0, 3),
            ("a?b*c+", 2, 1),
            ("(a|)(b{0,9}){3}", 3, 0),
            ("(?:x(y?)){2,}", 1, 2),
            ("((a{100}){100}){100}", 0, 1_000_000),
            ("a{4294967295}", 0, 4_294_967_295),
            ("[a-z]{0,4294967295}", 1, 0),
            ("(", 0, 0),
        ] {
            assert_eq!(Shape::of(regex), Shape { optional, least }, "{regex}");
        }
        assert!(Shape::of(&"a?".repeat(1024)).check().is_ok());
        let refused = Shape::of(&".?".repeat(1025)).check().unwrap_err();
        assert!(refused.to_string().contains("1025"), "{refused}");
        let refused = Shape::of("a{8193}").check().unwrap_err().to_string();
        assert!(
            refused.ends_with("at most 8192 bytes, got 8193"),
            "{refused}"
        );
    }
}
