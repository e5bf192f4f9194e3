"""``as_strided`` written out: memory read at other strides is a choice of positions along some dims of a tensor.

Sliding windows are made so. Dims that the strides step through as they are pass; the rest is gathered by position.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import torch
from torch import Tensor, fx

from graphfuse.frontend.inlining import Writer

aten = torch.ops.aten
MAX_POSITIONS = 1 << 20


def unstride(graph_module: fx.GraphModule) -> None:
    """Replace every ``as_strided`` of a tensor that lies in memory without gaps, in place."""
    graph = graph_module.graph
    for node in graph.find_nodes(op="call_function", target=aten.as_strided.default):
        operand, size, stride = node.args[:3]
        offset = node.args[3] if len(node.args) > 3 else node.kwargs.get("storage_offset")
        value = operand.meta.get("val") if isinstance(operand, fx.Node) else None
        numbers = [*size, *stride, *value.shape, *value.stride()] if isinstance(value, Tensor) else [None]
        if not all(isinstance(number, int) for number in numbers) or offset not in (None, 0):
            continue
        assert isinstance(value, Tensor)
        order = memory_order(value.shape, value.stride())
        if order is None or value.storage_offset() != 0 or math.prod(size) > MAX_POSITIONS:
            continue
        with graph.inserting_before(node):
            node.replace_all_uses_with(_gathered(Writer(graph_module, node), operand, order, size, stride))
        graph.erase_node(node)
    graph_module.recompile()


def memory_order(shape: Sequence[int], strides: Sequence[int]) -> list[int] | None:
    """The dims of a tensor from the outermost in memory to the innermost; None where memory has gaps or is shared."""
    order = sorted(range(len(shape)), key=lambda d: (-strides[d], shape[d] == 1))
    inner = 1
    for d in reversed(order):
        if shape[d] != 1 and strides[d] != inner:
            return None
        inner *= shape[d]
    return order


def passing(
    shape: Sequence[int], strides: Sequence[int], size: Sequence[int], stride: Sequence[int]
) -> tuple[dict[int, int], list[int]]:
    """Dims of the result that are dims of the tensor, and the places in memory of all that the other dims reach.

    A dim passes where length and stride are those of a dim along which the others never move.
    """
    found = {
        k: d for k, (n, step) in enumerate(zip(size, stride, strict=True)) for d in range(len(shape))
        if n == shape[d] > 1 and step == strides[d]
    }  # fmt: skip
    while True:
        others = [range(0, n * step, step) if step else [0] * n
                  for k, (n, step) in enumerate(zip(size, stride, strict=True)) if k not in found]  # fmt: skip
        places = [sum(place) for place in itertools.product(*others)]
        moved = {k for k, d in found.items() if any(place // strides[d] % shape[d] for place in places)}
        if not moved:
            return found, places
        found = {k: d for k, d in found.items() if k not in moved}


def _gathered(
    write: Writer, operand: fx.Node, order: Sequence[int], size: Sequence[int], stride: Sequence[int]
) -> fx.Node:
    value: Tensor = operand.meta["val"]
    shape, strides = value.shape, value.stride()
    found, places = passing(shape, strides, size, stride)
    kept = list(found.values())
    merged = [d for d in order if d not in kept]
    positions = []
    for place in places:
        position = 0
        for d in merged:
            position = position * shape[d] + place // strides[d] % shape[d]
        positions.append(position)
    lead = [shape[d] for d in kept]
    flat = write.op(aten.permute.default, operand, [*kept, *merged])
    flat = write.op(aten.reshape.default, flat, [*lead, math.prod(shape[d] for d in merged)])
    chosen = write.op(aten.index_select.default, flat, len(kept), write.constant(torch.tensor(positions)))
    others = [k for k in range(len(size)) if k not in found]
    spread = write.op(aten.reshape.default, chosen, [*lead, *(size[k] for k in others)])
    places_now = [*found, *others]
    return write.op(aten.permute.default, spread, [places_now.index(k) for k in range(len(size))])
