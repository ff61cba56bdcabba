//! What does not go with a beam search.

use super::Limits;
use crate::request::{BeamParams, InvalidRequest, Overflow, RequestDraft, short};

/// Checks that nothing else of a draft contradicts its beam search. The model's sampling defaults
/// don't: they apply to requests that sample.
///
/// # Errors
/// [`InvalidRequest`] naming the field.
pub(super) fn check(
    beams: &BeamParams,
    draft: &RequestDraft,
    limits: &Limits,
) -> Result<(), InvalidRequest> {
    check_sampling(draft)?;
    let refuse = |field, why: &str| Err(InvalidRequest::new(field, why.to_owned()));
    if !draft.stop_strings.is_empty() {
        return refuse(
            "stop",
            "`stop` is not possible with `use_beam_search`: beams are chosen by their tokens (`stop_token_ids` ends them)",
        );
    }
    if draft.history.is_some() {
        return refuse(
            "session_id",
            "`session_id` is not possible with `use_beam_search`: a session has one history",
        );
    }
    if draft.grammar.is_some() {
        return refuse(
            "use_beam_search",
            "`use_beam_search` is not possible with a text that must follow a grammar (`response_format`, `guided_…`, `structured_outputs`)",
        );
    }
    if draft.overflow == Overflow::Slide {
        return refuse(
            "overflow",
            "`overflow` \"slide\" is not possible with `use_beam_search`: all of a beam is scored in one context",
        );
    }
    if draft.sampling.max_new_tokens == Some(0) {
        return Err(InvalidRequest::new(
            draft.max_tokens_field,
            format!(
                "`{}` must be at least 1 with `use_beam_search`, got 0",
                draft.max_tokens_field
            ),
        ));
    }
    let end_of_text = if draft.ignore_end_of_text {
        0
    } else {
        limits.end_of_text.len()
    };
    let ends = end_of_text + draft.stop_tokens.len();
    if beams.candidates(ends) > limits.vocab_size {
        return Err(InvalidRequest::new(
            "best_of",
            format!(
                "{} beams that can end with {ends} tokens are too many for the model's vocabulary of {} tokens (`best_of`, or `n` without it)",
                beams.width, limits.vocab_size
            ),
        ));
    }
    Ok(())
}

/// Checks that no field of sampling is set to an effect: beams are scored by the model's own distribution.
fn check_sampling(draft: &RequestDraft) -> Result<(), InvalidRequest> {
    let sampling = &draft.sampling;
    let number = |field, given: Option<f32>, neutral: f32| {
        let given = given.filter(|&value| value != neutral);
        given.map(|value| (field, short(value), short(neutral)))
    };
    let top_k = sampling.top_k.filter(|&top_k| top_k > 0);
    let sampled = sampling.do_sample.filter(|&sampled| sampled);
    let not_neutral = [
        sampled.map(|_| ("do_sample", "true".to_owned(), "false".to_owned())),
        number("temperature", sampling.temperature, 0.0),
        top_k.map(|top_k| ("top_k", top_k.to_string(), "0".to_owned())),
        number("top_p", sampling.top_p, 1.0),
        number("min_p", sampling.min_p, 0.0),
        number("typical_p", sampling.typical_p, 1.0),
        number("repetition_penalty", sampling.repetition_penalty, 1.0),
        number("presence_penalty", Some(draft.presence_penalty), 0.0),
        number("frequency_penalty", Some(draft.frequency_penalty), 0.0),
    ];
    if let Some((field, value, neutral)) = not_neutral.into_iter().flatten().next() {
        return Err(InvalidRequest::new(
            field,
            format!(
                "`{field}` must be {neutral} or left out with `use_beam_search`, which scores texts by the model's own distribution, got {value}"
            ),
        ));
    }
    if let Some((id, bias)) = draft.logit_bias.first() {
        return Err(InvalidRequest::new(
            "logit_bias",
            format!(
                "`logit_bias` is not possible with `use_beam_search`, which scores texts by the model's own distribution, got {} for {id}",
                short(bias)
            ),
        ));
    }
    Ok(())
}
