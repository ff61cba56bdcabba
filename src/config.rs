//! The server's settings: flags > `SKALD_*` environment > file > defaults.
//!
//! Every setting is declared once, in [`Settings`] or its [`ModelSettings`]: its documentation is its help, its flag is its key in a
//! file, and its environment variable is its name in capitals. A [`Layer`] has the values that one source
//! sets, as text. All of them are parsed as flags are, so a value means the same wherever it comes from.
//!
//! Nothing here knows another module.

mod adapter;
mod choices;
mod error;
#[cfg(test)]
mod example;
mod hosts;
mod layer;
mod model_settings;
mod names;
mod settings;
mod values;

pub use self::adapter::{AdapterSetting, InvalidAdapter};
pub use self::choices::{Device, Dtype, GenerationDefaults, KvPrecision, LogFormat, Speculation};
pub use self::error::ConfigError;
pub use self::hosts::{AllowedHost, CorsOrigin, InvalidHost};
pub use self::layer::Layer;
pub use self::model_settings::ModelSettings;
pub use self::names::{names, unknown_variables};
pub use self::settings::Settings;
pub use self::values::SecretUrl;
pub(crate) use self::values::{address, at_least_a_moment};
