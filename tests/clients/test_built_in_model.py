"""The claims of the model card about the built-in model, checked with the server."""

import json
import re
import subprocess
import sys

import openai
import pytest

PROMPT = "Once upon a time"


@pytest.fixture(scope="module")
def model_dir(root):
    return root / "assets/fairy-tales"


@pytest.fixture(scope="module")
def trained(model_dir):
    """Returns the results of the training run."""
    return json.loads((model_dir / "train.json").read_text())


@pytest.fixture(scope="module")
def card(model_dir):
    return (model_dir / "README.md").read_text()


def test_bits_per_byte_are_those_of_the_training_run(start_server, model_dir, trained):
    with start_server("--dtype", "f32", "--generation-config", "none") as url:
        script = [sys.executable, model_dir / "training/measure.py", "--url", url]
        measured = json.loads(subprocess.run(script, check=True, capture_output=True, text=True).stdout)
    assert measured["bits_per_byte"] == pytest.approx(trained["bits_per_byte"], rel=1e-3)
    assert measured["loss"] == pytest.approx(trained["validation_loss"], rel=1e-3)


def test_the_card_tells_the_figures_of_the_run(card, trained):
    assert f"**{trained['bits_per_byte']:.3f} bits per byte**" in card
    assert f"{trained['parameters']:,}" in card


def test_the_samples_of_the_card_are_what_the_model_writes(base_url, card):
    """As the card states: seeds 1 to 10, 200 tokens, all of them, with the default settings."""
    samples = re.findall(r"^\*\*(\d+)\.\*\*\n\n((?:>.*\n)+)", card, re.MULTILINE)
    assert [int(seed) for seed, _ in samples] == list(range(1, 11))
    client = openai.OpenAI(base_url=f"{base_url}/v1", api_key="none")
    for seed, quoted in samples:
        answer = client.completions.create(model="builtin", prompt=PROMPT, max_tokens=200, seed=int(seed))
        lines = (PROMPT + answer.choices[0].text).strip().split("\n")
        assert quoted == "".join(f"> {line}".rstrip() + "\n" for line in lines), seed
