//! GPT-2 as in picoGPT (<https://github.com/jaymody/picoGPT>): the equations on plain vectors of f64. No
//! cache, no batch, no speed; it shares only the checkpoint reader with the server.

#![allow(dead_code, reason = "not every test program uses all of it")]

use skald::checkpoint::{Checkpoint, Gpt2Config, ModelConfig, ModelFiles};

type Row = Vec<f64>;
type Matrix = Vec<Row>;

/// The parameters, by the names of the checkpoint.
pub struct Gpt2 {
    n_head: usize,
    wte: Matrix,     // [n_vocab, n_embd]
    wpe: Matrix,     // [n_positions, n_embd]
    lm_head: Matrix, // [n_vocab, n_embd]
    blocks: Vec<Block>,
    ln_f: LayerNorm,
}

struct Block {
    ln_1: LayerNorm,
    c_attn: Linear,      // [n_embd, 3*n_embd]
    attn_c_proj: Linear, // [n_embd, n_embd]
    ln_2: LayerNorm,
    c_fc: Linear,       // [n_embd, n_inner]
    mlp_c_proj: Linear, // [n_inner, n_embd]
}

struct LayerNorm {
    g: Row, // [n]
    b: Row, // [n]
    eps: f64,
}

struct Linear {
    w: Matrix, // [n_in, n_out]
    b: Row,    // [n_out]
}

impl Gpt2 {
    /// Returns the logits after every token: `[n_seq] -> [n_seq, n_vocab]`.
    pub fn logits(&self, ids: &[u32]) -> Matrix {
        let embed = |(i, &id): (usize, &u32)| add(&self.wte[id as usize], &self.wpe[i]);
        let mut x: Matrix = ids.iter().enumerate().map(embed).collect(); // [n_seq, n_embd]
        for block in &self.blocks {
            x = block.forward(&x, self.n_head); // [n_seq, n_embd] -> [n_seq, n_embd]
        }
        let x = self.ln_f.forward(&x); // [n_seq, n_embd] -> [n_seq, n_embd]
        let logits = |x: &Row| self.lm_head.iter().map(|w| dot(x, w)).collect();
        x.iter().map(logits).collect() // [n_seq, n_embd] -> [n_seq, n_vocab]
    }

    /// Returns the greedy continuation, each token with its log-probability.
    pub fn generate(&self, prompt: &[u32], n: usize) -> Vec<(u32, f64)> {
        let mut ids = prompt.to_vec();
        for _ in 0..n {
            let next = argmax(&self.logits(&ids)[ids.len() - 1]);
            ids.push(next);
        }
        let logits = self.logits(&ids);
        let drawn =
            (prompt.len()..ids.len()).map(|i| (ids[i], log_softmax(&logits[i - 1], ids[i])));
        drawn.collect()
    }
}

impl Block {
    fn forward(&self, x: &Matrix, n_head: usize) -> Matrix {
        let x = add_rows(x, &self.attention(&self.ln_1.forward(x), n_head)); // [n_seq, n_embd]
        add_rows(&x, &self.mlp(&self.ln_2.forward(&x))) // [n_seq, n_embd]
    }

    /// Computes causal multi-head self-attention: `[n_seq, n_embd] -> [n_seq, n_embd]`.
    fn attention(&self, x: &Matrix, n_head: usize) -> Matrix {
        let x = self.c_attn.forward(x); // [n_seq, n_embd] -> [n_seq, 3*n_embd]
        let n_embd = x[0].len() / 3;
        let width = n_embd / n_head;
        let mut out = vec![Vec::with_capacity(n_embd); x.len()]; // [n_seq, 0]
        for head in 0..n_head {
            let part = |which: usize| -> Matrix {
                let at = which * n_embd + head * width;
                x.iter().map(|row| row[at..at + width].to_vec()).collect()
            };
            let (q, k, v) = (part(0), part(1), part(2)); // [n_seq, n_embd/n_head] each
            for (i, q) in q.iter().enumerate() {
                // A row does not see later rows: [i+1]
                let scores = k[..=i].iter().map(|k| dot(q, k) / (width as f64).sqrt());
                let weights = softmax(&scores.collect::<Row>()); // [i+1] -> [i+1]
                let mut sum = vec![0.0; width]; // [n_embd/n_head]
                for (weight, v) in weights.iter().zip(&v) {
                    sum.iter_mut()
                        .zip(v)
                        .for_each(|(sum, v)| *sum += weight * v);
                }
                out[i].extend(sum); // heads side by side, at last [n_seq, n_embd]
            }
        }
        self.attn_c_proj.forward(&out) // [n_seq, n_embd] -> [n_seq, n_embd]
    }

    /// Computes the feed-forward layer: `[n_seq, n_embd] -> [n_seq, n_embd]`.
    fn mlp(&self, x: &Matrix) -> Matrix {
        let a = self.c_fc.forward(x); // [n_seq, n_embd] -> [n_seq, n_inner]
        let a: Matrix = a
            .iter()
            .map(|row| row.iter().map(|&x| gelu(x)).collect())
            .collect();
        self.mlp_c_proj.forward(&a) // [n_seq, n_inner] -> [n_seq, n_embd]
    }
}

impl LayerNorm {
    /// Normalizes each row: `[n_seq, n] -> [n_seq, n]`.
    fn forward(&self, x: &Matrix) -> Matrix {
        let normalize = |row: &Row| {
            let n = row.len() as f64;
            let mean = row.iter().sum::<f64>() / n;
            let variance = row.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / n;
            let scaled = row.iter().zip(&self.g).zip(&self.b);
            scaled
                .map(|((x, g), b)| g * (x - mean) / (variance + self.eps).sqrt() + b)
                .collect()
        };
        x.iter().map(normalize).collect()
    }
}

impl Linear {
    /// Multiplies by the weights and adds the bias: `[n_seq, n_in] -> [n_seq, n_out]`.
    fn forward(&self, x: &Matrix) -> Matrix {
        let project = |row: &Row| {
            let mut y = self.b.clone(); // [n_out]
            for (x, w) in row.iter().zip(&self.w) {
                y.iter_mut().zip(w).for_each(|(y, w)| *y += x * w);
            }
            y
        };
        x.iter().map(project).collect()
    }
}

fn gelu(x: f64) -> f64 {
    0.5 * x * (1.0 + ((2.0 / std::f64::consts::PI).sqrt() * (x + 0.044_715 * x.powi(3))).tanh())
}

fn softmax(x: &[f64]) -> Row {
    let max = x.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let exp: Row = x.iter().map(|x| (x - max).exp()).collect();
    let sum: f64 = exp.iter().sum();
    exp.iter().map(|e| e / sum).collect()
}

fn log_softmax(logits: &[f64], id: u32) -> f64 {
    softmax(logits)[id as usize].ln()
}

fn argmax(x: &[f64]) -> u32 {
    (0..x.len())
        .rev()
        .max_by(|&a, &b| x[a].total_cmp(&x[b]))
        .unwrap() as u32
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

fn add(a: &[f64], b: &[f64]) -> Row {
    a.iter().zip(b).map(|(a, b)| a + b).collect()
}

fn add_rows(a: &Matrix, b: &Matrix) -> Matrix {
    a.iter().zip(b).map(|(a, b)| add(a, b)).collect()
}

/// Reading the checkpoint.
impl Gpt2 {
    pub fn load(files: &ModelFiles) -> Self {
        let checkpoint = &files.checkpoint;
        let ModelConfig::Gpt2(config) = &files.config else {
            panic!("not a GPT-2")
        };
        let read = Reader { checkpoint, config };
        let n = config.n_embd;
        let wide = |values: Vec<f32>| values.into_iter().map(f64::from).collect::<Row>();
        let lm_head = wide(checkpoint.lm_head(&files.config).expect("lm_head").to_f32());
        Self {
            n_head: config.n_head,
            wte: read.matrix("wte.weight", config.vocab_size, n),
            wpe: read.matrix("wpe.weight", config.n_positions, n),
            lm_head: lm_head.chunks(n).map(<[f64]>::to_vec).collect(),
            blocks: (0..config.n_layer)
                .map(|i| read.block(&format!("h.{i}")))
                .collect(),
            ln_f: read.layer_norm("ln_f"),
        }
    }
}

struct Reader<'a> {
    checkpoint: &'a Checkpoint,
    config: &'a Gpt2Config,
}

impl Reader<'_> {
    fn row(&self, name: &str, shape: &[usize]) -> Row {
        let tensor = self.checkpoint.tensor(name, shape).expect("a tensor");
        tensor.to_f32().into_iter().map(f64::from).collect()
    }

    fn matrix(&self, name: &str, rows: usize, columns: usize) -> Matrix {
        let values = self.row(name, &[rows, columns]);
        values.chunks(columns).map(<[f64]>::to_vec).collect()
    }

    fn linear(&self, name: &str, n_in: usize, n_out: usize) -> Linear {
        Linear {
            w: self.matrix(&format!("{name}.weight"), n_in, n_out),
            b: self.row(&format!("{name}.bias"), &[n_out]),
        }
    }

    fn layer_norm(&self, name: &str) -> LayerNorm {
        LayerNorm {
            g: self.row(&format!("{name}.weight"), &[self.config.n_embd]),
            b: self.row(&format!("{name}.bias"), &[self.config.n_embd]),
            eps: self.config.layer_norm_epsilon,
        }
    }

    fn block(&self, h: &str) -> Block {
        let (n, inner) = (self.config.n_embd, self.config.n_inner);
        Block {
            ln_1: self.layer_norm(&format!("{h}.ln_1")),
            c_attn: self.linear(&format!("{h}.attn.c_attn"), n, 3 * n),
            attn_c_proj: self.linear(&format!("{h}.attn.c_proj"), n, n),
            ln_2: self.layer_norm(&format!("{h}.ln_2")),
            c_fc: self.linear(&format!("{h}.mlp.c_fc"), n, inner),
            mlp_c_proj: self.linear(&format!("{h}.mlp.c_proj"), inner, n),
        }
    }
}
