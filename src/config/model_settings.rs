//! The settings that `skald serve` and `skald generate` have in common.

use std::num::NonZeroUsize;

use clap::Args;

use super::choices::{Device, Dtype, GenerationDefaults};
use super::values::thread_count;

/// The model and its computation.
#[derive(Debug, Clone, PartialEq, Eq, Args)]
pub struct ModelSettings {
    /// The model: `builtin` (a small model that tells fairy tales), a directory in the Hugging Face layout,
    /// a GGUF file, or a hub id such as openai-community/gpt2, with `:Q4_K_M` for a quantization in GGUF and
    /// `@revision` for a revision other than main
    #[arg(
        help_heading = "Model",
        long = "model",
        env = "SKALD_MODEL",
        value_name = "MODEL",
        default_value = "builtin"
    )]
    pub source: String,
    /// Precision of the weights
    #[arg(
        help_heading = "Model",
        long,
        env = "SKALD_DTYPE",
        default_value = "auto"
    )]
    pub dtype: Dtype,
    /// Backend that computes the model
    #[arg(
        help_heading = "Model",
        long,
        env = "SKALD_DEVICE",
        default_value = "cpu"
    )]
    pub device: Device,
    /// Whether the model's `generation_config.json` sets the defaults of sampling
    #[arg(
        help_heading = "Model",
        long,
        env = "SKALD_GENERATION_CONFIG",
        value_name = "DEFAULTS",
        default_value = "auto"
    )]
    pub generation_config: GenerationDefaults,
    /// Number of compute threads [default: all cores, within the CPU quota of the cgroup]
    #[arg(
        help_heading = "Engine",
        long,
        env = "SKALD_THREADS",
        value_name = "N",
        value_parser = thread_count
    )]
    pub threads: Option<NonZeroUsize>,
}
