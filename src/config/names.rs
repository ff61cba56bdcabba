//! The names of settings, and the nearest valid name for a misspelled one.

use clap::{Args, Command};

use super::settings::Settings;

/// Returns the names of all settings, as flags and files have them.
#[must_use]
pub fn names() -> Vec<String> {
    let command = Settings::augment_args(Command::new("settings"));
    let flags = command.get_arguments().filter_map(clap::Arg::get_long);
    flags.map(str::to_owned).collect()
}

/// Returns the environment variable of a setting.
fn variable(name: &str) -> String {
    format!("SKALD_{}", name.replace('-', "_").to_uppercase())
}

/// Returns the most similar of `names`, if one is similar.
pub(super) fn nearest(name: &str, names: &[String]) -> Option<String> {
    let near = names.iter().map(|n| (strsim::jaro_winkler(name, n), n));
    let best = near.max_by(|a, b| a.0.total_cmp(&b.0))?;
    (best.0 > 0.75).then(|| best.1.clone())
}

/// Returns the unknown `SKALD_*` variables, each with the most similar known variable.
#[must_use]
pub fn unknown_variables(variables: impl Iterator<Item = String>) -> Vec<(String, Option<String>)> {
    let mut known: Vec<String> = names().iter().map(|name| variable(name)).collect();
    known.push("SKALD_CONFIG".to_owned());
    // Used by `skald bench`, which can share an environment with the server.
    known.push("SKALD_BENCH_API_KEY".to_owned());
    variables
        .filter(|name| name.starts_with("SKALD_") && !name.starts_with("SKALD_TEST_"))
        .filter(|name| !known.contains(name))
        .map(|name| (name.clone(), nearest(&name, &known)))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_setting_has_the_variable_of_its_name() {
        let command = Settings::augment_args(Command::new("settings"));
        for argument in command.get_arguments() {
            let name = argument.get_long().expect("a flag");
            let env = argument.get_env().and_then(|env| env.to_str());
            assert_eq!(env, Some(variable(name).as_str()));
        }
    }

    #[test]
    fn an_unknown_variable_is_reported_with_the_nearest_name() {
        let variables = ["SKALD_MAX_BATHC", "SKALD_MODEL", "SKALD_TEST_X", "HOME"];
        let unknown = unknown_variables(variables.into_iter().map(str::to_owned));
        let nearest = Some("SKALD_MAX_BATCH".to_owned());
        assert_eq!(unknown, [("SKALD_MAX_BATHC".to_owned(), nearest)]);
    }
}
