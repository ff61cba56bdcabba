//! The fuzz targets of `fuzz/`, one function each.
//!
//! A target calls the same entry points as the server and checks properties of every input, not only that
//! nothing panics. `fuzz/` runs the functions with libFuzzer and measures the time and memory of each input;
//! the test below runs them on the inputs in `fuzz/corpus/`.
//!
//! Compiled for tests and fuzzers only. A target must not depend on earlier inputs, or findings could not be
//! reproduced.

mod config;
mod gguf;
mod grammar;
mod input;
mod requests;
mod scheduler;
mod stored;
mod stream;
mod template;
mod tiny;
mod tokenizer;
mod weights;

/// A function that panics if a property is violated for an input.
pub type Target = fn(&[u8]);

/// All targets, by their names in `fuzz/Cargo.toml` and `fuzz/corpus/`.
pub const TARGETS: [(&str, Target); 10] = [
    ("config", config::run),
    ("gguf", gguf::run),
    ("grammar", grammar::run),
    ("requests", requests::run),
    ("scheduler", scheduler::run),
    ("stored", stored::run),
    ("stream", stream::run),
    ("template", template::run),
    ("tokenizer", tokenizer::run),
    ("weights", weights::run),
];

/// Returns the target with this name.
///
/// # Panics
/// If the target does not exist.
#[must_use]
pub fn target(name: &str) -> Target {
    let known = TARGETS.iter().find(|(known, _)| *known == name);
    known.map(|(_, target)| *target).expect("a target's name")
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::fs;
    use std::path::{Path, PathBuf};

    use super::*;

    fn files(dir: &Path) -> Vec<PathBuf> {
        let entries = fs::read_dir(dir).unwrap_or_else(|e| panic!("{}: {e}", dir.display()));
        let mut files: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
        files.sort();
        files
    }

    fn fuzz_dir() -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz")
    }

    /// Runs a target on its corpus.
    fn replay(name: &str) {
        let target = target(name);
        for file in files(&fuzz_dir().join("corpus").join(name)) {
            let input = fs::read(&file).unwrap();
            // A failing test's output then ends with the name of the input.
            println!("{}", file.display());
            target(&input);
        }
    }

    macro_rules! replayed {
        ($($name:ident)+) => {
            $(#[test]
            fn $name() {
                replay(stringify!($name));
            })+

            #[test]
            fn every_target_is_replayed_and_has_a_program_and_a_corpus() {
                let replayed = BTreeSet::from([$(stringify!($name)),+]);
                let targets = BTreeSet::from(TARGETS.map(|(name, _)| name));
                assert_eq!(replayed, targets);
                let named = |dir: &str| -> BTreeSet<String> {
                    let files = files(&fuzz_dir().join(dir)).into_iter();
                    files.map(|f| f.file_stem().unwrap().to_string_lossy().into_owned()).collect()
                };
                let targets: BTreeSet<String> = targets.into_iter().map(str::to_owned).collect();
                assert_eq!(named("targets"), targets);
                assert_eq!(named("corpus"), targets);
            }
        };
    }

    replayed!(config gguf grammar requests scheduler stored stream template tokenizer weights);

    #[test]
    fn the_corpus_is_small() {
        let corpora = files(&fuzz_dir().join("corpus"));
        let kept: Vec<PathBuf> = corpora.iter().flat_map(|dir| files(dir)).collect();
        let sizes = kept.iter().map(|file| fs::metadata(file).unwrap().len());
        assert!(sizes.clone().all(|size| size <= 8 << 10));
        assert!(sizes.sum::<u64>() < 1 << 20);
    }
}
