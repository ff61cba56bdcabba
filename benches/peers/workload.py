"""The workload of every engine, and the measurement and output of its figures.

The same as `benches/engine.rs`: prefill is the time from a prompt of 512 tokens to the first new
one; decode is, for a batch of prompts of 64 tokens, the time from when all have their first token
until all have 128. Tokens are greedy, the end of text is ignored, prompts are random ids.
"""

import argparse
import json
import os
import random
import statistics

PREFILL = 512
PROMPT = 64
NEW = 128


def prompts(count, length, seed, vocabulary=50257):
    """Returns random prompts, never the same twice, so that no cache can help."""
    rng = random.Random(seed)
    return [[rng.randrange(vocabulary - 1) for _ in range(length)] for _ in range(count)]


def arguments(description):
    """Returns the command-line parser that all peers share."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("model")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--batch", type=lambda text: [int(n) for n in text.split(",")], default=[1, 8, 32])
    parser.add_argument("--runs", type=int, default=3)
    return parser.parse_args()


def measure(engine, runs, batches):
    """Prints one figure per line: the median of the runs, after a warm-up run.

    `engine(batch)` gives something whose `generate(prompts, new)` returns the new tokens of each
    prompt, the seconds to the first token of all, and the seconds from there to the end.
    """
    seeds = iter(range(1 << 30))
    one = engine(1)
    one.generate(prompts(1, PREFILL, next(seeds)), 1)
    seconds = [one.generate(prompts(1, PREFILL, next(seeds)), 1)[1] for _ in range(runs)]
    report("prefill", 1, PREFILL / statistics.median(seconds))
    for batch in batches:
        many = engine(batch)
        many.generate(prompts(batch, PROMPT, next(seeds)), 2)
        seconds = [many.generate(prompts(batch, PROMPT, next(seeds)), NEW)[2] for _ in range(runs)]
        report("decode", batch, batch * (NEW - 1) / statistics.median(seconds))


def report(figure, batch, rate):
    print(json.dumps({"figure": figure, "batch": batch, "tokens_per_second": round(rate, 1)}), flush=True)
