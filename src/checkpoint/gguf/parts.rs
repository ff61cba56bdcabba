//! Which files are one model: the parts of a split file, and the file of a quantization among others.

use std::path::{Path, PathBuf};

pub(in crate::checkpoint) const EXTENSION: &str = ".gguf";

/// Maximum number of parts of a model; the numbers in names have five digits.
const MAX_PARTS: usize = 99_999;

/// The name of a part: `NAME-00001-of-00003.gguf`.
struct PartName<'a> {
    /// The name before the numbers.
    model: &'a str,
    /// Number of the part, from 1.
    number: usize,
    count: usize,
}

impl<'a> PartName<'a> {
    fn parse(name: &'a str) -> Option<Self> {
        let stem = strip_extension(name)?;
        let (rest, count) = stem.rsplit_once("-of-")?;
        let (model, number) = rest.rsplit_once('-')?;
        let parse = |digits: &str| {
            let is_number = digits.len() == 5 && digits.bytes().all(|b| b.is_ascii_digit());
            is_number.then(|| digits.parse::<usize>().ok()).flatten()
        };
        let (number, count) = (parse(number)?, parse(count)?);
        let valid = (1..=count).contains(&number) && count <= MAX_PARTS;
        valid.then_some(Self {
            model,
            number,
            count,
        })
    }
}

fn strip_extension(name: &str) -> Option<&str> {
    let (stem, extension) = name.split_at_checked(name.len().checked_sub(EXTENSION.len())?)?;
    extension.eq_ignore_ascii_case(EXTENSION).then_some(stem)
}

/// Returns whether a file's name is one of a model in GGUF. A projector of images (`mmproj`) and an importance
/// matrix are not.
pub(in crate::checkpoint) fn is_model(name: &str) -> bool {
    let file = name.rsplit('/').next().unwrap_or(name).to_lowercase();
    strip_extension(&file).is_some() && !file.contains("mmproj") && !file.contains("imatrix")
}

/// Returns all files of a model, in order, of the name of one of them.
pub(in crate::checkpoint) fn of_name(name: &str) -> Vec<String> {
    match PartName::parse(name) {
        None => vec![name.to_owned()],
        Some(PartName { model, count, .. }) => {
            let part = |number| format!("{model}-{number:05}-of-{count:05}{EXTENSION}");
            (1..=count).map(part).collect()
        }
    }
}

/// Returns the paths of all files of a model, in order, of the path of one of them.
pub(super) fn of_file(path: &Path) -> Vec<PathBuf> {
    let name = path.file_name().map(|name| name.to_string_lossy());
    let parts = name.map(|name| of_name(&name)).unwrap_or_default();
    match parts.as_slice() {
        [] | [_] => vec![path.to_owned()],
        parts => parts.iter().map(|part| path.with_file_name(part)).collect(),
    }
}

/// Returns the models among files, each by its (first) file, in order.
pub(in crate::checkpoint) fn models<'a>(files: impl Iterator<Item = &'a str>) -> Vec<&'a str> {
    let is_first = |name: &&str| PartName::parse(name).is_none_or(|part| part.number == 1);
    let mut models: Vec<&str> = files
        .filter(|name| is_model(name))
        .filter(is_first)
        .collect();
    models.sort_unstable();
    models
}

/// Returns whether a file's name has a quantization, `Q4_K_M` for example, as one of the words between `-` and
/// `.`, in upper or lower case.
pub(in crate::checkpoint) fn has_quantization(name: &str, quantization: &str) -> bool {
    let file = name.rsplit('/').next().unwrap_or(name).to_lowercase();
    let Some(stem) = strip_extension(&file) else {
        return false;
    };
    let stem = match PartName::parse(&file) {
        Some(part) => part.model,
        None => stem,
    };
    // What may itself have a `-`: `UD-Q4_K_XL`.
    let wanted = quantization.to_lowercase();
    stem.match_indices(wanted.as_str()).any(|(at, found)| {
        let is_end = |c: Option<char>| c.is_none_or(|c| "-.".contains(c));
        let before = stem.get(..at).and_then(|before| before.chars().next_back());
        let after = stem.get(at + found.len()..);
        is_end(before) && is_end(after.and_then(|after| after.chars().next()))
    })
}

/// Returns whether a text can be a quantization in a model's name.
pub(in crate::checkpoint) fn is_quantization(text: &str) -> bool {
    let valid = |c: char| c.is_ascii_alphanumeric() || "_-".contains(c);
    !text.is_empty() && text.len() <= 32 && text.chars().all(valid)
}

/// Returns whether a text is the path of a model in GGUF within a repository, one that cannot leave it.
pub(in crate::checkpoint) fn is_path(text: &str) -> bool {
    let part = |part: &str| {
        let valid = |c: char| !c.is_control() && !r#"\:*?"<>|"#.contains(c);
        !part.is_empty() && !part.starts_with('.') && part.chars().all(valid)
    };
    strip_extension(text).is_some() && text.len() <= 512 && text.split('/').all(part)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_parts_of_a_split_model_are_one_model() {
        assert_eq!(of_name("a.gguf"), ["a.gguf"]);
        assert_eq!(
            of_name("q8/a-00002-of-00003.gguf"),
            [
                "q8/a-00001-of-00003.gguf",
                "q8/a-00002-of-00003.gguf",
                "q8/a-00003-of-00003.gguf"
            ]
        );
        for name in [
            "a-2-of-3.gguf",
            "a-00004-of-00003.gguf",
            "a-00000-of-00003.gguf",
            "a-+0001-of-00003.gguf",
        ] {
            assert_eq!(of_name(name), [name]);
        }
        let files = [
            "b-00002-of-00002.gguf",
            "b-00001-of-00002.gguf",
            "a.GGUF",
            "mmproj-a-F16.gguf",
            "imatrix.gguf",
            "README.md",
            "a.gguf.part",
        ];
        assert_eq!(
            models(files.into_iter()),
            ["a.GGUF", "b-00001-of-00002.gguf"]
        );
        let path = of_file(Path::new("models/a-00001-of-00002.gguf"));
        assert_eq!(path[1], Path::new("models/a-00002-of-00002.gguf"));
    }

    #[test]
    fn a_quantization_is_a_whole_word_of_the_name() {
        for (name, quantization, expected) in [
            ("gemma-3-270m-q4_k_m.gguf", "Q4_K_M", true),
            ("SmolLM2-135M-Instruct.Q4_1.gguf", "q4_1", true),
            ("Q8_0/model-Q8_0-00001-of-00002.gguf", "Q8_0", true),
            ("model-UD-Q4_K_XL.gguf", "UD-Q4_K_XL", true),
            ("model-UD-Q4_K_XL.gguf", "Q4_K_XL", true),
            ("model-Q4_K_M.gguf", "Q4_K", false),
            ("model-BF16.gguf", "F16", false),
            ("Q4_0/model-Q8_0.gguf", "Q4_0", false),
            ("model-Q8_0.txt", "Q8_0", false),
            ("f16.gguf", "F16", true),
        ] {
            assert_eq!(
                has_quantization(name, quantization),
                expected,
                "{name} {quantization}"
            );
        }
    }

    #[test]
    fn paths_that_could_leave_a_repository_are_refused() {
        for path in ["a.gguf", "q8/a b-00001-of-00002.GGUF"] {
            assert!(is_path(path), "{path}");
        }
        for path in [
            "a",
            "../a.gguf",
            "/a.gguf",
            "a//b.gguf",
            r"a\b.gguf",
            "a/.gguf",
        ] {
            assert!(!is_path(path), "{path}");
        }
        assert!(is_quantization("Q4_K_M") && is_quantization("IQ2_XXS"));
        assert!(!is_quantization("") && !is_quantization("Q4/K") && !is_quantization("Q4.K"));
    }
}
