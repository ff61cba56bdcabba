//! The tables of a trace. Numbers of layers, heads, positions and dimensions count from 0.

/// The tables of the model, the stages of the pass, and sampling.
pub(super) const PASS: &str = "
CREATE TABLE model (
    name TEXT, architecture TEXT, layers INTEGER, heads INTEGER, head_width INTEGER, hidden_width INTEGER,
    inner_width INTEGER, vocab_size INTEGER, context_length INTEGER, layer_norm_epsilon REAL,
    dtype TEXT, kv_dtype TEXT, fingerprint TEXT, skald TEXT
);
CREATE TABLE vocabulary (id INTEGER PRIMARY KEY, text TEXT);
CREATE TABLE tokens (position INTEGER PRIMARY KEY, id INTEGER, text TEXT, bytes BLOB);
CREATE TABLE merges (
    position INTEGER, step INTEGER, left_part TEXT, right_part TEXT, merge_rank INTEGER,
    PRIMARY KEY (position, step)
) WITHOUT ROWID;
CREATE TABLE embeddings (
    position INTEGER, dimension INTEGER, token REAL, position_value REAL, sum REAL,
    PRIMARY KEY (position, dimension)
) WITHOUT ROWID;
-- stage `input`: what a layer reads; `attended`: after its attention was added.
-- `input` of the layer after the last is what the final norm reads.
CREATE TABLE residual (
    layer INTEGER, stage TEXT, position INTEGER, dimension INTEGER, value REAL,
    PRIMARY KEY (layer, stage, position, dimension)
) WITHOUT ROWID;
-- norm: ln_1, ln_2, and ln_f for the layer after the last.
CREATE TABLE normalized (
    layer INTEGER, norm TEXT, position INTEGER, dimension INTEGER, value REAL,
    PRIMARY KEY (layer, norm, position, dimension)
) WITHOUT ROWID;
CREATE TABLE heads (
    layer INTEGER, head INTEGER, position INTEGER, dimension INTEGER, query REAL, key REAL, value REAL,
    PRIMARY KEY (layer, head, position, dimension)
) WITHOUT ROWID;
-- query and key are positions.
CREATE TABLE attention (
    layer INTEGER, head INTEGER, query INTEGER, key INTEGER, score REAL, weight REAL,
    PRIMARY KEY (layer, head, query, key)
) WITHOUT ROWID;
CREATE TABLE mixed (
    layer INTEGER, head INTEGER, position INTEGER, dimension INTEGER, value REAL,
    PRIMARY KEY (layer, head, position, dimension)
) WITHOUT ROWID;
CREATE TABLE mlp (
    layer INTEGER, position INTEGER, neuron INTEGER, activation REAL,
    PRIMARY KEY (layer, position, neuron)
) WITHOUT ROWID;
CREATE TABLE logits (position INTEGER, id INTEGER, logit REAL, PRIMARY KEY (position, id)) WITHOUT ROWID;
CREATE TABLE settings (
    temperature REAL, top_k INTEGER, top_p REAL, min_p REAL, typical_p REAL, repetition_penalty REAL, seed TEXT
);
CREATE TABLE sampling (step INTEGER PRIMARY KEY, parameter TEXT, changed INTEGER, remaining INTEGER, removed REAL);
CREATE TABLE draw (random REAL, token INTEGER, text TEXT, probability REAL);
-- What attention and the feed-forward network of each layer add to the residual stream.
CREATE VIEW attention_writes AS
    SELECT a.layer, a.position, a.dimension, a.value - b.value AS value
    FROM residual a JOIN residual b USING (layer, position, dimension)
    WHERE a.stage = 'attended' AND b.stage = 'input';
CREATE VIEW mlp_writes AS
    SELECT b.layer, b.position, b.dimension, a.value - b.value AS value
    FROM residual b JOIN residual a ON a.layer = b.layer + 1 AND a.stage = 'input'
        AND a.position = b.position AND a.dimension = b.dimension
    WHERE b.stage = 'attended';
";

/// The weights of GPT-2.
pub(super) const WEIGHTS: &str = "
CREATE TABLE wte (token INTEGER, dimension INTEGER, weight REAL, PRIMARY KEY (token, dimension)) WITHOUT ROWID;
CREATE TABLE wpe (position INTEGER, dimension INTEGER, weight REAL, PRIMARY KEY (position, dimension)) WITHOUT ROWID;
CREATE TABLE layer_norms (
    layer INTEGER, norm TEXT, dimension INTEGER, weight REAL, bias REAL,
    PRIMARY KEY (layer, norm, dimension)
) WITHOUT ROWID;
-- matrix: attn.c_attn, attn.c_proj, mlp.c_fc, mlp.c_proj
CREATE TABLE matrices (matrix INTEGER PRIMARY KEY, layer INTEGER, name TEXT, UNIQUE (layer, name));
CREATE TABLE weights (
    matrix INTEGER, output INTEGER, input INTEGER, weight REAL,
    PRIMARY KEY (matrix, output, input)
) WITHOUT ROWID;
CREATE TABLE biases (matrix INTEGER, output INTEGER, bias REAL, PRIMARY KEY (matrix, output)) WITHOUT ROWID;
";
