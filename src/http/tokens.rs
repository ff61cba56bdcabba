//! `/tokenize` and `/detokenize`, as llama.cpp's server has them; `/tokenize` also as TGI has it.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::app::App;
use super::body::JsonBody;
use super::error::ApiError;
use super::generation::{off_thread, tokenize};
use super::openapi::NativeBodyErrors;
use crate::text::{TokenSpan, Tokenizer};

/// A text to tokenize: `content` for an answer as llama.cpp gives it, `inputs` for one as TGI does.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[schema(example = json!({"content": "Once upon a time", "with_pieces": true}))]
pub(super) struct TokenizeBody {
    /// The text.
    content: Option<String>,
    /// The text, in place of `content`.
    inputs: Option<String>,
    /// Add the tokens the model wants at the beginning of a text: GPT-2 wants none, so this
    /// changes nothing.
    #[expect(dead_code, reason = "read to check its type")]
    #[schema(default = false)]
    add_special: Option<bool>,
    /// Tell the text of each token too.
    #[schema(default = false)]
    with_pieces: Option<bool>,
    /// `<|endoftext|>` in the text is the special token; otherwise it is text like any other.
    #[schema(default = true)]
    parse_special: Option<bool>,
}

/// The tokens of a text.
#[derive(Debug, Serialize, ToSchema)]
#[serde(untagged)]
pub(super) enum Tokenized {
    /// For `content`.
    LlamaCpp {
        /// The tokens.
        tokens: Vec<ListedToken>,
    },
    /// For `inputs`.
    Tgi(Vec<PlacedToken>),
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
    /// Its text, or its bytes if they are not whole UTF-8.
    piece: Piece,
}

/// Text, or bytes that are none.
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
    /// The characters it stands for; one that several tokens share is told of with each.
    text: String,
    /// Characters of the text before it.
    start: usize,
    /// Characters of the text up to its end.
    stop: usize,
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
    JsonBody(body): JsonBody<TokenizeBody>,
) -> Result<Json<Tokenized>, ApiError> {
    let serving = app.serving()?;
    let tokenizer = &serving.tokenizer;
    let parse_special = body.parse_special.unwrap_or(true);
    let answer = match (body.content, body.inputs) {
        (Some(content), None) => {
            let ids = tokenize(tokenizer, content, parse_special).await?;
            Tokenized::LlamaCpp {
                tokens: if body.with_pieces.unwrap_or(false) {
                    pieces(tokenizer, ids)
                } else {
                    ids.into_iter().map(ListedToken::Id).collect()
                },
            }
        }
        (None, Some(inputs)) => Tokenized::Tgi(placed(tokenizer, inputs, parse_special).await?),
        (None, None) => {
            return Err(ApiError::invalid(
                "content",
                "`content` (or `inputs`) is missing: the text to tokenize",
            ));
        }
        (Some(_), Some(_)) => {
            return Err(ApiError::invalid(
                "inputs",
                "`content` and `inputs` are both given: they ask for different answers",
            ));
        }
    };
    Ok(Json(answer))
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

/// Tokens with their places.
async fn placed(
    tokenizer: &Arc<Tokenizer>,
    text: String,
    parse_special: bool,
) -> Result<Vec<PlacedToken>, ApiError> {
    let tokenizer = Arc::clone(tokenizer);
    off_thread(text.len(), move || {
        let spans = tokenizer.encode_spans(&text, parse_special)?;
        // Bytes at which each character begins, and the end.
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
    })
    .await
}

/// Tokens to turn into text.
#[derive(Debug, Deserialize, ToSchema)]
#[schema(example = json!({"tokens": [2467, 664, 258, 517]}))]
pub(super) struct DetokenizeBody {
    /// Token ids.
    tokens: Vec<u32>,
}

/// The text of tokens.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Detokenized {
    /// Special tokens by name; a replacement character for bytes that are not whole UTF-8.
    content: String,
}

/// Turn tokens into text
#[utoipa::path(
    post,
    path = "/detokenize",
    tag = "tokens",
    request_body = DetokenizeBody,
    responses((status = 200, description = "The text", body = Detokenized), NativeBodyErrors),
)]
pub(super) async fn detokenize(
    State(app): State<App>,
    JsonBody(body): JsonBody<DetokenizeBody>,
) -> Result<Json<Detokenized>, ApiError> {
    let serving = app.serving()?;
    let mut bytes = Vec::new();
    for (place, &id) in body.tokens.iter().enumerate() {
        match serving.tokenizer.token_bytes(id) {
            Some(token) => bytes.extend_from_slice(token),
            None => {
                return Err(ApiError::invalid(
                    "tokens",
                    format!(
                        "`tokens[{place}]` is {id}; the model's token ids are 0 to {}",
                        serving.limits.vocab_size.saturating_sub(1)
                    ),
                ));
            }
        }
    }
    Ok(Json(Detokenized {
        content: String::from_utf8_lossy(&bytes).into_owned(),
    }))
}
