//! The source of a model (`--model`), and its files.
//!
//! A model is a directory in the Hugging Face layout or with one in GGUF, a GGUF file, a repository of the hub
//! with one of them, or the one built into the binary. Reading stops at the first fault, with a message that names
//! the file; nothing is repaired or guessed.

mod from_gguf;

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use super::config::{ConfigError, ModelConfig};
use super::generation_config::GenerationConfig;
use super::gguf::choice::{choose, has_only_gguf};
use super::gguf::{ChoiceError, GgufChoice, GgufConfigError, GgufError};
use super::hub::{self, HubError};
use super::json::JsonError;
use super::layout::{
    CHAT_TEMPLATE, CONFIG, GENERATION_CONFIG, IncompleteModel, Layout, TOKENIZER_CONFIG,
};
use super::tokenizer_config::TokenizerConfig;
use super::tokenizer_files;
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
        "`{text}` is not a model: {reason}. A model is `builtin`, a directory, a GGUF file, or a hub id such \
         as `openai-community/gpt2`, with `:Q4_K_M` for a quantization in GGUF, `/FILE.gguf` for a file, and \
         `@revision` for a revision other than main"
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
    /// A directory has several models in GGUF.
    #[error(transparent)]
    Choice(#[from] ChoiceError),
    /// A GGUF file is not valid.
    #[error(transparent)]
    Gguf(#[from] GgufError),
    /// A GGUF file describes a model that can't be served.
    #[error(transparent)]
    GgufConfig(#[from] GgufConfigError),
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
    Hub(HubError),
    /// The name may not be the intended one.
    #[error(
        "{error}. `{id}` is taken as a hub id because no directory has this name; the built-in model is \
         `builtin`"
    )]
    HubName {
        /// The name.
        id: String,
        /// The failure of the hub.
        error: Box<HubError>,
    },
}

/// The source of a model, parsed from `--model`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ModelSource {
    /// The model built into the binary.
    Builtin,
    /// A directory in the Hugging Face layout, or with a model in GGUF.
    Directory(PathBuf),
    /// A file in GGUF.
    File(PathBuf),
    /// A repository of the hub.
    Hub {
        /// `organization/name`, or `name` alone.
        id: String,
        /// A branch, tag or commit; the main branch if absent.
        revision: Option<String>,
        /// One of its models in GGUF.
        gguf: Option<GgufChoice>,
    },
}

impl fmt::Display for ModelSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Builtin => f.write_str("builtin"),
            Self::Directory(path) | Self::File(path) => path.display().fmt(f),
            Self::Hub { id, revision, gguf } => {
                f.write_str(id)?;
                if let Some(gguf) = gguf {
                    gguf.fmt(f)?;
                }
                revision
                    .as_ref()
                    .map_or(Ok(()), |revision| write!(f, "@{revision}"))
            }
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
            if path
                .extension()
                .is_some_and(|end| end.eq_ignore_ascii_case("gguf"))
            {
                return Ok(Self::File(path.to_owned()));
            }
            return refuse("it is a file, not a directory or a GGUF file");
        }
        let (name, revision) = match text.split_once('@') {
            Some((name, revision)) => (name, Some(revision)),
            None => (text, None),
        };
        let (id, gguf) = match GgufChoice::split(name) {
            Ok(split) => split,
            Err(reason) => return refuse(reason),
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
            gguf,
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
            Self::File(path) => ModelFiles::open(&file_name(path), path),
            Self::Hub { id, revision, gguf } => {
                let pulled = hub::pull(id, revision.as_deref(), gguf.as_ref(), progress);
                let pulled = pulled.map_err(|error| not_fetched(id, error))?;
                let name = gguf.as_ref().map(|gguf| format!("{id}{gguf}"));
                ModelFiles::open(name.as_ref().unwrap_or(id), &pulled)
            }
        }
    }
}

/// Returns the error of a failed download, with a hint if the name can be the cause.
fn not_fetched(id: &str, error: HubError) -> SourceError {
    match error {
        HubError::NoModel { .. } | HubError::Token { .. } | HubError::NoAnswer { .. } => {
            SourceError::HubName {
                id: id.to_owned(),
                error: Box::new(error),
            }
        }
        error => SourceError::Hub(error),
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

/// Returns a file's name without extension.
fn file_name(path: &Path) -> String {
    let name = path
        .file_stem()
        .map(|name| name.to_string_lossy().into_owned());
    name.unwrap_or_else(|| path.display().to_string())
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
    /// Opens a file in GGUF, a directory in the Hugging Face layout, or one with a model in GGUF; `name` is the
    /// name of the model.
    ///
    /// # Errors
    /// [`SourceError`] with the missing or faulty file.
    pub fn open(name: &str, path: &Path) -> Result<Self, SourceError> {
        if path.is_file() {
            return from_gguf::open(name, path);
        }
        match gguf_in(path)? {
            Some(file) => from_gguf::open(name, &path.join(file)),
            None => Self::open_hugging_face(name, path),
        }
    }

    /// Opens a directory in the Hugging Face layout.
    fn open_hugging_face(name: &str, directory: &Path) -> Result<Self, SourceError> {
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
        let (path, tokenizer) =
            tokenizer_files::open(directory, layout.tokenizer, &tokenizer_config)?;
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

/// Returns the (first) file of the model in GGUF that a directory has, if it has no other weights.
fn gguf_in(directory: &Path) -> Result<Option<String>, SourceError> {
    // A directory that can't be read is reported when its files are.
    let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
    let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
    let names: Vec<String> = names.collect();
    let files = names.iter().map(String::as_str);
    if !has_only_gguf(files.clone()) {
        return Ok(None);
    }
    let place = directory.display().to_string();
    let parts = choose(&place, &files, None, "give the path of one of them")?;
    Ok(parts.into_iter().next())
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
pub(super) fn read_json<T: Default>(
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

pub(super) fn read(path: &Path) -> Result<Vec<u8>, SourceError> {
    regular_file::read(path, MAX_FILE_BYTES).map_err(|source| SourceError::Io {
        file: path.display().to_string(),
        source,
    })
}

/// Checks that a file can be read before a library opens it by path.
pub(super) fn check_regular(path: &Path) -> Result<(), SourceError> {
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
            gguf: None,
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
        let gguf = "tests/fixtures/gemma/gguf/gemma-f32.gguf";
        assert_eq!(parse(gguf), ModelSource::File(gguf.into()));
        for text in [
            "builtin",
            "gpt2",
            "org/name@v1.0",
            "src/model",
            gguf,
            "org/name:Q4_K_M",
            "org/name:q8_0@v1.0",
            "org/name/sub/a.gguf@v1.0",
        ] {
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
            ("models/model.gguf", "no such file"),
            ("./models/x.gguf", "no such directory"),
            ("org/name:Q4.K", "not a quantization"),
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
