#!/usr/bin/env python3
"""Measures a server under overload.

First a closed loop finds the peak, with as many requests in flight as the batch has slots. Then
`skald bench --rate` sends at random times, whether or not the server keeps up, at multiples of the peak
rate. Goodput is the output of completed requests per second of the run, its tail included. The time to
first token is that of completed requests, from the scheduled arrival of each.

    cargo build --release
    benches/overload.py --duration 120 -- --model builtin --max-batch 16

Arguments after `--` are passed to `skald serve`. Exits with 1 if goodput at the highest multiple is below
95 % of the peak, or if the 99th percentile of the time to first token exceeds `--ttft` (the queue timeout
plus the prefill of the longest prompt).
"""

import argparse
import json
import pathlib
import re
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent


def bench(skald, url, arguments):
    """Runs `skald bench` and returns its report; exits if there is none."""
    command = [skald, "bench", url, "--json", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if not done.stdout.strip():
        sys.exit(f"{' '.join(command)}:\n{done.stderr}")
    return json.loads(done.stdout)


def start(skald, arguments, log):
    """Starts a server, and returns its process and URL."""
    serve = [skald, "serve", "--listen", "127.0.0.1:0", "--log-format", "human", "--log", "info"]
    server = subprocess.Popen([*serve, *arguments], stdout=log, stderr=log)
    while server.poll() is None:
        ready = re.search(r"ready at (http://\S+)", pathlib.Path(log.name).read_text())
        if ready:
            return server, ready.group(1)
        time.sleep(0.1)
    sys.exit(pathlib.Path(log.name).read_text())


def row(name, report, peak):
    requests, failed = report["requests"], report["errors"]
    late = sum(error["count"] for error in failed if "503" in error["kind"])
    goodput = report["throughput"]["output_tokens_per_s"]
    ttft = report["ttft_ms"] or {"p50": float("nan"), "p99": float("nan")}
    print(
        f"| {name} | {report['throughput']['requests_per_s']:.2f} | {goodput:.1f} "
        f"| {100 * goodput / peak:.1f} % | {requests['completed']} | {requests['rejected']} "
        f"| {late} | {requests['failed'] - late} "
        f"| {ttft['p50'] / 1000:.2f} s | {ttft['p99'] / 1000:.2f} s |",
        flush=True,
    )
    return goodput, ttft["p99"] / 1000


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--skald", default=str(ROOT / "target/release/skald"))
    parser.add_argument("--duration", type=int, default=120, help="seconds of each run")
    parser.add_argument("--multiples", default="0.5,1,2,5,10")
    parser.add_argument("--prompt-tokens", default="32..96")
    parser.add_argument("--output-tokens", default="32..96")
    parser.add_argument("--ttft", type=float, default=35, help="maximum p99 of the time to first token, in seconds")
    parser.add_argument("serve", nargs="*", help="arguments of `skald serve`")
    options = parser.parse_args()
    load = ["--prompt-tokens", options.prompt_tokens, "--output-tokens", options.output_tokens]
    load += ["--duration", f"{options.duration}s"]
    with tempfile.NamedTemporaryFile("w") as log:
        server, url = start(options.skald, options.serve, log)
        try:
            slots = 64
            if "--max-batch" in options.serve:
                slots = int(options.serve[options.serve.index("--max-batch") + 1])
            closed = bench(options.skald, url, [*load, "--concurrency", slots])
            peak = closed["throughput"]["output_tokens_per_s"]
            rate = closed["throughput"]["requests_per_s"]
            print("| load | completed/s | tokens/s | of peak | completed | 429 | 503 | other | TTFT p50 | p99 |")
            print("|---|---|---|---|---|---|---|---|---|---|")
            row(f"closed loop, {slots} in flight", closed, peak)
            for multiple in map(float, options.multiples.split(",")):
                offered = rate * multiple
                report = bench(options.skald, url, [*load, "--rate", f"{offered:.3f}"])
                name = f"{multiple:g} times ({offered:.2f}/s)"
                goodput, ttft = row(name, report, peak)
        finally:
            server.terminate()
            server.wait()
    if goodput < 0.95 * peak or ttft > options.ttft:
        sys.exit(f"goodput {100 * goodput / peak:.1f} % of the peak, TTFT p99 {ttft:.2f} s")


if __name__ == "__main__":
    main()
