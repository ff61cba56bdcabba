#![no_main]

skald_fuzz::fuzz!(
    "template",
    skald_fuzz::Limits {
        millis: 3000,
        mib: 256
    }
);
