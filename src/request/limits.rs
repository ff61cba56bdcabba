//! What may be asked for, and the one way from a draft to a request.

use super::{
    GenerateRequest, InvalidRequest, Output, Overflow, RequestDraft, SamplingParams, SamplingStyle,
    StopConditions, beam, window_room,
};
use crate::text::GrammarSource;

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
    /// Tokens of the prompts of one HTTP request, and tokens to generate, each over all choices.
    pub max_request_tokens: usize,
    /// Log-probabilities in one answer, those of the most likely tokens in each place included.
    pub max_answer_logprobs: usize,
    /// Bytes of text that one answer repeats or makes of token ids.
    pub max_answer_text_bytes: usize,
    /// Tokens of a session's history.
    pub max_session_tokens: usize,
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
            max_request_tokens: 1 << 20,
            max_answer_logprobs: 1 << 19,
            max_answer_text_bytes: 16 << 20,
            max_session_tokens: 1 << 18,
        }
    }

    /// Checks a draft against the model and the server, fills in what it leaves out, and makes
    /// the request the engine will run.
    ///
    /// # Errors
    /// [`InvalidRequest`] naming the field, its value and the limit.
    pub fn admit(&self, mut draft: RequestDraft) -> Result<GenerateRequest, InvalidRequest> {
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
        self.check_session(&draft, max_tokens)?;
        // The engine looks through them for each token.
        draft.stop_tokens.sort_unstable();
        draft.stop_tokens.dedup();
        let sampling = self.sampling(&draft);
        Ok(GenerateRequest {
            id: draft.id,
            history: draft.history.unwrap_or_default(),
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
            tenant: draft.tenant,
            share: draft.share,
            priority: draft.priority,
            keep_kv: draft.keep_kv,
            logprobs: draft.logprobs,
            grammar: draft.grammar,
            output: draft.output,
            deadline: draft.deadline,
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

    /// Checks what all choices of an HTTP request take together: `prompt` tokens of their prompts, and
    /// `generated` tokens at most; `field` is that of the choices.
    ///
    /// # Errors
    /// [`InvalidRequest`] naming the field, the tokens and the limit.
    pub fn check_total(
        &self,
        field: &str,
        prompt: usize,
        generated: usize,
    ) -> Result<(), InvalidRequest> {
        for (what, tokens) in [("prompts have", prompt), ("texts can have", generated)] {
            if tokens > self.max_request_tokens {
                return Err(InvalidRequest::new(
                    field,
                    format!(
                        "with this `{field}` all {what} {tokens} tokens together; at most {} are possible",
                        self.max_request_tokens
                    ),
                ));
            }
        }
        Ok(())
    }

    /// Checks the log-probabilities that an answer can have.
    ///
    /// # Errors
    /// [`InvalidRequest`] naming the field, their number and the limit.
    pub fn check_logprobs(&self, field: &str, count: usize) -> Result<(), InvalidRequest> {
        if count <= self.max_answer_logprobs {
            return Ok(());
        }
        Err(InvalidRequest::new(
            field,
            format!(
                "`{field}` asks for up to {count} log-probabilities in one answer; at most {} are possible: ask for fewer choices, tokens or likely tokens",
                self.max_answer_logprobs
            ),
        ))
    }

    /// Checks the text that an answer repeats, or makes of token ids.
    ///
    /// # Errors
    /// [`InvalidRequest`] naming the field, the bytes and the limit.
    pub fn check_text(&self, field: &str, bytes: usize) -> Result<(), InvalidRequest> {
        if bytes <= self.max_answer_text_bytes {
            return Ok(());
        }
        Err(InvalidRequest::new(
            field,
            format!(
                "the text of `{field}` in the answer has {bytes} bytes; at most {} are possible",
                self.max_answer_text_bytes
            ),
        ))
    }

    /// Checks that a session does not become too long.
    fn check_session(&self, draft: &RequestDraft, max_tokens: usize) -> Result<(), InvalidRequest> {
        let Some(history) = &draft.history else {
            return Ok(());
        };
        let (history, prompt) = (history.len(), draft.prompt.len());
        if history + prompt + max_tokens <= self.max_session_tokens {
            return Ok(());
        }
        Err(InvalidRequest::new(
            "session_id",
            format!(
                "a session can have at most {} tokens; this one has {history}, and {prompt} new prompt tokens and {max_tokens} tokens to generate exceed that: rewind it, ask for fewer, or begin another",
                self.max_session_tokens
            ),
        ))
    }

    fn check_tokens(&self, draft: &RequestDraft) -> Result<(), InvalidRequest> {
        if draft.prompt.is_empty() {
            match &draft.history {
                None => {
                    return Err(InvalidRequest::new(
                        draft.prompt_field,
                        format!("`{}` must not be empty", draft.prompt_field),
                    ));
                }
                Some(history) if history.is_empty() => {
                    return Err(InvalidRequest::new(
                        "session_id",
                        format!(
                            "`{}` is empty and the session has no history to continue",
                            draft.prompt_field
                        ),
                    ));
                }
                Some(_) => (),
            }
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

    /// How many tokens may really be generated.
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
        let context = draft.history.as_ref().map_or(0, Vec::len) + draft.prompt.len();
        let Some(room) = window_room(self.n_positions, context, draft.overflow) else {
            return Ok(max_tokens);
        };
        if context > self.n_positions || (room == 0 && max_tokens > 0) {
            return Err(self.too_long(draft.prompt_field, draft, max_tokens));
        }
        if max_tokens > room && draft.max_tokens_given && draft.overflow == Overflow::Error {
            return Err(self.too_long(draft.max_tokens_field, draft, max_tokens));
        }
        Ok(max_tokens.min(room))
    }

    /// The refusal of what does not fit the window, for the fault of `field`.
    fn too_long(&self, field: &str, draft: &RequestDraft, max_tokens: usize) -> InvalidRequest {
        let (n_positions, prompt) = (self.n_positions, draft.prompt.len());
        // Clients know the first words, which are OpenAI's.
        let limit = format!("this model's maximum context length is {n_positions} tokens");
        match draft.history.as_ref().map_or(0, Vec::len) {
            0 if field == draft.prompt_field => InvalidRequest::context_length(
                field,
                format!(
                    "{limit}, prompt and completion together; `{field}` has {prompt} (`overflow: \"slide\"` goes past it)"
                ),
            ),
            0 => InvalidRequest::context_length(
                field,
                format!(
                    "{limit}; the prompt ({prompt}) and `{field}` ({max_tokens}) together exceed it: ask for fewer, \
                     or set `overflow` to \"stop\" or \"slide\""
                ),
            ),
            history => InvalidRequest::context_length(
                "session_id",
                format!(
                    "{limit}; the session's {history} tokens, {prompt} new prompt tokens and {max_tokens} tokens to generate exceed it (`overflow: \"slide\"` goes past it)"
                ),
            ),
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
            temperature: effective_temperature(temperature),
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

/// Returns 0 for a temperature that is too small to divide by (below 3e-39): with all weight on the
/// highest logit it is the same as greedy decoding.
fn effective_temperature(temperature: f32) -> f32 {
    if temperature.recip().is_finite() {
        temperature
    } else {
        0.0
    }
}

/// A seed for a request that gave none; 53 bits, so that every JSON reader gives it back exactly.
fn random_seed() -> u64 {
    (uuid::Uuid::new_v4().as_u64_pair().0 >> 11).max(1)
}
