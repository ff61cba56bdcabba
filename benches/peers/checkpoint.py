"""A GPT-2 checkpoint in the Hugging Face layout, as both converters read it."""

import json
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file


class Checkpoint:
    """Configuration, weights in f32 under the names without `transformer.`, and tokenizer."""

    def __init__(self, directory):
        self.directory = Path(directory)
        self.config = json.loads((self.directory / "config.json").read_text())
        tensors = load_file(self.directory / "model.safetensors")
        self.tensors = {
            name.removeprefix("transformer."): tensor.astype(np.float32, copy=False)
            for name, tensor in tensors.items()
        }

    def weight(self, name):
        """Returns a tensor as stored in the checkpoint."""
        return self.tensors[name]

    def linear(self, name):
        """Returns a linear layer's weight `[n_out, n_in]` and bias `[n_out]`; GPT-2 stores `[n_in, n_out]`."""
        weight = np.ascontiguousarray(self.tensors[f"{name}.weight"].T)
        return weight, self.tensors[f"{name}.bias"]

    def vocabulary(self):
        """Returns the tokens in order of their ids."""
        ids = json.loads((self.directory / "vocab.json").read_text(encoding="utf-8"))
        tokens = sorted(ids, key=ids.get)
        assert len(tokens) == self.config["vocab_size"], "vocab.json does not fit the weights"
        return tokens

    def merges(self):
        """Returns the merges in order of their ranks."""
        lines = (self.directory / "merges.txt").read_text(encoding="utf-8").split("\n")
        return [line for line in lines if line and not line.startswith("#version")]
