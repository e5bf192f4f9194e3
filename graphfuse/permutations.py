"""Random elements of a model's permutation group, and their action on labelled tensors."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from graphfuse.axes import Layout, walk_leaves
from graphfuse.cells import Cell, cells
from graphfuse.symmetry import Axis, SymmetryGraph, TensorLabel

Permutations = Mapping[int, Tensor]
"""Axis number -> LongTensor of shape (\\*context sizes, size): for each context, the old index of each new unit."""


def sample(graph: SymmetryGraph, generator: torch.Generator) -> dict[int, Tensor]:
    """One random permutation for every free axis, and for nested axes one in each context."""
    return {axis.id: _random(graph, axis, generator) for axis in graph.axes}


def _random(graph: SymmetryGraph, axis: Axis, generator: torch.Generator) -> Tensor:
    shape = [graph.axis(key).size for key in axis.context]
    rows = torch.rand(math.prod(shape), axis.size, generator=generator, dtype=torch.float64).argsort(dim=1)
    return rows.view(*shape, axis.size)


def permuted(graph: SymmetryGraph, state: Mapping[str, Tensor], maps: Permutations) -> dict[str, Tensor]:
    """A state with the maps applied to every parameter and moved buffer; what has no map stays."""
    result = dict(state)
    for name, label in graph.tensors.items():
        result[name] = permute(state[name], label, maps, {axis: graph.axis(axis).context for axis in maps})
    return result


def permute(tensor: Tensor, label: TensorLabel, maps: Permutations, contexts: Mapping[int, tuple[int, ...]]) -> Tensor:
    """One tensor with the maps applied along its dims: ``new[i, j, ...] = old[p(i), q(j), ...]``, block by block."""
    if tensor.numel() == 0 or not label.dims:
        return tensor
    result = tensor.clone()
    own = sizes(label.dims)
    for cell in cells((result, tensor), label.dims, (own, own)):
        target, source = cell.views
        target.copy_(_gather(source, cell, maps, contexts))
    return result


def sizes(layout: Layout) -> dict[int, int]:
    """Axis number -> size, for the axes of a layout."""
    return {leaf.id: leaf.size for dim in layout for leaf in walk_leaves(dim)}


def _gather(source: Tensor, cell: Cell, maps: Permutations, contexts: Mapping[int, tuple[int, ...]]) -> Tensor:
    moved = [d for d, axis in enumerate(cell.axes) if axis in maps]
    if not any(contexts[cell.axes[d]] for d in moved):
        for d in moved:
            source = source.index_select(d, maps[cell.axes[d]])
        return source
    rank = source.dim()
    index = []
    for d, axis in enumerate(cell.axes):
        along = [cell.along(d, key) for key in contexts.get(axis, ())] if axis in maps else []
        values = maps[axis] if axis in maps else torch.arange(source.shape[d])
        order = sorted(range(len(along) + 1), key=lambda i, along=along, d=d: [*along, d][i])
        shape = [1] * rank
        for place in [*along, d]:
            shape[place] = source.shape[place]
        index.append(values.permute(order).reshape(shape))
    return source[tuple(index)]
