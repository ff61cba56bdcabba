//! Linear layers in candle's operations.

use candle_core::{DType, Device, Result, Tensor};

use crate::backend::Linear;
use crate::kernels::linear::{Epilogue, MatrixOrder, RawWeight, check_outputs};

/// A linear layer in f32.
pub struct CandleLinear {
    /// `[in, out]`
    weight: Tensor,
    /// `[out]`
    bias: Option<Tensor>,
}

impl CandleLinear {
    /// Widens the weights to f32.
    ///
    /// # Errors
    /// As [`RawWeight::check`], or if the device fails.
    pub fn new(device: &Device, weight: RawWeight<'_>, bias: Option<&[f32]>) -> Result<Self> {
        weight.check(bias)?;
        let (n_in, n_out) = (weight.in_features, weight.out_features);
        let shape = match weight.order {
            MatrixOrder::InOut => [n_in, n_out],
            MatrixOrder::OutIn => [n_out, n_in],
        };
        let tensor = Tensor::from_raw_buffer(weight.bytes, weight.dtype, &shape, device)?;
        let tensor = tensor.to_dtype(DType::F32)?;
        let weight = match weight.order {
            MatrixOrder::InOut => tensor,
            MatrixOrder::OutIn => tensor.t()?,
        };
        let bias = bias.map(|bias| Tensor::new(bias, device)).transpose()?;
        Ok(Self { weight, bias })
    }
}

impl Linear for CandleLinear {
    fn forward(&self, x: &Tensor, epilogue: Epilogue<'_>) -> Result<Tensor> {
        let y = x.matmul(&self.weight)?; // [rows, in] x [in, out] -> [rows, out]
        let y = match &self.bias {
            Some(bias) => y.broadcast_add(bias)?,
            None => y,
        };
        match epilogue {
            Epilogue::None => Ok(y),
            Epilogue::Gelu => y.gelu(),
            Epilogue::Add(residual) => y + residual,
        }
    }

    fn add_weights_of(&self, outputs: &[u32], x: &mut [f32]) -> Result<()> {
        let (n_in, n_out) = self.weight.dims2()?;
        check_outputs(outputs, x, n_in, n_out)?;
        let index = Tensor::new(outputs, self.weight.device())?;
        // A view where the weights are `[out, in]` in memory, as embeddings are.
        let rows = self.weight.t()?.contiguous()?.index_select(&index, 0)?; // [outputs, in]
        for (x, weight) in x.iter_mut().zip(rows.flatten_all()?.to_vec1::<f32>()?) {
            *x += weight;
        }
        Ok(())
    }

    fn bytes(&self) -> usize {
        self.weight.elem_count() * size_of::<f32>()
    }
}
