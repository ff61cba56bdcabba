//! `/tokenize` in vLLM's format. Routers that send requests where their prefix is cached use it, as
//! `cache_aware` of vllm-router does before each request.

use std::sync::Arc;

use serde::Serialize;
use utoipa::ToSchema;

use super::TokenizeBody;
use crate::http::admission::Admission;
use crate::http::error::ApiError;
use crate::http::generation::tokenize;
use crate::http::openai::chat::conversation;
use crate::http::openai::chat::messages::MessageField;
use crate::http::openai::shared::adapter;
use crate::serving::Serving;
use crate::text::Tokenizer;

/// The text to tokenize.
pub(super) enum Source {
    /// A text.
    Prompt(String),
    /// A conversation.
    Messages(Vec<MessageField>),
}

/// Tokens, their number, and the model's context length.
#[derive(Debug, Serialize, ToSchema)]
#[schema(example = json!({"count": 4, "max_model_len": 1024, "tokens": [2467, 664, 258, 517], "token_strs": ["Once", "\u{120}upon", "\u{120}a", "\u{120}time"]}))]
pub(in crate::http) struct CountedTokens {
    /// Number of tokens.
    count: usize,
    /// Context length of the model in tokens.
    max_model_len: usize,
    /// Token ids.
    tokens: Vec<u32>,
    /// Each token as written in the vocabulary; null unless requested.
    token_strs: Option<Vec<String>>,
}

/// Returns the tokens of a text or conversation.
///
/// # Errors
/// If the model is not the served one, or the messages are not valid for `/v1/chat/completions`.
pub(super) async fn count(
    admission: &Admission,
    serving: &Serving,
    body: &TokenizeBody,
    source: Source,
) -> Result<Counted, ApiError> {
    adapter(body.model.as_deref(), serving)?;
    let tokenizer = &serving.tokenizer;
    let special = body.parse_special.unwrap_or(true);
    let tokens = match source {
        Source::Prompt(prompt) => {
            let mut ids = tokenize(admission, tokenizer, prompt, special).await?;
            if body.add_special.or(body.add_special_tokens).unwrap_or(true) {
                tokenizer.add_bos(&mut ids);
            }
            ids
        }
        Source::Messages(messages) => {
            conversation::no_tools("tools", body.tools.as_deref())?;
            let ending =
                conversation::ending(body.continue_final_message, body.add_generation_prompt)?;
            let messages = conversation::messages(Some(messages))?;
            conversation::prompt(admission, serving, messages, ending).await?
        }
    };
    Ok(Counted {
        tokens,
        max_model_len: serving.limits.context_length,
        names: body
            .return_token_strs
            .unwrap_or(false)
            .then(|| Arc::clone(tokenizer)),
    })
}

/// Tokens whose answer is still to be made.
pub(super) struct Counted {
    tokens: Vec<u32>,
    max_model_len: usize,
    /// Names them, if that was asked for.
    names: Option<Arc<Tokenizer>>,
}

impl Counted {
    /// Returns their number.
    pub(super) fn tokens(&self) -> usize {
        self.tokens.len()
    }

    /// Returns the answer.
    pub(super) fn named(self) -> CountedTokens {
        let named = |tokenizer: Arc<Tokenizer>| {
            let names = self.tokens.iter().map(|&id| tokenizer.token_name(id));
            names.map(Option::unwrap_or_default).collect()
        };
        CountedTokens {
            count: self.tokens.len(),
            max_model_len: self.max_model_len,
            token_strs: self.names.map(named),
            tokens: self.tokens,
        }
    }
}
