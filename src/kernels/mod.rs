//! The compute kernels, as candle custom ops: packed linear layers, attention over KV blocks,
//! layer norm, and the element-wise functions between them.
//!
//! Kernels know slices and shapes. They must never know of sequences, sessions or requests, and
//! every output element must be reduced in one fixed order, whatever the number of rows: that is
//! what makes a request's tokens independent of the batch it runs in.

pub mod attention;
pub mod isa;
pub mod kv;
mod lanes;
pub mod math;
pub mod norm;
pub mod pool;
pub mod rows;

pub use isa::Isa;
pub use pool::Pool;
