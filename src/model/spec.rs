//! The properties of a model that the rest of the program uses, for every architecture: sizes and
//! token ids.

/// The sizes and tokens of a loaded model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModelSpec {
    /// Name of the architecture: `gpt2`, `gemma`, `gemma2`, `gemma3`, `llama`, `qwen2` or `qwen3`.
    pub architecture: &'static str,
    /// Number of token ids; every id is below it.
    pub vocab_size: usize,
    /// Maximum number of positions in a context.
    pub context_length: usize,
    /// Number of transformer blocks.
    pub layers: usize,
    /// Number of query heads per block.
    pub heads: usize,
    /// Number of key and value heads per block; divides `heads`.
    pub kv_heads: usize,
    /// Width of one head.
    pub head_width: usize,
    /// Width of the residual stream.
    pub hidden_width: usize,
    /// Number of neurons in the feed-forward network of a block.
    pub inner_width: usize,
    /// Number of weights, tied ones counted once.
    pub parameters: u64,
    /// Token ids that end a text.
    pub end_of_text: Vec<u32>,
}

impl ModelSpec {
    /// Returns the name of the architecture's class in transformers, which some routers ask for.
    #[must_use]
    pub fn class_name(&self) -> &'static str {
        match self.architecture {
            "gemma" => "GemmaForCausalLM",
            "gemma2" => "Gemma2ForCausalLM",
            "gemma3" => "Gemma3ForCausalLM",
            "llama" => "LlamaForCausalLM",
            "qwen2" => "Qwen2ForCausalLM",
            "qwen3" => "Qwen3ForCausalLM",
            _ => "GPT2LMHeadModel",
        }
    }

    /// Returns the width of a row of queries, keys and values: `(heads + 2 * kv_heads) * head_width`.
    #[must_use]
    pub fn qkv_width(&self) -> usize {
        (self.heads + 2 * self.kv_heads) * self.head_width
    }

    /// Returns the key and value head that a query head reads.
    #[must_use]
    pub fn kv_head(&self, head: usize) -> usize {
        head * self.kv_heads / self.heads
    }

    /// Returns the query, the key and the value of a query head in a row of them, `[head_width]` each.
    #[must_use]
    pub fn split_qkv<'a>(&self, row: &'a [f32], head: usize) -> [&'a [f32]; 3] {
        let kv_head = self.kv_head(head);
        let places = [
            head,
            self.heads + kv_head,
            self.heads + self.kv_heads + kv_head,
        ];
        places.map(|n| &row[n * self.head_width..(n + 1) * self.head_width])
    }
}
