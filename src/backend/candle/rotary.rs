//! Rotary positions in candle's operations.

use candle_core::{Device, Result, Tensor};

use crate::backend::Rotary;
use crate::kernels::rotary::RotarySettings;

/// The rotary positions of one layer, and the norms before them.
pub struct CandleRotary {
    heads: usize,
    kv_heads: usize,
    head_width: usize,
    frequencies: Vec<f32>,
    /// `[head_width]`
    query_norm: Option<Tensor>,
    /// `[head_width]`
    key_norm: Option<Tensor>,
    eps: f64,
    device: Device,
}

impl CandleRotary {
    /// Creates rotary positions.
    ///
    /// # Errors
    /// As [`RotarySettings::check`], or if the device cannot hold the weights.
    pub fn new(device: &Device, settings: RotarySettings<'_>) -> Result<Self> {
        settings.check()?;
        let tensor = |weight: Option<&[f32]>| weight.map(|w| Tensor::new(w, device)).transpose();
        Ok(Self {
            heads: settings.heads,
            kv_heads: settings.kv_heads,
            head_width: settings.head_width,
            frequencies: settings.frequencies.to_vec(),
            query_norm: tensor(settings.query_norm)?,
            key_norm: tensor(settings.key_norm)?,
            eps: settings.eps,
            device: device.clone(),
        })
    }

    /// Returns sines and cosines of the positions' angles, `[rows, 1, head_width / 2]` each.
    #[expect(
        clippy::cast_possible_truncation,
        reason = "the precision of the result"
    )]
    fn turns(&self, positions: &[u32]) -> Result<(Tensor, Tensor)> {
        let angles = positions.iter().flat_map(|&position| {
            let frequencies = self.frequencies.iter();
            frequencies.map(move |&frequency| f64::from(position as f32 * frequency))
        });
        let (sines, cosines): (Vec<f32>, Vec<f32>) = angles
            .map(|angle| (angle.sin() as f32, angle.cos() as f32))
            .unzip();
        let shape = (positions.len(), 1, self.frequencies.len());
        Ok((
            Tensor::from_vec(sines, shape, &self.device)?,
            Tensor::from_vec(cosines, shape, &self.device)?,
        ))
    }

    /// Normalizes and rotates heads: `[rows, heads, head_width]`, of the same shape.
    fn rotate(
        &self,
        x: &Tensor,
        norm: Option<&Tensor>,
        (sines, cosines): &(Tensor, Tensor),
    ) -> Result<Tensor> {
        let x = match norm {
            Some(weight) => {
                let deviation = (x.sqr()?.mean_keepdim(2)? + self.eps)?.sqrt()?; // [rows, heads, 1]
                x.broadcast_div(&deviation)?.broadcast_mul(weight)?
            }
            None => x.clone(),
        };
        let half = self.head_width / 2;
        let (low, high) = (x.narrow(2, 0, half)?, x.narrow(2, half, half)?);
        let turned = [
            (low.broadcast_mul(cosines)? - high.broadcast_mul(sines)?)?,
            (high.broadcast_mul(cosines)? + low.broadcast_mul(sines)?)?,
        ];
        Tensor::cat(&turned, 2) // [rows, heads, head_width]
    }

    /// Returns the settings whose sizes operands are checked against.
    fn sizes(&self) -> RotarySettings<'_> {
        RotarySettings {
            heads: self.heads,
            kv_heads: self.kv_heads,
            head_width: self.head_width,
            frequencies: &self.frequencies,
            query_norm: None,
            key_norm: None,
            eps: self.eps,
        }
    }
}

impl Rotary for CandleRotary {
    fn forward(&self, qkv: Tensor, positions: &[u32]) -> Result<Tensor> {
        self.sizes().check_operands(&qkv, positions)?;
        let rows = positions.len();
        if rows == 0 {
            return Ok(qkv);
        }
        let turns = self.turns(positions)?;
        let (heads, kv_heads) = (self.heads, self.kv_heads);
        let split = |first: usize, count: usize| {
            let part = qkv.narrow(1, first * self.head_width, count * self.head_width)?;
            part.reshape((rows, count, self.head_width))
        };
        let queries = self.rotate(&split(0, heads)?, self.query_norm.as_ref(), &turns)?;
        let keys = self.rotate(&split(heads, kv_heads)?, self.key_norm.as_ref(), &turns)?;
        let values = split(heads + kv_heads, kv_heads)?;
        Tensor::cat(&[queries, keys, values], 1)?.flatten_from(1) // [rows, qkv_width]
    }
}
