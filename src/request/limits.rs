//! The limits of requests, and the only way from a draft to a request.

mod beams;
mod window;

use super::{
    GenerateRequest, InvalidRequest, Output, RequestDraft, RequestFields, SamplingOverrides,
    SamplingParams, StopConditions, in_range, sampling::random_seed, short,
};
use crate::text::GrammarSource;

/// All limits of a request on this server and model; reported at `/info`.
#[derive(Debug, Clone)]
pub struct Limits {
    /// The model's window: maximum positions of a context.
    pub context_length: usize,
    /// Number of token ids.
    pub vocab_size: usize,
    /// The model's end-of-text tokens.
    pub end_of_text: Vec<u32>,
    /// Defaults of `generation_config.json`.
    pub defaults: SamplingOverrides,
    /// Maximum stop strings of a request.
    pub max_stop_strings: usize,
    /// Maximum bytes of a stop string.
    pub max_stop_string_bytes: usize,
    /// Maximum most likely tokens reported for each token.
    pub max_top_logprobs: usize,
    /// Maximum tokens that a request can generate with [`Overflow::Slide`](super::Overflow::Slide).
    pub max_tokens: usize,
    /// Maximum choices of one HTTP request, over all its prompts.
    pub max_choices: usize,
    /// Maximum bytes of a grammar's description: a schema, a regular expression, all choices.
    pub max_grammar_bytes: usize,
    /// Maximum bytes of all regular expressions in a description, or of a context-free grammar.
    pub max_expression_bytes: usize,
    /// Maximum choices generated per prompt to return the best of.
    pub max_best_of: usize,
    /// Maximum temperature, unless the dialect has a lower limit.
    pub max_temperature: f64,
    /// Maximum repetition penalty.
    pub max_repetition_penalty: f64,
    /// Maximum inputs of one HTTP request for embeddings (OpenAI's limit, as the next).
    pub max_embedding_inputs: usize,
    /// Maximum tokens of all inputs of one HTTP request for embeddings.
    pub max_embedding_tokens: usize,
    /// Maximum tokens of one HTTP request's prompts, and maximum tokens to generate, each over all choices.
    pub max_request_tokens: usize,
    /// Maximum log-probabilities in one answer, including those of the most likely tokens in each place.
    pub max_answer_logprobs: usize,
    /// Maximum bytes of text that one answer repeats or decodes from token ids.
    pub max_answer_text_bytes: usize,
    /// Maximum tokens of a session's history.
    pub max_session_tokens: usize,
}

impl Limits {
    /// Returns the limits of a model, with the server's own at their defaults.
    #[must_use]
    pub fn for_model(context_length: usize, vocab_size: usize, end_of_text: Vec<u32>) -> Self {
        Self {
            context_length,
            vocab_size,
            end_of_text,
            defaults: SamplingOverrides::default(),
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

    /// Checks a draft against the model and the server, fills in defaults, and creates the request
    /// that the engine runs.
    ///
    /// # Errors
    /// [`InvalidRequest`] with the field, its value and the limit.
    pub fn admit(&self, mut draft: RequestDraft) -> Result<GenerateRequest, InvalidRequest> {
        let max_tokens = self.check(&draft)?;
        // Sorted for the engine, which searches them for each token.
        draft.stop_tokens.sort_unstable();
        draft.stop_tokens.dedup();
        draft.stop_strings.append(&mut draft.template_stops);
        let sampling = draft.sampling.over(&self.defaults, draft.style);
        Ok(GenerateRequest(RequestFields {
            id: draft.id,
            history: draft.history.unwrap_or_default(),
            prompt: draft.prompt,
            sampling: SamplingParams {
                presence_penalty: draft.presence_penalty,
                frequency_penalty: draft.frequency_penalty,
                logit_bias: draft.logit_bias,
                seed: draft.seed.unwrap_or_else(random_seed),
                ..sampling
            },
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
            // What an adapter computes is not stored: a server that finds it may not have the adapter.
            keep_kv: draft.keep_kv && draft.adapter.is_none(),
            logprobs: draft.logprobs,
            adapter: draft.adapter,
            grammar: draft.grammar,
            output: draft.output,
            deadline: draft.deadline,
        }))
    }

    /// Checks a draft and returns its maximum number of tokens to generate.
    fn check(&self, draft: &RequestDraft) -> Result<usize, InvalidRequest> {
        self.check_tokens(draft)?;
        self.check_stops(draft)?;
        self.check_sampling(&draft.sampling)?;
        if let Some(beams) = &draft.beams {
            beams::check(beams, draft, self)?;
        }
        let top = draft.logprobs.top.max(draft.logprobs.prompt_top);
        if top > self.max_top_logprobs {
            return Err(InvalidRequest::new(
                "logprobs",
                format!(
                    "at most {} most likely tokens can be reported per token, got {top}",
                    self.max_top_logprobs
                ),
            ));
        }
        let max_tokens = match &draft.output {
            Output::Text => self.fit_window(draft)?,
            Output::Embedding | Output::Inspection(_) => self.fit_input(draft)?,
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
        self.check_session(draft, max_tokens)?;
        Ok(max_tokens)
    }

    /// Checks the sampling fields of any dialect.
    fn check_sampling(&self, sampling: &SamplingOverrides) -> Result<(), InvalidRequest> {
        sampling.check()?;
        let temperature = sampling.temperature.unwrap_or(0.0);
        in_range(
            "temperature",
            temperature.into(),
            0.0..=self.max_temperature,
        )?;
        match sampling.repetition_penalty {
            Some(penalty) if f64::from(penalty) > self.max_repetition_penalty => {
                Err(InvalidRequest::new(
                    "repetition_penalty",
                    format!(
                        "`repetition_penalty` must be above 0 and at most {}, got {}",
                        short(self.max_repetition_penalty),
                        short(penalty)
                    ),
                ))
            }
            _ => Ok(()),
        }
    }

    /// Checks the size of a grammar before it is compiled.
    ///
    /// # Errors
    /// [`InvalidRequest`] with the field, its size and the limit.
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

    /// Checks the tokens of all choices of an HTTP request together: `prompt` tokens of their prompts, and
    /// a maximum of `generated` tokens; `field` is that of the choices.
    ///
    /// # Errors
    /// [`InvalidRequest`] with the field, the tokens and the limit.
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
                        "with this `{field}`, all {what} {tokens} tokens in total; the limit is {}",
                        self.max_request_tokens
                    ),
                ));
            }
        }
        Ok(())
    }

    /// Checks the number of log-probabilities that an answer can have.
    ///
    /// # Errors
    /// [`InvalidRequest`] with the field, their number and the limit.
    pub fn check_logprobs(&self, field: &str, count: usize) -> Result<(), InvalidRequest> {
        if count <= self.max_answer_logprobs {
            return Ok(());
        }
        Err(InvalidRequest::new(
            field,
            format!(
                "`{field}` requests up to {count} log-probabilities in one answer; the limit is {}: request fewer choices, tokens or top tokens",
                self.max_answer_logprobs
            ),
        ))
    }

    /// Checks the length of the text that an answer repeats or decodes from token ids.
    ///
    /// # Errors
    /// [`InvalidRequest`] with the field, the bytes and the limit.
    pub fn check_text(&self, field: &str, bytes: usize) -> Result<(), InvalidRequest> {
        if bytes <= self.max_answer_text_bytes {
            return Ok(());
        }
        Err(InvalidRequest::new(
            field,
            format!(
                "the text of `{field}` in the answer has {bytes} bytes; the limit is {}",
                self.max_answer_text_bytes
            ),
        ))
    }

    /// Checks that a session's history stays within its limit.
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
                "a session can have at most {} tokens, but its {history} tokens, {prompt} new prompt tokens and {max_tokens} tokens to generate exceed that: rewind it, generate fewer tokens, or start another session",
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
}
