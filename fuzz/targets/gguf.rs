#![no_main]

skald_fuzz::fuzz!(
    "gguf",
    skald_fuzz::Limits {
        millis: 2000,
        mib: 128
    }
);
