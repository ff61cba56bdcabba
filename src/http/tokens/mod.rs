//! `/tokenize` and `/detokenize` in the formats of llama.cpp's server, TGI and vLLM.
//!
//! The field that holds the text selects the format of the answer: `content` is llama.cpp's,
//! `inputs` TGI's, `prompt` and `messages` vLLM's ([`vllm`]). Nothing here generates or waits for the
//! engine, so a draining server still answers.

mod vllm;

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use self::vllm::CountedTokens;
use super::admission::{Admission, TOKENIZE_INLINE};
use super::app::App;
use super::body::{JsonBody, objects};
use super::documented_errors::NativeBodyErrors;
use super::error::ApiError;
use super::generation::tokenize;
use super::layers::Scope;
use super::openai::chat::messages::MessageField;
use super::openai::shared::adapter;
use crate::request::InvalidRequest;
use crate::serving::Serving;
use crate::text::{TextError, TokenSpan, Tokenizer};

/// The text to tokenize, in exactly one of `content` (for an answer in llama.cpp's format), `inputs`
/// (TGI's), and `prompt` or `messages` (vLLM's).
#[derive(Debug, Default, Deserialize, ToSchema)]
#[schema(example = json!({"content": "Once upon a time", "with_pieces": true}))]
pub(super) struct TokenizeBody {
    /// The text.
    content: Option<String>,
    /// The text, in place of `content`.
    inputs: Option<String>,
    /// The text, in place of `content`.
    prompt: Option<String>,
    /// A conversation, in place of `content`: tokenized as the prompt that `/v1/chat/completions`
    /// renders from it.
    #[serde(default, deserialize_with = "objects")]
    #[schema(value_type = Option<Vec<MessageField>>, min_items = 1)]
    messages: Option<Vec<MessageField>>,
    /// Whether to put the token before the text that the model's texts begin with, if it has one: GPT-2
    /// does not. Default: false with `content`, else true. In `messages` the chat template decides.
    add_special: Option<bool>,
    /// Whether to report the text of each token too; only with `content`.
    #[schema(default = false)]
    with_pieces: Option<bool>,
    /// Whether `<|endoftext|>` in the text is the special token rather than plain text. In `messages` it
    /// is always plain text.
    #[schema(default = true)]
    parse_special: Option<bool>,
    /// Name of the served model; any other is answered with 404. Read only with `prompt` and `messages`.
    model: Option<String>,
    /// vLLM's name for `add_special`.
    add_special_tokens: Option<bool>,
    /// Whether to report each token as written in the vocabulary; only with `prompt` and `messages`.
    #[schema(default = false)]
    return_token_strs: Option<bool>,
    /// Whether to begin an assistant's message; only with `messages`.
    #[schema(default = true)]
    add_generation_prompt: Option<bool>,
    /// Whether to continue the last message instead of beginning another; only with `messages`.
    #[schema(default = false)]
    continue_final_message: Option<bool>,
    /// Not supported: an empty list is accepted.
    #[schema(value_type = Option<Vec<Object>>)]
    tools: Option<Vec<serde_json::Value>>,
}

/// The tokens of a text.
#[derive(Debug, Serialize, ToSchema)]
#[serde(untagged)]
pub(super) enum Tokenized {
    /// For `content`.
    LlamaCpp(ListedTokens),
    /// For `inputs`.
    Tgi(Vec<PlacedToken>),
    /// For `prompt` and `messages`.
    Vllm(CountedTokens),
}

/// A list of tokens.
#[derive(Debug, Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct ListedTokens {
    /// The tokens.
    tokens: Vec<ListedToken>,
}

/// An id, or with `with_pieces` an id and its text.
#[derive(Debug, Serialize, ToSchema)]
#[serde(untagged)]
#[schema(example = json!({"id": 2467, "piece": "Once"}))]
pub(super) enum ListedToken {
    /// An id.
    Id(u32),
    /// An id and its text.
    Piece(TokenPiece),
}

/// A token and its text.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct TokenPiece {
    /// Token id.
    id: u32,
    /// Text of the token, or its bytes if they are not valid UTF-8.
    piece: Piece,
}

/// Text, or bytes that are not valid UTF-8.
#[derive(Debug, Serialize, ToSchema)]
#[serde(untagged)]
pub(super) enum Piece {
    /// Text.
    Text(String),
    /// Bytes.
    Bytes(Vec<u8>),
}

/// A token and its place in the text.
#[derive(Debug, Serialize, ToSchema)]
#[schema(example = json!({"id": 2467, "text": "Once", "start": 0, "stop": 4}))]
pub(super) struct PlacedToken {
    /// Token id.
    id: u32,
    /// The token's characters; a character that spans several tokens is reported with each.
    text: String,
    /// Number of characters before the token.
    start: usize,
    /// Number of characters up to the end of the token.
    stop: usize,
}

impl PlacedToken {
    /// Returns a token before the first character.
    fn before_text(id: u32) -> Self {
        Self {
            id,
            text: String::new(),
            start: 0,
            stop: 0,
        }
    }
}

/// Tokenize a text
#[utoipa::path(
    post,
    path = "/tokenize",
    tag = "tokens",
    request_body = TokenizeBody,
    responses((status = 200, description = "The tokens", body = Tokenized), NativeBodyErrors),
)]
pub(super) async fn tokenize_text(
    State(app): State<App>,
    scope: Scope,
    JsonBody(mut body): JsonBody<TokenizeBody>,
) -> Result<Response, ApiError> {
    let serving = app.serving()?;
    let (admission, tokenizer) = (&scope.admission, Arc::clone(&serving.tokenizer));
    let parse_special = body.parse_special.unwrap_or(true);
    let add_special = body.add_special.or(body.add_special_tokens);
    match body.form()? {
        Form::LlamaCpp(content) => {
            let mut ids = tokenize(admission, &tokenizer, content, parse_special).await?;
            if add_special.unwrap_or(false) {
                tokenizer.add_bos(&mut ids);
            }
            let with_pieces = body.with_pieces.unwrap_or(false);
            let tokens = ids.len();
            let listed = move || ListedTokens {
                tokens: if with_pieces {
                    pieces(&tokenizer, ids)
                } else {
                    ids.into_iter().map(ListedToken::Id).collect()
                },
            };
            answer(admission, tokens, move || Tokenized::LlamaCpp(listed())).await
        }
        Form::Tgi(inputs) => {
            let bytes = inputs.len();
            let work = move || {
                let mut placed = placed(&tokenizer, &inputs, parse_special)?;
                let first = placed.first().map(|token| token.id);
                let bos = tokenizer.bos().filter(|bos| first != Some(*bos));
                if let Some(bos) = bos.filter(|_| add_special.unwrap_or(true)) {
                    placed.insert(0, PlacedToken::before_text(bos));
                }
                Ok::<_, TextError>(Json(Tokenized::Tgi(placed)).into_response())
            };
            Ok(admission.run(bytes, TOKENIZE_INLINE, work).await??)
        }
        Form::Vllm(source) => {
            let counted = vllm::count(admission, &serving, &body, source).await?;
            let tokens = counted.tokens();
            answer(admission, tokens, move || Tokenized::Vllm(counted.named())).await
        }
    }
}

/// Returns the answer that `work` creates for this number of tokens; a long answer is created and
/// serialized off the front-end threads.
///
/// # Errors
/// If too much is being done already.
async fn answer<T: Serialize>(
    admission: &Admission,
    tokens: usize,
    make: impl FnOnce() -> T + Send + 'static,
) -> Result<Response, ApiError> {
    let bytes = tokens.saturating_mul(size_of::<u32>());
    let written = admission.run(bytes, TOKENIZE_INLINE, move || Json(make()).into_response());
    written.await
}

/// The format of the answer, and the text to tokenize.
enum Form {
    LlamaCpp(String),
    Tgi(String),
    Vllm(vllm::Source),
}

impl TokenizeBody {
    /// Takes the text to tokenize out of the body.
    ///
    /// # Errors
    /// If the body has no such field, or more than one.
    fn form(&mut self) -> Result<Form, ApiError> {
        let forms = [
            ("content", self.content.take().map(Form::LlamaCpp)),
            ("inputs", self.inputs.take().map(Form::Tgi)),
            (
                "prompt",
                self.prompt.take().map(vllm::Source::Prompt).map(Form::Vllm),
            ),
            (
                "messages",
                self.messages
                    .take()
                    .map(vllm::Source::Messages)
                    .map(Form::Vllm),
            ),
        ];
        let given = forms
            .into_iter()
            .filter_map(|(field, form)| Some((field, form?)));
        let given: Vec<_> = given.collect();
        match given.as_slice() {
            [(first, _), (second, _), ..] => Err(ApiError::invalid(
                second,
                format!("`{first}` and `{second}` can't be combined: they select different formats of the answer"),
            )),
            _ => given.into_iter().next().map(|(_, form)| form).ok_or_else(|| {
                ApiError::invalid(
                    "content",
                    "`content` (or `inputs`, `prompt`, `messages`) is missing: the text to tokenize",
                )
            }),
        }
    }
}

fn pieces(tokenizer: &Tokenizer, ids: Vec<u32>) -> Vec<ListedToken> {
    let piece = |id| {
        let bytes = tokenizer.token_bytes(id).unwrap_or_default();
        ListedToken::Piece(TokenPiece {
            id,
            piece: match std::str::from_utf8(bytes) {
                Ok(text) => Piece::Text(text.to_owned()),
                Err(_) => Piece::Bytes(bytes.to_vec()),
            },
        })
    };
    ids.into_iter().map(piece).collect()
}

/// Returns tokens with their positions in the text.
///
/// # Errors
/// If the tokenizer fails.
fn placed(
    tokenizer: &Tokenizer,
    text: &str,
    parse_special: bool,
) -> Result<Vec<PlacedToken>, TextError> {
    let spans = tokenizer.encode_spans(text, parse_special)?;
    // Byte offsets of the characters, and of the end.
    let mut starts: Vec<usize> = text.char_indices().map(|(at, _)| at).collect();
    starts.push(text.len());
    let at = |char: usize| starts.get(char).copied().unwrap_or(text.len());
    let place = |span: TokenSpan| PlacedToken {
        id: span.id,
        text: text
            .get(at(span.start)..at(span.end))
            .unwrap_or_default()
            .to_owned(),
        start: span.start,
        stop: span.end,
    };
    Ok(spans.into_iter().map(place).collect())
}

/// Tokens to turn into text.
#[derive(Debug, Deserialize, ToSchema)]
#[schema(example = json!({"tokens": [2467, 664, 258, 517]}))]
pub(super) struct DetokenizeBody {
    /// Token ids.
    tokens: Vec<u32>,
    /// Name of the served model; any other is answered with 404. Default: the served model.
    model: Option<String>,
}

/// The text of tokens, under the field names of both formats.
#[derive(Debug, Serialize, ToSchema)]
#[schema(example = json!({"content": "Once upon a time", "prompt": "Once upon a time"}))]
pub(super) struct Detokenized {
    /// The text, with special tokens by name and replacement characters for bytes that are not valid
    /// UTF-8. For clients of llama.cpp.
    content: String,
    /// The same text, for clients of vLLM.
    prompt: String,
}

/// Detokenize tokens
#[utoipa::path(
    post,
    path = "/detokenize",
    tag = "tokens",
    request_body = DetokenizeBody,
    responses((status = 200, description = "The text", body = Detokenized), NativeBodyErrors),
)]
pub(super) async fn detokenize(
    State(app): State<App>,
    scope: Scope,
    JsonBody(body): JsonBody<DetokenizeBody>,
) -> Result<Response, ApiError> {
    let serving = app.serving()?;
    adapter(body.model.as_deref(), &serving)?;
    let bytes = size_of_val(body.tokens.as_slice());
    let work = move || {
        check_ids(&body.tokens, &serving)?;
        let content = serving.tokenizer.decode(&body.tokens);
        let answer = Detokenized {
            prompt: content.clone(),
            content,
        };
        Ok::<_, InvalidRequest>(Json(answer).into_response())
    };
    Ok(scope.admission.run(bytes, TOKENIZE_INLINE, work).await??)
}

/// Checks that all ids are token ids, and that their text is not too long for an answer.
fn check_ids(ids: &[u32], serving: &Serving) -> Result<(), InvalidRequest> {
    let mut bytes = 0_usize;
    for (place, &id) in ids.iter().enumerate() {
        let Some(text) = serving.tokenizer.token_bytes(id) else {
            return Err(InvalidRequest::new(
                "tokens",
                format!(
                    "`tokens[{place}]` is {id}; the model's token ids are 0 to {}",
                    serving.limits.vocab_size.saturating_sub(1)
                ),
            ));
        };
        bytes = bytes.saturating_add(text.len());
    }
    serving.limits.check_text("tokens", bytes)
}
