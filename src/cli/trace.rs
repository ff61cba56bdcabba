//! `skald trace`: one forward pass as an `SQLite` file. `docs/trace.md` recomputes the model from it.

mod file;
mod recorder;
mod schema;
mod weights;

use std::path::PathBuf;

use anyhow::Result;
use clap::Args;
use rusqlite::{Connection, params};

use self::file::TraceFile;
use self::recorder::Recorder;
use super::generate::as_flag;
use super::{CommandError, components, runtime, write_out};
use crate::config::{LogFormat, ModelSettings};
use crate::engine::inspection::SamplingTrace;
use crate::engine::sampler::{Allowed, Sampler};
use crate::kernels::kv::{BLOCK_SIZE, KvDtype};
use crate::request::{
    GenerateRequest, RequestDraft, RequestId, SamplingOverrides, SamplingParams, SamplingStyle,
};
use crate::serving::Unserved;
use crate::session::SessionConfig;
use crate::telemetry;
use crate::text::Tokenizer;

/// Write all that a model computes for a text to an `SQLite` file
#[derive(Debug, Args)]
#[command(
    after_help = "The file has a table for every stage: tokens, merges, embeddings, normalized, heads, attention, \
        mixed, residual, mlp, logits, sampling, draw. docs/trace.md recomputes each of them from the one before, in \
        SQL.\n\n\
        Examples:\n  \
        skald trace \"Once upon a time\" --out trace.db\n  \
        skald trace \"Once upon a time\" --out trace.db --weights --dtype f32 --seed 7"
)]
pub struct Trace {
    /// The text, or `-` to read it from standard input
    text: String,
    /// The file to write
    #[arg(short, long, value_name = "FILE")]
    out: PathBuf,
    /// Write the model's weights too; about 24 bytes per weight
    #[arg(long)]
    weights: bool,
    /// Write the logits of every position, instead of the last
    #[arg(long)]
    all_logits: bool,
    /// Replace the file if it exists
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    model: ModelSettings,
    #[command(flatten)]
    sampling: SamplingOverrides,
    /// Seed of the random number; the same seed names the same token as `skald generate` [default: random]
    #[arg(long)]
    seed: Option<u64>,
}

impl Trace {
    pub(super) fn run(self) -> Result<(), CommandError> {
        let _ = telemetry::start(LogFormat::Auto, "warn");
        let text = super::generate::read_text(&self.text).map_err(CommandError::Running)?;
        // Before the model is loaded, which can take minutes.
        let file = TraceFile::create(&self.out, self.force).map_err(CommandError::Unusable)?;
        let runtime = runtime()?;
        file.remove_on_signals(&runtime)
            .map_err(|error| CommandError::Running(error.into()))?;
        let settings = components::terminal(&self.model, SessionConfig::default());
        let loaded =
            Unserved::load(&settings).map_err(|error| CommandError::Unusable(error.into()))?;
        let request = self
            .request(&loaded, &text)
            .map_err(CommandError::Unusable)?;
        let summary = self.write(&file, &loaded, &request);
        let summary = summary.map_err(CommandError::Running)?;
        file.publish().map_err(CommandError::Running)?;
        write_out(&summary).map_err(CommandError::Running)
    }

    /// Returns the request for one token that `skald generate` would make.
    fn request(&self, loaded: &Unserved, text: &str) -> Result<GenerateRequest> {
        if self.weights {
            weights::config(&loaded.files)?;
        }
        let tokenizer = &loaded.files.tokenizer;
        let mut ids = tokenizer.encode_prompt(text, true)?;
        if ids.is_empty() {
            ids.extend(tokenizer.empty_prompt());
        }
        let draft = RequestDraft {
            sampling: SamplingOverrides {
                max_new_tokens: Some(1),
                ..self.sampling
            },
            seed: self.seed,
            ..RequestDraft::new(RequestId::random(), ids, 1, SamplingStyle::Greedy)
        };
        Ok(loaded.limits.admit(draft).map_err(as_flag)?)
    }

    /// Writes all tables in one transaction; returns what is shown at the end.
    fn write(
        &self,
        file: &TraceFile,
        loaded: &Unserved,
        request: &GenerateRequest,
    ) -> Result<String> {
        let db = file.open()?;
        let (model, tokenizer) = (&loaded.model, &loaded.files.tokenizer);
        db.execute_batch("BEGIN")?;
        db.execute_batch(schema::PASS)?;
        facts(&db, loaded)?;
        texts(&db, tokenizer, &request.prompt, model.spec().vocab_size)?;
        let blocks = request.prompt.len().div_ceil(BLOCK_SIZE);
        let recorder = Recorder {
            db: &db,
            model,
            kv: &model.kv_cache(loaded.kv_dtype, blocks)?,
            all_logits: self.all_logits,
        };
        let logits = recorder.record(&request.prompt)?;
        let params = request.sampling.clone();
        let mut sampler = Sampler::new(params, &request.prompt, logits.len());
        let trace = sampler.trace(&logits, 0, Allowed::AllBut(&[]))?;
        sampling(&db, &request.sampling, &trace, tokenizer)?;
        if self.weights {
            weights::write(&db, &loaded.files)?;
        }
        db.execute_batch("COMMIT")?;
        Ok(format!(
            "{}: {} tokens, {} layers; next token {:?} (id {}, probability {:.4}, seed {})\n",
            self.out.display(),
            request.prompt.len(),
            model.spec().layers,
            tokenizer.decode(&[trace.token]),
            trace.token,
            trace.probability,
            request.sampling.seed,
        ))
    }
}

/// Writes the facts about the model.
fn facts(db: &Connection, loaded: &Unserved) -> Result<()> {
    let (spec, info) = (loaded.model.spec(), &loaded.info);
    let kv_dtype = match loaded.kv_dtype {
        KvDtype::F32 => "f32",
        KvDtype::Bf16 => "bf16",
    };
    db.execute(
        "INSERT INTO model VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        params![
            info.id,
            spec.architecture,
            spec.layers,
            spec.heads,
            spec.head_width,
            spec.hidden_width,
            spec.inner_width,
            spec.vocab_size,
            spec.context_length,
            loaded.files.config.norm_epsilon(),
            info.dtype,
            kv_dtype,
            info.fingerprint,
            env!("CARGO_PKG_VERSION"),
        ],
    )?;
    Ok(())
}

/// Writes the vocabulary, and the tokens of the text with their merges.
fn texts(db: &Connection, tokenizer: &Tokenizer, ids: &[u32], vocab_size: usize) -> Result<()> {
    let mut row = db.prepare("INSERT INTO vocabulary VALUES (?, ?)")?;
    for id in 0..vocab_size as u32 {
        row.execute(params![id, tokenizer.decode(&[id])])?;
    }
    let mut token = db.prepare("INSERT INTO tokens VALUES (?, ?, ?, ?)")?;
    let mut row = db.prepare("INSERT INTO merges VALUES (?, ?, ?, ?, ?)")?;
    for (position, &id) in ids.iter().enumerate() {
        let bytes = tokenizer.token_bytes(id).unwrap_or_default();
        token.execute(params![position, id, tokenizer.decode(&[id]), bytes])?;
        let mut parts: Vec<Vec<u8>> = bytes.iter().map(|&byte| vec![byte]).collect();
        for (step, merge) in tokenizer.merges(id).into_iter().enumerate() {
            let mut pairs = parts.windows(2).zip(&merge.parts);
            let merged = pairs.find(|(pair, merged)| pair.first() != Some(*merged));
            if let Some(([left, right], _)) = merged {
                let (left, right) = (
                    String::from_utf8_lossy(left),
                    String::from_utf8_lossy(right),
                );
                row.execute(params![position, step, left, right, merge.rank])?;
            }
            parts = merge.parts;
        }
    }
    Ok(())
}

/// Writes how the next token is sampled.
fn sampling(
    db: &Connection,
    settings: &SamplingParams,
    trace: &SamplingTrace,
    tokenizer: &Tokenizer,
) -> Result<()> {
    db.execute(
        "INSERT INTO settings VALUES (?, ?, ?, ?, ?, ?, ?)",
        params![
            settings.temperature,
            settings.top_k,
            settings.top_p,
            settings.min_p,
            settings.typical_p,
            settings.repetition_penalty,
            settings.seed.to_string(),
        ],
    )?;
    let mut row = db.prepare("INSERT INTO sampling VALUES (?, ?, ?, ?, ?)")?;
    for (n, step) in trace.steps.iter().enumerate() {
        row.execute(params![
            n,
            step.parameter,
            step.changed,
            step.left,
            step.removed
        ])?;
    }
    db.execute(
        "INSERT INTO draw VALUES (?, ?, ?, ?)",
        params![
            trace.random,
            trace.token,
            tokenizer.decode(&[trace.token]),
            trace.probability
        ],
    )?;
    Ok(())
}
