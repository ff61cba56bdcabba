//! The files of a model in the Hugging Face layout, and the alternatives among them.

use super::shards::StoredWeights;

/// A directory or repository lacks a file that a model needs.
#[derive(Debug, thiserror::Error)]
#[error("{place} has no {missing}{hint}")]
pub struct IncompleteModel {
    /// The directory or repository.
    pub place: String,
    /// The file or files.
    pub missing: &'static str,
    /// What was found instead and what to do; may be empty.
    pub hint: String,
}

pub(super) const CONFIG: &str = "config.json";
pub(super) const GENERATION_CONFIG: &str = "generation_config.json";
pub(super) const TOKENIZER: &str = "tokenizer.json";
pub(super) const TOKENIZER_CONFIG: &str = "tokenizer_config.json";
pub(super) const CHAT_TEMPLATE: &str = "chat_template.jinja";
pub(super) const VOCAB: &str = "vocab.json";
pub(super) const MERGES: &str = "merges.txt";
pub(super) const VOCAB_TEXT: &str = "vocab.txt";
/// The names of SentencePiece's models.
const SENTENCE_PIECE: [&str; 3] = ["spiece.model", "tokenizer.model", "sentencepiece.bpe.model"];
pub(super) const ADDED_TOKENS: &str = "added_tokens.json";
pub(super) const SPECIAL_TOKENS_MAP: &str = "special_tokens_map.json";

/// Returns whether a file is one of those with weights in the Hugging Face layout.
pub(super) fn has_weights(file: &str) -> bool {
    StoredWeights::find(|wanted| wanted == file).is_some()
}

/// Weights in other frameworks' formats, named in the error if no supported weights are found.
const FOREIGN_WEIGHTS: [&str; 4] = [
    "tf_model.h5",
    "flax_model.msgpack",
    "rust_model.ot",
    "model.ckpt.index",
];

/// The ways a tokenizer is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum TokenizerFiles {
    /// `tokenizer.json`.
    Json,
    /// `vocab.json` and `merges.txt`.
    VocabAndMerges,
    /// `vocab.txt` of a `BertTokenizer`.
    VocabText,
    /// A model of SentencePiece, in this file.
    SentencePiece(&'static str),
}

/// The alternatives that a directory or repository has.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Layout {
    pub(super) tokenizer: TokenizerFiles,
    pub(super) weights: StoredWeights,
}

impl Layout {
    /// Looks for a complete model in `place`, its name in messages; `present` returns whether a
    /// file exists.
    pub(super) fn find(
        place: &str,
        present: impl Fn(&str) -> bool,
    ) -> Result<Self, IncompleteModel> {
        let lacks = |missing, hint| {
            Err(IncompleteModel {
                place: place.to_owned(),
                missing,
                hint,
            })
        };
        if !present(CONFIG) {
            return lacks(CONFIG, String::new());
        }
        let tokenizer = if present(TOKENIZER) {
            TokenizerFiles::Json
        } else if present(VOCAB) && present(MERGES) {
            TokenizerFiles::VocabAndMerges
        } else if let Some(file) = SENTENCE_PIECE.into_iter().find(|file| present(file)) {
            TokenizerFiles::SentencePiece(file)
        } else if present(VOCAB_TEXT) {
            TokenizerFiles::VocabText
        } else {
            return lacks(
                "tokenizer.json, vocab.json with merges.txt, spiece.model, tokenizer.model or vocab.txt",
                String::new(),
            );
        };
        let Some(weights) = StoredWeights::find(&present) else {
            let foreign = FOREIGN_WEIGHTS.into_iter().find(|file| present(file));
            let hint = foreign.map(|file| {
                format!(
                    ", only {file}, which is not read: convert it with `save_pretrained(..., \
                     safe_serialization=True)` of the Python package transformers"
                )
            });
            return lacks("model.safetensors", hint.unwrap_or_default());
        };
        Ok(Self { tokenizer, weights })
    }

    /// Returns all files to fetch, except the shards that an index names; `present` as in
    /// [`find`](Self::find).
    pub(super) fn files(&self, present: impl Fn(&str) -> bool) -> Vec<&'static str> {
        let tokenizer = match self.tokenizer {
            TokenizerFiles::Json => vec![TOKENIZER],
            TokenizerFiles::VocabAndMerges => vec![VOCAB, MERGES],
            TokenizerFiles::VocabText => vec![VOCAB_TEXT],
            TokenizerFiles::SentencePiece(file) => vec![file],
        };
        let mut optional = vec![GENERATION_CONFIG, TOKENIZER_CONFIG, CHAT_TEMPLATE];
        if self.tokenizer != TokenizerFiles::Json {
            optional.extend([ADDED_TOKENS, SPECIAL_TOKENS_MAP]);
        }
        let mut files = vec![CONFIG];
        files.extend(optional.into_iter().filter(|file| present(file)));
        files.extend(tokenizer);
        files.push(self.weights.file);
        files
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_needed_of_a_repository_is_fetched() {
        let repository = [
            "chat_template.jinja",
            "config.json",
            "merges.txt",
            "model.safetensors",
            "pytorch_model.bin",
            "tf_model.h5",
            "tokenizer.json",
            "tokenizer_config.json",
            "vocab.json",
        ];
        let present = |file: &str| repository.contains(&file);
        let layout = Layout::find("gpt2", present).unwrap();
        let files = [
            "config.json",
            "tokenizer_config.json",
            "chat_template.jinja",
            "tokenizer.json",
            "model.safetensors",
        ];
        assert_eq!(layout.files(present), files);
    }

    #[test]
    fn pytorch_weights_are_taken_if_there_are_no_others() {
        let mut repository = vec![
            "config.json",
            "pytorch_model.bin.index.json",
            "tokenizer.json",
        ];
        let weights = |repository: &[&str]| {
            let layout = Layout::find("old", |file| repository.contains(&file)).unwrap();
            layout.weights.file
        };
        for better in [
            "pytorch_model.bin",
            "model.safetensors.index.json",
            "model.safetensors",
        ] {
            assert!(weights(&repository) != better);
            repository.push(better);
            assert_eq!(weights(&repository), better);
        }
    }

    #[test]
    fn weights_of_other_frameworks_are_refused_with_a_way_out() {
        let repository = ["config.json", "vocab.json", "merges.txt", "tf_model.h5"];
        let error = Layout::find("old/model", |file| repository.contains(&file)).unwrap_err();
        let error = error.to_string();
        assert!(error.starts_with("old/model has no model.safetensors, only tf_model.h5"));
        assert!(error.contains("save_pretrained"), "{error}");
    }
}
