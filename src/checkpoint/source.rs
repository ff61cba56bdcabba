//! The source of a model (`--model`), and its files.
//!
//! A model is a directory in the Hugging Face layout, a repository of the hub in the same layout,
//! or the one built into the binary. Reading stops at the first fault, with a message that names
//! the file; nothing is repaired or guessed.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use super::config::{ConfigError, ModelConfig};
use super::generation_config::GenerationConfig;
use super::hub::{self, HubError};
use super::json::JsonError;
use super::layout::{
    ADDED_TOKENS, CHAT_TEMPLATE, CONFIG, GENERATION_CONFIG, IncompleteModel, Layout, MERGES,
    SPECIAL_TOKENS_MAP, TOKENIZER, TOKENIZER_CONFIG, TokenizerFiles, VOCAB,
};
use super::tokenizer_config::{AddedTokensFile, SpecialTokensMap, TokenizerConfig};
use super::weights::{Checkpoint, WeightsError};
use crate::regular_file;
use crate::text::template::{TemplateError, TemplateSource, TemplateTokens};
use crate::text::{ChatTemplate, TextError, Tokenizer};

/// Maximum size of a file other than weights, in bytes; tokenizers with large vocabularies take 40
/// MB.
const MAX_FILE_BYTES: u64 = 256 << 20;

/// Error of locating or opening a model.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// `--model` does not name a model.
    #[error(
        "`{text}` is not a model: {reason}. A model is `builtin`, a directory, or a hub id such \
         as `openai-community/gpt2`, with `@revision` for another revision than main"
    )]
    Name {
        /// The setting.
        text: String,
        /// Why it is not valid.
        reason: &'static str,
    },
    /// The binary was built without the built-in model.
    #[error(
        "this build has no built-in model (the feature `builtin-model` is off): set `model` to a \
         directory or a hub id"
    )]
    NoBuiltin,
    /// A directory lacks a file.
    #[error(transparent)]
    Incomplete(#[from] IncompleteModel),
    /// A file can't be read.
    #[error("{file}: {source}")]
    Io {
        /// The file.
        file: String,
        /// The system's reason.
        source: std::io::Error,
    },
    /// `config.json` describes a model that can't be served.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// `generation_config.json` or `tokenizer_config.json` is not valid.
    #[error("{file}: {source}")]
    Json {
        /// The file.
        file: String,
        /// serde's error, with the path to the field.
        source: JsonError,
    },
    /// The tokenizer's files are not valid.
    #[error("{file}: {source}")]
    Tokenizer {
        /// The file.
        file: String,
        /// What is wrong with it.
        source: TextError,
    },
    /// The tokenizer has tokens that the model has no embeddings for.
    #[error(
        "{file} has {more} more than the model: token ids go up to {last} (`{token}`), but `vocab_size` \
         in {config} is {vocab_size}. The files belong to different models, or tokens were added \
         without resizing the model's embeddings"
    )]
    Vocabulary {
        /// The tokenizer's file.
        file: String,
        /// Number of tokens without an embedding.
        more: String,
        /// The tokenizer's last id.
        last: usize,
        /// The text of the last token.
        token: String,
        /// The model's configuration file.
        config: String,
        /// Number of token ids of the model.
        vocab_size: usize,
    },
    /// The weights can't be used.
    #[error(transparent)]
    Weights(#[from] WeightsError),
    /// The model could not be fetched from the hub.
    #[error(transparent)]
    Hub(#[from] HubError),
}

/// The source of a model, parsed from `--model`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ModelSource {
    /// The model built into the binary.
    Builtin,
    /// A directory in the Hugging Face layout.
    Directory(PathBuf),
    /// A repository of the hub.
    Hub {
        /// `organization/name`, or `name` alone.
        id: String,
        /// A branch, tag or commit; the main branch if absent.
        revision: Option<String>,
    },
}

impl fmt::Display for ModelSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Builtin => f.write_str("builtin"),
            Self::Directory(path) => path.display().fmt(f),
            Self::Hub { id, revision: None } => f.write_str(id),
            Self::Hub {
                id,
                revision: Some(revision),
            } => write!(f, "{id}@{revision}"),
        }
    }
}

impl FromStr for ModelSource {
    type Err = SourceError;

    /// Parses a source. An existing directory takes precedence over a hub id of the same name.
    fn from_str(text: &str) -> Result<Self, SourceError> {
        if text == "builtin" {
            return Ok(Self::Builtin);
        }
        let path = Path::new(text);
        if path.is_dir() {
            return Ok(Self::Directory(path.to_owned()));
        }
        let refuse = |reason| {
            Err(SourceError::Name {
                text: text.to_owned(),
                reason,
            })
        };
        if path.exists() {
            return refuse("it is a file, not a directory");
        }
        let (id, revision) = match text.split_once('@') {
            Some((id, revision)) => (id, Some(revision)),
            None => (text, None),
        };
        if id.starts_with(['.', '/', '~']) || id.matches('/').count() > 1 || id.contains('\\') {
            return refuse("no such directory");
        }
        if !hub::is_id(id) {
            return refuse("it is neither a directory nor a valid hub id");
        }
        if !revision.is_none_or(hub::is_revision) {
            return refuse("the text after `@` is not a valid revision");
        }
        Ok(Self::Hub {
            id: id.to_owned(),
            revision: revision.map(str::to_owned),
        })
    }
}

impl ModelSource {
    /// Downloads the model if necessary and opens its files. Blocks until the download ends;
    /// `progress` shows a bar on standard error.
    ///
    /// # Errors
    /// [`SourceError`] with the missing or faulty file.
    pub fn fetch(&self, progress: bool) -> Result<ModelFiles, SourceError> {
        match self {
            Self::Builtin => ModelFiles::builtin(),
            Self::Directory(path) => ModelFiles::open(&directory_name(path), path),
            Self::Hub { id, revision } => {
                let snapshot = hub::pull(id, revision.as_deref(), progress)?;
                ModelFiles::open(id, &snapshot)
            }
        }
    }
}

/// Returns a directory's own name, also for `.` and `models/gpt2/`.
fn directory_name(path: &Path) -> String {
    let whole = path.canonicalize().unwrap_or_else(|_| path.to_owned());
    match whole.file_name() {
        Some(name) => name.to_string_lossy().into_owned(),
        None => whole.display().to_string(),
    }
}

/// The files of a model: weights are memory-mapped, all others read.
pub struct ModelFiles {
    /// Name of the model: its hub id, its directory's name, or `fairy-tales`.
    pub name: String,
    /// Its shape.
    pub config: ModelConfig,
    /// Its sampling defaults; empty if the model has none.
    pub generation_config: GenerationConfig,
    /// Its tokenizer, with at most as many tokens as the model has embeddings.
    pub tokenizer: Tokenizer,
    /// Its `tokenizer_config.json`; empty if the model has none.
    pub tokenizer_config: TokenizerConfig,
    /// Its own chat template, if it has one.
    pub chat_template: Option<TemplateSource>,
    /// Its weights, not yet checked against `config`.
    pub checkpoint: Checkpoint,
}

impl ModelFiles {
    /// Opens a directory in the Hugging Face layout; `name` is the name of the model.
    ///
    /// # Errors
    /// [`SourceError`] with the missing or faulty file.
    pub fn open(name: &str, directory: &Path) -> Result<Self, SourceError> {
        let place = directory.display().to_string();
        if !directory.is_dir() {
            let hint = ": it is not a directory".to_owned();
            return Err(SourceError::Incomplete(IncompleteModel {
                place,
                missing: CONFIG,
                hint,
            }));
        }
        let present = |file: &str| directory.join(file).exists();
        let layout = Layout::find(&place, present)?;
        let path = directory.join(CONFIG);
        let config_file = path.display().to_string();
        let config = ModelConfig::from_json(&config_file, &read(&path)?)?;
        let path = directory.join(GENERATION_CONFIG);
        let generation_config = read_json(&path, GenerationConfig::from_json)?;
        let path = directory.join(TOKENIZER_CONFIG);
        let tokenizer_config = read_json(&path, TokenizerConfig::from_json)?;
        let chat_template = chat_template(directory, &tokenizer_config)?;
        let (path, tokenizer, settings) = match layout.tokenizer {
            TokenizerFiles::Json => {
                let path = directory.join(TOKENIZER);
                let tokenizer = Tokenizer::from_json(&read(&path)?);
                (path, tokenizer, tokenizer_config.settings())
            }
            TokenizerFiles::VocabAndMerges => {
                let (path, merges) = (directory.join(VOCAB), directory.join(MERGES));
                check_regular(&path)?;
                check_regular(&merges)?;
                let tokenizer = Tokenizer::from_vocab_and_merges(&path, &merges);
                let map = read_json(
                    &directory.join(SPECIAL_TOKENS_MAP),
                    SpecialTokensMap::from_json,
                )?;
                let added = read_json(&directory.join(ADDED_TOKENS), AddedTokensFile::from_json)?;
                (
                    path,
                    tokenizer,
                    tokenizer_config.settings_with(&map, &added),
                )
            }
        };
        let file = path.display().to_string();
        let tokenizer = tokenizer.and_then(|tokenizer| tokenizer.with_settings(&file, &settings));
        let tokenizer = tokenizer.map_err(|source| SourceError::Tokenizer {
            file: file.clone(),
            source,
        })?;
        check_vocabulary(&file, &tokenizer, config_file, &config)?;
        Ok(Self {
            name: name.to_owned(),
            config,
            generation_config,
            tokenizer,
            tokenizer_config,
            chat_template,
            checkpoint: Checkpoint::open(directory)?,
        })
    }

    /// Returns the model built into the binary.
    #[cfg(feature = "builtin-model")]
    fn builtin() -> Result<Self, SourceError> {
        macro_rules! asset {
            ($file:literal) => {
                include_bytes!(concat!("../../assets/fairy-tales/", $file)).as_slice()
            };
        }
        let config_file = "builtin config.json";
        let config = ModelConfig::from_json(config_file, asset!("config.json"))?;
        let file = "builtin tokenizer.json";
        let tokenizer = Tokenizer::from_json(asset!("tokenizer.json")).map_err(|source| {
            SourceError::Tokenizer {
                file: file.to_owned(),
                source,
            }
        })?;
        check_vocabulary(file, &tokenizer, config_file.to_owned(), &config)?;
        Ok(Self {
            name: "fairy-tales".to_owned(),
            config,
            generation_config: GenerationConfig::from_json(asset!("generation_config.json"))
                .map_err(|source| SourceError::Json {
                    file: "builtin generation_config.json".to_owned(),
                    source,
                })?,
            tokenizer,
            tokenizer_config: TokenizerConfig::default(),
            chat_template: None,
            checkpoint: Checkpoint::embedded(
                "builtin model.safetensors",
                asset!("model.safetensors"),
            )?,
        })
    }

    #[cfg(not(feature = "builtin-model"))]
    fn builtin() -> Result<Self, SourceError> {
        Err(SourceError::NoBuiltin)
    }

    /// Returns the token ids that end a text: from `generation_config.json`, else `config.json`; the
    /// tokenizer's `eos_token`; and the token that ends an assistant's turn, if the model's own chat
    /// template writes it. If there are none, the tokenizer's `<|endoftext|>`; empty if none is set.
    #[must_use]
    pub fn end_of_text(&self) -> Vec<u32> {
        let configured = self.generation_config.end_of_text();
        let mut ids = configured.unwrap_or_else(|| self.config.end_of_text().to_vec());
        let template = self
            .chat_template
            .as_ref()
            .map(|template| template.text.as_str());
        let ends_turn = |id: &u32| {
            let name = self.tokenizer.token_name(*id).unwrap_or_default();
            template.is_some_and(|template| template.contains(&name))
        };
        let turns = self
            .tokenizer
            .ends_of_turn()
            .iter()
            .copied()
            .filter(ends_turn);
        for id in self.tokenizer.eos().into_iter().chain(turns) {
            if !ids.contains(&id) {
                ids.push(id);
            }
        }
        if ids.is_empty() {
            ids.extend(self.tokenizer.end_of_text());
        }
        ids
    }

    /// Returns the template that renders conversations: `given`, else the model's own, else the plain
    /// form.
    ///
    /// # Errors
    /// [`TemplateError::Syntax`] with file and line.
    pub fn chat(&self, given: Option<ChatTemplate>) -> Result<ChatTemplate, TemplateError> {
        let template = match (given, &self.chat_template) {
            (Some(given), _) => given,
            (None, Some(own)) => ChatTemplate::parse(own.clone())?,
            (None, None) => ChatTemplate::plain()?,
        };
        let tokenizer = &self.tokenizer;
        let (bos, eos) = match (tokenizer.named_bos(), tokenizer.eos()) {
            // GPT-2's files name neither.
            (None, None) => (tokenizer.end_of_text(), tokenizer.end_of_text()),
            named => named,
        };
        let text = |given, known: Option<u32>| match given {
            Some(given) => Option::<&str>::unwrap_or_default(given).to_owned(),
            None => known
                .and_then(|id| tokenizer.token_name(id))
                .unwrap_or_default(),
        };
        let tokens = TemplateTokens {
            bos: text(self.tokenizer_config.bos_token(), bos),
            eos: text(self.tokenizer_config.eos_token(), eos),
        };
        Ok(template.for_model(&self.tokenizer, tokens))
    }
}

/// Returns a model's own chat template: a separate file takes precedence over
/// `tokenizer_config.json`.
fn chat_template(
    directory: &Path,
    config: &TokenizerConfig,
) -> Result<Option<TemplateSource>, SourceError> {
    let path = directory.join(CHAT_TEMPLATE);
    if path.exists() {
        let origin = path.display().to_string();
        let text = String::from_utf8(read(&path)?).map_err(|error| SourceError::Io {
            file: origin.clone(),
            source: io::Error::new(io::ErrorKind::InvalidData, error),
        })?;
        return Ok(Some(TemplateSource { origin, text }));
    }
    Ok(config.chat_template().map(|template| TemplateSource {
        origin: directory.join(TOKENIZER_CONFIG).display().to_string(),
        text: template.to_owned(),
    }))
}

/// Parses an optional file.
fn read_json<T: Default>(
    path: &Path,
    parse: impl Fn(&[u8]) -> Result<T, JsonError>,
) -> Result<T, SourceError> {
    if !path.exists() {
        return Ok(T::default());
    }
    parse(&read(path)?).map_err(|source| SourceError::Json {
        file: path.display().to_string(),
        source,
    })
}

fn read(path: &Path) -> Result<Vec<u8>, SourceError> {
    regular_file::read(path, MAX_FILE_BYTES).map_err(|source| SourceError::Io {
        file: path.display().to_string(),
        source,
    })
}

/// Checks that a file can be read before a library opens it by path.
fn check_regular(path: &Path) -> Result<(), SourceError> {
    let opened = regular_file::open(path).map(drop);
    opened.map_err(|source| SourceError::Io {
        file: path.display().to_string(),
        source,
    })
}

/// Checks that the model has an embedding for every token. It may have more, since vocabularies are
/// padded.
fn check_vocabulary(
    file: &str,
    tokenizer: &Tokenizer,
    config_file: String,
    config: &ModelConfig,
) -> Result<(), SourceError> {
    let tokens = tokenizer.vocab_size();
    if tokens <= config.vocab_size() {
        return Ok(());
    }
    let more = match tokens - config.vocab_size() {
        1 => "1 token".to_owned(),
        more => format!("{more} tokens"),
    };
    let last = u32::try_from(tokens - 1).unwrap_or(u32::MAX);
    Err(SourceError::Vocabulary {
        file: file.to_owned(),
        more,
        token: tokenizer.token_name(last).unwrap_or_default(),
        last: tokens - 1,
        config: config_file,
        vocab_size: config.vocab_size(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hub(id: &str, revision: Option<&str>) -> ModelSource {
        ModelSource::Hub {
            id: id.to_owned(),
            revision: revision.map(str::to_owned),
        }
    }

    #[test]
    fn a_name_is_builtin_a_directory_or_a_hub_id() {
        let parse = |text: &str| text.parse::<ModelSource>().unwrap();
        assert_eq!(parse("builtin"), ModelSource::Builtin);
        assert_eq!(parse("gpt2"), hub("gpt2", None));
        assert_eq!(
            parse("openai-community/gpt2-xl"),
            hub("openai-community/gpt2-xl", None)
        );
        assert_eq!(parse("gpt2@refs/pr/3"), hub("gpt2", Some("refs/pr/3")));
        // Tests run in the package's directory, which contains `src`.
        assert_eq!(parse("src"), ModelSource::Directory("src".into()));
        for text in ["builtin", "gpt2", "org/name@v1.0", "src/model"] {
            assert_eq!(parse(text).to_string(), text);
        }
    }

    #[test]
    fn a_name_of_nothing_is_refused_with_the_reason() {
        for (text, reason) in [
            ("", "nor a valid hub id"),
            ("./no-such-directory", "no such directory"),
            ("models/gpt2/fine-tuned", "no such directory"),
            ("Cargo.toml", "a file, not a directory"),
            ("my model", "nor a valid hub id"),
            ("org/", "nor a valid hub id"),
            ("gpt2@", "not a valid revision"),
            ("gpt2@../../x", "not a valid revision"),
        ] {
            let error = text.parse::<ModelSource>().unwrap_err().to_string();
            assert!(error.contains(reason), "{text}: {error}");
        }
    }
}
