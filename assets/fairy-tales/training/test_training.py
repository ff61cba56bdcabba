"""The training program: what is written out by hand is what the stock operators compute, a run that is
killed goes on to the same weights, and what it writes is an ordinary GPT-2.

    pip install -r requirements.txt pytest && pytest test_training.py
"""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from tokenizers import Tokenizer
from transformers import GPT2LMHeadModel

import corpus
from model import GPT2, CausalAttention, Dropout, Shape, VocabularyLoss
from optimizer import orthogonalized

HERE = Path(__file__).parent


@pytest.mark.parametrize("positions", [1, 100, 128, 300])
def test_attention_and_its_gradients_are_those_of_torch(positions):
    torch.manual_seed(1)
    inputs = [torch.randn(6, positions, 64).bfloat16().requires_grad_() for _ in range(3)]
    grad = torch.randn(6, positions, 64).bfloat16()
    found = CausalAttention.apply(*inputs)
    found = [found, *torch.autograd.grad(found, inputs, grad)]
    exact = [x.detach().float().requires_grad_() for x in inputs]
    expected = F.scaled_dot_product_attention(*exact, is_causal=True)
    expected = [expected, *torch.autograd.grad(expected, exact, grad.float())]
    for a, b in zip(found, expected, strict=True):
        assert (a.float() - b).norm() < 0.01 * b.norm() + 1e-3


def test_the_loss_and_its_gradients_are_those_of_torch():
    torch.manual_seed(2)
    hidden = torch.randn(1500, 64).bfloat16().requires_grad_()
    table = (torch.randn(700, 64) * 0.1).bfloat16().requires_grad_()
    targets = torch.randint(0, 700, (1500,))
    found = VocabularyLoss.apply(hidden, table, targets)
    found = [found, *torch.autograd.grad(found, [hidden, table])]
    exact = [x.detach().float().requires_grad_() for x in (hidden, table)]
    expected = F.cross_entropy(exact[0] @ exact[1].T, targets)
    expected = [expected, *torch.autograd.grad(expected, exact)]
    for a, b in zip(found, expected, strict=True):
        assert (a.float() - b).norm() < 0.01 * b.norm()


@pytest.mark.parametrize("shape", [(64, 64), (256, 64), (64, 256)])
def test_muon_makes_all_singular_values_alike(shape):
    torch.manual_seed(3)
    values = torch.linalg.svdvals(orthogonalized(torch.randn(2, *shape)))
    # A random square matrix has some that are next to nothing; they stay small.
    assert values.max() < 1.3
    assert (values > 0.6).float().mean() > 0.95


def test_dropout_keeps_the_mean_and_follows_from_its_generator():
    import numpy as np

    dropout = Dropout(0.25)
    results = []
    for _ in range(2):
        dropout.draw(np.random.default_rng(4), (8, 64, 64))
        results.append(dropout(torch.ones(8, 64, 64).bfloat16()).float())
    assert torch.equal(*results)
    assert abs((results[0] == 0).float().mean() - 0.25) < 0.01
    assert abs(results[0].mean() - 1) < 0.01


def test_tellings_of_the_validation_tales_are_left_out_and_nothing_else():
    validation = corpus.documents(HERE.parent / "validation.txt")
    texts = [
        text for name in ("tales", "novels") for text in corpus.documents(HERE / f"corpus/{name}.txt.xz")
    ]
    kept, left_out = corpus.without_duplicates(texts, validation)
    assert (len(texts), len(kept), len(left_out)) == (1370, 1357, 13)
    assert not set(kept) & set(validation)
    assert sorted(share for share, _ in left_out)[:5] == pytest.approx([0.037, 0.045, 0.100, 0.842, 0.901], abs=1e-3)


def test_an_epoch_has_every_token_once():
    tokenizer = corpus.trained_tokenizer(TEXTS, 300)
    batches = corpus.Batches(tokenizer, TEXTS, seed=5)
    first, second = (batches.epoch(number, 64) for number in (0, 1))
    assert first.shape[1] == 65 and not (first == second[: len(first)]).all()
    assert (first == corpus.Batches(tokenizer, TEXTS, seed=5).epoch(0, 64)).all()
    # All but a rest shorter than a window.
    assert batches.tokens - first[:, :-1].size <= 64


TEXTS = [text[:3000] for text in corpus.documents(HERE / "corpus/tales.txt.xz")[20:60]]


@pytest.fixture(scope="module")
def command(tmp_path_factory):
    """A tiny run: 16 steps, half of them in short windows, a checkpoint after each."""
    texts = tmp_path_factory.mktemp("corpus") / "texts.txt"
    texts.write_text(f"\n{corpus.END}\n".join(TEXTS))
    sizes = "--vocab 400 --layers 2 --heads 2 --width 64 --batch 1024 --tokens 16384 --short 0.5"
    return [
        *(sys.executable, HERE / "train.py", "--corpus", texts, *sizes.split()),
        *("--average", "0.9", "--looks", "4", "--checkpoint-every", "0", "--out"),
    ]


@pytest.fixture(scope="module")
def whole(command, tmp_path_factory):
    out = tmp_path_factory.mktemp("whole")
    subprocess.run([*command, out], check=True)
    return out


def test_a_run_that_is_killed_goes_on_to_the_same_weights(command, whole, tmp_path):
    checkpoint = tmp_path / "checkpoint.pt"
    for step in (3, 9, 13):
        run = subprocess.Popen([*command, tmp_path])
        while not checkpoint.exists() or torch.load(checkpoint)["step"] < step:
            assert run.poll() is None
            time.sleep(0.02)
        run.kill()
        run.wait()
    assert torch.load(checkpoint)["step"] < 16
    subprocess.run([*command, tmp_path], check=True)
    for name in ("model.safetensors", "tokenizer.json", "config.json"):
        assert (tmp_path / name).read_bytes() == (whole / name).read_bytes(), name

    def curve(out):
        looks = [json.loads(line) for line in (out / "curve.jsonl").read_text().splitlines()]
        return [(look["step"], look["train_loss"], look["validation_loss"]) for look in looks]

    assert curve(tmp_path) == curve(whole)
    assert [step for step, *_ in curve(whole)] == [4, 8, 12, 16]


def test_what_is_written_is_a_gpt2_that_transformers_reads(whole):
    model = GPT2LMHeadModel.from_pretrained(whole, dtype=torch.float32).eval()
    tokenizer = Tokenizer.from_file(str(whole / "tokenizer.json"))
    ids = torch.tensor([tokenizer.encode(TEXTS[0]).ids[:700]])
    with torch.no_grad():
        expected = model(ids, labels=ids).loss
        own = GPT2(Shape(400, 2, 2, 64)).eval()
        tensors = load_file(whole / "model.safetensors")
        fill(own, tensors)
        found = own(ids[:, :-1], ids[:, 1:])
    assert own.checkpoint().keys() == tensors.keys()
    assert found.item() == pytest.approx(expected.item(), abs=1e-4)


def fill(model, tensors):
    """Sets the weights of a model to those of a checkpoint."""
    names = {"attn.c_attn": "c_attn", "attn.c_proj": "attn_proj", "mlp.c_fc": "c_fc", "mlp.c_proj": "mlp_proj"}
    state = {}
    for name, tensor in tensors.items():
        for theirs, ours in names.items():
            if f".{theirs}." in name:
                name = name.replace(theirs, ours)
                tensor = tensor.T if tensor.ndim == 2 else tensor
        state[name] = tensor.float()
    model.load_state_dict(state)
