//! Stop strings in a text that arrives in pieces.
//!
//! The text ends with the stop string that is complete first; if several end at the same character,
//! the longest counts. The result does not depend on how the text is split into pieces. Text that
//! may be the beginning of a stop string is held back until it can no longer become one.

/// Looks for several stop strings in one stream of text.
#[derive(Debug, Clone)]
pub struct StopMatcher {
    stops: Vec<String>,
    include_stop: bool,
    /// The longest suffix of the text so far that is a prefix of a stop string.
    held: String,
}

/// The result of one piece of text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shown {
    /// Text that may be shown now.
    pub text: String,
    /// Whether a stop string is complete, so that nothing follows `text`.
    pub stopped: bool,
}

impl StopMatcher {
    /// Creates a matcher for non-empty stop strings; with `include_stop`, the text includes the
    /// matching one.
    #[must_use]
    pub fn new(stops: &[String], include_stop: bool) -> Self {
        let stops = stops.iter().filter(|stop| !stop.is_empty());
        Self {
            stops: stops.cloned().collect(),
            include_stop,
            held: String::new(),
        }
    }

    /// Matches the next piece of text.
    pub fn push(&mut self, text: &str) -> Shown {
        let mut seen = std::mem::take(&mut self.held);
        seen.push_str(text);
        if let Some((start, end)) = self.first_complete(&seen) {
            seen.truncate(if self.include_stop { end } else { start });
            return Shown {
                text: seen,
                stopped: true,
            };
        }
        self.held = seen.split_off(self.first_begun(&seen));
        Shown {
            text: seen,
            stopped: false,
        }
    }

    /// Returns the text that was held back, once the text has ended.
    pub fn finish(&mut self) -> String {
        std::mem::take(&mut self.held)
    }

    /// Returns start and end of the stop string that ends first.
    fn first_complete(&self, text: &str) -> Option<(usize, usize)> {
        let found = self.stops.iter().filter_map(|stop| {
            text.find(stop.as_str())
                .map(|start| (start, start + stop.len()))
        });
        found.min_by_key(|&(start, end)| (end, start))
    }

    /// Returns the start of the longest suffix of `text` that is a prefix of a stop string.
    fn first_begun(&self, text: &str) -> usize {
        let longest = self.stops.iter().map(String::len).max().unwrap_or(0);
        let from = text.len().saturating_sub(longest.saturating_sub(1));
        text.char_indices()
            .map(|(at, _)| at)
            .filter(|&at| at >= from)
            .find(|&at| {
                let end = text.get(at..).unwrap_or_default();
                self.stops.iter().any(|stop| stop.starts_with(end))
            })
            .unwrap_or(text.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn run(stops: &[&str], include_stop: bool, pieces: &[&str]) -> (String, bool) {
        let stops: Vec<String> = stops.iter().map(ToString::to_string).collect();
        let mut matcher = StopMatcher::new(&stops, include_stop);
        let mut shown = String::new();
        for piece in pieces {
            let step = matcher.push(piece);
            shown += &step.text;
            if step.stopped {
                return (shown, true);
            }
        }
        (shown + &matcher.finish(), false)
    }

    #[test]
    fn a_stop_string_over_several_pieces_is_never_shown() {
        let mut matcher = StopMatcher::new(&["END".to_owned()], false);
        let texts: Vec<String> = ["a E", "N", "D b"].map(|p| matcher.push(p).text).into();
        assert_eq!(texts, ["a ", "", ""]);
    }

    #[test]
    fn a_false_start_is_shown_once_it_is_one() {
        assert_eq!(
            run(&["END"], false, &["E", "N", "x"]),
            ("ENx".into(), false)
        );
        assert_eq!(
            run(&["aab"], false, &["a", "a", "a", "b"]),
            ("a".into(), true)
        );
        assert_eq!(run(&["END"], false, &["EN"]), ("EN".into(), false));
    }

    #[test]
    fn the_string_that_ends_first_counts_and_of_those_the_longest() {
        assert_eq!(run(&["abc", "b"], false, &["xabc"]), ("xa".into(), true));
        assert_eq!(run(&["b", "ab"], false, &["xab"]), ("x".into(), true));
        assert_eq!(run(&["b", "ab"], true, &["xabc"]), ("xab".into(), true));
    }

    /// Applies the definition literally to the whole text.
    fn naive(stops: &[String], include_stop: bool, text: &str) -> (String, bool) {
        for (end, _) in text.char_indices().chain([(text.len(), ' ')]) {
            let longest = stops
                .iter()
                .filter(|s| text[..end].ends_with(*s))
                .max_by_key(|s| s.len());
            if let Some(stop) = longest {
                let shown = if include_stop { end } else { end - stop.len() };
                return (text[..shown].to_owned(), true);
            }
        }
        (text.to_owned(), false)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]

        #[test]
        fn any_split_gives_what_the_whole_text_gives(
            text in "[abé🐉]{0,24}",
            stops in prop::collection::vec("[abé🐉]{1,4}", 0..4),
            cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..8),
            include_stop in any::<bool>(),
        ) {
            let characters: Vec<char> = text.chars().collect();
            let mut cuts: Vec<usize> = cuts.iter().map(|c| c.index(characters.len() + 1)).collect();
            cuts.extend([0, characters.len()]);
            cuts.sort_unstable();
            let pieces: Vec<String> = cuts.windows(2)
                .map(|w| characters[w[0]..w[1]].iter().collect()).collect();
            let pieces: Vec<&str> = pieces.iter().map(String::as_str).collect();
            let stop_refs: Vec<&str> = stops.iter().map(String::as_str).collect();
            prop_assert_eq!(run(&stop_refs, include_stop, &pieces), naive(&stops, include_stop, &text));
        }
    }
}
