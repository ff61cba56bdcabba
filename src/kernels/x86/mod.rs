//! The kernels' paths for x86-64, one file per kernel and instruction set.

pub(super) mod linear_avx2;
pub(super) mod linear_avx512;
