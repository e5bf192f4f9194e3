"""How large the units of the target are at single nodes: the mean absolute activation."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import torch
from torch import Tensor

from graphfuse.axes import Layout
from graphfuse.cells import Sizes, cells
from graphfuse.costs.evidence import Problem
from graphfuse.lockstep import Batch, Lockstep

Place = tuple[str, int]
"""A node and an axis of its value."""


def magnitudes(
    problem: Problem, lockstep: Lockstep, data: Sequence[Batch], places: Collection[Place], state: Mapping[str, Tensor]
) -> dict[Place, Tensor]:
    """Mean absolute value of A's units.

    Parameters
    ----------
    problem : Problem
    lockstep : Lockstep
        Of two models, A first.
    data : sequence of Batch
    places :
        Where to look.
    state : mapping
        A's parameters, by name.

    Returns
    -------
    dict
        Place -> tensor, shape (\\*along, \\*context in A, n_A); places that no batch shows are left out.
    """
    sums: dict[Place, tuple[Tensor, int]] = {}

    def add(node: str, value: Tensor, dims: Layout, sizes: Sizes) -> None:
        for id in {id for name, id in places if name == node}:
            for part in _means(problem, value, dims, sizes, id):
                before, count = sums.get((node, id), (torch.zeros(()), 0))
                sums[node, id] = before + part, count + 1

    for slot in lockstep.correspondence.graph.captured.inputs:
        (dims,) = lockstep.layouts[slot.node]
        if slot.name in state and dims is not None:
            add(slot.node, state[slot.name], dims, problem.sizes_a)
    for batch in data:
        for moment in lockstep.run(batch, {node for node, _ in places}):
            add(moment.node, moment.values[0], moment.dims, moment.sizes[0])
    return {place: total / count for place, (total, count) in sums.items()}


def _means(problem: Problem, value: Tensor, dims: Layout, sizes: Sizes, id: int) -> list[Tensor]:
    """One tensor for each cell of a value that has the axis."""
    axis, found = problem.moving[id], []
    for cell in cells((value.detach(),), dims, (sizes,)):
        for position in (p for p, other in enumerate(cell.axes) if other == id):
            keys = (*problem.along(axis), *problem.context(axis))
            kept = [*(cell.along(position, key) for key in keys if key in cell.present), position]
            if len(kept) == len(keys) + 1:
                rest = [p for p in range(len(cell.axes)) if p not in kept]
                mean = cell.views[0].abs().double().mean(rest, keepdim=True) if rest else cell.views[0].abs().double()
                found.append(mean.permute(*kept, *rest).flatten(len(kept) - 1))
    return found
