"""A contraction of an activation with a weight, seen as a linear regression: rows of inputs, rows of outputs."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch.nn.functional as F
from torch import Tensor, fx

from graphfuse.symmetry import Contraction

PIECE = 2**24
"""At most this many elements of unfolded inputs exist at a time."""


class Regression(Protocol):
    """How a node's tensors are the rows of ``groups`` independent regressions.

    Outputs become (groups, rows, outcomes), inputs (groups, rows, features), and a solution (groups, features,
    outcomes) becomes a tensor of the weight's shape.
    """

    def outputs(self, y: Tensor) -> Tensor:
        """The node's output as rows, shape (groups, rows, outcomes)."""
        ...

    def pieces(self, x: Tensor, *ys: Tensor) -> Iterator[tuple[Tensor, ...]]:
        """Rows of the operand and of outputs, in the order of :meth:`outputs`, a bounded number at a time."""
        ...

    def weight(self, solution: Tensor) -> Tensor:
        """A solution in the shape of the weight."""
        ...


@dataclass(frozen=True)
class Linear:
    """``[..., features] x [outcomes, features]``, or the weight the other way round when it is ``transposed``."""

    transposed: bool

    def outputs(self, y: Tensor) -> Tensor:
        return y.reshape(1, -1, y.shape[-1])

    def pieces(self, x: Tensor, *ys: Tensor) -> Iterator[tuple[Tensor, ...]]:
        yield x.reshape(1, -1, x.shape[-1]), *map(self.outputs, ys)

    def weight(self, solution: Tensor) -> Tensor:
        return solution[0] if self.transposed else solution[0].mT


@dataclass(frozen=True)
class Convolution:
    """Windows of the operand are the rows; a transposed convolution has windows of its operand spread out by zeros.

    ``before`` and ``after`` are the zeros added at both ends of each spatial dim (negative: cut off).
    """

    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    before: tuple[int, ...]
    after: tuple[int, ...]
    groups: int
    transposed: bool

    def outputs(self, y: Tensor) -> Tensor:
        y = self._batched(y).movedim(1, -1)
        return y.reshape(-1, self.groups, y.shape[-1] // self.groups).transpose(0, 1)

    def pieces(self, x: Tensor, *ys: Tensor) -> Iterator[tuple[Tensor, ...]]:
        x, ys = self._batched(x), tuple(map(self._batched, ys))
        many = max(1, PIECE // (x.shape[1] * ys[0][0, 0].numel() * math.prod(self.kernel)))
        for some, *outs in zip(x.split(many), *(y.split(many) for y in ys), strict=True):
            yield self._windows(some), *map(self.outputs, outs)

    def weight(self, solution: Tensor) -> Tensor:
        groups, features, outcomes = solution.shape
        inner = features // math.prod(self.kernel)
        kernel = solution.reshape(groups, inner, *self.kernel, outcomes).movedim(-1, 1)
        if not self.transposed:
            return kernel.flatten(0, 1)
        return kernel.transpose(1, 2).flatten(0, 1).flip(tuple(range(2, 2 + len(self.kernel))))

    def _batched(self, value: Tensor) -> Tensor:
        return value if value.dim() == 2 + len(self.kernel) else value.unsqueeze(0)

    def _windows(self, x: Tensor) -> Tensor:
        """Shape (groups, rows, channels of a group * kernel)."""
        if self.transposed:
            x = _spread(x, self.stride)
        ends = [end for pair in zip(self.before[::-1], self.after[::-1], strict=True) for end in pair]
        x, n = F.pad(x, ends), len(self.kernel)
        for d, (size, step, gap) in enumerate(zip(self.kernel, self.stride, self.dilation, strict=True), start=2):
            windows = x.unfold(d, (size - 1) * gap + 1, 1 if self.transposed else step)
            x = windows[..., ::gap]
        x = x.unflatten(1, (self.groups, -1)).movedim(1, 0)  # groups, batch, channels, *positions, *kernel
        x = x.permute(0, 1, *range(3, 3 + n), 2, *range(3 + n, 3 + 2 * n))
        return x.reshape(self.groups, math.prod(x.shape[1 : 2 + n]), -1)


def regression_of(node: fx.Node, contraction: Contraction) -> Regression | None:
    """The regression that a node is; None when it is none (a batch of weights, a scaled sum)."""
    given = _arguments(node)
    kernel = _shape(given.get("weight", given.get("other", given.get("mat2"))))
    if contraction.kind == "convolution":
        return _convolution(given, kernel)
    scaled = given.get("alpha", 1) != 1 or given.get("beta", 1) != 1
    shift = given.get("bias", given.get("self") if contraction.bias else None)
    if len(kernel) != 2 or scaled or (contraction.bias is not None and len(_shape(shift)) != 1):
        return None
    return Linear(transposed=contraction.kind == "matmul")


def _convolution(given: dict[str, Any], weight: tuple[int, ...]) -> Convolution:
    kernel, n = weight[2:], len(weight) - 2
    stride, dilation = _each(given["stride"], n), _each(given["dilation"], n)
    transposed = bool(given.get("transposed", "output_padding" in given))
    reach = [gap * (size - 1) for size, gap in zip(kernel, dilation, strict=True)]
    padding = given["padding"]
    if isinstance(padding, str):
        before = [x // 2 if padding == "same" else 0 for x in reach]
        after = [x - x // 2 if padding == "same" else 0 for x in reach]
    else:
        before = list(_each(padding, n))
        after = list(before)
    if transposed:
        extra = _each(given.get("output_padding", 0), n)
        after = [x - p + e for x, p, e in zip(reach, after, extra, strict=True)]
        before = [x - p for x, p in zip(reach, before, strict=True)]
    return Convolution(kernel, stride, dilation, tuple(before), tuple(after), int(given["groups"]), transposed)


def _spread(x: Tensor, stride: Sequence[int]) -> Tensor:
    """Put ``stride - 1`` zeros between neighbours along each spatial dim."""
    sizes = [(length - 1) * step + 1 for length, step in zip(x.shape[2:], stride, strict=True)]
    spread = x.new_zeros(*x.shape[:2], *sizes)
    spread[(slice(None), slice(None), *(slice(None, None, step) for step in stride))] = x
    return spread


def _arguments(node: fx.Node) -> dict[str, Any]:
    """The node's arguments by the names of its schema, defaults filled in."""
    schema = node.target._schema.arguments  # pyright: ignore[reportFunctionMemberAccess, reportAttributeAccessIssue]
    given = {spec.name: node.kwargs.get(spec.name, spec.default_value) for spec in schema}
    return given | {spec.name: value for spec, value in zip(schema, node.args, strict=False)}


def _shape(value: Any) -> tuple[int, ...]:
    return tuple(value.meta["val"].shape) if isinstance(value, fx.Node) else ()


def _each(value: Any, n: int) -> tuple[int, ...]:
    values = tuple(value) if isinstance(value, Sequence) else (value,)
    return values * n if len(values) == 1 else values
