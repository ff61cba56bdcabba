//! The settings of one source: the command line with the environment, or a file.

use std::any::TypeId;
use std::collections::BTreeMap;
use std::error::Error;
use std::ffi::OsString;
use std::fmt;
use std::num::NonZeroUsize;
use std::path::Path;

use bytesize::ByteSize;
use clap::error::{ContextKind, ContextValue};
use clap::parser::ValueSource;
use clap::{Arg, ArgAction, ArgMatches, Args, Command, FromArgMatches};

use super::error::ConfigError;
use super::names::{names, nearest};
use super::settings::Settings;

/// The values that one source gives to settings, as text. Only settings that it sets are in it.
///
/// As arguments of a command, the flags and environment variables of [`Settings`].
#[derive(Clone, Default)]
pub struct Layer(BTreeMap<String, Vec<OsString>>);

impl Layer {
    /// Reads a TOML file.
    ///
    /// # Errors
    /// [`ConfigError`] naming file, line and key.
    pub fn from_file(file: &Path) -> Result<Self, ConfigError> {
        let text = std::fs::read_to_string(file).map_err(|source| ConfigError::Io {
            file: file.to_owned(),
            source,
        })?;
        Self::from_toml(file, &text)
    }

    /// Reads the content of a TOML file.
    ///
    /// # Errors
    /// [`ConfigError`] naming file, line and key.
    pub fn from_toml(file: &Path, text: &str) -> Result<Self, ConfigError> {
        let table: toml::Table = text.parse().map_err(|error: toml::de::Error| {
            ConfigError::Toml {
                file: file.to_owned(),
                // The parser quotes the line, which could contain a password.
                reason: if text.contains("session-store") {
                    error.message().to_owned()
                } else {
                    error.to_string().trim_end().to_owned()
                },
            }
        })?;
        let command = command();
        let argument = |key: &str| {
            let mut arguments = command.get_arguments();
            arguments.find(|argument| argument.get_long() == Some(key))
        };
        let mut layer = Self::default();
        for (key, value) in &table {
            let Some(argument) = argument(key) else {
                return Err(ConfigError::UnknownKey {
                    file: file.to_owned(),
                    line: line_of(key, text),
                    nearest: nearest(key, &names()),
                    key: key.clone(),
                });
            };
            let texts = texts(argument, value);
            let checked = texts.and_then(|texts| {
                let one = Self(BTreeMap::from([(key.clone(), texts)]));
                one.matches().map_err(|error| expected(&error))?;
                layer.0.extend(one.0);
                Ok(())
            });
            checked.map_err(|expected| ConfigError::Value {
                file: file.to_owned(),
                line: line_of(key, text),
                key: key.clone(),
                value: if argument.is_hide_env_values_set() {
                    "not valid".to_owned()
                } else {
                    shown(value)
                },
                expected,
            })?;
        }
        Ok(layer)
    }

    /// Adds from `below` what this layer does not set.
    #[must_use]
    pub fn over(self, mut below: Self) -> Self {
        below.0.extend(self.0);
        below
    }

    /// Returns the settings of this layer, with the defaults of those it does not set.
    ///
    /// # Errors
    /// If settings contradict each other.
    pub fn settings(&self) -> Result<Settings, ConfigError> {
        let settings = self.unchecked()?;
        settings.check()?;
        Ok(settings)
    }

    /// Returns the same without checking the settings against each other, for commands that use only some
    /// of them.
    ///
    /// # Errors
    /// If a value can't be parsed.
    pub fn unchecked(&self) -> Result<Settings, ConfigError> {
        Ok(Settings::from_arg_matches(&self.matches()?)?)
    }

    fn matches(&self) -> Result<ArgMatches, clap::Error> {
        let flags = self.0.iter().flat_map(|(key, values)| {
            values.iter().map(move |value| {
                let mut flag = OsString::from(format!("--{key}="));
                flag.push(value);
                flag
            })
        });
        command().try_get_matches_from(flags)
    }
}

/// Returns a command with the flags of all settings, which ignores the environment.
fn command() -> Command {
    let command = Command::new("settings").no_binary_name(true);
    Settings::augment_args(command).mut_args(|argument| argument.env(None::<&str>))
}

/// Returns a setting's value in a file as the texts that its flag would have.
fn texts(argument: &Arg, value: &toml::Value) -> Result<Vec<OsString>, String> {
    let parsed_as = argument.get_value_parser().type_id();
    let is = |id: TypeId| parsed_as == id;
    let is_size = is(TypeId::of::<ByteSize>());
    let is_number = is(TypeId::of::<usize>()) || is(TypeId::of::<NonZeroUsize>());
    let text = |value: &toml::Value| match value {
        toml::Value::String(text) if !is_number && !is(TypeId::of::<bool>()) => Some(text.into()),
        toml::Value::Integer(number) if is_number || is_size => Some(number.to_string().into()),
        toml::Value::Boolean(truth) if is(TypeId::of::<bool>()) => Some(truth.to_string().into()),
        _ => None,
    };
    let is_list = matches!(argument.get_action(), ArgAction::Append);
    let texts = match value {
        toml::Value::Array(values) if is_list => values.iter().map(text).collect(),
        _ if is_list => None,
        value => text(value).map(|text| vec![text]),
    };
    texts.ok_or_else(|| {
        let form = if is_list {
            "an array of strings"
        } else if is(TypeId::of::<bool>()) {
            "true or false"
        } else if is_number {
            "a number"
        } else {
            "a string in quotes"
        };
        format!("write {form}")
    })
}

/// Returns a value as messages show it.
fn shown(value: &toml::Value) -> String {
    match value {
        toml::Value::String(text) => format!("{text:?}"),
        toml::Value::Integer(number) => number.to_string(),
        toml::Value::Float(number) => number.to_string(),
        toml::Value::Boolean(truth) => truth.to_string(),
        toml::Value::Datetime(_) => "a date or time".to_owned(),
        toml::Value::Array(_) => "an array".to_owned(),
        toml::Value::Table(_) => "a table".to_owned(),
    }
}

/// Returns what clap expected instead of a value.
fn expected(error: &clap::Error) -> String {
    match (error.source(), error.get(ContextKind::ValidValue)) {
        (Some(reason), _) => reason.to_string(),
        (None, Some(ContextValue::Strings(valid))) => format!("write one of {}", valid.join(", ")),
        (None, _) => error.kind().to_string(),
    }
}

/// Returns the line on which a file sets a key.
fn line_of(key: &str, text: &str) -> usize {
    let sets = |line: &str| {
        let line = line.trim_start().trim_start_matches(['[', '"']);
        let rest = line.strip_prefix(key);
        rest.is_some_and(|rest| rest.starts_with([' ', '\t', '=', '"', ']', '.']))
    };
    1 + text.lines().position(sets).unwrap_or(0)
}

impl Args for Layer {
    fn augment_args(command: Command) -> Command {
        Settings::augment_args(command)
    }

    fn augment_args_for_update(command: Command) -> Command {
        Settings::augment_args_for_update(command)
    }
}

impl FromArgMatches for Layer {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let mut layer = Self::default();
        layer.update_from_arg_matches(matches)?;
        Ok(layer)
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        for argument in command().get_arguments() {
            let (id, Some(key)) = (argument.get_id().as_str(), argument.get_long()) else {
                continue;
            };
            let source = matches.value_source(id);
            let is_set = source.is_some_and(|source| source != ValueSource::DefaultValue);
            if let Some(values) = matches.get_raw(id).filter(|_| is_set) {
                let values = values.map(ToOwned::to_owned).collect();
                self.0.insert(key.to_owned(), values);
            }
        }
        Ok(())
    }
}

impl fmt::Debug for Layer {
    /// Names the settings without their values, which could contain a password.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Layer").field(&self.0.keys()).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(text: &str) -> String {
        let layer = Layer::from_toml("skald.toml".as_ref(), text);
        layer.expect_err("not valid").to_string()
    }

    #[test]
    fn a_layer_overrides_another() {
        let file =
            "max-batch = 7\nmax-queue = 8\nlog-prompts = true\nallowed-host = [\"a\", \"b\"]\n";
        let below = Layer::from_toml("below.toml".as_ref(), file).expect("valid");
        let above = Layer::from_toml("above.toml".as_ref(), "max-queue = 9\n").expect("valid");
        let settings = above.over(below).settings().expect("valid");
        assert_eq!((settings.max_batch, settings.max_queue), (7, 9));
        assert!(settings.log_prompts);
        assert_eq!(settings.allowed_host.len(), 2);
        assert_eq!(settings.max_sessions, 10_000);
    }

    #[test]
    fn a_wrong_value_in_a_file_is_refused_with_line_key_value_and_form() {
        for (text, message) in [
            (
                "model = 3",
                "line 1: `model` is 3; write a string in quotes",
            ),
            (
                "max-batch = \"64\"",
                "`max-batch` is \"64\"; write a number",
            ),
            (
                "\nmax-batch = 0",
                "line 2: `max-batch` is 0; write a number from 1 to 4096",
            ),
            ("log-prompts = 1", "`log-prompts` is 1; write true or false"),
            (
                "dtype = \"q4\"",
                "`dtype` is \"q4\"; write one of auto, f32, bf16, q8",
            ),
            ("keep-alive = \"0s\"", "write a duration longer than 0s"),
            (
                "step-time = 5",
                "`step-time` is 5; write a string in quotes",
            ),
            ("allowed-host = \"a\"", "write an array of strings"),
            (
                "allowed-host = [\"a b\"]",
                "`allowed-host` is an array; \"a b\" is not a valid host",
            ),
            ("kv-memory = \"much\"", "write a size such as 512MiB"),
            ("max-body = 1", "write a size from 1 KiB to 1 GiB"),
            (
                "kv_memory = 1",
                "unknown setting `kv_memory`; did you mean `kv-memory`?",
            ),
            ("help = true", "unknown setting `help`"),
            ("[http]\nlisten = \"\"", "line 1: unknown setting `http`"),
            (
                "session-store = 5",
                "`session-store` is not valid; write a string in quotes",
            ),
            ("tls-cert = ", "line 1"),
        ] {
            let refused = refused(text);
            assert!(refused.contains(message), "{text}: {refused}");
            assert!(refused.contains("skald.toml"), "{refused}");
        }
        let secret = "session-store = \"postgres://a:hunter2@b\nx";
        assert!(!refused(secret).contains("hunter2"));
    }

    #[test]
    fn settings_that_contradict_each_other_are_refused() {
        for (text, message) in [
            (
                "max-batch = 600",
                "`max-batch` is 600, more than `max-step-tokens` (512)",
            ),
            ("tls-key = \"a\"", "`tls-key` is set but `tls-cert` is not"),
        ] {
            let layer = Layer::from_toml("skald.toml".as_ref(), text).expect("each is valid");
            let refused = layer.settings().expect_err("not together").to_string();
            assert!(refused.contains(message), "{refused}");
        }
    }
}
