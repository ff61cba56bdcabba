//! Candle's own operations, in f32: the reference for the kernels, and the path to other devices.
//!
//! It shares the KV cache's layout with the kernels, but none of their arithmetic. A row's last
//! bits may depend on the other rows of the batch, because candle does not guarantee an order of
//! operations.

mod attention;
mod linear;
mod norm;
mod rotary;

use std::num::NonZeroUsize;
use std::sync::Arc;

use candle_core::{Device, Result};

pub use self::attention::CandleAttention;
pub use self::linear::CandleLinear;
pub use self::norm::CandleNorm;
pub use self::rotary::CandleRotary;
use super::{Attention, Backend, Linear, Norm, Rotary};
use crate::kernels::Pool;
use crate::kernels::attention::AttentionShape;
use crate::kernels::linear::{RawWeight, WeightDtype};
use crate::kernels::rotary::RotarySettings;

/// Candle's operations on a device.
pub struct CandleBackend {
    device: Device,
    pool: Arc<Pool>,
}

impl CandleBackend {
    /// Creates the backend on a device. Candle has its own threads; `threads` are for sampling.
    #[must_use]
    pub fn new(device: Device, threads: NonZeroUsize) -> Self {
        Self {
            device,
            pool: Pool::new(threads),
        }
    }
}

impl Backend for CandleBackend {
    fn name(&self) -> &'static str {
        "candle"
    }

    fn weight_dtype(&self) -> WeightDtype {
        WeightDtype::F32
    }

    fn device(&self) -> &Device {
        &self.device
    }

    fn pool(&self) -> &Arc<Pool> {
        &self.pool
    }

    fn for_adapters(&self) -> Box<dyn Backend> {
        Box::new(Self {
            device: self.device.clone(),
            pool: Arc::clone(&self.pool),
        })
    }

    fn linear(&self, weights: &[RawWeight<'_>], bias: Option<&[f32]>) -> Result<Box<dyn Linear>> {
        Ok(Box::new(CandleLinear::new(&self.device, weights, bias)?))
    }

    fn layer_norm(&self, weight: &[f32], bias: &[f32], eps: f64) -> Result<Box<dyn Norm>> {
        let norm = CandleNorm::layer(&self.device, weight, bias, eps)?;
        Ok(Box::new(norm))
    }

    fn rms_norm(&self, weight: &[f32], eps: f64) -> Result<Box<dyn Norm>> {
        Ok(Box::new(CandleNorm::rms(&self.device, weight, eps)?))
    }

    fn rotary(&self, settings: RotarySettings<'_>) -> Result<Box<dyn Rotary>> {
        Ok(Box::new(CandleRotary::new(&self.device, settings)?))
    }

    fn attention(&self, shape: AttentionShape) -> Result<Box<dyn Attention>> {
        Ok(Box::new(CandleAttention::new(shape)?))
    }
}
