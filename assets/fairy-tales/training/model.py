"""GPT-2 as it is trained here: f32 weights, bfloat16 arithmetic, and the two places where the stock
operators lose most of the time on a CPU written out by hand: causal attention and the loss over the
vocabulary. Must compute what GPT-2 computes: what is exported is an ordinary GPT-2.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

# Queries are taken in blocks of this many: a block's scores against all keys before its end stay in
# the cache, and no more than half a block in each row is computed to be thrown away.
QUERY_BLOCK = 128

# Rows of logits that exist at the same time.
LOGIT_ROWS = 1024


@dataclass
class Shape:
    """The sizes of a GPT-2."""

    vocab: int
    layers: int
    heads: int
    width: int
    positions: int = 1024


class CausalAttention(torch.autograd.Function):
    """softmax(q k^T / sqrt(d) + causal mask) v, by matrix products over blocks of queries.

    q, k, v, result: [sequences * heads, positions, head width], bfloat16.
    """

    @staticmethod
    def forward(ctx, q, k, v):
        positions, width = q.shape[1:]
        q = q * (1 / math.sqrt(width))
        result = torch.empty_like(q)
        block = min(QUERY_BLOCK, positions)
        mask = torch.full((block, block), float("-inf"), dtype=q.dtype).triu(1)
        weights = []
        for at in range(0, positions, block):
            end = min(at + block, positions)
            scores = torch.bmm(q[:, at:end], k[:, :end].transpose(1, 2))
            scores[:, :, at:] += mask[: end - at, : end - at]
            weights.append(torch.softmax(scores, -1))
            torch.bmm(weights[-1], v[:, :end], out=result[:, at:end])
        ctx.save_for_backward(q, k, v, *weights)
        return result

    @staticmethod
    def backward(ctx, grad):
        q, k, v, *weights = ctx.saved_tensors
        positions, width = q.shape[1:]
        block = min(QUERY_BLOCK, positions)
        dq = torch.empty_like(q)
        dk = torch.zeros(k.shape, dtype=torch.float32)
        dv = torch.zeros(v.shape, dtype=torch.float32)
        for at, p in zip(range(0, positions, block), weights):
            end = min(at + block, positions)
            part = grad[:, at:end]
            dv[:, :end] += torch.bmm(p.transpose(1, 2), part)
            dp = torch.bmm(part, v[:, :end].transpose(1, 2))
            ds = torch._softmax_backward_data(dp, p, -1, p.dtype)
            dq[:, at:end] = torch.bmm(ds, k[:, :end])
            dk[:, :end] += torch.bmm(ds.transpose(1, 2), q[:, at:end])
        return dq * (1 / math.sqrt(width)), dk.to(k.dtype), dv.to(v.dtype)


class VocabularyLoss(torch.autograd.Function):
    """The mean cross-entropy of hidden states [rows, width] (bfloat16) through an embedding table
    [vocab, width] (bfloat16) against ids [rows]. The gradients are computed on the way forward, so
    that no more than LOGIT_ROWS rows of logits exist at once.
    """

    @staticmethod
    def forward(ctx, hidden, table, targets):
        rows = hidden.shape[0]
        loss = torch.zeros(())
        d_hidden = torch.empty_like(hidden)
        d_table = torch.zeros(table.shape, dtype=torch.float32)
        for at in range(0, rows, LOGIT_ROWS):
            h, wanted = hidden[at : at + LOGIT_ROWS], targets[at : at + LOGIT_ROWS, None]
            p = torch.softmax(h @ table.T, -1)
            loss -= p.gather(1, wanted).float().log_().sum()
            d_logits = p.scatter_add_(1, wanted, torch.full(wanted.shape, -1.0, dtype=p.dtype))
            d_logits = d_logits.mul_(1 / rows)
            torch.mm(d_logits, table, out=d_hidden[at : at + LOGIT_ROWS])
            d_table += d_logits.T @ h
        ctx.save_for_backward(d_hidden, d_table)
        return loss / rows

    @staticmethod
    def backward(ctx, grad):
        d_hidden, d_table = ctx.saved_tensors
        return d_hidden * grad, (d_table * grad).to(d_hidden.dtype), None


class Dropout:
    """Masks cut at random places out of a pool of random numbers, which is drawn anew for each
    step: drawing each mask by itself, as torch does in one thread, took a tenth of a step. The
    rate is rounded to a 256th."""

    def __init__(self, rate: float):
        self.dropped = round(rate * 256)

    def draw(self, rng: np.random.Generator, shape):
        """Draws the pool for a step whose masks are of this shape."""
        self.rng = rng
        draws = torch.frombuffer(bytearray(rng.bytes(2 * math.prod(shape))), dtype=torch.uint8)
        self.pool = (draws >= self.dropped).bfloat16() * (256 / (256 - self.dropped))

    def __call__(self, x):
        """x with some of its values dropped and the others scaled so that the mean is kept."""
        size = x.numel()
        at = int(self.rng.integers(0, self.pool.numel() - size))
        return x * self.pool[at : at + size].view(x.shape)


def linear(x, layer):
    """A linear layer, in bfloat16 while it is trained and in f32 while it is evaluated."""
    if not layer.training:
        return F.linear(x, layer.weight, layer.bias)
    return F.linear(x, layer.weight.bfloat16(), layer.bias.bfloat16())


class Block(nn.Module):
    """One transformer block of GPT-2."""

    def __init__(self, shape: Shape):
        super().__init__()
        d = shape.width
        self.heads = shape.heads
        self.ln_1, self.ln_2 = nn.LayerNorm(d), nn.LayerNorm(d)
        self.c_attn, self.attn_proj = nn.Linear(d, 3 * d), nn.Linear(d, d)
        self.c_fc, self.mlp_proj = nn.Linear(d, 4 * d), nn.Linear(4 * d, d)

    def heads_of(self, x):
        n, t, d = x.shape
        x = x.view(n, t, self.heads, d // self.heads).transpose(1, 2)
        return x.reshape(n * self.heads, t, d // self.heads)

    def forward(self, x, dropout):
        n, t, d = x.shape
        q, k, v = (self.heads_of(part) for part in linear(self.ln_1(x), self.c_attn).split(d, 2))
        if self.training:
            y = CausalAttention.apply(q, k, v)
        else:
            y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        y = y.view(n, self.heads, t, d // self.heads).transpose(1, 2).reshape(n, t, d)
        x = x + dropout(linear(y, self.attn_proj))
        y = F.gelu(linear(self.ln_2(x), self.c_fc), approximate="tanh")
        return x + dropout(linear(y, self.mlp_proj))


class GPT2(nn.Module):
    """GPT-2 with tied embeddings. While it is trained, dropout applies to what each half of a block
    adds, and to the embeddings."""

    def __init__(self, shape: Shape):
        super().__init__()
        self.shape = shape
        self.wte = nn.Embedding(shape.vocab, shape.width)
        self.wpe = nn.Embedding(shape.positions, shape.width)
        self.h = nn.ModuleList(Block(shape) for _ in range(shape.layers))
        self.ln_f = nn.LayerNorm(shape.width)
        for name, w in self.named_parameters():
            if name.endswith("bias"):
                nn.init.zeros_(w)
            elif "ln_" not in name:
                scale = math.sqrt(2 * shape.layers) if "proj" in name else 1
                nn.init.normal_(w, std=0.02 / scale)

    def forward(self, ids, targets, dropout=lambda x: x):
        """The mean loss per token, in nats, of predicting `targets` after `ids`, both
        [sequences, positions]."""
        x = self.wte(ids) + self.wpe.weight[: ids.shape[1]]
        x = dropout(x.bfloat16() if self.training else x)
        for block in self.h:
            x = block(x, dropout)
        x, targets = self.ln_f(x).flatten(0, 1), targets.flatten()
        if self.training:
            return VocabularyLoss.apply(x, self.wte.weight.bfloat16(), targets)
        return F.cross_entropy(F.linear(x, self.wte.weight), targets)

    def checkpoint(self):
        """The weights by the names and in the layout of GPT-2's checkpoints, f16: its Conv1D stores
        [in, out]."""
        tensors = {
            "wte.weight": self.wte.weight,
            "wpe.weight": self.wpe.weight,
            "ln_f.weight": self.ln_f.weight,
            "ln_f.bias": self.ln_f.bias,
        }
        for i, block in enumerate(self.h):
            for name, norm in (("ln_1", block.ln_1), ("ln_2", block.ln_2)):
                tensors[f"h.{i}.{name}.weight"] = norm.weight
                tensors[f"h.{i}.{name}.bias"] = norm.bias
            for name, layer in (
                ("attn.c_attn", block.c_attn),
                ("attn.c_proj", block.attn_proj),
                ("mlp.c_fc", block.c_fc),
                ("mlp.c_proj", block.mlp_proj),
            ):
                tensors[f"h.{i}.{name}.weight"] = layer.weight.T
                tensors[f"h.{i}.{name}.bias"] = layer.bias
        return {k: w.detach().half().contiguous().clone() for k, w in tensors.items()}
