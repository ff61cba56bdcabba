#!/usr/bin/env python3
"""Compares `skald serve` with llama.cpp's `llama-server` over HTTP and prints a Markdown table.

    http_side_by_side.py WORK_DIR NAME [--turns 3] [--streams 1,16,64] [--precision f32,bf16,q8]
                         [--slots 32] [--skald BINARY] [--llama-server BINARY] [--threads N] [--log FILE]

Needs the files that run.sh makes. For every precision and number of streams, the servers are started, loaded
by http_load.py and stopped, alternately, and in the opposite order in every second round. Figures are medians
over the rounds.
"""

import argparse
import json
import os
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import quiet
import servers
from table import markdown, median, number, ratio
from workload import NEW, PROMPT

HERE = Path(__file__).parent
SKALD, LLAMA_SERVER = "skald serve", "llama-server"
# Skald's precision: llama.cpp's.
PRECISIONS = {"f32": "f32", "bf16": "bf16", "q8": "q8_0"}
# Prompt and new tokens, rounded up as llama.cpp does.
CONTEXT = 256
# Figure: title, factor for display, whether more is better.
FIGURES = {
    "tokens_per_second": ("tokens/s", 1, True),
    "first_token_p50": ("first token p50, ms", 1e3, False),
    "between_p50": ("between tokens p50, ms", 1e3, False),
    "between_p99": ("p99, ms", 1e3, False),
    "peak_memory": ("peak memory, MB", 1e-6, False),
}


def parse():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("work", type=Path)
    parser.add_argument("name")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--streams", default="1,16,64")
    parser.add_argument("--precision", default=",".join(PRECISIONS))
    parser.add_argument("--requests", type=int, help="requests per run [default: 2 per stream, at least 4]")
    parser.add_argument("--slots", type=int, help="maximum slots of llama-server [default: one per stream]")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--skald", type=Path, default=HERE.parents[1] / "target" / "release" / "skald")
    parser.add_argument("--llama-server", type=Path, help="[default: the one run.sh built in WORK_DIR]")
    parser.add_argument("--patience", type=float, default=60, help="seconds to wait for a quiet machine")
    parser.add_argument("--log", type=Path, help="file for every single figure, one JSON object per line")
    return parser.parse_args()


def server(name, dtype, streams, arguments):
    """Returns the command that starts a server, and its readiness route."""
    base = arguments.work / arguments.name
    if name == SKALD:
        return servers.skald(arguments.skald, base, dtype, arguments.threads), "/readyz"
    binary = arguments.llama_server or arguments.work / "llama.cpp" / "bin" / "llama-server"
    gguf = f"{base}-{PRECISIONS[dtype]}.gguf"
    # With a slot per stream no request waits for another to finish; fewer slots give more tokens per
    # second. Skald runs with its defaults.
    slots = min(streams, arguments.slots or streams)
    return servers.llama_server(binary, gguf, slots, CONTEXT, arguments.threads), "/health"


def load(name, dtype, streams, arguments):
    """Runs the load client once against a fresh server."""
    command, ready = server(name, dtype, streams, arguments)
    with servers.running(command, arguments.work / f"{name.replace(' ', '-')}.log", ready) as (url, pid):
        client = [sys.executable, str(HERE / "http_load.py")]
        client += ["--url", url, "--pid", str(pid), "--streams", str(streams)]
        if arguments.requests:
            client += ["--requests", str(arguments.requests)]
        run = subprocess.run(client, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(run.stdout)


def measure(arguments):
    """Returns all figures by server, precision, streams and figure, each as a list over the rounds."""
    jobs = [
        (name, dtype, int(streams))
        for dtype in arguments.precision.split(",")
        for streams in arguments.streams.split(",")
        for name in (SKALD, LLAMA_SERVER)
    ]
    figures = defaultdict(list)
    for turn in range(arguments.turns):
        for name, dtype, streams in jobs if turn % 2 == 0 else reversed(jobs):
            title = f"{name} {dtype}, {streams} streams"
            print(f"turn {turn + 1} of {arguments.turns}: {title}", file=sys.stderr, flush=True)
            figures["busy"].append(quiet.wait(arguments.patience))
            run = load(name, dtype, streams, arguments)
            if arguments.log:
                with arguments.log.open("a") as log:
                    print(json.dumps({"turn": turn, "server": name, "dtype": dtype, **run}), file=log)
            for figure in FIGURES:
                figures[name, dtype, streams, figure].append(run[figure])
    return figures


def table(figures, arguments):
    rows = []
    for dtype in arguments.precision.split(","):
        for streams in map(int, arguments.streams.split(",")):
            medians = {
                name: {figure: median(figures[name, dtype, streams, figure]) for figure in FIGURES}
                for name in (SKALD, LLAMA_SERVER)
            }
            for name, label in ((SKALD, dtype), (LLAMA_SERVER, PRECISIONS[dtype])):
                shown = [number(medians[name][figure] * unit) for figure, (_, unit, _) in FIGURES.items()]
                rows.append([str(streams), f"{name} {label}", *shown])
            # Above 1 Skald is better, for every figure.
            times = [
                ratio(*[medians[name][figure] for name in ((SKALD, LLAMA_SERVER) if more else (LLAMA_SERVER, SKALD))])
                for figure, (_, _, more) in FIGURES.items()
            ]
            rows.append(["", "*times better*", *(f"*{value}*" for value in times)])
    return markdown(["streams", "server", *(title for title, _, _ in FIGURES.values())], rows)


def main():
    arguments = parse()
    figures = measure(arguments)
    print(
        f"{arguments.name}, {arguments.threads} threads, {PROMPT} tokens in, {NEW} out, streamed; median of "
        f"{arguments.turns} turns; others used up to {100 * max(figures['busy']):.0f} % of the machine\n"
    )
    print(table(figures, arguments))


if __name__ == "__main__":
    main()
