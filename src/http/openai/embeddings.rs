//! `POST /v1/embeddings`: texts to vectors.
//!
//! Every input is a request to the engine of its own, and takes its turn among the others' (see
//! [`crate::engine::bulk`]); the handler only cuts them out of the body and puts the vectors
//! together. It must not hold up its thread, so each vector is written out as it comes.

use std::sync::Arc;
use std::time::Instant;

use axum::Json;
use axum::extract::State;
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use futures_util::stream::{self, StreamExt, TryStreamExt};
use serde::{Deserialize, Serialize};
use serde_json::value::{RawValue, to_raw_value};
use tokio::sync::SetOnce;
use utoipa::ToSchema;

use super::prompt::{Prompt, token_ids};
use super::shared::adapter;
use crate::engine::{GenerateError, Generation};
use crate::http::app::App;
use crate::http::body::JsonBody;
use crate::http::documented_errors::OpenAiErrors;
use crate::http::error::ApiError;
use crate::http::fields::deadline;
use crate::http::layers::Scope;
use crate::http::metrics::Observations;
use crate::http::prompt_log;
use crate::http::prompt_report::prompt_report;
use crate::http::timeline::Submitted;
use crate::http::waiting::{before, begun_in_time};
use crate::http::wire::optional_word;
use crate::request::{GenerateRequest, InvalidRequest, RequestDraft};
use crate::serving::Serving;

/// Inputs of one request that are on their way or wait for a place; more would only wait too.
const IN_FLIGHT: usize = 32;

/// What to embed. `input` is required; every other field may be left out or null, and unknown
/// fields are ignored.
#[derive(Debug, Deserialize, ToSchema)]
#[schema(example = json!({"model": "fairy-tales", "input": ["The fox", "The bear"], "encoding_format": "float"}))]
pub(in crate::http) struct EmbeddingsRequest {
    /// The name of the served model; any other is 404 `model_not_found`. Default: the served one.
    model: Option<String>,
    /// What to embed: at most 2048 texts or lists of token ids, of at most 300000 tokens together.
    /// None may be empty, and each must fit the model's context by itself.
    input: Prompt,
    /// How the vectors are written. Default: `float`.
    #[serde(default, deserialize_with = "optional_word")]
    encoding_format: Option<EncodingFormat>,
    /// The length of the vectors: only the model's own width (`n_embd` at `/info`), since its
    /// hidden states can't be shortened.
    dimensions: Option<i64>,
    /// Accepted, not used.
    #[expect(dead_code, reason = "read to check its type")]
    user: Option<String>,
    /// Maximum seconds from the request's arrival to the end of the answer, time in the queue
    /// included. After that the request ends with 408 `timeout`. Default: no limit.
    #[schema(minimum = 0.001, maximum = 86400)]
    timeout: Option<f64>,
    /// Waiting requests with a lower value begin earlier, regardless of their API key. A value below 0
    /// requires a key with that permission; otherwise the request is refused with 403
    /// `priority_not_allowed`.
    #[schema(minimum = -1000, maximum = 1000, default = 0)]
    priority: Option<i64>,
}

/// How vectors are written.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
enum EncodingFormat {
    /// A list of numbers.
    #[default]
    Float,
    /// 32-bit floats in little-endian order, in Base64.
    Base64,
}

/// The embeddings of all inputs.
#[derive(Debug, Serialize, ToSchema)]
#[schema(example = json!({
    "object": "list", "data": [{"object": "embedding", "index": 0, "embedding": [0.0312, -0.1174]}],
    "model": "fairy-tales", "usage": {"prompt_tokens": 2, "total_tokens": 2}
}))]
pub(in crate::http) struct EmbeddingList {
    /// Always `list`.
    object: &'static str,
    /// One for each input, in their order.
    data: Vec<EmbeddedInput>,
    /// The model that answered.
    model: String,
    /// Tokens read.
    usage: EmbeddingsUsage,
}

/// The embedding of one input.
#[derive(Debug, Serialize, ToSchema)]
struct EmbeddedInput {
    /// Always `embedding`.
    object: &'static str,
    /// Which input.
    index: usize,
    /// A vector of length 1.
    embedding: Encoded,
}

/// A vector in the requested encoding.
#[derive(Debug, Serialize, ToSchema)]
#[serde(untagged)]
enum Encoded {
    /// A list of numbers.
    #[schema(value_type = Vec<f32>)]
    Float(Box<RawValue>),
    /// 32-bit floats in little-endian order, in Base64.
    Base64(String),
}

/// Tokens read.
#[derive(Debug, Serialize, ToSchema)]
struct EmbeddingsUsage {
    /// Tokens of all inputs.
    prompt_tokens: usize,
    /// The same: nothing is generated.
    total_tokens: usize,
}

/// Embed texts
///
/// The embedding of an input is the mean of the model's hidden states over all its tokens, after
/// the last norm (what the output projection reads), divided by its length, so that a
/// dot product is the cosine. It depends on the input alone, bit for bit. The model was trained to go on
/// with a text, not to compare texts: near texts are near each other, but all are in a narrow cone.
#[utoipa::path(
    post,
    path = "/v1/embeddings",
    tag = "openai",
    request_body = EmbeddingsRequest,
    responses(
        (status = 200, description = "The embeddings", body = EmbeddingList),
        OpenAiErrors,
    ),
)]
pub(in crate::http) async fn embeddings(
    State(app): State<App>,
    scope: Scope,
    JsonBody(body): JsonBody<EmbeddingsRequest>,
) -> Result<Json<EmbeddingList>, ApiError> {
    let (serving, _in_flight) = app.begin(scope.share)?;
    let started = Instant::now();
    let format = body.encoding_format.unwrap_or_default();
    let deadline = deadline(body.timeout)?;
    let requests = body.plan(&serving, &scope).await?;
    let model = requests.first().map(|request| serving.name_of(request));
    let model = model.unwrap_or(&serving.info.id).to_owned();
    prompt_log::prompts(&app, &serving.tokenizer, &requests);
    let tokens = requests.iter().map(|request| request.prompt.len()).sum();
    scope.trace.asks(&model, &requests, 1);
    let charge = scope.meter.take_prompts(&requests, 1)?;
    let bulk = serving.engine.bulk(scope.share)?;
    let begun = SetOnce::new();
    let data = stream::iter(requests.into_iter().enumerate())
        .map(|(index, request)| {
            let submitted = Submitted::now(&request, scope.trace.generation(index));
            let (bulk, begun, observations) = (&bulk, &begun, app.observations());
            async move {
                let generation = bulk.submit(request).await?;
                generation.begun().await;
                // Set by the first one.
                let _ = begun.set(());
                embedding(generation, observations, format, index, submitted).await
            }
        })
        .buffered(IN_FLIGHT)
        .try_collect();
    let first = async {
        begun.wait().await;
        charge.keep();
    };
    let data = begun_in_time(&serving, scope.share, first, data);
    let data: Vec<EmbeddedInput> = before(deadline, data).await?;
    // All of them may be there before the first was seen to begin.
    charge.keep();
    tracing::info!(
        inputs = data.len(),
        prompt_tokens = tokens,
        total_ms = started.elapsed().as_secs_f64() * 1e3,
        "embeddings finished"
    );
    Ok(Json(EmbeddingList {
        object: "list",
        data,
        model,
        usage: EmbeddingsUsage {
            prompt_tokens: tokens,
            total_tokens: tokens,
        },
    }))
}

impl EmbeddingsRequest {
    /// Checks everything, tokenizes the inputs, and makes the requests to the engine.
    ///
    /// # Errors
    /// The first field that is not as it should be.
    async fn plan(
        self,
        serving: &Serving,
        scope: &Scope,
    ) -> Result<Vec<GenerateRequest>, ApiError> {
        let adapter = adapter(self.model.as_deref(), serving)?;
        check_dimensions(self.dimensions, serving.info.spec.hidden_width)?;
        let priority = scope.priority(self.priority)?;
        let limits = &serving.limits;
        let is_list = matches!(self.input, Prompt::Texts(_) | Prompt::TokenLists(_));
        let inputs = self.input.split();
        if inputs.len() > limits.max_embedding_inputs {
            return Err(ApiError::invalid(
                "input",
                format!(
                    "`input` can have at most {} elements, got {}",
                    limits.max_embedding_inputs,
                    inputs.len()
                ),
            ));
        }
        let inputs = token_ids(inputs, &scope.admission, &serving.tokenizer).await?;
        let tokens: usize = inputs.iter().map(Vec::len).sum();
        let requests = inputs.into_iter().enumerate().map(|(n, ids)| {
            let draft = RequestDraft {
                tenant: scope.tenant,
                share: scope.share,
                priority,
                adapter: adapter.clone(),
                ..RequestDraft::embedding(scope.id.child(n), ids)
            };
            limits.admit(draft).map_err(|refusal| {
                if is_list {
                    refusal.of_element(n)
                } else {
                    refusal
                }
            })
        });
        let requests: Vec<_> = requests.collect::<Result<_, InvalidRequest>>()?;
        if tokens > limits.max_embedding_tokens {
            return Err(ApiError::invalid(
                "input",
                format!(
                    "all of `input` can have at most {} tokens together, got {tokens}",
                    limits.max_embedding_tokens
                ),
            ));
        }
        Ok(requests)
    }
}

fn check_dimensions(dimensions: Option<i64>, n_embd: usize) -> Result<(), ApiError> {
    match dimensions {
        Some(dimensions) if usize::try_from(dimensions) != Ok(n_embd) => Err(ApiError::invalid(
            "dimensions",
            format!(
                "`dimensions` must be {n_embd} or left out: the model's embeddings have that width and can't be shortened, got {dimensions}"
            ),
        )),
        _ => Ok(()),
    }
}

/// Runs one input.
async fn embedding(
    generation: Generation,
    observations: &Arc<Observations>,
    format: EncodingFormat,
    index: usize,
    submitted: Submitted,
) -> Result<EmbeddedInput, ApiError> {
    let report = prompt_report(generation, submitted, observations).await?;
    let mean = report.embedding.ok_or(GenerateError::Incomplete)?;
    Ok(EmbeddedInput {
        object: "embedding",
        index,
        embedding: format.write(&normalized(&mean))?,
    })
}

impl EncodingFormat {
    fn write(self, vector: &[f32]) -> Result<Encoded, ApiError> {
        Ok(match self {
            Self::Float => Encoded::Float(to_raw_value(vector).map_err(|error| {
                ApiError::internal(format!("an embedding could not be written: {error}"))
            })?),
            Self::Base64 => {
                let bytes: Vec<u8> = vector.iter().flat_map(|x| x.to_le_bytes()).collect();
                Encoded::Base64(BASE64_STANDARD.encode(bytes))
            }
        })
    }
}

/// Returns the vector of length 1 in the same direction; 0 stays 0.
fn normalized(vector: &[f32]) -> Vec<f32> {
    let squares: f64 = vector.iter().map(|&x| f64::from(x).powi(2)).sum();
    let length = if squares > 0.0 { squares.sqrt() } else { 1.0 };
    #[expect(clippy::cast_possible_truncation, reason = "at most 1")]
    let scale = |&x: &f32| (f64::from(x) / length) as f32;
    vector.iter().map(scale).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_vector_is_scaled_to_length_1_and_0_stays_0() {
        assert_eq!(normalized(&[3.0, -4.0]), [0.6, -0.8]);
        assert_eq!(normalized(&[0.0, 0.0]), [0.0, 0.0]);
        // Squares that f32 could not hold.
        let length = normalized(&[3e30, -4e30])
            .iter()
            .map(|x| x * x)
            .sum::<f32>();
        assert!((length - 1.0).abs() < 1e-6, "{length}");
    }

    #[test]
    fn base64_is_of_little_endian_floats() {
        let Ok(Encoded::Base64(text)) = EncodingFormat::Base64.write(&[1.0, -0.5]) else {
            panic!("not Base64");
        };
        // 00 00 80 3f  00 00 00 bf
        assert_eq!(text, "AACAPwAAAL8=");
    }
}
