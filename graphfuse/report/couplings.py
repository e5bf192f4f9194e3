"""The maps of an alignment as matrices of a size that can be looked at: the shares of which units are made.

Entry (i, j) is the share of B's unit j in the target's unit i: one for a permutation, a convex combination for a
coupling, the squared entry for a rotation (its row sums to one, too). Long axes are cut into equal runs of neighbouring
units; an entry is then the mean over the target's units of a run, so that rows still sum to one.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from graphfuse.aligned import Aligned, Alignment
from graphfuse.maps import AxisMap
from graphfuse.symmetry import Axis

CELLS = 64
"""Rows and columns of a matrix that is looked at, at most."""
KINDS = {"index": "permutation", "plan": "coupling", "matrix": "rotation"}


@dataclass(frozen=True, eq=False)
class Coupling:
    """One map of one axis, or one member of a family.

    ``where`` says which member it is: for each axis that the map differs along its name and the two indices, in the
    target and in the model. ``shares`` has shape (rows, columns), with the model's units in their own order, in
    ``matched`` those come first that the target's first units are made of. ``sizes`` are the units of both sides;
    ``peak`` is the mean over the target's units of their largest share: one where units are matched one to one.
    """

    axis: Axis
    kind: str
    where: tuple[tuple[str, int, int], ...]
    sizes: tuple[int, int]
    shares: Tensor
    matched: Tensor
    peak: float

    @property
    def label(self) -> str:
        """Which member of a family it is, in words; empty where there is only one."""
        return ", ".join(f"{name} {i}" if i == j else f"{name} {i} from {j}" for name, i, j in self.where)


def couplings(alignment: Alignment, model: int, most: int | None = None, cells: int = CELLS) -> Iterator[Coupling]:
    """The maps of one model onto the target, axis by axis; of a family those members that are matched with each other.

    Parameters
    ----------
    alignment : Alignment
    model : int
        Whose maps.
    most : int, optional
        Members of a family at most.
    cells : int
        Rows and columns at most; longer axes are cut into runs.
    """
    part = alignment.models[model]
    names = {axis.id: axis.name for axis in alignment.axes}
    for axis in alignment.axes:
        found = part.maps.get(axis.id)
        if found is not None:
            for member in itertools.islice(_members(found, part), most):
                yield _coupling(axis, found, member, names, cells)


def count(alignment: Alignment, model: int, axis: Axis) -> int:
    """How many maps :func:`couplings` gives for one axis, when it gives all."""
    found = alignment.models[model].maps.get(axis.id)
    return 0 if found is None else math.prod(found.lead[: len(found.along) + len(found.context)])


Member = tuple[tuple[int, ...], tuple[int, ...]]
"""Indices along the family in the target (fixed axes first, then the context), and along its context in the model."""


def _members(found: AxisMap, part: Aligned) -> Iterator[Member]:
    still = len(found.along)
    firsts = found.lead[: still + len(found.context)]
    for index in itertools.product(*map(range, firsts)):
        yield index, tuple(_partner(part, key, i) for key, i in zip(found.context, index[still:], strict=True))


def _partner(part: Aligned, key: int, i: int) -> int:
    """The model's unit that is matched with the target's unit ``i`` along an axis."""
    outer = part.maps.get(key)
    if outer is None:
        return i
    plan = outer.coupling()
    return int(plan.reshape(-1, *plan.shape[-2:]).mean(0)[i].argmax())


def _coupling(axis: Axis, found: AxisMap, member: Member, names: dict[int, str], cells: int) -> Coupling:
    first, second = member
    still = len(found.along)
    keys = (*found.along, *found.context)
    pairs = zip(first, (*first[:still], *second), strict=True)
    where = tuple((names.get(key, f"axis {key}"), i, j) for key, (i, j) in zip(keys, pairs, strict=True))
    values = found.values[(*first, *second)].cpu()
    if found.index is not None:  # never made dense: an axis may be long
        size, here = len(values), torch.arange(len(values))
        shares, matched = (_hits(here, columns, cells) for columns in (values, here))
        return Coupling(axis, "permutation", where, (size, size), shares, matched, 1.0)
    matrix = values.float().prod(0) if found.matrix is not None else _rows(values.float())
    rows, columns = matrix.shape
    shares, matched = binned(matrix, cells), binned(matrix[:, _by_match(matrix)], cells)
    peak = float(matrix.max(-1).values.mean())
    return Coupling(axis, KINDS[found.kind], where, (rows, columns), shares, matched, peak)


def _rows(plan: Tensor) -> Tensor:
    return AxisMap(0, plan=plan).rows()


def _by_match(shares: Tensor) -> Tensor:
    """The model's units in the order of the target's units that they are used in: by the mean of these."""
    mass = shares.clamp(min=0)
    places, total = torch.arange(len(shares), dtype=shares.dtype) @ mass, mass.sum(0)
    centres = torch.where(total > 0, places / total.clamp(min=1e-30), float(len(shares)))
    return centres.argsort(stable=True)


def binned(shares: Tensor, cells: int = CELLS) -> Tensor:
    """A matrix of at most ``cells`` rows and columns: means over runs of rows, sums over runs of columns."""
    rows, columns = (_runs(size, cells) for size in shares.shape)
    across = shares.new_zeros(len(shares), min(shares.shape[1], cells)).index_add_(1, columns, shares)
    total = shares.new_zeros(min(len(shares), cells), across.shape[1]).index_add_(0, rows, across)
    return total / rows.bincount().unsqueeze(-1)


def _hits(rows: Tensor, columns: Tensor, cells: int) -> Tensor:
    """The binned matrix that has ones at these places, one in each row."""
    count, run = min(len(rows), cells), _runs(len(rows), cells)
    total = torch.zeros(count, count).index_put_((run[rows], run[columns]), torch.ones(()), accumulate=True)
    return total / run.bincount().unsqueeze(-1)


def _runs(size: int, cells: int) -> Tensor:
    """The run that each unit is in, when an axis is cut into at most ``cells`` runs whose lengths differ by one."""
    return torch.arange(size) * min(size, cells) // max(size, 1)
