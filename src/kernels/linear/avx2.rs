//! Tiles of a linear layer with AVX2 and FMA: like the AVX-512 tiles, but one quarter of a panel at
//! a time, since AVX2 has half as many registers of half the width.
//!
//! f32 and q8 give the same bits as the other paths. bf16 is widened and multiplied in f32, the
//! even feature of a word before the odd one.

use std::arch::x86_64::{
    __m256, __m256i, _mm256_add_epi32, _mm256_and_si256, _mm256_castsi256_ps, _mm256_cvtepi32_ps,
    _mm256_fmadd_ps, _mm256_loadu_si256, _mm256_madd_epi16, _mm256_set1_epi16, _mm256_set1_epi32,
    _mm256_set1_ps, _mm256_setzero_ps, _mm256_slli_epi16, _mm256_slli_epi32, _mm256_srai_epi16,
    _mm256_srli_epi16, _mm256_storeu_ps,
};

use super::panel::{PANEL, Q8_GROUP, Q8Panel, Tile};
use crate::kernels::weight_memory::Line;

/// Outputs per register.
const LANES: usize = 8;

/// Returns the words of a quarter of a panel at a step.
///
/// # Safety
/// `line` points to the two lines of a step.
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn weights(line: *const Line, quarter: usize) -> __m256i {
    // SAFETY: a quarter is eight of the 32 words in two lines.
    unsafe { _mm256_loadu_si256(line.cast::<u32>().add(quarter * LANES).cast()) }
}

/// Computes `tile[r] = sum over steps of a[step][r] * panel[step]` in f32.
///
/// # Safety
/// The processor has AVX2 and FMA. `a` holds `ROWS` words per step of the panel.
#[target_feature(enable = "avx2,fma")]
pub(super) unsafe fn f32_tile<const ROWS: usize>(a: &[u32], panel: &[Line], tile: &mut Tile) {
    for quarter in 0..PANEL / LANES {
        let mut sums = [_mm256_setzero_ps(); ROWS];
        for (a, step) in a.chunks_exact(ROWS).zip(panel.chunks_exact(2)) {
            // SAFETY: a step is two lines.
            let b = _mm256_castsi256_ps(unsafe { weights(step.as_ptr(), quarter) });
            for (sum, &x) in sums.iter_mut().zip(a) {
                *sum = _mm256_fmadd_ps(_mm256_set1_ps(f32::from_bits(x)), b, *sum);
            }
        }
        store(&sums, quarter, tile);
    }
}

/// Computes the same over bf16 words. AVX2 has no bf16 products, so both operands are widened to
/// f32.
///
/// # Safety
/// The processor has AVX2 and FMA. `a` holds `ROWS` words per step of the panel.
#[target_feature(enable = "avx2,fma")]
pub(super) unsafe fn bf16_tile<const ROWS: usize>(a: &[u32], panel: &[Line], tile: &mut Tile) {
    let high = _mm256_set1_epi32(0xffff_0000u32.cast_signed());
    for quarter in 0..PANEL / LANES {
        let mut sums = [_mm256_setzero_ps(); ROWS];
        for (a, step) in a.chunks_exact(ROWS).zip(panel.chunks_exact(2)) {
            // SAFETY: a step is two lines.
            let b = unsafe { weights(step.as_ptr(), quarter) };
            let even = _mm256_castsi256_ps(_mm256_slli_epi32::<16>(b));
            let odd = _mm256_castsi256_ps(_mm256_and_si256(b, high));
            for (sum, &x) in sums.iter_mut().zip(a) {
                let x_even = _mm256_set1_ps(f32::from_bits(x << 16));
                let x_odd = _mm256_set1_ps(f32::from_bits(x & 0xffff_0000));
                *sum = _mm256_fmadd_ps(x_even, even, *sum);
                *sum = _mm256_fmadd_ps(x_odd, odd, *sum);
            }
        }
        store(&sums, quarter, tile);
    }
}

/// Computes the same over q8 words. Products of bytes are added in pairs in 16 bits, which they
/// can't exceed, and the pairs in 32 bits.
///
/// # Safety
/// The processor has AVX2 and FMA. `a` holds `ROWS` words per step of the panel; the panel is
/// complete, with its corrections and `ROWS` activation scales per group.
#[target_feature(enable = "avx2,fma")]
pub(super) unsafe fn q8_tile<const ROWS: usize>(a: &[u32], panel: &Q8Panel<'_>, tile: &mut Tile) {
    let low = _mm256_set1_epi16(0xff);
    for quarter in 0..PANEL / LANES {
        let mut sums = [_mm256_setzero_ps(); ROWS];
        let groups = a
            .chunks(Q8_GROUP / 4 * ROWS)
            .zip(panel.lines.chunks(Q8_GROUP / 4 * 2))
            .zip(panel.corrections.chunks_exact(PANEL))
            .zip(panel.row_scales.chunks_exact(ROWS));
        for (((a, lines), corrections), scales) in groups {
            let start = corrections[quarter * LANES..].as_ptr();
            // SAFETY: a quarter is eight of the panel's 32 corrections.
            let start = unsafe { _mm256_loadu_si256(start.cast()) };
            let mut integers = [start; ROWS];
            for (a, step) in a.chunks_exact(ROWS).zip(lines.chunks_exact(2)) {
                // SAFETY: a step is two lines.
                let b = unsafe { weights(step.as_ptr(), quarter) };
                let even = _mm256_srai_epi16::<8>(_mm256_slli_epi16::<8>(b));
                let odd = _mm256_srai_epi16::<8>(b);
                for (sum, &x) in integers.iter_mut().zip(a) {
                    let x = _mm256_set1_epi32(x.cast_signed());
                    let products = _mm256_add_epi32(
                        _mm256_madd_epi16(_mm256_and_si256(x, low), even),
                        _mm256_madd_epi16(_mm256_srli_epi16::<8>(x), odd),
                    );
                    *sum = _mm256_add_epi32(*sum, products);
                }
            }
            for ((sum, &integer), &scale) in sums.iter_mut().zip(&integers).zip(scales) {
                let scale = _mm256_set1_ps(scale);
                *sum = _mm256_fmadd_ps(_mm256_cvtepi32_ps(integer), scale, *sum);
            }
        }
        store(&sums, quarter, tile);
    }
}

#[inline]
#[target_feature(enable = "avx2")]
fn store<const ROWS: usize>(sums: &[__m256; ROWS], quarter: usize, tile: &mut Tile) {
    for (row, &sum) in tile.iter_mut().zip(sums) {
        // SAFETY: a quarter is eight of a tile row's 32 values.
        unsafe { _mm256_storeu_ps(row[quarter * LANES..].as_mut_ptr(), sum) };
    }
}
