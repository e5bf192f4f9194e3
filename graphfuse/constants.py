"""Constants looked at by value: tensors of the graph that depend on nothing but literals and lifted constants.

An all-ones mask varies along none of its dims and so pins nothing; a table of rotary frequencies varies along both and
pins both; ``arange`` is the index of its own axis.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, fx
from torch._ops import OpOverload
from torch._subclasses.fake_tensor import FakeTensor
from torch.fx.node import map_aggregate

from graphfuse.algebra import Algebra
from graphfuse.axes import SymmetryClass
from graphfuse.rulebook.op import Label

MAX_ELEMENTS = 1 << 25
UNWRITTEN = ("empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided")  # whatever it holds is not read
FILLS = ("zeros_like", "ones_like", "full_like", "new_zeros", "new_ones", "new_full", *UNWRITTEN)
UNSET = ("rand", "bernoulli", "multinomial", "normal", "dropout")


class Constants:
    """Values of the nodes that depend on constants alone, computed when asked for and kept."""

    def __init__(self, known: Mapping[str, Tensor]) -> None:
        """``known`` maps placeholder names to the values of constants and of buffers that never move."""
        self._known = known
        self._values: dict[fx.Node, Tensor | None] = {}

    def value(self, node: fx.Node) -> Any:
        """The node's value, or None when it depends on inputs or parameters, or is too large to look at."""
        if node not in self._values:
            value = self._compute(node)
            dense = isinstance(value, Tensor) and value.layout == torch.strided and not value.is_quantized
            self._values[node] = value if dense else None
        return self._values[node]

    def _compute(self, node: fx.Node) -> Tensor | None:
        if node.op == "placeholder":
            value = self._known.get(node.name)
            return None if value is None or value.is_meta or isinstance(value, FakeTensor) else value
        meta = node.meta.get("val")
        op = node.target
        if node.op != "call_function" or not isinstance(op, OpOverload) or not isinstance(meta, Tensor):
            return None
        if _elements(meta) > MAX_ELEMENTS or torch.Tag.nondeterministic_seeded in op.tags:
            return None
        name = op._schema.name.split("::")[1]
        if name in FILLS:
            return _filled(node, name, meta)
        if any(word in name for word in UNSET):
            return None
        if any(self.value(operand) is None for operand in node.all_input_nodes):
            return None
        args, kwargs = map_aggregate((node.args, node.kwargs), self._operand)  # pyright: ignore
        try:
            with torch.device("cpu"):
                return op(*args, **kwargs)
        except Exception:  # an op that does not run on the CPU has no value to look at
            return None

    def _operand(self, value: Any) -> Any:
        """An operand's value; whatever the device of the model, on the CPU."""
        if isinstance(value, torch.device):
            return torch.device("cpu")
        return self.value(value) if isinstance(value, fx.Node) else value


def makes_constants(op: OpOverload) -> bool:
    """Whether an op's value depends on no tensor, so that it needs no rule and no decomposition."""
    name = op._schema.name.split("::")[1]
    takes_tensors = any("Tensor" in str(argument.type) for argument in op._schema.arguments)
    return name in FILLS or not takes_tensors


def _elements(meta: Tensor) -> int:
    count = 1
    for size in meta.shape:
        count *= size if isinstance(size, int) else MAX_ELEMENTS
    return count


def _filled(node: fx.Node, name: str, meta: Tensor) -> Tensor | None:
    fill = 0 if "zeros" in name or name in UNWRITTEN else 1
    if "full" in name:
        fill = node.kwargs.get("fill_value", node.args[-1])
    if not isinstance(fill, int | float | bool):
        return None
    return torch.full((), fill, dtype=meta.dtype).expand(tuple(meta.shape))


def constant_label(algebra: Algebra, value: Tensor) -> Label:
    """The label of a known tensor: free along the dims where it does not vary, and along the one that it counts.

    A dim along which it repeats itself, element by element or as a whole, is a product of which one factor is free. Two
    dims of which it only tells whether their indices are equal, as the identity does, are one free axis.
    """
    for d, n in enumerate(value.shape):
        if (root := math.isqrt(n)) > 2 and root * root == n and _is_diagonal(square := _square(value, d), d, d + 1):
            label = constant_label(algebra, square)
            dims = (*label.dims[:d], label.dims[d] + label.dims[d + 1], *label.dims[d + 2 :])
            return replace(label, dims=dims, value=value)
    counted = _counts_along(value)
    pairs = itertools.combinations(range(value.dim()), 2)
    twins = next((pair for pair in pairs if _is_diagonal(value, *pair)), ())
    parts = [
        [(n, True)] if d == counted or d in twins[:1] else [] if d in twins else _parts(value, d)
        for d, n in enumerate(value.shape)
    ]
    fresh = iter(algebra.fresh(size for part in parts for size, free in part if free))
    fixed = iter([algebra.new(size, "constant") for part in parts for size, free in part if not free])
    dims = [tuple(f for _, free in part for f in next(fresh if free else fixed)) for part in parts]
    points = dims[counted] if counted is not None else None
    varying = algebra.leaves(points or ())
    if twins:
        dims[twins[1]] = dims[twins[0]]
        varying |= algebra.leaves(dims[twins[0]])
    if bool(value.any()):  # zeros are kept by every map, other equal elements only by permutations
        algebra.meet(tuple(factor for dim in dims for factor in dim), SymmetryClass.PERMUTATION)
    uniform = frozenset(leaf for leaf in algebra.layout_leaves(dims) if not algebra.reasons(leaf))
    uniform -= varying
    return Label(tuple(dims), points, value=value, is_mask=value.dtype == torch.bool, uniform=uniform)


def _square(value: Tensor, d: int) -> Tensor:
    """A dim of n x n elements as two of n."""
    root = math.isqrt(value.shape[d])
    return value.unflatten(d, (root, root))


def _is_diagonal(value: Tensor, d: int, e: int) -> bool:
    """Whether the value varies along two dims, but only by whether their indices are equal."""
    n = value.shape[d]
    if n != value.shape[e] or n < 2 or not _is_equal_along(value.diagonal(dim1=d, dim2=e), -1):
        return False
    beside = value.movedim((d, e), (-2, -1)).flatten(-2)[..., 1:].unflatten(-1, (n - 1, n + 1))[..., :-1].flatten(-2)
    return _is_equal_along(beside, -1) and not _is_equal_along(value, d)


def _parts(value: Tensor, d: int) -> list[tuple[int, bool]]:
    """The factors of a dim, each with whether the value is equal along it."""
    n = value.shape[d]
    if _is_equal_along(value, d):
        return [(n, True)]
    if value.is_floating_point() or value.dtype == torch.bool:
        for count in (k for k in range(n // 2, 1, -1) if n % k == 0):
            if _is_equal_along(value.unflatten(d, (count, n // count)), d):
                return [(count, True), (n // count, False)]
            if _is_equal_along(value.unflatten(d, (n // count, count)), d + 1):
                return [(n // count, False), (count, True)]
    return [(n, False)]


def _is_equal_along(value: Tensor, d: int) -> bool:
    return value.shape[d] > 0 and bool((value == value.narrow(d, 0, 1)).all())


def _counts_along(value: Tensor) -> int | None:
    """The dim along which integers count 0, 1, 2, ... (and do not vary along any other)."""
    if value.dtype not in (torch.int64, torch.int32):
        return None
    for d, size in enumerate(value.shape):
        if size > 1:
            steps = torch.arange(size, dtype=value.dtype).view([-1 if i == d else 1 for i in range(value.dim())])
            if bool((value == steps.to(value.device)).all()):
                return d
    return None
