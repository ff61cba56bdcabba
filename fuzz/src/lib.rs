//! What the fuzz targets' programs have in common: each input's processor time and memory are measured,
//! and a panic is a finding.
//!
//! The targets themselves are functions of Skald's, in `src/fuzzing/`.

mod measure;

pub use libfuzzer_sys;
use std::panic;

/// What one input of a target may take.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Processor time of the whole process, in milliseconds.
    pub millis: u64,
    /// Memory at a time beyond what there was before, in MiB.
    pub mib: u64,
}

/// Libraries that follow grammars and load tokenizers. Skald catches their panics there and reports them
/// as errors, so these are not findings. One that is not caught ends the process all the same.
const CAUGHT: [&str; 4] = ["/llguidance-", "/derivre-", "/toktrie-", "/tokenizers-"];

/// Makes the program of a target.
#[macro_export]
macro_rules! fuzz {
    ($name:literal, $limits:expr) => {
        $crate::libfuzzer_sys::fuzz_target!(init: $crate::begin($name), |input: &[u8]| {
            $crate::run($name, $limits, input);
        });
    };
}

/// Prepares what the target's first input would pay for, and makes panics end the process.
pub fn begin(target: &str) {
    let default = panic::take_hook();
    panic::set_hook(Box::new(move |panic| {
        let file = panic.location().map_or("", |location| location.file());
        if !CAUGHT.iter().any(|library| file.contains(library)) {
            default(panic);
        }
    }));
    skald::fuzzing::target(target)(b"a");
}

/// Runs a target and checks what the input took.
///
/// # Panics
/// If it took more than the limits.
pub fn run(target: &str, limits: Limits, input: &[u8]) {
    let measured = measure::begin();
    skald::fuzzing::target(target)(input);
    let (millis, mib) = measured.end();
    assert!(
        millis <= limits.millis,
        "{millis} ms; at most {} are allowed",
        limits.millis
    );
    assert!(
        mib <= limits.mib,
        "{mib} MiB; at most {} are allowed",
        limits.mib
    );
}
