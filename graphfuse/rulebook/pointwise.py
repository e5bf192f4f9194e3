"""The rule of elementwise ops: operands broadcast against each other, and every axis passes through."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

from graphfuse.axes import Dim, SymmetryClass, dim_size
from graphfuse.rulebook.op import Label, Op

IndexUse = Literal["fix", "keep", "compare"]


@dataclass(frozen=True)
class Elementwise:
    """What is known of an elementwise op beyond its being one.

    ``operands`` are the arguments that are values (every tensor when empty); truth values among the rest select.
    ``shared`` is the class of an axis that all operands hold, ``alone`` of one that only some hold, by the one operand
    that holds it where that matters. ``index`` says what becomes of integer values that point into an axis: they are
    numbers from here on (``fix``), the output points there too (``keep``), or all of them are only compared with each
    other (``compare``). ``gains`` are the operands of a product that may be a gain: scaling the other one scales the
    product.
    """

    operands: tuple[str, ...] = ()
    shared: SymmetryClass = SymmetryClass.PERMUTATION
    alone: SymmetryClass | Mapping[str, SymmetryClass] = SymmetryClass.PERMUTATION
    index: IndexUse = "fix"
    gains: tuple[str, ...] = ()


def elementwise(op: Op, spec: Elementwise) -> Label | list[Label]:
    """The label of an elementwise op's output: that of its operands, broadcast."""
    dims = op.algebra.broadcast([label.dims for label in op.labels()])
    values = _values(op, spec)
    tensors = [label for label in op.labels() if not any(label is value for value in values.values())]
    for position in range(-len(dims), 0):
        if dim_size(dims[position]) != 1:
            holders = [name for name, value in values.items() if _holds(value, position)]
            allowed = _class(spec, holders, len(values))
            if spec.gains and len(holders) == len(values) == 2:
                allowed = SymmetryClass.MONOMIAL
                for name in spec.gains:
                    op.factor(name, op.label(name).rank + position)
            if any(label.is_mask and _holds(label, position) for label in tensors):
                allowed &= SymmetryClass.MONOMIAL
            op.algebra.meet(dims[position], allowed)
    points = _points(op, spec, list(values.values()))
    empty = [shape is not None and 0 in shape and op.several for shape in op.shapes]
    kept = Label(dims, points)
    if spec.index == "keep" and len(values) == 1:
        (only,) = values.values()
        if isinstance(only, Label):
            kept = replace(kept, token=only.token, counts=only.counts, offsets=only.offsets, bijection=only.bijection)
    labels = [
        Label(op.algebra.fresh(shape or (), "empty")) if none else kept
        for shape, none in zip(op.shapes, empty, strict=True)
    ]
    return labels if op.several else labels[0]


def _values(op: Op, spec: Elementwise) -> dict[str, object]:
    """The operands by name; a number is an operand that holds no axis, None is no operand."""
    if spec.operands:
        return {name: op.args[name] for name in spec.operands if op.args.get(name) is not None}
    return {str(i): label for i, label in enumerate(op.labels())}


def _holds(value: object, position: int) -> bool:
    return isinstance(value, Label) and value.rank >= -position and dim_size(value.dims[position]) != 1


def _class(spec: Elementwise, holders: list[str], operands: int) -> SymmetryClass:
    if len(holders) == operands:
        return spec.shared
    if isinstance(spec.alone, SymmetryClass):
        return spec.alone
    return spec.alone.get(holders[0], SymmetryClass.PERMUTATION) if len(holders) == 1 else SymmetryClass.PERMUTATION


def _points(op: Op, spec: Elementwise, values: list[object]) -> Dim | None:
    """What the output's integer values point into."""
    points = [value.points for value in values if isinstance(value, Label) and value.points is not None]
    alike = len(points) == len(values) and len({dim_size(dim) for dim in points}) == 1
    if spec.index == "fix" or not alike:
        op.fix_values(*op.labels())
        return None
    op.algebra.unify_all((points[0], other) for other in points[1:])
    return points[0] if spec.index == "keep" else None
