//! Chooses the function that computes a tile of a linear layer, a block of rows times one panel of
//! outputs, by precision, instruction set and number of rows.

use super::pack::PackedWeights;
use super::panel::{PANEL, Q8Panel, Tile};
use super::portable;
use super::weight::WeightDtype;
#[cfg(target_arch = "x86_64")]
use super::{avx2, avx512};
use crate::kernels::Isa;

/// Calls the version of a tile function that is compiled for the number of rows.
macro_rules! by_rows {
    ($rows:expr, $module:ident::$function:ident $arguments:tt; $($n:literal)*) => {
        match $rows {
            // SAFETY: the caller has checked the instruction set and the lengths.
            $($n => unsafe { $module::$function::<$n> $arguments },)*
            rows => unreachable!("a block of {rows} rows"),
        }
    };
}

/// Computes `tile[row] = a[row] x panel` for a block of `rows` packed rows; for q8, the weight
/// scales are not applied yet.
pub(super) fn compute(
    isa: Isa,
    weights: &PackedWeights,
    panel: usize,
    rows: usize,
    a: &[u32],
    row_scales: &[f32],
    tile: &mut Tile,
) {
    let lines = weights.panel(panel);
    assert!(a.len() == rows * weights.words, "whole rows of words");
    if weights.dtype == WeightDtype::Q8 {
        let groups = weights.groups;
        assert!(
            row_scales.len() == rows * groups,
            "a scale per row and group"
        );
        let corrections = panel * groups * PANEL..(panel + 1) * groups * PANEL;
        let panel = Q8Panel {
            lines,
            corrections: &weights.corrections[corrections],
            row_scales,
        };
        return q8(isa, rows, a, &panel, tile);
    }
    match (weights.dtype, isa) {
        #[cfg(target_arch = "x86_64")]
        (WeightDtype::F32, Isa::Avx512) => {
            by_rows!(rows, avx512::f32_tile(a, lines, tile); 1 2 3 4 5 6 7 8 9 10 11 12);
        }
        #[cfg(target_arch = "x86_64")]
        (WeightDtype::F32, Isa::Avx2) => {
            by_rows!(rows, avx2::f32_tile(a, lines, tile); 1 2 3 4 5 6 7 8 9 10 11 12);
        }
        #[cfg(target_arch = "x86_64")]
        (_, Isa::Avx512) => {
            by_rows!(rows, avx512::bf16_tile(a, lines, tile); 1 2 3 4 5 6 7 8 9 10 11 12);
        }
        #[cfg(target_arch = "x86_64")]
        (_, Isa::Avx2) => {
            by_rows!(rows, avx2::bf16_tile(a, lines, tile); 1 2 3 4 5 6 7 8 9 10 11 12);
        }
        (WeightDtype::F32, _) => portable::f32_tile(rows, a, lines, tile),
        _ => portable::bf16_tile(rows, a, lines, tile),
    }
}

fn q8(isa: Isa, rows: usize, a: &[u32], panel: &Q8Panel<'_>, tile: &mut Tile) {
    match isa {
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512 => {
            if rows <= 6 {
                by_rows!(rows, avx512::q8_tile(a, panel, tile); 1 2 3 4 5 6);
            } else {
                by_rows!(rows, avx512::q8_tall_tile(a, panel, tile); 7 8 9 10 11 12);
            }
        }
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2 => {
            by_rows!(rows, avx2::q8_tile(a, panel, tile); 1 2 3 4 5 6 7 8 9 10 11 12);
        }
        _ => portable::q8_tile(rows, a, panel, tile),
    }
}
