//! Tokenizers in the files of SentencePiece: `spiece.model`, `tokenizer.model`.
//!
//! A unigram model becomes a `tokenizer.json`, by the same conversion that transformers makes
//! (`convert_slow_tokenizer.py`, `SpmConverter`); a byte-pair model becomes the arrays that GGUF files have. What neither
//! can express exactly is refused.
//!
//! Format: `sentencepiece_model.proto` of <https://github.com/google/sentencepiece>.

use std::cmp::Reverse;
use std::collections::HashMap;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use prost::Message;
use serde_json::{Map, Value, json};

use super::tokenizer_config::{SpecialToken, SpecialTokensMap, TokenizerConfig};
use super::tokenizer_files::{CONVERT, added_token};
use crate::text::{Tokenizer, VocabularyArrays};

const UNIGRAM: i32 = 1;
const BPE: i32 = 2;
/// Types of pieces, numbered as in GGUF.
const UNKNOWN: i32 = 2;
const CONTROL: i32 = 3;
const USER_DEFINED: i32 = 4;

#[derive(Clone, PartialEq, Message)]
struct Model {
    #[prost(message, repeated, tag = "1")]
    pieces: Vec<Piece>,
    #[prost(message, optional, tag = "2")]
    trainer: Option<Trainer>,
    #[prost(message, optional, tag = "3")]
    normalizer: Option<Normalizer>,
}

#[derive(Clone, PartialEq, Message)]
struct Piece {
    #[prost(string, optional, tag = "1")]
    text: Option<String>,
    #[prost(float, optional, tag = "2")]
    score: Option<f32>,
    #[prost(int32, optional, tag = "3", default = "1")]
    kind: Option<i32>,
}

#[derive(Clone, PartialEq, Message)]
struct Trainer {
    #[prost(int32, optional, tag = "3", default = "1")]
    model_type: Option<i32>,
    #[prost(bool, optional, tag = "35")]
    byte_fallback: Option<bool>,
    #[prost(int32, optional, tag = "40")]
    unk_id: Option<i32>,
    #[prost(int32, optional, tag = "41", default = "1")]
    bos_id: Option<i32>,
    #[prost(int32, optional, tag = "42", default = "2")]
    eos_id: Option<i32>,
}

#[derive(Clone, PartialEq, Message)]
struct Normalizer {
    #[prost(bytes = "vec", optional, tag = "2")]
    charsmap: Option<Vec<u8>>,
    #[prost(bool, optional, tag = "3", default = "true")]
    add_dummy_prefix: Option<bool>,
    #[prost(bool, optional, tag = "4", default = "true")]
    remove_extra_whitespaces: Option<bool>,
}

/// Reads a tokenizer; `file` is its name in messages.
///
/// # Errors
/// Why it can't be read, and what would help.
pub(super) fn tokenizer(
    file: &str,
    bytes: &[u8],
    config: &TokenizerConfig,
    map: &SpecialTokensMap,
) -> Result<Tokenizer, String> {
    let model = Model::decode(bytes)
        .map_err(|error| format!("it is not a model of SentencePiece: {error}"))?;
    if model.pieces.is_empty() {
        return Err("it has no pieces".to_owned());
    }
    let trainer = model.trainer.clone().unwrap_or_default();
    let read = |json: Value| {
        let tokenizer = Tokenizer::from_json(json.to_string().as_bytes());
        tokenizer.map_err(|error| error.to_string())
    };
    let is_sw3 = config.tokenizer_class() == Some("GPTSw3Tokenizer");
    match trainer.model_type() {
        BPE if is_sw3 => read(gpt_sw3(&model, &trainer, config, map)?),
        UNIGRAM if !is_sw3 => read(unigram(&model, &trainer, config, map)),
        BPE => {
            let arrays = byte_pairs(&model, &trainer, config)?;
            Tokenizer::from_arrays(file, arrays).map_err(|error| error.to_string())
        }
        UNIGRAM => {
            Err("a GPTSw3Tokenizer must be of model type bpe (2), and it is unigram (1)".to_owned())
        }
        other => Err(format!(
            "it is of model type {other}; only unigram (1) and bpe (2) can be read"
        )),
    }
}

/// Returns the special tokens of a model as entries of a `tokenizer.json`: its own, and those that the files beside
/// it name; with `user_defined` also its symbols.
fn added_tokens(
    pieces: &[Piece],
    user_defined: bool,
    config: &TokenizerConfig,
    map: &SpecialTokensMap,
) -> Vec<Value> {
    let named = [
        SpecialToken::Unknown,
        SpecialToken::Separator,
        SpecialToken::Padding,
        SpecialToken::Classification,
        SpecialToken::Mask,
    ];
    let named = named.iter().filter_map(|token| token.text(config, map));
    let ends = [config.bos_token(), config.eos_token()];
    let named: Vec<&str> = named.chain(ends.into_iter().flatten().flatten()).collect();
    let added = pieces.iter().enumerate().filter_map(|(id, piece)| {
        let is_special = named.contains(&piece.text()) || matches!(piece.kind(), UNKNOWN | CONTROL);
        let is_symbol = user_defined && piece.kind() == USER_DEFINED;
        (is_special || is_symbol).then(|| added_token(id, piece.text(), is_special))
    });
    added.collect()
}

/// Returns a unigram model as the content of a `tokenizer.json`.
fn unigram(
    model: &Model,
    trainer: &Trainer,
    config: &TokenizerConfig,
    map: &SpecialTokensMap,
) -> Value {
    let pieces = &model.pieces;
    let normalizer = model.normalizer.clone().unwrap_or_default();
    let mut steps = Vec::new();
    // T5Tokenizer forgets it, but it is how rinna's models were trained.
    if config.do_lower_case == Some(true) {
        steps.push(json!({"type": "Lowercase"}));
    }
    if let Some(charsmap) = Some(normalizer.charsmap()).filter(|charsmap| !charsmap.is_empty()) {
        steps.push(
            json!({"type": "Precompiled", "precompiled_charsmap": STANDARD.encode(charsmap)}),
        );
    }
    if normalizer.remove_extra_whitespaces() {
        steps.push(json!({"type": "Strip", "strip_left": false, "strip_right": true}));
        steps
            .push(json!({"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": "\u{2581}"}));
    }
    let space = json!({
        "type": "Metaspace", "replacement": "\u{2581}", "split": true,
        "prepend_scheme": if normalizer.add_dummy_prefix() { "always" } else { "never" },
    });
    let vocab = pieces
        .iter()
        .map(|piece| json!([piece.text(), f64::from(piece.score())]));
    json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": added_tokens(pieces, true, config, map),
        "normalizer": if steps.is_empty() { Value::Null } else { json!({"type": "Sequence", "normalizers": steps}) },
        "pre_tokenizer": space,
        "post_processor": null,
        "decoder": if trainer.byte_fallback() {
            json!({"type": "Sequence", "decoders": [{"type": "ByteFallback"}, space]})
        } else {
            space.clone()
        },
        "model": {
            "type": "Unigram",
            "unk_id": trainer.unk_id(),
            "vocab": vocab.collect::<Vec<_>>(),
            "byte_fallback": trainer.byte_fallback(),
        },
    })
}

/// Returns a byte-pair model of GPT-SW3 as the content of a `tokenizer.json`. Its class cleans texts itself
/// (`tokenization_gpt_sw3.py` of transformers), and its symbols are found before any merge.
fn gpt_sw3(
    model: &Model,
    trainer: &Trainer,
    config: &TokenizerConfig,
    map: &SpecialTokensMap,
) -> Result<Value, String> {
    let pieces = &model.pieces;
    refuse_normalizer(model)?;
    let replace = |pattern: &str, content: &str| json!({"type": "Replace", "pattern": {"Regex": pattern}, "content": content});
    let mut symbols: Vec<&str> = pieces
        .iter()
        .filter(|piece| piece.kind() == USER_DEFINED)
        .map(Piece::text)
        .collect();
    symbols.sort_by_key(|symbol| Reverse(symbol.len()));
    let symbols: Vec<String> = symbols.into_iter().map(regex_syntax::escape).collect();
    let unknown = usize::try_from(trainer.unk_id()).ok();
    let unknown = unknown.and_then(|id| pieces.get(id));
    let vocab = pieces.iter().enumerate();
    let vocab = vocab.map(|(id, piece)| (piece.text().to_owned(), json!(id)));
    Ok(json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": added_tokens(pieces, false, config, map),
        "normalizer": {"type": "Sequence", "normalizers": [
            replace(r"[\x00-\x08\x0b-\x1f\x7f\u0080-\u00a0\u00ad\u200b]", ""),
            replace(r"[\u2002\u2003\u2005\u2008\u2009\u200a\u202f\u3000\ufffc]", " "),
            {"type": "NFC"},
            {"type": "Prepend", "prepend": "\u{2581}"},
            {"type": "Replace", "pattern": {"String": " "}, "content": "\u{2581}"},
        ]},
        "pre_tokenizer": if symbols.is_empty() { Value::Null } else { json!({
            "type": "Split", "pattern": {"Regex": symbols.join("|")}, "behavior": "Isolated", "invert": false,
        }) },
        "post_processor": null,
        "decoder": {"type": "Sequence", "decoders": [
            {"type": "Replace", "pattern": {"String": "\u{2581}"}, "content": " "},
            {"type": "ByteFallback"},
            {"type": "Fuse"},
            {"type": "Strip", "content": " ", "start": 1, "stop": 0},
        ]},
        "model": {
            "type": "BPE", "dropout": null, "unk_token": unknown.map(Piece::text),
            "continuing_subword_prefix": null, "end_of_word_suffix": null, "fuse_unk": true,
            "byte_fallback": trainer.byte_fallback(), "ignore_merges": true,
            "vocab": vocab.collect::<Map<_, _>>(), "merges": merges(pieces),
        },
    }))
}

/// Returns the merges that lead to the pieces of a byte-pair model, the one to the piece with the highest score
/// first (`SentencePieceExtractor` of transformers).
fn merges(pieces: &[Piece]) -> Vec<[&str; 2]> {
    let texts = pieces.iter().map(Piece::text);
    let ids: HashMap<&str, usize> = texts.zip(0..).collect();
    let mut merges = Vec::new();
    for piece in pieces {
        let text = piece.text();
        let splits = text.char_indices().skip(1).map(|(at, _)| text.split_at(at));
        let known = splits
            .filter_map(|(left, right)| Some(((*ids.get(left)?, *ids.get(right)?), [left, right])));
        let mut known: Vec<_> = known.collect();
        known.sort_unstable();
        merges.extend(known.into_iter().map(|(_, merge)| (piece.score(), merge)));
    }
    merges.sort_by(|(a, _), (b, _)| b.total_cmp(a));
    merges.into_iter().map(|(_, merge)| merge).collect()
}

/// Refuses a byte-pair model that normalizes texts.
fn refuse_normalizer(model: &Model) -> Result<(), String> {
    let normalizer = model.normalizer.clone().unwrap_or_default();
    let changes = [
        (
            !normalizer.charsmap().is_empty(),
            "characters are normalized",
        ),
        (
            normalizer.remove_extra_whitespaces(),
            "extra spaces are removed",
        ),
    ];
    match changes.into_iter().find(|(changes, _)| *changes) {
        None => Ok(()),
        Some((_, what)) => Err(format!(
            "it is a byte-pair model in which {what}, which can't be read from this file; {CONVERT}"
        )),
    }
}

/// Returns a byte-pair model as the arrays of a GGUF file.
fn byte_pairs(
    model: &Model,
    trainer: &Trainer,
    config: &TokenizerConfig,
) -> Result<VocabularyArrays, String> {
    refuse_normalizer(model)?;
    let normalizer = model.normalizer.clone().unwrap_or_default();
    let id = |id: i32| u32::try_from(id).ok();
    let is_llama = config
        .tokenizer_class()
        .is_none_or(|class| class.starts_with("Llama") || class.starts_with("CodeLlama"));
    Ok(VocabularyArrays {
        model: "llama".to_owned(),
        tokens: model
            .pieces
            .iter()
            .map(|piece| piece.text().to_owned())
            .collect(),
        scores: model.pieces.iter().map(Piece::score).collect(),
        token_types: model.pieces.iter().map(Piece::kind).collect(),
        add_bos: Some(is_llama),
        add_space_prefix: Some(normalizer.add_dummy_prefix()),
        bos: id(trainer.bos_id()),
        eos: id(trainer.eos_id()),
        unknown: id(trainer.unk_id()),
        ..VocabularyArrays::default()
    })
}
