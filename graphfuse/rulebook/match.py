"""Pair the dims of an op's tensors with the names that its signature's patterns give them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from graphfuse.axes import Layout
from graphfuse.errors import RuleError
from graphfuse.rulebook.op import Label, Op
from graphfuse.rulebook.signature import ELLIPSIS, ONES, Name, Operand, Signature, Slot


@dataclass(frozen=True)
class Matched:
    """One present operand, each of its dims paired with the names that its pattern gives it."""

    argument: str
    pattern: Operand
    dims: Layout
    slots: tuple[Slot, ...]

    @property
    def lacking(self) -> frozenset[str]:
        """Names of the pattern for which the operand has no dim."""
        return self.pattern.names - {base_name(name.text) for slot in self.slots for name in slot} - {ELLIPSIS}

    @property
    def batch(self) -> Layout:
        return tuple(dim for dim, slot in zip(self.dims, self.slots, strict=True) if is_batch(slot))


Operands = Sequence[tuple[str, Any]]


def match_operands(op: Op, signature: Signature, operands: Operands, rank: int) -> list[Matched]:
    """Pair the dims of every present operand with the names of its pattern."""
    if len(signature.inputs) > len(operands):
        raise RuleError(f"{op.name} has {len(operands)} arguments, too few for its signature {signature.text!r}")
    tensors = []
    for pattern, (argument, value) in zip(signature.inputs, operands, strict=False):
        if pattern is None or (value is None and pattern.optional):
            continue
        listed = isinstance(value, list | tuple)
        if value is None or listed != pattern.several:
            wanted = "a list of tensors" if pattern.several else "a tensor"
            raise RuleError(f"{op.name}: argument {argument!r} is {type(value).__name__}, its signature wants {wanted}")
        for name, label in labels_of(argument, value):
            slots = expand(op, signature, pattern, label.rank, rank)
            tensors.append(Matched(name, pattern, label.dims, tuple(slots)))
    return tensors


def labels_of(argument: str, value: Any) -> list[tuple[str, Label]]:
    """The labels that an argument holds, by name: ``x``, or ``xs.0``, ``xs.1``, ... of a list."""
    if isinstance(value, Label):
        return [(argument, value)]
    items = value if isinstance(value, list | tuple) else ()
    return [(f"{argument}.{i}", item) for i, item in enumerate(items) if isinstance(item, Label)]


def variadic_rank(op: Op, signature: Signature, sizes: Mapping[str, str | int], operands: Operands) -> int:
    """How many dims each starred name of this signature stands for at this node."""
    for name in signature.variadic_names:
        value = op.args.get(str(sizes.get(name)))
        if isinstance(value, list | tuple):
            return len(value)
    inputs = [(pattern, label.rank) for pattern, (name, value) in zip(signature.inputs, operands, strict=False)
              if pattern is not None for _, label in labels_of(name, value)]  # fmt: skip
    outputs = [(pattern, len(shape)) for pattern, shape in zip(signature.outputs, op.shapes, strict=False)
               if pattern is not None and shape is not None]  # fmt: skip
    for pattern, found in (*inputs, *outputs):
        if ELLIPSIS not in pattern.names and any(map(is_starred, pattern.slots)):
            return max(found - len(pattern.slots) + 1, 0)
    if not signature.variadic_names:
        return 0
    raise RuleError(f"{op.name}: nothing tells how many dims a starred name of {signature.text!r} stands for")


def expand(op: Op, signature: Signature, pattern: Operand, found: int, rank: int) -> list[Slot]:
    """One slot for each of ``found`` dims: starred names numbered, ``...`` repeated, leading slots dropped."""
    slots: list[Slot] = []
    for slot in pattern.slots:
        if slot == ONES:
            slots += [()] * rank
        elif is_starred(slot):
            slots += [(Name(f"{slot[0].text}.{i}", slot[0].fixed),) for i in range(rank)]
        else:
            slots.append(slot)
    at = next((i for i, slot in enumerate(slots) if is_batch(slot)), None)
    if at is not None:
        slots[at : at + 1] = [slots[at]] * max(found - len(slots) + 1, 0)
    if len(slots) < found:
        raise RuleError(f"{op.name}: {pattern.title or 'an operand'} has {found} dims, too many for {signature.text!r}")
    return slots[len(slots) - found :]


def is_starred(slot: Slot) -> bool:
    return len(slot) == 1 and slot[0].variadic and slot[0].text != ELLIPSIS


def is_batch(slot: Slot) -> bool:
    return len(slot) == 1 and slot[0].text == ELLIPSIS


def base_name(name: str) -> str:
    return name if name == ELLIPSIS else name.partition(".")[0]
