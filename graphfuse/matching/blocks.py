"""Parameters cut into blocks with one axis along each dimension, the pieces that two models have in common.

A fused projection of queries, keys and values has three blocks, three separate ones have one each; a block's axes also
say how it is turned when one model stores a weight as [out, in] and another as [in, out].
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from graphfuse.cells import Cell, Sizes, cells
from graphfuse.symmetry import SymmetryGraph, TensorLabel


@dataclass(frozen=True, slots=True)
class Place:
    """One dimension of a block: the axis along it, its size, and whether readers contract it away."""

    axis: int
    size: int
    consumed: bool


@dataclass(frozen=True, slots=True)
class Block:
    """A block of one parameter or moved buffer; places of size 1 are left out."""

    tensor: str
    index: int
    places: tuple[Place, ...]


def blocks_of(label: TensorLabel) -> tuple[Block, ...]:
    """The blocks of a tensor, in row-major order."""
    found = []
    for index, (_, cell) in enumerate(_walk(torch.empty(label.shape, device="meta"), label, {})):
        sizes = cell.views[0].shape
        places = [
            Place(axis, size, label.consumed[d])
            for axis, size, d in zip(cell.axes, sizes, cell.origin, strict=True)
            if size > 1
        ]
        found.append(Block(label.name, index, tuple(places)))
    return tuple(found)


def views_of(tensor: Tensor, label: TensorLabel, sizes: Sizes | None = None) -> list[Tensor]:
    """Views of a tensor's blocks, with the dimensions of their places, that alias it."""
    return [view for view, _ in _walk(tensor, label, sizes or {})]


def _walk(tensor: Tensor, label: TensorLabel, sizes: Sizes) -> Iterator[tuple[Tensor, Cell]]:
    for cell in cells((tensor,), label.dims, (sizes,)):
        (view,) = cell.views
        yield view.squeeze(), cell


def numbered(label: TensorLabel, first: int) -> Tensor:
    """A tensor of the parameter's shape that holds the number of its block at each element, counted from ``first``."""
    ids = torch.zeros(label.shape, dtype=torch.int32)
    for i, cell in enumerate(cells((ids,), label.dims)):
        cell.views[0].fill_(first + i)
    return ids


def all_blocks(graph: SymmetryGraph) -> Mapping[str, tuple[Block, ...]]:
    """The blocks of every tensor of a model."""
    return {name: blocks_of(label) for name, label in graph.tensors.items()}
