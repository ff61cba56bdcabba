//! Requests that only read their prompt: embeddings and inspections.

use std::sync::Arc;

use super::error::ApiError;
use super::metrics::Observations;
use super::timeline::{Ending, Submitted, Timeline};
use crate::engine::{FinishReason, GenerateError, Generation, PromptReport, TokenEvent};

/// Waits for the report of a request's prompt, and records the timeline of the request.
///
/// # Errors
/// If the request fails.
pub(super) async fn prompt_report(
    mut generation: Generation,
    submitted: Submitted,
    observations: &Arc<Observations>,
) -> Result<PromptReport, ApiError> {
    let mut timeline = Timeline::new(submitted, observations);
    let timed = generation.next_timed().await;
    timeline.begun(timed.as_ref().and_then(|timed| timed.first_step));
    let report = match timed.map(|timed| (timed.event, timed.at)) {
        Some((TokenEvent::Prefilled(report), at)) => {
            timeline.prompt(&report, at);
            Ok(report)
        }
        Some((TokenEvent::Failed(error), _)) => Err(error),
        Some((TokenEvent::Token(_), _)) | None => Err(GenerateError::Incomplete),
    };
    timeline.end(match &report {
        Ok(_) => Ending::Finished(FinishReason::Complete),
        Err(_) => Ending::Failed,
    });
    Ok(report?)
}
