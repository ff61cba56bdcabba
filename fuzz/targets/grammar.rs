#![no_main]

skald_fuzz::fuzz!(
    "grammar",
    skald_fuzz::Limits {
        millis: 5000,
        mib: 512
    }
);
