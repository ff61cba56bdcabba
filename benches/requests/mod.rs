//! Requests for an engine that is measured without HTTP, and what they took.

use std::time::{Duration, Instant};

use skald::engine::{EngineHandle, TokenEvent};
use skald::request::{Limits, RequestDraft, RequestId, SamplingStyle};

/// Random prompts, never the same twice, so that no cache can help.
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

    /// A request for `new` tokens after `prompt` random ones.
    pub fn request(&mut self, prompt: usize, new: usize, style: SamplingStyle) -> RequestDraft {
        self.made += 1;
        let ids = (0..prompt as u32)
            .map(|i| (i.wrapping_mul(2_654_435_761) ^ (self.made * 40_503)) % self.vocab_size)
            .collect();
        RequestDraft::new(RequestId::random(), ids, new, style)
    }
}

/// A runtime for the little that the front end's side does.
pub fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime")
}

/// Runs requests side by side; the time to the first token of all, and from there to the end.
pub async fn run(
    engine: &EngineHandle,
    limits: &Limits,
    drafts: Vec<RequestDraft>,
) -> (Duration, Duration) {
    let started = Instant::now();
    let each = drafts.into_iter().map(|draft| async {
        let request = limits.admit(draft).expect("a valid request");
        let mut generation = engine.submit(request).await.expect("accepted");
        let mut first = None;
        while let Some(event) = generation.next().await {
            match event {
                TokenEvent::Token(_) => {
                    first.get_or_insert_with(|| started.elapsed());
                }
                TokenEvent::Prefilled(_) => (),
                TokenEvent::Failed(error) => panic!("{error}"),
            }
        }
        first.expect("a token")
    });
    let firsts = futures_util::future::join_all(each).await;
    let first = firsts.into_iter().max().expect("a request");
    (first, started.elapsed().saturating_sub(first))
}

pub fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}
