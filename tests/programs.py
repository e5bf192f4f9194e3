"""Random programs: modules made of a random sequence of steps, for property tests of labelling."""

from __future__ import annotations

import random

import torch
from torch import Tensor, nn

STEPS = (
    "relu", "split_dim", "merge_dims", "permute", "swap_blocks", "drop_block", "softmax", "sum_keep", "bias", "scale",
    "constant", "cumsum", "flip", "project", "residual", "norm", "stack", "select", "expand", "outer_gate", "gram",
    "roll", "top", "pad", "stride", "convolve", "group_norm", "shuffle", "look_up", "sort", "choose", "pool",
    "batch_norm", "head_mix",
)  # fmt: skip


class Program(nn.Module):
    """``steps`` are (name, number, number); the numbers choose dims by remainder, so that any of them are valid."""

    def __init__(self, steps: list[tuple[str, int, int]], width: int = 24) -> None:
        super().__init__()
        self.steps = steps
        self.inp = nn.Linear(5, width)
        self.weights = nn.ParameterDict()
        self.generator = torch.Generator().manual_seed(len(steps))
        with torch.no_grad():
            result = self.run_steps(torch.zeros(2, 5))
        self.out = nn.Linear(result.shape[-1], 3)

    def weight(self, key: str, *shape: int) -> Tensor:
        """A parameter made when the program is first run."""
        if key not in self.weights:
            self.weights[key] = nn.Parameter(torch.randn(shape, generator=self.generator))
        return self.weights[key]

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.run_steps(x))

    def run_steps(self, x: Tensor) -> Tensor:
        h = self.inp(x)
        kept = h
        for i, (name, a, b) in enumerate(self.steps):
            if name == "residual":
                h = h + kept if h.shape == kept.shape else h
                kept = h
            else:
                h = getattr(self, name)(h, f"w{i}", a, b)
            if h.numel() > 20_000:
                h = h[..., :2]
        return h

    def relu(self, h: Tensor, key: str, a: int, b: int) -> Tensor:
        return torch.relu(h)

    def split_dim(self, h: Tensor, key: str, a: int, b: int) -> Tensor:
        d = 1 + a % (h.dim() - 1)
        size = h.shape[d]
        factors = [f for f in range(2, size) if size % f == 0]
        if not factors or h.dim() > 4:
            return h
        f = factors[b % len(factors)]
        return h.reshape(*h.shape[:d], f, size // f, *h.shape[d + 1 :])

    def merge_dims(self, h: Tensor, key: str, a: int, b: int) -> Tensor:
        if h.dim() < 3:
            return h
        d = 1 + a % (h.dim() - 2)
        return h.flatten(d, d + 1)

    def permute(self, h: Tensor, key: str, a: int, b: int) -> Tensor:
        d, e = 1 + a % (h.dim() - 1), 1 + b % (h.dim() - 1)
        return h.transpose(d, e)

    def swap_blocks(self, h: Tensor, key: str, a: int, b: int) -> Tensor:
        d = 1 + a % (h.dim() - 1)
        if h.shape[d] < 2:
            return h
        cut = 1 + b % (h.shape[d] - 1)
        return torch.cat([h.narrow(d, cut, h.shape[d] - cut), h.narrow(d, 0, cut)], d)

    def drop_block(self, h: Tensor, key: str, a: int, b: int) -> Tensor:
        d = 1 + a % (h.dim() - 1)
        return h.narrow(d, 0, 1 + b % h.shape[d])

    def softmax(self, h: Tensor, key: str, a: int, b: int) -> Tensor:
        return h.softmax(1 + a % (h.dim() - 1))

    def sum_keep(self, h: Tensor, key: str, a: int, b: int) -> Tensor:
        return h + h.sum(1 + a % (h.dim() - 1), keepdim=True)

    def bias(self, h: Tensor, key: str, a: int, b: int) -> Tensor:
        return h + self.weight(key, *h.shape[1 + a % (h.dim() - 1) :])

    def scale(self, h: Tensor, key: str, a: int, b: int) -> Tensor:
        shape = [n if (b >> i) & 1 else 1 for i, n in enumerate(h.shape[1:])]
        return h * self.weight(key, *shape)

    def constant(self, h: Tensor, key: str, a: int, b: int) -> Tensor:
        d = 1 + a % (h.dim() - 1)
        shape = [-1 if i == d else 1 for i in range(h.dim())]
        return h + (torch.arange(h.shape[d]) if b % 2 else torch.ones(h.shape[d])).view(shape).to(h)

    def cumsum(self, h: Tensor, key: str, a: int, b: int) -> Tensor:
        return h.cumsum(1 + a % (h.dim() - 1))

    def flip(self, h: Tensor, key: str, a: int, b: int) -> Tensor:
        return h.flip(1 + a % (h.dim() - 1))

    def roll(self, h: Tensor, key: str, a: int, b: int) -> Tensor:
        return h.roll(b, 1 + a % (h.dim() - 1))

    def project(self, h: Tensor, key: str, a: int, b: int) -> Tensor:
        return h @ self.weight(key, h.shape[-1], 2 + b % 11)

    def norm(self, h: Tensor, key: str, a: int, b: int) -> Tensor:
        return nn.functional.layer_norm(h, h.shape[-1:], self.weight(key, h.shape[-1]))

    def stack(self, h: Tensor, key: str, a: int, b: int) -> Tensor:
        if h.dim() > 4:
            return h
        return torch.stack([h, torch.tanh(h @ self.weight(key, h.shape[-1], h.shape[-1]))], 1 + a % h.dim())

    def select(self, h: Tensor, key: str, a: int, b: int) -> Tensor:
        if h.dim() < 3:
            return h
        d = 1 + a % (h.dim() - 1)
        return h.select(d, b % h.shape[d])

    def expand(self, h: Tensor, key: str, a: int, b: int) -> Tensor:
        if h.dim() > 4:
            return h
        d = 1 + a % h.dim()
        shape = [*h.shape[:d], 2 + b % 3, *h.shape[d:]]
        return h.unsqueeze(d).expand(shape)

    def outer_gate(self, h: Tensor, key: str, a: int, b: int) -> Tensor:
        value, gate = (h @ self.weight(key + part, h.shape[-1], 2 + b % 7) for part in "vg")
        return value * torch.sigmoid(gate)

    def gram(self, h: Tensor, key: str, a: int, b: int) -> Tensor:
        return h if h.dim() < 3 else (h @ h.transpose(-1, -2)).softmax(-1) @ h

    def top(self, h: Tensor, key: str, a: int, b: int) -> Tensor:
        d = 1 + a % (h.dim() - 1)
        values, _ = h.topk(1 + b % h.shape[d], d)
        return values

    def pad(self, h: Tensor, key: str, a: int, b: int) -> Tensor:
        return nn.functional.pad(h, (b % 2, 1))

    def stride(self, h: Tensor, key: str, a: int, b: int) -> Tensor:
        return h[..., b % min(2, h.shape[-1]) :: 2] if h.shape[-1] > 1 else h

    def convolve(self, h: Tensor, key: str, a: int, b: int) -> Tensor:
        if h.dim() != 3:
            return h
        groups = [g for g in range(1, h.shape[1] + 1) if h.shape[1] % g == 0]
        g = groups[b % len(groups)]
        weight = self.weight(key, g * (1 + a % 3), h.shape[1] // g, 1 + 2 * (b % 2))
        return nn.functional.conv1d(h, weight, padding=b % 2, groups=g)

    def group_norm(self, h: Tensor, key: str, a: int, b: int) -> Tensor:
        groups = [g for g in range(1, h.shape[1] + 1) if h.shape[1] % g == 0]
        return nn.functional.group_norm(h, groups[b % len(groups)], self.weight(key, h.shape[1]))

    def batch_norm(self, h: Tensor, key: str, a: int, b: int) -> Tensor:
        mean, var = self.weight(key + "m", h.shape[1]), self.weight(key + "v", h.shape[1]).abs()
        return nn.functional.batch_norm(h, mean, var)

    def shuffle(self, h: Tensor, key: str, a: int, b: int) -> Tensor:
        d = 1 + a % (h.dim() - 1)
        order = torch.tensor(random.Random(b).sample(range(h.shape[d]), h.shape[d]))
        return h.index_select(d, order) if b % 2 else h.movedim(d, 0)[order].movedim(0, d)

    def look_up(self, h: Tensor, key: str, a: int, b: int) -> Tensor:
        d = 1 + a % (h.dim() - 1)
        return h.mean(d, keepdim=True) * self.weight(key, h.shape[d])[h.argmax(d, keepdim=True)]

    def sort(self, h: Tensor, key: str, a: int, b: int) -> Tensor:
        d = 1 + a % (h.dim() - 1)
        return h.gather(d, h.argsort(d)) if b % 2 else h.sort(d).values

    def choose(self, h: Tensor, key: str, a: int, b: int) -> Tensor:
        """Two experts out of n, their matrices gathered by the router's choice."""
        x = h.flatten(1)
        gate, chosen = (x @ self.weight(key + "r", x.shape[1], 4)).softmax(-1).topk(2, -1)
        up, down = self.weight(key + "u", 4, x.shape[1], 5), self.weight(key + "d", 4, 5, 6)
        y = torch.relu(torch.einsum("bi,bkih->bkh", x, up[chosen]))
        return (gate[..., None] * torch.einsum("bkh,bkho->bko", y, down[chosen])).sum(1)

    def pool(self, h: Tensor, key: str, a: int, b: int) -> Tensor:
        return nn.functional.max_pool1d(h, 2) if h.dim() == 3 and h.shape[2] > 1 else h

    def head_mix(self, h: Tensor, key: str, a: int, b: int) -> Tensor:
        """A parameter along one dim against another: talking heads, token mixing."""
        d = 1 + a % (h.dim() - 1)
        return (h.movedim(d, -1) @ self.weight(key, h.shape[d], h.shape[d])).movedim(-1, d)
