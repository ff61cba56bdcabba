//! One generation: tokens in, pieces of text out, until it ends or is stopped.

use anyhow::anyhow;

use crate::engine::{FinishReason, GeneratedToken, TokenEvent, TokenLogprob};
use crate::request::GenerateRequest;
use crate::serving::Serving;
use crate::session::{Delivered, Turn};
use crate::text::{ShownTokens, Speller, TextPiece, TextStream, Tokenizer};

/// How a generation ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ending {
    Finished(FinishReason),
    /// Stopped by the user.
    Interrupted,
}

impl Ending {
    /// Returns its name, which is OpenAI's where it has one.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Finished(FinishReason::Length) => "length",
            Self::Finished(
                FinishReason::EndOfText | FinishReason::Stop | FinishReason::Complete,
            ) => "stop",
            Self::Interrupted => "interrupted",
        }
    }
}

/// A generated text.
pub(super) struct Generated {
    pub text: String,
    /// Tokens generated, the one that ends the text included.
    pub tokens: usize,
    pub ending: Ending,
    /// What a session keeps.
    pub delivered: Delivered,
}

/// Runs a request and gives each piece of its text to `show`, until it ends or `stop` resolves. The tokens are
/// recorded in the turn, if there is one; its commit is left to the caller.
///
/// # Errors
/// If the engine refuses the request or fails, or `show` does.
pub(super) async fn generate(
    serving: &Serving,
    request: GenerateRequest,
    mut turn: Option<&mut Turn>,
    stop: impl Future<Output = ()>,
    mut show: impl FnMut(&TextPiece<TokenLogprob>) -> anyhow::Result<()>,
) -> anyhow::Result<Generated> {
    let tokenizer = &serving.tokenizer;
    let mut text = TextStream::new(&request.stop.stop_strings, false);
    let context = [request.history.as_slice(), &request.prompt];
    let mut speller = tokenizer.speller_after(&context);
    let mut generation = serving.engine.submit(request).await?;
    let mut tokens = 0;
    let mut stop = std::pin::pin!(stop);
    let (ending, delivered) = loop {
        let event = tokio::select! {
            biased;
            () = &mut stop => break (Ending::Interrupted, kept(tokenizer, &text.shown_tokens())),
            event = generation.next() => event,
        };
        let token = match event {
            Some(TokenEvent::Token(token)) => token,
            Some(TokenEvent::Prefilled(report)) => match report.finish {
                Some(reason) => break (Ending::Finished(reason), Delivered::default()),
                None => continue,
            },
            Some(TokenEvent::Failed(error)) => return Err(anyhow!(error)),
            None => return Err(anyhow!("the inference worker has stopped")),
        };
        tokens += 1;
        if let Some(turn) = &mut turn {
            turn.push(token.token.id);
            turn.check()?;
        }
        let finish = token.finish;
        let piece = piece(tokenizer, &mut speller, &mut text, &token);
        show(&piece)?;
        if let Some(shown) = piece.stopped {
            let delivered = kept(tokenizer, &shown);
            break (Ending::Finished(FinishReason::Stop), delivered);
        }
        if let Some(reason) = finish {
            let unshown = usize::from(reason.ends_with_a_sign());
            let delivered = Delivered {
                tokens: tokens - unshown,
                tail: Vec::new(),
            };
            break (Ending::Finished(reason), delivered);
        }
    };
    Ok(Generated {
        text: text.into_text(),
        tokens,
        ending,
        delivered,
    })
}

/// Returns the text that can be shown with a token, all of it if it is the last one.
fn piece(
    tokenizer: &Tokenizer,
    speller: &mut Speller,
    text: &mut TextStream<TokenLogprob>,
    token: &GeneratedToken,
) -> TextPiece<TokenLogprob> {
    // The token that ends the text is not part of it.
    if token.finish.is_some_and(FinishReason::ends_with_a_sign) {
        return text.finish();
    }
    let bytes = tokenizer.spell(speller, token.token.id);
    let mut piece = text.push(token.token, bytes);
    if token.finish.is_some() && piece.stopped.is_none() {
        piece.append(text.finish());
    }
    piece
}

/// Returns what a session keeps of a text that ends where its last part was shown.
fn kept(tokenizer: &Tokenizer, shown: &ShownTokens) -> Delivered {
    let tail = if shown.tail.is_empty() {
        Ok(Vec::new())
    } else {
        tokenizer.encode_continued(&shown.tail, false)
    };
    Delivered {
        tokens: shown.tokens,
        // Without it the session ends a few characters earlier than the screen.
        tail: tail.unwrap_or_default(),
    }
}
