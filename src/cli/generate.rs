//! `skald generate`: streams the text for one prompt to the terminal, from the same engine as the server.

use std::io::Read;

use anyhow::{Context, anyhow};
use clap::Args;
use serde_json::json;

use super::{CommandError, runtime, write_out};
use crate::config::{KvPrecision, LogFormat, ModelSettings};
use crate::engine::{EngineConfig, FinishReason, TokenEvent};
use crate::request::{
    GenerateRequest, InvalidRequest, Overflow, RequestDraft, RequestId, SamplingOverrides,
    SamplingStyle,
};
use crate::resources;
use crate::serving::{Serving, ServingSettings};
use crate::session::SessionConfig;
use crate::telemetry;
use crate::text::TextStream;

/// Generate text from one prompt in the terminal
#[derive(Debug, Args)]
#[command(
    after_help = "Sampling options that are left out come from the model's generation_config.json. Without one, \
        the most likely token is always taken.\n\n\
        Examples:\n  \
        skald generate \"Once upon a time\"\n  \
        skald generate \"Once upon a time\" --temperature 0.8 --seed 7 --max-tokens 200\n  \
        echo -n \"The wolf said\" | skald generate - --json"
)]
pub struct Generate {
    /// The prompt, or `-` to read it from standard input
    prompt: String,
    #[command(flatten)]
    model: ModelSettings,
    /// Maximum tokens to generate
    #[arg(short = 'n', long, default_value = "100")]
    max_tokens: usize,
    #[command(flatten)]
    sampling: SamplingOverrides,
    /// Seed of the random numbers; the same seed gives the same text [default: random]
    #[arg(long)]
    seed: Option<u64>,
    /// A text that ends the generation; can be given repeatedly
    #[arg(long, value_name = "TEXT")]
    stop: Vec<String>,
    /// Continue past the model's window
    #[arg(long)]
    slide: bool,
    /// Print one JSON object at the end instead of streaming text
    #[arg(long)]
    json: bool,
}

impl Generate {
    pub(super) fn run(self) -> Result<(), CommandError> {
        let _ = telemetry::start(LogFormat::Auto, "warn");
        let prompt = self.read_prompt().map_err(CommandError::Running)?;
        let settings = ServingSettings {
            model: self.model.source.clone(),
            served_model_name: None,
            dtype: self.model.dtype,
            device: self.model.device,
            kv_dtype: KvPrecision::Auto,
            threads: resources::threads(self.model.threads).value,
            kv_memory: None,
            memory_limit: resources::memory_limit(),
            generation_config: self.model.generation_config,
            chat_template: None,
            max_session_tokens: None,
            engine: EngineConfig::default(),
            sessions: SessionConfig::default(),
        };
        let serving =
            Serving::load(&settings).map_err(|error| CommandError::Unusable(error.into()))?;
        let request = self
            .request(&serving, &prompt)
            .map_err(CommandError::Unusable)?;
        let outcome = runtime()?.block_on(self.stream(&serving, request));
        outcome.map_err(CommandError::Running)
    }

    fn read_prompt(&self) -> anyhow::Result<String> {
        if self.prompt != "-" {
            return Ok(self.prompt.clone());
        }
        let mut text = String::new();
        std::io::stdin()
            .read_to_string(&mut text)
            .context("standard input is not valid UTF-8 text")?;
        Ok(text)
    }

    fn request(&self, serving: &Serving, prompt: &str) -> anyhow::Result<GenerateRequest> {
        let mut ids = serving.tokenizer.encode(prompt, true)?;
        if ids.is_empty() {
            ids.extend(serving.tokenizer.end_of_text());
        }
        let draft = RequestDraft {
            sampling: SamplingOverrides {
                max_new_tokens: Some(self.max_tokens),
                ..self.sampling
            },
            seed: self.seed,
            stop_strings: self.stop.clone(),
            overflow: if self.slide {
                Overflow::Slide
            } else {
                Overflow::Stop
            },
            ..RequestDraft::new(
                RequestId::random(),
                ids,
                self.max_tokens,
                SamplingStyle::Greedy,
            )
        };
        Ok(serving.limits.admit(draft).map_err(as_flag)?)
    }

    async fn stream(&self, serving: &Serving, request: GenerateRequest) -> anyhow::Result<()> {
        let seed = request.sampling.seed;
        let mut text = TextStream::new(&request.stop.stop_strings, false);
        let mut generation = serving.engine.submit(request).await?;
        let mut whole = String::new();
        let mut show = |piece: &str| {
            whole.push_str(piece);
            if self.json {
                return Ok(());
            }
            write_out(piece)
        };
        let mut generated = 0;
        let mut reason = FinishReason::Length;
        while let Some(event) = generation.next().await {
            match event {
                TokenEvent::Prefilled(_) => (),
                TokenEvent::Failed(error) => return Err(anyhow!(error)),
                TokenEvent::Token(token) => {
                    generated += 1;
                    reason = token.finish.unwrap_or(reason);
                    let ends = token.finish.is_some_and(FinishReason::ends_with_a_sign);
                    if !ends {
                        let bytes = serving.tokenizer.token_bytes(token.token.id);
                        let piece = text.push((), bytes.unwrap_or_default());
                        show(&piece.text)?;
                        if piece.stopped.is_some() {
                            reason = FinishReason::Stop;
                            break;
                        }
                    }
                    if token.finish.is_some() {
                        show(&text.finish().text)?;
                    }
                }
            }
        }
        if self.json {
            let reason = match reason {
                FinishReason::Length => "length",
                FinishReason::EndOfText | FinishReason::Stop | FinishReason::Complete => "stop",
            };
            let answer =
                json!({"text": whole, "tokens": generated, "finish_reason": reason, "seed": seed});
            write_out(&format!("{answer}\n"))
        } else {
            write_out("\n")
        }
    }
}

/// Calls the field of a refusal by its flag.
fn as_flag(refusal: InvalidRequest) -> InvalidRequest {
    let flag = match refusal.field.as_str() {
        "prompt" => return refusal,
        field => format!("--{}", field.replace('_', "-")),
    };
    refusal.renamed(flag)
}
