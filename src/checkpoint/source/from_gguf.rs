//! Opens a model in GGUF as the same [`ModelFiles`] that a directory in the Hugging Face layout gives.

use std::path::Path;

use super::{ModelFiles, SourceError, check_vocabulary};
use crate::checkpoint::{Checkpoint, Gguf, TokenizerConfig};
use crate::text::Tokenizer;

/// Returns the parts of a model whose (first) file is `path`; `name` is the name of the model.
///
/// # Errors
/// [`SourceError`] with the file, and the faulty key or tensor.
pub(super) fn open(name: &str, path: &Path) -> Result<ModelFiles, SourceError> {
    let gguf = Gguf::open(path)?;
    let file = gguf.file().to_owned();
    let config = gguf.config()?;
    let generation_config = gguf.generation_config()?;
    let chat_template = gguf.chat_template()?;
    let vocabulary = gguf.vocabulary()?;
    let tokenizer = Tokenizer::from_arrays(&file, vocabulary);
    let tokenizer = tokenizer.map_err(|source| SourceError::Tokenizer {
        file: file.clone(),
        source,
    })?;
    check_vocabulary(&file, &tokenizer, file.clone(), &config)?;
    Ok(ModelFiles {
        name: name.to_owned(),
        checkpoint: Checkpoint::from_gguf(gguf, &config)?,
        config,
        generation_config,
        tokenizer,
        // The tokenizer knows the tokens that begin and end a text.
        tokenizer_config: TokenizerConfig::default(),
        chat_template,
    })
}
