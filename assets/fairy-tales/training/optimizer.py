"""The optimizer: Muon for the matrices of the blocks, AdamW for everything else.

Muon (Keller Jordan and others, 2024, https://kellerjordan.github.io/posts/muon/) replaces the
momentum of a matrix by the nearest orthogonal matrix, found by a Newton-Schulz iteration.
"""

import torch

# The coefficients of the quintic Newton-Schulz iteration of Muon.
A, B, C = 3.4445, -4.7750, 2.0315
ITERATIONS = 5


def orthogonalized(m):
    """Roughly U V^T of each matrix m = U S V^T of [matrices, rows, columns]."""
    x = m.bfloat16()
    tall = x.shape[1] > x.shape[2]
    if tall:
        x = x.transpose(1, 2)
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(ITERATIONS):
        gram = x @ x.transpose(1, 2)
        x = A * x + (B * gram + C * gram @ gram) @ x
    return (x.transpose(1, 2) if tall else x).float()


class Muon:
    """Momentum, orthogonalized, for matrices [out, in]; those of one shape are done together. A
    matrix that is several in one (queries, keys and values) is taken apart."""

    def __init__(self, matrices, rate: float, momentum=0.95, weight_decay=0.0):
        """`matrices`: pairs of a parameter and of how many square parts it is made of, 1 for one
        that is whole."""
        self.groups = {}
        for w, parts in matrices:
            shape = (w.shape[0] // parts, w.shape[1])
            self.groups.setdefault(shape, []).append((w, parts))
        self.rate, self.momentum, self.weight_decay = rate, momentum, weight_decay
        self.velocity = {
            shape: torch.zeros(sum(parts for _, parts in group), *shape)
            for shape, group in self.groups.items()
        }

    @torch.no_grad()
    def step(self, scale: float):
        """One step at `scale` times the peak rate."""
        rate = self.rate * scale
        for shape, group in self.groups.items():
            grad = torch.cat([w.grad.view(parts, *shape) for w, parts in group])
            velocity = self.velocity[shape]
            velocity.mul_(self.momentum).add_(grad, alpha=1 - self.momentum)
            update = orthogonalized(torch.lerp(grad, velocity, self.momentum))
            update *= max(1, shape[0] / shape[1]) ** 0.5
            for (w, _), change in zip(group, update.split([parts for _, parts in group])):
                w.mul_(1 - rate * self.weight_decay)
                w.sub_(change.reshape(w.shape), alpha=rate)

    def state(self):
        return {"velocity": list(self.velocity.values())}

    def load(self, state):
        self.velocity = dict(zip(self.groups, state["velocity"]))


class Optimizer:
    """Both, under one schedule. With `matrix_rate` None AdamW has the matrices too."""

    def __init__(self, model, matrix_rate, rate: float, weight_decay: float):
        self.rate, self.params = rate, list(model.parameters())
        matrices = []
        for block in model.h:
            matrices += [(block.c_attn.weight, 3), (block.attn_proj.weight, 1)]
            matrices += [(block.c_fc.weight, 1), (block.mlp_proj.weight, 1)]
        self.muon = None
        if matrix_rate is not None:
            self.muon = Muon(matrices, matrix_rate, weight_decay=weight_decay)
        own = {id(w) for w, _ in matrices} if self.muon else set()
        rest = [w for w in self.params if id(w) not in own]
        self.adam = torch.optim.AdamW(
            [
                {"params": [w for w in rest if w.ndim > 1], "weight_decay": 0.1},
                {"params": [w for w in rest if w.ndim == 1], "weight_decay": 0.0},
            ],
            lr=rate,
            betas=(0.9, 0.95),
            fused=True,
        )

    def step(self, scale: float):
        """One step at `scale` times the peak rates; then the gradients are gone."""
        torch.nn.utils.clip_grad_norm_(self.params, 1.0)
        for group in self.adam.param_groups:
            group["lr"] = self.rate * scale
        self.adam.step()
        if self.muon:
            self.muon.step(scale)
        for w in self.params:
            w.grad = None

    def state(self):
        return {"adam": self.adam.state_dict(), "muon": self.muon and self.muon.state()}

    def load(self, state):
        self.adam.load_state_dict(state["adam"])
        if self.muon:
            self.muon.load(state["muon"])
