#!/usr/bin/env python3
"""Compares prefill and decode of Skald and llama.cpp in contexts from 128 to 32k tokens, and prints tables.

    contexts.py SKALD MODEL.gguf [--dtype bf16] [--lengths 128,512,...] [--threads N]

Each prompt is random and used once; 64 tokens follow greedily. Skald is measured over HTTP, llama.cpp through
its library, one after the other. Last, a stream runs beside the prefill of the longest prompt, and the time
between its tokens is measured before and during it.
"""

import argparse
import json
import os
import tempfile
import threading
import time
import urllib.request
from pathlib import Path

import llama_cpp_peer
import servers
import workload
from http_load import peak_memory, percentile
from table import markdown, number, ratio

NEW = 64
STREAM_TOKENS = 2000
"""Tokens of the stream beside a prefill: more than are generated until the prefill ends."""


def stream(url, prompt, new, stop=None):
    """Returns when the request was sent, and when each of its tokens came."""
    body = {"prompt": prompt, "max_tokens": new, "temperature": 0, "ignore_eos": True, "stream": True}
    request = urllib.request.Request(
        f"{url}/v1/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    sent, times = time.perf_counter(), []
    with urllib.request.urlopen(request) as answer:
        for line in answer:
            if line.startswith(b"data: {") and json.loads(line[6:]).get("choices"):
                times.append(time.perf_counter())
            if stop and stop.is_set():
                break
    return sent, times


def measure_skald(url, lengths):
    """Returns prefill and decode in tokens per second, by length."""
    stream(url, workload.prompts(1, 64, 0)[0], 8)
    rates = {}
    for seed, length in enumerate(lengths, 1):
        sent, times = stream(url, workload.prompts(1, length, seed)[0], NEW + 1)
        rates[length] = length / (times[0] - sent), NEW / (times[NEW] - times[0])
    return rates


def measure_llama_cpp(path, lengths, threads):
    """As `measure_skald`."""
    model = llama_cpp_peer.load(path)
    rates = {}
    for seed, length in enumerate(lengths, 1):
        llama_cpp_peer.PREFILL_SEQUENCE = length + NEW + 16
        workload.PREFILL = length
        context = llama_cpp_peer.LlamaCpp(model, 1, threads)
        _, first, rest = context.generate(workload.prompts(1, length, seed), NEW + 1)
        rates[length] = length / first, NEW / rest
    return rates


def beside_prefill(url, length):
    """Returns the gaps between a stream's tokens before and during the prefill of a long prompt, in ms."""
    seen, stop = [], threading.Event()
    prompts = [workload.prompts(1, 64, 100)[0], workload.prompts(1, length, 101)[0]]
    background = threading.Thread(
        target=lambda: seen.append(stream(url, prompts[0], STREAM_TOKENS, stop))
    )
    background.start()
    time.sleep(2)
    sent, times = stream(url, prompts[1], 1)
    stop.set()
    background.join()
    gaps = [(now, 1000 * (now - last)) for last, now in zip(seen[0][1], seen[0][1][1:])]
    alone = [gap for now, gap in gaps if now < sent]
    return alone, [gap for now, gap in gaps if sent <= now < times[0]]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("skald", type=Path)
    parser.add_argument("model")
    parser.add_argument("--dtype", default="bf16")
    parser.add_argument("--lengths", default="128,512,2048,8192,16384,32600")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    arguments = parser.parse_args()
    lengths = [int(length) for length in arguments.lengths.split(",")]
    command = servers.skald(
        arguments.skald, arguments.model, arguments.dtype, arguments.threads, "--speculation=off"
    )
    log = Path(tempfile.gettempdir()) / "skald-contexts.log"
    with servers.running(command, log, "/readyz") as (url, pid):
        ours = measure_skald(url, lengths)
        alone, beside = beside_prefill(url, max(lengths))
        peak = peak_memory(pid)
    theirs = measure_llama_cpp(arguments.model, lengths, arguments.threads)
    head = ["context", "prefill, tokens/s", "llama.cpp", "Skald / it", "decode, tokens/s", "llama.cpp", "Skald / it"]
    rows = []
    for length in lengths:
        row = [f"{length:,}"]
        for mine, other in zip(ours[length], theirs[length]):
            row += [number(mine), number(other), ratio(mine, other)]
        rows.append(row)
    print(markdown(head, rows))
    print(f"\nPeak memory of Skald: {peak / 1e6:.0f} MB. Between tokens of a stream, ms:\n")
    rows = [
        [title, *(f"{percentile(gaps, share):.0f}" for share in (0.5, 0.95, 0.99))]
        for title, gaps in (("alone", alone), (f"beside the prefill of {max(lengths):,} tokens", beside))
    ]
    print(markdown(["", "p50", "p95", "p99"], rows))


if __name__ == "__main__":
    main()
