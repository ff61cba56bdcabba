//! Runs a model over one sequence, piece by piece.

use std::num::NonZeroUsize;
use std::path::Path;

use skald::backend::cpu::CpuBackend;
use skald::checkpoint::{Checkpoint, Gguf, ModelFiles, ModelSource};
use skald::kernels::kv::{KvCache, KvDtype, SequenceSpan};
use skald::kernels::linear::WeightDtype;
use skald::kernels::rows;
use skald::model::Model;
use skald::model::batch::Batch;

/// Rows whose logits are computed at once: those of a large vocabulary take a megabyte each.
const PIECE: usize = 64;
const BLOCK: usize = 16;

/// Opens the shape and the weights of a model in GGUF; the tokenizer is that of the built-in model.
pub fn without_tokenizer(path: &Path) -> ModelFiles {
    let mut files = ModelSource::Builtin
        .fetch(false)
        .expect("the built-in model");
    let gguf = Gguf::open(path).expect("a file");
    files.config = gguf.config().expect("its shape");
    files.checkpoint = Checkpoint::from_gguf(gguf, &files.config).expect("its tensors");
    files
}

/// Loads a model with weights packed in a precision.
pub fn load(files: &ModelFiles, dtype: WeightDtype) -> Model {
    let threads = NonZeroUsize::new(2).expect("not zero");
    Model::load(files, &CpuBackend::new(threads, dtype)).expect("it loads")
}

/// One sequence.
pub struct Runner<'a> {
    model: &'a Model,
    kv: KvCache,
    block_table: Vec<u32>,
    length: usize,
}

impl<'a> Runner<'a> {
    /// Starts a sequence of up to `context` tokens.
    pub fn new(model: &'a Model, kv: KvDtype, context: usize) -> Self {
        let blocks = context.div_ceil(BLOCK);
        Self {
            model,
            kv: model.kv_cache(kv, blocks).expect("a cache"),
            block_table: (0..blocks as u32).collect(),
            length: 0,
        }
    }

    /// Appends tokens and gives the logits after each of them.
    pub fn append(&mut self, ids: &[u32], mut take: impl FnMut(usize, &[f32])) {
        for (n, ids) in ids.chunks(PIECE).enumerate() {
            let (first, count) = (self.length, ids.len());
            let batch = Batch {
                ids: ids.to_vec(),
                positions: (first as u32..(first + count) as u32).collect(),
                spans: vec![SequenceSpan {
                    rows: 0..count,
                    first_position: first,
                    block_table: self.block_table.clone(),
                    window_table: Vec::new(),
                }],
                logits_rows: (0..count as u32).collect(),
                ..Batch::default()
            };
            let outputs = self.model.forward(batch, &self.kv).expect("a pass");
            self.length += count;
            let logits: Vec<Vec<f32>> = outputs.logits.to_vec2().expect("rows");
            for (row, logits) in logits.iter().enumerate() {
                take(n * PIECE + row, logits);
            }
        }
    }

    /// Appends tokens. Returns the log-probability of each after the first, and the most likely token after each.
    pub fn score(&mut self, ids: &[u32]) -> (Vec<f64>, Vec<u32>) {
        let (mut logprobs, mut argmax) = (Vec::new(), Vec::new());
        self.append(ids, |row, logits| {
            if let Some(&next) = ids.get(row + 1) {
                logprobs.push(logprob(logits, next));
            }
            argmax.push(most_likely(logits));
        });
        (logprobs, argmax)
    }

    /// Continues with the most likely tokens, of which `first` is the first. Returns them and the
    /// log-probabilities of those after it.
    pub fn greedy(&mut self, first: u32, count: usize) -> (Vec<u32>, Vec<f64>) {
        let (mut ids, mut logprobs) = (vec![first], Vec::new());
        while ids.len() < count {
            let last = ids[ids.len() - 1];
            let mut next = 0;
            self.append(&[last], |_, logits| {
                next = most_likely(logits);
                logprobs.push(logprob(logits, next));
            });
            ids.push(next);
        }
        (ids, logprobs)
    }
}

fn most_likely(logits: &[f32]) -> u32 {
    let (argmax, _) = rows::argmax(logits).expect("a token");
    argmax as u32
}

fn logprob(logits: &[f32], id: u32) -> f64 {
    f64::from(logits[id as usize]) - f64::from(rows::log_sum_exp(logits))
}
