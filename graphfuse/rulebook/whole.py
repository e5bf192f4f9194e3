"""Windows as long as what they move over: such a dim is summed over like a channel, its positions do not matter."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from graphfuse.axes import SymmetryClass
from graphfuse.rulebook.match import is_starred, match_operands, variadic_rank
from graphfuse.rulebook.op import Op
from graphfuse.rulebook.relate import Relation, plain_sizes
from graphfuse.rulebook.signature import Name, Operand, Slot


def summed_over(op: Op, relation: Relation, windows: Mapping[str, str]) -> Relation:
    """The relation at a node: starred names are written out dim by dim where a window covers one of the dims whole.

    Parameters
    ----------
    windows : mapping
        A starred name of the signature to that of the windows that move over it. A dim is covered when both are equally
        long, the argument ``padding`` adds nothing to it, and one position is left.
    """
    if 1 not in op.shape:
        return relation
    operands = list(op.args.items())
    signature = relation.signature
    rank = variadic_rank(op, signature, relation.sizes, operands)
    tensors = match_operands(op, signature, operands, rank)
    known = dict(plain_sizes((tensor.dims, tensor.slots) for tensor in tensors))
    left = op.shape[len(op.shape) - rank :]
    for name, window in windows.items():
        covered = [
            known.get(f"{name}.{d}", 0) == known.get(f"{window}.{d}") != 1 and left[d] == 1 and _unpadded(op, d)
            for d in range(rank)
        ]
        if any(covered):
            signature = replace(
                signature,
                inputs=tuple(_written_out(operand, (name, window), covered) for operand in signature.inputs),
                outputs=tuple(_written_out(operand, (), covered) for operand in signature.outputs),
            )
    if signature is relation.signature:
        return relation
    every = dict.fromkeys(map(_covered, range(rank)), SymmetryClass.LINEAR)
    return replace(relation, signature=signature, classes={**every, **relation.classes})


def _unpadded(op: Op, d: int) -> bool:
    padding = op.get("padding", 0)
    if isinstance(padding, Sequence) and not isinstance(padding, str):
        padding = padding[d] if len(padding) > 1 else padding[0]
    return padding in (0, "valid")


def _covered(d: int) -> str:
    return f"covered{d}"


def _written_out(operand: Operand | None, summed: Sequence[str], covered: Sequence[bool]) -> Operand | None:
    """One name for each dim of a starred one; a covered dim has one name in all ``summed``, and none in a result."""
    if operand is None:
        return None
    slots: list[Slot] = []
    for slot in operand.slots:
        if not is_starred(slot):
            slots.append(slot)
            continue
        (star,) = slot
        for d, whole in enumerate(covered):
            name = Name(_covered(d)) if whole else Name(f"{star.text}{d}", star.fixed)
            slots.append(() if whole and star.text not in summed else (name,))
    return replace(operand, slots=tuple(slots))
