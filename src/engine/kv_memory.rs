//! How the KV memory is divided between blocks and window slots.
//!
//! A model with sliding layers has a block of every position in its global layers, and slots for what its
//! sliding layers can see ([`windows`](super::blocks::windows)). The slots get half of the memory, or more
//! if the windows of a full batch need more; but they leave the blocks of one whole context, and there are
//! never more slots than blocks. Contexts shorter than the window need as many slots as blocks, so they
//! have the more room the more slots there are; long contexts have the more room the fewer there are.

use super::blocks::BLOCK_SIZE;
use super::blocks::windows::window_blocks;
use crate::kernels::kv::{KvCache, KvDtype, KvPart};
use crate::model::Model;

/// What a model keeps of 16 positions in the KV cache.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KvLayout {
    /// The part that each layer is in.
    pub parts: Vec<KvPart>,
    /// Size of a block in bytes: its part in the global layers, all layers if none has a window.
    pub block_bytes: usize,
    /// The slots of the sliding layers; `None` if they have no memory of their own.
    pub windows: Option<WindowLayout>,
}

/// What the sliding layers of a model keep.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WindowLayout {
    /// Positions of the widest window.
    pub window: usize,
    /// Size of a slot in bytes.
    pub slot_bytes: usize,
}

/// The limits of a batch that slots are needed for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BatchLimits {
    /// Maximum positions of a context.
    pub context_length: usize,
    /// Maximum sequences per batch.
    pub max_batch: usize,
    /// Maximum tokens per step.
    pub max_step_tokens: usize,
}

/// Numbers of blocks and slots.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KvCounts {
    /// Number of blocks.
    pub blocks: usize,
    /// Number of window slots; 0 without slots.
    pub slots: usize,
}

impl KvLayout {
    /// Returns the layout of a model's cache for contexts of up to `context_length` positions.
    #[must_use]
    pub fn of(model: &Model, dtype: KvDtype, context_length: usize) -> Self {
        let spec = model.spec();
        let layer = KvCache::block_bytes(dtype, 1, spec.kv_heads, spec.head_width);
        Self::new(&model.windows(), layer, context_length)
    }

    /// Returns the layout of layers with these windows, each with blocks of `layer_bytes`. Windows that see
    /// the whole context need no slots, and where all layers slide, blocks and slots would be the same.
    #[must_use]
    pub fn new(windows: &[Option<usize>], layer_bytes: usize, context_length: usize) -> Self {
        let slides = |window: &Option<usize>| window.filter(|&window| window < context_length);
        let windows: Vec<Option<usize>> = windows.iter().map(slides).collect();
        let widest = windows.iter().flatten().max().copied();
        let widest = widest.filter(|_| windows.iter().any(Option::is_none));
        let part = |window: &Option<usize>| match (window, widest) {
            (Some(_), Some(_)) => KvPart::Window,
            _ => KvPart::Global,
        };
        let parts: Vec<KvPart> = windows.iter().map(part).collect();
        let layers = |part: KvPart| parts.iter().filter(|&&its| its == part).count();
        let bytes = |part: KvPart| layers(part) * layer_bytes;
        let slot_bytes = bytes(KvPart::Window);
        Self {
            block_bytes: bytes(KvPart::Global),
            windows: widest.map(|window| WindowLayout { window, slot_bytes }),
            parts,
        }
    }

    /// Returns the memory in bytes without which a context of `tokens` tokens can't be computed in steps of
    /// `max_step_tokens`.
    #[must_use]
    pub fn context_bytes(&self, tokens: usize, max_step_tokens: usize) -> u64 {
        let blocks = tokens.div_ceil(BLOCK_SIZE);
        let slots = self.windows.map_or(0, |windows| {
            windows.slot_bytes * blocks.min(slots_of_one(windows, max_step_tokens))
        });
        (blocks * self.block_bytes + slots) as u64
    }

    /// Returns the tokens of the longest context that `memory` bytes hold: the inverse of
    /// [`context_bytes`](Self::context_bytes).
    #[must_use]
    pub fn context_held(&self, memory: u64, max_step_tokens: usize) -> usize {
        let memory = usize::try_from(memory).unwrap_or(usize::MAX);
        let (slots, slot_bytes) = self.windows.map_or((0, 0), |windows| {
            let slots = slots_of_one(windows, max_step_tokens);
            (slots, windows.slot_bytes)
        });
        let whole = self.block_bytes + slot_bytes;
        let blocks = match memory.checked_sub(slots * whole) {
            Some(rest) => slots + rest / self.block_bytes,
            None => memory / whole,
        };
        blocks.saturating_mul(BLOCK_SIZE)
    }

    /// Divides `memory` bytes; see the module docs for the rule.
    #[must_use]
    pub fn divide(&self, memory: u64, limits: BatchLimits) -> KvCounts {
        let memory = usize::try_from(memory).unwrap_or(usize::MAX);
        let Some(windows) = self.windows else {
            let blocks = memory / self.block_bytes;
            return KvCounts { blocks, slots: 0 };
        };
        let slot_bytes = windows.slot_bytes;
        let one = slots_of_one(windows, limits.max_step_tokens);
        let batch = one + limits.max_batch.saturating_sub(1) * window_blocks(windows.window);
        let context = limits.context_length.div_ceil(BLOCK_SIZE) * self.block_bytes;
        let beside_context = memory.saturating_sub(context) / slot_bytes;
        let slots = (memory / 2 / slot_bytes).max(batch);
        let slots = slots.min(beside_context).max(one);
        let slots = slots.min(memory / (self.block_bytes + slot_bytes));
        KvCounts {
            blocks: (memory - slots * slot_bytes) / self.block_bytes,
            slots,
        }
    }
}

/// Returns the slots for a window and one step's tokens.
fn slots_of_one(windows: WindowLayout, max_step_tokens: usize) -> usize {
    window_blocks(windows.window) + max_step_tokens.div_ceil(BLOCK_SIZE)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Bytes of a block in one layer: one key and value head of 256, in bf16.
    const LAYER: usize = 2 * 16 * 256 * 2;

    /// The windows of a Gemma 3 of `layers` layers, every sixth of them global.
    fn gemma3(layers: usize) -> Vec<Option<usize>> {
        let layers = 0..layers;
        layers
            .map(|layer| (layer % 6 != 5).then_some(512))
            .collect()
    }

    const LIMITS: BatchLimits = BatchLimits {
        context_length: 32_768,
        max_batch: 64,
        max_step_tokens: 512,
    };

    #[test]
    fn a_whole_context_of_gemma_3_takes_a_fraction_of_the_memory() {
        let mib = |bytes: u64| bytes >> 20;
        for (layers, before, after) in [(18, 576, 111), (26, 832, 150)] {
            let layout = KvLayout::new(&gemma3(layers), LAYER, 32_768);
            let windows = layout.windows.expect("sliding layers");
            let whole = layout.block_bytes + windows.slot_bytes;
            assert_eq!(mib(whole as u64 * 2048), before, "{layers}");
            assert_eq!(mib(layout.context_bytes(32_768, 512)), after, "{layers}");
        }
    }

    #[test]
    fn short_contexts_keep_their_room_and_long_ones_gain() {
        // Memory in MiB; blocks before; blocks and slots now.
        let cases = [
            (18, 512, 1820, (2052, 1774)),
            (18, 1024, 3640, (10_925, 2184)),
            (18, 4096, 14_563, (43_691, 8738)),
            (26, 512, 1260, (2048, 1117)),
            (26, 1024, 2520, (4592, 2144)),
            (26, 4096, 10_082, (32_772, 5957)),
        ];
        for (layers, mib, before, (blocks, slots)) in cases {
            let layout = KvLayout::new(&gemma3(layers), LAYER, 32_768);
            let windows = layout.windows.expect("sliding layers");
            let memory = mib << 20;
            let whole = (layout.block_bytes + windows.slot_bytes) as u64;
            assert_eq!(memory / whole, before);
            let counts = layout.divide(memory, LIMITS);
            assert_eq!(
                counts,
                KvCounts { blocks, slots },
                "{layers} layers, {mib} MiB"
            );
        }
    }

    #[test]
    fn layers_without_memory_of_their_own_are_in_blocks() {
        let slides_not = KvLayout::new(&gemma3(18), LAYER, 512);
        assert_eq!(slides_not.windows, None);
        let all = KvLayout::new(&[Some(512); 18], LAYER, 32_768);
        assert_eq!(all, slides_not);
        let counts = KvCounts {
            blocks: 3,
            slots: 0,
        };
        assert_eq!(all.divide(4 * all.block_bytes as u64 - 1, LIMITS), counts);
    }

    proptest! {
        #[test]
        fn one_whole_context_always_fits(
            window in 1usize..600,
            sliding in 1usize..6,
            context_length in 1usize..3000,
            max_batch in 1usize..70,
            max_step_tokens in 1usize..600,
            spare in 0u64..10_000_000,
        ) {
            let windows = [0, 1, 2, 3, 4, 5].map(|layer| (layer < sliding).then_some(window));
            let layout = KvLayout::new(&windows, LAYER, context_length);
            let memory = layout.context_bytes(context_length, max_step_tokens) + spare;
            prop_assert!(layout.context_held(memory, max_step_tokens) >= context_length);
            let short = layout.context_bytes(context_length, max_step_tokens) - 1;
            prop_assert!(layout.context_held(short, max_step_tokens) < context_length.next_multiple_of(BLOCK_SIZE));
            let limits = BatchLimits { context_length, max_batch, max_step_tokens };
            let counts = layout.divide(memory, limits);
            let context = context_length.div_ceil(BLOCK_SIZE);
            prop_assert!(counts.blocks >= context);
            if let Some(windows) = layout.windows {
                prop_assert!(counts.slots >= context.min(slots_of_one(windows, max_step_tokens)));
                prop_assert!(counts.slots <= counts.blocks);
            }
            let used = counts.blocks * layout.block_bytes
                + layout.windows.map_or(0, |windows| counts.slots * windows.slot_bytes);
            prop_assert!(used as u64 <= memory);
        }
    }
}
