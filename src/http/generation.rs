//! The one way from a validated request to text: submit it, turn its tokens into text, find stop
//! strings, commit what a session keeps.
//!
//! A [`TextGeneration`] owns the engine's [`Generation`] and the session's [`Turn`]; dropping it, as
//! axum does with handler and stream when the client goes away, cancels the request, and the session
//! keeps what was given out. So nothing here may be spawned.

mod steps;

use std::future::pending;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Instant;

use futures_util::future::{select_all, try_join_all};
use futures_util::stream::{self, SelectAll, Stream};

pub(super) use self::steps::{
    CompletedGeneration, Finished, GenerationStep, ShownToken, Submission, TextStep,
};
use super::admission::{Admission, TOKENIZE_INLINE};
use super::app::App;
use super::error::ApiError;
use super::keys::Meter;
use super::layers::Scope;
use super::prompt_log;
use super::request_trace::GenerationTrace;
use super::timeline::{Ending, Submitted, Timeline};
use super::waiting::{before, begun_in_time};
use crate::engine::{
    FinishReason, GenerateError, GeneratedToken, Generation, TimedEvent, TokenEvent,
};
use crate::request::{Deadline, GenerateRequest, RequestDraft};
use crate::serving::Serving;
use crate::session::{Delivered, IfBusy, SessionKey, Turn};
use crate::text::{ShownTokens, Speller, TextError, TextPiece, TextStream, Tokenizer};

/// Returns the token ids of a text.
///
/// # Errors
/// If the tokenizer fails, or too much is being tokenized.
pub(super) async fn tokenize(
    admission: &Admission,
    tokenizer: &Arc<Tokenizer>,
    text: String,
    parse_special: bool,
) -> Result<Vec<u32>, ApiError> {
    let encode = move |tokenizer: &Tokenizer, text: &str| tokenizer.encode(text, parse_special);
    admit_and_encode(admission, tokenizer, text, encode).await
}

/// Returns the token ids of a prompt, which begins with the token that the tokenizer puts before texts.
///
/// # Errors
/// As [`tokenize`].
pub(super) async fn tokenize_prompt(
    admission: &Admission,
    tokenizer: &Arc<Tokenizer>,
    text: String,
) -> Result<Vec<u32>, ApiError> {
    let encode = |tokenizer: &Tokenizer, text: &str| tokenizer.encode_prompt(text, true);
    admit_and_encode(admission, tokenizer, text, encode).await
}

/// Returns the token ids of a text that continues a session's history.
///
/// # Errors
/// As [`tokenize`].
pub(super) async fn tokenize_continued(
    admission: &Admission,
    tokenizer: &Arc<Tokenizer>,
    text: String,
) -> Result<Vec<u32>, ApiError> {
    let encode = |tokenizer: &Tokenizer, text: &str| tokenizer.encode_continued(text, true);
    admit_and_encode(admission, tokenizer, text, encode).await
}

/// Encodes a text within what may be tokenized at once.
async fn admit_and_encode(
    admission: &Admission,
    tokenizer: &Arc<Tokenizer>,
    text: String,
    encode: impl FnOnce(&Tokenizer, &str) -> Result<Vec<u32>, TextError> + Send + 'static,
) -> Result<Vec<u32>, ApiError> {
    let tokenizer = Arc::clone(tokenizer);
    let ids = admission.run(text.len(), TOKENIZE_INLINE, move || {
        encode(&tokenizer, &text)
    });
    Ok(ids.await??)
}

/// Begins the turn on a request's session, if it has one, and puts the session's history before the
/// prompt.
///
/// # Errors
/// If the session can't be had.
pub(super) async fn begin_turn(
    serving: &Serving,
    session: Option<SessionKey>,
    if_busy: Option<IfBusy>,
    draft: &mut RequestDraft,
) -> Result<Option<Turn>, ApiError> {
    let Some(session) = session else {
        return Ok(None);
    };
    let if_busy = if_busy.unwrap_or_default();
    let begin = async { Ok(serving.sessions.begin(&session, if_busy).await?) };
    let turn = before(draft.deadline, begin).await?;
    draft.history = Some(turn.history().to_vec());
    draft.keep_kv = turn.keeps_kv();
    Ok(Some(turn))
}

/// A running request as a source of text.
pub(super) struct TextGeneration {
    /// `None` once it is over.
    running: Option<Generation>,
    /// What its session is told; `None` without one, and once it was told.
    turn: Option<Turn>,
    /// Nothing goes out before all of it is there.
    whole: bool,
    stream: TextStream<GeneratedToken>,
    speller: Speller,
    tokenizer: Arc<Tokenizer>,
    /// Set if the prompt's report was the last event (`max_tokens` 0).
    prompt_only: Option<FinishReason>,
    deadline: Option<Deadline>,
    timeline: Timeline,
    meter: Meter,
    /// Its text is still to be logged.
    logs_text: bool,
}

impl TextGeneration {
    /// Submits a request: one generation, or one for each beam of a search, best first.
    /// `include_stop`: a stop string is part of the text it ends.
    ///
    /// # Errors
    /// What the engine says if it does not take the request.
    async fn start(
        app: &App,
        serving: &Serving,
        request: GenerateRequest,
        trace: GenerationTrace,
        meter: &Meter,
        include_stop: bool,
    ) -> Result<Vec<Self>, ApiError> {
        let stops = request.stop.stop_strings.clone();
        let deadline = request.deadline;
        let submitted = Submitted::now(&request, trace);
        let context = [request.history.as_slice(), &request.prompt];
        let speller = serving.tokenizer.speller_after(&context);
        let running = serving.engine.submit_all(request).await?.into_iter();
        let generation = |running| Self {
            running: Some(running),
            turn: None,
            whole: false,
            stream: TextStream::new(&stops, include_stop),
            speller,
            tokenizer: Arc::clone(&serving.tokenizer),
            prompt_only: None,
            deadline,
            timeline: Timeline::new(submitted.clone(), app.observations()),
            meter: meter.clone(),
            logs_text: app.config().log_prompts,
        };
        Ok(running.map(generation).collect())
    }

    /// Submits all requests of one HTTP request, and gives their generations in the same order, once
    /// the first of them has begun to run; none runs unless all are accepted. A request with a turn is
    /// the only one.
    ///
    /// # Errors
    /// The first refusal, or that none has begun in time.
    pub(super) async fn start_all(
        app: &App,
        serving: &Serving,
        submission: Submission,
        scope: &Scope,
    ) -> Result<Vec<Self>, ApiError> {
        let Submission {
            requests,
            turn,
            include_stop,
            ..
        } = submission;
        let (turn, requests) = match (turn, <[GenerateRequest; 1]>::try_from(requests)) {
            (Some(mut turn), Ok([request])) => {
                turn.prompt(&request.prompt);
                serving.sessions.restore(&request).await;
                (Some(turn), vec![request])
            }
            (_, Ok(request)) => (None, request.into()),
            (_, Err(requests)) => (None, requests),
        };
        let first = requests.first();
        let deadline = first.and_then(|request| request.deadline);
        let share = first.map(|request| request.share).unwrap_or_default();
        prompt_log::prompts(app, &serving.tokenizer, &requests);
        let starts = requests.into_iter().enumerate().map(|(index, request)| {
            let trace = scope.trace.generation(index);
            Self::start(app, serving, request, trace, &scope.meter, include_stop)
        });
        let start = async {
            let started = try_join_all(starts).await?.into_iter().flatten();
            let started: Vec<Self> = started.collect();
            let running = started.iter().filter_map(|one| one.running.as_ref());
            let begun: Vec<_> = running.map(|one| Box::pin(one.begun())).collect();
            if !begun.is_empty() {
                select_all(begun).await;
            }
            Ok(started)
        };
        let start = begun_in_time(serving, share, pending(), start);
        let mut started = before(deadline, start).await?;
        if let Some(first) = started.first_mut() {
            first.turn = turn;
        }
        Ok(started)
    }

    /// Returns the next event of the engine.
    ///
    /// # Errors
    /// That the request's deadline came first.
    async fn event(&mut self) -> Result<Option<TimedEvent>, ApiError> {
        let Some(running) = &mut self.running else {
            return Ok(None);
        };
        // Events that are there already would otherwise go on past it.
        if let Some(deadline) = self.deadline.filter(|deadline| deadline.has_passed()) {
            return Err(ApiError::past_deadline(deadline.timeout()));
        }
        before(self.deadline, async { Ok(running.next_timed().await) }).await
    }

    /// Returns the next step; `None` after the last one, or after an error.
    pub(super) async fn next(&mut self) -> Option<Result<GenerationStep, ApiError>> {
        if let Some(reason) = self.prompt_only.take() {
            let end = self.end(reason, String::new(), Vec::new(), 0).await;
            return Some(end.map(GenerationStep::Text));
        }
        let TimedEvent {
            event,
            at,
            first_step,
        } = match self.event().await {
            Ok(event) => event?,
            Err(past_deadline) => {
                self.running = None;
                self.timeline.end(Ending::TimedOut);
                return Some(Err(past_deadline));
            }
        };
        self.timeline.begun(first_step);
        Some(match event {
            TokenEvent::Prefilled(report) => {
                self.timeline.prompt(&report, at);
                self.prompt_only = report.finish;
                Ok(GenerationStep::Prompt(report))
            }
            TokenEvent::Token(token) => self.token(token, at).await.map(GenerationStep::Text),
            TokenEvent::Failed(error) => {
                self.running = None;
                self.timeline.end(Ending::Failed);
                tracing::warn!(generation = self.timeline.index(), %error, "generation failed");
                Err(error.into())
            }
        })
    }

    /// Runs to the end.
    ///
    /// # Errors
    /// Why it could not.
    pub(super) async fn complete(mut self) -> Result<CompletedGeneration, ApiError> {
        self.whole = true;
        let mut prompt = None;
        let mut tokens = Vec::new();
        while let Some(step) = self.next().await {
            match step? {
                GenerationStep::Prompt(report) => prompt = Some(report),
                GenerationStep::Text(mut step) => {
                    tokens.append(&mut step.tokens);
                    if let Some(finish) = step.finish
                        && let Some(prompt) = prompt.take()
                    {
                        return Ok(CompletedGeneration {
                            prompt,
                            text: self.stream.text().to_owned(),
                            tokens,
                            finish,
                        });
                    }
                }
            }
        }
        Err(GenerateError::Incomplete.into())
    }

    async fn token(&mut self, token: GeneratedToken, at: Instant) -> Result<TextStep, ApiError> {
        self.timeline.token(&token, at);
        self.meter.generated();
        let id = token.token.id;
        if let Some(turn) = &mut self.turn {
            turn.push(id);
            if let Err(lost) = turn.check() {
                // Nothing of it can be kept any more.
                self.turn = None;
                self.running = None;
                self.timeline.end(Ending::NotStored);
                return Err(lost.into());
            }
        }
        let finish = token.finish;
        // The token that ends the text is not part of it.
        let ends_text = finish.is_some_and(FinishReason::ends_with_a_sign);
        let piece = self.piece(token, ends_text);
        let TextPiece {
            text,
            tokens,
            stopped,
        } = piece;
        let tokens = tokens.into_iter();
        let tokens = tokens
            .map(|token| ShownToken::new(token, &self.tokenizer))
            .collect();
        if let Some(shown) = stopped {
            self.close(self.kept(&shown)).await?;
            return Ok(self.finished(FinishReason::Stop, text, tokens));
        }
        match finish {
            Some(reason) => self.end(reason, text, tokens, usize::from(ends_text)).await,
            None => Ok(TextStep {
                text,
                tokens,
                finish: None,
            }),
        }
    }

    /// Returns the text that can be shown with a token, all of it if it is the last one.
    fn piece(&mut self, token: GeneratedToken, ends_text: bool) -> TextPiece<GeneratedToken> {
        let id = token.token.id;
        let is_last = token.finish.is_some();
        if ends_text {
            let mut piece = self.stream.finish();
            if piece.stopped.is_none() {
                piece.append(self.stream.push(token, &[]));
            }
            return piece;
        }
        let bytes = if self.tokenizer.is_special(id) {
            &[]
        } else {
            self.tokenizer.spell(&mut self.speller, id)
        };
        let mut piece = self.stream.push(token, bytes);
        if is_last && piece.stopped.is_none() {
            piece.append(self.stream.finish());
        }
        piece
    }

    /// Returns what a session keeps of a text that ends where its last part was given out.
    fn kept(&self, shown: &ShownTokens) -> Delivered {
        let tail = if shown.tail.is_empty() {
            Ok(Vec::new())
        } else {
            self.tokenizer.encode_continued(&shown.tail, false)
        };
        Delivered {
            tokens: shown.tokens,
            tail: tail.unwrap_or_else(|error| {
                tracing::error!(%error, "session text not tokenized");
                Vec::new()
            }),
        }
    }

    /// Finishes a generation that ended by itself; its last `unshown` tokens are not part of the text.
    async fn end(
        &mut self,
        reason: FinishReason,
        text: String,
        tokens: Vec<ShownToken>,
        unshown: usize,
    ) -> Result<TextStep, ApiError> {
        self.close(Delivered {
            tokens: self.timeline.generated().saturating_sub(unshown),
            tail: Vec::new(),
        })
        .await?;
        Ok(self.finished(reason, text, tokens))
    }

    fn finished(
        &mut self,
        reason: FinishReason,
        text: String,
        tokens: Vec<ShownToken>,
    ) -> TextStep {
        self.log_text();
        self.timeline.end(Ending::Finished(reason));
        TextStep {
            text,
            tokens,
            finish: Some(Finished {
                reason,
                generated: self.timeline.generated(),
                mean_logprob: self.timeline.mean_logprob(),
            }),
        }
    }

    /// Logs the text that was given out, once, if texts are logged.
    fn log_text(&mut self) {
        if std::mem::take(&mut self.logs_text) {
            let _in_request = self.timeline.log_span().enter();
            prompt_log::answer(self.timeline.index(), self.stream.text());
        }
    }

    /// Ends the generation, and the turn on its session: the next request may come the moment this
    /// answer ends, and what it was told is not to be lost.
    async fn close(&mut self, kept: Delivered) -> Result<(), ApiError> {
        self.running = None;
        if let Some(turn) = self.turn.take()
            && let Err(error) = turn.commit(kept).await
        {
            self.timeline.end(Ending::NotStored);
            return Err(error.into());
        }
        Ok(())
    }
}

impl Drop for TextGeneration {
    /// Ends the turn when the client is gone or the generation failed: the session keeps the text shown. Where
    /// that is nothing it stays as it was, so that the client can simply ask again.
    fn drop(&mut self) {
        self.log_text();
        if let Some(turn) = self.turn.take()
            && self.timeline.generated() > 0
            && !self.whole
        {
            turn.commit_in_background(self.kept(&self.stream.shown_tokens()));
        }
    }
}

/// A generation's steps, with its index among those of the HTTP request.
type Indexed = (usize, Result<GenerationStep, ApiError>);

/// Returns the steps of several generations as they come. The stream owns them: dropping it cancels all.
pub(super) fn merge(generations: Vec<TextGeneration>) -> impl Stream<Item = Indexed> + Send {
    let mut all: SelectAll<Pin<Box<dyn Stream<Item = Indexed> + Send>>> = SelectAll::new();
    for (index, generation) in generations.into_iter().enumerate() {
        all.push(Box::pin(stream::unfold(
            generation,
            move |mut generation| async move {
                let step = generation.next().await?;
                Some(((index, step), generation))
            },
        )));
    }
    all
}
