//! How the fields that describe a conversation become a prompt, for every endpoint that takes them.

use std::sync::Arc;

use super::messages::MessageField;
use crate::http::admission::{Admission, TOKENIZE_INLINE};
use crate::http::error::ApiError;
use crate::http::fields::unsupported;
use crate::serving::Serving;
use crate::text::ChatTemplate;
use crate::text::template::{Ending, Message};

/// Returns the messages of a conversation.
///
/// # Errors
/// If there are none, or one has no text.
pub(in crate::http) fn messages(
    given: Option<Vec<MessageField>>,
) -> Result<Vec<Message>, ApiError> {
    let given = given.unwrap_or_default();
    if given.is_empty() {
        return Err(ApiError::invalid(
            "messages",
            "`messages` must be a list of at least one message, got none",
        ));
    }
    let given = given.into_iter().enumerate();
    given
        .map(|(place, message)| message.into_message(place))
        .collect()
}

/// Returns where the prompt ends.
///
/// # Errors
/// If it should both go on with the last message and begin another.
pub(in crate::http) fn ending(
    continue_final_message: Option<bool>,
    add_generation_prompt: Option<bool>,
) -> Result<Ending, ApiError> {
    let goes_on = continue_final_message.unwrap_or(false);
    match (goes_on, add_generation_prompt) {
        (true, Some(true)) => Err(ApiError::invalid(
            "continue_final_message",
            "`continue_final_message: true` goes on with the last message, `add_generation_prompt: true` begins another: only one of them is possible",
        )),
        (true, _) => Ok(Ending::Continue),
        (false, Some(false)) => Ok(Ending::Closed),
        (false, _) => Ok(Ending::Answer),
    }
}

/// Checks that a list of tools or functions is empty.
///
/// # Errors
/// If it is not: no model served here calls any.
pub(in crate::http) fn no_tools(
    field: &str,
    tools: Option<&[serde_json::Value]>,
) -> Result<(), ApiError> {
    match tools {
        Some(tools) if !tools.is_empty() => Err(unsupported(
            field,
            tools.len(),
            "this model does not call tools",
        )),
        _ => Ok(()),
    }
}

/// Returns the prompt of a conversation. A template that is not ours never runs on a front-end thread:
/// what it takes is its own affair.
///
/// # Errors
/// What the chat template says against the messages; that too much is being done already.
pub(in crate::http) async fn prompt(
    admission: &Admission,
    serving: &Serving,
    messages: Vec<Message>,
    ending: Ending,
) -> Result<Vec<u32>, ApiError> {
    let (chat, tokenizer) = (Arc::clone(&serving.chat), Arc::clone(&serving.tokenizer));
    if chat.is_plain() {
        let bytes = messages.iter().map(Message::bytes).sum();
        let work = move || chat.encode(&tokenizer, &messages, ending);
        return Ok(admission.run(bytes, TOKENIZE_INLINE, work).await??);
    }
    let rendering = admission.render(move || chat.render(&messages, ending));
    let text = rendering.await??;
    let bytes = text.len();
    let work = move || ChatTemplate::tokenize(&tokenizer, &text);
    Ok(admission.run(bytes, TOKENIZE_INLINE, work).await??)
}
