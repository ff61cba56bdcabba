//! `skald keys`: creates, lists and revokes the API keys in a file, which running servers reload.
//!
//! A key is printed once, when it is created; the file stores its hash, so it can't be shown again.

use std::fs::File;
use std::num::NonZeroU32;
use std::path::{Display, Path, PathBuf};

use anyhow::{Context, anyhow};
use chrono::{SecondsFormat, Utc};
use clap::{Args, Subcommand};
use serde_json::json;

use super::{CommandError, write_out};
use crate::config::Layer;
use crate::keys::{Key, KeyFile, KeyFileError, KeyId, KeyLimits, KeyName, KeyScope, Secret};
use crate::telemetry;

/// Create, list and revoke API keys
#[derive(Debug, Args)]
#[command(
    after_help = "The key file is set by --keys, SKALD_KEYS, or `keys` in the settings file. A running server \
        reads it again within 5 seconds, or at once on SIGHUP.\n\n\
        Examples:\n  \
        export SKALD_KEYS=$PWD/keys.toml\n  \
        skald keys create ada\n  \
        skald keys create batch --scope generate --tokens-per-minute 100000 --concurrent-requests 4\n  \
        skald keys create prometheus --scope metrics\n  \
        skald keys list\n  \
        skald keys revoke ada\n  \
        skald serve"
)]
pub struct Keys {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Create a key and print it once
    Create(Create),
    /// List keys with their scopes and limits; secrets are not shown
    List(List),
    /// Revoke a key
    Revoke(Revoke),
}

/// The file with the keys.
#[derive(Debug, Args)]
struct Source {
    /// Key file
    #[arg(long, env = "SKALD_KEYS", value_name = "FILE")]
    keys: Option<PathBuf>,
    /// Settings file; its `keys` is used if --keys is not set
    #[arg(long, env = "SKALD_CONFIG", value_name = "FILE")]
    config: Option<PathBuf>,
}

#[derive(Debug, Args)]
struct Create {
    /// Name shown in lists, logs and metrics: 1 to 64 of A-Z a-z 0-9 - _ . : @
    name: KeyName,
    /// Scopes of the key, comma-separated or repeated; admin includes all others
    #[arg(
        long = "scope",
        value_enum,
        value_delimiter = ',',
        default_value = "generate"
    )]
    scopes: Vec<KeyScope>,
    /// Requests per minute [default: no limit]
    #[arg(long, value_name = "N", value_parser = limit, allow_negative_numbers = true)]
    requests_per_minute: Option<NonZeroU32>,
    /// Prompt and generated tokens per minute [default: no limit]
    #[arg(long, value_name = "N", value_parser = limit, allow_negative_numbers = true)]
    tokens_per_minute: Option<NonZeroU32>,
    /// Maximum concurrent requests [default: no limit]
    #[arg(long, value_name = "N", value_parser = limit, allow_negative_numbers = true)]
    concurrent_requests: Option<NonZeroU32>,
    /// Allow requests with a `priority` below 0
    #[arg(long)]
    may_prioritize: bool,
    #[command(flatten)]
    source: Source,
}

#[derive(Debug, Args)]
struct List {
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    source: Source,
}

#[derive(Debug, Args)]
struct Revoke {
    /// Id or name of the key
    #[arg(value_name = "ID|NAME")]
    key: String,
    #[command(flatten)]
    source: Source,
}

impl Keys {
    pub(super) fn run(self) -> Result<(), CommandError> {
        match self.action {
            Action::Create(create) => create.run(),
            Action::List(list) => list.run(),
            Action::Revoke(revoke) => revoke.run(),
        }
    }
}

impl Source {
    /// Returns the path of the file.
    fn file(self) -> Result<PathBuf, CommandError> {
        let config = self.config.as_deref().filter(|_| self.keys.is_none());
        let config = config.map(Layer::from_file).transpose();
        let config = config.map_err(|error| CommandError::Unusable(error.into()))?;
        let config = config.map(|config| config.unchecked()).transpose();
        let config = config.map_err(|error| CommandError::Unusable(error.into()))?;
        let file = self.keys.or(config.and_then(|config| config.keys));
        file.ok_or_else(|| {
            CommandError::Unusable(anyhow!(
                "no key file given; set `--keys FILE`, SKALD_KEYS, or `keys` in the settings file"
            ))
        })
    }
}

impl Create {
    fn run(self) -> Result<(), CommandError> {
        let path = self.source.file()?;
        let _alone = alone(&path);
        let file = match KeyFile::read(&path) {
            Err(error) if error.is_not_found() => Ok(KeyFile::default()),
            read => read,
        };
        let file = file.map_err(unusable)?;
        let random = |_| CommandError::Running(anyhow!("the system provides no random numbers"));
        let id = KeyId::random().map_err(random)?;
        let secret = Secret::random(&id).map_err(random)?;
        let mut scopes = self.scopes;
        scopes.dedup();
        let now = Utc::now().to_rfc3339_opts(SecondsFormat::Secs, true);
        let key = Key {
            id,
            name: self.name,
            hash: secret.hash(),
            scopes,
            limits: KeyLimits {
                requests_per_minute: self.requests_per_minute,
                tokens_per_minute: self.tokens_per_minute,
                concurrent_requests: self.concurrent_requests,
            },
            may_prioritize: self.may_prioritize,
            created: now.parse().ok(),
        };
        let (id, name) = (key.id.clone(), key.name.clone());
        let file = file.with(key);
        let file = file.map_err(|error| CommandError::Unusable(error.into()))?;
        replace(&file, &path)?;
        let path = path.display();
        telemetry::say(&format!(
            "skald: key {name} ({id}) added to {path}. Save the key below; it can't be shown again."
        ));
        write_out(&format!("{}\n", secret.expose())).map_err(CommandError::Running)
    }
}

impl List {
    fn run(self) -> Result<(), CommandError> {
        let path = self.source.file()?;
        let file = existing(&path)?;
        let text = if self.json {
            let keys: Vec<_> = file.keys.iter().map(as_json).collect();
            format!("{:#}\n", json!(keys))
        } else {
            if file.keys.is_empty() {
                let path = path.display();
                telemetry::say(&format!(
                    "skald: no keys in {path}; {}",
                    how_to_create(&path)
                ));
            }
            table(&file.keys)
        };
        write_out(&text).map_err(CommandError::Running)
    }
}

impl Revoke {
    fn run(self) -> Result<(), CommandError> {
        let path = self.source.file()?;
        let _alone = alone(&path);
        let file = existing(&path)?;
        let known = |key: &Key| key.id.as_str() == self.key || key.name.as_str() == self.key;
        let Some((file, key)) = file.without(&self.key) else {
            let path = path.display();
            return Err(CommandError::Unusable(if file.keys.iter().any(known) {
                anyhow!("could not remove the key from {path}; edit the file by hand")
            } else {
                anyhow!("no key has this id or name in {path}; see `skald keys list`")
            }));
        };
        replace(&file, &path)?;
        write_out(&format!("revoked {} ({})\n", key.name, key.id)).map_err(CommandError::Running)
    }
}

/// Parses a limit of a key.
fn limit(text: &str) -> Result<NonZeroU32, String> {
    let expected = format!("write a number from 1 to {}", u32::MAX);
    text.parse().map_err(|_| expected)
}

/// Reads a file that must exist.
fn existing(path: &Path) -> Result<KeyFile, CommandError> {
    KeyFile::read(path).map_err(|error| {
        if error.is_not_found() {
            missing(path)
        } else {
            unusable(error)
        }
    })
}

/// Returns the error for a key file that does not exist.
pub(super) fn missing(path: &Path) -> CommandError {
    let path = path.display();
    let how = how_to_create(&path);
    CommandError::Unusable(anyhow!("key file {path} does not exist; {how}"))
}

fn how_to_create(path: &Display) -> String {
    format!("create a key with `skald keys create NAME --keys {path}`")
}

fn unusable(error: KeyFileError) -> CommandError {
    CommandError::Unusable(error.into())
}

fn replace(file: &KeyFile, path: &Path) -> Result<(), CommandError> {
    let replaced = file.replace(path);
    let replaced = replaced.with_context(|| format!("{} can't be written", path.display()));
    replaced.map_err(CommandError::Running)
}

/// Locks the directory against other `skald keys` that change files in it, until the result is dropped. The
/// file itself can't be locked, since it is replaced. Some network file systems have no such locks; there two
/// commands at the same moment can undo each other's change.
fn alone(path: &Path) -> Option<File> {
    let parent = path
        .parent()
        .filter(|parent| !parent.as_os_str().is_empty());
    let directory = File::open(parent.unwrap_or(Path::new("."))).ok()?;
    directory.lock().ok()?;
    Some(directory)
}

fn scopes(key: &Key) -> Vec<&'static str> {
    key.scopes.iter().map(|scope| scope.as_str()).collect()
}

fn as_json(key: &Key) -> serde_json::Value {
    json!({
        "id": key.id,
        "name": key.name,
        "scopes": scopes(key),
        "requests_per_minute": key.limits.requests_per_minute,
        "tokens_per_minute": key.limits.tokens_per_minute,
        "concurrent_requests": key.limits.concurrent_requests,
        "may_prioritize": key.may_prioritize,
        "created": key.created.map(|created| created.to_string()),
    })
}

/// Returns the keys as a table for the terminal.
fn table(keys: &[Key]) -> String {
    let limit = |limit: Option<NonZeroU32>| limit.map_or("-".to_owned(), |n| n.to_string());
    let row = |key: &Key| {
        [
            key.id.to_string(),
            key.name.to_string(),
            scopes(key).join(","),
            limit(key.limits.requests_per_minute),
            limit(key.limits.tokens_per_minute),
            limit(key.limits.concurrent_requests),
            if key.may_prioritize { "yes" } else { "no" }.to_owned(),
            key.created
                .map_or("-".to_owned(), |created| created.to_string()),
        ]
    };
    let head = [
        "ID",
        "NAME",
        "SCOPES",
        "REQUESTS/MIN",
        "TOKENS/MIN",
        "CONCURRENT",
        "PRIORITY",
        "CREATED",
    ];
    let mut rows = vec![head.map(str::to_owned)];
    rows.extend(keys.iter().map(row));
    let mut widths = [0; 8];
    for row in &rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = cell.len().max(*width);
        }
    }
    let line = |row: &[String; 8]| {
        let cells = row.iter().zip(widths);
        let cells: Vec<_> = cells
            .map(|(cell, width)| format!("{cell:<width$}"))
            .collect();
        format!("{}\n", cells.join("  ").trim_end())
    };
    rows.iter().map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_has_a_line_for_each_key() {
        let key = Key {
            id: "0123456789ab".to_owned().try_into().unwrap(),
            name: "ada".parse().unwrap(),
            hash: Secret::random(&KeyId::random().unwrap()).unwrap().hash(),
            scopes: vec![KeyScope::Generate, KeyScope::Metrics],
            limits: KeyLimits {
                tokens_per_minute: NonZeroU32::new(1000),
                ..KeyLimits::default()
            },
            may_prioritize: true,
            created: "2026-11-27T10:00:00Z".parse().ok(),
        };
        assert_eq!(
            table(&[key]),
            "ID            NAME  SCOPES            REQUESTS/MIN  TOKENS/MIN  CONCURRENT  PRIORITY  CREATED\n\
             0123456789ab  ada   generate,metrics  -             1000        -           yes       2026-11-27T10:00:00Z\n"
        );
    }
}
