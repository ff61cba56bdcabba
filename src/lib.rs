//! Skald.

pub mod kernels;
