//! Skald.
fn main() {}
