//! Schemas, regular expressions, choices and grammars.
//!
//! The first byte of an input chooses the kind, the second the tokens among those allowed. The
//! fuzzer's programs also measure the time and memory of compiling and following a grammar.

use std::sync::LazyLock;

use super::input::{Choices, Input};
use super::tiny;
use crate::engine::{Constraint, GenerateError};
use crate::request::Limits;
use crate::text::{GrammarSource, Grammars};

/// Maximum tokens of a text.
const MAX_TOKENS: usize = 40;
/// Maximum bytes of the reason why a grammar is refused or a text ends.
const MAX_REASON_BYTES: usize = 4096;

/// Checks that a grammar is refused with a reason, or that the tokens it allows are accepted and
/// every complete text satisfies it.
pub(super) fn run(bytes: &[u8]) {
    static GRAMMARS: LazyLock<(Grammars, Limits)> = LazyLock::new(|| {
        let tokenizer = tiny::real_tokenizer();
        let ends: Vec<u32> = tokenizer.end_of_text().into_iter().collect();
        let vocabulary = tokenizer.vocab_size();
        let limits = Limits::for_model(1024, vocabulary, ends.clone());
        (Grammars::new(tokenizer, vocabulary, &ends), limits)
    });
    let mut input = Input::new(bytes);
    let (kind, seed) = (input.byte(), input.byte());
    let text = String::from_utf8_lossy(input.rest()).into_owned();
    let source = match kind {
        b'r' => GrammarSource::Regex(text),
        b'c' => GrammarSource::Choice(text.split('\n').map(str::to_owned).collect()),
        b'l' => GrammarSource::Lark(text),
        _ => GrammarSource::JsonSchema(text),
    };
    let (grammars, limits) = &*GRAMMARS;
    if limits.check_grammar("grammar", &source).is_err() {
        return;
    }
    match grammars.compile(&source) {
        Err(error) => assert!(error.to_string().len() <= MAX_REASON_BYTES),
        Ok(grammar) => follow(Constraint::new(grammar), &source, seed),
    }
}

fn follow(mut constraint: Constraint, source: &GrammarSource, seed: u8) {
    let tokenizer = tiny::real_tokenizer();
    let mut choices = Choices::of(seed);
    let mut text = Vec::new();
    for _ in 0..MAX_TOKENS {
        let mask = match constraint.allowed(&[]) {
            Ok(mask) => mask,
            Err(error) => return costly(&error),
        };
        let is_allowed = |id: &u32| mask[*id as usize / 32] >> (id % 32) & 1 == 1;
        let allowed: Vec<u32> = (0..tokenizer.vocab_size() as u32)
            .filter(is_allowed)
            .collect();
        assert!(
            !allowed.is_empty(),
            "no token may follow {:?}",
            String::from_utf8_lossy(&text)
        );
        let ends = constraint.end_of_text();
        // A text that may end does so in half of all cases.
        let end = allowed
            .iter()
            .find(|id| ends.contains(id) && choices.below(2) == 0);
        if end.is_some() {
            return check_whole(source, text);
        }
        let token = allowed[choices.below(allowed.len())];
        if constraint.end_of_text().contains(&token) {
            return check_whole(source, text);
        }
        text.extend_from_slice(tokenizer.token_bytes(token).unwrap_or_default());
        match constraint.accept(token) {
            Ok(true) => return check_whole(source, text),
            Ok(false) => (),
            Err(error) => return costly(&error),
        }
    }
}

/// Checks that a text ended early only because following its grammar costs too much.
fn costly(error: &GenerateError) {
    let reason = error.to_string();
    assert!(reason.len() <= MAX_REASON_BYTES);
    let limits = [
        "limit",
        "too many",
        "too large",
        "too complex",
        "fuel",
        "exceeded",
    ];
    let is_limit = limits
        .iter()
        .any(|word| reason.to_lowercase().contains(word));
    assert!(is_limit, "{reason}");
}

/// Checks that a complete text is UTF-8 and satisfies its grammar.
fn check_whole(source: &GrammarSource, text: Vec<u8>) {
    let text = match String::from_utf8(text) {
        Ok(text) => text,
        // A Lark grammar can derive arbitrary bytes.
        Err(_) if matches!(source, GrammarSource::Lark(_)) => return,
        Err(error) => panic!("{error}"),
    };
    match source {
        GrammarSource::JsonObject | GrammarSource::JsonSchema(_) => {
            let json = serde_json::from_str::<serde_json::Value>(&text);
            assert!(json.is_ok(), "{text}");
        }
        GrammarSource::Choice(choices) => assert!(choices.contains(&text), "{text}"),
        GrammarSource::Regex(_) | GrammarSource::Lark(_) => (),
    }
}
