//! Long contexts: a row's softmax over each segment of positions on its own, and the merge of them.
//!
//! Segments let several threads read one long context, and keep sums of very many positions accurate.
//! The boundaries are fixed positions, so a row's result does not depend on how the work is divided.

use std::mem::MaybeUninit;

use crate::kernels::lanes::per_isa;
use crate::kernels::math;
use crate::kernels::shared_slice::SharedSlice;

/// Positions in a segment; a multiple of [`POSITION_TILE`](super::POSITION_TILE).
pub(super) const SEGMENT: usize = 2048;

/// Memory for the softmax of rows over single segments, one slot for each.
pub(super) struct Partials {
    head_width: usize,
    /// `[slots, head_width]`: weighted values.
    values: Vec<f32>,
    /// `[slots]`: greatest score and sum of weights.
    sums: Vec<[f32; 2]>,
}

/// The slots of a [`Partials`], while units write to them.
pub(super) struct Slots<'a> {
    head_width: usize,
    values: SharedSlice<'a, MaybeUninit<f32>>,
    sums: SharedSlice<'a, MaybeUninit<[f32; 2]>>,
}

impl Partials {
    /// Allocates memory for `slots` slots, not initialized.
    pub fn new(slots: usize, head_width: usize) -> Self {
        Self {
            head_width,
            values: Vec::with_capacity(slots * head_width),
            sums: Vec::with_capacity(slots),
        }
    }

    /// Borrows the memory while it is written.
    pub fn slots(&mut self) -> Slots<'_> {
        Slots {
            head_width: self.head_width,
            values: SharedSlice::new(self.values.spare_capacity_mut()),
            sums: SharedSlice::new(self.sums.spare_capacity_mut()),
        }
    }

    /// Declares the first `slots` slots initialized.
    ///
    /// # Safety
    /// Units must have written all of them.
    pub unsafe fn written(&mut self, slots: usize) {
        // SAFETY: guaranteed by the caller; the capacity is at least that.
        unsafe {
            self.values.set_len(slots * self.head_width);
            self.sums.set_len(slots);
        }
    }
}

impl Slots<'_> {
    /// Returns the weighted values of a slot and those after it.
    pub fn values(&self, slot: usize) -> *mut f32 {
        let start = self.values.as_mut_ptr().cast::<f32>();
        start.wrapping_add(slot * self.head_width)
    }

    /// Returns the sums of a slot and those after it.
    pub fn sums(&self, slot: usize) -> *mut [f32; 2] {
        self.sums.as_mut_ptr().cast::<[f32; 2]>().wrapping_add(slot)
    }
}

/// The slots of one row, first segment first.
pub(super) struct RowSegments {
    pub first: usize,
    /// Slots from one segment to the next.
    pub stride: usize,
    pub segments: usize,
}

per_isa! {
    /// Merges a row's segments into its result, `[head_width]`.
    pub(super) fn merge(partials: &Partials, row: &RowSegments, out: &mut [MaybeUninit<f32>])
        => merge_body;
}

#[inline(always)]
fn merge_body(partials: &Partials, row: &RowSegments, out: &mut [MaybeUninit<f32>]) {
    let slots = (0..row.segments).map(|n| row.first + n * row.stride);
    // A row that sees no position of a segment has no greatest score in it: it is left out, so that
    // the result is that of the row alone.
    let seen = slots.filter(|&slot| partials.sums[slot][0] != f32::NEG_INFINITY);
    let greatest = seen.clone().map(|slot| partials.sums[slot][0]);
    let greatest = greatest.fold(f32::NEG_INFINITY, f32::max);
    // Only scores of negative infinity leave a row without segments: it has no weights.
    let mut total = f32::NAN;
    for out in out.iter_mut() {
        out.write(f32::NAN);
    }
    for (n, slot) in seen.enumerate() {
        let [score, sum] = partials.sums[slot];
        let factor = math::exp(score - greatest);
        let values = &partials.values[slot * partials.head_width..];
        if n == 0 {
            total = factor * sum;
            for (out, &value) in out.iter_mut().zip(values) {
                out.write(factor * value);
            }
        } else {
            total = factor.mul_add(sum, total);
            for (out, &value) in out.iter_mut().zip(values) {
                // SAFETY: all elements have been written above.
                let before = unsafe { out.assume_init() };
                out.write(factor.mul_add(value, before));
            }
        }
    }
    let scale = 1.0 / total;
    for out in out {
        // SAFETY: as above.
        let sum = unsafe { out.assume_init() };
        out.write(sum * scale);
    }
}
