//! The body of an inspection, and the request to the engine that it becomes.

use std::ops::Range;
use std::sync::Arc;

use serde::Deserialize;
use utoipa::ToSchema;

use super::answer::AttentionForm;
use super::build::AnswerBuilder;
use super::values::Encoding;
use crate::engine::sequence::context_start;
use crate::http::body::object;
use crate::http::error::ApiError;
use crate::http::fields::{above_zero, at_least, integer, number};
use crate::http::generation::tokenize_prompt;
use crate::http::layers::Scope;
use crate::http::openai::shared::adapter;
use crate::http::wire::{LogitBias, Word, optional_word};
use crate::model::ModelSpec;
use crate::request::{
    AttentionWanted, EmbeddingWanted, GenerateRequest, InspectionWanted, InvalidRequest, Limits,
    NeuronsWanted, RequestDraft, SamplingOverrides, SamplingWanted,
};
use crate::serving::Serving;

/// Maximum positions in one answer.
const MAX_ROWS: usize = 64;
/// Positions shown where the request names none.
const DEFAULT_ROWS: usize = 32;
/// Maximum whole attention maps in one answer.
const MAX_MAPS: usize = 4;
/// Maximum attention weights, queries, keys and values in one answer: the maps of 1,024 positions.
const MAX_WEIGHTS: usize = MAX_MAPS * (1024 * 1025 / 2);
/// Maximum neurons in one answer.
const MAX_NEURONS: usize = 512;
/// Maximum nearest tokens, and tokens of the lens, per position.
const MAX_TOP: usize = 20;

/// The text to inspect, in exactly one of `text`, `tokens` and `session_id`, and what to show. Layers, heads
/// and positions count from 0. All other fields are optional and may be null; unknown fields are ignored.
#[derive(Debug, Deserialize, ToSchema)]
#[schema(example = json!({"text": "Once upon a time", "stages": ["tokens", "lens"], "lens": {"top": 3}}))]
pub(in crate::http) struct InspectBody {
    /// The text; `<|endoftext|>` in it is the special token.
    text: Option<String>,
    /// Token ids, in place of `text`.
    tokens: Option<Vec<u32>>,
    /// The session whose context is inspected, in place of `text`. Nothing is added to it.
    #[schema(pattern = "^[A-Za-z0-9_.:@-]{1,128}$")]
    session_id: Option<String>,
    /// The name of the served model; any other is 404 `model_not_found`.
    model: Option<String>,
    /// Positions to show: at most 64. Default: the last 32.
    #[serde(default, deserialize_with = "object")]
    positions: Option<Positions>,
    /// Stages to show. Default: all.
    #[schema(value_type = Option<Vec<InspectStage>>)]
    stages: Option<Vec<Word<InspectStage>>>,
    /// What to show of embeddings.
    #[serde(default, deserialize_with = "object")]
    embedding: Option<EmbeddingField>,
    /// The attention heads to show.
    #[serde(default, deserialize_with = "object")]
    attention: Option<AttentionField>,
    /// The neurons to show.
    #[serde(default, deserialize_with = "object")]
    mlp: Option<MlpField>,
    /// What to show of the logit lens.
    #[serde(default, deserialize_with = "object")]
    lens: Option<LensField>,
    /// How the next token would be sampled.
    #[serde(default, deserialize_with = "object")]
    sampling: Option<SamplingField>,
    /// How arrays of numbers are written. Default: `base64`.
    #[serde(default, deserialize_with = "optional_word")]
    encoding: Option<Encoding>,
    /// Maximum seconds from the request's arrival to the end of the answer, time in the queue
    /// included. After that the request ends with 408 `timeout`. Default: no limit.
    #[schema(minimum = 0.001, maximum = 86400)]
    pub(super) timeout: Option<f64>,
    /// Waiting requests with a lower value begin earlier, regardless of their API key. A value below 0
    /// requires a key with that permission; otherwise the request is refused with 403
    /// `priority_not_allowed`.
    #[schema(minimum = -1000, maximum = 1000, default = 0)]
    priority: Option<i64>,
}

/// Positions from `from` up to, not including, `to`.
#[derive(Debug, Clone, Copy, Default, Deserialize, ToSchema)]
#[schema(as = InspectPositions)]
pub(in crate::http) struct Positions {
    /// First position. Default: 32 before `to`.
    #[schema(minimum = 0)]
    from: Option<i64>,
    /// Position after the last one. Default: the length of the text.
    #[schema(minimum = 1)]
    to: Option<i64>,
}

/// A stage of the forward pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub(in crate::http) enum InspectStage {
    /// Token ids, their bytes and merges.
    Tokens,
    /// Embeddings of tokens and positions.
    Embedding,
    /// Norms of the residual stream.
    Residual,
    /// Attention weights.
    Attention,
    /// Neurons of the feed-forward networks.
    Mlp,
    /// The next token as read off after each layer.
    Lens,
    /// Logits after the last position.
    Logits,
    /// What each filter of sampling removes.
    Sampling,
}

/// What to show of embeddings.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[schema(as = InspectEmbedding)]
pub(in crate::http) struct EmbeddingField {
    /// Number of tokens with the nearest embeddings.
    #[schema(minimum = 0, maximum = 20, default = 5)]
    nearest: Option<i64>,
    /// Show the embeddings themselves, not only their norms.
    #[schema(default = true)]
    values: Option<bool>,
}

/// The attention heads to show: each of `heads` in each of `layers`.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[schema(as = InspectAttention)]
pub(in crate::http) struct AttentionField {
    /// Layers. Default: the last one.
    layers: Option<Vec<i64>>,
    /// Heads. Default: all.
    heads: Option<Vec<i64>>,
    /// Which rows of weights. Default: `rows`.
    #[serde(default, deserialize_with = "optional_word")]
    form: Option<AttentionForm>,
    /// Show the queries, keys and values of the positions too.
    #[schema(default = false)]
    qkv: Option<bool>,
}

/// The neurons to show.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[schema(as = InspectMlp)]
pub(in crate::http) struct MlpField {
    /// Layers. Default: the last one.
    layers: Option<Vec<i64>>,
    /// Number of neurons per position: those that add most to the residual stream. At most 512 in one answer.
    #[schema(minimum = 1, maximum = 64, default = 8)]
    top: Option<i64>,
}

/// What to show of the logit lens.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[schema(as = InspectLens)]
pub(in crate::http) struct LensField {
    /// Number of most likely tokens per layer and position.
    #[schema(minimum = 1, maximum = 20, default = 5)]
    top: Option<i64>,
}

/// How the next token would be sampled. Fields left out take the model's defaults.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[schema(as = InspectSampling)]
pub(in crate::http) struct SamplingField {
    /// Determines the random numbers. Default: random; the answer contains it.
    #[schema(minimum = 0, format = "uint64")]
    seed: Option<u64>,
    /// Number of tokens at the end of the text that were sampled before with this seed.
    #[schema(minimum = 0, default = 0)]
    n: Option<i64>,
    /// Divides the logits; 0 always takes the most likely token.
    #[schema(minimum = 0, maximum = 100)]
    temperature: Option<f64>,
    /// Number of most likely tokens to sample from; 0 is all.
    #[schema(minimum = 0)]
    top_k: Option<i64>,
    /// Probability mass of the most likely tokens to sample from; 1 is all.
    #[schema(exclusive_minimum = 0, maximum = 1)]
    top_p: Option<f64>,
    /// Minimum probability of a token relative to the most likely one; 0 is all.
    #[schema(minimum = 0, maximum = 1)]
    min_p: Option<f64>,
    /// Probability mass kept by locally typical sampling; 1 is all.
    #[schema(exclusive_minimum = 0, maximum = 1)]
    typical_p: Option<f64>,
    /// Divides positive and multiplies negative logits of tokens in the text; 1 is none.
    #[schema(exclusive_minimum = 0, maximum = 100)]
    repetition_penalty: Option<f64>,
    /// Subtracted once from the logits of tokens sampled before.
    #[schema(minimum = -2, maximum = 2)]
    presence_penalty: Option<f64>,
    /// Subtracted from the logits of tokens sampled before as many times as they occurred.
    #[schema(minimum = -2, maximum = 2)]
    frequency_penalty: Option<f64>,
    /// Added to the logits of tokens.
    logit_bias: Option<LogitBias>,
}

/// The text to inspect.
struct Context {
    /// The field that names it.
    field: &'static str,
    /// Tokens of a session's history that are beyond the window.
    earlier: Arc<[u32]>,
    /// Tokens of the text.
    tokens: Vec<u32>,
}

impl InspectBody {
    /// Checks all fields, tokenizes the text, and creates the request to the engine and the builder of the
    /// answer.
    ///
    /// # Errors
    /// The first field that is not valid.
    pub(super) async fn into_request(
        mut self,
        serving: &Serving,
        scope: &Scope,
    ) -> Result<(GenerateRequest, AnswerBuilder), ApiError> {
        let adapter = adapter(self.model.as_deref(), serving)?;
        let spec = &serving.info.spec;
        let Context {
            field,
            earlier,
            mut tokens,
        } = self.read(serving, scope).await?;
        let (history, length) = (earlier.len(), tokens.len());
        let window = serving.limits.context_length;
        if length > window {
            let message = format!("`{field}` has {length} tokens; the context is {window} tokens");
            return Err(InvalidRequest::context_length(field, message).into());
        }
        let rows = self.positions.unwrap_or_default().rows(length)?;
        let wanted = self.wanted(rows.clone(), length, earlier, spec)?;
        let encoding = self.encoding.unwrap_or_default();
        let is_map = wanted.attention.as_ref().is_some_and(|heads| heads.map);
        if !is_map {
            // Later tokens have no influence on these rows.
            tokens.truncate(rows.end);
        }
        let builder = AnswerBuilder {
            id: format!("insp-{}", scope.id),
            length,
            history,
            rows,
            encoding,
            tokens: self.shows(InspectStage::Tokens).then(|| tokens.clone()),
            wanted: wanted.clone(),
            seed: 0,
        };
        let sampling = self.sampling.unwrap_or_default();
        let draft = RequestDraft {
            prompt_field: field,
            tenant: scope.tenant,
            share: scope.share,
            priority: scope.priority(self.priority)?,
            adapter,
            ..RequestDraft::inspection(scope.id.clone(), tokens, wanted)
        };
        let draft = sampling.into_draft(draft, &serving.limits)?;
        let request = serving.limits.admit(draft).map_err(of_sampling)?;
        let seed = request.sampling.seed;
        Ok((request, AnswerBuilder { seed, ..builder }))
    }

    /// Returns the text.
    async fn read(&mut self, serving: &Serving, scope: &Scope) -> Result<Context, ApiError> {
        let whole = |field, tokens| Context {
            field,
            earlier: Arc::default(),
            tokens,
        };
        match (self.text.take(), self.tokens.take(), &self.session_id) {
            (Some(text), None, None) => {
                let tokens = tokenize_prompt(&scope.admission, &serving.tokenizer, text);
                Ok(whole("text", tokens.await?))
            }
            (None, Some(tokens), None) => Ok(whole("tokens", tokens)),
            (None, None, Some(name)) => {
                let key = scope.session_key(name)?;
                let session = serving.sessions.get(&key).await?;
                let window = serving.limits.context_length;
                let start = context_start(session.tokens.len(), window);
                let (earlier, tokens) = session.tokens.split_at(start.min(session.tokens.len()));
                Ok(Context {
                    field: "session_id",
                    earlier: earlier.into(),
                    tokens: tokens.to_vec(),
                })
            }
            (text, tokens, session) => {
                let given = [text.is_some(), tokens.is_some(), session.is_some()];
                let given = given.into_iter().filter(|given| *given).count();
                Err(ApiError::invalid(
                    "text",
                    format!(
                        "exactly one of `text`, `tokens` and `session_id` must be given, got {given}"
                    ),
                ))
            }
        }
    }

    fn shows(&self, stage: InspectStage) -> bool {
        match &self.stages {
            None => true,
            Some(stages) => stages.iter().any(|Word(shown)| *shown == stage),
        }
    }

    /// Returns what to show at these positions of a text of `length` tokens after `earlier` ones.
    fn wanted(
        &self,
        rows: Range<usize>,
        length: usize,
        earlier: Arc<[u32]>,
        spec: &ModelSpec,
    ) -> Result<InspectionWanted, ApiError> {
        let is_last = rows.end == length;
        let embedding = self.embedding.as_ref();
        let nearest = embedding.and_then(|embedding| embedding.nearest);
        let nearest = integer("embedding.nearest", nearest, 0..=MAX_TOP)?.unwrap_or(5);
        let values = embedding.and_then(|embedding| embedding.values);
        let lens = self.lens.as_ref().and_then(|lens| lens.top);
        let lens = integer("lens.top", lens, 1..=MAX_TOP)?.unwrap_or(5);
        let attention = self.attention(&rows, length, spec)?;
        let neurons = self.neurons(&rows, spec)?;
        let n = self.sampling.as_ref().and_then(|sampling| sampling.n);
        let n = integer("sampling.n", n, 0..=rows.end)?.unwrap_or(0);
        Ok(InspectionWanted {
            embedding: self
                .shows(InspectStage::Embedding)
                .then_some(EmbeddingWanted {
                    nearest,
                    values: values.unwrap_or(true),
                }),
            residual: self.shows(InspectStage::Residual),
            attention: self.shows(InspectStage::Attention).then_some(attention),
            neurons: self.shows(InspectStage::Mlp).then_some(neurons),
            lens: self.shows(InspectStage::Lens).then_some(lens),
            logits: is_last && self.shows(InspectStage::Logits),
            sampling: (is_last && self.shows(InspectStage::Sampling)).then_some(SamplingWanted {
                sampled: n,
                earlier,
            }),
            rows,
        })
    }

    fn attention(
        &self,
        rows: &Range<usize>,
        length: usize,
        spec: &ModelSpec,
    ) -> Result<AttentionWanted, ApiError> {
        let all = AttentionField::default();
        let field = self.attention.as_ref().unwrap_or(&all);
        let last = spec.layers.saturating_sub(1);
        let layers = numbers("attention.layers", field.layers.as_deref(), spec.layers)?;
        let heads = numbers("attention.heads", field.heads.as_deref(), spec.heads)?;
        let wanted = AttentionWanted {
            layers: layers.unwrap_or_else(|| vec![last]),
            heads: heads.unwrap_or_else(|| (0..spec.heads).collect()),
            map: field.form.unwrap_or_default() == AttentionForm::Map,
            qkv: field.qkv.unwrap_or(false),
        };
        let count = wanted.layers.len() * wanted.heads.len();
        if self.shows(InspectStage::Attention) && wanted.map && count > MAX_MAPS {
            return Err(ApiError::invalid(
                "attention.form",
                format!(
                    "`attention.form` \"map\" is possible for at most {MAX_MAPS} heads of all layers together, got {count}; give fewer `layers` or `heads`"
                ),
            ));
        }
        let triangle = |n: usize| n * (n + 1) / 2;
        let weights = if wanted.map {
            triangle(length)
        } else {
            triangle(rows.end) - triangle(rows.start)
        };
        let each = weights + usize::from(wanted.qkv) * 3 * rows.len() * spec.head_width;
        if self.shows(InspectStage::Attention) && each * count > MAX_WEIGHTS {
            return Err(ApiError::invalid(
                "attention",
                format!(
                    "`attention` asks for {} numbers in one answer; at most {MAX_WEIGHTS} are possible: ask for fewer layers, heads or positions",
                    each * count
                ),
            ));
        }
        Ok(wanted)
    }

    fn neurons(&self, rows: &Range<usize>, spec: &ModelSpec) -> Result<NeuronsWanted, ApiError> {
        let field = self.mlp.as_ref();
        let layers = field.and_then(|field| field.layers.as_deref());
        let layers = numbers("mlp.layers", layers, spec.layers)?;
        let layers = layers.unwrap_or_else(|| vec![spec.layers.saturating_sub(1)]);
        let top = integer("mlp.top", field.and_then(|field| field.top), 1..=64)?;
        let top = top.unwrap_or(8).min(spec.inner_width);
        let count = rows.len() * layers.len() * top;
        if self.shows(InspectStage::Mlp) && count > MAX_NEURONS {
            return Err(ApiError::invalid(
                "mlp",
                format!(
                    "`mlp` asks for {count} neurons in one answer; at most {MAX_NEURONS} are possible: ask for fewer layers, positions or `top`"
                ),
            ));
        }
        Ok(NeuronsWanted { layers, top })
    }
}

impl Positions {
    /// Returns the positions in a text of `length` tokens.
    fn rows(self, length: usize) -> Result<Range<usize>, ApiError> {
        if length == 0 {
            // The limits refuse the empty prompt.
            return Ok(0..0);
        }
        let to = integer("positions.to", self.to, 1..=length)?.unwrap_or(length);
        let from = integer("positions.from", self.from, 0..=to - 1)?;
        let from = from.unwrap_or(to.saturating_sub(DEFAULT_ROWS));
        if to - from > MAX_ROWS {
            return Err(ApiError::invalid(
                "positions",
                format!(
                    "`positions` can be at most {MAX_ROWS} in one answer, got {} ({from} to {to}); request them in pages",
                    to - from
                ),
            ));
        }
        Ok(from..to)
    }
}

/// Returns the numbers of layers or heads, sorted, without duplicates; each below `count`.
fn numbers(
    field: &'static str,
    given: Option<&[i64]>,
    count: usize,
) -> Result<Option<Vec<usize>>, ApiError> {
    let Some(given) = given else { return Ok(None) };
    if given.is_empty() {
        return Err(ApiError::invalid(
            field,
            format!("`{field}` must not be empty"),
        ));
    }
    let last = count.saturating_sub(1);
    let checked = given.iter().map(|&number| {
        let number = integer(field, Some(number), 0..=last)?;
        Ok(number.unwrap_or_default())
    });
    let mut numbers = checked.collect::<Result<Vec<_>, ApiError>>()?;
    numbers.sort_unstable();
    numbers.dedup();
    Ok(Some(numbers))
}

/// Calls a field of sampling by its place in the body.
fn of_sampling(refusal: InvalidRequest) -> InvalidRequest {
    if refusal.field.starts_with("logit_bias") {
        let field = format!("sampling.{}", refusal.field);
        refusal.renamed(field)
    } else {
        refusal
    }
}

impl SamplingField {
    /// Checks the fields and adds them to a draft.
    fn into_draft(self, draft: RequestDraft, limits: &Limits) -> Result<RequestDraft, ApiError> {
        let penalty = |field, given| number(field, given, -2.0..=2.0);
        let biases = self.logit_bias.unwrap_or_default().checked();
        Ok(RequestDraft {
            sampling: SamplingOverrides {
                temperature: number(
                    "sampling.temperature",
                    self.temperature,
                    0.0..=limits.max_temperature,
                )?,
                top_k: at_least("sampling.top_k", self.top_k, 0)?,
                top_p: above_zero("sampling.top_p", self.top_p, 1.0)?,
                min_p: number("sampling.min_p", self.min_p, 0.0..=1.0)?,
                typical_p: above_zero("sampling.typical_p", self.typical_p, 1.0)?,
                repetition_penalty: above_zero(
                    "sampling.repetition_penalty",
                    self.repetition_penalty,
                    limits.max_repetition_penalty,
                )?,
                max_new_tokens: Some(0),
                ..SamplingOverrides::default()
            },
            presence_penalty: penalty("sampling.presence_penalty", self.presence_penalty)?
                .unwrap_or(0.0),
            frequency_penalty: penalty("sampling.frequency_penalty", self.frequency_penalty)?
                .unwrap_or(0.0),
            logit_bias: biases.map_err(of_sampling)?,
            seed: self.seed,
            ..draft
        })
    }
}
