"""Likeness of units by their weights: all that a unit reads and writes, with the other axes' current maps applied.

The objective is the inner product of A's weights with B's, carried over (Ainsworth et al., Git Re-Basin, arXiv
2209.04836, section 3.2), generalised to any labelled tensor, to nested axes and to different widths. Each tensor is
standardised by its own mean and deviation, so that a layer of large weights does not outvote the others; an element
counts as much as any other.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from graphfuse.carry import carry
from graphfuse.cells import Cell, cells
from graphfuse.costs.evidence import Problem, judges, slots_for
from graphfuse.costs.moments import PIECE, Moments, Standard, gram
from graphfuse.maps import Maps
from graphfuse.symmetry import Axis, TensorLabel


@dataclass(frozen=True, eq=False)
class _Patch:
    """One cell of one tensor."""

    cell: Cell
    consumed: tuple[bool, ...]
    scale: Standard

    @property
    def numel(self) -> int:
        return self.cell.views[0].numel()


class WeightEvidence:
    """Likeness by weights.

    Parameters
    ----------
    problem : Problem
    labels : sequence of TensorLabel
        Tensors to compare, in A's labels: the parameters. Constant ones (fresh gains and biases) tell nothing.
    state_a, state_b : mapping
        Canonical name -> tensor.
    standard : bool
        Whether A's tensors are means of standardised ones already; those that it lacks are not compared.
    """

    repeats = True

    def __init__(
        self,
        problem: Problem,
        labels: Sequence[TensorLabel],
        state_a: Mapping[str, Tensor],
        state_b: Mapping[str, Tensor],
        standard: bool = False,
    ) -> None:
        self.problem = problem
        self._patches: dict[int, list[_Patch]] = {axis.id: [] for axis in problem.axes}
        for label in labels:
            if standard and label.name not in state_a:
                continue
            pair = state_a[label.name].detach(), state_b[label.name].detach()
            scales = (0.0, 1.0) if standard else scale_of(pair[0]), scale_of(pair[1])
            if scales[0] is None or scales[1] is None:
                continue
            scale = Standard(scales[0][0], 1 / scales[0][1], scales[1][0], 1 / scales[1][1])
            for cell in cells(pair, label.dims, (problem.sizes_a, problem.sizes_b)):
                for id in dict.fromkeys(axis for axis in cell.axes if axis in problem.moving):
                    self._patches[id].append(_Patch(cell, label.consumed, scale))

    def ready(self, pending: Sequence[Axis], maps: Maps) -> Sequence[Axis]:
        """The axis that most resolved features speak about, an inner axis before those that it depends on."""
        waiting = {axis.id for axis in pending}
        inner = self.problem.inner
        open_axes = [axis for axis in pending if not waiting.intersection(inner[axis.id])]
        return [max(open_axes, key=lambda axis: (self._features(axis, maps), bool(inner[axis.id]), -axis.id))]

    def moments(self, axis: Axis, maps: Maps) -> Sequence[Moments]:
        """Moments over all features of the axis whose other axes have maps."""
        total: Moments | None = None
        for patch in self._patches[axis.id]:
            for position in _places(patch.cell, axis.id):
                if judges(patch.cell.axes, position, self.problem, maps):
                    total = self._patch_moments(patch, axis, position, maps).merge(total)
        return [total] if total is not None else []

    def _patch_moments(self, patch: _Patch, axis: Axis, position: int, maps: Maps) -> Moments:
        slots, along, context = slots_for(patch.cell, patch.consumed, axis, position, self.problem, maps)
        left, right = _comparable(*patch.cell.views)
        carried = carry(right, slots, {position, *context})
        return gram(left, carried, position, along, context, patch.scale)

    def _features(self, axis: Axis, maps: Collection[int]) -> float:
        """Resolved features for each unit of an axis."""
        count = 0.0
        for patch in self._patches[axis.id]:
            for position in _places(patch.cell, axis.id):
                if judges(patch.cell.axes, position, self.problem, maps):
                    family = self.problem.context(axis) + self.problem.along(axis)
                    units = axis.size
                    for key in family:
                        units *= self.problem.sizes_a[key]
                    count += patch.numel / units
        return count


def _places(cell: Cell, axis: int) -> list[int]:
    return [p for p, other in enumerate(cell.axes) if other == axis]


def _comparable(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Both in one dtype, at least single precision."""
    kind = torch.promote_types(torch.promote_types(a.dtype, b.dtype), torch.float32)
    return a.to(kind), b.to(kind)


def scale_of(tensor: Tensor) -> tuple[float, float] | None:
    """Mean and deviation of all elements, in double precision; None where it is constant or no floating tensor."""
    if not tensor.is_floating_point() or tensor.numel() < 2:
        return None
    pieces = tensor.detach().reshape(-1).split(PIECE)
    mean = sum(float(piece.sum(dtype=torch.float64)) for piece in pieces) / tensor.numel()
    square = sum(float((piece.double() - mean).square().sum()) for piece in pieces)
    deviation = (square / (tensor.numel() - 1)) ** 0.5
    return (mean, deviation) if deviation > 1e-6 * max(abs(mean), 1e-12) else None
