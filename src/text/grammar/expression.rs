//! How much work a regular expression makes, before the library compiles it.
//!
//! Of a sequence of parts that may each be left out, the library holds every rest: that takes memory and
//! time with the square of their number, a gigabyte for 16 kB of `.?`. And what can only go on in one way is
//! written out, byte by byte. Both are counted here; what is no regular expression is for the library to
//! say.

use regex_syntax::hir::{Hir, HirKind};

use super::GrammarError;

/// Parts of one expression that may be left out.
const MAX_OPTIONAL: usize = 1024;
/// Bytes of the shortest text that matches.
const MAX_LEAST: usize = 8192;

/// What makes an expression expensive.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Shape {
    /// Parts that may be left out.
    pub optional: usize,
    /// Bytes of the shortest text that matches.
    pub least: usize,
}

impl Shape {
    /// Returns the shape of an expression; that of nothing if it is none.
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

    /// Checks that it is not too expensive.
    ///
    /// # Errors
    /// What there is too much of, and the limit.
    pub(super) fn check(self) -> Result<(), GrammarError> {
        if self.optional > MAX_OPTIONAL {
            return Err(GrammarError(format!(
                "an expression can have at most {MAX_OPTIONAL} parts that may be left out (`?`, `*`, `{{0,…}}`), got {}",
                self.optional
            )));
        }
        if self.least > MAX_LEAST {
            return Err(GrammarError(format!(
                "the shortest text that matches an expression can have at most {MAX_LEAST} bytes, got {}",
                self.least
            )));
        }
        Ok(())
    }
}

/// Counts the parts that may be left out. The parser bounds how deep they are.
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
