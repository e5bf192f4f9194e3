"""Likeness of units by their activations on data, from streamed second moments.

Both models run side by side; at every node where an axis is written, the cross moments of A's and B's units are summed
over inputs and positions, and the activations are dropped. Source: Li et al., Convergent Learning (arXiv 1511.07543),
section 3; Ainsworth et al., Git Re-Basin (arXiv 2209.04836), section 3.1.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from graphfuse.carry import carry
from graphfuse.cells import Cell, cells
from graphfuse.config import Activations, CostConfig
from graphfuse.costs.evidence import Entry, Evidence, Problem, judges, slots_for
from graphfuse.costs.filters import Keep, Selection, chosen
from graphfuse.costs.ground import evened, evened_units
from graphfuse.costs.moments import Moments, as_family, gram, piece_of, table_shape
from graphfuse.costs.sites import sites
from graphfuse.errors import DataError
from graphfuse.lockstep import Batch, Lockstep, Moment
from graphfuse.maps import Maps
from graphfuse.scratch import Place, Scratch
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
    scratch : Scratch, optional
        Where cross moments lie while they are not added to; by default in memory.
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
        scratch: Scratch | None = None,
    ) -> None:
        self.problem = problem
        self._lockstep, self._data, self._fallback, self._progress = lockstep, data, fallback, progress
        self._kind: Activations = cost.activations if cost else "raw"
        self._selection, self._keep = selection, keep
        graph = lockstep.correspondence.graph
        known = sites(graph, cost.site if cost else "pre") if shown_at is None else shown_at
        self._sites = {axis.id: known.get(axis.id, ()) for axis in problem.axes}
        self._order = {node.name: i for i, node in enumerate(graph.captured.graph.nodes)}
        self._scratch = scratch or Scratch()
        self._seen: dict[int, dict[tuple[str, int], _Seen]] = {}

    def ready(self, pending: Sequence[Axis], maps: Maps) -> Sequence[Axis]:
        """Axes whose inner axes are solved and whose activations were seen; runs the models if there are none."""
        waiting = {axis.id for axis in pending}
        open_axes = [axis for axis in pending if not waiting.intersection(self.problem.inner[axis.id])]
        done = [axis for axis in open_axes if axis.id in self._seen]
        nodes = {axis.id: self._shown(axis, maps) for axis in open_axes}
        todo = [axis for axis in open_axes if nodes[axis.id]]
        if todo and not done:
            self._collect(todo, maps, {name for axis in todo for name in nodes[axis.id]})
            first = sorted(todo, key=lambda axis: self._order[nodes[axis.id][-1]])
            done = [axis for axis in first if axis.id in self._seen]
        done = done or [axis for axis in open_axes if self.problem.inner[axis.id]]
        return done or self._fallback.ready(open_axes, maps)

    def moments(self, axis: Axis, maps: Maps) -> list[Entry]:
        """One entry for each node that shows the axis, of equal total variance; weights where none does.

        Blocks along the axis' own dim (queries and keys of one projection) are entries of their own. Blocks along
        other dims are one population: a class token counts as much as any patch, and what tells them apart counts too
        (on small vision transformers each of these is worth a point after calibration).
        """
        found = self._seen.get(axis.id) if self._keep else self._seen.pop(axis.id, None)
        if found:
            return [partial(self._entry, seen) for seen in found.values()]
        return [] if self.problem.inner[axis.id] else self._fallback.moments(axis, maps)

    def _entry(self, seen: _Seen) -> Moments:
        cross = seen.cross()
        cross = cross.clone() if self._keep and seen.place.in_memory else cross
        return evened(replace(seen.moments, cross=cross), self._kind)

    def norms(self, axis: Axis) -> tuple[Tensor, Tensor] | None:
        """Root mean square activations; None for an axis that no activation shows by itself."""
        entries = [evened_units(seen.moments) for seen in self._seen.get(axis.id, {}).values()]
        if not entries:
            return None
        left = torch.stack([entry.square_a + entry.mean_a.square() for entry in entries]).mean(0)
        right = torch.stack([entry.square_b + entry.mean_b.square() for entry in entries]).mean(0)
        return left.squeeze(-1).sqrt(), right.squeeze(-2).sqrt()

    def _shown(self, axis: Axis, maps: Maps) -> list[str]:
        """Nodes at which an axis can be judged, given the maps so far, in the order of the graph."""
        shared = self._lockstep.shared
        return [name for name in self._sites[axis.id] if name in shared and self._shows(name, axis, maps)]

    def _collect(self, wanted: Sequence[Axis], maps: Maps, nodes: Collection[str]) -> None:
        """One run over the data for axes that can be judged at these nodes, given the maps so far."""
        axes = {axis.id: axis for axis in wanted}
        for i, batch in enumerate(self._data):
            keeps: Sequence[Keep] | None = None
            for moment in self._lockstep.run(batch, nodes):
                if keeps is None:
                    keeps = self._keeps(i, batch, moment)
                self._observe(moment, axes, maps, keeps)
                del moment  # its values would be held until the next one is there
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
                    place = moment.node, _start(whole, pair[0], _same_place(whole, cell, position))
                    self._add(place, cell, consumed, axes[id], position, maps)

    def _apart(self, cell: Cell) -> set[int]:
        """Positions of the fixed axes that maps of a cell's axes depend on."""
        moving = self.problem.moving
        keys = {key for id in cell.axes if id in moving for key in self.problem.along(moving[id])}
        return {p for p, id in enumerate(cell.axes) if id in keys}

    def _add(
        self, place: tuple[str, int], cell: Cell, consumed: Sequence[bool], axis: Axis, position: int, maps: Maps
    ) -> None:
        """Moments of a cell added to those seen at a place; what lies in the file, for some units at a time."""
        slots, along, context = slots_for(cell, consumed, axis, position, self.problem, maps)
        left, right = cell.views
        carried = carry(right, slots, {position, *context})
        seen = self._seen.setdefault(axis.id, {})
        if place not in seen:
            seen[place] = self._blank(axis, torch.promote_types(left.dtype, right.dtype), left.device)
        before, where = seen[place].moments, seen[place].place
        units = left.shape[position]
        apart = not (where.in_memory or along or context)
        step = max(1, piece_of(self.problem.largest) // where.shape[-1]) if apart else units
        parts = []
        for start in range(0, units, step):
            size = min(step, units - start)
            table = where.read(start, start + size) if size < units else where.read()
            part = before.units_of_a(start, as_family(table, len(context)))
            found = gram(left.narrow(position, start, size), carried, position, along, context, total=part)
            where.write(table, start)
            parts.append(replace(found, cross=before.cross))  # not to hold what was read
        total = Moments.joined(parts, before.cross)
        if not bool(torch.isfinite(total.square_a.sum() + total.square_b.sum())):
            raise DataError(
                f"activations at {place[0]!r} are not finite on this data.\n"
                "  what to do: look for NaN or infinite values in the inputs and in the weights"
            )
        seen[place] = replace(seen[place], moments=total)

    def _blank(self, axis: Axis, kind: torch.dtype, device: torch.device) -> _Seen:
        """No moments yet, and room for them."""
        lead, contexts = self.problem.lead(axis), len(self.problem.context(axis))
        n, m = self.problem.sizes_a[axis.id], self.problem.sizes_b[axis.id]
        place = self._scratch.place(table_shape(lead, contexts, n, m), kind, device)
        return _Seen(Moments.none(torch.empty(1, device=device).expand(*lead, n, m)), place, contexts)


@dataclass(frozen=True, eq=False)
class _Seen:
    """Moments of an axis at one place, whose cross moments lie elsewhere."""

    moments: Moments
    place: Place
    contexts: int

    def cross(self) -> Tensor:
        """The cross moments, read."""
        return as_family(self.place.read(), self.contexts)


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
