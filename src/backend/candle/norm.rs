//! Norms in candle's operations.

use candle_core::{Device, Result, Tensor};

use crate::backend::Norm;
use crate::kernels::norm::{check_input, check_parameters, check_residual};

/// Normalization of rows of a fixed length.
pub struct CandleNorm {
    /// `[n]`
    weight: Tensor,
    /// Bias of a layer norm, `[n]`; `None` for an RMS norm.
    bias: Option<Tensor>,
    eps: f64,
}

impl CandleNorm {
    /// Creates a layer norm over rows of `weight.len()` elements.
    ///
    /// # Errors
    /// As [`check_parameters`], or if the device cannot hold the parameters.
    pub fn layer(device: &Device, weight: &[f32], bias: &[f32], eps: f64) -> Result<Self> {
        check_parameters(weight, Some(bias), eps)?;
        Ok(Self {
            bias: Some(Tensor::new(bias, device)?),
            ..Self::rms(device, weight, eps)?
        })
    }

    /// Creates an RMS norm over rows of `weight.len()` elements.
    ///
    /// # Errors
    /// As [`check_parameters`], or if the device cannot hold the weights.
    pub fn rms(device: &Device, weight: &[f32], eps: f64) -> Result<Self> {
        check_parameters(weight, None, eps)?;
        Ok(Self {
            weight: Tensor::new(weight, device)?,
            bias: None,
            eps,
        })
    }
}

impl Norm for CandleNorm {
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        check_input(x, self.weight.elem_count())?;
        let centered = match &self.bias {
            Some(_) => x.broadcast_sub(&x.mean_keepdim(1)?)?, // [rows, n]
            None => x.clone(),
        };
        let deviation = (centered.sqr()?.mean_keepdim(1)? + self.eps)?.sqrt()?; // [rows, 1]
        let y = centered
            .broadcast_div(&deviation)?
            .broadcast_mul(&self.weight)?; // [rows, n]
        match &self.bias {
            Some(bias) => y.broadcast_add(bias),
            None => Ok(y),
        }
    }

    fn forward_add(&self, x: &Tensor, residual: &Tensor) -> Result<Tensor> {
        check_residual(x, residual)?;
        residual + self.forward(x)?
    }
}
