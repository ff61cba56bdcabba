#!/usr/bin/env python3
"""Checks that every engine computes the same model, before any speed is compared.

    check.py WORK_DIR NAME [--skald BINARY]

`WORK_DIR` is as run.sh fills it: `NAME/`, `NAME-{f32,f16,bf16,q8_0}.gguf`, `NAME-ct2-{float32,int8}/`
and llama.cpp's `llama-server`. For some texts, in f32, the greedy continuation must be Skald's
token by token (starting from the text, so the tokenizers agree too). In every precision, the
log-probabilities given to those tokens, prompt and continuation, must be near Skald's in f32.
"""

import argparse
import sys
from pathlib import Path

import ctranslate2
import numpy as np

import llama_cpp_peer
import servers
from ctranslate2_peer import CTranslate2

TEXTS = [
    "The miller's 3 daughters didn't sleep; they went, at last, to the naïve old king —",
    "Once upon a time",
    "  def f(x):\n\treturn x ** 2  # 1999",
]
NEW = 16
# Largest permitted difference of a log-probability. Random weights spread the logits by
# about 1, and a wrong transpose, order or constant moves them by as much. llama.cpp looks GELU up in
# a table in f16, even for f32 weights.
TOLERANCE = {"f32": 3e-3, "f16": 0.01, "bf16": 0.05, "q8_0": 0.1, "int8": 0.2}


class Reference:
    """Skald's continuation of a text and its log-probabilities, in f32."""

    def __init__(self, url, text):
        parameters = {"max_new_tokens": NEW, "do_sample": False, "decoder_input_details": True}
        body = {"inputs": text, "parameters": parameters, "stream": False}
        answer = servers.post(f"{url}/generate", body)
        details = answer["details"]
        tokens = details["prefill"] + details["tokens"]
        self.text = text
        self.prompt = [token["id"] for token in details["prefill"]]
        self.new = [token["id"] for token in details["tokens"]]
        # For all tokens except the first.
        self.logprobs = np.array([token["logprob"] for token in tokens[1:]])

    @property
    def tokens(self):
        return self.prompt + self.new


def of_tokens(logits, tokens):
    """Returns the log-probabilities of tokens 1.., from the logits of every position."""
    logits = logits.astype(np.float64)
    norm = np.log(np.exp(logits - logits.max(-1, keepdims=True)).sum(-1)) + logits.max(-1)
    chosen = np.take_along_axis(logits[:-1], np.array(tokens[1:])[:, None], -1)[:, 0]
    return chosen - norm[:-1]


def llama_cpp_logprobs(engine, tokens):
    engine.clear()
    engine.decode([(token, position, 0, True) for position, token in enumerate(tokens)])
    logits = np.stack([engine.logits(row) for row in range(len(tokens))])
    return of_tokens(logits, tokens)


def ctranslate2_logprobs(engine, tokens):
    logits = engine.generator.forward_batch([tokens]).to(ctranslate2.DataType.float32)
    return of_tokens(np.array(logits)[0], tokens)


class Report:
    """Prints each result and records whether one failed."""

    def __init__(self):
        self.failed = False

    def say(self, name, good, detail):
        self.failed |= not good
        print(f"{'ok  ' if good else 'FAIL'} {name}: {detail}", flush=True)

    def same(self, name, pairs):
        agreeing = sum(ids == expected for ids, expected in pairs)
        self.say(name, agreeing == len(pairs), f"{agreeing} of {len(pairs)} are the same as Skald's")

    def near(self, name, dtype, references, logprobs):
        worst = max(np.abs(logprobs(r.tokens) - r.logprobs).max() for r in references)
        good = worst < TOLERANCE[dtype]
        self.say(name, good, f"log-probabilities differ by up to {worst:.1g} from Skald's in f32")


def check_llama_server(report, command, log, references):
    with servers.running(command, log, "/health") as (url, _):
        def tokenize(text):
            return servers.post(f"{url}/tokenize", {"content": text})["tokens"]

        def complete(prompt):
            body = {"prompt": prompt, "n_predict": NEW, "temperature": 0, "return_tokens": True}
            return servers.post(f"{url}/completion", body)["tokens"]

        report.same("llama-server, tokens of texts", [(tokenize(r.text), r.prompt) for r in references])
        report.same("llama-server f32, greedy", [(complete(r.prompt), r.new) for r in references])


def check_llama_cpp(report, gguf, references):
    model = llama_cpp_peer.load(gguf("f32"))
    engine = llama_cpp_peer.LlamaCpp(model, len(references), 1, kv_f32=True)
    together = engine.generate([r.prompt for r in references], NEW)[0]
    report.same("llama.cpp f32, greedy", [(ids, r.new) for ids, r in zip(together, references)])
    for dtype in ("f32", "f16", "bf16", "q8_0"):
        engine = llama_cpp_peer.LlamaCpp(llama_cpp_peer.load(gguf(dtype)), 1, 1, dtype == "f32")
        report.near(
            f"llama.cpp {dtype}", dtype, references, lambda tokens: llama_cpp_logprobs(engine, tokens)
        )


def check_ctranslate2(report, directory, references):
    for dtype, tolerance in (("float32", "f32"), ("int8", "int8")):
        engine = CTranslate2(directory(dtype), 1)
        if dtype == "float32":
            greedy = [(engine.generate([r.prompt], NEW)[0][0], r.new) for r in references]
            report.same("CTranslate2 float32, greedy", greedy)
        report.near(
            f"CTranslate2 {dtype}", tolerance, references, lambda tokens: ctranslate2_logprobs(engine, tokens)
        )


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("work", type=Path)
    parser.add_argument("name")
    parser.add_argument("--skald", default="target/release/skald")
    arguments = parser.parse_args()
    work, base = arguments.work, arguments.work / arguments.name
    report = Report()

    command = servers.skald(arguments.skald, base, "f32", 1)
    with servers.running(command, work / "skald.log", "/readyz") as (url, _):
        references = [Reference(url, text) for text in TEXTS]
    llama_server = work / "llama.cpp" / "bin" / "llama-server"
    command = servers.llama_server(llama_server, f"{base}-f32.gguf", 1, 256, 1)
    check_llama_server(report, command, work / "llama-server.log", references)
    check_llama_cpp(report, lambda dtype: f"{base}-{dtype}.gguf", references)
    check_ctranslate2(report, lambda dtype: f"{base}-ct2-{dtype}", references)
    sys.exit(report.failed)


if __name__ == "__main__":
    main()
