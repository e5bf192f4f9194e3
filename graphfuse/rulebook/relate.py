"""Apply a signature to one graph node: what it unifies, fixes, contracts and mixes, and the labels that follow."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from graphfuse.algebra import Mismatch, broadcast_pairs
from graphfuse.axes import Dim, Layout, SymmetryClass, dim_size, dualised
from graphfuse.errors import RuleError
from graphfuse.rulebook.match import (
    Matched,
    Operands,
    base_name,
    expand,
    is_batch,
    labels_of,
    match_operands,
    variadic_rank,
)
from graphfuse.rulebook.op import Label, Op
from graphfuse.rulebook.signature import ELLIPSIS, Operand, Signature, Slot


@dataclass(frozen=True)
class Relation:
    """A signature with what cannot be written in it.

    ``sizes`` maps a name to an integer or to the argument that holds its size (a list for a variadic name);
    ``mixes`` are names along which the op mixes elements together while every other axis passes through;
    ``classes`` are the largest symmetry classes by name (a name that is not listed admits permutations). ``gains`` are
    arguments that multiply the result elementwise, and stay when the other operands are scaled.
    """

    signature: Signature
    sizes: Mapping[str, str | int] = field(default_factory=dict)
    mixes: tuple[str, ...] = ()
    classes: Mapping[str, SymmetryClass] = field(default_factory=dict)
    gains: tuple[str, ...] = ()


def relate(op: Op, relation: Relation, operands: Operands | None = None) -> Label | list[Label]:
    """The labels of an op's outputs; the dims of its inputs are related by the way.

    Parameters
    ----------
    op : Op
        The node.
    relation : Relation
        What its entry says.
    operands : sequence of (argument name, label or other value), optional
        The operands in the order of the signature; the schema's arguments when left out.

    Raises
    ------
    RuleError
        When the node's shapes do not fit the signature.
    """
    signature = relation.signature
    operands = list(op.args.items()) if operands is None else operands
    rank = variadic_rank(op, signature, relation.sizes, operands)
    tensors = match_operands(op, signature, operands, rank)
    op.fix_values(*(label for name, value in operands for _, label in labels_of(name, value)))
    batch, pairs = broadcast_pairs([tensor.batch for tensor in tensors])
    found = _opposed(op, signature, _bind(op, tensors, _known_sizes(op, relation, tensors, rank)))
    op.algebra.unify_all(pairs + [pair for dims in found.values() for pair in _pairs(dims)])
    named = {name: _widest(dims) for name, dims in found.items()}
    _restrict(op, relation, named, batch, _broadcast_names(tensors, found))
    op.together((*batch, *named.values()))
    _consume(op, signature, tensors, named)
    for tensor in tensors:
        if tensor.argument in relation.gains:
            for d in range(len(tensor.dims)):
                op.factor(tensor.argument, d)
    labels = [_output(op, signature, k, named, batch, rank) for k in range(len(op.shapes))]
    return labels if op.several else labels[0]


def name_sizes(op: Op, relation: Relation) -> dict[str, set[int]]:
    """Sizes of the names that stand alone for a dim of an input; all dims of a variadic name together."""
    signature, operands = relation.signature, list(op.args.items())
    rank = variadic_rank(op, signature, relation.sizes, operands)
    tensors = match_operands(op, signature, operands, rank)
    sizes: dict[str, set[int]] = {}
    for name, size in plain_sizes((tensor.dims, tensor.slots) for tensor in tensors):
        sizes.setdefault(base_name(name), set()).add(size)
    return sizes


# -------------------------------------------------------------------- names against dims


def plain_sizes(tensors: Iterable[tuple[Layout, tuple[Slot, ...]]]) -> list[tuple[str, int]]:
    """The sizes of dims that one name stands for."""
    return [
        (slot[0].text, dim_size(dim))
        for dims, slots in tensors
        for dim, slot in zip(dims, slots, strict=True)
        if len(slot) == 1 and not is_batch(slot)
    ]


def _known_sizes(op: Op, relation: Relation, tensors: Sequence[Matched], rank: int) -> dict[str, int]:
    """Sizes of names: from dims that they name alone, in inputs and outputs, and from the entry's ``sizes``."""
    known: dict[str, int] = {}
    for name, size in plain_sizes((tensor.dims, tensor.slots) for tensor in tensors):
        known[name] = max(size, known.get(name, 1))
    for pattern, shape in zip(relation.signature.outputs, op.shapes, strict=False):
        if pattern is not None and shape is not None:
            slots = expand(op, relation.signature, pattern, len(shape), rank)
            for slot, size in zip(slots, shape, strict=True):
                if len(slot) == 1:
                    known.setdefault(slot[0].text, size)
    for name, source in relation.sizes.items():
        value = source if isinstance(source, int) else op.args.get(source)
        if isinstance(value, list | tuple):
            known.update({f"{name}.{i}": size for i, size in enumerate(value) if isinstance(size, int)})
        elif isinstance(value, int):
            known[name] = value
        else:
            raise RuleError(f"{op.name}: argument {source!r} is {value!r}, not the size of {name!r}")
    return known


def _bind(op: Op, tensors: Sequence[Matched], known: Mapping[str, int]) -> dict[str, list[Dim]]:
    """Every dim that a name stands for, products taken apart; names in order of appearance, outermost first."""
    found: dict[str, list[Dim]] = {}
    for tensor in tensors:
        for dim, slot in zip(tensor.dims, tensor.slots, strict=True):
            if not is_batch(slot):
                for name, part in zip(slot, _take_apart(op, dim, slot, known), strict=True):
                    found.setdefault(name.text, []).append(part)
    return found


def _take_apart(op: Op, dim: Dim, slot: Slot, known: Mapping[str, int]) -> list[Dim]:
    if len(slot) <= 1:
        return [dim] * len(slot)
    sizes = _factor_sizes(op, slot, known, dim_size(dim))
    parts: list[Dim] = []
    rest = dim
    try:
        for size in sizes[:-1]:
            part, rest = op.algebra.take(rest, size)
            parts.append(part)
    except Mismatch:
        op.algebra.fix(dim, "mismatch")
        return [op.algebra.new(size, "mismatch") for size in sizes]
    return [*parts, rest]


def _factor_sizes(op: Op, slot: Slot, known: Mapping[str, int], total: int) -> list[int]:
    """Sizes of the factors of a product; one may be deduced from the rest."""
    unknown = [name.text for name in slot if name.text not in known]
    product = math.prod(known[name.text] for name in slot if name.text in known)
    words = " ".join(name.text for name in slot)
    if len(unknown) > 1:
        raise RuleError(f"{op.name}: the sizes of {', '.join(unknown)} in ({words}) are unknown; give them in 'sizes'")
    if product == 0 or total % product or (not unknown and total != product):
        raise RuleError(f"{op.name}: a dim of size {total} is no product ({words}) with sizes {dict(known)}")
    return [known.get(name.text, total // product) for name in slot]


def _opposed(op: Op, signature: Signature, found: Mapping[str, list[Dim]]) -> dict[str, list[Dim]]:
    """What is contracted away has opposite variance on the two sides; of three sides, only permutations are claimed."""
    opposed: dict[str, list[Dim]] = {}
    for name, dims in found.items():
        if base_name(name) in signature.output_names:
            opposed[name] = dims
            continue
        if len(dims) > 2:
            op.algebra.meet(_widest(dims), SymmetryClass.PERMUTATION)
        opposed[name] = [dims[0], *map(dualised, dims[1:])]
    return opposed


def _pairs(dims: Sequence[Dim]) -> list[tuple[Dim, Dim]]:
    first = _widest(dims)
    if dim_size(first) == 1:
        return []
    return [(first, other) for other in dims if other is not first and dim_size(other) != 1]


def _widest(dims: Sequence[Dim]) -> Dim:
    return max(dims, key=dim_size)


# -------------------------------------------------------------------- what the op does to them


def _broadcast_names(tensors: Sequence[Matched], found: Mapping[str, Sequence[Dim]]) -> frozenset[str]:
    """Names that some operand has by its pattern but is constant along: it would not follow a map other than moves."""
    uneven = {name for tensor in tensors for name in tensor.lacking}
    uneven |= {base_name(name) for name, dims in found.items() if len({dim_size(dim) for dim in dims}) > 1}
    batched = [tensor.batch for tensor in tensors if ELLIPSIS in tensor.pattern.names]
    if len({tuple(map(dim_size, batch)) for batch in batched}) > 1:
        uneven.add(ELLIPSIS)
    return frozenset(uneven)


def _restrict(op: Op, relation: Relation, named: Mapping[str, Dim], batch: Layout, uneven: frozenset[str]) -> None:
    """Fix positional names, lower symmetry classes, take contexts away from what passes a mix."""
    fixed, mixes = relation.signature.fixed_names, relation.mixes
    everything = [(base_name(name), dim) for name, dim in named.items()] + [(ELLIPSIS, dim) for dim in batch]
    passing = [dim for name, dim in everything if name not in mixes]
    for name, dim in everything:
        allowed = relation.classes.get(name, SymmetryClass.PERMUTATION)
        op.algebra.meet(dim, SymmetryClass.PERMUTATION if name in uneven else allowed)
        if name in mixes:
            op.algebra.separate(passing, dim)
        if name in fixed:
            op.algebra.separate([other for _, other in everything if other is not dim], dim)
            op.algebra.fix(dim, "spatial")


def _consume(op: Op, signature: Signature, tensors: Sequence[Matched], named: Mapping[str, Dim]) -> None:
    """Record the dims that are summed away against another operand."""
    holders: dict[str, int] = {}
    for tensor in tensors:
        for text in {name.text for slot in tensor.slots for name in slot}:
            holders[text] = holders.get(text, 0) + 1
    summed = {text for text, count in holders.items() if count > 1 and base_name(text) not in signature.output_names}
    for tensor in tensors:
        for d, slot in enumerate(tensor.slots):
            names = [name.text for name in slot if len(slot) == 1 or dim_size(named[name.text]) > 1]
            if summed.intersection(names):
                op.consume(tensor.argument, d)


def _output(op: Op, signature: Signature, k: int, named: dict[str, Dim], batch: Layout, rank: int) -> Label:
    """The label of output ``k``; an axis that no input has is made, fixed, and named for the outputs after it."""
    shape = op.shapes[k]
    pattern = signature.outputs[k] if k < len(signature.outputs) else None
    if shape is None:
        return Label(())
    if pattern is None:
        if 0 not in shape:  # a label would have to claim something about values of which nothing is said
            raise RuleError(f"{op.name}: nothing is said of output {k}, of shape {shape}, in {signature.text!r}")
        return Label(op.algebra.fresh(shape, "empty"))
    absent = signature.input_names - {base_name(name) for name in named}
    kept = [slot for slot in pattern.slots if len(slot) != 1 or slot[0].variadic or slot[0].text not in absent]
    counts = [len(batch) if is_batch(slot) else rank if slot and slot[0].variadic else 1 for slot in kept]
    if sum(counts) != len(shape):
        raise RuleError(f"{op.name}: output {k} of shape {shape} does not fit {signature.text!r}")
    slots = expand(op, signature, Operand(pattern.title, tuple(kept)), len(shape), rank)
    rest = iter(batch)
    dims = (
        next(rest) if is_batch(slot) else _made(op, slot, size, named) for slot, size in zip(slots, shape, strict=True)
    )
    return Label(tuple(dims))


def _made(op: Op, slot: Slot, size: int, named: dict[str, Dim]) -> Dim:
    known = {name.text: dim_size(named[name.text]) for name in slot if name.text in named}
    sizes = _factor_sizes(op, slot, known, size) if len(slot) > 1 else [size] * len(slot)
    for name, part in zip(slot, sizes, strict=True):
        if name.text not in named:
            named[name.text] = op.algebra.new(part, "spatial" if name.fixed else f"op:{op.name}")
    return tuple(factor for name in slot for factor in named[name.text])
