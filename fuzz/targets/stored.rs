#![no_main]

skald_fuzz::fuzz!(
    "stored",
    skald_fuzz::Limits {
        millis: 2000,
        mib: 64
    }
);
