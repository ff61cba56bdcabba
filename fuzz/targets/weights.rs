#![no_main]

skald_fuzz::fuzz!(
    "weights",
    skald_fuzz::Limits {
        millis: 2000,
        mib: 128
    }
);
