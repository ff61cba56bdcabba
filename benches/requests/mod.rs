//! Requests for an engine that is measured without HTTP, and their results.

#![allow(dead_code, reason = "every benchmark uses its own part")]

use std::time::{Duration, Instant};

use skald::engine::{EngineHandle, TokenEvent};
use skald::kernels::kv::KvDtype;
use skald::kernels::linear::WeightDtype;
use skald::request::{Limits, RequestDraft, RequestId, SamplingStyle};

/// Random prompts, all different, so that no cache applies.
pub struct Prompts {
    vocab_size: u32,
    made: u32,
}

impl Prompts {
    pub fn new(vocab_size: usize) -> Self {
        Self {
            vocab_size: vocab_size as u32,
            made: 0,
        }
    }

    /// Returns a request for `new` tokens after a prompt of `prompt` random ones.
    pub fn request(&mut self, prompt: usize, new: usize, style: SamplingStyle) -> RequestDraft {
        self.made += 1;
        let ids = (0..prompt as u32)
            .map(|i| (i.wrapping_mul(2_654_435_761) ^ (self.made * 40_503)) % self.vocab_size)
            .collect();
        RequestDraft::new(RequestId::random(), ids, new, style)
    }
}

/// Creates a runtime for the small front-end part of the work.
pub fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime")
}

/// Result of a request.
pub struct RequestResult {
    /// Time from the submission of all requests to the first token of this one.
    pub first: Duration,
    /// Tokens of the context that were not found in the KV cache.
    pub computed: usize,
    /// Generated tokens.
    pub ids: Vec<u32>,
}

/// Runs requests concurrently. Returns the time until all have their first token, and from then to the end.
pub async fn run(
    engine: &EngineHandle,
    limits: &Limits,
    drafts: Vec<RequestDraft>,
) -> (Duration, Duration) {
    let (results, whole) = run_each(engine, limits, drafts).await;
    let first = results.into_iter().map(|result| result.first).max();
    let first = first.expect("a request");
    (first, whole.saturating_sub(first))
}

/// Runs requests concurrently. Returns the result of each, and the total time.
pub async fn run_each(
    engine: &EngineHandle,
    limits: &Limits,
    drafts: Vec<RequestDraft>,
) -> (Vec<RequestResult>, Duration) {
    let started = Instant::now();
    let each = drafts.into_iter().map(|draft| async {
        let request = limits.admit(draft).expect("a valid request");
        let mut generation = engine.submit(request).await.expect("accepted");
        let (mut first, mut computed, mut ids) = (None, 0, Vec::new());
        while let Some(event) = generation.next().await {
            match event {
                TokenEvent::Token(token) => {
                    first.get_or_insert_with(|| started.elapsed());
                    ids.push(token.token.id);
                }
                TokenEvent::Prefilled(report) => {
                    computed = report.prompt_tokens - report.cached_tokens;
                }
                TokenEvent::Failed(error) => panic!("{error}"),
            }
        }
        RequestResult {
            first: first.expect("a token"),
            computed,
            ids,
        }
    });
    let results = futures_util::future::join_all(each).await;
    (results, started.elapsed())
}

pub fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// Returns the precisions of weights and KV cache that a server chooses for `f32`, `bf16` or `q8`.
pub fn precision(name: &str) -> (WeightDtype, KvDtype) {
    match name {
        "f32" => (WeightDtype::F32, KvDtype::F32),
        "bf16" => (WeightDtype::Bf16, KvDtype::Bf16),
        "q8" => (WeightDtype::Q8, KvDtype::Bf16),
        other => panic!("no dtype {other}"),
    }
}
