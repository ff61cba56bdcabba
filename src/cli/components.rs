//! From the settings to the configuration of each component.

use std::num::NonZeroUsize;
use std::sync::Arc;

use bytesize::ByteSize;

use crate::config::{KvPrecision, ModelSettings, Settings, Speculation};
use crate::engine::EngineConfig;
use crate::http::{Access, HttpConfig};
use crate::keys::Keys;
use crate::resources::{self, Connections, Sourced};
use crate::serving::ServingSettings;
use crate::session::postgres::Database;
use crate::session::{SessionConfig, Sharing};

/// Returns the configuration of the front end.
pub(super) fn http(settings: &Settings, connections: Connections) -> HttpConfig {
    HttpConfig {
        drain_delay: settings.drain_delay,
        drain_timeout: settings.drain_timeout,
        keep_alive: settings.keep_alive,
        stall_timeout: settings.stall_timeout,
        watchdog_timeout: settings.watchdog_timeout,
        header_timeout: settings.header_timeout,
        body_timeout: settings.body_timeout,
        max_body: settings.max_body,
        max_pending: settings.max_pending,
        connections,
        log_prompts: settings.log_prompts,
    }
}

/// Returns which clients the server accepts.
pub(super) fn access(settings: &Settings, keys: Option<Arc<Keys>>) -> Access {
    Access {
        hosts: settings.allowed_host.clone(),
        origins: settings.cors_origin.clone(),
        keys,
    }
}

/// Returns what is served, and how.
pub(super) fn serving(
    settings: Settings,
    threads: NonZeroUsize,
    memory_limit: Option<Sourced<ByteSize>>,
    sessions: SessionConfig,
) -> ServingSettings {
    ServingSettings {
        engine: engine(&settings),
        model: settings.model.source,
        served_model_name: settings.served_model_name,
        adapters: settings.adapter,
        dtype: settings.model.dtype,
        device: settings.model.device,
        kv_dtype: settings.kv_dtype,
        threads,
        kv_memory: settings.kv_memory,
        memory_limit,
        generation_config: settings.model.generation_config,
        chat_template: settings.chat_template,
        max_session_tokens: Some(settings.max_session_tokens),
        sessions,
    }
}

/// Returns the settings of a command that uses a model in the terminal.
pub(super) fn terminal(model: &ModelSettings, sessions: SessionConfig) -> ServingSettings {
    ServingSettings {
        model: model.source.clone(),
        served_model_name: None,
        adapters: Vec::new(),
        dtype: model.dtype,
        device: model.device,
        kv_dtype: KvPrecision::Auto,
        threads: resources::threads(model.threads).value,
        kv_memory: None,
        memory_limit: resources::memory_limit(),
        generation_config: model.generation_config,
        chat_template: None,
        max_session_tokens: None,
        engine: EngineConfig::default(),
        sessions,
    }
}

/// Returns the configuration of sessions. `database` is the one that `session_store` names.
pub(super) fn sessions(
    settings: &Settings,
    database: Option<Database>,
    sharing: Sharing,
) -> SessionConfig {
    SessionConfig {
        database,
        dir: settings.session_dir.clone(),
        kv_size: settings.session_kv_size,
        ttl: settings.session_ttl,
        per_tenant: settings.session_limit,
        max_in_memory: settings.max_sessions,
        max_waiting: settings.max_queue,
        sharing,
    }
}

fn engine(settings: &Settings) -> EngineConfig {
    let defaults = EngineConfig::default();
    EngineConfig {
        max_context: settings.max_context,
        max_batch: settings.max_batch,
        max_step_tokens: settings.max_step_tokens,
        step_time: settings.step_time,
        queue_limit: settings.max_queue,
        queue_timeout: settings.queue_timeout,
        share_prefixes: settings.share_prefix_cache,
        speculative_rows: match settings.speculation {
            Speculation::Auto => defaults.speculative_rows,
            Speculation::Off => 0,
        },
        ..defaults
    }
}
