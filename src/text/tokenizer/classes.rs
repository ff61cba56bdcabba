//! The classes of characters that pre-tokenizers tell apart: letters, numbers, white space.

use std::sync::LazyLock;

use regex_syntax::hir::{Class as Ranges, HirKind};

/// A class of characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Class {
    /// `\p{L}`
    Letter,
    /// `\p{N}`
    Number,
    /// `\s`
    Space,
    /// All others.
    Other,
}

/// Classes by code point. Those beyond the last letter or number are `Other`.
static CLASSES: LazyLock<Vec<Class>> = LazyLock::new(|| {
    let mut classes = Vec::new();
    mark(&mut classes, r"\p{L}", Class::Letter);
    mark(&mut classes, r"\p{N}", Class::Number);
    mark(&mut classes, r"\s", Class::Space);
    classes
});

/// Marks the characters of a regular expression that is a class. Its tables are those of Unicode 16,
/// as are those of the library that tokenizers are usually run with.
fn mark(classes: &mut Vec<Class>, expression: &str, class: Class) {
    let parsed = regex_syntax::parse(expression).map(regex_syntax::hir::Hir::into_kind);
    let Ok(HirKind::Class(Ranges::Unicode(ranges))) = parsed else {
        return;
    };
    for range in ranges.iter() {
        let (start, end) = (range.start() as usize, range.end() as usize);
        if classes.len() <= end {
            classes.resize(end + 1, Class::Other);
        }
        if let Some(classes) = classes.get_mut(start..=end) {
            classes.fill(class);
        }
    }
}

/// Returns the class of a character.
#[inline]
pub(super) fn class(character: char) -> Class {
    let class = CLASSES.get(character as usize);
    class.copied().unwrap_or(Class::Other)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_character_has_its_class() {
        for (character, expected) in [
            ('a', Class::Letter),
            ('é', Class::Letter),
            ('中', Class::Letter),
            ('\u{3134a}', Class::Letter),
            ('7', Class::Number),
            ('½', Class::Number),
            ('四', Class::Letter),
            ('①', Class::Number),
            (' ', Class::Space),
            ('\u{3000}', Class::Space),
            ('\u{85}', Class::Space),
            ('\'', Class::Other),
            ('\u{301}', Class::Other),
            ('\u{200b}', Class::Other),
            ('🙂', Class::Other),
            ('\u{10ffff}', Class::Other),
        ] {
            assert_eq!(class(character), expected, "{character:?}");
        }
    }
}
