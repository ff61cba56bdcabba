//! From settings to a running engine: the only start-up of `serve`, `generate`, the tests and the fuzzers.

use std::io::{self, IsTerminal};
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Instant, SystemTime};

use bytesize::ByteSize;
use tracing::{info, warn};

pub mod adapters;

use self::adapters::{Adapters, LoadAdapterError};
use crate::backend::Backend;
use crate::backend::candle::CandleBackend;
use crate::backend::cpu::CpuBackend;
use crate::checkpoint::source::SourceError;
use crate::checkpoint::{GenerationConfig, ModelFiles, ModelSource};
use crate::config::{AdapterSetting, Device, Dtype, GenerationDefaults, KvPrecision};
use crate::engine::kv_memory::KvLayout;
use crate::engine::{self, EngineConfig, EngineError, EngineHandle, blocks::BLOCK_SIZE};
use crate::kernels::kv::KvDtype;
use crate::kernels::linear::WeightDtype;
use crate::kernels::stored::StoredType;

use crate::model::trial::{self, TrialError};
use crate::model::{LoadError, Model, ModelSpec};
use crate::request::{GenerateRequest, Limits};
use crate::resources::{self, Sourced, WORKING_MEMORY};
use crate::session::snapshots::{SnapshotConfig, Snapshots};
use crate::session::{Fingerprint, SessionConfig, SessionError, Sessions, tokenizer_fingerprint};
use crate::text::template::{TemplateError, TemplateSource};
use crate::text::{ChatTemplate, GrammarCompiler, Tokenizer};

/// Settings of the model, the engine and the sessions.
#[derive(Clone)]
pub struct ServingSettings {
    /// Source of the model: `builtin`, a directory, a GGUF file, or a hub id.
    pub model: String,
    /// Name of the model for clients; `None` is its own.
    pub served_model_name: Option<String>,
    /// Precision of the weights.
    pub dtype: Dtype,
    /// Backend that computes the model.
    pub device: Device,
    /// Precision of the KV cache.
    pub kv_dtype: KvPrecision,
    /// Number of compute threads.
    pub threads: NonZeroUsize,
    /// Memory for the KV cache; `None` derives it from the memory limit.
    pub kv_memory: Option<ByteSize>,
    /// Limit on the memory of the process.
    pub memory_limit: Option<Sourced<ByteSize>>,
    /// Whether the model's `generation_config.json` sets the defaults of sampling.
    pub generation_config: GenerationDefaults,
    /// The chat template: a file, a template itself, or `plain`; `None` is the model's own.
    pub chat_template: Option<String>,
    /// Maximum tokens of a session's history; `None` is the default.
    pub max_session_tokens: Option<usize>,
    /// The adapters to load.
    pub adapters: Vec<AdapterSetting>,
    /// Settings of the engine. Memory and precision of the KV cache are those above.
    pub engine: EngineConfig,
    /// Settings of sessions.
    pub sessions: SessionConfig,
}

/// Why a model can't be served.
#[derive(Debug, thiserror::Error)]
pub enum ServingError {
    /// The model's files can't be fetched or used.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// The chat template in the settings can't be used.
    #[error(transparent)]
    Template(#[from] TemplateError),
    /// The chat template in the settings is not a file.
    #[error("`chat-template` is {setting:?}, which is neither a template nor a readable file")]
    TemplateFile {
        /// The setting.
        setting: String,
        /// Why the file can't be read.
        source: io::Error,
    },
    /// The model's own chat template can't be used.
    #[error(
        "the model's own chat template can't be used; set `chat-template` to another, such as `plain`"
    )]
    ModelTemplate(#[source] TemplateError),
    /// The device can't compute in the precision of the settings.
    #[error(
        "`dtype` {dtype} is not available with `device` candle, which computes in f32: set `dtype` to f32 or auto, or `device` to cpu"
    )]
    DeviceDtype {
        /// The setting.
        dtype: &'static str,
    },
    /// The setting is more than the model has.
    #[error(
        "`max-context` is {max_context}; it must be at most {context_length}, the number of the model's positions"
    )]
    MaxContext {
        /// The setting.
        max_context: usize,
        /// What the model has.
        context_length: usize,
    },
    /// The weights can't be used.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// The model's first forward pass gives no valid distribution.
    #[error("`model` {model} can't be served")]
    Trial {
        /// The setting.
        model: String,
        /// Problem of the forward pass.
        source: Box<TrialError>,
    },
    /// The directory for KV blocks can't be used.
    #[error("`session-dir` {} can't be used", dir.display())]
    SessionDir {
        /// The setting.
        dir: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// The engine can't start.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// An adapter can't be served.
    #[error("`adapter` {name} can't be served")]
    Adapter {
        /// Its name.
        name: String,
        /// What is wrong with it.
        source: Box<LoadAdapterError>,
    },
    /// The sessions can't be opened.
    #[error(transparent)]
    Sessions(#[from] SessionError),
}

/// A loaded model, ready to generate.
pub struct Serving {
    /// Runs the requests.
    pub engine: EngineHandle,
    /// Stores the sessions.
    pub sessions: Sessions,
    /// Converts text to token ids and back.
    pub tokenizer: Arc<Tokenizer>,
    /// Compiles the grammars that texts must follow.
    pub grammars: GrammarCompiler,
    /// Turns conversations into prompts.
    pub chat: Arc<ChatTemplate>,
    /// Limits of requests.
    pub limits: Limits,
    /// Facts about the model for clients.
    pub info: ModelInfo,
    /// The adapters that the model can run with.
    pub adapters: Adapters,
}

/// Facts about a model for clients.
#[derive(Debug, Clone)]
pub struct ModelInfo {
    /// Name of the model for clients.
    pub id: String,
    /// Value of `--model`, which clients can use as name too.
    pub source: String,
    /// The model's sizes and tokens.
    pub spec: ModelSpec,
    /// Precision of the weights: `f32`, `bf16` or `q8`.
    pub dtype: String,
    /// Backend that computes the model: `cpu` or `candle`.
    pub device: &'static str,
    /// The instruction set of the kernels, or `candle`.
    pub isa: String,
    /// OpenAI's `system_fingerprint`: changes whenever the same request could give a different answer.
    pub fingerprint: String,
    /// OpenAI's `created`: the time at which the model was loaded.
    pub created: SystemTime,
}

impl ModelInfo {
    /// Returns whether the name refers to this model. TGI ignores the name; its guide uses `tgi`, and
    /// `huggingface_hub` sends `dummy` if it has an address instead of a name.
    #[must_use]
    pub fn is_called(&self, name: &str) -> bool {
        name == self.id || name == self.source || ALIASES.contains(&name)
    }
}

/// A loaded model without an engine, for a command that runs its passes itself.
pub struct Unserved {
    /// The model.
    pub model: Model,
    /// Its files, whose tokenizer converts text to token ids and back.
    pub files: ModelFiles,
    /// Precision of the KV cache.
    pub kv_dtype: KvDtype,
    /// Limits of requests.
    pub limits: Limits,
    /// Facts about the model.
    pub info: ModelInfo,
}

impl Unserved {
    /// Fetches and loads the model as [`Serving::load`] does. Blocks the thread.
    ///
    /// # Errors
    /// [`ServingError`], which refers to the settings by name.
    pub fn load(settings: &ServingSettings) -> Result<Self, ServingError> {
        let source: ModelSource = settings.model.parse()?;
        let files = source.fetch(io::stderr().is_terminal())?;
        let backend = settings.backend(files.checkpoint.dtype())?;
        let model = settings.model(&source, &files, &*backend)?;
        let spec = model.spec().clone();
        let context_length = settings.wanted_context(&spec)?;
        let limits = settings.limits(&files.generation_config, &spec, context_length, 1);
        Ok(Self {
            kv_dtype: settings.kv_dtype(backend.weight_dtype()),
            info: model_info(
                spec,
                files.name.clone(),
                &source,
                settings.device,
                &*backend,
            ),
            model,
            files,
            limits,
        })
    }
}

impl Serving {
    /// Fetches, loads and starts the model. Blocks the thread.
    ///
    /// # Errors
    /// [`ServingError`], which refers to the settings by name.
    pub fn load(settings: &ServingSettings) -> Result<Self, ServingError> {
        // Checked before the model is fetched.
        let chat = settings.chat_template.as_deref().map(chat_template);
        let chat = chat.transpose()?;
        let source: ModelSource = settings.model.parse()?;
        let files = source.fetch(io::stderr().is_terminal())?;
        Self::start(settings, &source, files, chat)
    }

    /// Loads and starts the model in these files. Blocks the thread. `chat` replaces the model's own template.
    ///
    /// # Errors
    /// [`ServingError`], which refers to the settings by name.
    pub fn start(
        settings: &ServingSettings,
        source: &ModelSource,
        files: ModelFiles,
        chat: Option<ChatTemplate>,
    ) -> Result<Self, ServingError> {
        let started = Instant::now();
        let chat = files.chat(chat).map_err(ServingError::ModelTemplate)?;
        let backend = settings.backend(files.checkpoint.dtype())?;
        let dtype = backend.weight_dtype();
        let mut engine = settings.engine.clone();
        engine.kv_dtype = settings.kv_dtype(dtype);
        let model = settings.model(source, &files, &*backend)?;
        let spec = model.spec().clone();
        let weights = ByteSize::b(model.weight_bytes() as u64);
        let wanted = settings.wanted_context(&spec)?;
        let layout = KvLayout::of(&model, engine.kv_dtype, wanted);
        let context = layout.context_bytes(wanted, engine.max_step_tokens);
        let step = context - layout.context_bytes(wanted, 0);
        let kv_memory = settings.kv_memory(weights, ByteSize::b(context));
        engine.kv_memory = kv_memory.value;
        // A cache without a single block is refused when the engine starts.
        let held = layout.context_held(kv_memory.value.as_u64(), engine.max_step_tokens);
        let context_length = wanted.min(held.max(1));
        engine.max_context = Some(context_length);
        let layout = KvLayout::of(&model, engine.kv_dtype, context_length);
        let snapshots = snapshots(&files, &layout, &*backend, &mut engine, &settings.sessions)?;
        let handle = engine::start(model, engine)?;
        let name = settings
            .served_model_name
            .clone()
            .unwrap_or_else(|| files.name.clone());
        info!(
            model = name,
            parameters = spec.parameters,
            dtype = dtype.name(),
            weights = %weights,
            kv_cache = %kv_memory.value,
            kv_cache_from = %kv_memory.origin,
            kv_tokens = handle.status().kv_blocks * BLOCK_SIZE,
            context_length,
            device = settings.device.name(),
            isa = backend.name(),
            chat_template = chat.origin(),
            seconds = started.elapsed().as_secs_f32(),
            "model loaded"
        );
        if context_length < wanted {
            let whole = ByteSize::b(context);
            let steps = match step {
                0 => String::new(),
                step => format!(
                    ", of which {} are for the tokens of a step (max-step-tokens)",
                    ByteSize::b(step)
                ),
            };
            warn!(
                context_length,
                wanted,
                kv_cache = %kv_memory.value,
                "contexts are limited to {context_length} of {wanted} tokens by kv-memory: whole ones need {whole}{steps}; \
                 set kv-memory to that, or max-context to {context_length} to accept the limit"
            );
        }
        if settings.dtype == Dtype::Auto && settings.device == Device::Cpu {
            advise(dtype, files.checkpoint.dtype());
        }
        let limits = handle.limits();
        let limits = settings.limits(
            &files.generation_config,
            &spec,
            limits.context_length,
            limits.max_queue,
        );
        let info = model_info(spec, name, source, settings.device, &*backend);
        let adapters = settings.load_adapters(&files, &info, &*backend)?;
        let tokenizer = Arc::new(files.tokenizer);
        let fingerprint = tokenizer_fingerprint(&tokenizer, limits.vocab_size);
        let sessions = Sessions::open(
            settings.sessions.clone(),
            handle.clone(),
            limits.context_length,
            fingerprint,
            snapshots,
        )?;
        Ok(Self {
            engine: handle,
            sessions,
            grammars: GrammarCompiler::new(
                Arc::clone(&tokenizer),
                limits.vocab_size,
                &limits.end_of_text,
            ),
            tokenizer,
            chat: Arc::new(chat),
            limits,
            info,
            adapters,
        })
    }

    /// Returns the name of what a request runs: the adapter's, or else the model's.
    #[must_use]
    pub fn name_of<'a>(&'a self, request: &'a GenerateRequest) -> &'a str {
        let adapter = request.adapter.as_ref();
        adapter.map_or(&self.info.id, |adapter| &adapter.name)
    }

    /// Returns the names of the model and its adapters, for messages.
    #[must_use]
    pub fn served(&self) -> String {
        let adapters = self.adapters.all();
        let adapters = adapters.iter().map(|adapter| &adapter.name);
        let names = std::iter::once(&self.info.id).chain(adapters);
        let names: Vec<String> = names
            .take(SHOWN_NAMES)
            .map(|name| format!("{name:?}"))
            .collect();
        names.join(", ")
    }
}

/// Names that mean whatever model is served, for clients that must send one.
const ALIASES: [&str; 2] = ["tgi", "dummy"];

/// Maximum names in a message.
const SHOWN_NAMES: usize = 8;

impl ServingSettings {
    /// Loads the model and runs its first forward pass.
    fn model(
        &self,
        source: &ModelSource,
        files: &ModelFiles,
        backend: &dyn Backend,
    ) -> Result<Model, ServingError> {
        let model = Model::load(files, backend)?;
        let dtype = backend.weight_dtype();
        let tried = trial::run(&model, self.kv_dtype(dtype), dtype.name());
        tried.map_err(|error| ServingError::Trial {
            model: source.to_string(),
            source: Box::new(error),
        })?;
        Ok(model)
    }

    /// Loads the adapters.
    fn load_adapters(
        &self,
        files: &ModelFiles,
        info: &ModelInfo,
        backend: &dyn Backend,
    ) -> Result<Adapters, ServingError> {
        // Those that `ModelInfo::is_called` takes for the model.
        let names = ALIASES.map(str::to_owned);
        let names = names
            .into_iter()
            .chain([info.id.clone(), info.source.clone()])
            .collect();
        let own = backend.for_adapters();
        let adapters = Adapters::new(files.config.clone(), own, names);
        for AdapterSetting { name, source } in &self.adapters {
            let loaded = adapters.load(name, source);
            let adapter = loaded.map_err(|error| ServingError::Adapter {
                name: name.clone(),
                source: Box::new(error),
            })?;
            info!(
                adapter = name,
                source,
                bytes = adapter.bytes(),
                "adapter loaded"
            );
        }
        Ok(adapters)
    }

    /// Chooses the KV cache's memory. Logs a warning if it does not fit beside the weights.
    fn kv_memory(&self, weights: ByteSize, window: ByteSize) -> Sourced<ByteSize> {
        let chosen = resources::kv_memory(self.kv_memory, self.memory_limit, weights, window);
        if let Some(limit) = self.memory_limit
            && weights.as_u64() + chosen.value.as_u64() + WORKING_MEMORY.as_u64()
                > limit.value.as_u64()
        {
            warn!(
                %weights,
                kv_cache = %chosen.value,
                working_memory = %WORKING_MEMORY,
                memory_limit = %limit.value,
                memory_limit_from = %limit.origin,
                "weights, KV cache and working memory exceed the memory limit: raise it, or lower kv-memory or dtype"
            );
        }
        chosen
    }

    /// Starts the backend that computes the model.
    fn backend(&self, on_disk: Option<StoredType>) -> Result<Box<dyn Backend>, ServingError> {
        match (self.device, self.dtype) {
            (Device::Cpu, _) => {
                let dtype = self.weight_dtype(on_disk);
                Ok(Box::new(CpuBackend::new(self.threads, dtype)))
            }
            (Device::Candle, Dtype::Auto | Dtype::F32) => Ok(Box::new(CandleBackend::new(
                candle_core::Device::Cpu,
                self.threads,
            ))),
            (Device::Candle, Dtype::Bf16) => Err(ServingError::DeviceDtype { dtype: "bf16" }),
            (Device::Candle, Dtype::Q8) => Err(ServingError::DeviceDtype { dtype: "q8" }),
        }
    }

    /// Returns the precision of the weights in the kernels. `auto` is that of the checkpoint if the kernels compute
    /// in it, and otherwise bf16.
    fn weight_dtype(&self, on_disk: Option<StoredType>) -> WeightDtype {
        match self.dtype {
            Dtype::F32 => WeightDtype::F32,
            Dtype::Q8 => WeightDtype::Q8,
            Dtype::Auto if on_disk == Some(StoredType::F32) => WeightDtype::F32,
            Dtype::Auto | Dtype::Bf16 => WeightDtype::Bf16,
        }
    }

    fn kv_dtype(&self, weights: WeightDtype) -> KvDtype {
        match self.kv_dtype {
            KvPrecision::F32 => KvDtype::F32,
            KvPrecision::Auto if weights == WeightDtype::F32 => KvDtype::F32,
            KvPrecision::Auto | KvPrecision::Bf16 => KvDtype::Bf16,
        }
    }

    /// Returns the context length that the settings ask for: the model's, or less.
    fn wanted_context(&self, spec: &ModelSpec) -> Result<usize, ServingError> {
        match self.engine.max_context {
            Some(max_context) if max_context > spec.context_length => {
                Err(ServingError::MaxContext {
                    max_context,
                    context_length: spec.context_length,
                })
            }
            Some(max_context) => Ok(max_context),
            None => Ok(spec.context_length),
        }
    }

    fn limits(
        &self,
        generation: &GenerationConfig,
        spec: &ModelSpec,
        context_length: usize,
        max_queue: usize,
    ) -> Limits {
        let ends = spec.end_of_text.clone();
        let mut limits = Limits::for_model(context_length, spec.vocab_size, ends);
        if self.generation_config == GenerationDefaults::Auto {
            limits.defaults = generation.sampling();
        }
        if let Some(tokens) = self.max_session_tokens {
            limits.max_session_tokens = tokens;
        }
        // All choices of a request enter the queue at once, so more could never be accepted.
        limits.max_choices = limits.max_choices.min(max_queue);
        limits.max_best_of = limits.max_best_of.min(limits.max_choices);
        limits
    }
}

/// Opens the directory for KV blocks that the engine evicts, if the settings have one.
fn snapshots(
    files: &ModelFiles,
    layout: &KvLayout,
    backend: &dyn Backend,
    engine: &mut EngineConfig,
    sessions: &SessionConfig,
) -> Result<Option<Arc<Snapshots>>, ServingError> {
    let Some(dir) = sessions
        .dir
        .as_ref()
        .filter(|_| sessions.kv_size.as_u64() > 0)
    else {
        return Ok(None);
    };
    let config = SnapshotConfig {
        model: kv_fingerprint(files, backend, engine.kv_dtype),
        block_bytes: layout.block_bytes,
        windows: layout.windows,
        size: sessions.kv_size,
        shared_prefixes: engine.share_prefixes,
    };
    let opened = Snapshots::open(dir, config);
    let (snapshots, evicted) = opened.map_err(|error| ServingError::SessionDir {
        dir: dir.clone(),
        source: error,
    })?;
    engine.evicted = Some(evicted);
    Ok(Some(snapshots))
}

/// Returns a hash of everything except the tokens that the bits of keys and values depend on.
fn kv_fingerprint(files: &ModelFiles, backend: &dyn Backend, kv_dtype: KvDtype) -> Fingerprint {
    let mut hash = blake3::Hasher::new();
    let computed = (
        env!("CARGO_PKG_VERSION"),
        backend.name(),
        backend.weight_dtype().name(),
        kv_dtype,
        &files.config,
    );
    hash.update(format!("{computed:?}").as_bytes());
    files.checkpoint.hash_into(&mut hash);
    Fingerprint(*hash.finalize().as_bytes())
}

/// Returns the template that the setting names: a file, a template itself, or the plain form.
fn chat_template(setting: &str) -> Result<ChatTemplate, ServingError> {
    if setting == ChatTemplate::PLAIN {
        return Ok(ChatTemplate::plain()?);
    }
    let is_template = setting.contains(['{', '\n']);
    let source = if is_template && !Path::new(setting).exists() {
        TemplateSource {
            origin: "`chat-template`".to_owned(),
            text: setting.to_owned(),
        }
    } else {
        TemplateSource {
            origin: setting.to_owned(),
            text: std::fs::read_to_string(setting).map_err(|error| ServingError::TemplateFile {
                setting: setting.to_owned(),
                source: error,
            })?,
        }
    };
    Ok(ChatTemplate::parse(source)?)
}

/// Logs which precision would be faster, since generation is bound by the bytes of weights that are read per
/// token, and where the one chosen loses something.
fn advise(dtype: WeightDtype, on_disk: Option<StoredType>) {
    if (dtype, on_disk) == (WeightDtype::Bf16, Some(StoredType::F16)) {
        info!(
            "weights in f16 run as bf16, which keeps 8 of their 11 significant bits; --dtype f32 keeps all"
        );
    }
    match dtype {
        WeightDtype::F32 => {
            info!(
                "--dtype bf16 would halve the bytes of weights read per token, q8 quarter them, at some loss of precision"
            );
        }
        WeightDtype::Bf16 => {
            info!(
                "--dtype q8 would halve the bytes of weights read per token, at some loss of precision"
            );
        }
        WeightDtype::Q8 => (),
    }
}

fn model_info(
    spec: ModelSpec,
    id: String,
    source: &ModelSource,
    device: Device,
    backend: &dyn Backend,
) -> ModelInfo {
    let (isa, dtype) = (backend.name(), backend.weight_dtype().name());
    ModelInfo {
        id,
        source: source.to_string(),
        spec,
        dtype: dtype.to_owned(),
        device: device.name(),
        isa: isa.to_owned(),
        fingerprint: format!("skald-{}-{dtype}-{isa}", env!("CARGO_PKG_VERSION")),
        created: SystemTime::now(),
    }
}
