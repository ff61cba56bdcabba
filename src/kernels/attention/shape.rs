//! Dimensions of an attention layer, and checks of its operands against them.

use candle_core::{DType, Result, Tensor, bail};

use crate::kernels::kv::{LayerKv, StepSpans};

/// The sizes and parameters of one layer's attention.
///
/// Head counts and width are independent of the width of the residual stream: a row of `qkv` holds
/// `heads` queries, `kv_heads` keys and `kv_heads` values, each `head_width` wide.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AttentionShape {
    /// Number of query heads.
    pub heads: usize,
    /// Number of key and value heads; divides `heads`. Query head `h` reads the keys and values of
    /// head `h / (heads / kv_heads)` (grouped-query attention, <https://arxiv.org/abs/2305.13245>).
    pub kv_heads: usize,
    /// Width of one head.
    pub head_width: usize,
    /// Factor that scores are multiplied by, `1 / sqrt(head_width)` for most models.
    pub scale: f32,
    /// Number of positions that a row sees, its own included; `None` for all positions up to its
    /// own.
    pub window: Option<usize>,
    /// Cap of the scores, applied after `scale`: `cap * tanh(score / cap)`.
    pub soft_cap: Option<f32>,
}

impl AttentionShape {
    /// Returns causal multi-head attention (Vaswani et al. 2017): as many key and value heads as
    /// query heads, scores divided by `sqrt(head_width)`, no window.
    #[must_use]
    pub fn multi_head(heads: usize, head_width: usize) -> Self {
        Self {
            heads,
            kv_heads: heads,
            head_width,
            scale: 1.0 / (head_width as f32).sqrt(),
            window: None,
            soft_cap: None,
        }
    }

    /// Returns the number of values in a row of `qkv`.
    #[must_use]
    pub fn qkv_width(&self) -> usize {
        (self.heads + 2 * self.kv_heads) * self.head_width
    }

    /// Returns the number of values in a row of the result.
    #[must_use]
    pub fn out_width(&self) -> usize {
        self.heads * self.head_width
    }

    /// Returns the number of query heads that share a key and value head.
    #[must_use]
    pub fn group(&self) -> usize {
        self.heads / self.kv_heads
    }

    /// Returns the first position that the row at `position` sees.
    #[must_use]
    pub fn first_visible(&self, position: usize) -> usize {
        self.window
            .map_or(0, |window| (position + 1).saturating_sub(window))
    }

    /// Checks that the dimensions are valid.
    ///
    /// # Errors
    /// If a size is zero, `kv_heads` does not divide `heads`, or the soft cap is not finite and
    /// positive.
    pub fn check(&self) -> Result<()> {
        let Self {
            heads,
            kv_heads,
            head_width,
            window,
            soft_cap,
            ..
        } = *self;
        if heads == 0 || kv_heads == 0 || head_width == 0 || !heads.is_multiple_of(kv_heads) {
            bail!(
                "attention of {heads} heads of {head_width} over {kv_heads} key and value heads: \
                 sizes must be positive, and the second number of heads must divide the first"
            );
        }
        if window == Some(0) {
            bail!("the window of attention must be at least 1");
        }
        if let Some(cap) = soft_cap
            && !(cap > 0.0 && cap.is_finite())
        {
            bail!("the soft cap of attention is {cap}, it must be finite and greater than zero");
        }
        Ok(())
    }

    /// Checks that `qkv`, a cache and a step's spans match the layer and each other.
    ///
    /// # Errors
    /// If a size or type does not match; the error names the first one.
    pub fn check_operands(&self, qkv: &Tensor, kv: &LayerKv, spans: &StepSpans) -> Result<()> {
        let Self {
            kv_heads,
            head_width,
            ..
        } = *self;
        let cache = kv.shape();
        if (cache.heads, cache.head_width) != (kv_heads, head_width) {
            bail!(
                "attention over {kv_heads} key and value heads of {head_width} got a KV cache of {} heads of {}",
                cache.heads,
                cache.head_width
            );
        }
        let expected = [spans.rows(), self.qkv_width()];
        if qkv.dims() != expected {
            bail!("qkv must be {expected:?}, is {:?}", qkv.dims());
        }
        if qkv.dtype() != DType::F32 {
            bail!("qkv must be f32, is {}", qkv.dtype().as_str());
        }
        spans.check_blocks(kv.part(), cache.blocks)
    }
}
