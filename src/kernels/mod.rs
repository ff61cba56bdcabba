//! The compute kernels, as candle custom ops: packed linear layers, attention over KV blocks,
//! layer norm, and the element-wise functions between them.
//!
//! - [`linear`]: linear layers; `pack` lays their operands out in [`weight_memory`],
//!   `linear_tile` computes a tile.
//! - [`attention`]: attention over the blocks of a [`kv`] cache.
//! - [`norm`]: layer norm. [`math`]: exp and GELU. [`rows`]: reductions over a row of logits.
//!   `lanes` is how all of them order their sums.
//! - [`isa`] is what they run on, [`pool`] the threads they run on (`affinity` says on
//!   which cores), [`activation_memory`] where their results lie.
//! - `x86` has the paths of single instruction sets.
//! - `prefetch` has memory fetched that is about to be read or written.
//!
//! Kernels know slices and shapes. They must never know of sequences, sessions or requests, and
//! every output element must be reduced in one fixed order, whatever the number of rows: that is
//! what makes a request's tokens independent of the batch it runs in.

// A kernel's body is compiled once per instruction set: it has to be inlined into the function
// that enables it.
#![allow(clippy::inline_always)]

pub mod activation_memory;
mod affinity;
pub mod attention;
mod huge_pages;
pub mod isa;
pub mod kv;
mod lanes;
pub mod linear;
mod linear_tile;
pub mod math;
pub mod norm;
mod pack;
pub mod pool;
mod prefetch;
pub mod rows;
mod shared_slice;
pub mod weight_memory;
#[cfg(target_arch = "x86_64")]
mod x86;

pub use isa::Isa;
pub use pool::Pool;
pub(crate) use shared_slice::SharedSlice;
