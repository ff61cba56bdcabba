//! What the fuzz targets of `fuzz/` do with their inputs, one function for each.
//!
//! A target calls the same entry points as the server does and checks what must hold of any input, not
//! only that nothing panics. `fuzz/` feeds the functions from libFuzzer and measures the time and memory
//! of each input; the test below runs the kept inputs, `fuzz/corpus/`, through them.
//!
//! Compiled for tests and fuzzers only. A target must not depend on earlier inputs: a finding would not
//! come again.

mod config;
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

/// A function that panics on an input for which something does not hold that must.
pub type Target = fn(&[u8]);

/// All targets by the names that `fuzz/Cargo.toml` and `fuzz/corpus/` have for them.
pub const TARGETS: [(&str, Target); 9] = [
    ("config", config::run),
    ("grammar", grammar::run),
    ("requests", requests::run),
    ("scheduler", scheduler::run),
    ("stored", stored::run),
    ("stream", stream::run),
    ("template", template::run),
    ("tokenizer", tokenizer::run),
    ("weights", weights::run),
];

/// Returns the target of a name.
///
/// # Panics
/// If there is none.
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

    /// Runs what is kept of one target.
    fn replay(name: &str) {
        let target = target(name);
        for file in files(&fuzz_dir().join("corpus").join(name)) {
            let input = fs::read(&file).unwrap();
            // Its name stands in the output of a test that fails.
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

    replayed!(config grammar requests scheduler stored stream template tokenizer weights);

    #[test]
    fn what_is_kept_is_small() {
        let corpora = files(&fuzz_dir().join("corpus"));
        let kept: Vec<PathBuf> = corpora.iter().flat_map(|dir| files(dir)).collect();
        let sizes = kept.iter().map(|file| fs::metadata(file).unwrap().len());
        assert!(sizes.clone().all(|size| size <= 8 << 10));
        assert!(sizes.sum::<u64>() < 1 << 20);
    }
}
