//! Chooses one model in GGUF among the files of a directory or repository.

use std::fmt;

use super::parts;
use crate::checkpoint::layout::has_weights;

/// Models that an error lists.
const SHOWN: usize = 30;

/// Which of a repository's models in GGUF is wanted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum GgufChoice {
    /// The one whose name has this quantization: `org/repo:Q4_K_M`.
    Quantization(String),
    /// A file, by its path in the repository: `org/repo/file.gguf`.
    File(String),
}

impl fmt::Display for GgufChoice {
    /// Writes what follows the repository's id.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Quantization(quantization) => write!(f, ":{quantization}"),
            Self::File(file) => write!(f, "/{file}"),
        }
    }
}

impl GgufChoice {
    /// Splits the name of a model of the hub, without revision, into a repository's id and the choice.
    ///
    /// # Errors
    /// Why it is not valid.
    pub(in crate::checkpoint) fn split(text: &str) -> Result<(&str, Option<Self>), &'static str> {
        if let Some((id, quantization)) = text.split_once(':') {
            if !parts::is_quantization(quantization) {
                return Err("the text after `:` is not a quantization such as Q4_K_M");
            }
            return Ok((id, Some(Self::Quantization(quantization.to_owned()))));
        }
        if !parts::is_model(text) {
            return Ok((text, None));
        }
        let slashes = text.match_indices('/').nth(1);
        let Some((id, file)) = slashes.map(|(at, _)| text.split_at(at)) else {
            return Err("no such file");
        };
        let file = file.trim_start_matches('/');
        if !parts::is_path(file) {
            return Err("no such file, nor a valid path in a repository");
        }
        Ok((id, Some(Self::File(file.to_owned()))))
    }
}

/// Error of choosing a model in GGUF.
#[derive(Debug, thiserror::Error)]
#[error("{place} has {problem}")]
pub struct ChoiceError {
    /// The directory or repository.
    pub place: String,
    /// What it has and what to do, as the rest of a sentence.
    pub problem: String,
}

/// Returns whether a directory or repository has models in GGUF and no other weights.
pub(in crate::checkpoint) fn has_only_gguf<'a>(
    files: impl Iterator<Item = &'a str> + Clone,
) -> bool {
    let mut weights = files.clone();
    !weights.any(has_weights) && !parts::models(files).is_empty()
}

/// Returns the files of the chosen model, in order; without a choice there must be one only. `place` is the name
/// of the directory or repository in messages, `how` tells how to choose.
pub(in crate::checkpoint) fn choose<'a>(
    place: &str,
    files: &(impl Iterator<Item = &'a str> + Clone),
    choice: Option<&GgufChoice>,
    how: &str,
) -> Result<Vec<String>, ChoiceError> {
    let models = parts::models(files.clone());
    let error = |problem| {
        Err(ChoiceError {
            place: place.to_owned(),
            problem,
        })
    };
    let (matching, what) = match choice {
        Some(GgufChoice::File(file)) => {
            if files.clone().any(|known| known == file) {
                return Ok(parts::of_name(file));
            }
            (Vec::new(), format!("no file `{file}`"))
        }
        Some(GgufChoice::Quantization(wanted)) => {
            let matching = models.iter().copied();
            let matching = matching.filter(|name| parts::has_quantization(name, wanted));
            let what = format!("no model in GGUF whose name has the quantization `{wanted}`");
            (matching.collect(), what)
        }
        None => (models.clone(), "no model in GGUF".to_owned()),
    };
    match matching.as_slice() {
        [] if models.is_empty() => error(what),
        [] => error(format!("{what}; it has {}", list(&models))),
        [one] => Ok(parts::of_name(one)),
        several => {
            let list = list(several);
            error(format!("several models in GGUF: {list}; {how}"))
        }
    }
}

fn list(models: &[&str]) -> String {
    let shown = models.iter().take(SHOWN).copied();
    let mut list = shown.collect::<Vec<_>>().join(", ");
    if models.len() > SHOWN {
        list.push_str(", …");
    }
    list
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILES: [&str; 7] = [
        "README.md",
        "a-Q4_K_M.gguf",
        "a-Q8_0.gguf",
        "big/a-F16-00001-of-00002.gguf",
        "big/a-F16-00002-of-00002.gguf",
        "mmproj-a-F16.gguf",
        "config.json",
    ];

    fn choice(choice: Option<&GgufChoice>) -> Result<Vec<String>, String> {
        let chosen = choose(
            "the repository o/a",
            &FILES.into_iter(),
            choice,
            "choose one",
        );
        chosen.map_err(|error| error.to_string())
    }

    fn quantization(text: &str) -> GgufChoice {
        GgufChoice::Quantization(text.to_owned())
    }

    #[test]
    fn a_quantization_or_a_path_chooses_one_model() {
        let chosen = choice(Some(&quantization("q4_k_m")));
        assert_eq!(chosen.unwrap(), ["a-Q4_K_M.gguf"]);
        let parts = [
            "big/a-F16-00001-of-00002.gguf",
            "big/a-F16-00002-of-00002.gguf",
        ];
        assert_eq!(choice(Some(&quantization("F16"))).unwrap(), parts);
        let file = GgufChoice::File(parts[1].to_owned());
        assert_eq!(choice(Some(&file)).unwrap(), parts);
        let file = GgufChoice::File("b.gguf".to_owned());
        let message = choice(Some(&file)).unwrap_err();
        assert!(
            message.contains("no file `b.gguf`; it has a-Q4_K_M.gguf, "),
            "{message}"
        );
        let message = choice(Some(&quantization("Q2_K"))).unwrap_err();
        assert!(
            message.contains("`Q2_K`; it has a-Q4_K_M.gguf, a-Q8_0.gguf, big/"),
            "{message}"
        );
        let message = choice(None).unwrap_err();
        assert_eq!(
            message,
            "the repository o/a has several models in GGUF: a-Q4_K_M.gguf, a-Q8_0.gguf, \
             big/a-F16-00001-of-00002.gguf; choose one"
        );
        let one = choose("x", &FILES[1..2].iter().copied(), None, "");
        assert_eq!(one.unwrap(), ["a-Q4_K_M.gguf"]);
        let message = choose("x", &FILES[..1].iter().copied(), None, "").unwrap_err();
        assert_eq!(message.to_string(), "x has no model in GGUF");
        assert!(has_only_gguf(FILES.into_iter()));
        let both = FILES.into_iter().chain(["model.safetensors"]);
        assert!(!has_only_gguf(both));
        assert!(!has_only_gguf(FILES[..1].iter().copied()));
    }

    #[test]
    fn names_of_the_hub_are_split_and_written_again() {
        for (text, id, expected) in [
            ("org/repo", "org/repo", None),
            ("org/repo:Q4_K_M", "org/repo", Some(quantization("Q4_K_M"))),
            (
                "org/repo/q8/a.gguf",
                "org/repo",
                Some(GgufChoice::File("q8/a.gguf".to_owned())),
            ),
        ] {
            let (found, choice) = GgufChoice::split(text).unwrap();
            assert_eq!((found, &choice), (id, &expected));
            let written = choice.map(|choice| choice.to_string()).unwrap_or_default();
            assert_eq!(format!("{id}{written}"), text);
        }
        for (text, reason) in [
            ("org/repo:", "not a quantization"),
            ("org/repo:a/b", "not a quantization"),
            ("repo/a.gguf", "no such file"),
            ("a.gguf", "no such file"),
            ("org/repo/../a.gguf", "no such file, nor a valid path"),
        ] {
            let found = GgufChoice::split(text).unwrap_err();
            assert!(found.contains(reason), "{text}: {found}");
        }
    }
}
