#![no_main]

skald_fuzz::fuzz!(
    "config",
    skald_fuzz::Limits {
        millis: 1000,
        mib: 64
    }
);
