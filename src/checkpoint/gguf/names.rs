//! Names of tensors in GGUF and in the Hugging Face layout, and the rows that converters to GGUF move.

/// Pairs of names: in GGUF, in the Hugging Face layout.
type Names = &'static [(&'static str, &'static str)];

const GPT2_OUTER: Names = &[
    ("token_embd", "wte"),
    ("position_embd", "wpe"),
    ("output_norm", "ln_f"),
    ("output", "lm_head"),
];
const GPT2_LAYER: Names = &[
    ("attn_norm", "ln_1"),
    ("attn_qkv", "attn.c_attn"),
    ("attn_output", "attn.c_proj"),
    ("ffn_norm", "ln_2"),
    ("ffn_up", "mlp.c_fc"),
    ("ffn_down", "mlp.c_proj"),
];
const DECODER_OUTER: Names = &[
    ("token_embd", "embed_tokens"),
    ("output_norm", "norm"),
    ("output", "lm_head"),
];
const DECODER_LAYER: Names = &[
    ("attn_norm", "input_layernorm"),
    ("attn_q", "self_attn.q_proj"),
    ("attn_k", "self_attn.k_proj"),
    ("attn_v", "self_attn.v_proj"),
    ("attn_output", "self_attn.o_proj"),
    ("attn_q_norm", "self_attn.q_norm"),
    ("attn_k_norm", "self_attn.k_norm"),
    ("ffn_gate", "mlp.gate_proj"),
    ("ffn_up", "mlp.up_proj"),
    ("ffn_down", "mlp.down_proj"),
];
/// The norm before the feed-forward network, where it is the second of two.
const TWO_NORMS: Names = &[("ffn_norm", "post_attention_layernorm")];
/// The norms around it, where attention and feed-forward network have one after them too.
const FOUR_NORMS: Names = &[
    ("post_attention_norm", "post_attention_layernorm"),
    ("ffn_norm", "pre_feedforward_layernorm"),
    ("post_ffw_norm", "post_feedforward_layernorm"),
];

/// The names of an architecture.
struct Table {
    outer: Names,
    /// What names of a layer begin with in the Hugging Face layout.
    layers: &'static str,
    layer: [Names; 2],
}

fn table(architecture: &str) -> Table {
    let decoder = |norms| Table {
        outer: DECODER_OUTER,
        layers: "layers.",
        layer: [DECODER_LAYER, norms],
    };
    match architecture {
        "gpt2" => Table {
            outer: GPT2_OUTER,
            layers: "h.",
            layer: [GPT2_LAYER, &[]],
        },
        "gemma2" | "gemma3" => decoder(FOUR_NORMS),
        _ => decoder(TWO_NORMS),
    }
}

/// Returns a tensor's name in the Hugging Face layout, without prefix; `None` if no model of the architecture
/// uses it.
pub(super) fn hugging_face_name(architecture: &str, name: &str) -> Option<String> {
    let Table {
        outer,
        layers,
        layer,
    } = table(architecture);
    let (base, suffix) = name.rsplit_once('.')?;
    let known = |names: Names, base: &str| {
        let known = names.iter().find(|(gguf, _)| *gguf == base);
        known.map(|(_, hugging_face)| *hugging_face)
    };
    match base.strip_prefix("blk.") {
        None => Some(format!("{}.{suffix}", known(outer, base)?)),
        Some(rest) => {
            let (number, base) = rest.split_once('.')?;
            let base = layer.iter().find_map(|names| known(names, base))?;
            Some(format!("{layers}{number}.{base}.{suffix}"))
        }
    }
}

/// Returns the name in GGUF of a tensor of the Hugging Face layout.
pub(in crate::checkpoint) fn gguf_name(architecture: &str, name: &str) -> Option<String> {
    let Table {
        outer,
        layers,
        layer,
    } = table(architecture);
    let (base, suffix) = name.rsplit_once('.')?;
    let known = |names: Names, base: &str| {
        let known = names.iter().find(|(_, hugging_face)| *hugging_face == base);
        known.map(|(gguf, _)| *gguf)
    };
    if let Some(gguf) = known(outer, base) {
        return Some(format!("{gguf}.{suffix}"));
    }
    let (number, base) = base.strip_prefix(layers)?.split_once('.')?;
    let base = layer.iter().find_map(|names| known(names, base))?;
    Some(format!("blk.{number}.{base}.{suffix}"))
}

/// How rows of a tensor are ordered that rotary positions turn in pairs.
///
/// The converter of Llama's models interleaves the two halves of each head, because llama.cpp turns neighbours:
/// row `2 i + half` of a head is the row `half * width / 2 + i` of the Hugging Face layout.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::checkpoint) struct RowOrder {
    /// Number of heads.
    pub heads: usize,
}

impl RowOrder {
    /// Returns the order of a tensor's rows if it is not that of the Hugging Face layout; `name` is the name
    /// there.
    pub fn of(architecture: &str, name: &str, heads: usize, kv_heads: usize) -> Option<Self> {
        let (base, _) = name.rsplit_once('.')?;
        match base.rsplit_once('.')? {
            (_, "q_proj") if architecture == "llama" => Some(Self { heads }),
            (_, "k_proj") if architecture == "llama" => Some(Self { heads: kv_heads }),
            _ => None,
        }
    }

    /// Returns the rows of a tensor in the order of the Hugging Face layout: whole rows are copied, so blocks
    /// stay as they are. `None` if `bytes` are not as many equal rows for every head.
    pub fn restored(self, bytes: &[u8], rows: usize) -> Option<Vec<u8>> {
        let width = rows / self.heads.max(1);
        let row = bytes.len() / rows.max(1);
        let is_whole = rows == width * self.heads && bytes.len() == row * rows;
        if !is_whole || !width.is_multiple_of(2) {
            return None;
        }
        let mut restored = Vec::with_capacity(bytes.len());
        for head in bytes.chunks_exact((width * row).max(1)) {
            for half in 0..2 {
                let rows = head.chunks_exact(row.max(1)).skip(half).step_by(2);
                rows.for_each(|row| restored.extend_from_slice(row));
            }
        }
        Some(restored)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_is_translated_in_both_directions() {
        for (architecture, gguf, hugging_face) in [
            ("gpt2", "token_embd.weight", "wte.weight"),
            ("gpt2", "blk.11.attn_qkv.bias", "h.11.attn.c_attn.bias"),
            ("gpt2", "blk.0.attn_norm.weight", "h.0.ln_1.weight"),
            ("gpt2", "output.weight", "lm_head.weight"),
            ("gemma", "token_embd.weight", "embed_tokens.weight"),
            ("gemma", "output_norm.weight", "norm.weight"),
            (
                "gemma",
                "blk.3.ffn_norm.weight",
                "layers.3.post_attention_layernorm.weight",
            ),
            (
                "gemma2",
                "blk.3.ffn_norm.weight",
                "layers.3.pre_feedforward_layernorm.weight",
            ),
            (
                "gemma3",
                "blk.3.post_attention_norm.weight",
                "layers.3.post_attention_layernorm.weight",
            ),
            (
                "qwen3",
                "blk.27.attn_q_norm.weight",
                "layers.27.self_attn.q_norm.weight",
            ),
            (
                "qwen2",
                "blk.0.attn_q.bias",
                "layers.0.self_attn.q_proj.bias",
            ),
            (
                "llama",
                "blk.0.ffn_down.weight",
                "layers.0.mlp.down_proj.weight",
            ),
        ] {
            let there = hugging_face_name(architecture, gguf);
            assert_eq!(there.as_deref(), Some(hugging_face), "{architecture}");
            let back = gguf_name(architecture, hugging_face);
            assert_eq!(back.as_deref(), Some(gguf), "{architecture}");
        }
        for name in [
            "rope_freqs.weight",
            "blk.0.ffn_gate_exps.weight",
            "blk.0",
            "blk.weight",
            "",
            "output",
        ] {
            assert_eq!(hugging_face_name("llama", name), None, "{name}");
        }
    }

    #[test]
    fn the_rows_of_llamas_heads_are_put_back() {
        // Two heads of four rows of two bytes each; the converter interleaves halves.
        let original: Vec<u8> = (0..16).collect();
        let converted = [0, 1, 4, 5, 2, 3, 6, 7, 8, 9, 12, 13, 10, 11, 14, 15];
        let order = RowOrder::of("llama", "layers.0.self_attn.k_proj.weight", 4, 2);
        assert_eq!(order, Some(RowOrder { heads: 2 }));
        assert_eq!(order.unwrap().restored(&converted, 8), Some(original));
        assert_eq!(order.unwrap().restored(&converted, 7), None);
        assert_eq!(RowOrder { heads: 0 }.restored(&converted, 8), None);
        let name = "layers.0.self_attn.v_proj.weight";
        assert_eq!(RowOrder::of("llama", name, 4, 2), None);
        let name = "layers.0.self_attn.q_proj.weight";
        assert_eq!(RowOrder::of("qwen2", name, 4, 2), None);
    }
}
