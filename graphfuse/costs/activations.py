"""Likeness of units by their activations on data, from streamed second moments.

Both models run side by side; at every node where an axis is written, the cross moments of A's and B's units are summed
over inputs and positions, and the activations are dropped. Source: Li et al., Convergent Learning (arXiv 1511.07543),
section 3; Ainsworth et al., Git Re-Basin (arXiv 2209.04836), section 3.1.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, fx

from graphfuse.axes import Layout, walk_leaves
from graphfuse.carry import carry
from graphfuse.cells import Cell, cells
from graphfuse.correspond import node_layouts
from graphfuse.costs.evidence import Evidence, Problem, judges, slots_for
from graphfuse.costs.moments import Moments, gram
from graphfuse.errors import DataError
from graphfuse.lockstep import Batch, Lockstep, Moment
from graphfuse.maps import Maps
from graphfuse.symmetry import Axis, SymmetryGraph

Progress = Callable[[str, int, int], None]


def sites(graph: SymmetryGraph) -> dict[int, tuple[str, ...]]:
    """Nodes at which each free axis is written, in the order of the graph.

    These are the nodes that depend on data and where the axis appears (no operand that depends on data has it), the
    contractions with a parameter that write it, and the sums of two such values (residual adds).

    Returns
    -------
    dict
        Axis number -> node names; an axis that no activation has is left out.
    """
    free = {axis.id for axis in graph.axes}
    data = {slot.node for slot in graph.captured.inputs if slot.kind == "user"}
    contractions = {entry.node for entry in graph.contractions}
    present = {name: _axes_of(layouts) & free for name, layouts in node_layouts(graph).items()}
    found: dict[int, dict[str, None]] = {}
    for node in graph.captured.graph.nodes:
        operands = [operand for operand in node.all_input_nodes if operand.name in data]
        if not operands or node.op != "call_function":
            continue
        data.add(node.name)
        read = [present[operand.name] for operand in operands]
        for id in present[node.name]:
            times = sum(id in axes for axes in read)
            if times == 0 or node.name in contractions or (times > 1 and _is_sum(node)):
                found.setdefault(id, {})[node.name] = None
    return {id: tuple(names) for id, names in found.items()}


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
    shown_at : mapping, optional
        Axis number -> nodes that show it; by default those at which it is written (:func:`sites`).
    """

    repeats = False

    def __init__(
        self,
        problem: Problem,
        lockstep: Lockstep,
        data: Sequence[Batch],
        fallback: Evidence,
        progress: Progress | None = None,
        shown_at: Mapping[int, Sequence[str]] | None = None,
    ) -> None:
        self.problem = problem
        self._lockstep, self._data, self._fallback, self._progress = lockstep, data, fallback, progress
        known = sites(lockstep.correspondence.graph) if shown_at is None else shown_at
        self._sites = {axis.id: known.get(axis.id, ()) for axis in problem.axes}
        self._seen: dict[int, dict[tuple[str, int], Moments]] = {}

    def ready(self, pending: Sequence[Axis], maps: Maps) -> Sequence[Axis]:
        """Axes whose inner axes are solved and whose activations were seen; runs the models if there are none."""
        waiting = {axis.id for axis in pending}
        open_axes = [axis for axis in pending if not waiting.intersection(self.problem.inner[axis.id])]
        done = [axis for axis in open_axes if axis.id in self._seen]
        if not done:
            self._collect(open_axes, maps)
            done = [axis for axis in open_axes if axis.id in self._seen or self.problem.inner[axis.id]]
        return done or self._fallback.ready(open_axes, maps)

    def moments(self, axis: Axis, maps: Maps) -> Sequence[Moments]:
        """One entry for each node that shows the axis, of equal total variance; weights where none does.

        Blocks along the axis' own dim (queries and keys of one projection) are entries of their own. Blocks along
        other dims are one population: a class token counts as much as any patch, and what tells them apart counts too
        (on small vision transformers each of these is worth a point after calibration).
        """
        found = self._seen.get(axis.id)
        if found:
            return [_normalised(entry) for entry in found.values()]
        return [] if self.problem.inner[axis.id] else self._fallback.moments(axis, maps)

    def _collect(self, wanted: Sequence[Axis], maps: Maps) -> None:
        """One run over the data for all axes that can be judged, given the maps so far."""
        axes = {axis.id: axis for axis in wanted}
        shared = self._lockstep.correspondence.nodes[1]
        sites = {name for axis in wanted for name in self._sites[axis.id] if self._shows(name, axis, maps)}
        nodes = sites & shared.keys()
        if not nodes:
            return
        for i, batch in enumerate(self._data):
            for moment in self._lockstep.run(batch, nodes):
                self._observe(moment, axes, maps)
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

    def _observe(self, moment: Moment, axes: Mapping[int, Axis], maps: Maps) -> None:
        left, right = moment.values
        if not left.is_floating_point():
            return
        if not (bool(torch.isfinite(left).all()) and bool(torch.isfinite(right).all())):
            raise DataError(
                f"activations at {moment.node!r} are not finite on this data.\n"
                "  what to do: look for NaN or infinite values in the inputs and in the weights"
            )
        pair = (_single(left).contiguous(), _single(right))
        consumed = (False,) * len(moment.dims)
        for cell in cells(pair, moment.dims, moment.sizes):
            for position, id in enumerate(cell.axes):
                if id in axes and moment.node in self._sites[id] and judges(cell.axes, position, self.problem, maps):
                    found = self._gram(cell, consumed, axes[id], position, maps)
                    seen = self._seen.setdefault(id, {})
                    place = moment.node, _start(cell, pair[0], position)
                    seen[place] = found.merge(seen.get(place))

    def _gram(self, cell: Cell, consumed: Sequence[bool], axis: Axis, position: int, maps: Maps) -> Moments:
        slots, along, context = slots_for(cell, consumed, axis, position, self.problem, maps)
        left, right = cell.views
        return gram(left, carry(right, slots, {position, *context}), position, along, context)


def _normalised(moments: Moments) -> Moments:
    """Moments scaled so that the units of each model have mean variance 1, and so that samples count as one."""
    scales = [float(square.mean()) / moments.count for square in (moments.square_a, moments.square_b)]
    scale_a, scale_b = (scale**-0.5 if scale > 0 else 1.0 for scale in scales)
    scaled = moments.rescaled(0.0, scale_a, 0.0, scale_b)
    n = moments.count
    return Moments(1, scaled.mean_a, scaled.mean_b, scaled.square_a / n, scaled.square_b / n, scaled.cross / n)


def _start(cell: Cell, whole: Tensor, position: int) -> int:
    """Where a cell of a contiguous tensor begins along the tensor's dim that a position is part of."""
    d = cell.origin[position]
    offset = int(cell.views[0].storage_offset() - whole.storage_offset())
    return offset // math.prod(whole.shape[d + 1 :]) % whole.shape[d]


def _single(tensor: Tensor) -> Tensor:
    return tensor if tensor.element_size() >= 4 else tensor.float()


def _axes_of(layouts: Sequence[Layout | None]) -> set[int]:
    return {leaf.id for dims in layouts if dims is not None for dim in dims for leaf in walk_leaves(dim)}


def _is_sum(node: fx.Node) -> bool:
    return str(node.target).startswith(("aten.add.", "aten.add_."))
