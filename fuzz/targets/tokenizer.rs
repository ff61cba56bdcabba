#![no_main]

skald_fuzz::fuzz!(
    "tokenizer",
    skald_fuzz::Limits {
        millis: 5000,
        mib: 512
    }
);
