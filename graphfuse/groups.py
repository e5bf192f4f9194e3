"""Random elements of each axis' full symmetry class, beyond permutations, and their action on labelled tensors.

A map g of an axis acts by g where the axis is written, and by the inverse transpose of g on the other side of a
contraction (``Leaf.dual``), so that x . w stays. For rotations and signs both are the same.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from graphfuse.axes import SymmetryClass
from graphfuse.cells import Cell, cells
from graphfuse.maps import keeping_sum
from graphfuse.permutations import sizes
from graphfuse.symmetry import Axis, SymmetryGraph, TensorLabel


@dataclass(frozen=True, eq=False)
class Element:
    """A map of one axis, one member for each index of its context.

    ``value`` and its inverse transpose ``dual`` have shape (\\*context sizes, size) for scales and signs, and
    (\\*context sizes, size, size) for matrices.
    """

    axis: int
    context: tuple[int, ...]
    value: Tensor
    dual: Tensor

    @property
    def diagonal(self) -> bool:
        """Whether the map scales each unit by itself."""
        return self.value.dim() == len(self.context) + 1


ELEMENTS = 1 << 26  # of the matrices of one axis; more take minutes and gigabytes
Elements = Mapping[int, Element]
"""Axis number -> its element; an axis that is left out keeps its units."""


def sample_elements(graph: SymmetryGraph, generator: torch.Generator) -> dict[int, Element]:
    """One random element of its class for every free axis that admits more than permutations."""
    return {axis.id: _element(graph, axis, generator) for axis in graph.axes if axis.symmetry}


def is_sampled(graph: SymmetryGraph, axis: Axis) -> bool:
    """Whether the matrices of an axis are small enough to be drawn; else its scales and signs alone are."""
    members = math.prod(graph.axis(key).size for key in axis.context)
    return not axis.symmetry & SymmetryClass.CENTRED or members * axis.size**2 <= ELEMENTS


def _element(graph: SymmetryGraph, axis: Axis, generator: torch.Generator) -> Element:
    lead = [graph.axis(key).size for key in axis.context]
    count, n = math.prod(lead), axis.size
    noise = torch.randn(3, count, n, generator=generator, dtype=torch.float64)
    signs = noise[0].sign() if axis.symmetry & SymmetryClass.SIGNED else torch.ones(count, n, dtype=torch.float64)
    scales = (0.5 * noise[1]).exp() if axis.symmetry & SymmetryClass.SCALING else torch.ones_like(signs)
    if not axis.symmetry & SymmetryClass.CENTRED or not is_sampled(graph, axis):
        value = (signs * scales).view(*lead, n)
        return Element(axis.id, axis.context, value, 1 / value)
    left, right = torch.randn(2, count, n, n, generator=generator, dtype=torch.float64)
    if axis.symmetry == SymmetryClass.CENTRED:
        value = keeping_sum(torch.linalg.qr(left[:, 1:, 1:]).Q).view(*lead, n, n)
        return Element(axis.id, axis.context, value, value)
    left, right = torch.linalg.qr(left).Q, torch.linalg.qr(right).Q
    value, dual = ((left * s.unsqueeze(-2)) @ right for s in (scales, 1 / scales))
    return Element(axis.id, axis.context, value.view(*lead, n, n), dual.view(*lead, n, n))


def transformed(
    graph: SymmetryGraph, state: Mapping[str, Tensor], elements: Mapping[int, Element]
) -> dict[str, Tensor]:
    """A state with the elements applied to every parameter and moved buffer; what has none stays."""
    return {**state, **{name: apply(state[name], label, elements) for name, label in graph.tensors.items()}}


def apply(
    tensor: Tensor, label: TensorLabel, elements: Mapping[int, Element], known: Mapping[int, int] | None = None
) -> Tensor:
    """One tensor with the elements applied along its dims, block by block; gains stay.

    ``known`` has the axes' sizes where they are not those of the label.
    """
    if tensor.numel() == 0 or not label.dims or not (tensor.is_floating_point() or tensor.is_complex()):
        return tensor
    result, own = tensor.clone(), sizes(label.dims) if known is None else known
    for cell in cells((result,), label.dims, (own,)):
        (view,) = cell.views
        value = view
        for position, axis in enumerate(cell.axes):
            if axis in elements and not label.gains[cell.origin[position]]:
                value = _along(value, cell, position, elements[axis])
        if value is not view:
            view.copy_(value)
    return result


def _along(value: Tensor, cell: Cell, position: int, element: Element) -> Tensor:
    factor = (element.dual if cell.duals[position] else element.value).to(value.dtype)
    lead = [cell.along(position, key) for key in element.context]
    here = list(range(value.dim()))
    if element.diagonal:
        return torch.einsum(value, here, factor, [*lead, position], here)
    there = [value.dim() if p == position else p for p in here]
    return torch.einsum(factor, [*lead, value.dim(), position], value, here, there)
