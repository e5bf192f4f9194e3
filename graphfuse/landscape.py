"""A metric over the plane through three models in one coordinate system: what lies between them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from graphfuse.aligned import Alignment
from graphfuse.capture import duplicate, state_of
from graphfuse.errors import DataError
from graphfuse.prepared import Progress

__all__ = ["Landscape", "landscape"]

MARGIN = 0.3
"""How far the grid goes beyond the three models, as a share of their spread."""
FLAT = 1e-3
"""How far from the line through two models the third must be, as a share of their distance."""


@dataclass(frozen=True)
class Landscape:
    """Values of a metric on a grid, ``values[i][j]`` at (``across[j]``, ``up[i]``); distances are between weights.

    ``marks`` are the three models: a name, where it is, and the metric there.
    """

    across: tuple[float, ...]
    up: tuple[float, ...]
    values: tuple[tuple[float, ...], ...]
    marks: tuple[tuple[str, float, float, float], ...]

    def to_json(self) -> dict[str, Any]:
        """Plain values, which ``Landscape.from_json`` takes back."""
        return asdict(self)

    @classmethod
    def from_json(cls, found: Mapping[str, Any]) -> Landscape:
        """What :meth:`to_json` gave, also after it went through a file."""
        return cls(
            tuple(found["across"]),
            tuple(found["up"]),
            tuple(tuple(row) for row in found["values"]),
            tuple((str(name), float(x), float(y), float(value)) for name, x, y, value in found["marks"]),
        )


def landscape(
    models: Sequence[nn.Module],
    alignment: Alignment,
    loss: Callable[[nn.Module], float],
    *,
    third: nn.Module | None = None,
    model: int = 1,
    points: int = 21,
    progress: Progress | None = None,
) -> Landscape:
    """Evaluate a metric over the plane through the target, another model that was aligned with it, and a third one.

    Parameters
    ----------
    models : sequence of nn.Module
        Those that were aligned. They are left as they are.
    alignment : Alignment
        Theirs.
    loss : callable
        Called with a model in eval mode; its loss, or any other number. The model's batch-norm statistics are
        interpolated as its weights are; a metric may estimate them anew before it measures.
    third : nn.Module, optional
        Of the target's class and widths, say the fused model. By default the other model as it is, not aligned, which
        shows what the alignment does.
    model : int
        Which of the models is the other one; if it is the target, the first that is not.
    points : int
        Of the grid along each side.
    progress : callable, optional
        Called with ("landscape", done, total).

    Returns
    -------
    Landscape

    Raises
    ------
    DataError
        There is no such model; the third has other tensors or lies on the line through the two; there are too few
        points.

    Examples
    --------
    >>> import graphfuse
    >>> a, b = (nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)) for _ in range(2))
    >>> x, alignment = torch.randn(64, 4), graphfuse.align([a, b], torch.zeros(1, 4))
    >>> found = landscape([a, b], alignment, lambda net: float((net(x) - a(x)).square().mean()), points=5)
    >>> [mark[0] for mark in found.marks], len(found.values)
    (['model 0', 'model 1, aligned', 'model 1, as it is'], 5)
    """
    target, other = alignment.target, _other(models, alignment, model)
    if points < 2:
        raise DataError(f"landscape: a grid of {points} points has no area.\n  what to do: 11 or more make a picture")
    first, second = (alignment.apply(state_of(models[k]), k) for k in (target, other))
    last = state_of(models[other] if third is None else third)
    names = [f"model {target}", f"model {other}, aligned", f"model {other}, as it is" if third is None else "fused"]
    _check_same(first, last, third is None)
    plane = _Plane.through(first, second, last)
    net = duplicate(models[target]).eval()

    @torch.no_grad()
    def value(x: float, y: float) -> float:
        for name, tensor in state_of(net).items():
            tensor.copy_(plane.at(name, x, y))
        return float(loss(net.eval()))

    (left, right), (low, high) = (_range(values) for values in zip(*plane.places, strict=True))
    across, up = (torch.linspace(*ends, points).tolist() for ends in ((left, right), (low, high)))
    marks = tuple((name, x, y, value(x, y)) for name, (x, y) in zip(names, plane.places, strict=True))
    rows = []
    for done, y in enumerate(up, start=1):
        rows.append(tuple(value(x, y) for x in across))
        if progress is not None:
            progress("landscape", done, points)
    return Landscape(tuple(across), tuple(up), tuple(rows), marks)


@dataclass(frozen=True, eq=False)
class _Plane:
    """A point and two directions of length one, at right angles to each other, by tensor; and three places in it."""

    origin: Mapping[str, Tensor]
    along: Mapping[str, Tensor]
    aside: Mapping[str, Tensor]
    places: tuple[tuple[float, float], ...]

    @classmethod
    def through(cls, first: Mapping[str, Tensor], second: Mapping[str, Tensor], third: Mapping[str, Tensor]) -> _Plane:
        one, two = _minus(second, first), _minus(third, first)
        length = math.sqrt(_dot(one, one))
        if length == 0:
            raise DataError("landscape: the two aligned models have the same weights, so no plane goes through them")
        along = {name: value / length for name, value in one.items()}
        x = _dot(two, along)
        rest = {name: value - x * along[name] for name, value in two.items()}
        height = math.sqrt(_dot(rest, rest))
        if height < FLAT * length:
            raise DataError(
                "landscape: the third model lies on the line through the other two, so they span no plane.\n"
                "  what to do: give one that was calibrated, or none: then it is the other model as it is"
            )
        aside = {name: value / height for name, value in rest.items()}
        return cls(first, along, aside, ((0.0, 0.0), (length, 0.0), (x, height)))

    def at(self, name: str, x: float, y: float) -> Tensor:
        """A tensor of the model at a place; what holds no real numbers is everywhere that of the first."""
        value = self.origin[name]
        return value if name not in self.along else value + (x * self.along[name] + y * self.aside[name]).to(value)


def _minus(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: a[name].double() - b[name].double() for name, value in b.items() if value.is_floating_point()}


def _dot(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> float:
    return sum(float((value * b[name]).sum()) for name, value in a.items())


def _range(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(values), max(values)
    spread = MARGIN * (high - low)
    return low - spread, high + spread


def _other(models: Sequence[nn.Module], alignment: Alignment, model: int) -> int:
    if len(models) != len(alignment.models):
        raise DataError(f"landscape: expected the {len(alignment.models)} models of the alignment, got {len(models)}")
    other = next(k for k in range(len(models)) if k != alignment.target) if model == alignment.target else model
    if not 0 <= other < len(models):
        raise DataError(f"landscape: there is no model {model}; the {len(models)} models count from 0")
    return other


def _check_same(wanted: Mapping[str, Tensor], got: Mapping[str, Tensor], own: bool) -> None:
    missing = [name for name in wanted if name not in got or got[name].shape != wanted[name].shape]
    if missing:
        advice = "pass third=: a model of the target's widths, say the fused one" if own else "pass one that is"
        raise DataError(
            f"landscape: {'the other model as it is' if own else 'the third model'} is not of the target's form: "
            f"{missing[0]!r} {'is missing' if missing[0] not in got else 'has another shape'}.\n  what to do: {advice}"
        )
