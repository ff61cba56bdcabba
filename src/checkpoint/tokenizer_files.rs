//! The tokenizer of a directory in the Hugging Face layout, in whichever files it is.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::layout::{
    ADDED_TOKENS, MERGES, SPECIAL_TOKENS_MAP, TOKENIZER, TokenizerFiles, VOCAB, VOCAB_TEXT,
};
use super::source::{self, SourceError};
use super::tokenizer_config::{AddedTokensFile, SpecialTokensMap, TokenizerConfig};
use super::{sentence_piece, word_piece};
use crate::text::{TextError, Tokenizer};

/// How to turn a tokenizer that can't be read into one that can.
pub(super) const CONVERT: &str = "write a tokenizer.json with `AutoTokenizer.from_pretrained(..., use_fast=True).save_pretrained(...)`";

/// Returns an entry of the added tokens in a `tokenizer.json`.
pub(super) fn added_token(id: usize, content: &str, special: bool) -> Value {
    json!({
        "id": id, "content": content, "special": special, "normalized": false, "single_word": false,
        "lstrip": false, "rstrip": false,
    })
}

/// Reads a tokenizer and the files beside it; returns the path of its own.
///
/// # Errors
/// If a file can't be read, or one of those beside the tokenizer is not valid.
pub(super) fn open(
    directory: &Path,
    files: TokenizerFiles,
    config: &TokenizerConfig,
) -> Result<(PathBuf, Result<Tokenizer, TextError>), SourceError> {
    let at = |name: &str| directory.join(name);
    let with = |path: PathBuf, tokenizer: Result<Tokenizer, TextError>, settings| {
        let file = path.display().to_string();
        let tokenizer = tokenizer.and_then(|tokenizer| tokenizer.with_settings(&file, &settings));
        Ok((path, tokenizer))
    };
    if files == TokenizerFiles::Json {
        let path = at(TOKENIZER);
        let tokenizer = Tokenizer::from_json(&source::read(&path)?);
        return with(path, tokenizer, config.settings());
    }
    let map = source::read_json(&at(SPECIAL_TOKENS_MAP), SpecialTokensMap::from_json)?;
    let added = source::read_json(&at(ADDED_TOKENS), AddedTokensFile::from_json)?;
    let settings = config.settings_with(&map, &added);
    let converted = |path: PathBuf, tokenizer: Result<Tokenizer, String>| {
        let refuse = |reason| TextError::Load {
            file: path.display().to_string(),
            reason,
        };
        with(path.clone(), tokenizer.map_err(refuse), settings.clone())
    };
    match files {
        TokenizerFiles::Json | TokenizerFiles::VocabAndMerges => {
            let (path, merges) = (at(VOCAB), at(MERGES));
            source::check_regular(&path)?;
            source::check_regular(&merges)?;
            let tokenizer = Tokenizer::from_vocab_and_merges(&path, &merges);
            with(path, tokenizer, settings)
        }
        TokenizerFiles::VocabText => {
            let path = at(VOCAB_TEXT);
            let vocab = source::read(&path)?;
            let vocab = String::from_utf8_lossy(&vocab);
            converted(path, word_piece::tokenizer(&vocab, config, &map))
        }
        TokenizerFiles::SentencePiece(file) => {
            let path = at(file);
            let bytes = source::read(&path)?;
            let name = path.display().to_string();
            let read = sentence_piece::tokenizer(&name, &bytes, config, &map);
            converted(path, read)
        }
    }
}
