"""Bits per byte of the validation tales as a running Skald measures them.

    skald serve --dtype f32 &
    python measure.py --url http://localhost:8080

Each tale after its own end of text, in windows of 1024 predicted tokens, each window starting afresh:
what `corpus.bits_per_byte` counts, but through `/v1/completions` with `echo` and `logprobs`. A prompt
holds no more than 1024 tokens, so 1023 of them are predicted; the last token of a full window is
scored in a prompt of its own that begins one token later. Needs nothing but Python.
"""

import argparse
import json
import math
import pathlib
import urllib.request

HERE = pathlib.Path(__file__).parent
END = "<|endoftext|>"
POSITIONS = 1024


def ask(url, path, body=None):
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url + path, data, {"content-type": "application/json"})
    with urllib.request.urlopen(request, timeout=600) as response:
        return json.load(response)


def logprobs(url, ids):
    """The log-probability of every token but the first."""
    answer = ask(
        url,
        "/v1/completions",
        {"model": "builtin", "prompt": ids, "max_tokens": 0, "echo": True, "logprobs": 0},
    )
    return answer["choices"][0]["logprobs"]["token_logprobs"][1:]


def bits_per_byte(url, texts):
    end = ask(url, "/info")["model"]["end_of_text"][0]
    nats, tokens = 0.0, 0
    for text in texts:
        ids = [end] + ask(url, "/tokenize", {"content": text})["tokens"]
        for at in range(0, len(ids) - 1, POSITIONS):
            window = ids[at : at + POSITIONS + 1]
            found = logprobs(url, window[:POSITIONS])
            if len(window) > POSITIONS:
                found.append(logprobs(url, window[1:])[-1])
            assert len(found) == len(window) - 1
            nats -= sum(found)
            tokens += len(found)
    size = sum(len(text.encode()) for text in texts)
    return {
        "bits_per_byte": round(nats / math.log(2) / size, 5),
        "loss": round(nats / tokens, 5),
        "tokens": tokens,
        "bytes": size,
    }


def main():
    p = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    p.add_argument("--url", default="http://localhost:8080")
    p.add_argument("--validation", type=pathlib.Path, default=HERE.parent / "validation.txt")
    a = p.parse_args()
    texts = a.validation.read_text(encoding="utf-8").split(END)
    texts = [text.strip() for text in texts if text.strip()]
    print(json.dumps(bits_per_byte(a.url, texts)))


if __name__ == "__main__":
    main()
