#!/usr/bin/env python3
"""Writes a GGUF file of a published Gemma 3 shape with random weights, for Skald and llama.cpp alike.

    make_gemma.py OUT.gguf {270M,1B} {bf16,q8_0} [--seed 0]

Speed depends on the shape, not on what the weights say. Matrices take the precision asked for; norms stay f32,
as in llama.cpp's own converter, and already have the 1 added. The tokens are 256 bytes and names, as many as
Gemma has: what a model computes does not depend on their text.
"""

import argparse

import numpy as np
from gguf import GGMLQuantizationType, GGUFWriter, LlamaFileType, TokenType
from gguf.quants import quantize

# Name: layers, width, width of the feed-forward network.
SHAPES = {"270M": (18, 640, 2048), "1B": (26, 1152, 6912)}
HEADS, KV_HEADS, HEAD_WIDTH = 4, 1, 256
VOCABULARY = 262_144
FILE_TYPES = {
    "bf16": (GGMLQuantizationType.BF16, LlamaFileType.MOSTLY_BF16),
    "q8_0": (GGMLQuantizationType.Q8_0, LlamaFileType.MOSTLY_Q8_0),
}
CONTROL = ["<pad>", "<eos>", "<bos>", "<unk>"]


def write_hyperparameters(writer, shape, file_type):
    layers, width, inner = SHAPES[shape]
    writer.add_name(f"gemma-3-{shape}")
    writer.add_block_count(layers)
    writer.add_context_length(32_768)
    writer.add_embedding_length(width)
    writer.add_feed_forward_length(inner)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_key_length(HEAD_WIDTH)
    writer.add_value_length(HEAD_WIDTH)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_rope_freq_base(1e6)
    writer.add_sliding_window(512)
    writer.add_file_type(file_type)


def write_tokenizer(writer):
    tokens = CONTROL + [f"<0x{byte:02X}>" for byte in range(256)]
    types = [TokenType.CONTROL] * len(CONTROL) + [TokenType.BYTE] * 256
    scores = [-1000.0] * len(tokens)
    rest = range(len(tokens), VOCABULARY)
    tokens += [f"t{n}" for n in rest]
    types += [TokenType.NORMAL for _ in rest]
    scores += [-float(n) for n in rest]
    types[CONTROL.index("<unk>")] = TokenType.UNKNOWN
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(tokens)
    writer.add_token_scores(scores)
    writer.add_token_types(types)
    writer.add_pad_token_id(0)
    writer.add_eos_token_id(1)
    writer.add_bos_token_id(2)
    writer.add_unk_token_id(3)
    writer.add_add_bos_token(True)
    writer.add_add_space_prefix(False)


def write_weights(writer, shape, dtype, seed):
    layers, width, inner = SHAPES[shape]
    rng = np.random.default_rng(seed)

    def matrix(name, n_out, n_in):
        values = rng.standard_normal((n_out, n_in), dtype=np.float32) * np.float32(0.02)
        writer.add_tensor(f"{name}.weight", quantize(values, dtype), raw_dtype=dtype)

    def norm(name, size):
        writer.add_tensor(f"{name}.weight", np.ones(size, np.float32))

    matrix("token_embd", VOCABULARY, width)
    norm("output_norm", width)
    for i in range(layers):
        block = f"blk.{i}"
        for name in ("attn_norm", "post_attention_norm", "ffn_norm", "post_ffw_norm"):
            norm(f"{block}.{name}", width)
        norm(f"{block}.attn_q_norm", HEAD_WIDTH)
        norm(f"{block}.attn_k_norm", HEAD_WIDTH)
        matrix(f"{block}.attn_q", HEADS * HEAD_WIDTH, width)
        matrix(f"{block}.attn_k", KV_HEADS * HEAD_WIDTH, width)
        matrix(f"{block}.attn_v", KV_HEADS * HEAD_WIDTH, width)
        matrix(f"{block}.attn_output", width, HEADS * HEAD_WIDTH)
        matrix(f"{block}.ffn_gate", inner, width)
        matrix(f"{block}.ffn_up", inner, width)
        matrix(f"{block}.ffn_down", width, inner)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out")
    parser.add_argument("shape", choices=SHAPES)
    parser.add_argument("dtype", choices=FILE_TYPES)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    dtype, file_type = FILE_TYPES[arguments.dtype]
    writer = GGUFWriter(arguments.out, "gemma3", use_temp_file=True)
    write_hyperparameters(writer, arguments.shape, file_type)
    write_tokenizer(writer)
    write_weights(writer, arguments.shape, dtype, arguments.seed)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


if __name__ == "__main__":
    main()
