"""What the model is trained and measured on: documents, near-duplicates of the validation tales taken
out of the training text, the tokenizer, and the order in which a run sees the tokens.

No document of the validation tales, nor another telling of one, may reach the training tokens or the
tokenizer's counts.
"""

import lzma
import re

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

END = "<|endoftext|>"

# A training document is left out if it shares this part of the five-word sequences of the shorter of
# the two with a validation tale. Unrelated tales share under 0.022; other translations of a tale
# 0.036 to 0.10, printings of the same text 0.84 and more.
SHARED_WORDS = 0.03


def documents(path):
    """The documents of a file, which may be packed by xz."""
    opened = lzma.open if path.suffix == ".xz" else open
    with opened(path, "rt", encoding="utf-8") as file:
        return [text.strip() for text in file.read().split(END) if text.strip()]


def five_words(text):
    """The set of all sequences of five words."""
    words = re.findall(r"[a-z]+", text.lower())
    return {tuple(words[i : i + 5]) for i in range(len(words) - 4)}


def without_duplicates(training, validation):
    """The training documents that tell no validation tale, and [(share, document)] of those left
    out."""
    tales = [five_words(text) for text in validation]
    kept, left_out = [], []
    for text in training:
        own = five_words(text)
        share = max(len(own & tale) / max(1, min(len(own), len(tale))) for tale in tales)
        if share >= SHARED_WORDS or text in validation:
            left_out.append((share, text))
        else:
            kept.append(text)
    return kept, left_out


def trained_tokenizer(texts, vocab: int):
    """A byte-level BPE of GPT-2's kind; the last id is the end of text."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    trainer = trainers.BpeTrainer(
        vocab_size=vocab - 1,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.add_special_tokens([END])
    assert tokenizer.token_to_id(END) == vocab - 1
    return tokenizer


class Batches:
    """The order of the tokens. An epoch takes every token once: the documents in a new order, cut
    into windows at a new offset, the windows shuffled. A function of seed and epoch alone, so that a
    run goes on where it was stopped."""

    def __init__(self, tokenizer, texts, seed: int):
        end = tokenizer.token_to_id(END)
        self.documents = [np.array([end] + e.ids) for e in tokenizer.encode_batch(texts)]
        self.tokens = sum(len(document) for document in self.documents)
        self.seed = seed

    def epoch(self, number: int, positions: int):
        """Windows [windows, positions + 1] of one epoch."""
        rng = np.random.default_rng([self.seed, number])
        order = rng.permutation(len(self.documents))
        ids = np.concatenate([self.documents[i] for i in order])
        ids = np.roll(ids, int(rng.integers(0, len(ids))))
        starts = np.arange(0, len(ids) - positions, positions)
        rng.shuffle(starts)
        return np.stack([ids[at : at + positions + 1] for at in starts])


@torch.no_grad()
def bits_per_byte(model, tokenizer, texts, positions=1024):
    """How well the model predicts the texts: each after its own end of text, in windows of
    `positions` predicted tokens, each window starting afresh. Returns bits per byte, and the loss per
    token in nats."""
    end, nats, tokens = tokenizer.token_to_id(END), 0.0, 0
    model.eval()
    for text in texts:
        ids = torch.tensor([end] + tokenizer.encode(text).ids)
        for at in range(0, len(ids) - 1, positions):
            window = ids[at : at + positions + 1]
            size = len(window) - 1
            nats += model(window[None, :-1], window[None, 1:]).item() * size
            tokens += size
    model.train()
    size = sum(len(text.encode()) for text in texts)
    return nats / np.log(2) / size, nats / tokens
