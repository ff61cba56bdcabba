//! The common part of the fuzz programs: measures the processor time and memory of each input, and makes
//! panics findings.
//!
//! The targets themselves are functions in Skald's `src/fuzzing/`.

mod measure;

pub use libfuzzer_sys;
use std::panic;

/// Limits on one input of a target.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Processor time of the whole process, in milliseconds.
    pub millis: u64,
    /// Maximum growth of memory, in MiB.
    pub mib: u64,
}

/// Libraries whose panics Skald catches and reports as errors (grammars, loading tokenizers), so these are
/// not findings. A panic that is not caught ends the process in any case.
const CAUGHT: [&str; 4] = ["/llguidance-", "/derivre-", "/toktrie-", "/tokenizers-"];

/// Defines the program of a target.
#[macro_export]
macro_rules! fuzz {
    ($name:literal, $limits:expr) => {
        $crate::libfuzzer_sys::fuzz_target!(init: $crate::begin($name), |input: &[u8]| {
            $crate::run($name, $limits, input);
        });
    };
}

/// Initializes what the first input would otherwise pay for, and makes panics end the process.
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

/// Runs a target and checks the time and memory it used.
///
/// # Panics
/// If a limit is exceeded.
pub fn run(target: &str, limits: Limits, input: &[u8]) {
    let measured = measure::begin();
    skald::fuzzing::target(target)(input);
    let (millis, mib) = measured.end();
    assert!(
        millis <= limits.millis,
        "{millis} ms exceed the limit of {} ms",
        limits.millis
    );
    assert!(
        mib <= limits.mib,
        "{mib} MiB exceed the limit of {} MiB",
        limits.mib
    );
}
