//! The `logprobs` and `prompt_logprobs` of a completion's choice.

use std::collections::BTreeMap;

use serde::ser::SerializeMap;
use serde::{Serialize, Serializer};
use utoipa::ToSchema;

use crate::engine::{PromptToken, TokenLogprob};
use crate::http::generation::ShownToken;
use crate::text::Tokenizer;

/// What JSON cannot say of a probability of 0; OpenAI's own value for it.
const LEAST: f32 = -9999.0;

/// Log-probabilities of a choice's tokens, under the model's own distribution (before penalties,
/// temperature and filters). All lists are equally long.
#[derive(Debug, Default, Serialize, ToSchema)]
#[expect(clippy::struct_field_names, reason = "OpenAI's names")]
pub(in crate::http) struct Logprobs {
    /// The tokens as text; one that is not whole UTF-8 is written `bytes:\xe2\x80`. With
    /// `return_tokens_as_token_ids`: `token_id:123`.
    tokens: Vec<String>,
    /// Ids of `tokens`.
    token_ids: Vec<u32>,
    /// Their log-probabilities; null for the first token of an echoed prompt.
    token_logprobs: Vec<Option<f32>>,
    /// The most likely tokens in each place, most likely first, and the token itself.
    top_logprobs: Vec<Option<TopLogprobs>>,
    /// Ids of the tokens in `top_logprobs`, in the same order: an object's keys have none, and tokens of
    /// equal text are one key to most readers.
    top_token_ids: Vec<Option<Vec<u32>>>,
    /// Characters before each token, from the start of the prompt.
    text_offset: Vec<usize>,
}

/// A map from token text to log-probability, in the order given.
#[derive(Debug, ToSchema)]
#[schema(value_type = std::collections::BTreeMap<String, f32>, example = json!({" time": -0.02, " day": -4.5}))]
struct TopLogprobs(Vec<(String, f32)>);

impl Serialize for TopLogprobs {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(self.0.len()))?;
        for (token, logprob) in &self.0 {
            map.serialize_entry(token, logprob)?;
        }
        map.end()
    }
}

/// How the tokens of an answer are written.
#[derive(Clone, Copy)]
pub(super) struct TokenNames<'a> {
    /// The model's tokenizer.
    pub tokenizer: &'a Tokenizer,
    /// How each is written.
    pub form: TokenForm,
}

/// How a token is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum TokenForm {
    /// As text.
    Text,
    /// As `token_id:123`.
    Id,
}

impl TokenNames<'_> {
    /// Returns the name of a token.
    pub(super) fn of(self, id: u32) -> String {
        match self.form {
            TokenForm::Text => token_text(self.tokenizer, id),
            TokenForm::Id => format!("token_id:{id}"),
        }
    }
}

impl Logprobs {
    /// Adds the tokens of an echoed prompt, each with the `top` most likely of those reported;
    /// `offsets` are the characters before each.
    pub(super) fn push_prompt(
        &mut self,
        names: TokenNames<'_>,
        ids: &[u32],
        offsets: &[usize],
        reported: &[Option<PromptToken>],
        top: usize,
    ) {
        for ((&id, &offset), report) in ids.iter().zip(offsets).zip(reported) {
            let report = report.as_ref().map(|report| {
                let top = report.top.get(..top).unwrap_or(&report.top);
                (report.token, top)
            });
            self.push_token(names, id, offset, report);
        }
    }

    /// Adds generated tokens; `base` is the number of characters of the prompt.
    pub(super) fn push(&mut self, names: TokenNames<'_>, tokens: &[ShownToken], base: usize) {
        for shown in tokens {
            let report = Some((shown.token, shown.top.as_slice()));
            self.push_token(names, shown.token.id, base + shown.offset, report);
        }
    }

    /// Adds a token with its log-probability and the most likely tokens in its place, if they are known.
    fn push_token(
        &mut self,
        names: TokenNames<'_>,
        id: u32,
        offset: usize,
        report: Option<(TokenLogprob, &[TokenLogprob])>,
    ) {
        self.tokens.push(names.of(id));
        self.token_ids.push(id);
        self.text_offset.push(offset);
        self.token_logprobs
            .push(report.map(|(token, _)| finite(token.logprob)));
        let listed: Option<Vec<TokenLogprob>> = report.map(|(token, top)| {
            let chosen = (!top.iter().any(|other| other.id == token.id)).then_some(token);
            top.iter().copied().chain(chosen).collect()
        });
        self.top_token_ids.push(
            listed
                .as_ref()
                .map(|listed| listed.iter().map(|token| token.id).collect()),
        );
        self.top_logprobs.push(listed.map(|listed| {
            let entry = |token: TokenLogprob| (names.of(token.id), finite(token.logprob));
            TopLogprobs(listed.into_iter().map(entry).collect())
        }));
    }
}

/// How likely each token of the prompt was, as vLLM tells it: for each place a map from token ids
/// to what is known of them, of the prompt's own token and of the most likely ones. Null for a
/// token that has nothing before it.
#[derive(Debug, Serialize, ToSchema)]
#[schema(example = json!([null, {"444": {"logprob": -0.51, "rank": 1, "decoded_token": " there"}}]))]
pub(in crate::http) struct PromptLogprobs(Vec<Option<BTreeMap<u32, RankedToken>>>);

/// A token in one place.
#[derive(Debug, Serialize, ToSchema)]
pub(in crate::http) struct RankedToken {
    /// Its log-probability, under the model's own distribution.
    logprob: f32,
    /// Its place among all tokens, the most likely first; from 1.
    rank: usize,
    /// The token as text; one that is not whole UTF-8 is written `bytes:\xe2\x80`.
    decoded_token: String,
}

impl PromptLogprobs {
    /// Of a prompt's tokens, each with the `top` most likely of those reported.
    pub(super) fn new(tokenizer: &Tokenizer, reported: &[Option<PromptToken>], top: usize) -> Self {
        let ranked = |token: TokenLogprob, rank| {
            let told = RankedToken {
                logprob: finite(token.logprob),
                rank,
                decoded_token: token_text(tokenizer, token.id),
            };
            (token.id, told)
        };
        let place = |report: &PromptToken| {
            let likely = report.top.iter().take(top).zip(1..);
            let own = report.rank.map(|rank| ranked(report.token, rank));
            let likely = likely.map(|(token, rank)| ranked(*token, rank));
            likely.chain(own).collect()
        };
        Self(
            reported
                .iter()
                .map(|report| report.as_ref().map(place))
                .collect(),
        )
    }
}

/// Returns a log-probability as JSON can say it.
pub(super) fn finite(logprob: f32) -> f32 {
    if logprob.is_finite() { logprob } else { LEAST }
}

/// Returns a token as text, or as `bytes:\x..` if it is not whole UTF-8.
pub(in crate::http) fn token_text(tokenizer: &Tokenizer, id: u32) -> String {
    use std::fmt::Write;
    let bytes = tokenizer.token_bytes(id).unwrap_or_default();
    match std::str::from_utf8(bytes) {
        Ok(text) => text.to_owned(),
        Err(_) => bytes.iter().fold(String::from("bytes:"), |mut text, byte| {
            // Writing to a string cannot fail.
            let _ = write!(text, "\\x{byte:02x}");
            text
        }),
    }
}
