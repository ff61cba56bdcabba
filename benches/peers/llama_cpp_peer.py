#!/usr/bin/env python3
"""Measures llama.cpp, as a library, on a GGUF file; one JSON line per figure.

    llama_cpp_peer.py MODEL.gguf [--threads N] [--batch 1,8,32] [--runs 3]

Uses the C functions directly, a batch as one sequence per prompt and one `llama_decode` per step,
as llama.cpp's own `llama-batched-bench` does, plus an argmax per token.
"""

import time

import llama_cpp
import numpy as np

import workload

# Prompt and new tokens per sequence of the KV cache, which llama.cpp itself rounds up to a multiple of 256.
SEQUENCE = 256
PREFILL_SEQUENCE = 768


@llama_cpp.llama_log_callback
def quiet(_level, _text, _data):
    """Discards llama.cpp's log, which has every tensor it loads."""


class LlamaCpp:
    """A model and a context with a fixed number of sequences."""

    def __init__(self, model, batch, threads, kv_f32=False):
        params = llama_cpp.llama_context_default_params()
        params.n_ctx = max(SEQUENCE * batch, PREFILL_SEQUENCE)
        params.n_batch = max(workload.PREFILL, workload.PROMPT * batch)
        params.n_seq_max = batch
        params.n_threads = params.n_threads_batch = threads
        if kv_f32:
            params.type_k = params.type_v = llama_cpp.GGML_TYPE_F32
        self.context = llama_cpp.llama_init_from_model(model, params)
        assert self.context, "llama.cpp can't make a context"
        vocab = llama_cpp.llama_model_get_vocab(model)
        self.vocabulary = llama_cpp.llama_vocab_n_tokens(vocab)
        self.batch = llama_cpp.llama_batch_init(params.n_batch, 0, 1)

    def __del__(self):
        llama_cpp.llama_batch_free(self.batch)
        llama_cpp.llama_free(self.context)

    def clear(self):
        """Clears all sequences."""
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self.context), False)

    def decode(self, rows):
        """Computes rows of (token, position, sequence, whether its logits are wanted)."""
        batch = self.batch
        batch.n_tokens = len(rows)
        for i, (token, position, sequence, wanted) in enumerate(rows):
            batch.token[i] = token
            batch.pos[i] = position
            batch.n_seq_id[i] = 1
            batch.seq_id[i][0] = sequence
            batch.logits[i] = wanted
        code = llama_cpp.llama_decode(self.context, batch)
        assert code == 0, f"llama_decode returned {code}"

    def logits(self, row):
        """Returns the logits of a row of the last batch, without copying."""
        values = llama_cpp.llama_get_logits_ith(self.context, row)
        return np.ctypeslib.as_array(values, (self.vocabulary,))

    def prefill(self, prompts):
        """Computes the prompts from an empty cache, and returns the rows with the logits of the last tokens."""
        self.clear()
        rows = [
            (token, position, sequence, position + 1 == len(prompt))
            for sequence, prompt in enumerate(prompts)
            for position, token in enumerate(prompt)
        ]
        self.decode(rows)
        return [i for i, row in enumerate(rows) if row[3]]

    def generate(self, prompts, new):
        """See `workload.measure`."""
        started = time.perf_counter()
        rows = self.prefill(prompts)
        last = [int(self.logits(row).argmax()) for row in rows]
        first = time.perf_counter()
        tokens = [[token] for token in last]
        for step in range(new - 1):
            self.decode(
                [
                    (token, len(prompts[sequence]) + step, sequence, True)
                    for sequence, token in enumerate(last)
                ]
            )
            last = [int(self.logits(row).argmax()) for row in range(len(prompts))]
            for sequence, token in zip(tokens, last):
                sequence.append(token)
        return tokens, first - started, time.perf_counter() - first


def load(path):
    llama_cpp.llama_log_set(quiet, None)
    llama_cpp.llama_backend_init()
    params = llama_cpp.llama_model_default_params()
    model = llama_cpp.llama_model_load_from_file(path.encode(), params)
    assert model, f"llama.cpp can't load {path}"
    return model


def main():
    arguments = workload.arguments(__doc__.splitlines()[0])
    model = load(arguments.model)
    workload.measure(
        lambda batch: LlamaCpp(model, batch, arguments.threads), arguments.runs, arguments.batch
    )


if __name__ == "__main__":
    main()
