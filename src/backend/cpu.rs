//! Skald's own kernels.

use std::num::NonZeroUsize;
use std::sync::Arc;

use candle_core::{Device, Result, Tensor};

use super::{Attention, Backend, Linear, Norm, Rotary};
use crate::kernels::attention::{AttentionPlan, AttentionShape, KernelAttention};
use crate::kernels::kv::LayerKv;
use crate::kernels::linear::{Epilogue, PackedLinear, RawWeight, WeightDtype};
use crate::kernels::norm::KernelNorm;
use crate::kernels::prefetch::MemoryRange;
use crate::kernels::rotary::{KernelRotary, RotarySettings, RotaryTables};
use crate::kernels::weight_memory::WeightMemory;
use crate::kernels::{Isa, Pool, activation_memory};

/// The kernels, on a pool of threads.
pub struct CpuBackend {
    pool: Arc<Pool>,
    isa: Isa,
    memory: WeightMemory,
    tables: RotaryTables,
    dtype: WeightDtype,
}

impl CpuBackend {
    /// Creates the backend on `threads` threads, with the best instruction set of the processor.
    #[must_use]
    pub fn new(threads: NonZeroUsize, dtype: WeightDtype) -> Self {
        Self::on(Pool::new(threads), Isa::detect(), dtype)
    }

    /// Creates the backend on the given threads, with an instruction set that the processor
    /// supports.
    #[must_use]
    pub fn on(pool: Arc<Pool>, isa: Isa, dtype: WeightDtype) -> Self {
        activation_memory::keep_between_steps();
        Self {
            pool,
            isa,
            memory: WeightMemory::default(),
            tables: RotaryTables::default(),
            dtype,
        }
    }
}

impl Backend for CpuBackend {
    fn name(&self) -> &'static str {
        self.isa.name()
    }

    fn weight_dtype(&self) -> WeightDtype {
        self.dtype
    }

    fn device(&self) -> &Device {
        &Device::Cpu
    }

    fn pool(&self) -> &Arc<Pool> {
        &self.pool
    }

    fn for_adapters(&self) -> Box<dyn Backend> {
        let dtype = match self.dtype {
            WeightDtype::F32 => WeightDtype::F32,
            WeightDtype::Bf16 | WeightDtype::Q8 => WeightDtype::Bf16,
        };
        Box::new(Self::on(Arc::clone(&self.pool), self.isa, dtype))
    }

    fn linear(&self, weights: &[RawWeight<'_>], bias: Option<&[f32]>) -> Result<Box<dyn Linear>> {
        let layer = PackedLinear::pack(
            &self.pool,
            self.isa,
            &self.memory,
            self.dtype,
            weights,
            bias,
        )?;
        Ok(Box::new(layer))
    }

    fn layer_norm(&self, weight: &[f32], bias: &[f32], eps: f64) -> Result<Box<dyn Norm>> {
        let norm = KernelNorm::layer(&self.pool, self.isa, weight, bias, eps)?;
        Ok(Box::new(norm))
    }

    fn rms_norm(&self, weight: &[f32], eps: f64) -> Result<Box<dyn Norm>> {
        let norm = KernelNorm::rms(&self.pool, self.isa, weight, eps)?;
        Ok(Box::new(norm))
    }

    fn rotary(&self, settings: RotarySettings<'_>) -> Result<Box<dyn Rotary>> {
        let rotary = KernelRotary::new(&self.pool, self.isa, &self.tables, settings)?;
        Ok(Box::new(rotary))
    }

    fn attention(&self, shape: AttentionShape) -> Result<Box<dyn Attention>> {
        let attention = KernelAttention::new(&self.pool, self.isa, shape)?;
        Ok(Box::new(attention))
    }
}

impl Linear for PackedLinear {
    fn forward(&self, x: &Tensor, epilogue: Epilogue<'_>) -> Result<Tensor> {
        self.forward(x, epilogue)
    }

    fn add_weights_of(&self, outputs: &[u32], x: &mut [f32]) -> Result<()> {
        self.add_weights_of(outputs, x)
    }

    fn bytes(&self) -> usize {
        self.bytes()
    }

    fn memory(&self) -> MemoryRange {
        self.memory()
    }

    fn set_next(&self, next: MemoryRange) {
        self.set_next(next);
    }
}

impl Norm for KernelNorm {
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        self.forward(x)
    }

    fn forward_add(&self, x: &Tensor, residual: &Tensor) -> Result<Tensor> {
        self.forward_add(x, residual)
    }
}

impl Rotary for KernelRotary {
    fn forward(&self, qkv: Tensor, positions: &[u32]) -> Result<Tensor> {
        self.forward(&qkv, positions)
    }
}

impl Attention for KernelAttention {
    fn forward(&self, qkv: &Tensor, kv: &LayerKv, plan: &AttentionPlan) -> Result<Tensor> {
        self.forward(qkv, kv, plan)
    }
}
