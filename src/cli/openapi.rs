//! `skald openapi`: prints the API description, generated from the code that implements it.

use clap::Args;

use super::CommandError;
use crate::http;

/// Print the OpenAPI description
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  skald openapi > openapi.yaml")]
pub struct Openapi {
    /// Print JSON instead of YAML
    #[arg(long)]
    json: bool,
}

impl Openapi {
    pub(super) fn run(self) -> Result<(), CommandError> {
        let contract = http::openapi();
        let text = if self.json {
            contract.to_pretty_json().map_err(anyhow::Error::from)
        } else {
            contract.to_yaml().map_err(anyhow::Error::from)
        };
        super::write_out(&text.map_err(CommandError::Running)?).map_err(CommandError::Running)?;
        Ok(())
    }
}
