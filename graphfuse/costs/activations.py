"""Likeness of units by their activations on data, from streamed second moments.

Both models run side by side; at every node where an axis is written, the cross moments of A's and B's units are summed
over inputs and positions, and the activations are dropped. Source: Li et al., Convergent Learning (arXiv 1511.07543),
section 3; Ainsworth et al., Git Re-Basin (arXiv 2209.04836), section 3.1.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence

import torch
from torch import Tensor

from graphfuse.capture import state_of
from graphfuse.carry import carry
from graphfuse.cells import Cell, cells
from graphfuse.config import Activations, CostConfig
from graphfuse.costs.evidence import Evidence, Problem, judges, slots_for
from graphfuse.costs.filters import Keep, Selection, chosen
from graphfuse.costs.ground import evened
from graphfuse.costs.moments import Moments, gram
from graphfuse.costs.sites import sites
from graphfuse.errors import DataError
from graphfuse.lockstep import Batch, Lockstep, Moment
from graphfuse.maps import Maps
from graphfuse.symmetry import Axis

Progress = Callable[[str, int, int], None]


class ActivationEvidence:
    """Likeness by activations.

    Parameters
    ----------
    problem : Problem
    lockstep : Lockstep
        Of two models, A first.
    data : sequence of Batch
    fallback : Evidence
        For axes that no activation shows.
    progress : callable, optional
        Called with ("activations", batches done, batches).
    keep : bool
        Whether the moments of an axis are asked for more than once; if not, they are dropped when they have been.
    shown_at : mapping, optional
        Axis number -> nodes that show it; by default those at which it is written (:func:`sites`).
    cost : CostConfig, optional
        Where units are looked at, and what is done to their activations.
    selection : Selection, optional
        Which inputs and tokens count.

    Notes
    -----
    Tables that would together take more memory than the two models are collected in several runs over the data.
    """

    repeats = False

    def __init__(
        self,
        problem: Problem,
        lockstep: Lockstep,
        data: Sequence[Batch],
        fallback: Evidence,
        progress: Progress | None = None,
        cost: CostConfig | None = None,
        selection: Selection | None = None,
        shown_at: Mapping[int, Sequence[str]] | None = None,
        *,
        keep: bool = False,
    ) -> None:
        self.problem = problem
        self._lockstep, self._data, self._fallback, self._progress = lockstep, data, fallback, progress
        self._kind: Activations = cost.activations if cost else "raw"
        self._selection, self._keep = selection, keep
        graph = lockstep.correspondence.graph
        known = sites(graph, cost.site if cost else "pre") if shown_at is None else shown_at
        self._sites = {axis.id: known.get(axis.id, ()) for axis in problem.axes}
        self._order = {node.name: i for i, node in enumerate(graph.captured.graph.nodes)}
        states = lockstep.states or [state_of(model) for model in lockstep.models]
        self.room = sum(x.numel() * x.element_size() for state in states for x in state.values())
        self._seen: dict[int, dict[tuple[str, int], Moments]] = {}

    def ready(self, pending: Sequence[Axis], maps: Maps) -> Sequence[Axis]:
        """Axes whose inner axes are solved and whose activations were seen; runs the models if there are none."""
        waiting = {axis.id for axis in pending}
        open_axes = [axis for axis in pending if not waiting.intersection(self.problem.inner[axis.id])]
        done = [axis for axis in open_axes if axis.id in self._seen]
        nodes = {axis.id: self._shown(axis, maps) for axis in open_axes}
        todo = [axis for axis in open_axes if nodes[axis.id]]
        while todo and not done:
            part = self._affordable(todo, nodes)
            self._collect(part, maps, {name for axis in part for name in nodes[axis.id]})
            todo = [axis for axis in todo if axis not in part]
            done = [axis for axis in part if axis.id in self._seen]
        done = done or [axis for axis in open_axes if self.problem.inner[axis.id]]
        return done or self._fallback.ready(open_axes, maps)

    def moments(self, axis: Axis, maps: Maps) -> Sequence[Moments]:
        """One entry for each node that shows the axis, of equal total variance; weights where none does.

        Blocks along the axis' own dim (queries and keys of one projection) are entries of their own. Blocks along
        other dims are one population: a class token counts as much as any patch, and what tells them apart counts too
        (on small vision transformers each of these is worth a point after calibration).
        """
        found = self._seen.get(axis.id) if self._keep else self._seen.pop(axis.id, None)
        if found:
            return [evened(entry.copied() if self._keep else entry, self._kind) for entry in found.values()]
        return [] if self.problem.inner[axis.id] else self._fallback.moments(axis, maps)

    def takes_in(self, axis: Axis, maps: Maps, spare: bool) -> bool:
        """Never."""
        return False

    def norms(self, axis: Axis) -> tuple[Tensor, Tensor] | None:
        """Root mean square activations; None for an axis that no activation shows by itself."""
        entries = [evened(entry.copied()) for entry in self._seen.get(axis.id, {}).values()]
        if not entries:
            return None
        left = torch.stack([entry.square_a + entry.mean_a.square() for entry in entries]).mean(0)
        right = torch.stack([entry.square_b + entry.mean_b.square() for entry in entries]).mean(0)
        return left.squeeze(-1).sqrt(), right.squeeze(-2).sqrt()

    def _shown(self, axis: Axis, maps: Maps) -> list[str]:
        """Nodes at which an axis can be judged, given the maps so far, in the order of the graph."""
        shared = self._lockstep.shared
        return [name for name in self._sites[axis.id] if name in shared and self._shows(name, axis, maps)]

    def _affordable(self, axes: Sequence[Axis], nodes: Mapping[int, Sequence[str]]) -> list[Axis]:
        """The first axes of the graph whose tables have room together; at least one."""
        chosen, size = list[Axis](), 0
        for axis in sorted(axes, key=lambda axis: self._order[nodes[axis.id][-1]]):
            units = self.problem.sizes_a[axis.id] * self.problem.sizes_b[axis.id]
            size += 4 * len(nodes[axis.id]) * math.prod(self.problem.lead(axis)) * units
            if chosen and size > self.room:
                break
            chosen.append(axis)
        return chosen

    def _collect(self, wanted: Sequence[Axis], maps: Maps, nodes: Collection[str]) -> None:
        """One run over the data for axes that can be judged at these nodes, given the maps so far."""
        axes = {axis.id: axis for axis in wanted}
        for i, batch in enumerate(self._data):
            keeps: Sequence[Keep] | None = None
            for moment in self._lockstep.run(batch, nodes):
                if keeps is None:
                    keeps = self._keeps(i, batch, moment)
                self._observe(moment, axes, maps, keeps)
            if self._progress is not None:
                self._progress("activations", i + 1, len(self._data))

    def _shows(self, name: str, axis: Axis, maps: Maps) -> bool:
        """Whether some part of a node's value is direct evidence for an axis."""
        layouts = [dims for dims in self._lockstep.layouts[name] if dims is not None]
        blocks = [cell.axes for dims in layouts for cell in cells((), dims, ())]
        return any(
            axis.id == other and judges(axes, position, self.problem, maps)
            for axes in blocks
            for position, other in enumerate(axes)
        )

    def _keeps(self, number: int, batch: Batch, moment: Moment) -> list[Keep]:
        """What counts of one batch."""
        if self._selection is None:
            return []
        return self._selection.keeps(number, self._lockstep.tensors(batch), moment.sizes[0])

    def _observe(self, moment: Moment, axes: Mapping[int, Axis], maps: Maps, keeps: Sequence[Keep]) -> None:
        left, right = moment.values
        if not left.is_floating_point():
            return
        pair = (_single(left).contiguous(), _single(right))
        consumed = (False,) * len(moment.dims)
        for whole in cells(pair, moment.dims, moment.sizes):
            cell = chosen(whole, keeps, self._apart(whole))
            for position, id in enumerate(cell.axes if cell is not None else ()):
                known = id in axes and moment.node in self._sites[id]
                if cell is not None and known and judges(cell.axes, position, self.problem, maps):
                    found = self._gram(cell, consumed, axes[id], position, maps)
                    if not bool(torch.isfinite(found.square_a.sum() + found.square_b.sum())):
                        raise DataError(
                            f"activations at {moment.node!r} are not finite on this data.\n"
                            "  what to do: look for NaN or infinite values in the inputs and in the weights"
                        )
                    seen = self._seen.setdefault(id, {})
                    place = moment.node, _start(whole, pair[0], _same_place(whole, cell, position))
                    seen[place] = found.merge(seen.get(place))

    def _apart(self, cell: Cell) -> set[int]:
        """Positions of the fixed axes that maps of a cell's axes depend on."""
        moving = self.problem.moving
        keys = {key for id in cell.axes if id in moving for key in self.problem.along(moving[id])}
        return {p for p, id in enumerate(cell.axes) if id in keys}

    def _gram(self, cell: Cell, consumed: Sequence[bool], axis: Axis, position: int, maps: Maps) -> Moments:
        slots, along, context = slots_for(cell, consumed, axis, position, self.problem, maps)
        left, right = cell.views
        return gram(left, carry(right, slots, {position, *context}), position, along, context)


def _same_place(whole: Cell, part: Cell, position: int) -> int:
    """Where in a cell a position of its part stands: the same occurrence of the same axis."""
    id = part.axes[position]
    return [p for p, other in enumerate(whole.axes) if other == id][part.axes[:position].count(id)]


def _start(cell: Cell, whole: Tensor, position: int) -> int:
    """Where a cell of a contiguous tensor begins along the tensor's dim that a position is part of."""
    d = cell.origin[position]
    offset = int(cell.views[0].storage_offset() - whole.storage_offset())
    return offset // math.prod(whole.shape[d + 1 :]) % whole.shape[d]


def _single(tensor: Tensor) -> Tensor:
    return tensor if tensor.element_size() >= 4 else tensor.float()
