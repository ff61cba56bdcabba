//! Where a model comes from (`--model`), and the files it is made of.
//!
//! A model is a directory in the Hugging Face layout, a repository of the hub in the same layout,
//! or the one that is part of the binary. Reading stops at the first thing that is wrong, with a
//! message that names the file; nothing is repaired or guessed here.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use super::config::{ConfigError, Gpt2Config};
use super::generation_config::GenerationConfig;
use super::hub::{self, HubError};
use super::weights::{Checkpoint, WeightsError};
use crate::text::{TextError, Tokenizer};

pub(super) const CONFIG: &str = "config.json";
pub(super) const GENERATION_CONFIG: &str = "generation_config.json";
const TOKENIZER: &str = "tokenizer.json";
const TOKENIZER_CONFIG: &str = "tokenizer_config.json";
const VOCAB: &str = "vocab.json";
const MERGES: &str = "merges.txt";
const WEIGHTS: &str = "model.safetensors";
pub(super) const WEIGHTS_INDEX: &str = "model.safetensors.index.json";

/// Weights in formats of other frameworks, to say so when there is nothing else.
const FOREIGN_WEIGHTS: [&str; 4] = [
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
    "tf_model.h5",
    "flax_model.msgpack",
];

/// Why a model can't be had.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// `--model` is not the name of anything.
    #[error(
        "`{text}` names no model: {reason}. A model is `builtin`, a directory, or a hub id such \
         as `openai-community/gpt2`, with `@revision` for another revision than main"
    )]
    Name {
        /// What was given.
        text: String,
        /// Why it is none of the three.
        reason: &'static str,
    },
    /// The binary was built without the built-in model.
    #[error(
        "this build has no built-in model (it was made without the feature `builtin-model`): name \
         a directory or a hub id"
    )]
    NoBuiltin,
    /// A directory or repository lacks a file that a model needs.
    #[error("{place} has no {missing}{hint}")]
    Lacks {
        /// The directory or repository.
        place: String,
        /// The file or files.
        missing: &'static str,
        /// What is there instead, and what to do; may be empty.
        hint: String,
    },
    /// A file can't be read.
    #[error("{file}: {source}")]
    Io {
        /// The file.
        file: String,
        /// The system's reason.
        source: std::io::Error,
    },
    /// `config.json` is not one of a model that can be served.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// `generation_config.json` can't be understood.
    #[error("{file}: {source}")]
    GenerationConfig {
        /// The file.
        file: String,
        /// What serde found.
        source: serde_json::Error,
    },
    /// The tokenizer can't be understood.
    #[error("{file}: {source}")]
    Tokenizer {
        /// The file.
        file: String,
        /// What is wrong with it.
        source: TextError,
    },
    /// The tokenizer has tokens that the model has no embeddings for.
    #[error(
        "{file} has token ids up to {last}, but `vocab_size` in {config} is {vocab_size}: the two \
         are not of one model"
    )]
    Vocabulary {
        /// The tokenizer's file.
        file: String,
        /// The tokenizer's last id.
        last: usize,
        /// The model's configuration file.
        config: String,
        /// Ids have to be below this.
        vocab_size: usize,
    },
    /// The weights can't be used.
    #[error(transparent)]
    Weights(#[from] WeightsError),
    /// The hub did not give the model.
    #[error(transparent)]
    Hub(#[from] HubError),
}

/// Where a model comes from; parsed from `--model`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ModelSource {
    /// The model that is part of the binary.
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

    /// A directory that exists wins over a hub id of the same name.
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
            return refuse("there is no such directory");
        }
        if !hub::is_id(id) {
            return refuse("it is neither a directory nor the form of a hub id");
        }
        if !revision.is_none_or(hub::is_revision) {
            return refuse("what follows the `@` is no revision");
        }
        Ok(Self::Hub {
            id: id.to_owned(),
            revision: revision.map(str::to_owned),
        })
    }
}

impl ModelSource {
    /// Brings the model here if need be and opens its files. Blocks, for as long as a download
    /// takes; `progress` draws a bar on standard error meanwhile.
    ///
    /// # Errors
    /// [`SourceError`] naming what is missing or wrong.
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

/// A directory's own name, also for `.` and `models/gpt2/`.
fn directory_name(path: &Path) -> String {
    let whole = path.canonicalize().unwrap_or_else(|_| path.to_owned());
    match whole.file_name() {
        Some(name) => name.to_string_lossy().into_owned(),
        None => whole.display().to_string(),
    }
}

/// A model's files: small ones read, weights mapped.
pub struct ModelFiles {
    /// What the model is called: its hub id, its directory's name, or `fairy-tales`.
    pub name: String,
    /// Its shape.
    pub config: Gpt2Config,
    /// Its defaults for sampling; empty where the model has none.
    pub generation_config: GenerationConfig,
    /// Its tokenizer, with no more tokens than the model has embeddings.
    pub tokenizer: Tokenizer,
    /// Its weights, not yet checked against `config`.
    pub checkpoint: Checkpoint,
}

impl ModelFiles {
    /// Opens a directory in the Hugging Face layout; `name` is what the model will be called.
    ///
    /// # Errors
    /// [`SourceError`] naming the file that is missing or wrong.
    pub fn open(name: &str, directory: &Path) -> Result<Self, SourceError> {
        let place = directory.display().to_string();
        if !directory.is_dir() {
            return Err(SourceError::Lacks {
                place,
                missing: CONFIG,
                hint: ": it is no directory".to_owned(),
            });
        }
        let present = |file: &str| directory.join(file).exists();
        let layout = Layout::find(&place, present)?;
        let path = directory.join(CONFIG);
        let config_file = path.display().to_string();
        let config = Gpt2Config::from_json(&config_file, &read(&path)?)?;
        let path = directory.join(GENERATION_CONFIG);
        let generation_config = if path.exists() {
            let bytes = read(&path)?;
            GenerationConfig::from_json(&bytes).map_err(|source| SourceError::GenerationConfig {
                file: path.display().to_string(),
                source,
            })?
        } else {
            GenerationConfig::default()
        };
        let path = directory.join(layout.tokenizer[0]);
        let tokenizer = if layout.tokenizer == VOCAB_AND_MERGES {
            Tokenizer::from_vocab_and_merges(&path, &directory.join(MERGES))
        } else {
            Tokenizer::from_json(&read(&path)?)
        };
        let file = path.display().to_string();
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
            checkpoint: Checkpoint::open(directory)?,
        })
    }

    /// The model that is part of the binary.
    #[cfg(feature = "builtin-model")]
    fn builtin() -> Result<Self, SourceError> {
        macro_rules! asset {
            ($file:literal) => {
                include_bytes!(concat!("../../assets/fairy-tales/", $file)).as_slice()
            };
        }
        let config_file = "builtin config.json";
        let config = Gpt2Config::from_json(config_file, asset!("config.json"))?;
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
                .map_err(|source| SourceError::GenerationConfig {
                    file: "builtin generation_config.json".to_owned(),
                    source,
                })?,
            tokenizer,
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

    /// The tokens that end a text: those `generation_config.json` names, else those of
    /// `config.json`, else the tokenizer's `<|endoftext|>`. Empty if none of them has any.
    #[must_use]
    pub fn end_of_text(&self) -> Vec<u32> {
        if let Some(ids) = self.generation_config.end_of_text() {
            return ids;
        }
        if !self.config.end_of_text.is_empty() {
            return self.config.end_of_text.clone();
        }
        self.tokenizer.end_of_text().into_iter().collect()
    }
}

fn read(path: &Path) -> Result<Vec<u8>, SourceError> {
    std::fs::read(path).map_err(|source| SourceError::Io {
        file: path.display().to_string(),
        source,
    })
}

/// A model may have more embeddings than its tokenizer has tokens (vocabularies are padded), but
/// not fewer.
fn check_vocabulary(
    file: &str,
    tokenizer: &Tokenizer,
    config_file: String,
    config: &Gpt2Config,
) -> Result<(), SourceError> {
    let tokens = tokenizer.vocab_size();
    if tokens <= config.vocab_size {
        return Ok(());
    }
    Err(SourceError::Vocabulary {
        file: file.to_owned(),
        last: tokens - 1,
        config: config_file,
        vocab_size: config.vocab_size,
    })
}

const VOCAB_AND_MERGES: &[&str] = &[VOCAB, MERGES];

/// Which of the layout's alternatives a directory or repository has.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Layout {
    /// `tokenizer.json`, or `vocab.json` and `merges.txt`.
    tokenizer: &'static [&'static str],
    /// `model.safetensors`, or the index of its shards.
    pub(super) weights: &'static str,
}

impl Layout {
    /// Looks for a whole model in `place` (named in messages); `present` tells whether a file is
    /// there.
    pub(super) fn find(place: &str, present: impl Fn(&str) -> bool) -> Result<Self, SourceError> {
        let lacks = |missing, hint| {
            Err(SourceError::Lacks {
                place: place.to_owned(),
                missing,
                hint,
            })
        };
        if !present(CONFIG) {
            return lacks(CONFIG, String::new());
        }
        let tokenizer: &[&str] = if present(TOKENIZER) {
            &[TOKENIZER]
        } else if present(VOCAB) && present(MERGES) {
            VOCAB_AND_MERGES
        } else {
            return lacks(
                "tokenizer.json, nor vocab.json with merges.txt",
                String::new(),
            );
        };
        let weights = if present(WEIGHTS) {
            WEIGHTS
        } else if present(WEIGHTS_INDEX) {
            WEIGHTS_INDEX
        } else {
            let foreign = FOREIGN_WEIGHTS.into_iter().find(|file| present(file));
            let hint = foreign.map(|file| {
                format!(
                    ", only {file}, which is not read: convert it with `save_pretrained(..., \
                     safe_serialization=True)` of the Python package transformers"
                )
            });
            return lacks(WEIGHTS, hint.unwrap_or_default());
        };
        Ok(Self { tokenizer, weights })
    }

    /// All files to fetch, but for the shards an index names; `present` as in
    /// [`find`](Self::find).
    pub(super) fn files(&self, present: impl Fn(&str) -> bool) -> Vec<&'static str> {
        let optional = [GENERATION_CONFIG, TOKENIZER_CONFIG];
        let optional = optional.into_iter().filter(|file| present(file));
        let tokenizer = self.tokenizer.iter().copied();
        [CONFIG]
            .into_iter()
            .chain(optional)
            .chain(tokenizer)
            .chain([self.weights])
            .collect()
    }
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
        // The tests' working directory is the package's, which has a directory `src`.
        assert_eq!(parse("src"), ModelSource::Directory("src".into()));
        for text in ["builtin", "gpt2", "org/name@v1.0", "src/model"] {
            assert_eq!(parse(text).to_string(), text);
        }
    }

    #[test]
    fn a_name_of_nothing_is_refused_with_the_reason() {
        for (text, reason) in [
            ("", "nor the form of a hub id"),
            ("./no-such-directory", "no such directory"),
            ("models/gpt2/fine-tuned", "no such directory"),
            ("Cargo.toml", "a file, not a directory"),
            ("my model", "nor the form of a hub id"),
            ("org/", "nor the form of a hub id"),
            ("gpt2@", "no revision"),
            ("gpt2@../../x", "no revision"),
        ] {
            let error = text.parse::<ModelSource>().unwrap_err().to_string();
            assert!(error.contains(reason), "{text}: {error}");
        }
    }

    #[test]
    fn only_what_is_needed_of_a_repository_is_fetched() {
        let repository = [
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
            "tokenizer.json",
            "model.safetensors",
        ];
        assert_eq!(layout.files(present), files);
    }

    #[test]
    fn pytorch_weights_alone_are_refused_with_a_way_out() {
        let repository = [
            "config.json",
            "vocab.json",
            "merges.txt",
            "pytorch_model.bin",
        ];
        let error = Layout::find("old/model", |file| repository.contains(&file)).unwrap_err();
        let error = error.to_string();
        assert!(error.starts_with("old/model has no model.safetensors, only pytorch_model.bin"));
        assert!(error.contains("save_pretrained"), "{error}");
    }
}
