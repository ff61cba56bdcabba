"""Trains the built-in model.

    pip install -r requirements.txt
    python train.py --out DIR

Stopped at any point, the same command goes on from the last checkpoint in DIR, to the same weights:
all that is random comes from the seed and the number of the step. The defaults are what the model
beside this folder was trained with.

Writes to DIR: tokenizer.json, config.json and model.safetensors (f16), which are the model; train.json,
the figures of the run; curve.jsonl, a line for each look at the validation tales; checkpoint.pt, from
which it goes on.
"""

import argparse
import json
import os
import time
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer

import corpus
from model import GPT2, Dropout, Shape
from optimizer import Optimizer

HERE = Path(__file__).parent
SHORT_WINDOW = 256


def arguments():
    p = argparse.ArgumentParser(
        description=__doc__.split("\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    texts = [HERE / f"corpus/{name}.txt.xz" for name in ("tales", "novels")]
    p.add_argument("--out", type=Path, required=True, help="folder of the model and its checkpoint")
    p.add_argument("--corpus", type=Path, nargs="+", default=texts, help="texts to train on")
    p.add_argument("--validation", type=Path, default=HERE.parent / "validation.txt")
    p.add_argument("--vocab", type=int, default=8192)
    p.add_argument("--layers", type=int, default=6)
    p.add_argument("--heads", type=int, default=5)
    p.add_argument("--width", type=int, default=320)
    p.add_argument("--tokens", type=float, default=26e6, help="tokens to train on, in all")
    p.add_argument("--batch", type=int, default=4096, help="tokens in a step")
    p.add_argument("--short", type=float, default=0.4, help="part of the steps, at first, in windows of 256")
    p.add_argument("--matrix-rate", type=float, default=0.015, help="peak rate of Muon; 0: AdamW for all")
    p.add_argument("--rate", type=float, default=0.003, help="peak rate of AdamW")
    p.add_argument("--weight-decay", type=float, default=0.05, help="of Muon")
    p.add_argument("--warmup", type=float, default=0.01, help="part of the steps in which the rates rise")
    p.add_argument("--decay", type=float, default=1.0, help="part of the steps in which they fall to zero")
    p.add_argument("--dropout", type=float, default=0.1)
    p.add_argument("--average", type=float, default=0.0, help="weights averaged with this decay; 0: not")
    p.add_argument("--seed", type=int, default=1)
    p.add_argument("--looks", type=int, default=64, help="looks at the validation tales")
    p.add_argument("--checkpoint-every", type=float, default=120, help="seconds")
    p.add_argument("--threads", type=int, default=2)
    return p.parse_args()


def config(shape: Shape):
    """config.json."""
    end = shape.vocab - 1
    return {
        "model_type": "gpt2",
        "architectures": ["GPT2LMHeadModel"],
        "vocab_size": shape.vocab,
        "n_positions": shape.positions,
        "n_ctx": shape.positions,
        "n_embd": shape.width,
        "n_layer": shape.layers,
        "n_head": shape.heads,
        "n_inner": None,
        "activation_function": "gelu_new",
        "layer_norm_epsilon": 1e-05,
        "bos_token_id": end,
        "eos_token_id": end,
        "tie_word_embeddings": True,
        "torch_dtype": "float16",
    }


class Average:
    """A running mean of the weights; looks at the validation tales are through it. With a decay of 0
    it is the weights themselves."""

    def __init__(self, model, decay: float):
        self.weights = [w.detach() for w in model.parameters()]
        self.decay = decay
        self.mean = [w.clone() for w in self.weights] if decay else None

    def add(self, step: int):
        if self.mean:
            # A young mean forgets quickly what the weights began with.
            torch._foreach_lerp_(self.mean, self.weights, 1 - min(self.decay, step / (step + 10)))

    def swap(self):
        if self.mean:
            for w, mean in zip(self.weights, self.mean):
                value = w.clone()
                w.copy_(mean)
                mean.copy_(value)


class Run:
    """A run with all its state; `step` counts the steps that are over."""

    def __init__(self, a):
        self.a = a
        a.out.mkdir(parents=True, exist_ok=True)
        torch.set_num_threads(a.threads)
        torch.manual_seed(a.seed)
        self.validation = corpus.documents(a.validation)
        texts = [text for path in a.corpus for text in corpus.documents(path)]
        texts, left_out = corpus.without_duplicates(texts, self.validation)
        print(f"{len(texts)} documents; left out, as validation tales or tellings of them:")
        for share, text in left_out:
            print(f"  {share:.3f} {text[:60]!r}")

        path = a.out / "tokenizer.json"
        if not path.exists():
            corpus.trained_tokenizer(texts, a.vocab).save(str(path))
        self.tokenizer = Tokenizer.from_file(str(path))
        self.batches = corpus.Batches(self.tokenizer, texts, a.seed)

        self.model = GPT2(Shape(a.vocab, a.layers, a.heads, a.width))
        self.optimizer = Optimizer(self.model, a.matrix_rate or None, a.rate, a.weight_decay)
        self.average = Average(self.model, a.average)
        self.dropout = Dropout(a.dropout) if a.dropout else None
        self.steps = round(a.tokens / a.batch)
        self.step, self.seconds = 0, 0.0
        self.losses = []

    def parameters(self):
        return sum(w.numel() for w in self.model.parameters())

    def windows(self):
        """The batches from the next step on: the epoch so far, and ids [sequences, positions + 1]."""
        short_steps = self.a.short * self.steps
        at, epoch = 0, 0
        while True:
            positions = SHORT_WINDOW if at < short_steps else self.model.shape.positions
            count = self.a.batch // positions
            windows = None
            for i in range(self.batches.tokens // positions // count):
                if at >= self.step:
                    if windows is None:
                        windows = self.batches.epoch(epoch, positions)
                    part = windows[i * count : (i + 1) * count]
                    yield epoch + i * self.a.batch / self.batches.tokens, torch.from_numpy(part)
                at += 1
                if at - 1 < short_steps <= at:
                    break  # the windows get longer
            epoch += 1

    def rate(self):
        """The part of the peak rate for the next step."""
        done = self.step / self.steps
        return min(1.0, (done + 1e-9) / max(self.a.warmup, 1e-9), (1 - done) / self.a.decay)

    def learn(self, ids):
        """One step."""
        rng = np.random.default_rng([self.a.seed, self.step, 7])
        dropout = self.dropout or (lambda x: x)
        if self.dropout:
            self.dropout.draw(rng, (ids.shape[0], ids.shape[1] - 1, self.a.width))
        loss = self.model(ids[:, :-1], ids[:, 1:], dropout)
        loss.backward()
        self.optimizer.step(self.rate())
        self.step += 1
        self.average.add(self.step)
        self.losses.append(loss.item())

    def look(self, epoch):
        """Bits per byte of the validation tales; the figures go to the screen and to curve.jsonl."""
        self.average.swap()
        bits, loss = corpus.bits_per_byte(self.model, self.tokenizer, self.validation)
        self.average.swap()
        figures = {
            "step": self.step,
            "tokens": self.step * self.a.batch,
            "epoch": round(epoch, 3),
            "seconds": round(self.seconds),
            "tokens_per_second": round(self.step * self.a.batch / self.seconds),
            "train_loss": round(sum(self.losses) / len(self.losses), 4),
            "validation_loss": round(loss, 4),
            "bits_per_byte": round(bits, 4),
        }
        self.losses = []
        print(json.dumps(figures), flush=True)
        with open(self.a.out / "curve.jsonl", "a") as file:
            file.write(json.dumps(figures) + "\n")
        return figures

    def save(self):
        """All of it or nothing: a run may be killed at any time."""
        partial = self.a.out / "checkpoint.partial"
        torch.save(
            {
                "model": self.model.state_dict(),
                "optimizer": self.optimizer.state(),
                "average": self.average.mean,
                "losses": self.losses,
                "step": self.step,
                "seconds": self.seconds,
            },
            partial,
        )
        os.replace(partial, self.a.out / "checkpoint.pt")

    def resume(self):
        """Goes on from the last checkpoint, where there is one."""
        path = self.a.out / "checkpoint.pt"
        if not path.exists():
            return
        state = torch.load(path)
        self.model.load_state_dict(state["model"])
        self.optimizer.load(state["optimizer"])
        if self.average.mean:
            for mean, value in zip(self.average.mean, state["average"]):
                mean.copy_(value)
        self.losses, self.step, self.seconds = state["losses"], state["step"], state["seconds"]
        # What was looked at after the checkpoint will be looked at again.
        curve = self.a.out / "curve.jsonl"
        if curve.exists():
            lines = curve.read_text().splitlines(keepends=True)
            curve.write_text("".join(x for x in lines if json.loads(x)["step"] <= self.step))
        print(f"goes on from step {self.step}", flush=True)

    def export(self, figures):
        """Writes the model as it is now."""
        self.average.swap()
        tensors = self.model.checkpoint()
        self.average.swap()
        save_file(tensors, self.a.out / "model.safetensors", metadata={"format": "pt"})
        arguments = {k: v for k, v in vars(self.a).items() if k not in ("out", "corpus", "validation")}
        train = {
            "parameters": self.parameters(),
            "tokens_an_epoch": self.batches.tokens,
            **figures,
            "arguments": arguments,
        }
        for name, value in (("config.json", config(self.model.shape)), ("train.json", train)):
            (self.a.out / name).write_text(json.dumps(value, indent=2) + "\n")


def main():
    run = Run(arguments())
    run.resume()
    print(
        f"{run.parameters()} parameters, {run.batches.tokens} tokens an epoch, {run.steps} steps",
        flush=True,
    )
    run.model.train()
    started = saved = time.monotonic()
    for epoch, ids in run.windows():
        if run.step >= run.steps:
            break
        run.learn(ids)
        last = run.step == run.steps
        if last or run.step % max(1, run.steps // run.a.looks) == 0:
            run.seconds += time.monotonic() - started
            figures = run.look(epoch)
            if last:
                run.export(figures)
            started = time.monotonic()
        if last or time.monotonic() - saved > run.a.checkpoint_every:
            run.seconds += time.monotonic() - started
            run.save()
            started = saved = time.monotonic()


if __name__ == "__main__":
    main()
