//! Tiles of a linear layer with AVX-512: a block of rows times one panel. The sums stay in
//! registers from the first input feature to the last, so each weight is loaded once per block of
//! rows.
//!
//! A step loads two registers of weight words and, for every row, broadcasts one activation word.
//! For f32 the additions are those of the portable tile, in the same order, so the bits are the
//! same; for q8 the integers are the same.

use std::arch::x86_64::{
    __m512, __m512bh, __m512i, _mm512_castsi512_ps, _mm512_cvtepi32_ps, _mm512_cvtne2ps_pbh,
    _mm512_dpbf16_ps, _mm512_dpbusd_epi32, _mm512_fmadd_ps, _mm512_load_si512, _mm512_loadu_ps,
    _mm512_loadu_si512, _mm512_maskz_loadu_ps, _mm512_set1_epi32, _mm512_set1_ps,
    _mm512_setzero_ps, _mm512_storeu_ps, _mm512_storeu_si512,
};

use super::panel::{PANEL, Q8_GROUP, Q8Panel, Tile};
use crate::kernels::prefetch::prefetch_near as prefetch;
use crate::kernels::weight_memory::Line;

/// Prefetch distance ahead of the loads, in lines: far enough to cross the end of a page, where the
/// hardware prefetchers stop.
const AHEAD: usize = 128;

/// Computes `tile[r] = sum over steps of a[step][r] * panel[step]` in f32.
///
/// # Safety
/// The processor has AVX-512F. `a` holds `ROWS` words per step of the panel.
#[target_feature(enable = "avx512f")]
pub(super) unsafe fn f32_tile<const ROWS: usize>(a: &[u32], panel: &[Line], tile: &mut Tile) {
    let mut sums = [[_mm512_setzero_ps(); 2]; ROWS];
    let (mut a, mut b) = (a.as_ptr(), panel.as_ptr());
    for _ in 0..panel.len() / 2 {
        // SAFETY: two lines and `ROWS` words are left per remaining step; prefetching past the
        // end is harmless.
        unsafe {
            prefetch(b.wrapping_add(AHEAD));
            prefetch(b.wrapping_add(AHEAD + 1));
            let b0 = _mm512_castsi512_ps(_mm512_load_si512(b.cast()));
            let b1 = _mm512_castsi512_ps(_mm512_load_si512(b.add(1).cast()));
            for (r, sums) in sums.iter_mut().enumerate() {
                let x = _mm512_set1_ps(f32::from_bits(*a.add(r)));
                sums[0] = _mm512_fmadd_ps(x, b0, sums[0]);
                sums[1] = _mm512_fmadd_ps(x, b1, sums[1]);
            }
            a = a.add(ROWS);
            b = b.add(2);
        }
    }
    store(&sums, tile);
}

/// Computes the same over bf16 words, two products per word, accumulated by `vdpbf16ps`.
///
/// # Safety
/// The processor has AVX-512F and BF16. `a` holds `ROWS` words per step of the panel.
#[target_feature(enable = "avx512f,avx512bf16")]
pub(super) unsafe fn bf16_tile<const ROWS: usize>(a: &[u32], panel: &[Line], tile: &mut Tile) {
    let mut sums = [[_mm512_setzero_ps(); 2]; ROWS];
    let (mut a, mut b) = (a.as_ptr(), panel.as_ptr());
    for _ in 0..panel.len() / 2 {
        // SAFETY: two lines and `ROWS` words are left per remaining step; prefetching past the
        // end is harmless.
        unsafe {
            prefetch(b.wrapping_add(AHEAD));
            prefetch(b.wrapping_add(AHEAD + 1));
            let b0 = _mm512_load_si512(b.cast());
            let b1 = _mm512_load_si512(b.add(1).cast());
            for (r, sums) in sums.iter_mut().enumerate() {
                let x = _mm512_set1_epi32(a.add(r).read().cast_signed());
                sums[0] = dot_bf16(sums[0], x, b0);
                sums[1] = dot_bf16(sums[1], x, b1);
            }
            a = a.add(ROWS);
            b = b.add(2);
        }
    }
    store(&sums, tile);
}

#[inline]
#[target_feature(enable = "avx512f,avx512bf16")]
fn dot_bf16(sum: __m512, x: __m512i, weights: __m512i) -> __m512 {
    // SAFETY: the types differ in name only: 512 bits each.
    let bf16 = |words| unsafe { std::mem::transmute::<__m512i, __m512bh>(words) };
    _mm512_dpbf16_ps(sum, bf16(x), bf16(weights))
}

/// Computes the same over q8 words, for few rows: integer sums over a group of features are
/// multiplied by the rows' scales and added in f32.
///
/// # Safety
/// The processor has AVX-512F and VNNI. `a` holds `ROWS` words per step of the panel; the panel is
/// complete, with its corrections and `ROWS` activation scales per group.
#[target_feature(enable = "avx512f,avx512vnni")]
pub(super) unsafe fn q8_tile<const ROWS: usize>(a: &[u32], panel: &Q8Panel<'_>, tile: &mut Tile) {
    let mut sums = [[_mm512_setzero_ps(); 2]; ROWS];
    let groups = a
        .chunks(Q8_GROUP / 4 * ROWS)
        .zip(panel.lines.chunks(Q8_GROUP / 4 * 2))
        .zip(panel.corrections.as_chunks().0)
        .zip(panel.row_scales.as_chunks().0);
    for (((a, lines), correction), scales) in groups {
        // SAFETY: these are the words of one group, of the panel and of the rows.
        let integers = unsafe { q8_integers::<ROWS>(a, lines, correction) };
        for ((sums, integers), &scale) in sums.iter_mut().zip(&integers).zip::<&[f32; ROWS]>(scales)
        {
            let scale = _mm512_set1_ps(scale);
            for (sum, &integer) in sums.iter_mut().zip(integers) {
                *sum = _mm512_fmadd_ps(_mm512_cvtepi32_ps(integer), scale, *sum);
            }
        }
    }
    store(&sums, tile);
}

/// Computes what [`q8_tile`] does, for many rows: the f32 sums stay in the tile, which leaves
/// registers for the integer sums of twice as many rows.
///
/// # Safety
/// As for [`q8_tile`].
#[target_feature(enable = "avx512f,avx512vnni")]
pub(super) unsafe fn q8_tall_tile<const ROWS: usize>(
    a: &[u32],
    panel: &Q8Panel<'_>,
    tile: &mut Tile,
) {
    // The first group's sums start from 0, because the tile is not cleared.
    let mut keep = 0;
    let groups = a
        .chunks(Q8_GROUP / 4 * ROWS)
        .zip(panel.lines.chunks(Q8_GROUP / 4 * 2))
        .zip(panel.corrections.as_chunks().0)
        .zip(panel.row_scales.as_chunks().0);
    for (((a, lines), correction), scales) in groups {
        // SAFETY: these are the words of one group, of the panel and of the rows.
        unsafe { q8_tall_group::<ROWS>(a, lines, correction, scales, keep, tile) };
        keep = !0;
    }
}

/// Adds a group of features to the tile's sums; sums whose bit in `keep` is clear start from 0.
/// This is a separate function so that the compiler keeps the sums in memory and the integers in
/// registers.
///
/// # Safety
/// As for [`q8_integers`].
#[inline(never)]
#[target_feature(enable = "avx512f,avx512vnni")]
unsafe fn q8_tall_group<const ROWS: usize>(
    a: &[u32],
    lines: &[Line],
    correction: &[i32; PANEL],
    scales: &[f32; ROWS],
    keep: u16,
    tile: &mut Tile,
) {
    // SAFETY: guaranteed by the caller.
    let integers = unsafe { q8_integers::<ROWS>(a, lines, correction) };
    // Index loops unroll, so the integers stay in registers.
    for r in 0..ROWS {
        let scale = _mm512_set1_ps(scales[r]);
        for (half, &integers) in integers[r].iter().enumerate() {
            // SAFETY: a tile's row is two registers long.
            unsafe {
                let sums = tile[r].as_mut_ptr().add(16 * half);
                let products = _mm512_cvtepi32_ps(integers);
                let sum = _mm512_fmadd_ps(products, scale, _mm512_maskz_loadu_ps(keep, sums));
                _mm512_storeu_ps(sums, sum);
            }
        }
    }
}

/// Returns the integer sums of rows over a group of features.
///
/// # Safety
/// The processor has AVX-512F and VNNI. `a` holds `ROWS` words for every two lines.
#[inline]
#[target_feature(enable = "avx512f,avx512vnni")]
unsafe fn q8_integers<const ROWS: usize>(
    a: &[u32],
    lines: &[Line],
    correction: &[i32; PANEL],
) -> [[__m512i; 2]; ROWS] {
    // SAFETY: a correction is two registers long.
    let start = unsafe {
        [
            _mm512_loadu_si512(correction.as_ptr().cast()),
            _mm512_loadu_si512(correction.as_ptr().add(16).cast()),
        ]
    };
    let mut integers = [start; ROWS];
    let (mut a, mut b) = (a.as_ptr(), lines.as_ptr());
    for _ in 0..lines.len() / 2 {
        // SAFETY: two lines and `ROWS` words are left per remaining step; prefetching past the
        // end is harmless.
        unsafe {
            prefetch(b.wrapping_add(AHEAD));
            prefetch(b.wrapping_add(AHEAD + 1));
            let b0 = _mm512_load_si512(b.cast());
            let b1 = _mm512_load_si512(b.add(1).cast());
            for (r, integers) in integers.iter_mut().enumerate() {
                let x = _mm512_set1_epi32(a.add(r).read().cast_signed());
                integers[0] = _mm512_dpbusd_epi32(integers[0], x, b0);
                integers[1] = _mm512_dpbusd_epi32(integers[1], x, b1);
            }
            a = a.add(ROWS);
            b = b.add(2);
        }
    }
    integers
}

/// Rounds values to bf16, two per word.
#[inline]
#[target_feature(enable = "avx512f,avx512bf16")]
pub(super) fn round_to_bf16(values: &[f32; 32]) -> [u32; 16] {
    let mut words = [0; 16];
    // SAFETY: 32 values are two registers, 16 words one; the types differ in name only.
    unsafe {
        let low = _mm512_loadu_ps(values.as_ptr());
        let high = _mm512_loadu_ps(values.as_ptr().add(16));
        let rounded = std::mem::transmute::<__m512bh, __m512i>(_mm512_cvtne2ps_pbh(high, low));
        _mm512_storeu_si512(words.as_mut_ptr().cast(), rounded);
    }
    words
}

#[inline]
#[target_feature(enable = "avx512f")]
fn store<const ROWS: usize>(sums: &[[__m512; 2]; ROWS], tile: &mut Tile) {
    for (row, sums) in tile.iter_mut().zip(sums) {
        // SAFETY: a tile's row is two registers long.
        unsafe {
            _mm512_storeu_ps(row.as_mut_ptr(), sums[0]);
            _mm512_storeu_ps(row.as_mut_ptr().add(16), sums[1]);
        }
    }
}
