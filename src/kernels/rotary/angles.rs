//! Sines and cosines of a step's positions, computed once for all layers with the same frequencies.

use std::sync::{Arc, Mutex, PoisonError};

use super::sine::sin_cos;
use crate::kernels::Isa;
use crate::kernels::lanes::per_isa;

/// The frequencies of the layers of a model, each kind once. Clones share them.
#[derive(Clone, Default)]
pub struct RotaryTables(Arc<Mutex<Vec<Arc<Angles>>>>);

impl RotaryTables {
    /// Returns the angles of some frequencies, shared by all layers that use the same.
    pub(super) fn angles(&self, isa: Isa, frequencies: &[f32]) -> Arc<Angles> {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let same = |angles: &&Arc<Angles>| *angles.frequencies == *frequencies;
        if let Some(angles) = all.iter().find(same) {
            return Arc::clone(angles);
        }
        let angles = Arc::new(Angles {
            isa,
            frequencies: frequencies.into(),
            last: Mutex::default(),
        });
        all.push(Arc::clone(&angles));
        angles
    }
}

/// Angles `position * frequency`.
pub(super) struct Angles {
    isa: Isa,
    frequencies: Box<[f32]>,
    /// The last positions asked for.
    last: Mutex<Arc<Turns>>,
}

/// Sines and cosines of the angles of positions, `[positions, frequencies]` each.
#[derive(Default)]
pub(super) struct Turns {
    positions: Vec<u32>,
    pub sines: Vec<f32>,
    pub cosines: Vec<f32>,
}

impl Angles {
    /// Returns sines and cosines for every position, kept for the next layer of the step.
    pub fn turns(&self, positions: &[u32]) -> Arc<Turns> {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        if last.positions != positions {
            let count = positions.len() * self.frequencies.len();
            let (mut sines, mut cosines) = (vec![0.0; count], vec![0.0; count]);
            turn(
                self.isa,
                positions,
                &self.frequencies,
                &mut sines,
                &mut cosines,
            );
            *last = Arc::new(Turns {
                positions: positions.to_vec(),
                sines,
                cosines,
            });
        }
        Arc::clone(&last)
    }
}

per_isa! {
    /// Writes sines and cosines of all positions.
    fn turn(positions: &[u32], frequencies: &[f32], sines: &mut [f32], cosines: &mut [f32])
        => turn_body;
}

#[inline(always)]
fn turn_body(positions: &[u32], frequencies: &[f32], sines: &mut [f32], cosines: &mut [f32]) {
    let n = frequencies.len();
    let rows = sines.chunks_exact_mut(n).zip(cosines.chunks_exact_mut(n));
    for (&position, (sines, cosines)) in positions.iter().zip(rows) {
        // As transformers does, positions are f32, in which those below 2^24 are exact.
        let position = position as f32;
        for ((&frequency, sine), cosine) in frequencies.iter().zip(sines).zip(cosines) {
            (*sine, *cosine) = sin_cos(position * frequency);
        }
    }
}
