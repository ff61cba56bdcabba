//! LoRA adapters of GPT-2: what they add to the outputs of its matrices.
//!
//! An adapter's two matrices are linear layers like the model's own, so a row's result does not depend on the
//! other rows of the batch or their adapters, bit for bit. Rows without an adapter have 0 added.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use candle_core::{Result, Tensor};

use crate::backend::{Backend, Linear};
use crate::checkpoint::adapter::{AdapterError, AdapterFiles, LowRank};
use crate::checkpoint::{Gpt2Config, ModelConfig};
use crate::kernels::linear::{Epilogue, MatrixOrder, RawWeight};
use crate::kernels::stored::StoredType;

/// A matrix of a block that can be adapted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Adapted {
    /// Queries, keys and values.
    Attention,
    /// The output of attention.
    AttentionOutput,
    /// The neurons.
    Neurons,
    /// The output of the feed-forward network.
    NeuronsOutput,
}

impl Adapted {
    const ALL: [Self; 4] = [
        Self::Attention,
        Self::AttentionOutput,
        Self::Neurons,
        Self::NeuronsOutput,
    ];

    /// Returns its name in a block, and its inputs and outputs.
    fn shape(self, config: &Gpt2Config) -> (&'static str, usize, usize) {
        let (n, inner) = (config.n_embd, config.n_inner);
        match self {
            Self::Attention => ("attn.c_attn", n, 3 * n),
            Self::AttentionOutput => ("attn.c_proj", n, n),
            Self::Neurons => ("mlp.c_fc", n, inner),
            Self::NeuronsOutput => ("mlp.c_proj", inner, n),
        }
    }
}

/// The two matrices beside one of the model.
struct Pair {
    /// `[in] -> [rank]`
    a: Box<dyn Linear>,
    /// `[rank] -> [out]`, scaled.
    b: Box<dyn Linear>,
}

/// A loaded adapter.
pub struct Adapter {
    /// Its name for clients.
    pub name: String,
    /// Where it comes from: a path or a hub id.
    pub source: String,
    digest: [u8; 32],
    /// By layer and matrix.
    pairs: BTreeMap<(usize, Adapted), Pair>,
}

/// The rows of a batch that an adapter is for.
#[derive(Debug, Clone)]
pub struct AdapterRows {
    /// The adapter.
    pub adapter: Arc<Adapter>,
    /// The rows, in order.
    pub rows: Vec<u32>,
}

impl Adapter {
    /// Has the backend prepare an adapter's matrices.
    ///
    /// # Errors
    /// [`AdapterError`] if it does not fit the model.
    pub fn load(
        name: &str,
        source: &str,
        files: &AdapterFiles,
        config: &ModelConfig,
        backend: &dyn Backend,
    ) -> std::result::Result<Self, AdapterError> {
        let ModelConfig::Gpt2(config) = config else {
            let architecture = config.architecture();
            return Err(AdapterError::Architecture { architecture });
        };
        let layers = 0..config.n_layer;
        let places = layers.flat_map(|layer| Adapted::ALL.map(|adapted| (layer, adapted)));
        let module = |layer: usize, name: &str| format!("h.{layer}.{name}");
        let names = places
            .clone()
            .map(|(layer, adapted)| module(layer, adapted.shape(config).0));
        files.check_modules(&names.collect::<Vec<_>>(), config.n_layer)?;
        let mut pairs = BTreeMap::new();
        for (layer, adapted) in places {
            let (name, inputs, outputs) = adapted.shape(config);
            let low_rank = files.low_rank(&module(layer, name), inputs, outputs)?;
            if let Some(low_rank) = low_rank {
                pairs.insert((layer, adapted), Pair::new(&low_rank, backend)?);
            }
        }
        Ok(Self {
            name: name.to_owned(),
            source: source.to_owned(),
            digest: files.digest(),
            pairs,
        })
    }

    /// Returns a hash of what it computes.
    #[must_use]
    pub fn digest(&self) -> &[u8; 32] {
        &self.digest
    }

    /// Returns the size in bytes of the prepared matrices.
    #[must_use]
    pub fn bytes(&self) -> usize {
        let pairs = self.pairs.values();
        pairs.map(|pair| pair.a.bytes() + pair.b.bytes()).sum()
    }
}

impl Pair {
    fn new(low_rank: &LowRank<'_>, backend: &dyn Backend) -> Result<Self> {
        let LowRank { a, b, rank } = low_rank;
        let matrix = |bytes, dtype, out_features, in_features| {
            let weight = RawWeight {
                bytes,
                dtype,
                order: MatrixOrder::OutIn,
                in_features,
                out_features,
            };
            backend.linear(&[weight], None)
        };
        let outputs = b.len() / rank;
        let b: Vec<u8> = b.iter().flat_map(|value| value.to_le_bytes()).collect();
        Ok(Self {
            a: matrix(&a.bytes, a.dtype, *rank, a.shape[1])?,
            b: matrix(&b, StoredType::F32, outputs, *rank)?,
        })
    }

    /// Computes `scale * B A x`: `[rows, in] -> [rows, out]`.
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let x = self.a.forward(x, Epilogue::None)?; // [rows, in] -> [rows, rank]
        self.b.forward(&x, Epilogue::None) // [rows, rank] -> [rows, out]
    }
}

/// Computes what adapters add to the outputs of a matrix for the rows of `x`: `[rows, in] -> [rows, out]`; `None`
/// if none of them adapts it.
pub(super) fn added(
    adapters: &[AdapterRows],
    layer: usize,
    adapted: Adapted,
    x: &Tensor,
) -> Result<Option<Tensor>> {
    let (rows, _) = x.dims2()?;
    let mut sum: Option<(Vec<f32>, usize)> = None;
    for AdapterRows { adapter, rows: own } in adapters {
        let Some(pair) = adapter.pairs.get(&(layer, adapted)) else {
            continue;
        };
        if own.len() == rows {
            return pair.forward(x).map(Some);
        }
        let indices = Tensor::new(&own[..], x.device())?;
        let part = pair.forward(&x.index_select(&indices, 0)?)?; // [own, out]
        let width = part.dim(1)?;
        let values = part.flatten_all()?.to_vec1::<f32>()?;
        let (sum, _) = sum.get_or_insert_with(|| (vec![0.0; rows * width], width));
        for (&row, values) in own.iter().zip(values.chunks_exact(width)) {
            let at = row as usize * width;
            sum[at..at + width].copy_from_slice(values);
        }
    }
    let sum = sum.map(|(sum, width)| Tensor::from_vec(sum, (rows, width), x.device()));
    sum.transpose()
}

impl PartialEq for Adapter {
    fn eq(&self, other: &Self) -> bool {
        self.digest == other.digest && self.name == other.name
    }
}

impl fmt::Debug for Adapter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Adapter").field(&self.name).finish()
    }
}
