//! Weight matrices as checkpoints store them, and the precisions that they are packed in.

use candle_core::{Result, bail};

use crate::kernels::stored::{StoredType, widen};

/// The precision that weights are packed in, which also determines the arithmetic.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WeightDtype {
    /// 32-bit floats: the reference.
    F32,
    /// bfloat16; activations are rounded to it too, and products are added in f32.
    Bf16,
    /// 8-bit integers with a scale per output; activations are quantized row by row in groups of
    /// 256 features, and products are added as integers.
    Q8,
}

impl WeightDtype {
    /// Returns the name that settings and logs use.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::Bf16 => "bf16",
            Self::Q8 => "q8",
        }
    }

    /// Returns the number of input features in one 32-bit word.
    pub(super) const fn features_per_word(self) -> usize {
        match self {
            Self::F32 => 1,
            Self::Bf16 => 2,
            Self::Q8 => 4,
        }
    }
}

/// The order of a weight matrix's dimensions in a checkpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MatrixOrder {
    /// `[in, out]`: GPT-2's `Conv1D`.
    InOut,
    /// `[out, in]`: embeddings, and PyTorch's `Linear`.
    OutIn,
}

/// A weight matrix in the bytes of a checkpoint: little endian, not necessarily aligned.
#[derive(Debug, Clone, Copy)]
pub struct RawWeight<'a> {
    /// `in_features * out_features` values.
    pub bytes: &'a [u8],
    /// Their type; blocks do not go beyond the end of a row.
    pub dtype: StoredType,
    /// The dimension that comes first.
    pub order: MatrixOrder,
    /// Number of columns of `x`.
    pub in_features: usize,
    /// Number of columns of `y`.
    pub out_features: usize,
}

/// Checks matrices that are packed into one layer, and its bias; returns the layer's input and
/// output features.
///
/// # Errors
/// If a length does not match, or blocks would go beyond a row; the error names the first one.
pub fn check_weights(weights: &[RawWeight<'_>], bias: Option<&[f32]>) -> Result<(usize, usize)> {
    let Some(first) = weights.first() else {
        bail!("a linear layer needs at least one matrix of weights");
    };
    for weight in weights {
        weight.check()?;
        if weight.in_features != first.in_features {
            bail!(
                "one linear layer can't read both {} and {} features",
                first.in_features,
                weight.in_features
            );
        }
    }
    let out_features = weights.iter().map(|weight| weight.out_features).sum();
    match bias {
        Some(bias) if bias.len() != out_features => bail!(
            "a linear layer of {out_features} outputs got {} biases",
            bias.len()
        ),
        _ => Ok((first.in_features, out_features)),
    }
}

impl RawWeight<'_> {
    /// Checks that the length matches the shape, and that rows are whole blocks.
    fn check(&self) -> Result<()> {
        let Self {
            in_features,
            out_features,
            ..
        } = *self;
        if in_features == 0 || out_features == 0 {
            bail!(
                "a linear layer needs at least one input and one output feature, got {in_features} and {out_features}"
            );
        }
        let stored = self.dtype.name();
        let block = self.dtype.block_len();
        if block > 1 && (self.order == MatrixOrder::InOut || !in_features.is_multiple_of(block)) {
            bail!(
                "weights of type {stored} need rows of whole blocks of {block} input features, got \
                 {in_features} x {out_features} {:?}",
                self.order
            );
        }
        let expected = self.dtype.bytes_of(in_features * out_features);
        if self.bytes.len() != expected {
            bail!(
                "{in_features} x {out_features} weights of type {stored} take {expected} bytes, got {}",
                self.bytes.len()
            );
        }
        Ok(())
    }

    /// Reads consecutive weights from element `at` on; both `at` and the length of `out` are whole
    /// numbers of blocks.
    #[inline(always)]
    pub(super) fn widen(&self, at: usize, out: &mut [f32]) {
        let bytes = self.dtype.bytes_of(at)..self.dtype.bytes_of(at + out.len());
        widen(&self.bytes[bytes], self.dtype, out);
    }
}
