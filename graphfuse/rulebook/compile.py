"""Entries into rules: a pack's data becomes the function that labelling calls."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torch._ops import OpOverload

from graphfuse.config import nearest
from graphfuse.errors import RuleError
from graphfuse.rulebook.op import Label, Op, Rule
from graphfuse.rulebook.pointwise import Elementwise, elementwise
from graphfuse.rulebook.relate import Relation, name_sizes, relate
from graphfuse.rulebook.schema import Entry, Special
from graphfuse.rulebook.whole import summed_over

Variant = Relation | Elementwise


def compile_entry(entry: Entry) -> Rule:
    """The rule that an entry describes."""
    usual = _variant(entry, None)
    special = [(case.when, _variant(entry, case)) for case in entry.special]

    def rule(op: Op) -> Label | list[Label]:
        chosen = next((variant for when, variant in special if holds(when, op, usual)), usual)
        if isinstance(chosen, Elementwise):
            return elementwise(op, chosen)
        return relate(op, summed_over(op, chosen, entry.windows) if entry.windows else chosen)

    return rule


def holds(when: Mapping[str, Any], op: Op, usual: Variant) -> bool:
    """Whether a node's arguments (and the sizes of its dims) fit the conditions of a special case."""
    sizes = name_sizes(op, usual) if isinstance(usual, Relation) else {}
    for key, wanted in when.items():
        alternatives = wanted if isinstance(wanted, list) else [wanted]
        if isinstance(usual, Relation) and key in usual.signature.names:
            if not sizes.get(key) or not all(size in alternatives for size in sizes[key]):
                return False
        elif not any(_equals(op.args.get(key), value) for value in alternatives):
            return False
    return True


def _equals(actual: Any, wanted: Any) -> bool:
    """A list equals a number when each of its elements does; a dtype equals its name."""
    if isinstance(actual, list | tuple):
        return len(actual) > 0 and all(_equals(element, wanted) for element in actual)
    if isinstance(actual, bool) or isinstance(wanted, bool) or wanted is None:
        return actual is wanted
    if isinstance(wanted, str):
        return str(actual).removeprefix("torch.") == wanted
    return isinstance(actual, int | float) and actual == wanted


def _variant(entry: Entry, case: Special | None) -> Variant:
    if entry.signature is None:
        spec = case.pointwise if case is not None and case.pointwise is not None else entry.pointwise
        assert spec is not None, "the schema lets no entry without a rule pass"
        return spec.elementwise()
    signature, classes, mixes = entry.signature, entry.classes, entry.mixes
    if case is not None:
        signature = case.signature or signature
        classes = classes if case.classes is None else case.classes
        mixes = mixes if case.mixes is None else case.mixes
    sizes = {name: size for name, size in entry.sizes.items() if name in signature.names}
    return Relation(signature, sizes, mixes, classes, entry.gains)


def check_arguments(entry: Entry, op: OpOverload) -> None:
    """Make sure that an op has the arguments that an entry names.

    Raises
    ------
    RuleError
        Names the key of the entry, the argument, and the op's own arguments.
    """
    names = [argument.name for argument in op._schema.arguments]
    for where, name in _mentioned(entry):
        if name not in names:
            raise RuleError(f"{where}: {op} has no argument {name!r}; {nearest(name, names)}")
    if entry.signature is not None and len(entry.signature.inputs) > len(names):
        raise RuleError(f"signature {entry.signature.text!r} has {len(entry.signature.inputs)} operands, "
                        f"but {op} has {len(names)} arguments: {', '.join(names)}")  # fmt: skip


def _mentioned(entry: Entry) -> Iterator[tuple[str, str]]:
    """Every schema argument that an entry names, with the key under which it does."""
    for name in entry.sizes.values():
        if isinstance(name, str):
            yield "sizes", name
    if entry.contracts is not None:
        yield from (("contracts", name) for name in entry.contracts.model_dump().values() if name)
    if entry.statistics is not None:
        yield from (("statistics", name) for name in entry.statistics.model_dump().values())
    yield from (("gains", name) for name in entry.gains)
    yield from (("offsets", name) for name in entry.offsets)
    if entry.pointwise is not None:
        yield from (("pointwise.operands", name) for name in entry.pointwise.operands)
    for case in entry.special:
        known = entry.signature.names if entry.signature is not None else frozenset()
        yield from (("special.when", name) for name in case.when if name not in known)
