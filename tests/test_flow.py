"""The flow driver: exact maps come back under every policy, and every option does what it says."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import assert_same
from models import MLP, Decoder, Encoder, ResNet, ids, images
from test_align import ZOO, Mixer, planted, scaled, widened
from torch import Tensor, nn
from torch.testing import assert_close

import graphfuse
from graphfuse.alignment import Alignment, Prepared, match, prepare
from graphfuse.axes import walk_leaves
from graphfuse.capture import state_of
from graphfuse.config import FuseConfig
from graphfuse.errors import ConfigError, DataError
from graphfuse.symmetry import trace
from graphfuse.transport.circuit import wire
from graphfuse.transport.wires import Wiring

RESIDUAL = ("shared", "mean", "weighted_scalar", "weighted_matrix", "only_residual", "no_residual")


class Patches(nn.Module):
    """A vision transformer's head: a class token before the patches, positions added to both, q, k and v apart."""

    def __init__(self, width: int = 24, heads: int = 4) -> None:
        super().__init__()
        self.heads = heads
        self.patch, self.cls = nn.Conv2d(3, width, 4, 4), nn.Parameter(torch.randn(1, 1, width))
        self.positions = nn.Parameter(torch.randn(1, 5, width))
        self.norm, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.q, self.k, self.v, self.o = (nn.Linear(width, width) for _ in range(4))
        self.up, self.down, self.head = nn.Linear(width, 30), nn.Linear(30, width), nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.cls.expand(len(x), -1, -1), x], 1) + self.positions
        h = self.norm(x)
        q, k, v = (y(h).unflatten(-1, (self.heads, -1)).transpose(1, 2) for y in (self.q, self.k, self.v))
        h = nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        x = x + self.o(h)
        x = x + self.down(torch.relu(self.up(self.norm2(x))))
        return self.head(x[:, 0])


class Skipping(nn.Module):
    """One skip around one branch."""

    def __init__(self, width: int = 8, hidden: int = 11) -> None:
        super().__init__()
        self.inp, self.up = nn.Linear(5, width), nn.Linear(width, hidden)
        self.down, self.head = nn.Linear(hidden, width), nn.Linear(width, 3)

    def branch(self, x: Tensor) -> Tensor:
        return self.down(torch.relu(self.up(x)))

    def forward(self, x: Tensor) -> Tensor:
        x = self.inp(x)
        return self.head(x + self.branch(x))


class Stacked(nn.Module):
    """Queries, keys and values as three slices of one projection, selected in another order than they lie in."""

    def __init__(self, width: int = 24, heads: int = 4) -> None:
        super().__init__()
        self.heads, self.inp, self.qkv = heads, nn.Linear(5, width), nn.Linear(width, 3 * width)
        self.out, self.head = nn.Linear(width, width), nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.inp(x)
        v, k, q = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4).flip(0).unbind(0)
        y = nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        return self.head(x + self.out(y))


class Twice(Skipping):
    """The same weights used twice: what the second use reads has another map than what the first one reads."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.inp(x)
        x = x + self.branch(x)
        return self.head(x + self.branch(x))


class Gated(nn.Module):
    """Channels gated by a function of themselves, then a state updated step by step."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.inp, self.squeeze, self.excite = nn.Linear(5, width), nn.Linear(width, 6), nn.Linear(6, width)
        self.cell, self.head = nn.GRUCell(width, 7), nn.Linear(7, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.inp(x)
        x = x * torch.sigmoid(self.excite(torch.relu(self.squeeze(x))))
        h = self.cell(x)
        return self.head(self.cell(x * 0.5, h))


class Queries(nn.Module):
    """Learned queries, worked on before they see any data, and joined on both sides."""

    def __init__(self, width: int = 12, count: int = 5) -> None:
        super().__init__()
        self.queries, self.mix = nn.Parameter(torch.randn(count, width)), nn.Linear(width, width)
        self.inp, self.q, self.k, self.v = (
            nn.Linear(n, m) for n, m in ((6, width), (width, 9), (width, 9), (width, 10))
        )
        self.out, self.head = nn.Linear(10, width), nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        x, y = self.inp(x), self.queries + torch.relu(self.mix(self.queries))
        scores = (self.q(y) @ self.k(x).transpose(-1, -2)).softmax(-1)
        return self.head(y + self.out(scores @ self.v(x)))


CASES = {
    **ZOO,
    "patches": (Patches, lambda: images(16)),
    "skipping": (Skipping, lambda: torch.randn(64, 5)),
    "stacked": (Stacked, lambda: torch.randn(16, 6, 5)),
    "twice": (Twice, lambda: torch.randn(64, 5)),
    "gated": (Gated, lambda: torch.randn(64, 5)),
    "queries": (Queries, lambda: torch.randn(16, 7, 6)),
}


def flowing(prepared: Prepared, method: str | None = None, **settings: Any) -> Alignment:
    """An alignment by the flow driver."""
    flow = {key: settings.pop(key) for key in ("residual", "qk", "heads", "embeddings") if key in settings}
    config = FuseConfig.parse({"driver": "flow", "flow": flow, **settings})
    return match(replace(prepared, config=config, method=method or prepared.method))


def wired(model: nn.Module, x: Tensor, **flow: str) -> Wiring:
    graph = trace(model, (x,))
    return wire(graph, graph.axes, FuseConfig.parse({"flow": flow}).flow)


def ids_of(found: Wiring | Alignment, name: str) -> list[int]:
    """Numbers of the axes in a tensor's label."""
    label = found.labels[name]
    text = [leaf for dim in label.dims for leaf in walk_leaves(dim)]
    return [leaf.id for leaf in text]


# ------------------------------------------------------------------------ exact


@pytest.mark.parametrize("name", CASES)
def test_a_planted_permutation_is_recovered_under_every_policy(name: str) -> None:
    build, inputs = CASES[name]
    model, x = scaled(build()), inputs()
    other, expected = planted(model, x), dict(state_of(model))
    prepared = prepare([model, other], data=[x])
    for residual in RESIDUAL:
        for method in ("weights", "activations"):
            found = flowing(prepared, method, residual=residual)
            assert_same(found.apply(state_of(other), 1), expected, 0)


@pytest.mark.parametrize("name", ["decoder", "encoder", "grouped", "patches", "stacked"])
def test_a_planted_permutation_is_recovered_in_every_kind_of_attention(name: str) -> None:
    build, inputs = CASES[name]
    model, x = scaled(build()), inputs()
    other, expected = planted(model, x), dict(state_of(model))
    prepared = prepare([model, other], data=[x])
    for qk in ("separate", "joint", "tied"):
        for heads in ("nested", "free"):
            for method in ("weights", "activations"):
                found = flowing(prepared, method, qk=qk, heads=heads, embeddings="follow")
                assert_same(found.apply(state_of(other), 1), expected, 0)
