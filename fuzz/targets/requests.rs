#![no_main]

skald_fuzz::fuzz!(
    "requests",
    skald_fuzz::Limits {
        millis: 10000,
        mib: 512
    }
);
