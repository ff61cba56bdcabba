//! The weights of a checkpoint as tables, as they are stored there (widened to f32).

use anyhow::{Result, bail};
use rusqlite::{Connection, params};

use super::schema;
use crate::checkpoint::{Gpt2Config, ModelConfig, ModelFiles};

/// Returns the shape of a model whose weights can be written.
pub(super) fn config(files: &ModelFiles) -> Result<&Gpt2Config> {
    match &files.config {
        ModelConfig::Gpt2(config) => Ok(config),
        other => bail!(
            "`--weights` writes the weights of GPT-2 only, and the model is of the architecture {}; leave it out",
            other.architecture()
        ),
    }
}

/// Writes the weights of a model, one tensor at a time.
pub(super) fn write(db: &Connection, files: &ModelFiles) -> Result<()> {
    let config = config(files)?;
    db.execute_batch(schema::WEIGHTS)?;
    let Gpt2Config {
        n_embd,
        n_layer,
        n_inner,
        n_positions,
        ..
    } = *config;
    let lm_head = files.checkpoint.lm_head(&files.config)?.to_f32();
    let is_tied = files
        .checkpoint
        .separate_embedding(&files.config)?
        .is_none();
    let wte = if is_tied {
        lm_head
    } else {
        // The output projection is a matrix of its own, after those of the layers.
        let matrix = 4 * n_layer;
        name_matrix(db, matrix, n_layer, "lm_head")?;
        let mut row = db.prepare("INSERT INTO weights VALUES (?, ?, ?, ?)")?;
        for (n, weight) in lm_head.iter().enumerate() {
            row.execute(params![matrix, n / n_embd, n % n_embd, weight])?;
        }
        let shape = [config.vocab_size, n_embd];
        files.checkpoint.tensor("wte.weight", &shape)?.to_f32()
    };
    table(db, "INSERT INTO wte VALUES (?, ?, ?)", &wte, n_embd)?;
    let wpe = files
        .checkpoint
        .tensor("wpe.weight", &[n_positions, n_embd])?;
    table(
        db,
        "INSERT INTO wpe VALUES (?, ?, ?)",
        &wpe.to_f32(),
        n_embd,
    )?;
    for layer in 0..n_layer {
        for norm in ["ln_1", "ln_2"] {
            layer_norm(
                db,
                files,
                n_embd,
                (layer, norm),
                &format!("h.{layer}.{norm}"),
            )?;
        }
        let shapes = [
            ("attn.c_attn", n_embd, 3 * n_embd),
            ("attn.c_proj", n_embd, n_embd),
            ("mlp.c_fc", n_embd, n_inner),
            ("mlp.c_proj", n_inner, n_embd),
        ];
        for (n, (name, inputs, outputs)) in shapes.into_iter().enumerate() {
            let matrix = 4 * layer + n;
            name_matrix(db, matrix, layer, name)?;
            linear(
                db,
                files,
                matrix,
                &format!("h.{layer}.{name}"),
                inputs,
                outputs,
            )?;
        }
        files.checkpoint.release_pages();
    }
    layer_norm(db, files, n_embd, (n_layer, "ln_f"), "ln_f")
}

/// Writes a tensor `[rows, width]`, row by row.
fn table(db: &Connection, insert: &str, values: &[f32], width: usize) -> Result<()> {
    let mut row = db.prepare(insert)?;
    for (n, value) in values.iter().enumerate() {
        row.execute(params![n / width, n % width, value])?;
    }
    Ok(())
}

fn name_matrix(db: &Connection, matrix: usize, layer: usize, name: &str) -> Result<()> {
    db.execute(
        "INSERT INTO matrices VALUES (?, ?, ?)",
        params![matrix, layer, name],
    )?;
    Ok(())
}

fn layer_norm(
    db: &Connection,
    files: &ModelFiles,
    width: usize,
    (layer, norm): (usize, &str),
    name: &str,
) -> Result<()> {
    let read = |part: &str| {
        let name = format!("{name}.{part}");
        let tensor = files.checkpoint.tensor(&name, &[width]);
        tensor.map(|tensor| tensor.to_f32())
    };
    let mut row = db.prepare("INSERT INTO layer_norms VALUES (?, ?, ?, ?, ?)")?;
    for (dimension, (weight, bias)) in read("weight")?.iter().zip(read("bias")?).enumerate() {
        row.execute(params![layer, norm, dimension, weight, bias])?;
    }
    Ok(())
}

/// Writes a linear layer, `[inputs, outputs]` in the checkpoint (in GGUF `[outputs, inputs]`), in the order of
/// the tables' keys.
fn linear(
    db: &Connection,
    files: &ModelFiles,
    matrix: usize,
    name: &str,
    inputs: usize,
    outputs: usize,
) -> Result<()> {
    let is_out_in = files.checkpoint.matrices_out_in();
    let shape = if is_out_in {
        [outputs, inputs]
    } else {
        [inputs, outputs]
    };
    let weights = files.checkpoint.tensor(&format!("{name}.weight"), &shape)?;
    let weights = weights.to_f32();
    let mut row = db.prepare("INSERT INTO weights VALUES (?, ?, ?, ?)")?;
    for output in 0..outputs {
        let (first, step) = if is_out_in {
            (output * inputs, 1)
        } else {
            (output, outputs)
        };
        let column = weights.iter().skip(first).step_by(step).take(inputs);
        for (input, weight) in column.enumerate() {
            row.execute(params![matrix, output, input, weight])?;
        }
    }
    let biases = files
        .checkpoint
        .tensor(&format!("{name}.bias"), &[outputs])?;
    let mut row = db.prepare("INSERT INTO biases VALUES (?, ?, ?)")?;
    for (output, bias) in biases.to_f32().iter().enumerate() {
        row.execute(params![matrix, output, bias])?;
    }
    Ok(())
}
