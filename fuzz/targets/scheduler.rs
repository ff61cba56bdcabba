#![no_main]

skald_fuzz::fuzz!(
    "scheduler",
    skald_fuzz::Limits {
        millis: 10000,
        mib: 64
    }
);
