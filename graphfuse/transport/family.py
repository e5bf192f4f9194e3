"""Families of maps: the values of inner problems seen from the axis they depend on, and how well an axis is matched.

A table over a family has one dim for each fixed axis that the map depends on, then one for each free one in A, then one
for each in B.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from graphfuse.costs.evidence import Problem
from graphfuse.maps import AxisMap
from graphfuse.symmetry import Axis


@dataclass(frozen=True)
class Agreement:
    """How well an axis is matched.

    ``value`` is the mean correlation of matched units, ``before`` that of unit i with unit i (None where widths
    differ), ``moved`` the share of units that are matched with one of another index.
    """

    value: float
    before: float | None
    moved: float

    def to_json(self) -> dict[str, float | None]:
        """Plain values for programs."""
        return asdict(self)


_Key = tuple[int, str]
"""An axis and the model that it is indexed in: ``a`` or ``b``."""


def optimum(solved: AxisMap, table: Tensor) -> Tensor:
    """Summed likeness of matched units, for each member of a family: shape of the family."""
    if solved.index is not None:
        return table.gather(-1, solved.index.unsqueeze(-1)).squeeze(-1).sum(-1, dtype=torch.float64)
    if solved.matrix is not None:
        return (solved.matrix[..., 0, :, :].to(table) * table).sum((-2, -1))
    return torch.einsum("...ij,...ij->...", solved.coupling().to(table), table) * table.shape[-2]


def seen_from(problem: Problem, maps: Mapping[int, AxisMap], outer: Axis, inner: Axis, values: Tensor) -> Tensor:
    """Values of an inner axis' problems as likeness of an outer axis' units: broadcasts over the outer axis' table.

    What the inner axis depends on beside that is summed over matched pairs, or over all when it has no map yet.
    """
    keys = _lead_keys(problem, inner)
    wanted = [*_lead_keys(problem, outer), (outer.id, "a"), (outer.id, "b")]
    operands: list[tuple[Tensor, list[_Key]]] = [(values, keys)]
    for key in problem.context(inner):
        if (key, "a") in wanted:
            continue
        if key in maps and not maps[key].lead:
            operands.append((maps[key].coupling().to(values) * problem.sizes_a[key], [(key, "a"), (key, "b")]))
        else:
            operands.append((values.new_full((problem.sizes_b[key],), 1 / problem.sizes_b[key]), [(key, "b")]))
    found = _einsum(operands, [key for key in wanted if key in keys])
    for d, key in enumerate(wanted):
        if key not in keys:
            found = found.unsqueeze(d)
    return found


@dataclass(frozen=True, eq=False)
class Quality:
    """What the last visit of an axis showed: correlations of matched units, and of unit i with unit i, summed up for
    each member of the family (None where widths differ). ``weight`` is how many correlations are in each entry."""

    matched: Tensor
    same: Tensor | None
    weight: float


def agreement(problem: Problem, maps: Mapping[int, AxisMap], id: int, quality: Quality) -> Agreement:
    """How well an axis is matched, in those contexts that are matched with each other."""
    axis, solved = problem.moving[id], maps[id].to("cpu")
    mass = _mass(problem, maps, axis)
    n = problem.sizes_a[id]
    value = float((mass * quality.matched.cpu()).sum()) / (quality.weight * n)
    same = _diagonal(problem, axis, mass)
    kept = float((same * _same_mass(problem, axis, solved).to(mass)).sum())
    before = None
    if quality.same is not None and all(problem.sizes_a[k] == problem.sizes_b[k] for k in problem.context(axis)):
        before = float(_diagonal(problem, axis, quality.same.cpu()).double().mean()) / (quality.weight * n)
    return Agreement(value, before, max(0.0, 1 - kept))


def _mass(problem: Problem, maps: Mapping[int, AxisMap], axis: Axis) -> Tensor:
    """Share of each member of a family: how much its pair of contexts is matched; sums to 1."""
    keys = _lead_keys(problem, axis)
    shape = problem.lead(axis)
    operands: list[tuple[Tensor, list[_Key]]] = [(torch.full((size,), 1.0, dtype=torch.float64), [key])
                                                 for size, key in zip(shape, keys, strict=True)]  # fmt: skip
    for key in problem.context(axis):
        outer = problem.moving[key]
        coupling, own = maps[key].coupling().double().cpu(), [*_lead_keys(problem, outer), (key, "a"), (key, "b")]
        strange = [d for d, name in enumerate(own) if name not in keys]
        coupling = coupling.mean(strange) if strange else coupling
        operands.append((coupling, [name for name in own if name in keys]))
    found = _einsum(operands, keys) if keys else torch.ones((), dtype=torch.float64)
    return found / found.sum()


def _diagonal(problem: Problem, axis: Axis, table: Tensor) -> Tensor:
    """Entries of a family's table whose contexts have the same index in A and B: one dim for each context."""
    first = len(problem.along(axis))
    for left in range(len(problem.context(axis)), 0, -1):
        # the first remaining pair: dims `first` (in A) and `first + left` (in B); the diagonal goes to the end
        table = table.diagonal(dim1=first, dim2=first + left)
    return table


def _same_mass(problem: Problem, axis: Axis, solved: AxisMap) -> Tensor:
    """The mass that unit i has with unit i, for contexts of the same index."""
    if solved.index is not None:
        kept = (solved.index == torch.arange(solved.index.shape[-1])).double().mean(-1)
    else:
        kept = solved.coupling().diagonal(dim1=-2, dim2=-1).sum(-1)
    return _diagonal(problem, axis, kept)


def _lead_keys(problem: Problem, axis: Axis) -> list[_Key]:
    context = problem.context(axis)
    return [
        *((key, "a") for key in problem.along(axis)),
        *((key, "a") for key in context),
        *((key, "b") for key in context),
    ]


def _einsum(operands: list[tuple[Tensor, list[_Key]]], wanted: list[_Key]) -> Tensor:
    names = {key: i for i, key in enumerate(dict.fromkeys(key for _, keys in operands for key in keys))}
    flat: list[Tensor | list[int]] = []
    for value, keys in operands:
        flat += [value, [names[key] for key in keys]]
    return torch.einsum(*flat, [names[key] for key in wanted])
