"""Likeness of units by their weights: all that a unit reads and writes, with the other axes' current maps applied.

The objective is the inner product of A's weights with B's, carried over (Ainsworth et al., Git Re-Basin, arXiv
2209.04836, section 3.2), generalised to any labelled tensor, to nested axes and to different widths. Each tensor is
standardised by its own mean and deviation, so that a layer of large weights does not outvote the others; an element
counts as much as any other.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from graphfuse.axes import walk_leaves
from graphfuse.carry import carry
from graphfuse.cells import Cell, cells
from graphfuse.config import CostConfig
from graphfuse.costs.evidence import Entry, Problem, judges, slots_for
from graphfuse.costs.moments import Moments, Standard, gram, piece_of
from graphfuse.maps import Maps
from graphfuse.rulebook import load_rules
from graphfuse.symmetry import Axis, SymmetryGraph, TensorLabel


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
    written_by : mapping, optional
        Axis number -> tensors whose rows alone are its evidence; by default all that it touches is.
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
        written_by: Mapping[int, Collection[str]] | None = None,
        standard: bool = False,
    ) -> None:
        self.problem, self._written_by = problem, written_by
        self._patches: dict[int, list[_Patch]] = {axis.id: [] for axis in problem.axes}
        self._piece = piece_of(problem.largest)
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
                    if written_by is None or label.name in written_by[id]:
                        self._patches[id].append(_Patch(cell, label.consumed, scale))

    def ready(self, pending: Sequence[Axis], maps: Maps) -> Sequence[Axis]:
        """The axis that most resolved features speak about, an inner axis before those that it depends on."""
        waiting = {axis.id for axis in pending}
        inner = self.problem.inner
        open_axes = [axis for axis in pending if not waiting.intersection(inner[axis.id])]
        return [max(open_axes, key=lambda axis: (self._features(axis, maps), bool(inner[axis.id]), -axis.id))]

    def moments(self, axis: Axis, maps: Maps) -> list[Entry]:
        """One entry, over all features of the axis whose other axes have maps.

        Where there are none, the means over the axes that have no map yet count as features: they are the same in
        whatever order these are.
        """
        places = [(patch, p) for patch in self._patches[axis.id] for p in self._places(patch, axis.id)]
        judging = [(patch, p) for patch, p in places if judges(patch.cell.axes, p, self.problem, maps)]
        judging = judging or [found for patch, p in places if (found := self._averaged(patch, p, maps)) is not None]
        return [partial(self._sum, axis, judging, maps)] if judging else []

    def _averaged(self, patch: _Patch, position: int, maps: Maps) -> tuple[_Patch, int] | None:
        """A patch without the axes that have no map yet, and where the axis is then; None: it tells nothing yet."""
        cell, moving = patch.cell, self.problem.moving
        axis = moving[cell.axes[position]]
        related = {axis.id, *self.problem.context(axis), *self.problem.inner[axis.id]}
        unknown = [p for p, id in enumerate(cell.axes) if id in moving and id not in maps and id not in related]
        kept = [p for p in range(len(cell.axes)) if p not in unknown]
        if not judges([cell.axes[p] for p in kept], kept.index(position), self.problem, maps):
            return None
        views = tuple(view.mean(unknown, dtype=torch.promote_types(view.dtype, torch.float32)) for view in cell.views)
        axes, origin = (tuple(values[p] for p in kept) for values in (cell.axes, cell.origin))
        duals = tuple(cell.duals[p] for p in kept) if cell.duals else ()
        return replace(patch, cell=Cell(views, axes, origin, frozenset(axes), duals)), kept.index(position)

    def _sum(self, axis: Axis, judging: Sequence[tuple[_Patch, int]], maps: Maps) -> Moments:
        total: Moments | None = None
        for patch, position in judging:
            total = self._patch_moments(patch, axis, position, maps, total)
        assert total is not None
        return total

    def norms(self, axis: Axis) -> tuple[Tensor, Tensor] | None:
        """Norms of all that each unit reads and writes, every tensor divided by its deviation."""
        totals: list[Tensor | None] = [None, None]
        for patch in self._patches[axis.id]:
            for position in self._places(patch, axis.id):
                for k, scale in enumerate((patch.scale.scale_a, patch.scale.scale_b)):
                    found = self._energy(patch.cell, k, axis, position) * scale**2
                    before = totals[k]
                    totals[k] = found if before is None else before + found
        left, right = totals
        return (left.sqrt(), right.sqrt()) if left is not None and right is not None else None

    def _energy(self, cell: Cell, k: int, axis: Axis, position: int) -> Tensor:
        """Sums of squares of one model's units, (\\*lead, units), of size 1 along the other model's contexts."""
        along = [cell.along(position, key) for key in self.problem.along(axis)]
        context = [cell.along(position, key) for key in self.problem.context(axis)]
        kept, view = [*along, *context, position], cell.views[k].double().square()
        rest = [p for p in range(view.dim()) if p not in kept]
        sums = view.permute([*kept, *rest]).flatten(len(kept)).sum(-1) if rest else view.permute(kept)
        first = len(along) if k else len(along) + len(context)
        return sums[(slice(None),) * first + (None,) * len(context)]

    def _patch_moments(self, patch: _Patch, axis: Axis, position: int, maps: Maps, total: Moments | None) -> Moments:
        """Moments with those of a patch; B's weights are carried for some units at a time: copies are large."""
        slots, along, context = slots_for(patch.cell, patch.consumed, axis, position, self.problem, maps)
        (left, right), keep = patch.cell.views, {position, *context}
        kind = torch.promote_types(torch.promote_types(left.dtype, right.dtype), torch.float32)
        moved = right.dtype != kind or any(slot.map is not None for slot in slots if slot.position not in keep)
        asked = {q for slot in slots for q in (*slot.along, *slot.context)}
        units = right.shape[position]
        step = max(1, units * self._piece // max(right.numel(), 1))
        if not moved or context or along or position in asked or step >= units:
            return gram(left, carry(right.to(kind), slots, keep), position, along, context, patch.scale, total)
        if total is None:
            total = Moments.none(left.new_zeros(left.shape[position], units, dtype=kind))
        parts = []
        for start in range(0, units, step):
            carried = carry(right.narrow(position, start, min(step, units - start)).to(kind), slots, keep)
            part = total.units_of_b(start, total.cross[:, start : start + step])
            parts.append(gram(left, carried, position, (), (), patch.scale, part))
        return Moments.joined(parts, total.cross)

    def _places(self, patch: _Patch, axis: int) -> list[int]:
        """Where an axis stands in a patch, so that it is evidence."""
        cell, rows = patch.cell, self._written_by is not None
        return [p for p, x in enumerate(cell.axes) if x == axis and not (rows and patch.consumed[cell.origin[p]])]

    def _features(self, axis: Axis, maps: Collection[int]) -> float:
        """Resolved features for each unit of an axis."""
        count = 0.0
        for patch in self._patches[axis.id]:
            for position in self._places(patch, axis.id):
                if judges(patch.cell.axes, position, self.problem, maps):
                    family = self.problem.context(axis) + self.problem.along(axis)
                    units = axis.size
                    for key in family:
                        units *= self.problem.sizes_a[key]
                    count += patch.numel / units
        return count


def left_out(graph: SymmetryGraph, cost: CostConfig) -> set[str]:
    """Parameters that are not to be compared: biases, gains, both or none.

    A gain only multiplies data, elementwise, be it in a product or as the weight of a norm. A bias is what a
    contraction adds, or any other parameter that has one number for each unit of one axis (in each member of its
    context) and nothing else: the biases of norms.
    """
    if cost.gains and cost.bias:
        return set()
    added, scaling = {entry.bias for entry in graph.contractions}, _norm_weights(graph)
    gains = {name for name, label in graph.tensors.items() if any(label.gains) or name in scaling}
    biases = {name for name, label in graph.tensors.items() if name in added or _one_each(graph, label)} - gains
    return (set() if cost.gains else gains) | (set() if cost.bias else biases)


def _norm_weights(graph: SymmetryGraph) -> set[str]:
    """Parameters that a norm takes as its weight."""
    book, nodes = load_rules(), {node.name: node for node in graph.captured.graph.nodes}
    found = set()
    for slot in graph.captured.inputs:
        for user in nodes[slot.node].users if slot.kind == "parameter" else ():
            located = book.entry(user.target)
            if located is not None and located.entry.kind == "norm":
                names = [argument.name for argument in user.target._schema.arguments]  # pyright: ignore
                given = {**dict(zip(names, user.args, strict=False)), **user.kwargs}
                if given.get("weight") is nodes[slot.node]:
                    found.add(slot.name)
    return found


def _one_each(graph: SymmetryGraph, label: TensorLabel) -> bool:
    leaves = {leaf.id for dim in label.dims for leaf in walk_leaves(dim)}
    contexts = {axis.id: axis.context for axis in graph.axes if axis.id in leaves}
    plain = all(size > 1 for size in label.shape)
    return plain and all(any(set(c.axes) <= {id, *contexts[id]} for id in c.axes if id in contexts)
                         for c in cells((), label.dims, ()))  # fmt: skip


def scale_of(tensor: Tensor) -> tuple[float, float] | None:
    """Mean and deviation of all elements, in double precision; None where it is constant or no floating tensor."""
    if not tensor.is_floating_point() or tensor.numel() < 2:
        return None
    pieces = tensor.detach().reshape(-1).split(piece_of(0))
    mean = sum(float(piece.sum(dtype=torch.float64)) for piece in pieces) / tensor.numel()
    square = sum(float((piece.double() - mean).square().sum()) for piece in pieces)
    deviation = (square / (tensor.numel() - 1)) ** 0.5
    return (mean, deviation) if deviation > 1e-6 * max(abs(mean), 1e-12) else None
