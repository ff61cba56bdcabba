//! The built-in model, and short functions that run requests on it.

use std::num::NonZeroUsize;

use skald::backend::cpu::CpuBackend;
use skald::checkpoint::{ModelFiles, ModelSource};
use skald::engine::{
    EngineConfig, EngineHandle, FinishReason, GenerateError, GeneratedToken, Generation,
    PromptReport, TokenEvent,
};
use skald::kernels::linear::WeightDtype;
use skald::model::Model;
use skald::request::{
    GenerateRequest, Limits, RequestDraft, RequestId, SamplingOverrides, SamplingStyle, Tenant,
};

use crate::pace::{Gate, until};

/// Returns the files of the built-in model.
pub fn files() -> ModelFiles {
    "builtin"
        .parse::<ModelSource>()
        .expect("a model source")
        .fetch(false)
        .expect("the built-in model")
}

/// Loads the built-in model in f32 on two threads.
pub fn gpt2() -> Model {
    gpt2_in(WeightDtype::F32)
}

/// Loads the built-in model with its weights in `dtype`.
pub fn gpt2_in(dtype: WeightDtype) -> Model {
    let threads = NonZeroUsize::new(2).expect("not zero");
    Model::load(&files(), &CpuBackend::new(threads, dtype)).expect("the built-in model loads")
}

/// Starts an engine on the built-in model in f32.
pub fn engine(config: EngineConfig) -> EngineHandle {
    skald::engine::start(gpt2(), config).expect("the engine starts")
}

/// Returns the limits of the built-in model, without its generation defaults.
pub fn limits() -> Limits {
    Limits::for_model(1024, 8192, vec![8191])
}

/// Returns a greedy request for `max_tokens` tokens.
pub fn greedy(prompt: &[u32], max_tokens: usize) -> RequestDraft {
    RequestDraft::new(
        RequestId::random(),
        prompt.to_vec(),
        max_tokens,
        SamplingStyle::Greedy,
    )
}

/// Returns a request that samples from the whole vocabulary.
pub fn sampled(prompt: &[u32], max_tokens: usize, seed: u64) -> RequestDraft {
    RequestDraft {
        sampling: SamplingOverrides {
            temperature: Some(1.0),
            ..SamplingOverrides::default()
        },
        seed: Some(seed),
        ignore_end_of_text: true,
        ..greedy(prompt, max_tokens)
    }
}

/// Returns a request for the embedding of `input`.
pub fn embedding(input: &[u32]) -> RequestDraft {
    RequestDraft::embedding(RequestId::random(), input.to_vec())
}

/// Returns the same request on a session with this history.
pub fn after(history: &[u32], draft: RequestDraft) -> RequestDraft {
    RequestDraft {
        history: Some(history.to_vec()),
        ..draft
    }
}

/// Validates a draft.
pub fn admit(draft: RequestDraft) -> GenerateRequest {
    limits().admit(draft).expect("a valid request")
}

/// Complete result of a request.
#[derive(Debug, Clone, PartialEq)]
pub struct Outcome {
    pub prompt: PromptReport,
    pub tokens: Vec<GeneratedToken>,
    pub finish: FinishReason,
}

impl Outcome {
    pub fn ids(&self) -> Vec<u32> {
        self.tokens.iter().map(|t| t.token.id).collect()
    }
}

/// Reads a generation to its end.
pub async fn finish(mut generation: Generation) -> Result<Outcome, GenerateError> {
    let mut report = None;
    let mut tokens = Vec::new();
    let mut finish = None;
    while let Some(event) = generation.next().await {
        match event {
            TokenEvent::Prefilled(prompt) => {
                finish = prompt.finish;
                report = Some(prompt);
            }
            TokenEvent::Token(token) => {
                finish = token.finish;
                tokens.push(token);
            }
            TokenEvent::Failed(error) => return Err(error),
        }
    }
    Ok(Outcome {
        prompt: report.expect("the prompt is reported first"),
        tokens,
        finish: finish.expect("the last event has a reason"),
    })
}

/// Waits until no request runs or waits and no block is held.
pub async fn idle(engine: &EngineHandle) {
    until("idle", async || {
        let status = engine.status();
        (status.running, status.waiting, status.kv_blocks_used) == (0, 0, 0)
    })
    .await;
}

/// Runs one request to its end.
pub async fn run(engine: &EngineHandle, draft: RequestDraft) -> Outcome {
    let generation = engine.submit(admit(draft)).await.expect("accepted");
    let outcome = finish(generation).await.expect("it does not fail");
    // This is answered between two steps, after the worker has published the status of all steps before.
    let answered = engine.resident_tokens(Tenant::ANONYMOUS, Vec::new()).await;
    answered.expect("the worker answers");
    outcome
}

/// Runs a beam search to its end and returns its beams, best first.
pub async fn run_beams(engine: &EngineHandle, draft: RequestDraft) -> Vec<Outcome> {
    let beams = engine.submit_all(admit(draft)).await.expect("accepted");
    let beams = futures_util::future::try_join_all(beams.into_iter().map(finish)).await;
    beams.expect("it does not fail")
}

/// Runs requests concurrently.
pub async fn run_all(engine: &EngineHandle, drafts: Vec<RequestDraft>) -> Vec<Outcome> {
    futures_util::future::join_all(drafts.into_iter().map(|draft| run(engine, draft))).await
}

/// Runs requests concurrently on an engine that is held: all are submitted before it continues.
pub async fn run_together(
    engine: &EngineHandle,
    gate: &Gate,
    drafts: Vec<RequestDraft>,
) -> Vec<Outcome> {
    // Each future sends its request when it is first polled.
    let all_sent = async {
        tokio::task::yield_now().await;
        gate.open();
    };
    tokio::join!(run_all(engine, drafts), all_sent).0
}

/// Returns a prompt of `n` tokens that differs for every `salt`.
pub fn prompt(n: usize, salt: u32) -> Vec<u32> {
    (0..n as u32)
        .map(|i| (i * 37 + salt * 1009 + 11) % 4000)
        .collect()
}
