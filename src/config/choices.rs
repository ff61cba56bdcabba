//! Settings with a fixed set of values.

use clap::ValueEnum;

/// Backend that computes the model.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Device {
    /// Skald's kernels.
    Cpu,
    /// Candle's own operations, in f32 with their own threads: slower, for comparison.
    Candle,
}

impl Device {
    /// Returns the setting's value.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Cpu => "cpu",
            Self::Candle => "candle",
        }
    }
}

/// Precision of the weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Dtype {
    /// f32 for checkpoints in f32, bf16 for all others. bf16 drops three significant bits of f16; f32 keeps them.
    Auto,
    /// 32-bit floats: the reference.
    F32,
    /// bfloat16: half the memory, twice the speed.
    Bf16,
    /// 8-bit integers: a quarter of the memory, the fastest.
    Q8,
}

/// Precision of the keys and values.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum KvPrecision {
    /// f32 with f32 weights, bf16 with others.
    Auto,
    /// 32-bit floats, as computed.
    F32,
    /// bfloat16: twice as many tokens in the same memory, read twice as fast.
    Bf16,
}

/// Whether the model's `generation_config.json` sets the defaults of sampling.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum GenerationDefaults {
    /// Yes, if the model has one.
    Auto,
    /// No.
    None,
}

/// When tokens are drafted and verified.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Speculation {
    /// If it is faster: with few streams, whose texts repeat themselves.
    Auto,
    /// Never.
    Off,
}

/// Format of log lines.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// Human-readable on a terminal, JSON otherwise.
    Auto,
    /// Human-readable.
    Human,
    /// One JSON object per line.
    Json,
}
