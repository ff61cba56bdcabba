#!/usr/bin/env python3
"""Compares Skald's engine with llama.cpp and CTranslate2 and prints a Markdown table.

    engine_side_by_side.py WORK_DIR NAME [--turns 3] [--threads N] [--batch 1,8,32]
                           [--precision f32,bf16,f16,q8] [--gguf] [--bench BINARY] [--log FILE]

Needs the files that run.sh makes. A round runs every engine once in every precision, each in a separate
process, one after the other, and every second round in the opposite order, so that a temporary disturbance
of the machine affects all engines. Figures are medians over the rounds.
"""

import argparse
import json
import os
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import quiet
from table import markdown, median, number, ratio
from workload import PREFILL

HERE = Path(__file__).parent
SKALD, LLAMA_CPP, CTRANSLATE2 = "Skald", "llama.cpp", "CTranslate2"
# The precision of each engine per row. Skald's 16-bit type is bfloat16, so its figures are compared with
# both of llama.cpp's.
PRECISIONS = {
    "f32": {SKALD: "f32", LLAMA_CPP: "f32", CTRANSLATE2: "float32"},
    "bf16": {SKALD: "bf16", LLAMA_CPP: "bf16"},
    "f16": {SKALD: "bf16", LLAMA_CPP: "f16"},
    "q8": {SKALD: "q8", LLAMA_CPP: "q8_0", CTRANSLATE2: "int8"},
}


def parse():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("work", type=Path)
    parser.add_argument("name")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--runs", type=int, default=3, help="runs per round, of which the median counts")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--batch", default="1,8,32")
    parser.add_argument("--precision", default=",".join(PRECISIONS))
    parser.add_argument("--gguf", action="store_true", help="Skald reads llama.cpp's files; without CTranslate2")
    parser.add_argument("--bench", help="benches/engine.rs, built [default: cargo builds it]")
    parser.add_argument("--patience", type=float, default=60, help="seconds to wait for a quiet machine")
    parser.add_argument("--log", type=Path, help="file for every single figure, one JSON object per line")
    return parser.parse_args()


def build_bench():
    """Builds benches/engine.rs and returns its binary, so that no round waits for cargo."""
    command = ["cargo", "bench", "--bench", "engine", "--no-run", "--message-format=json"]
    built = subprocess.run(command, cwd=HERE, check=True, stdout=subprocess.PIPE, text=True)
    messages = [json.loads(line) for line in built.stdout.splitlines()]
    return next(
        message["executable"]
        for message in messages
        if message.get("executable") and message["target"]["name"] == "engine"
    )


def command(engine, dtype, bench, arguments):
    base = arguments.work / arguments.name
    shared = ["--threads", str(arguments.threads), "--batch", arguments.batch, "--runs", str(arguments.runs)]
    if engine == SKALD:
        model = f"{base}-{PRECISIONS[dtype][LLAMA_CPP]}.gguf" if arguments.gguf else str(base)
        return [bench, model, "--json", "--dtype", dtype, *shared]
    script, model = {
        LLAMA_CPP: ("llama_cpp_peer.py", f"{base}-{dtype}.gguf"),
        CTRANSLATE2: ("ctranslate2_peer.py", f"{base}-ct2-{dtype}"),
    }[engine]
    return [sys.executable, str(HERE / script), model, *shared]


def measure(arguments):
    """Returns all figures by engine, precision, figure and batch, each as a list over the rounds."""
    bench = arguments.bench or build_bench()
    rows = [PRECISIONS[precision] for precision in arguments.precision.split(",")]
    # Skald's bf16 is in two rows, but measured once.
    jobs = dict.fromkeys(job for row in rows for job in row.items())
    jobs = [job for job in jobs if not (arguments.gguf and job[0] == CTRANSLATE2)]
    figures = defaultdict(list)
    for turn in range(arguments.turns):
        for engine, dtype in jobs if turn % 2 == 0 else reversed(jobs):
            print(f"turn {turn + 1} of {arguments.turns}: {engine} {dtype}", file=sys.stderr, flush=True)
            figures["busy"].append(quiet.wait(arguments.patience))
            run = subprocess.run(
                command(engine, dtype, bench, arguments), check=True, stdout=subprocess.PIPE, text=True
            )
            for line in run.stdout.splitlines():
                figure = json.loads(line)
                if arguments.log:
                    whole = {"turn": turn, "engine": engine, "dtype": dtype, **figure}
                    with arguments.log.open("a") as log:
                        print(json.dumps(whole), file=log)
                if figure["figure"] == "memory":
                    figures["memory"].append(figure["bytes_per_second"])
                    continue
                key = engine, dtype, figure["figure"], figure["batch"]
                figures[key].append(figure["tokens_per_second"])
    return figures


def table(figures, arguments):
    kinds = [("prefill", 1, f"prefill {PREFILL}")]
    kinds += [("decode", int(n), f"decode, batch {n}") for n in arguments.batch.split(",")]
    peers = [LLAMA_CPP] if arguments.gguf else [LLAMA_CPP, CTRANSLATE2]
    rows = []
    for precision in arguments.precision.split(","):
        dtypes = PRECISIONS[precision]
        for figure, batch, title in kinds:
            rate = {
                engine: median(figures[engine, dtype, figure, batch])
                for engine, dtype in dtypes.items()
                if engine == SKALD or engine in peers
            }
            row = [dtypes[SKALD], title, number(rate[SKALD])]
            for peer in peers:
                row += [dtypes.get(peer, ""), number(rate.get(peer)), ratio(rate[SKALD], rate.get(peer))]
            rows.append(row)
    head = ["Skald", "figure", "tokens/s"]
    for peer in peers:
        head += [peer, "tokens/s", "Skald / it"]
    return markdown(head, rows)


def main():
    arguments = parse()
    figures = measure(arguments)
    memory = figures["memory"]
    print(
        f"{arguments.name}, {arguments.threads} threads, median of {arguments.turns} turns; reading memory: "
        f"{median(memory) / 1e9:.1f} GB/s ({min(memory) / 1e9:.1f} to {max(memory) / 1e9:.1f}); others used up "
        f"to {100 * max(figures['busy']):.0f} % of the machine\n"
    )
    print(table(figures, arguments))


if __name__ == "__main__":
    main()
