"""What a person who writes rules asks of the rule book: what is known of an op, and a stub for one that is not."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
import yaml
from torch._ops import OpOverload

from graphfuse.config import nearest
from graphfuse.errors import RuleError
from graphfuse.rulebook.packs import Located, RuleBook, op_names
from graphfuse.rulebook.schema import Entry

LETTERS = "abcdefghijklmnop"
SIZES = (2, 3, 4, 5, 6, 7, 8, 9)

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Known:
    """What the rule book says of one name: how its rule is written, and where."""

    op: str
    how: str
    kind: str
    text: str
    file: str


def catalogue(book: RuleBook, word: str = "") -> list[Known]:
    """Every op with a rule of its own (elementwise ops that torch tags need none), those that contain ``word``."""
    found = {name: _known(name, located) for name, located in book.entries.items()}
    for name, rule in book.structural.items():
        if name not in found or found[name].how == "facts":
            kind = found[name].kind if name in found else "other"
            found[name] = Known(name, "Python", kind, _first_line(rule), _file_of(rule))
    return sorted((known for known in found.values() if word in known.op), key=lambda known: known.op)


def _known(name: str, located: Located) -> Known:
    entry = located.entry
    how = "signature" if entry.signature else "pointwise" if entry.pointwise else "facts"
    text = entry.signature.text if entry.signature else ""
    return Known(entry.title if entry.module else name, how, entry.kind, text, located.file)


def _first_line(rule: Any) -> str:
    return (inspect.getdoc(rule) or "").partition("\n")[0]


def _file_of(rule: Any) -> str:
    path = Path(inspect.getsourcefile(rule) or "")
    return "/".join(path.parts[-3:])


@dataclass(frozen=True)
class Description:
    """All that is known of one op: ``how`` is signature, pointwise, Python, tag (elementwise, says torch) or none."""

    op: str
    schema: str
    how: str
    file: str = ""
    source: str = ""
    text: str = ""
    hint: str = ""


def describe(book: RuleBook, name: str) -> Description:
    """What the rule book knows of an op, named as ``aten.linear`` or ``aten.linear.default``.

    Raises
    ------
    RuleError
        torch knows no such op; names the nearest.
    """
    for located in book.entries.values():
        if located.entry.module and name.removeprefix("module ") == located.entry.module:
            schema = f"{located.entry.title}, taken whole"
            return Description(name, schema, "signature", located.file, located.entry.source, as_yaml(located.entry))
    op = find(name)
    schema = str(op._schema)
    for known in op_names(op):
        located = book.entries.get(known)
        if located is not None and located.rule is not None:
            how = "signature" if located.entry.signature else "pointwise"
            return Description(name, schema, how, located.file, located.entry.source, as_yaml(located.entry))
        if known in book.structural:
            rule = book.structural[known]
            facts = as_yaml(located.entry) if located else ""
            text = "\n".join(part for part in (inspect.getdoc(rule) or "", facts) if part)
            return Description(name, schema, "Python", _file_of(rule), text=text)
    if torch.Tag.pointwise in op.tags:
        return Description(name, schema, "tag", text="torch calls it elementwise: every axis passes through")
    close = nearest(".".join(name.split(".")[:2]), sorted({known.op for known in catalogue(book)}))
    return Description(name, schema, "none", hint=f"{close}; to write one: graphfuse rules new {name}")


def find(name: str) -> OpOverload:
    """The op of a name, its default (or first) overload where none is named.

    Raises
    ------
    RuleError
        torch knows no such op.
    """
    namespace, _, rest = name.partition(".")
    word, _, overload = rest.partition(".")
    packet = getattr(getattr(torch.ops, namespace), word, None) if word else None
    if packet is None:
        known = [f"aten.{other}" for other in dir(torch.ops.aten) if not other.startswith("__")]
        hint = nearest(name, known) if namespace == "aten" else "import the library that registers it"
        raise RuleError(f"torch knows no op {name!r}.\n  what to do: write namespace.name[.overload]; {hint}")
    overloads = packet.overloads()
    chosen = overload or ("default" if "default" in overloads else overloads[0])
    if chosen not in overloads:
        raise RuleError(f"{namespace}.{word} has no overload {overload!r}; {nearest(overload, overloads)}")
    return cast(OpOverload, getattr(packet, chosen))


def as_yaml(entry: Entry) -> str:
    """An entry as a pack would say it."""
    data = entry.model_dump(by_alias=True, exclude_defaults=True)
    if entry.signature is not None:
        data["signature"] = entry.signature.text
    for key, value in data.items():
        data[key] = _plain(value)
    return yaml.safe_dump([data], sort_keys=False, allow_unicode=True, width=100, default_flow_style=None).rstrip()


def _plain(value: Any) -> Any:
    """Values that YAML can write: tuples as lists, classes by name, signatures as text."""
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, str | int | float | bool | None) and type(value) in (str, int, float, bool, type(None)):
        return value
    return str(getattr(value, "text", value))


# -------------------------------------------------------------------- stubs


def stub(op: OpOverload, shapes: Mapping[str, Shape] | None = None, outputs: Sequence[Shape] = ()) -> str:
    """A pack with an entry to be filled in: every operand with a dim for each that was seen, and an example.

    Parameters
    ----------
    op : OpOverload
    shapes : mapping, optional
        Tensor argument -> a shape that was seen; dims of equal size get one letter, as they may be one axis.
    outputs : shapes, optional
        Of the outputs that were seen.
    """
    tensors = [a.name for a in op._schema.arguments if "Tensor" in str(a.type)]
    seen = {name: shape for name, shape in (shapes or {}).items() if name in tensors}
    letters = _letters([*seen.values(), *outputs])
    lists = {a.name for a in op._schema.arguments if str(a.type).startswith("List[Tensor")}
    operands = ", ".join(_operand(name, seen.get(name), letters) + "+" * (name in lists) for name in tensors)
    results = "; ".join(f"[{_dims(shape, letters)}]" for shape in outputs) or "[...]"
    example = ", ".join(_argument(a, seen, letters) for a in op._schema.arguments if not a.has_default_value())
    unsure = (
        "" if seen else "    # write each operand's dims: one letter for each, the same for those that go together\n"
    )
    name = ".".join(op_names(op)[0].split(".")[: 2 if op._schema.overload_name in ("", "default") else 3])
    return (
        "version: 1\n"
        "rules:\n"
        f"  - op: {name}\n"
        f"    # {op._schema}\n"
        "    # Dims with one letter are permuted together; 'x!' is a dim whose order matters; '...' passes through.\n"
        f"{unsure}"
        f'    signature: "{operands} -> {results}"\n'
        "    # mixes: [a]          what the op mixes along, as a softmax or a norm does\n"
        "    # class: {a: linear}  beyond permutations: signed, scaling, orthogonal, linear\n"
        "    example:\n"
        f"      - args: [{example}]\n"
    )


def _letters(shapes: Sequence[Shape]) -> dict[int, str]:
    sizes = dict.fromkeys(size for shape in shapes for size in shape if size > 1)
    return {size: letter for size, letter in zip(sizes, LETTERS, strict=False)}


def _dims(shape: Shape, letters: Mapping[int, str]) -> str:
    return " ".join(letters.get(size, "1") for size in shape)


def _operand(name: str, shape: Shape | None, letters: Mapping[int, str]) -> str:
    return f"{name}[{'...' if shape is None else _dims(shape, letters)}]"


def _argument(argument: Any, seen: Mapping[str, Shape], letters: Mapping[int, str]) -> str:
    """A small distinct size for each letter, so that equal sizes hide nothing."""
    if "Tensor" not in str(argument.type):
        return {"int": "1", "bool": "false", "float": "0.5"}.get(str(argument.type), "null")
    small = dict(zip(letters, SIZES, strict=False))
    shape = seen.get(argument.name)
    tensor = f"{{shape: [{', '.join(str(small.get(size, size)) for size in shape) if shape is not None else '2, 3'}]}}"
    return f"[{tensor}, {tensor}]" if str(argument.type).startswith("List[") else tensor
