//! What every dialect's request becomes: [`GenerateRequest`], and the one way to it.
//!
//! A dialect fills a [`RequestDraft`] (everything optional, nothing checked across fields) after
//! checking the ranges its own specification gives its own fields. [`Limits::admit`] applies the
//! model's defaults and the server's limits and is the only place that makes a
//! [`GenerateRequest`], so what was validated can't be confused with what arrived.
//!
//! Nothing here may know a wire format, and nothing here may touch the engine.

mod beam;

use std::fmt;
use std::ops::RangeInclusive;
use std::sync::Arc;

use crate::text::{Grammar, GrammarSource};
pub use beam::{BeamParams, EarlyStopping};

/// The name of one request, in logs, headers and the engine.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct RequestId(Arc<str>);

impl RequestId {
    /// Takes over a name given from outside, or made with [`RequestId::random`].
    #[must_use]
    pub fn new(id: &str) -> Self {
        Self(Arc::from(id))
    }

    /// A new name that no other request has.
    #[must_use]
    pub fn random() -> Self {
        Self::new(&uuid::Uuid::new_v4().simple().to_string())
    }

    /// The `n`-th of several generations that one HTTP request asked for.
    #[must_use]
    pub fn child(&self, n: usize) -> Self {
        Self(format!("{}/{n}", self.0).into())
    }
}

impl fmt::Display for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The name of a session: 1 to 128 of the characters `A-Z a-z 0-9 - _ . : @`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SessionId(Arc<str>);

impl SessionId {
    /// The longest name a session may have, in characters.
    pub const MAX_LENGTH: usize = 128;

    /// Checks and takes over a name.
    ///
    /// # Errors
    /// If the name is empty, too long, or has a character that is not allowed.
    pub fn parse(name: &str) -> Result<Self, InvalidRequest> {
        let allowed = |c: char| c.is_ascii_alphanumeric() || "-_.:@".contains(c);
        if name.is_empty() || name.len() > Self::MAX_LENGTH || !name.chars().all(allowed) {
            let shown: String = name.chars().take(Self::MAX_LENGTH).collect();
            return Err(InvalidRequest::new(
                "session_id",
                format!(
                    "`session_id` must be 1 to {} of the characters A-Z a-z 0-9 - _ . : @, got {shown:?}",
                    Self::MAX_LENGTH
                ),
            ));
        }
        Ok(Self(Arc::from(name)))
    }

    /// The name as it was given.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for SessionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What happens when the context reaches the model's window (`n_positions`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Overflow {
    /// Generation ends with [`FinishReason::Length`](crate::engine::FinishReason::Length).
    #[default]
    Stop,
    /// The request is refused up front if prompt and `max_tokens` together cannot fit.
    Error,
    /// Generation goes on: see [`context_start`](crate::engine::sequence::context_start) for
    /// which tokens are then the context.
    Slide,
}

/// How the next token is drawn from the logits. The order in which the steps are applied, and
/// the random generator, are specified in [`crate::engine::sampler`].
#[derive(Debug, Clone, PartialEq)]
pub struct SamplingParams {
    /// Divides the logits; 0 takes the most likely token.
    pub temperature: f32,
    /// Only the `top_k` most likely tokens; 0 is all.
    pub top_k: usize,
    /// The most likely tokens whose probabilities add up to this; 1 is all.
    pub top_p: f32,
    /// Tokens at least this fraction as likely as the most likely; 0 is all.
    pub min_p: f32,
    /// Locally typical sampling (Meister et al. 2022): probability mass kept; 1 is all.
    pub typical_p: f32,
    /// Divides positive and multiplies negative logits of tokens in prompt or output (Keskar et
    /// al. 2019); 1 is none.
    pub repetition_penalty: f32,
    /// Subtracted once from the logits of tokens already generated.
    pub presence_penalty: f32,
    /// Subtracted from the logits of generated tokens as many times as they occurred.
    pub frequency_penalty: f32,
    /// Added to the logits of these tokens.
    pub logit_bias: Vec<(u32, f32)>,
    /// The random numbers of this request are a function of this alone.
    pub seed: u64,
}

/// When a generation ends.
#[derive(Debug, Clone, PartialEq)]
pub struct StopConditions {
    /// Tokens to generate at most; 0 only reads the prompt.
    pub max_tokens: usize,
    /// Until so many tokens are generated, no end-of-text or stop token is drawn.
    pub min_tokens: usize,
    /// Tokens that end the text: the model's end-of-text tokens, none if the request ignores them.
    pub end_of_text: Vec<u32>,
    /// Further tokens that end the generation, given by the request.
    pub stop_tokens: Vec<u32>,
    /// Texts that end the generation; matched by the front end, which then closes the generation.
    pub stop_strings: Vec<String>,
}

/// What a request is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Output {
    /// The tokens that follow the prompt.
    #[default]
    Text,
    /// The mean of the prompt's hidden states after the last layer norm. Nothing is drawn.
    Embedding,
}

/// Which log-probabilities are reported. They are those of the model's own distribution, before
/// any penalty, temperature or filter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct LogprobsWanted {
    /// How many of the most likely tokens to report beside each token.
    pub top: usize,
    /// Also for the tokens of the prompt (each given those before it).
    pub prompt: bool,
    /// How many of the most likely tokens to report beside each token of the prompt.
    pub prompt_top: usize,
    /// Also the place of each token of the prompt among all tokens.
    pub prompt_ranks: bool,
}

/// A validated request: the engine can run it as it stands.
#[derive(Debug, Clone, PartialEq)]
pub struct GenerateRequest {
    /// Its name.
    pub id: RequestId,
    /// Token ids, each below the vocabulary's size; empty only where a session goes on.
    pub prompt: Vec<u32>,
    /// How tokens are drawn.
    pub sampling: SamplingParams,
    /// Search for the most likely texts instead.
    pub beams: Option<BeamParams>,
    /// When it ends.
    pub stop: StopConditions,
    /// Past the window.
    pub overflow: Overflow,
    /// The session it continues (or starts), if any.
    pub session: Option<SessionId>,
    /// The log-probabilities to report.
    pub logprobs: LogprobsWanted,
    /// What the text must follow, if anything.
    pub grammar: Option<Grammar>,
    /// What it is for.
    pub output: Output,
}

/// Why a request was refused before it reached the engine.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct InvalidRequest {
    /// The field at fault, as the dialect names it.
    pub field: String,
    /// Names field, value and limit, for the person who sent it.
    pub message: String,
    /// Prompt and completion together do not fit the model's window.
    pub context_length_exceeded: bool,
}

impl InvalidRequest {
    /// A refusal that concerns one field.
    #[must_use]
    pub fn new(field: &str, message: String) -> Self {
        Self {
            field: field.to_owned(),
            message,
            context_length_exceeded: false,
        }
    }

    fn context_length(field: &str, message: String) -> Self {
        Self {
            context_length_exceeded: true,
            ..Self::new(field, message)
        }
    }

    /// The same refusal where the field is a list and its `n`-th element is at fault.
    #[must_use]
    pub fn of_element(self, n: usize) -> Self {
        let element = format!("{}[{n}]", self.field);
        Self {
            message: self
                .message
                .replace(&format!("`{}`", self.field), &format!("`{element}`")),
            field: element,
            ..self
        }
    }
}

/// What the model's `generation_config.json` says of fields a request leaves out; `None` where
/// it says nothing.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct SamplingDefaults {
    /// `do_sample`.
    pub do_sample: Option<bool>,
    /// `temperature`.
    pub temperature: Option<f32>,
    /// `top_k`.
    pub top_k: Option<usize>,
    /// `top_p`.
    pub top_p: Option<f32>,
    /// `min_p`.
    pub min_p: Option<f32>,
    /// `typical_p`.
    pub typical_p: Option<f32>,
    /// `repetition_penalty`.
    pub repetition_penalty: Option<f32>,
    /// `max_new_tokens`.
    pub max_tokens: Option<usize>,
}

/// How a dialect samples where neither the request nor the model's defaults say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SamplingStyle {
    /// At temperature 1, as OpenAI.
    Sample,
    /// The most likely token, as TGI.
    Greedy,
}

/// A request as a dialect understood it: ranges of single fields checked by the dialect, nothing
/// filled in yet.
#[derive(Debug, Clone)]
pub struct RequestDraft {
    /// Its name.
    pub id: RequestId,
    /// What the dialect calls the prompt, for messages.
    pub prompt_field: &'static str,
    /// What the dialect calls the number of tokens to generate, for messages.
    pub max_tokens_field: &'static str,
    /// How the dialect samples by default.
    pub style: SamplingStyle,
    /// Token ids of the prompt.
    pub prompt: Vec<u32>,
    /// Tokens to generate at most.
    pub max_tokens: usize,
    /// Whether `max_tokens` was given by the request rather than by the dialect's default.
    pub max_tokens_given: bool,
    /// See [`StopConditions::min_tokens`].
    pub min_tokens: usize,
    /// `Some(false)`: greedy, whatever the other fields say; `Some(true)`: sampled.
    pub do_sample: Option<bool>,
    /// See [`SamplingParams::temperature`].
    pub temperature: Option<f32>,
    /// See [`SamplingParams::top_k`].
    pub top_k: Option<usize>,
    /// See [`SamplingParams::top_p`].
    pub top_p: Option<f32>,
    /// See [`SamplingParams::min_p`].
    pub min_p: Option<f32>,
    /// See [`SamplingParams::typical_p`].
    pub typical_p: Option<f32>,
    /// See [`SamplingParams::repetition_penalty`].
    pub repetition_penalty: Option<f32>,
    /// See [`SamplingParams::presence_penalty`].
    pub presence_penalty: f32,
    /// See [`SamplingParams::frequency_penalty`].
    pub frequency_penalty: f32,
    /// See [`SamplingParams::logit_bias`].
    pub logit_bias: Vec<(u32, f32)>,
    /// Drawn at random where `None`.
    pub seed: Option<u64>,
    /// See [`GenerateRequest::beams`].
    pub beams: Option<BeamParams>,
    /// See [`StopConditions::stop_tokens`].
    pub stop_tokens: Vec<u32>,
    /// See [`StopConditions::stop_strings`].
    pub stop_strings: Vec<String>,
    /// Go on after end-of-text.
    pub ignore_end_of_text: bool,
    /// Past the window.
    pub overflow: Overflow,
    /// The session it continues.
    pub session: Option<SessionId>,
    /// The log-probabilities to report.
    pub logprobs: LogprobsWanted,
    /// What the text must follow; its description went through [`Limits::check_grammar`].
    pub grammar: Option<Grammar>,
    /// What it is for.
    pub output: Output,
}

impl RequestDraft {
    /// A draft that asks for the embedding of `input`.
    #[must_use]
    pub fn embedding(id: RequestId, input: Vec<u32>) -> Self {
        Self {
            prompt_field: "input",
            output: Output::Embedding,
            ..Self::new(id, input, 0, SamplingStyle::Greedy)
        }
    }

    /// A draft that asks for nothing but `max_tokens` tokens after `prompt`.
    #[must_use]
    pub fn new(id: RequestId, prompt: Vec<u32>, max_tokens: usize, style: SamplingStyle) -> Self {
        Self {
            id,
            prompt_field: "prompt",
            max_tokens_field: "max_tokens",
            style,
            prompt,
            max_tokens,
            max_tokens_given: true,
            min_tokens: 0,
            do_sample: None,
            temperature: None,
            top_k: None,
            top_p: None,
            min_p: None,
            typical_p: None,
            repetition_penalty: None,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            logit_bias: Vec::new(),
            seed: None,
            beams: None,
            stop_tokens: Vec::new(),
            stop_strings: Vec::new(),
            ignore_end_of_text: false,
            overflow: Overflow::default(),
            session: None,
            logprobs: LogprobsWanted::default(),
            grammar: None,
            output: Output::default(),
        }
    }
}

/// What this server with this model accepts: all limits on what a request may ask for, in one
/// place, and shown whole at `/info`.
#[derive(Debug, Clone)]
pub struct Limits {
    /// The model's window: positions a context can have.
    pub n_positions: usize,
    /// Token ids are below this.
    pub vocab_size: usize,
    /// The model's end-of-text tokens.
    pub end_of_text: Vec<u32>,
    /// Defaults from `generation_config.json`.
    pub defaults: SamplingDefaults,
    /// Stop strings in one request.
    pub max_stop_strings: usize,
    /// Bytes in one stop string.
    pub max_stop_string_bytes: usize,
    /// Most likely tokens reported beside each token.
    pub max_top_logprobs: usize,
    /// Tokens that [`Overflow::Slide`] lets one request generate.
    pub max_tokens: usize,
    /// Choices one HTTP request can ask for, over all its prompts.
    pub max_choices: usize,
    /// Bytes in the description of a grammar: a schema, a regular expression, all choices.
    pub max_grammar_bytes: usize,
    /// Bytes in all regular expressions of one, or in a context-free grammar.
    pub max_expression_bytes: usize,
    /// Choices that can be generated per prompt to return the best of.
    pub max_best_of: usize,
    /// The highest temperature, where the dialect has no limit of its own.
    pub max_temperature: f64,
    /// The largest repetition penalty.
    pub max_repetition_penalty: f64,
    /// Inputs of one HTTP request for embeddings (OpenAI's number, as the next).
    pub max_embedding_inputs: usize,
    /// Tokens of all inputs of one HTTP request for embeddings.
    pub max_embedding_tokens: usize,
}

impl Limits {
    /// The limits of a model, with the server's own at their defaults.
    #[must_use]
    pub fn for_model(n_positions: usize, vocab_size: usize, end_of_text: Vec<u32>) -> Self {
        Self {
            n_positions,
            vocab_size,
            end_of_text,
            defaults: SamplingDefaults::default(),
            max_stop_strings: 16,
            max_stop_string_bytes: 1024,
            max_top_logprobs: 20,
            max_tokens: 1 << 20,
            max_choices: 128,
            max_grammar_bytes: 128 * 1024,
            max_expression_bytes: 16 * 1024,
            max_best_of: 20,
            max_temperature: 100.0,
            max_repetition_penalty: 100.0,
            max_embedding_inputs: 2048,
            max_embedding_tokens: 300_000,
        }
    }

    /// Checks a draft against the model and the server, fills in what it leaves out, and makes
    /// the request the engine will run.
    ///
    /// # Errors
    /// [`InvalidRequest`] naming the field, its value and the limit.
    pub fn admit(&self, draft: RequestDraft) -> Result<GenerateRequest, InvalidRequest> {
        self.check_tokens(&draft)?;
        self.check_stops(&draft)?;
        if let Some(beams) = &draft.beams {
            beam::check(beams, &draft, self)?;
        }
        let top = draft.logprobs.top.max(draft.logprobs.prompt_top);
        if top > self.max_top_logprobs {
            return Err(InvalidRequest::new(
                "logprobs",
                format!(
                    "at most {} of the most likely tokens can be reported per token, got {top}",
                    self.max_top_logprobs
                ),
            ));
        }
        let max_tokens = match draft.output {
            Output::Text => self.fit_window(&draft)?,
            Output::Embedding => self.fit_input(&draft)?,
        };
        if draft.min_tokens > max_tokens {
            return Err(InvalidRequest::new(
                "min_tokens",
                format!(
                    "`min_tokens` must be at most `{}` ({max_tokens}), got {}",
                    draft.max_tokens_field, draft.min_tokens
                ),
            ));
        }
        let sampling = self.sampling(&draft);
        Ok(GenerateRequest {
            id: draft.id,
            prompt: draft.prompt,
            sampling,
            beams: draft.beams,
            stop: StopConditions {
                max_tokens,
                min_tokens: draft.min_tokens,
                end_of_text: if draft.ignore_end_of_text {
                    Vec::new()
                } else {
                    self.end_of_text.clone()
                },
                stop_tokens: draft.stop_tokens,
                stop_strings: draft.stop_strings,
            },
            overflow: draft.overflow,
            session: draft.session,
            logprobs: draft.logprobs,
            grammar: draft.grammar,
            output: draft.output,
        })
    }

    /// Checks the size of a grammar before it is compiled.
    ///
    /// # Errors
    /// [`InvalidRequest`] naming the field, its size and the limit.
    pub fn check_grammar(&self, field: &str, source: &GrammarSource) -> Result<(), InvalidRequest> {
        let bytes = source.bytes();
        if bytes > self.max_grammar_bytes {
            return Err(InvalidRequest::new(
                field,
                format!(
                    "`{field}` can be at most {} bytes long, got {bytes}",
                    self.max_grammar_bytes
                ),
            ));
        }
        let expressions = source.expression_bytes();
        if expressions > self.max_expression_bytes {
            return Err(InvalidRequest::new(
                field,
                format!(
                    "`{field}` can have at most {} bytes of regular expressions or rules, got {expressions}",
                    self.max_expression_bytes
                ),
            ));
        }
        Ok(())
    }

    fn check_tokens(&self, draft: &RequestDraft) -> Result<(), InvalidRequest> {
        if draft.prompt.is_empty() && draft.session.is_none() {
            return Err(InvalidRequest::new(
                draft.prompt_field,
                format!("`{}` must not be empty", draft.prompt_field),
            ));
        }
        let in_vocabulary = |field: &str, mut ids: Box<dyn Iterator<Item = u32> + '_>| {
            ids.find(|&id| id as usize >= self.vocab_size)
                .map_or(Ok(()), |id| {
                    Err(InvalidRequest::new(
                        field,
                        format!(
                            "`{field}` has the token id {id}; the model's ids are 0 to {}",
                            self.vocab_size - 1
                        ),
                    ))
                })
        };
        in_vocabulary(draft.prompt_field, Box::new(draft.prompt.iter().copied()))?;
        in_vocabulary(
            "stop_token_ids",
            Box::new(draft.stop_tokens.iter().copied()),
        )?;
        in_vocabulary(
            "logit_bias",
            Box::new(draft.logit_bias.iter().map(|&(id, _)| id)),
        )
    }

    fn check_stops(&self, draft: &RequestDraft) -> Result<(), InvalidRequest> {
        let refuse = |message| Err(InvalidRequest::new("stop", message));
        if draft.stop_strings.len() > self.max_stop_strings {
            return refuse(format!(
                "`stop` takes at most {} strings, got {}",
                self.max_stop_strings,
                draft.stop_strings.len()
            ));
        }
        if draft.stop_strings.iter().any(String::is_empty) {
            return refuse("`stop` must not contain an empty string".to_owned());
        }
        match draft
            .stop_strings
            .iter()
            .map(String::len)
            .find(|&bytes| bytes > self.max_stop_string_bytes)
        {
            Some(bytes) => refuse(format!(
                "a string in `stop` can be at most {} bytes long, got one of {bytes}",
                self.max_stop_string_bytes
            )),
            None => Ok(()),
        }
    }

    /// How many tokens may really be generated. A session's history counts too, but only the
    /// engine knows it: it checks again, by [`window_room`].
    fn fit_window(&self, draft: &RequestDraft) -> Result<usize, InvalidRequest> {
        let max_tokens = self.wanted_tokens(draft);
        if max_tokens > self.max_tokens {
            return Err(InvalidRequest::new(
                draft.max_tokens_field,
                format!(
                    "`{}` must be at most {}, got {}",
                    draft.max_tokens_field, self.max_tokens, max_tokens
                ),
            ));
        }
        let room = window_room(self.n_positions, draft.prompt.len(), draft.overflow);
        match room {
            None => Ok(max_tokens),
            Some(room)
                if draft.prompt.len() > self.n_positions || (room == 0 && max_tokens > 0) =>
            {
                Err(InvalidRequest::context_length(
                    draft.prompt_field,
                    format!(
                        // Clients know the first words, which are OpenAI's.
                        "this model's maximum context length is {} tokens, prompt and completion together; `{}` has {} (`overflow: \"slide\"` goes past it)",
                        self.n_positions,
                        draft.prompt_field,
                        draft.prompt.len()
                    ),
                ))
            }
            Some(room)
                if max_tokens > room
                    && draft.max_tokens_given
                    && draft.overflow == Overflow::Error =>
            {
                Err(InvalidRequest::context_length(
                    draft.max_tokens_field,
                    format!(
                        "this model's maximum context length is {} tokens; {} prompt tokens and `{}` {} together exceed it",
                        self.n_positions,
                        draft.prompt.len(),
                        draft.max_tokens_field,
                        max_tokens
                    ),
                ))
            }
            Some(room) => Ok(max_tokens.min(room)),
        }
    }

    /// Checks that what is to be embedded fits the window; no token is generated after it.
    fn fit_input(&self, draft: &RequestDraft) -> Result<usize, InvalidRequest> {
        if draft.prompt.len() <= self.n_positions {
            return Ok(0);
        }
        Err(InvalidRequest::context_length(
            draft.prompt_field,
            format!(
                "`{}` has {} tokens; the model's context is {} tokens",
                draft.prompt_field,
                draft.prompt.len(),
                self.n_positions
            ),
        ))
    }

    /// Tokens to generate at most, as the request or the model's defaults have it.
    fn wanted_tokens(&self, draft: &RequestDraft) -> usize {
        match self.defaults.max_tokens {
            Some(default) if !draft.max_tokens_given => default.min(self.max_tokens),
            _ => draft.max_tokens,
        }
    }

    /// Prompt tokens, at least 1, that fit the window beside what is to be generated. What the
    /// request does not ask for itself claims half the window at most, and what slides on claims
    /// nothing.
    #[must_use]
    pub fn prompt_room(&self, draft: &RequestDraft) -> usize {
        let wanted = self.wanted_tokens(draft);
        let claimed = match draft.overflow {
            Overflow::Slide => 0,
            _ if draft.max_tokens_given => wanted,
            _ => wanted.min(self.n_positions / 2),
        };
        self.n_positions.saturating_sub(claimed).max(1)
    }

    fn sampling(&self, draft: &RequestDraft) -> SamplingParams {
        let defaults = &self.defaults;
        let asks_for_sampling = draft.temperature.is_some()
            || draft.top_k.is_some()
            || draft.top_p.is_some()
            || draft.min_p.is_some()
            || draft.typical_p.is_some();
        let sampled = match draft.do_sample {
            Some(sampled) => sampled,
            None if asks_for_sampling => true,
            None => defaults
                .do_sample
                .unwrap_or(draft.style == SamplingStyle::Sample),
        };
        let temperature = if sampled {
            draft.temperature.or(defaults.temperature).unwrap_or(1.0)
        } else {
            0.0
        };
        SamplingParams {
            temperature,
            top_k: draft.top_k.or(defaults.top_k).unwrap_or(0),
            top_p: draft.top_p.or(defaults.top_p).unwrap_or(1.0),
            min_p: draft.min_p.or(defaults.min_p).unwrap_or(0.0),
            typical_p: draft.typical_p.or(defaults.typical_p).unwrap_or(1.0),
            repetition_penalty: draft
                .repetition_penalty
                .or(defaults.repetition_penalty)
                .unwrap_or(1.0),
            presence_penalty: draft.presence_penalty,
            frequency_penalty: draft.frequency_penalty,
            logit_bias: draft.logit_bias.clone(),
            seed: draft.seed.unwrap_or_else(random_seed),
        }
    }
}

/// Tokens that can still be generated after `context` tokens; `None` if there is no end to it.
/// The last generated token needs no position of its own, but a session that goes on would need
/// it, so the bound is the one users reckon with: prompt + completion <= window.
#[must_use]
pub fn window_room(n_positions: usize, context: usize, overflow: Overflow) -> Option<usize> {
    (overflow != Overflow::Slide).then(|| n_positions.saturating_sub(context))
}

/// Checks that a number lies in a range; the message names field, value and range.
///
/// # Errors
/// [`InvalidRequest`] if it does not, or is not a number.
pub fn in_range<T: PartialOrd + fmt::Display>(
    field: &str,
    value: T,
    range: RangeInclusive<T>,
) -> Result<T, InvalidRequest> {
    if range.contains(&value) {
        return Ok(value);
    }
    Err(InvalidRequest::new(
        field,
        format!(
            "`{field}` must be {} to {}, got {value}",
            range.start(),
            range.end()
        ),
    ))
}

/// A seed for a request that gave none; 53 bits, so that every JSON reader gives it back exactly.
fn random_seed() -> u64 {
    (uuid::Uuid::new_v4().as_u64_pair().0 >> 11).max(1)
}
