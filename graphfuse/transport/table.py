"""The table of an axis' likeness, made of moments whose place it takes, and what can still be told of these then."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

import torch
from torch import Tensor

from graphfuse.config import Measure
from graphfuse.costs.evidence import Entry, Problem
from graphfuse.costs.moments import Moments, likeness, matched_correlation, summed
from graphfuse.maps import AxisMap, Maps
from graphfuse.symmetry import Axis
from graphfuse.transport.family import Quality, optimum, seen_from
from graphfuse.transport.solvers import widened


class Compared(Protocol):
    """What one body of evidence says of all pairs of units, larger for more alike; it may give the moments up."""

    def __call__(self, moments: Moments, measure: Measure, *, spend: bool) -> Tensor: ...


@dataclass(eq=False)
class Seen:
    """What is kept of an axis' evidence to tell how well it is matched, while a table of likeness is made of it.

    ``read`` by this measure: the table itself says it, and ``entries`` are without cross moments; else ``alike`` is the
    table of correlations, by ``compared`` (None: it is to be forgotten).
    """

    read: Measure | None
    compared: Compared | None
    entries: list[Moments] = field(default_factory=list)
    alike: Tensor | None = None
    weight: float = 0.0

    def look(self, moments: Moments) -> Moments:
        """See one entry, before it is given up."""
        self.weight += moments.weight
        if self.read is not None:
            self.entries.append(replace(moments, cross=moments.mean_a))
        elif self.compared is not None:
            self.alike = _added(self.alike, moments.copied(), "correlation", self.compared)
        return moments


def table_of(
    problem: Problem,
    axis: Axis,
    maps: Mapping[int, AxisMap],
    entries: list[Entry],
    measure: Measure,
    values: Mapping[int, Tensor],
    shape: Sequence[int],
    compared: Compared = likeness,
    *,
    wide: bool = False,
    seen: Seen | None = None,
) -> Tensor:
    """Likeness of all pairs of units, of the given shape: a new tensor, in double precision if it is to be ``wide``.

    Entries are taken out of the list one after another, so that no more is held than needed; ``seen`` looks at each.
    """
    total: Tensor | None = None
    while entries:
        moments = entries.pop(0)()
        total = _added(total, moments if seen is None else seen.look(moments), measure, compared)
        del moments
    found = [_with_inner(problem, axis, maps, total, values, shape)]
    del total
    return widened(found) if wide and found[0].device.type == "cpu" else found.pop()


def _added(total: Tensor | None, moments: Moments, measure: Measure, compared: Compared) -> Tensor:
    """A table with what one entry says added; both are given up."""
    part = compared(moments, measure, spend=True)
    part = part if moments.weight == 1 else part.mul_(moments.weight)
    return part if total is None else summed(total, part)


def _with_inner(
    problem: Problem,
    axis: Axis,
    maps: Mapping[int, AxisMap],
    total: Tensor | None,
    values: Mapping[int, Tensor],
    shape: Sequence[int],
) -> Tensor:
    """A table, given up, with what the optimum values of inner axes say added, of the given shape."""
    for id, value in values.items():
        part = seen_from(problem, maps, axis, problem.moving[id], value)
        total = part.clone() if total is None else summed(total, part.to(total))
    assert total is not None
    return total if total.shape == torch.Size(shape) else total.expand(shape).clone()


def quality_of(
    problem: Problem,
    axis: Axis,
    maps: Maps,
    seen: Seen,
    inner: Mapping[int, Quality],
    cost: Tensor,
) -> Quality:
    """Correlations of matched units, and of those of one index; no whole table is made for a permutation.

    ``inner`` is what was told of the axes inside this one, ``cost`` the table that the axis was solved with.
    """
    solved, n, shape = maps[axis.id], cost.shape[-2], cost.shape
    weight = seen.weight + sum(problem.sizes_a[id] * quality.weight for id, quality in inner.items())
    values = {id: quality.matched for id, quality in inner.items()}
    if seen.read is None:
        table = _with_inner(problem, axis, maps, seen.alike, values, shape)
        same = table.diagonal(dim1=-2, dim2=-1).sum(-1) if n == shape[-1] else None
        return Quality(optimum(solved, table), same, weight)
    assert solved.index is not None
    indices = solved.index, torch.arange(n, device=solved.index.device).expand(solved.index.shape)
    pairs = [_read(seen.entries, seen.read, x, -cost.gather(-1, x.unsqueeze(-1)).squeeze(-1)) for x in indices]
    matched, same = (pair.expand(solved.index.shape).sum(-1, dtype=torch.float64) for pair in pairs)
    return Quality(matched, same, weight)


def _read(entries: Sequence[Moments], measure: Measure, index: Tensor, alike: Tensor) -> Tensor:
    """Correlations of matched pairs, from their likeness: it is what they are told in, or there is one entry alone."""
    if measure == "correlation":
        return alike
    (entry,) = entries
    return entry.weight * matched_correlation(entry, index, alike / entry.weight, measure)
