//! Linear layers in candle's operations.

use candle_core::{Device, Result, Tensor};

use crate::backend::Linear;
use crate::kernels::linear::{
    Activation, Epilogue, MatrixOrder, RawWeight, check_outputs, check_weights,
};
use crate::kernels::stored::widen;

/// A linear layer in f32.
pub struct CandleLinear {
    /// `[in, out]`
    weight: Tensor,
    /// `[out]`
    bias: Option<Tensor>,
}

impl CandleLinear {
    /// Widens matrices, whose outputs follow one another, to f32.
    ///
    /// # Errors
    /// As [`check_weights`], or if the device fails.
    pub fn new(device: &Device, weights: &[RawWeight<'_>], bias: Option<&[f32]>) -> Result<Self> {
        check_weights(weights, bias)?;
        let matrices = weights.iter().map(|weight| matrix(device, weight));
        let matrices = matrices.collect::<Result<Vec<_>>>()?;
        let weight = match &matrices[..] {
            [weight] => weight.clone(),
            matrices => Tensor::cat(matrices, 1)?, // [in, out]
        };
        let bias = bias.map(|bias| Tensor::new(bias, device)).transpose()?;
        Ok(Self { weight, bias })
    }
}

/// Widens a matrix to f32: `[in, out]`.
fn matrix(device: &Device, weight: &RawWeight<'_>) -> Result<Tensor> {
    let (n_in, n_out) = (weight.in_features, weight.out_features);
    let shape = match weight.order {
        MatrixOrder::InOut => [n_in, n_out],
        MatrixOrder::OutIn => [n_out, n_in],
    };
    let mut values = vec![0.0; n_in * n_out];
    widen(weight.bytes, weight.dtype, &mut values);
    let tensor = Tensor::from_vec(values, &shape, device)?;
    match weight.order {
        MatrixOrder::InOut => Ok(tensor),
        MatrixOrder::OutIn => tensor.t(),
    }
}

fn activate(activation: Activation, x: &Tensor) -> Result<Tensor> {
    match activation {
        Activation::GeluTanh => x.gelu(),
        Activation::GeluErf => x.gelu_erf(),
        // x / (1 + e^(-1.702 x)) = silu(1.702 x) / 1.702
        Activation::GeluSigmoid => (x * 1.702)?.silu()? / 1.702,
        Activation::Relu => x.relu(),
        Activation::Silu => x.silu(),
        Activation::Tanh => x.tanh(),
    }
}

/// Computes `cap * tanh(x / cap)`.
pub(super) fn soft_cap(x: &Tensor, cap: f32) -> Result<Tensor> {
    let cap = f64::from(cap);
    (x / cap)?.tanh()? * cap
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
            Epilogue::Activate(activation) => activate(activation, &y),
            Epilogue::ActivateSum { addend, activation } => activate(activation, &(y + addend)?),
            Epilogue::Gated { gate, activation } => activate(activation, gate)? * y,
            Epilogue::Add(residual) => y + residual,
            Epilogue::SoftCap(cap) => soft_cap(&y, cap),
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
