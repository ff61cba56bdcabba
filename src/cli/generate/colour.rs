//! Colours of tokens by their probability, and text that is safe to send to a terminal.
//!
//! The colours are the terminal's own, so that they fit its background. The least expected tokens are bold and
//! underlined too, so that they can be told without colours.

use std::fmt::Write;
use std::io::IsTerminal;

/// Surprise of a token in bits: `-log2` of the model's own probability.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Surprise {
    /// Less than 1 bit: at least as likely as not.
    Expected,
    /// Less than 3 bits.
    NotUnlikely,
    /// Less than 5 bits.
    Surprising,
    /// 5 bits or more.
    VerySurprising,
}

const LEVELS: [Surprise; 4] = [
    Surprise::Expected,
    Surprise::NotUnlikely,
    Surprise::Surprising,
    Surprise::VerySurprising,
];

impl Surprise {
    /// Returns the level of a natural logarithm of a probability.
    fn of(logprob: f32) -> Self {
        match -logprob / std::f32::consts::LN_2 {
            bits if bits < 1.0 => Self::Expected,
            bits if bits < 3.0 => Self::NotUnlikely,
            bits if bits < 5.0 => Self::Surprising,
            _ => Self::VerySurprising,
        }
    }

    /// Returns the escape sequence that begins its colour; empty for the default colour.
    fn sequence(self) -> &'static str {
        match self {
            Self::Expected => "",
            Self::NotUnlikely => "\x1b[33m",
            Self::Surprising => "\x1b[31m",
            Self::VerySurprising => "\x1b[1;4;31m",
        }
    }

    fn probabilities(self) -> &'static str {
        match self {
            Self::Expected => "over 50 %",
            Self::NotUnlikely => "12 to 50 %",
            Self::Surprising => "3 to 12 %",
            Self::VerySurprising => "under 3 %",
        }
    }

    fn paint(self, text: &str) -> String {
        match self.sequence() {
            "" => text.to_owned(),
            begin => format!("{begin}{text}\x1b[0m"),
        }
    }
}

/// Returns a token's text in the colour of its probability. The colour ends with it, wherever the text is cut.
pub(super) fn painted(text: &str, logprob: f32) -> String {
    if text.is_empty() {
        return String::new();
    }
    Surprise::of(logprob).paint(text)
}

/// Returns the legend of the colours.
pub(super) fn legend() -> String {
    let samples = LEVELS.map(|level| level.paint(level.probabilities()));
    format!("probability: {}", samples.join(", "))
}

/// Returns whether a stream is a terminal that shows colours, and `NO_COLOR` is not set (<https://no-color.org>).
pub(super) fn shows_colours(stream: &impl IsTerminal) -> bool {
    let is_set = |name| std::env::var_os(name).is_some_and(|value| !value.is_empty());
    let is_dumb = std::env::var_os("TERM").is_none_or(|term| term == "dumb");
    stream.is_terminal() && !is_set("NO_COLOR") && !is_dumb
}

/// Returns text without control characters other than tabs and new lines: a model must not command the
/// terminal.
pub(super) fn without_controls(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    for c in text.chars() {
        if c.is_control() && c != '\n' && c != '\t' {
            // Writing to a string cannot fail.
            let _ = write!(shown, "{}", c.escape_default());
        } else {
            shown.push(c);
        }
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_has_the_colour_of_its_probability() {
        for (probability, expected) in [
            (1.0, " king"),
            (0.51, " king"),
            (0.49, "\x1b[33m king\x1b[0m"),
            (0.13, "\x1b[33m king\x1b[0m"),
            (0.12, "\x1b[31m king\x1b[0m"),
            (0.03, "\x1b[1;4;31m king\x1b[0m"),
            (0.0, "\x1b[1;4;31m king\x1b[0m"),
        ] {
            assert_eq!(painted(" king", f32::ln(probability)), expected);
        }
        assert_eq!(painted("", -9.0), "");
        for level in LEVELS {
            assert!(legend().contains(&level.paint(level.probabilities())));
        }
    }

    #[test]
    fn control_characters_are_shown_instead_of_sent() {
        let text = "a\tb\nc\x1b]0;title\x07\r\u{9b}31m é";
        assert_eq!(
            without_controls(text),
            "a\tb\nc\\u{1b}]0;title\\u{7}\\r\\u{9b}31m é"
        );
    }
}
