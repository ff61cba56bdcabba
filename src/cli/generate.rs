//! `skald generate`: text in the terminal, from the same engine as the server.
//!
//! | module | what it is for |
//! |---|---|
//! | `stream` | one generation, until it ends or is stopped |
//! | `screen`, `colour` | standard output; colours of tokens by their probability |
//! | `interactive` | turn after turn on sessions, with `--interactive` |
//! | `command`, `lines` | its commands, and where it reads its lines |

mod colour;
mod command;
mod interactive;
mod lines;
mod screen;
mod stream;

use std::future::pending;
use std::io::Read;
use std::path::PathBuf;

use anyhow::Context;
use bytesize::ByteSize;
use clap::Args;
use serde_json::json;

use self::interactive::Interactive;
use self::screen::Screen;
use self::stream::generate;
use super::{CommandError, components, runtime, write_out};
use crate::config::{LogFormat, ModelSettings};
use crate::request::{
    GenerateRequest, InvalidRequest, Overflow, RequestDraft, RequestId, SamplingOverrides,
    SamplingStyle, SessionId,
};
use crate::serving::{Serving, ServingSettings};
use crate::session::SessionConfig;
use crate::telemetry;

/// Generate text in the terminal
#[derive(Debug, Args)]
#[command(
    after_help = "Sampling options that are left out come from the model's generation_config.json. Without one, \
        the most likely token is always taken.\n\n\
        Examples:\n  \
        skald generate \"Once upon a time\"\n  \
        skald generate \"Once upon a time\" --temperature 0.8 --seed 7 --max-tokens 200\n  \
        skald generate \"Once upon a time\" --show-probabilities\n  \
        skald generate --interactive --session-dir tales\n  \
        echo -n \"The wolf said\" | skald generate - --json"
)]
#[expect(clippy::struct_excessive_bools, reason = "each is a flag")]
pub struct Generate {
    /// The prompt, or `-` to read it from standard input
    #[arg(required_unless_present = "interactive")]
    prompt: Option<String>,
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
    /// Continue past the model's window, as `--interactive` always does
    #[arg(long)]
    slide: bool,
    /// Print one JSON object at the end instead of streaming text
    #[arg(long, conflicts_with_all = ["interactive", "show_probabilities"])]
    json: bool,
    /// Colour each token by the model's own probability; not if the output is not a terminal or `NO_COLOR` is set
    #[arg(short = 'p', long)]
    show_probabilities: bool,
    /// Read line after line, and go on from each; `/help` lists the commands
    #[arg(short, long)]
    interactive: bool,
    /// The session to begin or continue
    #[arg(long, value_name = "NAME", default_value = "main", value_parser = command::session, requires = "interactive")]
    session: SessionId,
    /// Keep sessions in this directory, which servers can share (`--session-dir` of `skald serve`)
    #[arg(long, value_name = "DIR", requires = "interactive")]
    session_dir: Option<PathBuf>,
    /// Do not keep the lines for the next time
    #[arg(long, requires = "interactive")]
    no_history: bool,
}

impl Generate {
    pub(super) fn run(mut self) -> Result<(), CommandError> {
        let _ = telemetry::start(LogFormat::Auto, "warn");
        self.read_prompt().map_err(CommandError::Running)?;
        let serving = Serving::load(&self.settings());
        let serving = serving.map_err(|error| CommandError::Unusable(error.into()))?;
        let runtime = runtime()?;
        if self.interactive {
            // Refuses flags now, not at the first line.
            self.request(&serving, "", None, self.seed)
                .map_err(CommandError::Unusable)?;
            let session = Interactive::new(&self, &serving, &runtime);
            return session
                .and_then(Interactive::run)
                .map_err(CommandError::Running);
        }
        let prompt = self.prompt.as_deref().unwrap_or_default();
        let request = self
            .request(&serving, prompt, None, self.seed)
            .map_err(CommandError::Unusable)?;
        let outcome = runtime.block_on(self.tell(&serving, request));
        outcome.map_err(CommandError::Running)
    }

    fn settings(&self) -> ServingSettings {
        let sessions = SessionConfig {
            dir: self.session_dir.clone(),
            // Histories only: a server's KV blocks there are its own.
            kv_size: ByteSize::b(0),
            ..SessionConfig::default()
        };
        components::terminal(&self.model, sessions)
    }

    /// Replaces the prompt `-` by standard input, unless that has the lines of an interactive session.
    fn read_prompt(&mut self) -> anyhow::Result<()> {
        if let Some(prompt) = &self.prompt
            && !self.interactive
        {
            self.prompt = Some(read_text(prompt)?);
        }
        Ok(())
    }

    /// Returns the request for what follows `prompt`, and before it a session's history.
    ///
    /// # Errors
    /// If the flags or the prompt are beyond a limit.
    fn request(
        &self,
        serving: &Serving,
        prompt: &str,
        history: Option<Vec<u32>>,
        seed: Option<u64>,
    ) -> anyhow::Result<GenerateRequest> {
        let tokenizer = &serving.tokenizer;
        let begins = history.as_ref().is_none_or(Vec::is_empty);
        let mut ids = if begins {
            tokenizer.encode_prompt(prompt, true)?
        } else {
            tokenizer.encode_continued(prompt, true)?
        };
        if ids.is_empty() && begins {
            ids.extend(tokenizer.empty_prompt());
        }
        let draft = RequestDraft {
            sampling: SamplingOverrides {
                max_new_tokens: Some(self.max_tokens),
                ..self.sampling
            },
            seed,
            stop_strings: self.stop.clone(),
            overflow: if self.slide || self.interactive {
                Overflow::Slide
            } else {
                Overflow::Stop
            },
            history,
            ..RequestDraft::new(
                RequestId::random(),
                ids,
                self.max_tokens,
                SamplingStyle::Greedy,
            )
        };
        Ok(serving.limits.admit(draft).map_err(as_flag)?)
    }

    /// Writes what follows one prompt.
    async fn tell(&self, serving: &Serving, request: GenerateRequest) -> anyhow::Result<()> {
        let seed = request.sampling.seed;
        let screen = Screen::new(self.show_probabilities);
        let show = |piece: &_| {
            if self.json {
                return Ok(());
            }
            screen.piece(piece)
        };
        let generated = generate(serving, request, None, pending(), show).await?;
        if self.json {
            let answer = json!({
                "text": generated.text,
                "tokens": generated.tokens,
                "finish_reason": generated.ending.name(),
                "seed": seed,
            });
            return write_out(&format!("{answer}\n"));
        }
        write_out("\n")?;
        screen.legend();
        Ok(())
    }
}

/// Returns the text of an argument; `-` is standard input.
///
/// # Errors
/// If standard input is not text.
pub(super) fn read_text(argument: &str) -> anyhow::Result<String> {
    if argument != "-" {
        return Ok(argument.to_owned());
    }
    let mut text = String::new();
    std::io::stdin()
        .read_to_string(&mut text)
        .context("standard input is not valid UTF-8 text")?;
    Ok(text)
}

/// Calls the field of a refusal by its flag.
pub(super) fn as_flag(refusal: InvalidRequest) -> InvalidRequest {
    let flag = match refusal.field.as_str() {
        "prompt" => return refusal,
        field => format!("--{}", field.replace('_', "-")),
    };
    refusal.renamed(flag)
}
