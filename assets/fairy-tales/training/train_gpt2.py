"""Train a small GPT-2 from scratch on one text file and write it in the Hugging Face layout.

    python train_gpt2.py --corpus tales.txt --out DIR --minutes 40 \\
        --bf16 --batch 2 --lr 0.0012 --dropout 0

The corpus is UTF-8 text with a line `<|endoftext|>` between documents. One in forty documents,
chosen by the seed, is kept from training, for the validation loss.

Writes DIR/config.json, tokenizer.json, model.safetensors (f16) and train.json (the figures of the
run); `generation_config.json` is written by hand. Runs on the CPU, on two threads, for as long as
`--minutes` says, and saves every ten minutes. Needs torch, tokenizers, safetensors and numpy.
"""

import argparse, json, math, os, time
import numpy as np, torch, torch.nn as nn, torch.nn.functional as F
from tokenizers import Tokenizer, models, pre_tokenizers, decoders, trainers, processors
from safetensors.torch import save_file

p = argparse.ArgumentParser()
p.add_argument("--corpus", required=True)
p.add_argument("--out", required=True)
p.add_argument("--minutes", type=float, default=60)
p.add_argument("--vocab", type=int, default=4096)
p.add_argument("--layers", type=int, default=6)
p.add_argument("--heads", type=int, default=4)
p.add_argument("--width", type=int, default=256)
p.add_argument("--ctx", type=int, default=1024)
p.add_argument("--batch", type=int, default=4)
p.add_argument("--lr", type=float, default=0.0015)
p.add_argument("--dropout", type=float, default=0.05)
p.add_argument("--seed", type=int, default=1337)
p.add_argument("--bf16", action="store_true")
a = p.parse_args()
torch.manual_seed(a.seed)
rng = np.random.default_rng(a.seed)
torch.set_num_threads(2)
os.makedirs(a.out, exist_ok=True)
EOT = "<|endoftext|>"
docs = [d.strip() for d in open(a.corpus, encoding="utf-8").read().split(EOT) if d.strip()]
tok = Tokenizer(models.BPE())
tok.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
tok.decoder = decoders.ByteLevel()
tok.post_processor = processors.ByteLevel(trim_offsets=False)
tok.train_from_iterator(
    docs,
    trainers.BpeTrainer(
        vocab_size=a.vocab - 1,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    ),
)
tok.add_special_tokens([EOT])
assert tok.get_vocab_size() == a.vocab and tok.token_to_id(EOT) == a.vocab - 1
tok.save(f"{a.out}/tokenizer.json")
order = rng.permutation(len(docs))
eot = tok.token_to_id(EOT)
val_docs = set(order[: max(1, len(docs) // 40)].tolist())
train_ids, val_ids = ([], [])
for i, d in enumerate(docs):
    (val_ids if i in val_docs else train_ids).extend([eot] + tok.encode(d).ids)
train_ids, val_ids = (np.array(train_ids, np.int64), np.array(val_ids, np.int64))
print(
    f"{len(docs)} documents, {len(train_ids)} train and {len(val_ids)} validation tokens",
    flush=True,
)


class Block(nn.Module):

    def __init__(s, d, h):
        super().__init__()
        s.h = h
        s.ln_1, s.ln_2 = (nn.LayerNorm(d), nn.LayerNorm(d))
        s.c_attn, s.attn_proj = (nn.Linear(d, 3 * d), nn.Linear(d, d))
        s.c_fc, s.mlp_proj = (nn.Linear(d, 4 * d), nn.Linear(4 * d, d))

    def forward(s, x, drop):
        B, T, D = x.shape
        q, k, v = (
            t.view(B, T, s.h, D // s.h).transpose(1, 2) for t in s.c_attn(s.ln_1(x)).split(D, 2)
        )
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).reshape(B, T, D)
        x = x + F.dropout(s.attn_proj(y), drop, s.training)
        return x + F.dropout(
            s.mlp_proj(F.gelu(s.c_fc(s.ln_2(x)), approximate="tanh")), drop, s.training
        )


class GPT2(nn.Module):

    def __init__(s):
        super().__init__()
        s.wte, s.wpe = (nn.Embedding(a.vocab, a.width), nn.Embedding(a.ctx, a.width))
        s.h = nn.ModuleList((Block(a.width, a.heads) for _ in range(a.layers)))
        s.ln_f = nn.LayerNorm(a.width)
        for n, w in s.named_parameters():
            if n.endswith("bias"):
                nn.init.zeros_(w)
            elif "ln_" not in n:
                nn.init.normal_(w, std=0.02 / (math.sqrt(2 * a.layers) if "proj" in n else 1))

    def forward(s, ids, targets):
        x = s.wte(ids) + s.wpe.weight[: ids.shape[1]]
        for b in s.h:
            x = b(x, a.dropout)
        return F.cross_entropy(
            F.linear(s.ln_f(x), s.wte.weight).view(-1, a.vocab), targets.reshape(-1)
        )


model = GPT2()
n_params = sum((w.numel() for w in model.parameters()))
groups = [
    {"params": [w for w in model.parameters() if w.ndim > 1], "weight_decay": 0.1},
    {"params": [w for w in model.parameters() if w.ndim == 1], "weight_decay": 0.0},
]
opt = torch.optim.AdamW(groups, lr=a.lr, betas=(0.9, 0.95), fused=True)


def batch():
    at = rng.integers(0, len(train_ids) - a.ctx - 1, a.batch)
    return (
        torch.from_numpy(np.stack([train_ids[i + o : i + o + a.ctx] for i in at])) for o in (0, 1)
    )


@torch.no_grad()
def validation():
    model.eval()
    n = (len(val_ids) - 1) // a.ctx
    total = 0.0
    for i in range(n):
        w = torch.from_numpy(val_ids[i * a.ctx : (i + 1) * a.ctx + 1])
        total += model(w[None, :-1], w[None, 1:]).item()
    model.train()
    return total / n


def save(step, seconds, train_loss, val_loss):
    # Names and layout of GPT-2's checkpoints; its Conv1D stores [in, out].
    t = {
        "wte.weight": model.wte.weight,
        "wpe.weight": model.wpe.weight,
        "ln_f.weight": model.ln_f.weight,
        "ln_f.bias": model.ln_f.bias,
    }
    for i, b in enumerate(model.h):
        for n, m in (("ln_1", b.ln_1), ("ln_2", b.ln_2)):
            t[f"h.{i}.{n}.weight"], t[f"h.{i}.{n}.bias"] = (m.weight, m.bias)
        for n, m in (
            ("attn.c_attn", b.c_attn),
            ("attn.c_proj", b.attn_proj),
            ("mlp.c_fc", b.c_fc),
            ("mlp.c_proj", b.mlp_proj),
        ):
            t[f"h.{i}.{n}.weight"], t[f"h.{i}.{n}.bias"] = (m.weight.t(), m.bias)
    save_file(
        {k: v.detach().to(torch.float16).contiguous().clone() for k, v in t.items()},
        f"{a.out}/model.safetensors",
        metadata={"format": "pt"},
    )
    json.dump(
        {
            "model_type": "gpt2",
            "architectures": ["GPT2LMHeadModel"],
            "vocab_size": a.vocab,
            "n_positions": a.ctx,
            "n_ctx": a.ctx,
            "n_embd": a.width,
            "n_layer": a.layers,
            "n_head": a.heads,
            "n_inner": None,
            "activation_function": "gelu_new",
            "layer_norm_epsilon": 1e-05,
            "bos_token_id": eot,
            "eos_token_id": eot,
            "tie_word_embeddings": True,
            "torch_dtype": "float16",
        },
        open(f"{a.out}/config.json", "w"),
        indent=2,
    )
    json.dump(
        {
            "parameters": n_params,
            "steps": step,
            "tokens_seen": step * a.batch * a.ctx,
            "seconds": round(seconds),
            "train_loss": train_loss,
            "validation_loss": val_loss,
            "validation_tokens": len(val_ids),
            "train_tokens": len(train_ids),
            "arguments": vars(a),
        },
        open(f"{a.out}/train.json", "w"),
        indent=2,
    )


start, step, seen, ema = (time.time(), 0, 0, None)
budget = a.minutes * 60
saved = start
while (elapsed := (time.time() - start)) < budget:
    # Warm up over 2 % of the time, then a cosine down to 5 % of the peak.
    frac = elapsed / budget
    for g in opt.param_groups:
        g["lr"] = a.lr * (
            frac / 0.02
            if frac < 0.02
            else 0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * (frac - 0.02) / 0.98))
        )
    x, y = batch()
    with torch.autocast("cpu", torch.bfloat16, enabled=a.bf16):
        loss = model(x, y)
    opt.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    opt.step()
    step += 1
    ema = loss.item() if ema is None else 0.98 * ema + 0.02 * loss.item()
    if step % 50 == 0:
        print(
            f"step {step} {elapsed:.0f}s loss {ema:.3f} {step * a.batch * a.ctx / elapsed:.0f} tok/s",
            flush=True,
        )
    if time.time() - saved > 600:
        v = validation()
        print(f"validation {v:.4f}", flush=True)
        save(step, elapsed, ema, v)
        saved = time.time()
v = validation()
save(step, time.time() - start, ema, v)
print(f"done: {step} steps, validation {v:.4f}", flush=True)
