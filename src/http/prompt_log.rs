//! Prompts and answers in the log: written here and nowhere else, and only with `--log-prompts`.

use super::app::App;
use crate::request::GenerateRequest;
use crate::text::Tokenizer;

/// Logs the prompt of each request as the model sees it, if prompts are logged. A prompt that several
/// requests share is repeated.
pub(super) fn prompts(app: &App, tokenizer: &Tokenizer, requests: &[GenerateRequest]) {
    if !app.config().log_prompts {
        return;
    }
    for (generation, request) in requests.iter().enumerate() {
        let prompt = tokenizer.decode(&request.prompt);
        let history_tokens = request.history.len();
        tracing::info!(generation, history_tokens, prompt, "prompt");
    }
}

/// Logs the text that a generation returned.
pub(super) fn answer(generation: usize, text: &str) {
    tracing::info!(generation, text, "answer");
}
