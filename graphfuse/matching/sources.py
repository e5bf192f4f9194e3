"""What every element of a value is made of, as tensors of small numbers, and what an op does to them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx
from torch._ops import OpOverload

from graphfuse.matching.blocks import Block

MOVING = frozenset(
    [
        "clone",
        "contiguous",
        "cat",
        "stack",
        "_to_copy",
        "to",
        "dropout",
        "reshape",
        "flatten",
        "repeat",
        "tile",
        "roll",
        "flip",
        "_unsafe_view",
        "pixel_shuffle",
        "pixel_unshuffle",
        "lift_fresh_copy",
        "repeat_interleave",
        "hstack",
        "vstack",
        "alias",
        "detach",
        "channel_shuffle",
        "type_as",
    ]
)
"""Ops that only move elements, besides those that return views of their operand."""

SUMS, PRODUCTS, JOINS = ("add", "sub", "rsub"), ("mul", "div"), ("cat", "stack")
TABLES = ("embedding", "index", "index_select", "gather")
LINEAR = ("neg",)
NOTHING = 0
"""The source of constants."""


@dataclass(frozen=True)
class Source:
    """What an element is made of: uses of parameters, and blocks of parameters that no data has met yet."""

    uses: frozenset[int] = frozenset()
    blocks: frozenset[Block] = frozenset()


@dataclass(frozen=True, eq=False)
class Value:
    """The number of the source of each element; a tensor of stride 0 where all have one."""

    ids: Tensor

    @property
    def known(self) -> list[int]:
        if all(stride == 0 or size == 1 for stride, size in zip(self.ids.stride(), self.ids.shape, strict=True)):
            return [int(self.ids.flatten()[0])] if self.ids.numel() else []
        return torch.unique(self.ids).tolist()


def op_name(node: fx.Node) -> str:
    """An op's plain name: ``add`` for ``aten.add.Tensor``."""
    target = node.target
    return target._schema.name.split("::")[1].rstrip("_") if isinstance(target, OpOverload) else str(target)


def places_of(node: fx.Node, kind: str, x: Tensor, weight: Tensor) -> tuple[tuple[int, int], tuple[int, int]] | None:
    """(columns, rows) of the weight and (columns of the input, rows of the output); None where they are not plain."""
    if kind == "linear":
        return (1, 0), (x.dim() - 1, -1)
    if kind == "matmul" and weight.dim() == 2:
        return (0, 1), (x.dim() - 1, -1)
    plain = (
        kind == "convolution"
        and weight.dim() > 1
        and x.shape[1] == weight.shape[1]
        and "transpose" not in str(node.target)
    )
    return ((1, 0), (1, 1)) if plain else None


def along(numbers: Tensor, shape: Sequence[int], dim: int) -> Tensor:
    lead = [1] * len(shape)
    lead[dim] = len(numbers)
    return numbers.view(lead).expand(*shape)


def flat(number: int, like: Any) -> Value:
    shape = like.shape if isinstance(like, Tensor) else like if isinstance(like, tuple | list) else ()
    return Value(torch.tensor(number, dtype=torch.int32).expand(tuple(shape)))


def plain(values: Iterable[Any]) -> Iterable[Value]:
    for value in values:
        if isinstance(value, list):
            yield from plain(value)
        elif value is not None:
            yield value


def ids_of(value: Any) -> Any:
    return [ids_of(part) for part in value] if isinstance(value, list) else value.ids


def wrapped(value: Any) -> Any:
    return [Value(part) for part in value] if isinstance(value, list | tuple) else Value(value)


def in_order(blocks: Iterable[Block]) -> list[Block]:
    return sorted(blocks, key=lambda block: (block.tensor, block.index))


def is_pointwise(node: fx.Node) -> bool:
    return isinstance(node.target, OpOverload) and torch.Tag.pointwise in node.target.tags


def is_float(node: fx.Node) -> bool:
    value = node.meta.get("val")
    value = value[0] if isinstance(value, list | tuple) and value else value
    return isinstance(value, Tensor) and (value.is_floating_point() or value.is_complex())


def is_number(node: fx.Node) -> bool:
    return not is_float(node)
