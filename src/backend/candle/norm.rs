//! Layer norm in candle's operations.

use candle_core::{Device, Result, Tensor};

use crate::backend::LayerNorm;
use crate::kernels::norm::{check_input, check_parameters};

/// Layer normalization over rows of a fixed length.
pub struct CandleLayerNorm {
    /// `[n]`
    weight: Tensor,
    /// `[n]`
    bias: Tensor,
    eps: f64,
}

impl CandleLayerNorm {
    /// Creates a layer norm over rows of `weight.len()` elements.
    ///
    /// # Errors
    /// As [`check_parameters`], or if the device cannot hold the parameters.
    pub fn new(device: &Device, weight: &[f32], bias: &[f32], eps: f64) -> Result<Self> {
        check_parameters(weight, bias, eps)?;
        Ok(Self {
            weight: Tensor::new(weight, device)?,
            bias: Tensor::new(bias, device)?,
            eps,
        })
    }
}

impl LayerNorm for CandleLayerNorm {
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        check_input(x, self.weight.elem_count())?;
        let centered = x.broadcast_sub(&x.mean_keepdim(1)?)?; // [rows, n]
        let deviation = (centered.sqr()?.mean_keepdim(1)? + self.eps)?.sqrt()?; // [rows, 1]
        centered
            .broadcast_div(&deviation)?
            .broadcast_mul(&self.weight)?
            .broadcast_add(&self.bias) // [rows, n]
    }
}
