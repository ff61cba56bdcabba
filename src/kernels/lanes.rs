//! Support for row kernels: compilation for each instruction set, and reductions.
//!
//! A row kernel is one portable function, written so that the compiler can turn 16 lanes into
//! vectors. [`per_isa!`] compiles it again under each set of target features. Rust neither reorders
//! nor fuses floating-point operations by itself, and `mul_add` rounds once everywhere, so all
//! versions return the same bits.
//!
//! A reduction must never depend on the vector width: element `i` always goes to lane `i % 16`,
//! and the lanes are always folded in the same tree.

#![allow(clippy::inline_always)] // the functions must be compiled with their caller's features

use std::sync::OnceLock;

use super::Isa;

/// Partial results of a reduction, on every instruction set.
pub(crate) const LANES: usize = 16;

/// Returns the best instruction set of this processor, detected once.
pub(crate) fn best() -> Isa {
    static BEST: OnceLock<Isa> = OnceLock::new();
    *BEST.get_or_init(Isa::detect)
}

/// Defines a function whose first argument is the [`Isa`] to run on and whose work is done by
/// `$body`, an `#[inline(always)]` function of the other arguments. An instruction set that the
/// processor lacks is replaced by the best supported one, with the same result.
macro_rules! per_isa {
    ($(#[$meta:meta])* $vis:vis fn $name:ident($($arg:ident: $type:ty),* $(,)?)
        $(-> $ret:ty)? => $body:path;) => {
        $(#[$meta])*
        $vis fn $name(isa: $crate::kernels::Isa, $($arg: $type),*) $(-> $ret)? {
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx2,fma")]
            fn avx2($($arg: $type),*) $(-> $ret)? {
                $body($($arg),*)
            }
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")]
            fn avx512($($arg: $type),*) $(-> $ret)? {
                $body($($arg),*)
            }
            match isa.min($crate::kernels::lanes::best()) {
                // SAFETY: `best` found these features on this processor.
                #[cfg(target_arch = "x86_64")]
                $crate::kernels::Isa::Avx512 => unsafe { avx512($($arg),*) },
                // SAFETY: as above.
                #[cfg(target_arch = "x86_64")]
                $crate::kernels::Isa::Avx2 => unsafe { avx2($($arg),*) },
                _ => $body($($arg),*),
            }
        }
    };
}
pub(crate) use per_isa;

/// Folds every element of `row` into its lane with `step`; every lane starts as `start`.
#[inline(always)]
pub(crate) fn accumulate<T: Copy>(row: &[f32], start: T, step: impl Fn(T, f32) -> T) -> [T; LANES] {
    let mut lanes = [start; LANES];
    let (chunks, rest) = row.as_chunks::<LANES>();
    for chunk in chunks {
        for (lane, &x) in lanes.iter_mut().zip(chunk) {
            *lane = step(*lane, x);
        }
    }
    for (lane, &x) in lanes.iter_mut().zip(rest) {
        *lane = step(*lane, x);
    }
    lanes
}

/// Maps an array. Unlike `<[T; N]>::map`, it is inlined and so compiled for the caller's
/// instruction set.
#[inline(always)]
pub(crate) fn each<T: Copy + Default, const N: usize>(
    x: &[f32; N],
    f: impl Fn(f32) -> T,
) -> [T; N] {
    let mut y = [T::default(); N];
    for (y, &x) in y.iter_mut().zip(x) {
        *y = f(x);
    }
    y
}

/// Folds the lanes: 8 upon 8, then 4 upon 4, 2 upon 2, 1 upon 1.
#[inline(always)]
pub(crate) fn fold<T: Copy>(mut lanes: [T; LANES], step: impl Fn(T, T) -> T) -> T {
    let mut width = LANES / 2;
    while width > 0 {
        for i in 0..width {
            lanes[i] = step(lanes[i], lanes[i + width]);
        }
        width /= 2;
    }
    lanes[0]
}

#[cfg(test)]
#[allow(clippy::float_cmp)] // exact results are what is tested
mod tests {
    use super::*;

    #[test]
    fn elements_go_to_lane_i_mod_16_and_lanes_fold_in_one_tree() {
        let row: Vec<f32> = (0..37u8).map(f32::from).collect();
        let lanes = accumulate(&row, 0.0, |sum, x| sum + x);
        assert_eq!(lanes[4], 4.0 + 20.0 + 36.0);
        assert_eq!(lanes[5], 5.0 + 21.0);
        let names: [f64; LANES] = std::array::from_fn(|i| f64::from(1u32 << i));
        // Subtraction gives a different result for each order.
        let folded = fold(names, |a, b| a - b);
        let expected: f64 = (0..LANES)
            .map(|i| {
                let sign = if i.count_ones() % 2 == 0 { 1.0 } else { -1.0 };
                sign * names[i]
            })
            .sum();
        assert!((folded - expected).abs() < f64::EPSILON);
    }
}
