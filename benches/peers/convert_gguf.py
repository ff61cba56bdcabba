#!/usr/bin/env python3
"""Converts a GPT-2 checkpoint to GGUF, llama.cpp's format, without torch.

    convert_gguf.py CHECKPOINT_DIR OUT.gguf {f32,f16,bf16,q8_0}

Matrices take the precision asked for; norms, biases and position embeddings stay f32, as in
llama.cpp's own converter. The LM head is the token embedding, which llama.cpp shares by itself.
"""

import argparse

import numpy as np
from gguf import GGMLQuantizationType, GGUFWriter, LlamaFileType, TokenType
from gguf.quants import quantize

from checkpoint import Checkpoint

FILE_TYPES = {
    "f32": (GGMLQuantizationType.F32, LlamaFileType.ALL_F32),
    "f16": (GGMLQuantizationType.F16, LlamaFileType.MOSTLY_F16),
    "bf16": (GGMLQuantizationType.BF16, LlamaFileType.MOSTLY_BF16),
    "q8_0": (GGMLQuantizationType.Q8_0, LlamaFileType.MOSTLY_Q8_0),
}


def write_hyperparameters(writer, config, file_type):
    width = config["n_embd"]
    writer.add_block_count(config["n_layer"])
    writer.add_context_length(config["n_positions"])
    writer.add_embedding_length(width)
    writer.add_feed_forward_length(config.get("n_inner") or 4 * width)
    writer.add_head_count(config["n_head"])
    writer.add_layer_norm_eps(config["layer_norm_epsilon"])
    writer.add_file_type(file_type)


def write_tokenizer(writer, checkpoint):
    end_of_text = checkpoint.config["eos_token_id"]
    tokens = checkpoint.vocabulary()
    types = [TokenType.NORMAL] * len(tokens)
    types[end_of_text] = TokenType.CONTROL
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    writer.add_token_merges(checkpoint.merges())
    writer.add_bos_token_id(checkpoint.config["bos_token_id"])
    writer.add_eos_token_id(end_of_text)


def write_weights(writer, checkpoint, dtype):
    def matrix(name, tensor):
        data = quantize(tensor, dtype)
        writer.add_tensor(name, data, raw_dtype=dtype)

    def vector(name, tensor):
        writer.add_tensor(name, np.ascontiguousarray(tensor, np.float32))

    def layer_norm(name, source):
        vector(f"{name}.weight", checkpoint.weight(f"{source}.weight"))
        vector(f"{name}.bias", checkpoint.weight(f"{source}.bias"))

    def linear(name, source):
        weight, bias = checkpoint.linear(source)
        matrix(f"{name}.weight", weight)
        vector(f"{name}.bias", bias)

    matrix("token_embd.weight", checkpoint.weight("wte.weight"))
    vector("position_embd.weight", checkpoint.weight("wpe.weight"))
    for i in range(checkpoint.config["n_layer"]):
        layer_norm(f"blk.{i}.attn_norm", f"h.{i}.ln_1")
        linear(f"blk.{i}.attn_qkv", f"h.{i}.attn.c_attn")
        linear(f"blk.{i}.attn_output", f"h.{i}.attn.c_proj")
        layer_norm(f"blk.{i}.ffn_norm", f"h.{i}.ln_2")
        linear(f"blk.{i}.ffn_up", f"h.{i}.mlp.c_fc")
        linear(f"blk.{i}.ffn_down", f"h.{i}.mlp.c_proj")
    layer_norm("output_norm", "ln_f")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint")
    parser.add_argument("out")
    parser.add_argument("dtype", choices=FILE_TYPES)
    arguments = parser.parse_args()
    dtype, file_type = FILE_TYPES[arguments.dtype]
    checkpoint = Checkpoint(arguments.checkpoint)
    writer = GGUFWriter(arguments.out, "gpt2")
    write_hyperparameters(writer, checkpoint.config, file_type)
    write_tokenizer(writer, checkpoint)
    write_weights(writer, checkpoint, dtype)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


if __name__ == "__main__":
    main()
