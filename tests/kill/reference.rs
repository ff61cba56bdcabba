//! Results of the model without a cache.

use skald::engine::{EngineHandle, FinishReason, TokenEvent};
use skald::request::{Limits, RequestDraft, RequestId, SamplingStyle, Tenant};
use skald::text::Tokenizer;
use std::sync::Arc;

use crate::support::{Setup, serving};

/// Sampling of a turn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Choice {
    /// The most likely token.
    Greedy,
    /// Sampled at this temperature, in tenths, from the `TOP_K` most likely tokens.
    Drawn { tenths: u8, seed: u64 },
}

impl Choice {
    pub fn temperature(self) -> f32 {
        match self {
            Self::Greedy => 0.0,
            Self::Drawn { tenths, .. } => f32::from(tenths) / 10.0,
        }
    }
}

/// Tokens to sample from.
pub const TOP_K: usize = 50;

/// The same model in this process.
#[derive(Clone)]
pub struct Reference {
    engine: EngineHandle,
    limits: Limits,
    tokenizer: Arc<Tokenizer>,
}

impl Reference {
    pub fn start() -> Self {
        let serving = serving(&Setup::default());
        Self {
            engine: serving.engine,
            limits: serving.limits,
            tokenizer: serving.tokenizer,
        }
    }

    pub fn ids(&self, text: &str) -> Vec<u32> {
        self.tokenizer.encode(text, true).expect("it is tokenized")
    }

    pub fn text(&self, ids: &[u32]) -> String {
        self.tokenizer.decode(ids)
    }

    /// Returns the continuation of a context, without the end-of-text token, as sessions keep it.
    pub async fn next(&self, context: &[u32], choice: Choice, max_tokens: usize) -> Vec<u32> {
        let mut draft = RequestDraft::new(
            RequestId::random(),
            context.to_vec(),
            max_tokens,
            SamplingStyle::Greedy,
        );
        if let Choice::Drawn { seed, .. } = choice {
            draft.sampling.temperature = Some(choice.temperature());
            draft.sampling.top_k = Some(TOP_K);
            draft.seed = Some(seed);
        }
        // A tenant of its own, so nothing is cached.
        draft.tenant = Tenant::of_key(draft.id.to_string().as_bytes());
        let request = self.limits.admit(draft).expect("a valid request");
        let mut generation = self.engine.submit(request).await.expect("accepted");
        let mut ids = Vec::new();
        while let Some(event) = generation.next().await {
            match event {
                TokenEvent::Prefilled(report) => assert_eq!(report.cached_tokens, 0),
                TokenEvent::Token(token) => {
                    if !token.finish.is_some_and(FinishReason::ends_with_a_sign) {
                        ids.push(token.token.id);
                    }
                }
                TokenEvent::Failed(error) => panic!("{error}"),
            }
        }
        ids
    }
}
