//! Truncates text in errors, so that an answer is not as long as the request.

/// Maximum characters of a client's value that an error repeats.
pub(super) const SHOWN: usize = 200;
/// Characters at the beginning and the end of a message that are kept if it is longer than both.
const MESSAGE: (usize, usize) = (800, 200);

/// Returns the first characters of a value that a client sent.
pub(in crate::http) fn shown(value: &str) -> String {
    abridged(value.to_owned(), SHOWN, 0)
}

/// Truncates the value that a message quotes; the text around the value describes the error.
pub(in crate::http) fn shown_within(message: &str) -> String {
    abridged(message.to_owned(), SHOWN, SHOWN)
}

/// Returns a text without its middle if it has more than `head` and `tail` characters.
fn abridged(text: String, head: usize, tail: usize) -> String {
    let byte = |character: Option<(usize, char)>| character.map_or(text.len(), |(at, _)| at);
    // A text with so few bytes cannot have more characters.
    if text.len() <= head + tail {
        return text;
    }
    let begin = byte(text.char_indices().nth(head));
    let end = match tail {
        0 => text.len(),
        _ => byte(text.char_indices().nth_back(tail - 1)),
    };
    match (text.get(..begin), text.get(end..)) {
        (Some(first), Some(last)) if begin < end => format!("{first}…{last}"),
        _ => text,
    }
}

/// Returns a message, truncated regardless of its content.
pub(super) fn message(text: String) -> String {
    let (head, tail) = MESSAGE;
    abridged(text, head, tail)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_value_is_truncated_and_the_text_around_it_is_kept() {
        assert_eq!(shown("short"), "short");
        assert_eq!(shown(&"é".repeat(200)), "é".repeat(200));
        assert_eq!(shown(&"é".repeat(201)), format!("{}…", "é".repeat(200)));
        let long = format!(
            "`n`: invalid type: string {:?}, expected an integer",
            "x".repeat(1000)
        );
        let cut = shown_within(&long);
        assert!(cut.starts_with("`n`: invalid type: string \"xxx"), "{cut}");
        assert!(cut.ends_with("xxx\", expected an integer"), "{cut}");
        assert_eq!(cut.chars().count(), 401);
        assert_eq!(message("m".repeat(1 << 20)).chars().count(), 1001);
    }
}
