//! Operations on a row of logits, for sampling.
//!
//! The functions choose the instruction set themselves; it affects their speed, never their
//! results. A row has one element per token of the vocabulary.

#![allow(clippy::inline_always)] // the functions must be compiled with their caller's features

use super::lanes::{accumulate, best, fold, per_isa};
use super::math;
use super::prefetch::prefetch;

/// Elements checked for NaN and infinity at a time.
const FINITE_BLOCK: usize = 512;
/// Prefetch distance, in elements: other threads wrote half of the row, so it is in their caches.
const AHEAD: usize = 2048;

/// Returns whether no element is NaN or infinite.
#[must_use]
pub fn all_finite(row: &[f32]) -> bool {
    row.chunks(FINITE_BLOCK).all(|block| {
        for line in (0..FINITE_BLOCK).step_by(64 / size_of::<f32>()) {
            prefetch(block.as_ptr().wrapping_add(AHEAD + line));
        }
        largest_magnitude(best(), block) < f32::INFINITY.to_bits()
    })
}

/// Returns the Euclidean norm, added up in f64.
#[must_use]
#[expect(
    clippy::cast_possible_truncation,
    reason = "the precision of the elements"
)]
pub fn norm(row: &[f32]) -> f32 {
    let squares: f64 = row.iter().map(|&x| f64::from(x).powi(2)).sum();
    squares.sqrt() as f32
}

/// Elements in a block of [`block_sums`], [`greatest_of_blocks`] and [`select_at_least`].
pub const BLOCK: usize = 64;

/// Replaces every element by `(x - highest) * factor`, and writes [`math::exp`] of that to `weights`.
pub fn weigh(row: &mut [f32], highest: f32, factor: f32, weights: &mut Vec<f32>) {
    weights.resize(row.len(), 0.0);
    weigh_each(best(), row, highest, factor, weights);
}

/// Keeps the elements whose bit is set (bit `i % 32` of word `i / 32`) and sets all others,
/// including those past the last word, to negative infinity.
pub fn keep(row: &mut [f32], bits: &[u32]) {
    let words = bits.iter().copied().chain(std::iter::repeat(0));
    for (elements, word) in row.chunks_mut(32).zip(words) {
        match word {
            0 => elements.fill(f32::NEG_INFINITY),
            u32::MAX => (),
            _ => {
                for (bit, element) in elements.iter_mut().enumerate() {
                    if word >> bit & 1 == 0 {
                        *element = f32::NEG_INFINITY;
                    }
                }
            }
        }
    }
}

/// Computes the sum of each block of [`BLOCK`] elements, in f64.
pub fn block_sums(row: &[f32], sums: &mut Vec<f64>) {
    sums.resize(row.len().div_ceil(BLOCK), 0.0);
    sum_blocks(best(), row, sums);
}

/// Finds the greatest element of each block of [`BLOCK`] elements, ignoring NaN.
pub fn greatest_of_blocks(row: &[f32], greatest: &mut Vec<f32>) {
    greatest.resize(row.len().div_ceil(BLOCK), 0.0);
    find_greatest_of_blocks(best(), row, greatest);
}

/// Calls `take` with the index of every element that is at least `floor`, in order. `greatest`
/// comes from [`greatest_of_blocks`], so that a block without such an element costs one comparison.
pub fn select_at_least(row: &[f32], greatest: &[f32], floor: f32, mut take: impl FnMut(usize)) {
    for (n, (block, &greatest)) in row.chunks(BLOCK).zip(greatest).enumerate() {
        if greatest >= floor {
            for (i, &x) in block.iter().enumerate() {
                if x >= floor {
                    take(n * BLOCK + i);
                }
            }
        }
    }
}

/// Returns the n-th greatest of `greatest`, which comes from [`greatest_of_blocks`]; negative
/// infinity if there are fewer than `n` blocks. At least `n` elements of the row reach it, and few
/// more if the greatest elements are scattered.
#[must_use]
pub fn floor_of_greatest(greatest: &[f32], n: usize) -> f32 {
    if n == 0 || n > greatest.len() {
        return f32::NEG_INFINITY;
    }
    let mut greatest = greatest.to_vec();
    let (_, floor, _) = greatest.select_nth_unstable_by(n - 1, |a, b| b.total_cmp(a));
    *floor
}

/// Returns the index and value of the greatest element, the first among equals. NaN is ignored;
/// `None` if every element is NaN.
#[must_use]
pub fn argmax(row: &[f32]) -> Option<(usize, f32)> {
    let isa = best();
    let index = position(isa, row, greatest(isa, row));
    row.get(index).map(|&x| (index, x))
}

/// Returns `ln(sum(exp(row)))`, computed about the greatest element so that it does not overflow.
/// Negative infinity for an empty row, NaN if any element is.
#[must_use]
pub fn log_sum_exp(row: &[f32]) -> f32 {
    let isa = best();
    let highest = greatest(isa, row);
    if highest.is_infinite() {
        let nan = row.iter().copied().find(|x| x.is_nan());
        return nan.unwrap_or(highest);
    }
    let sum = sum_exp_below(isa, row, highest);
    (f64::from(highest) + sum.ln()) as f32
}

#[inline(always)]
fn largest_magnitude_body(row: &[f32]) -> u32 {
    // Without its sign, a float compares like its bits, NaN above infinity.
    let lanes = accumulate(row, 0, |most: u32, x| most.max(x.abs().to_bits()));
    fold(lanes, u32::max)
}

#[inline(always)]
fn greatest_body(row: &[f32]) -> f32 {
    let greater = |most: f32, x: f32| if x > most { x } else { most };
    fold(accumulate(row, f32::NEG_INFINITY, greater), greater)
}

#[inline(always)]
#[allow(clippy::float_cmp)] // `value` is one of the elements
fn position_body(row: &[f32], value: f32) -> usize {
    let (chunks, rest) = row.as_chunks::<64>();
    for (n, chunk) in chunks.iter().enumerate() {
        if chunk.iter().map(|&x| u32::from(x == value)).sum::<u32>() > 0 {
            let within = chunk.iter().position(|&x| x == value);
            return n * 64 + within.unwrap_or(0);
        }
    }
    let within = rest.iter().position(|&x| x == value);
    within.map_or(row.len(), |within| chunks.len() * 64 + within)
}

#[inline(always)]
fn sum_exp_below_body(row: &[f32], highest: f32) -> f64 {
    let lanes = accumulate(row, 0.0, |sum: f64, x| {
        sum + f64::from(math::exp(x - highest))
    });
    fold(lanes, |a, b| a + b)
}

#[inline(always)]
fn weigh_each_body(row: &mut [f32], highest: f32, factor: f32, weights: &mut [f32]) {
    for (x, weight) in row.iter_mut().zip(weights) {
        *x = (*x - highest) * factor;
        *weight = math::exp(*x);
    }
}

#[inline(always)]
fn sum_blocks_body(row: &[f32], sums: &mut [f64]) {
    for (block, sum) in row.chunks(BLOCK).zip(sums) {
        let lanes = accumulate(block, 0.0, |sum: f64, x| sum + f64::from(x));
        *sum = fold(lanes, |a, b| a + b);
    }
}

#[inline(always)]
fn find_greatest_of_blocks_body(row: &[f32], greatest: &mut [f32]) {
    for (block, greatest) in row.chunks(BLOCK).zip(greatest) {
        *greatest = greatest_body(block);
    }
}

per_isa! {
    /// Implements [`weigh`]; both slices have the same length.
    fn weigh_each(row: &mut [f32], highest: f32, factor: f32, weights: &mut [f32])
        => weigh_each_body;
}

per_isa! {
    /// Implements [`block_sums`].
    fn sum_blocks(row: &[f32], sums: &mut [f64]) => sum_blocks_body;
}

per_isa! {
    /// Implements [`greatest_of_blocks`].
    fn find_greatest_of_blocks(row: &[f32], greatest: &mut [f32]) => find_greatest_of_blocks_body;
}

per_isa! {
    /// Returns the bits of the greatest magnitude; NaN compares greater than infinity.
    fn largest_magnitude(row: &[f32]) -> u32 => largest_magnitude_body;
}

per_isa! {
    /// Returns the greatest element, ignoring NaN; negative infinity if there is none.
    fn greatest(row: &[f32]) -> f32 => greatest_body;
}

per_isa! {
    /// Returns the first index of `value`, or the length of the row if it does not occur.
    fn position(row: &[f32], value: f32) -> usize => position_body;
}

per_isa! {
    /// Returns the sum of `exp(x - highest)`, in f64, so that 50,000 terms do not lose precision.
    fn sum_exp_below(row: &[f32], highest: f32) -> f64 => sum_exp_below_body;
}

#[cfg(test)]
#[allow(clippy::float_cmp)] // exact results are what is tested
mod tests {
    use super::super::Isa;
    use super::*;

    const LENGTHS: [usize; 9] = [1, 15, 16, 17, 63, 64, 768, 1600, 50_257];

    /// Returns values between -20 and 20 with many ties, from a linear congruential generator.
    fn row(len: usize, mut state: u32) -> Vec<f32> {
        let mut next = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 20) as f32 / 102.4 - 20.0
        };
        (0..len).map(|_| next()).collect()
    }

    #[test]
    fn weights_are_exp_of_each_element_alone() {
        let row = row(1600, 5);
        let mut scaled = row.clone();
        let mut weights = Vec::new();
        weigh(&mut scaled, 0.0, 1.0, &mut weights);
        assert_eq!(scaled, row);
        for (&x, y) in row.iter().zip(weights) {
            assert_eq!(math::exp(x).to_bits(), y.to_bits());
        }
    }

    #[test]
    fn elements_without_a_bit_become_negative_infinity() {
        for len in LENGTHS {
            let row = row(len, 3);
            // Words of all kinds; the last elements are past the last word.
            let bits: Vec<u32> = [0, u32::MAX, 0b1010, 1 << 31]
                .into_iter()
                .cycle()
                .take((len / 32).max(1))
                .collect();
            let mut kept = row.clone();
            keep(&mut kept, &bits);
            for (i, (&was, &is)) in row.iter().zip(&kept).enumerate() {
                let set = bits
                    .get(i / 32)
                    .is_some_and(|word| word >> (i % 32) & 1 == 1);
                assert_eq!(is, if set { was } else { f32::NEG_INFINITY }, "{len} {i}");
            }
        }
    }

    #[test]
    fn one_bad_element_anywhere_is_found() {
        for len in LENGTHS {
            let mut row = row(len, 1);
            row[0] = f32::MAX;
            assert!(all_finite(&row));
            for at in [0, len / 2, len - 1] {
                for bad in [f32::NAN, -f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
                    let good = std::mem::replace(&mut row[at], bad);
                    assert!(!all_finite(&row), "{bad} at {at} of {len}");
                    row[at] = good;
                }
            }
        }
        assert!(all_finite(&[]));
    }

    #[test]
    fn argmax_is_the_first_of_the_greatest() {
        for len in LENGTHS {
            for seed in 0..20 {
                let row = row(len, seed);
                let expected = (0..len).rev().max_by(|&a, &b| row[a].total_cmp(&row[b]));
                let expected = expected.map(|index| (index, row[index]));
                assert_eq!(argmax(&row), expected, "{len} elements, seed {seed}");
            }
        }
        assert_eq!(argmax(&[]), None);
        assert_eq!(argmax(&[f32::NAN; 70]), None);
        assert_eq!(
            argmax(&[f32::NEG_INFINITY; 70]),
            Some((0, f32::NEG_INFINITY))
        );
        assert_eq!(argmax(&[f32::NAN, -1.0, f32::NAN]), Some((1, -1.0)));
        assert_eq!(argmax(&[1.0, f32::INFINITY]), Some((1, f32::INFINITY)));
    }

    #[test]
    fn blocks_are_summed_and_searched_like_the_row() {
        for len in LENGTHS {
            let row = row(len, 3);
            let (mut sums, mut greatest) = (Vec::new(), Vec::new());
            block_sums(&row, &mut sums);
            greatest_of_blocks(&row, &mut greatest);
            let total: f64 = row.iter().map(|&x| f64::from(x)).sum();
            assert!((sums.iter().sum::<f64>() - total).abs() < 1e-6);
            for n in [1, 5, len] {
                let floor = floor_of_greatest(&greatest, n);
                let mut found = Vec::new();
                select_at_least(&row, &greatest, floor, |i| found.push(i));
                let expected: Vec<usize> = (0..len).filter(|&i| row[i] >= floor).collect();
                assert_eq!(found, expected);
                assert!(found.len() >= n.min(len));
            }
        }
        assert_eq!(floor_of_greatest(&[], 1), f32::NEG_INFINITY);
    }

    #[test]
    fn log_sum_exp_is_that_of_f64() {
        for len in LENGTHS {
            for offset in [0.0, 1000.0, -1000.0] {
                let row: Vec<f32> = row(len, 7).iter().map(|x| x + offset).collect();
                let wide = |x: &f32| f64::from(*x) - f64::from(offset);
                let truth = row.iter().map(|x| wide(x).exp()).sum::<f64>().ln();
                let truth = truth + f64::from(offset);
                let error = (f64::from(log_sum_exp(&row)) - truth).abs();
                assert!(
                    error <= 1e-7 * truth.abs().max(5.0),
                    "{len} elements: off by {error}"
                );
            }
        }
    }

    #[test]
    fn log_sum_exp_of_infinities_and_nan() {
        const INFINITY: f32 = f32::INFINITY;
        assert_eq!(log_sum_exp(&[]), -INFINITY);
        assert_eq!(log_sum_exp(&[-INFINITY; 3]), -INFINITY);
        assert_eq!(log_sum_exp(&[1.0, -INFINITY]), 1.0);
        assert_eq!(log_sum_exp(&[1.0, INFINITY, INFINITY]), INFINITY);
        for row in [
            [f32::NAN, 1.0],
            [1.0, f32::NAN],
            [f32::NAN, INFINITY],
            [f32::NAN; 2],
        ] {
            assert!(log_sum_exp(&row).is_nan(), "{row:?}");
        }
    }

    #[test]
    fn all_instruction_sets_give_the_same_bits() {
        for len in LENGTHS {
            for seed in 0..5 {
                let row = row(len, seed);
                let results = |isa| {
                    let highest = greatest(isa, &row);
                    (
                        highest.to_bits(),
                        position(isa, &row, highest),
                        largest_magnitude(isa, &row),
                        sum_exp_below(isa, &row, highest).to_bits(),
                    )
                };
                for isa in Isa::available() {
                    assert_eq!(
                        results(isa),
                        results(Isa::Portable),
                        "{} of {len}",
                        isa.name()
                    );
                }
            }
        }
    }
}
