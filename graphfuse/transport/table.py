"""The table of an axis' likeness, made of moments whose place it takes, and what can still be told of these then."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from graphfuse.config import Measure
from graphfuse.costs.evidence import Problem
from graphfuse.costs.moments import Moments, likeness, matched_correlation, summed
from graphfuse.maps import AxisMap, Maps
from graphfuse.symmetry import Axis
from graphfuse.transport.family import Quality, optimum, seen_from
from graphfuse.transport.solvers import widened


class Compared(Protocol):
    """What one body of evidence says of all pairs of units, larger for more alike; it may give the moments up."""

    def __call__(self, moments: Moments, measure: Measure, *, spend: bool) -> Tensor: ...


@dataclass(frozen=True, eq=False)
class Seen:
    """What is kept of an axis' evidence to tell how well it is matched, when a table of likeness is made of it.

    ``read`` by this measure: the table itself says it, so that the cross moments are not kept.
    """

    entries: Sequence[Moments]
    read: Measure | None
    weight: float

    @classmethod
    def of(
        cls, entries: Sequence[Moments], measure: Measure, inner: Sequence[int], plainly: bool, forget: bool
    ) -> Seen:
        """Copies, where they are needed; nothing at all when it is to be forgotten."""
        weight = sum(entry.weight for entry in entries)
        if plainly and (measure == "correlation" or (len(entries) == 1 and not inner)):
            return cls([replace(entry, cross=entry.mean_a) for entry in entries], measure, weight)
        return cls([] if forget else [entry.copied() for entry in entries], None, weight)


def table_of(
    problem: Problem,
    axis: Axis,
    maps: Mapping[int, AxisMap],
    entries: list[Moments],
    measure: Measure,
    values: Mapping[int, Tensor],
    shape: Sequence[int],
    compared: Compared = likeness,
    *,
    wide: bool = False,
) -> Tensor:
    """Likeness of all pairs of units, of the given shape: a new tensor, in double precision if it is to be ``wide``.

    The entries are given up: one after another is taken out of the list, so that no more is held than needed.
    """
    parts = (seen_from(problem, maps, axis, problem.moving[id], value) for id, value in values.items())
    found = [_total(entries, measure, compared, parts, shape)]
    return widened(found) if wide and found[0].device.type == "cpu" else found.pop()


def _total(
    entries: list[Moments], measure: Measure, compared: Compared, parts: Iterator[Tensor], shape: Sequence[int]
) -> Tensor:
    total: Tensor | None = None
    while entries:
        entry = entries.pop(0)
        part = compared(entry, measure, spend=True)
        part = part if entry.weight == 1 else part.mul_(entry.weight)
        total = part if total is None else summed(total, part)
    for part in parts:
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
    compared: Compared,
) -> Quality:
    """Correlations of matched units, and of those of one index; no whole table is made for a permutation.

    ``inner`` is what was told of the axes inside this one, ``cost`` the table that the axis was solved with.
    """
    solved, n, shape = maps[axis.id], cost.shape[-2], cost.shape
    weight = seen.weight + sum(problem.sizes_a[id] * quality.weight for id, quality in inner.items())
    values = {id: quality.matched for id, quality in inner.items()}
    if solved.index is None:
        table = table_of(problem, axis, maps, list(seen.entries), "correlation", values, shape, compared)
        same = table.diagonal(dim1=-2, dim2=-1).sum(-1) if n == shape[-1] else None
        return Quality(optimum(solved, table), same, weight)
    told = [seen_from(problem, maps, axis, problem.moving[id], value).expand(shape) for id, value in values.items()]
    found = []
    for index in (solved.index, torch.arange(n, device=solved.index.device).expand(solved.index.shape)):
        if seen.read is not None:
            parts = [_read(seen.entries, seen.read, index, -cost.gather(-1, index.unsqueeze(-1)).squeeze(-1))]
        else:
            parts = [entry.weight * likeness(entry.at(index), "correlation") for entry in seen.entries]
            parts += [table.gather(-1, index.unsqueeze(-1)).squeeze(-1) for table in told]
        found.append(sum(part.expand(index.shape).sum(-1, dtype=torch.float64) for part in parts))
    return Quality(found[0], found[1], weight)


def _read(entries: Sequence[Moments], measure: Measure, index: Tensor, alike: Tensor) -> Tensor:
    """Correlations of matched pairs, from their likeness: it is what they are told in, or there is one entry alone."""
    if measure == "correlation":
        return alike
    (entry,) = entries
    return entry.weight * matched_correlation(entry, index, alike / entry.weight, measure)
