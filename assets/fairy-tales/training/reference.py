"""Write what Hugging Face transformers computes for a GPT-2 checkpoint, to test against.

    python reference.py MODEL_DIR PROMPTS.json OUT_DIR [--tensors]

PROMPTS.json is a list of texts. Everything is computed in f32, with eager attention.

Writes OUT_DIR/reference.json: for each prompt its token ids; the greedy continuation of 64 tokens
and the smallest gap between the best and the second-best logit on the way (below about 1e-3
another order of additions may choose the other token); the log-probabilities of the prompt's own
tokens; four beams of 24 tokens (num_beams=4, length_penalty=1, early_stopping=False).

With --tensors also OUT_DIR/reference.safetensors, for the first four prompts:

    case{i}.ids     [n]
    case{i}.logits  [n, vocab_size]
    case0.hidden    [n_layer + 1, n, n_embd]: the input of every block, then after ln_f
    case0.attn      [n_layer, n_head, n, n]
    long.ids        [n_positions]: a text as long as the window
    long.logits     [8, vocab_size]: at its last 8 positions

The tests' copies are in tests/fixtures/fairy-tales, made from the prompts there:

    python reference.py .. ../../../tests/fixtures/fairy-tales/prompts.json \\
        ../../../tests/fixtures/fairy-tales --tensors

Needs torch, transformers, tokenizers and safetensors.
"""

import json, os, sys
import torch
from safetensors.torch import save_file
from transformers import GPT2LMHeadModel
from tokenizers import Tokenizer

model_dir, prompts_file, out_dir = sys.argv[1:4]
torch.set_num_threads(2)
torch.manual_seed(0)
model = (
    GPT2LMHeadModel.from_pretrained(
        model_dir, torch_dtype=torch.float32, attn_implementation="eager"
    )
    .eval()
    .float()
)
tok, prompts = (Tokenizer.from_file(f"{model_dir}/tokenizer.json"), json.load(open(prompts_file)))
window, eos = (model.config.n_positions, model.config.eos_token_id)
os.makedirs(out_dir, exist_ok=True)
cases, tensors = ([], {})
with torch.no_grad():
    for i, text in enumerate(prompts):
        ids = tok.encode(text).ids
        x = torch.tensor([ids])
        out = model(x, output_hidden_states=True, output_attentions=True)
        lp = out.logits[0].log_softmax(-1)
        prompt_logprobs = [None] + [round(lp[t, ids[t + 1]].item(), 5) for t in range(len(ids) - 1)]
        seq, gap, past, cur = ([], 1000000000.0, None, x)
        for _ in range(min(64, window - len(ids))):
            o = model(cur, past_key_values=past, use_cache=True)
            past = o.past_key_values
            top = o.logits[0, -1].topk(2)
            gap = min(gap, (top.values[0] - top.values[1]).item())
            nxt = top.indices[0].item()
            seq.append(nxt)
            cur = torch.tensor([[nxt]])
            if nxt == eos:
                break
        beams = model.generate(
            x,
            attention_mask=torch.ones_like(x),
            num_beams=4,
            num_return_sequences=4,
            max_new_tokens=24,
            do_sample=False,
            repetition_penalty=1.0,
            pad_token_id=eos,
            length_penalty=1.0,
            early_stopping=False,
            return_dict_in_generate=True,
            output_scores=True,
        )
        cases.append(
            {
                "prompt": text,
                "ids": ids,
                "greedy_ids": seq,
                "greedy_text": tok.decode(seq, skip_special_tokens=False),
                "smallest_gap": round(gap, 5),
                "prompt_logprobs": prompt_logprobs,
                "beams": [
                    # Behind its end a beam is filled up.
                    {
                        "ids": s[len(ids) :][: int((at >= 0).sum())].tolist(),
                        "score": round(score.item(), 5),
                    }
                    for s, at, score in zip(
                        beams.sequences, beams.beam_indices, beams.sequences_scores
                    )
                ],
            }
        )
        if "--tensors" in sys.argv and i < 4:
            tensors[f"case{i}.ids"], tensors[f"case{i}.logits"] = (
                torch.tensor(ids, dtype=torch.int64),
                out.logits[0].contiguous(),
            )
            if i == 0:
                tensors["case0.hidden"], tensors["case0.attn"] = (
                    torch.stack([h[0] for h in out.hidden_states]),
                    torch.stack([a[0] for a in out.attentions]),
                )
    if "--tensors" in sys.argv:
        long = tok.encode(" ".join(prompts) * 40).ids[:window]
        assert len(long) == window
        tensors["long.ids"], tensors["long.logits"] = (
            torch.tensor(long, dtype=torch.int64),
            model(torch.tensor([long])).logits[0, -8:].contiguous(),
        )
        save_file(
            {k: v.contiguous() for k, v in tensors.items()}, f"{out_dir}/reference.safetensors"
        )
json.dump(cases, open(f"{out_dir}/reference.json", "w"), indent=1, ensure_ascii=False)
print(len(cases), "cases; smallest gap", min((c["smallest_gap"] for c in cases)))
