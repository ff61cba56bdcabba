"""Renews what the model card shows of a run: the picture of the curves and the samples.

    skald serve &
    python card.py --url http://localhost:8080

The samples are chosen by a rule that leaves nothing to choose: 200 tokens after "Once upon a time"
with the seeds 1 to 10 and the model's own generation_config.json, by the server as it starts. Needs matplotlib.
"""

import argparse
import json
import pathlib

import matplotlib
from measure import ask

matplotlib.use("svg")
from matplotlib import pyplot

MODEL = pathlib.Path(__file__).parent.parent
PROMPT = "Once upon a time"
# Bits per byte of the first built-in model.
FIRST = 1.524


def picture():
    """Draws curve.jsonl, one line of which is one look at the validation tales."""
    lines = (MODEL / "curve.jsonl").read_text().splitlines()
    looks = [json.loads(line) for line in lines]
    tokens = [look["tokens"] / 1e6 for look in looks]
    # Tokens a byte, to show the loss of the training tokens in the same unit.
    share = looks[-1]["bits_per_byte"] / looks[-1]["validation_loss"]
    pyplot.rcParams["svg.hashsalt"] = "fairy-tales"
    figure, axes = pyplot.subplots(figsize=(8, 4.5))
    training = [look["train_loss"] * share for look in looks]
    axes.plot(tokens, training, label="training (with dropout)", color="#b0885a")
    axes.plot(tokens, [look["bits_per_byte"] for look in looks], label="validation tales", color="#1f4e79")
    axes.axhline(FIRST, color="#888888", linewidth=0.8, linestyle="--", label="the first built-in model")
    axes.set_xlabel("million tokens seen")
    axes.set_ylabel("bits per byte")
    axes.set_ylim(top=1.8)
    axes.grid(alpha=0.3)
    axes.legend()
    figure.tight_layout()
    figure.savefig(MODEL / "curve.svg", metadata={"Date": None})


def samples(url):
    for seed in range(1, 11):
        body = {"model": "builtin", "prompt": PROMPT, "max_tokens": 200, "seed": seed}
        text = PROMPT + ask(url, "/v1/completions", body)["choices"][0]["text"]
        quoted = "\n".join(f"> {line}".rstrip() for line in text.strip().split("\n"))
        yield f"**{seed}.**\n\n{quoted}\n"


def renew(card, name, text):
    """Replaces what stands between `<!-- name -->` and `<!-- /name -->`."""
    start, end = f"<!-- {name} -->\n", f"<!-- /{name} -->"
    head, rest = card.split(start)
    tail = rest.split(end)[1]
    return f"{head}{start}{text}{end}{tail}"


def main():
    p = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    p.add_argument("--url", default="http://localhost:8080")
    a = p.parse_args()
    picture()
    path = MODEL / "README.md"
    card = renew(path.read_text(encoding="utf-8"), "samples", "\n".join(samples(a.url)))
    path.write_text(card, encoding="utf-8")


if __name__ == "__main__":
    main()
