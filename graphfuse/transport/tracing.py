"""Follow elements through an op that only moves them, by running it on numbers that say where each came from."""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx

from graphfuse.axes import Layout, Leaf, dim_size
from graphfuse.cells import cells
from graphfuse.transport.wires import places, relabelled

MOVES = frozenset({
    "alias", "cat", "chunk", "clone", "contiguous", "detach", "expand", "flatten", "flip", "lift_fresh_copy",
    "movedim", "narrow", "permute", "repeat", "repeat_interleave", "reshape", "roll", "select", "slice", "split",
    "split_with_sizes", "squeeze", "stack", "swapaxes", "t", "transpose", "unbind", "unflatten", "unsafe_chunk",
    "unsafe_split", "unsafe_view", "unsqueeze", "view",
})  # fmt: skip
"""Ops of ATen, without leading underscores, that move elements and compute nothing."""


def moves(node: fx.Node) -> bool:
    """Whether a node only moves elements."""
    return node.target is operator.getitem or op_name(node) in MOVES


def op_name(node: fx.Node) -> str:
    """``aten.add_.Tensor`` as ``add``."""
    words = str(node.target).split(".")
    return words[1].strip("_") if len(words) > 1 else str(node.target)


def moved(
    node: fx.Node, operands: Mapping[str, tuple[Layout, Sequence[int]]], outputs: Sequence[Layout | None], axis: int
) -> list[set[int]] | None:
    """Where the occurrences of an axis in a node's outputs come from.

    Parameters
    ----------
    node :
        Its op moves elements only.
    operands :
        By name, each operand's label and one number for each occurrence of the axis in it, distinct over all operands.
    outputs :
        The labels of the outputs.

    Returns
    -------
    list of sets, or None
        For each occurrence of the axis in the outputs, in order, the numbers of those that it is made of. None when
        that cannot be told: rows and columns are one axis, or the op does not run on integers.
    """
    layouts = [*(layout for layout, _ in operands.values()), *(layout for layout in outputs if layout is not None)]
    if any(len({d for d, leaf in places(layout) if leaf.id == axis}) > 1 for layout in layouts) or not moves(node):
        return None
    try:
        values = {name: _filled(layout, numbers, axis) for name, (layout, numbers) in operands.items()}
        args: Any = fx.map_arg(node.args, lambda operand: values[operand.name])
        kwargs: Any = fx.map_arg(node.kwargs, lambda operand: values[operand.name])
        assert callable(node.target)
        result: Any = node.target(*args, **kwargs)
        parts = zip(outputs, result if isinstance(result, list | tuple) else [result], strict=True)
        return [there for layout, value in parts if layout is not None for there in _read(layout, value, axis)]
    except (KeyError, ValueError, RuntimeError, TypeError, NotImplementedError):
        return None


def _marked(layout: Layout, axis: int) -> tuple[Layout, dict[int, int]]:
    """A label in which each occurrence of the axis has a number of its own, and these numbers -> 0, 1, ..."""
    every = places(layout)
    start = 1 + max((leaf.id for _, leaf in every), default=0)
    marks: dict[int, int] = {}
    numbers = []
    for _, leaf in every:
        if leaf.id == axis:
            marks[start + len(marks)] = len(marks)
        numbers.append(start + len(marks) - 1 if leaf.id == axis else -1)
    return relabelled(layout, numbers), marks


def _filled(layout: Layout, numbers: Sequence[int], axis: int) -> Tensor:
    value = torch.full([dim_size(dim) for dim in layout], -1)
    marked, marks = _marked(layout, axis)
    for cell in cells((value,), marked):
        for id in cell.axes:
            if id in marks:
                cell.views[0].fill_(numbers[marks[id]])
    return value


def _read(layout: Layout, value: Tensor, axis: int) -> list[set[int]]:
    marked, marks = _marked(layout, axis)
    found: list[set[int]] = [set() for _ in marks]
    for cell in cells((value,), marked):
        for id in cell.axes:
            if id in marks:
                found[marks[id]] |= set(cell.views[0].unique().tolist())
    return found


def same_structure(a: Layout, b: Layout, axis: int) -> bool:
    """Whether an axis occurs in the same way in two labels, so that its occurrences correspond in order."""

    def around(layout: Layout) -> list[tuple[object, ...]]:
        return [dim for dim in layout if any(isinstance(x, Leaf) and x.id == axis for _, x in places((dim,)))]

    return around(a) == around(b)
