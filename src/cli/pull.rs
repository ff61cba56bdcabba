//! `skald pull`: downloads a model of the hub into the cache.

use std::io::IsTerminal;

use anyhow::anyhow;
use clap::Args;

use super::{CommandError, write_out};
use crate::checkpoint::{ModelSource, hub};
use crate::config::LogFormat;
use crate::telemetry;

/// Download a model from the hub into the cache, without serving it
#[derive(Debug, Args)]
#[command(
    after_help = "HF_HOME sets the cache, HF_ENDPOINT the hub, and HF_TOKEN the access token. \
        Prints the model's directory, or its file in GGUF.\n\nExamples:\n  skald pull openai-community/gpt2\n  \
        skald pull ggml-org/gemma-3-270m-it-GGUF:Q8_0"
)]
pub struct Pull {
    /// The model's id on the hub, with `:Q4_K_M` for a quantization in GGUF, `/FILE.gguf` for a file, and `@revision`
    /// for a revision other than main
    #[arg(value_name = "ID")]
    id: String,
}

impl Pull {
    pub(super) fn run(self) -> Result<(), CommandError> {
        // For the warning that the cache is used because the hub can't be reached.
        let _ = telemetry::start(LogFormat::Auto, "warn");
        let source: ModelSource = self.id.parse().map_err(unusable)?;
        let ModelSource::Hub { id, revision, gguf } = source else {
            let error = anyhow!("`{source}` is not a hub id; only models of the hub can be pulled");
            return Err(CommandError::Unusable(error));
        };
        let progress = std::io::stderr().is_terminal();
        let pulled = hub::pull(&id, revision.as_deref(), gguf.as_ref(), progress);
        let pulled = pulled.map_err(unusable)?;
        write_out(&format!("{}\n", pulled.display())).map_err(CommandError::Running)
    }
}

fn unusable(error: impl Into<anyhow::Error>) -> CommandError {
    CommandError::Unusable(error.into())
}
