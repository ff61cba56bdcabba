//! The vocabulary of a `BertTokenizer`, `vocab.txt`, as a `tokenizer.json`: the same conversion that transformers
//! makes (`convert_slow_tokenizer.py`, `BertConverter`).

use serde_json::{Map, Value, json};

use super::tokenizer_config::{SpecialToken, SpecialTokensMap, TokenizerConfig};
use super::tokenizer_files::{CONVERT, added_token};
use crate::text::Tokenizer;

/// Reads a tokenizer.
///
/// # Errors
/// If the tokenizer is of another class, or a token that it needs is not in the vocabulary.
pub(super) fn tokenizer(
    vocab: &str,
    config: &TokenizerConfig,
    map: &SpecialTokensMap,
) -> Result<Tokenizer, String> {
    let class = config.tokenizer_class();
    if !class.is_none_or(|class| ["BertTokenizer", "BertTokenizerFast"].contains(&class)) {
        let class = class.unwrap_or_default();
        return Err(format!(
            "`tokenizer_class` in tokenizer_config.json is {class}; of those with a vocab.txt only BertTokenizer can be \
             read; {CONVERT}"
        ));
    }
    // The last of several lines with a token counts, as in a dictionary of Python.
    let lines = vocab.lines().enumerate();
    let ids: Map<String, Value> = lines
        .map(|(id, token)| (token.to_owned(), json!(id)))
        .collect();
    let named =
        |token: SpecialToken, default: &str| token.text(config, map).unwrap_or(default).to_owned();
    let unk = named(SpecialToken::Unknown, "[UNK]");
    let id = |token: &str| {
        let id = ids.get(token).and_then(Value::as_u64);
        let id = id.and_then(|id| usize::try_from(id).ok());
        id.ok_or_else(|| format!("the token `{token}` is not in the vocabulary"))
    };
    id(&unk)?;
    let cls = named(SpecialToken::Classification, "[CLS]");
    let sep = named(SpecialToken::Separator, "[SEP]");
    let (cls_id, sep_id) = (id(&cls)?, id(&sep)?);
    let others = [
        named(SpecialToken::Padding, "[PAD]"),
        named(SpecialToken::Mask, "[MASK]"),
    ];
    let special = [&unk, &cls, &sep].into_iter().chain(&others);
    let mut special: Vec<(usize, &String)> = special
        .filter_map(|token| Some((id(token).ok()?, token)))
        .collect();
    special.sort_unstable();
    special.dedup();
    let added = special
        .into_iter()
        .map(|(id, content)| added_token(id, content, true));
    let piece =
        |token: &str, type_id: u32| json!({"SpecialToken": {"id": token, "type_id": type_id}});
    let text = |name: &str, type_id: u32| json!({"Sequence": {"id": name, "type_id": type_id}});
    let file = json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": added.collect::<Vec<_>>(),
        "normalizer": {
            "type": "BertNormalizer",
            "clean_text": true,
            "handle_chinese_chars": config.tokenize_chinese_chars.unwrap_or(true),
            "strip_accents": config.strip_accents,
            "lowercase": config.do_lower_case.unwrap_or(true),
        },
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [piece(&cls, 0), text("A", 0), piece(&sep, 0)],
            "pair": [piece(&cls, 0), text("A", 0), piece(&sep, 0), text("B", 1), piece(&sep, 1)],
            "special_tokens": {
                &cls: {"id": &cls, "ids": [cls_id], "tokens": [&cls]},
                &sep: {"id": &sep, "ids": [sep_id], "tokens": [&sep]},
            },
        },
        "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": true},
        "model": {
            "type": "WordPiece",
            "unk_token": unk,
            "continuing_subword_prefix": "##",
            "max_input_chars_per_word": 100,
            "vocab": ids,
        },
    });
    Tokenizer::from_json(file.to_string().as_bytes()).map_err(|error| error.to_string())
}
