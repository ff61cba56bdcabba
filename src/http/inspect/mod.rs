//! `POST /v1/inspect`: what each stage of the forward pass over a text computed.
//!
//! An inspection is a request to the engine like any other: it waits in the same queue, under the same keys
//! and limits. It must never return a value that the kernels did not compute, or an answer of unbounded size.
//!
//! | module | what it is for |
//! |---|---|
//! | `request` | the body, and the request to the engine that it becomes |
//! | `answer` | the answer |
//! | `build` | from what the pass computed to the answer |
//! | `values` | arrays of numbers, in Base64 or as JSON |

mod answer;
mod build;
mod request;
mod values;

use std::time::Instant;

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};

use self::answer::InspectAnswer;
use self::request::InspectBody;
use super::admission::TOKENIZE_INLINE;
use super::app::App;
use super::body::JsonBody;
use super::documented_errors::OpenAiErrors;
use super::error::ApiError;
use super::fields::deadline;
use super::layers::Scope;
use super::prompt_log;
use super::prompt_report::prompt_report;
use super::timeline::Submitted;
use super::waiting::{before, begun_in_time};

/// Inspect a forward pass
///
/// Returns what each stage computed for some positions of a text, a list of token ids, or a session: the
/// tokens and their merges, embeddings, the residual stream, attention weights, neurons, the next token as
/// read off after each layer (the logit lens), the logits, what each filter of sampling removes, and the
/// time of each stage. The values are the same, bit for bit, as when text is generated from the same tokens,
/// except attention weights: the kernels do not store them, so they are computed again from the same queries
/// and keys. The pass runs beside other requests and takes no more than its share of the time.
#[utoipa::path(
    post,
    path = "/v1/inspect",
    tag = "inspect",
    request_body = InspectBody,
    responses(
        (status = 200, description = "The stages", body = InspectAnswer),
        OpenAiErrors,
    ),
)]
pub(super) async fn inspect(
    State(app): State<App>,
    scope: Scope,
    JsonBody(body): JsonBody<InspectBody>,
) -> Result<Response, ApiError> {
    let (serving, _in_flight) = app.begin(scope.share)?;
    let started = Instant::now();
    let deadline = deadline(body.timeout)?;
    let (request, builder) = body.into_request(&serving, &scope).await?;
    prompt_log::prompts(&app, &serving.tokenizer, std::slice::from_ref(&request));
    let asked = std::slice::from_ref(&request);
    scope.trace.asks(serving.name_of(&request), asked, 1);
    let charge = scope
        .meter
        .take_prompts(std::slice::from_ref(&request), 1)?;
    let submitted = Submitted::now(&request, scope.trace.generation(0));
    let generation = serving.engine.submit(request).await?;
    let begun = generation.begun();
    let begun = async {
        begun.await;
        charge.keep();
    };
    let report = prompt_report(generation, submitted, app.observations());
    let report = begun_in_time(&serving, scope.share, begun, report);
    let report = before(deadline, report).await?;
    charge.keep();
    let size = builder.approximate_size();
    let write = move || {
        let answer = builder.build(report, &serving.tokenizer, &serving.info);
        Json(answer).into_response()
    };
    let answer = scope.admission.run(size, TOKENIZE_INLINE, write).await?;
    tracing::info!(
        total_ms = started.elapsed().as_secs_f64() * 1e3,
        "inspection answered"
    );
    Ok(answer)
}
