#!/usr/bin/env python3
"""Measures Skald's startup time, memory and HTTP overhead. Prints a Markdown table.

    skald_alone.py WORK_DIR NAME [--turns 5] [--threads N] [--skald BINARY] [--bench BINARY]

Needs the files that run.sh makes. *Ready* is the time from starting the process, with the checkpoint in the
page cache, to the first 200 from /readyz (polled every 0.1 s). *Resident* is the server's resident memory after
32 streams with 64 prompt tokens and 128 output tokens. *HTTP* is a stream's tokens per second, from the median
time between tokens, compared with the engine's own in the same round.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import quiet
import servers
from engine_side_by_side import build_bench
from table import markdown, median, number, ratio
from workload import NEW, PROMPT

HERE = Path(__file__).parent
STREAMS = 32
# Keys and values of 12 layers of 768, in bf16.
KV_BYTES_PER_TOKEN = 12 * 768 * 2 * 2


def parse():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("work", type=Path)
    parser.add_argument("name")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--skald", type=Path, default=HERE.parents[1] / "target" / "release" / "skald")
    parser.add_argument("--bench", help="benches/engine.rs, built [default: cargo builds it]")
    parser.add_argument("--patience", type=float, default=60, help="seconds to wait for a quiet machine")
    return parser.parse_args()


def skald(arguments, dtype, *more):
    command = servers.skald(arguments.skald, arguments.work / arguments.name, dtype, arguments.threads, *more)
    return servers.running(command, arguments.work / "skald-alone.log", "/readyz")


def load(url, pid, *more):
    client = [sys.executable, str(HERE / "http_load.py"), "--url", url, "--pid", str(pid), *more]
    return json.loads(subprocess.run(client, check=True, stdout=subprocess.PIPE, text=True).stdout)


def ready_seconds(arguments, dtype):
    started = time.monotonic()
    with skald(arguments, dtype):
        return time.monotonic() - started


def resident_bytes(arguments, dtype):
    """Returns a server's resident memory after 32 concurrent requests, and its part that is mapped from files."""
    with skald(arguments, dtype) as (url, pid):
        load(url, pid, "--streams", str(STREAMS), "--requests", str(STREAMS))
        status = Path(f"/proc/{pid}/status").read_text().splitlines()
    fields = dict(line.split(":", 1) for line in status)
    return [int(fields[name].split()[0]) * 1024 for name in ("VmRSS", "RssFile")]


def engine(arguments, bench, dtype):
    """Returns the engine's own figures: prefill, and decode at batch 1."""
    command = [bench, str(arguments.work / arguments.name), "--json", f"--dtype={dtype}", "--batch=1", "--runs=3"]
    command += ["--threads", str(arguments.threads)]
    lines = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()
    figures = {figure["figure"]: figure for figure in map(json.loads, lines)}
    return figures["prefill"], figures["decode"]


def engine_rate(arguments, bench):
    return engine(arguments, bench, "f32")[1]["tokens_per_second"]


def http_rate(arguments):
    with skald(arguments, "f32", "--speculation=off") as (url, pid):
        return 1 / load(url, pid, "--streams", "1", "--requests", "3")["between_p50"]


def main():
    arguments = parse()
    bench = arguments.bench or build_bench()
    rows = []
    for dtype in ("f32", "bf16", "q8"):
        seconds = [ready_seconds(arguments, dtype) for _ in range(arguments.turns)]
        rows.append([f"ready, {dtype}", f"{median(seconds):.2f} s", f"{min(seconds):.2f} to {max(seconds):.2f}"])
    resident, mapped = resident_bytes(arguments, "q8")
    weights = engine(arguments, bench, "q8")[0]["weight_bytes"]
    kv = STREAMS * (PROMPT + NEW) * KV_BYTES_PER_TOKEN
    bar = 1.2 * (weights + kv) + 100e6
    detail = f"weights {weights / 1e6:.0f}, KV {kv / 1e6:.0f}, mapped files {mapped / 1e6:.0f}; 1.2 x (weights + KV) + 100 is {bar / 1e6:.0f}"
    rows.append([f"resident, q8, {STREAMS} sequences of {PROMPT + NEW}", f"{resident / 1e6:.0f} MB", detail])
    pairs = []
    for turn in range(arguments.turns):
        quiet.wait(arguments.patience)
        if turn % 2 == 0:
            alone = engine_rate(arguments, bench)
            pairs.append((http_rate(arguments), alone))
        else:
            http = http_rate(arguments)
            pairs.append((http, engine_rate(arguments, bench)))
    http, alone = (median([pair[i] for pair in pairs]) for i in (0, 1))
    share = median([a / b for a, b in pairs])
    rows.append(["1 stream over HTTP, f32", f"{number(http)} tokens/s", f"engine {number(alone)}; median of the turns' ratios {ratio(share, 1)}"])
    print(markdown(["what", "figure", "of which, or range"], rows))


if __name__ == "__main__":
    main()
