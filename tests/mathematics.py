"""What the tests of difficult mathematics share: models written as one function, and the free axes as sizes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

import graphfuse

Shape = tuple[int, tuple[int, ...]]
"""Size of a free axis, and the sizes of the axes along which its map may differ."""


class Net(nn.Module):
    """A module whose forward is a function of itself and the inputs."""

    def __init__(self, forward: Callable[..., Any], **parts: nn.Module | nn.Parameter) -> None:
        super().__init__()
        self.function = forward
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, *args: Any) -> Any:
        return self.function(self, *args)

    def __getattr__(self, name: str) -> Any:  # parts are of any type; the type checker need not know which
        return super().__getattr__(name)


def weight(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.randn(*shape) / shape[-1] ** 0.5)


def shapes(graph: graphfuse.SymmetryGraph) -> dict[Shape, int]:
    """The free axes, counted by size and context."""
    return dict(Counter((axis.size, tuple(graph.axis(key).size for key in axis.context)) for axis in graph.axes))


def check(
    model: nn.Module, *args: Tensor, expect: dict[Shape, int], notes: bool = False, sensitivity: float = 0.6
) -> graphfuse.SymmetryGraph:
    """Trace; the free axes must be those counted by hand, and all that their classes admit must keep the function.

    Sensitivity is below 1 where a parameter does not matter, as the bias of keys does not.
    """
    graph = graphfuse.trace(model.eval(), args)
    assert shapes(graph) == expect, f"\n{graph}\nfixed: {[(a.size, list(map(str, a.reasons))) for a in graph.fixed]}"
    assert notes or not graph.notes, graph.notes
    result = graphfuse.verify(graph, trials=2, classes=True)
    assert result.ok, f"{result}\n{graph}"
    assert result.sensitivity >= sensitivity, f"{result}\n{graph}"
    return graph
