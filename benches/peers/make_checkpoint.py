#!/usr/bin/env python3
"""Writes a GPT-2 checkpoint of a published shape with random weights, in the Hugging Face layout.

    make_checkpoint.py OUT_DIR [124M|355M|774M|1558M|tiny] [--seed 0]

Speed depends on the shape, not on what the weights say, so nothing needs to be downloaded. Weights
are normal(0, 0.02) in f32 and the layer norms 1 and 0: greedy output is meaningless but
deterministic, and far enough from ties that engines can be checked against each other.
"""

import argparse
import json
import shutil
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

# Name: layers, heads, width.
SHAPES = {
    "124M": (12, 12, 768),
    "355M": (24, 16, 1024),
    "774M": (36, 20, 1280),
    "1558M": (48, 25, 1600),
    "tiny": (2, 2, 64),
}
VOCABULARY = 50257
POSITIONS = 1024
TOKENIZER = Path(__file__).parents[2] / "tests" / "fixtures" / "gpt2-tokenizer"


def weights(layers, width, seed):
    rng = np.random.default_rng(seed)

    def normal(*shape):
        return rng.standard_normal(shape, dtype=np.float32) * np.float32(0.02)

    tensors = {"wte.weight": normal(VOCABULARY, width), "wpe.weight": normal(POSITIONS, width)}

    def layer_norm(name):
        tensors[f"{name}.weight"] = np.ones(width, np.float32)
        tensors[f"{name}.bias"] = np.zeros(width, np.float32)

    def linear(name, n_in, n_out):
        tensors[f"{name}.weight"] = normal(n_in, n_out)
        tensors[f"{name}.bias"] = normal(n_out)

    for i in range(layers):
        layer_norm(f"h.{i}.ln_1")
        linear(f"h.{i}.attn.c_attn", width, 3 * width)
        linear(f"h.{i}.attn.c_proj", width, width)
        layer_norm(f"h.{i}.ln_2")
        linear(f"h.{i}.mlp.c_fc", width, 4 * width)
        linear(f"h.{i}.mlp.c_proj", 4 * width, width)
    layer_norm("ln_f")
    return tensors


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("shape", nargs="?", default="124M", choices=SHAPES)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    layers, heads, width = SHAPES[arguments.shape]
    arguments.out.mkdir(parents=True, exist_ok=True)
    tensors = weights(layers, width, arguments.seed)
    save_file(tensors, arguments.out / "model.safetensors", metadata={"format": "pt"})
    config = {
        "model_type": "gpt2",
        "architectures": ["GPT2LMHeadModel"],
        "activation_function": "gelu_new",
        "vocab_size": VOCABULARY,
        "n_positions": POSITIONS,
        "n_ctx": POSITIONS,
        "n_embd": width,
        "n_layer": layers,
        "n_head": heads,
        "layer_norm_epsilon": 1e-5,
        "bos_token_id": VOCABULARY - 1,
        "eos_token_id": VOCABULARY - 1,
        "torch_dtype": "float32",
    }
    (arguments.out / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    for name in ("tokenizer.json", "vocab.json", "merges.txt"):
        shutil.copy(TOKENIZER / name, arguments.out)
    parameters = sum(tensor.size for tensor in tensors.values())
    print(f"{arguments.shape}: {parameters / 1e6:.1f} M parameters in {arguments.out}")


if __name__ == "__main__":
    main()
