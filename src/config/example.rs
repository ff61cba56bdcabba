//! `config/skald.toml`, which has every setting with its help and default, and nothing else.

use std::collections::HashSet;

use clap::{Arg, Args, Command};

use super::layer::Layer;
use super::settings::Settings;

/// The width of a comment, in characters.
const WIDTH: usize = 100;

const HEADER: &str = "\
# All settings of `skald serve --config config/skald.toml`, each at its default.
# Flags (`--max-batch 32`) and environment variables (`SKALD_MAX_BATCH=32`) override this file.
# An unknown key is an error. Sizes are written 512MiB or 2GB, durations 30s or 500ms.
";

/// Returns the file that the declarations of the settings make.
fn example() -> String {
    let command = Settings::augment_args(Command::new("settings"));
    let mut parts = vec![HEADER.to_owned()];
    let mut headings: Vec<_> = command.get_arguments().map(Arg::get_help_heading).collect();
    // In the order of their first settings, as in the help.
    let mut seen = HashSet::new();
    headings.retain(|heading| seen.insert(*heading));
    for heading in headings {
        parts.push(format!("\n## {}\n", heading.expect("a heading")));
        let arguments = command.get_arguments();
        for argument in arguments.filter(|argument| argument.get_help_heading() == heading) {
            parts.push(format!("\n{}{}\n", help(argument), assignment(argument)));
        }
    }
    parts.concat()
}

/// Returns a setting's help as comments.
fn help(argument: &Arg) -> String {
    let help = argument
        .get_long_help()
        .or(argument.get_help())
        .expect("help")
        .to_string();
    let mut paragraphs: Vec<String> = help.split("\n\n").map(sentence).collect();
    // Those of a flag without a list of values are true and false.
    if argument
        .get_num_args()
        .is_none_or(|range| range.min_values() > 0)
    {
        let values = argument.get_possible_values();
        paragraphs.extend(values.iter().map(|value| {
            let help = value.get_help().expect("help");
            format!("\"{}\": {}", value.get_name(), sentence(&help.to_string()))
        }));
    }
    paragraphs
        .iter()
        .map(|paragraph| comment(paragraph))
        .collect()
}

/// Returns a paragraph of help with the default at its end as a sentence.
fn sentence(paragraph: &str) -> String {
    let (text, default) = match paragraph.split_once(" [default: ") {
        Some((text, default)) => (text, Some(default.trim_end_matches(']'))),
        None => (paragraph, None),
    };
    let text = format!("{}.", text.trim_end_matches('.'));
    default.map_or(text.clone(), |default| {
        format!("{text} Default: {default}.")
    })
}

/// Returns a paragraph as comments of a limited width.
fn comment(paragraph: &str) -> String {
    let mut lines = vec!["#".to_owned()];
    for word in paragraph.split_whitespace() {
        if lines
            .last()
            .is_some_and(|line| line.len() + 1 + word.len() > WIDTH)
        {
            lines.push("#".to_owned());
        }
        if let Some(line) = lines.last_mut() {
            *line += " ";
            *line += word;
        }
    }
    lines.join("\n") + "\n"
}

/// Returns the line that sets the default, or a comment where nothing is set by default.
fn assignment(argument: &Arg) -> String {
    let name = argument.get_long().expect("a flag");
    let default = argument.get_default_values().first();
    match default.and_then(|default| default.to_str()) {
        Some(default) if default.parse::<usize>().is_ok() || default.parse::<bool>().is_ok() => {
            format!("{name} = {default}")
        }
        Some(default) => format!("{name} = \"{default}\""),
        None => {
            let placeholder = argument.get_value_names().and_then(|names| names.first());
            match placeholder.expect("a value's name").as_str() {
                "N" => format!("# {name} = N"),
                "HOST" | "ORIGIN" => format!("{name} = []"),
                placeholder => format!("# {name} = \"{placeholder}\""),
            }
        }
    }
}

/// Compares the file with the declarations. With `SKALD_TEST_WRITE=1`, writes the file instead.
#[test]
fn the_documented_file_matches_the_declarations() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/config/skald.toml");
    let example = example();
    if std::env::var_os("SKALD_TEST_WRITE").is_some() {
        std::fs::write(path, &example).expect("written");
    }
    let text = std::fs::read_to_string(path).expect("the file");
    for (line, expected) in text.lines().zip(example.lines()) {
        assert_eq!(line, expected, "see this test's description");
    }
    assert_eq!(text, example);
    let layer = Layer::from_toml(path.as_ref(), &text).expect("valid");
    let defaults = Layer::default().settings().expect("defaults");
    assert_eq!(layer.settings().expect("valid"), defaults);
}
