//! `skald pull`: brings a model of the hub into the cache.

use std::io::IsTerminal;

use anyhow::anyhow;
use clap::Args;

use super::{CommandError, write_out};
use crate::checkpoint::{ModelSource, hub};
use crate::config::LogFormat;
use crate::telemetry;

/// Fetch a model from the hub into the cache, without serving it
#[derive(Debug, Args)]
#[command(
    after_help = "HF_HOME sets the cache, HF_ENDPOINT the hub, HF_TOKEN the access token. \
        Prints the model's directory.\n\nExample:\n  skald pull openai-community/gpt2"
)]
pub struct Pull {
    /// The model's id on the hub, with @revision if need be
    #[arg(value_name = "ID")]
    id: String,
}

impl Pull {
    pub(super) fn run(self) -> Result<(), CommandError> {
        // A warning (the cache stands in for a hub that is away) has to be seen.
        let _ = telemetry::start(LogFormat::Auto, "warn");
        let source: ModelSource = self.id.parse().map_err(unusable)?;
        let ModelSource::Hub { id, revision } = source else {
            let error = anyhow!("`{source}` is not on the hub: there is nothing to fetch");
            return Err(CommandError::Unusable(error));
        };
        let progress = std::io::stderr().is_terminal();
        let directory = hub::pull(&id, revision.as_deref(), progress).map_err(unusable)?;
        write_out(&format!("{}\n", directory.display())).map_err(CommandError::Running)
    }
}

fn unusable(error: impl Into<anyhow::Error>) -> CommandError {
    CommandError::Unusable(error.into())
}
