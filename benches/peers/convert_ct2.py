#!/usr/bin/env python3
"""Converts a GPT-2 checkpoint to CTranslate2's format, without torch or transformers.

    convert_ct2.py CHECKPOINT_DIR OUT_DIR {float32,int8}

Fills the same specification as CTranslate2's own GPT-2 converter, from arrays.
"""

import argparse
import shutil
from pathlib import Path

from ctranslate2.specs import Activation, TransformerDecoderModelSpec

from checkpoint import Checkpoint

ACTIVATIONS = {"gelu_new": Activation.GELUTanh, "gelu": Activation.GELU}


def specification(checkpoint):
    config = checkpoint.config
    spec = TransformerDecoderModelSpec.from_config(
        config["n_layer"],
        config["n_head"],
        pre_norm=True,
        activation=ACTIVATIONS[config["activation_function"]],
    )

    def layer_norm(part, source):
        part.gamma = checkpoint.weight(f"{source}.weight")
        part.beta = checkpoint.weight(f"{source}.bias")

    def linear(part, source):
        part.weight, part.bias = checkpoint.linear(source)

    decoder = spec.decoder
    decoder.scale_embeddings = False
    decoder.embeddings.weight = checkpoint.weight("wte.weight")
    decoder.position_encodings.encodings = checkpoint.weight("wpe.weight")
    for i, layer in enumerate(decoder.layer):
        layer_norm(layer.self_attention.layer_norm, f"h.{i}.ln_1")
        linear(layer.self_attention.linear[0], f"h.{i}.attn.c_attn")
        linear(layer.self_attention.linear[1], f"h.{i}.attn.c_proj")
        layer_norm(layer.ffn.layer_norm, f"h.{i}.ln_2")
        linear(layer.ffn.linear_0, f"h.{i}.mlp.c_fc")
        linear(layer.ffn.linear_1, f"h.{i}.mlp.c_proj")
    layer_norm(decoder.layer_norm, "ln_f")
    decoder.projection.weight = checkpoint.weight("wte.weight")
    tokens = checkpoint.vocabulary()
    spec.register_vocabulary(tokens)
    end_of_text = tokens[config["eos_token_id"]]
    spec.config.bos_token = spec.config.eos_token = spec.config.unk_token = end_of_text
    spec.config.layer_norm_epsilon = config["layer_norm_epsilon"]
    return spec


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint")
    parser.add_argument("out", type=Path)
    parser.add_argument("quantization", choices=["float32", "int8"])
    arguments = parser.parse_args()
    spec = specification(Checkpoint(arguments.checkpoint))
    spec.validate()
    spec.optimize(quantization=arguments.quantization)
    shutil.rmtree(arguments.out, ignore_errors=True)
    arguments.out.mkdir(parents=True)
    spec.save(str(arguments.out))


if __name__ == "__main__":
    main()
