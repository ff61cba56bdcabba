//! The compute kernels, as candle custom ops: packed linear layers, attention over KV blocks,
//! norms, rotary positions, and the element-wise functions between them.
//!
//! | module | what it is for |
//! |---|---|
//! | [`linear`] | linear layers over weights packed into [`weight_memory`] |
//! | [`attention`] | attention over the blocks of a [`kv`] cache |
//! | [`kv`] | the paged cache of keys and values |
//! | [`norm`] | layer norm and RMS norm |
//! | [`rotary`] | rotary positions |
//! | [`math`] | exp, tanh, activations, rounding |
//! | [`rows`] | reductions over a row of logits |
//! | `lanes` | one order of summation for all instruction sets |
//! | [`isa`] | instruction sets |
//! | [`pool`], `affinity` | the compute threads, and the cores they are pinned to |
//! | [`activation_memory`], `huge_pages` | the allocator's settings, and huge pages |
//! | [`stored`] | the types that checkpoints store weights in, and their values as f32 |
//! | `shared_slice`, `storage` | slices that tasks share, and tensors as slices |
//! | [`prefetch`] | prefetching of memory that is read next |
//!
//! Kernels work on slices and shapes. They must never know about sequences, sessions or requests,
//! and every output element must be reduced in one fixed order, regardless of the number of rows: that
//! is what makes a request's tokens independent of the batch it runs in.

// A kernel's body is compiled once per instruction set, so it has to be inlined into the function
// that enables the features.
#![allow(clippy::inline_always)]

pub mod activation_memory;
mod affinity;
pub mod attention;
mod huge_pages;
pub mod isa;
pub mod kv;
mod lanes;
pub mod linear;
pub mod math;
pub mod norm;
pub mod pool;
pub mod prefetch;
pub mod rotary;
pub mod rows;
mod shared_slice;
mod storage;
pub mod stored;
pub mod weight_memory;

pub use isa::Isa;
pub use pool::Pool;
pub(crate) use shared_slice::SharedSlice;
