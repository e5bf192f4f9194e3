"""Rule packs into one rule book: read, checked against each other, looked up by op."""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.resources
import importlib.util
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any, Literal, cast

import torch
import yaml
from pydantic import ValidationError
from torch import nn
from torch._ops import OpOverload

from graphfuse.config import nearest
from graphfuse.errors import RuleError
from graphfuse.frontend.atoms import Atom
from graphfuse.rulebook.compile import check_arguments, compile_entry
from graphfuse.rulebook.op import Rule
from graphfuse.rulebook.pointwise import Elementwise, elementwise
from graphfuse.rulebook.schema import Entry, PackFile
from graphfuse.rulebook.structural import STRUCTURAL
from graphfuse.rulebook.structural.table import Table

GROUP = "graphfuse.rules"
"""Entry-point group of third-party packs: ``name = "package.folder"`` (all its YAML files) or ``package:pack.yaml``."""


@dataclass(frozen=True)
class Pack:
    """A pack that was read: the file it came from and its entries."""

    file: str
    entries: tuple[Entry, ...]


@dataclass(frozen=True)
class Located:
    """An entry, and the file that it stands in."""

    entry: Entry
    file: str
    rule: Rule | None

    def __str__(self) -> str:
        return f"{self.file}: entry {self.entry.title}"


@dataclass(frozen=True)
class ContractionSpec:
    """Which arguments of an op hold the data, the weight and the bias of a contraction."""

    kind: Literal["linear", "matmul", "convolution"]
    input: str
    weight: str
    bias: str | None


# -------------------------------------------------------------------- reading


def read_pack(path: str | Path | Traversable) -> Pack:
    """Read one YAML pack; RuleError names the file, the entry and the reason."""
    source = Path(path) if isinstance(path, str) else path
    try:
        text = source.read_text(encoding="utf-8")
    except OSError as error:
        raise RuleError(f"rule pack {path}: cannot be read ({error.strerror or error})") from error
    return parse_pack(text, str(source))


def parse_pack(text: str, file: str) -> Pack:
    """A pack from its text; ``file`` is what errors call it."""
    try:
        data = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise RuleError(f"{file}: not valid YAML: {error}") from error
    if not isinstance(data, dict):
        raise RuleError(f"{file}: a pack is a mapping with 'version: 1' and a list 'rules', got {type(data).__name__}")
    try:
        pack = PackFile.model_validate(data)
    except ValidationError as error:
        lines = [f"{file}: {_explain(data, dict(problem))}" for problem in error.errors()]
        raise RuleError("\n".join(dict.fromkeys(lines))) from error
    entries = (entry if entry.source else entry.model_copy(update={"source": pack.source}) for entry in pack.rules)
    return Pack(file, tuple(entries))


def _explain(data: dict[str, Any], problem: dict[str, Any]) -> str:
    """One line (or a few, for a signature) about one validation error: entry, key, reason."""
    place, where = list(problem["loc"]), ""
    if place[:1] == ["rules"] and len(place) > 1:
        entry = data["rules"][place[1]] if isinstance(data["rules"], list) else None
        keys = ("op", "ops", "module")
        named = next((entry[key] for key in keys if entry.get(key)), None) if isinstance(entry, dict) else None
        where = f"entry {place[1] + 1}"
        if named:
            where += f" ({named if isinstance(named, str) else ', '.join(map(str, named))})"
        place = place[2:]
    keys = [str(key) for key in place if isinstance(key, str) and not _is_tag(key)]
    message = problem["msg"].removeprefix("Value error, ")
    if problem["type"] == "extra_forbidden":
        message = f"unknown key {keys[-1]!r}; {nearest(keys[-1], sorted(_known_keys(keys[:-1])))}"
        keys = keys[:-1]
    return ": ".join([part for part in (where, ".".join(keys), message) if part])


def _is_tag(key: str) -> bool:
    """Whether pydantic put the name of a union's member in a location, rather than a key of the file."""
    return key[:1].isupper() or key.startswith(("tuple[", "list[", "dict[", "function-", "is-instance"))


def _known_keys(path: Sequence[str]) -> set[str]:
    from graphfuse.rulebook import schema

    models = {"special": schema.Special, "contracts": schema.Contracts, "statistics": schema.Statistics,
              "example": schema.Example, "pointwise": schema.PointwiseSpec, "args": schema.TensorExample}  # fmt: skip
    model = next((models[key] for key in reversed(path) if key in models), schema.Entry)
    return {info.alias or name for name, info in model.model_fields.items()}


@cache
def builtin_packs() -> tuple[Pack, ...]:
    """The packs that graphfuse ships."""
    try:
        folder: Traversable = importlib.resources.files("graphfuse.rules")
        files = sorted((f for f in folder.iterdir() if f.name.endswith(".yaml")), key=lambda f: f.name)
    except ModuleNotFoundError:
        files = sorted((Path(__file__).parents[2] / "rules").glob("*.yaml"))  # a checkout that is not installed
    if not files:
        raise RuleError("the built-in rule packs are missing; reinstall graphfuse")
    return tuple(parse_pack(file.read_text(encoding="utf-8"), f"rules/{file.name}") for file in files)


def entry_point_packs() -> tuple[Pack, ...]:
    """Packs of installed distributions. Their packages are found, not imported."""
    packs: list[Pack] = []
    for point in sorted(importlib.metadata.entry_points(group=GROUP)):
        top, *folders = point.module.split(".")
        spec = importlib.util.find_spec(top)
        roots = list(spec.submodule_search_locations or ()) if spec else []
        if not roots:
            raise RuleError(f"entry point {point.name} = {point.value}: there is no package {top!r} with files")
        folder = Path(roots[0], *folders)
        files = [folder / point.attr] if point.attr else sorted(folder.glob("*.yaml"))
        if not files:
            raise RuleError(f"entry point {point.name} = {point.value}: no YAML file in {folder}")
        packs += map(read_pack, files)
    return tuple(packs)


# -------------------------------------------------------------------- the book


@dataclass(frozen=True)
class RuleBook:
    """What is known of every op: entries of packs, Python rules, and torch's own tag for elementwise ops."""

    entries: Mapping[str, Located]
    structural: Mapping[str, Rule] = field(default_factory=dict)

    def lookup(self, op: OpOverload) -> Rule | None:
        """The rule of an op, None when there is none.

        Packs come first, then Python rules, then torch's pointwise tag; a full overload name before that of all
        overloads, an op itself before the functional one of which it is the in-place form.

        Raises
        ------
        RuleError
            When an entry names arguments that the op does not have.
        """
        for name in op_names(op):
            located = self.entries.get(name)
            if located is not None and located.rule is not None:
                try:
                    check_arguments(located.entry, op)
                except RuleError as error:
                    raise RuleError(f"{located}: {error}") from None
                return located.rule
            if name in self.structural:
                return self.structural[name]
        return _plain_elementwise if torch.Tag.pointwise in op.tags else None

    def has_rule(self, op: OpOverload) -> bool:
        """Whether the op can be labelled as it is, so that it need not be decomposed."""
        return self.lookup(op) is not None

    def entry(self, op: Any) -> Located | None:
        """The entry of an op in a pack, and its file; None for anything else, a Python rule included."""
        names = op_names(op) if isinstance(op, OpOverload) else ()
        return next((self.entries[name] for name in names if name in self.entries), None)

    def atom(self, module: nn.Module) -> Atom | None:
        """How a module is taken whole, if an entry is for its class; its full name comes before a ``*``."""
        kind = type(module)
        known = {located.entry.module: located for located in self.entries.values() if located.entry.module}
        for name in (f"{kind.__module__}.{kind.__qualname__}", f"*.{kind.__qualname__}"):
            if name in known:
                return atom_of(known[name].entry, str(known[name]))
        return None

    def kind(self, op: Any) -> str:
        """The family that the op's entry names; ``other`` without one."""
        located = self.entry(op)
        return located.entry.kind if located else "other"

    def contraction(self, op: Any) -> ContractionSpec | None:
        """Which arguments hold the data, the weight and the bias; None for an op that contracts nothing."""
        located = self.entry(op)
        if located is None or located.entry.contracts is None:
            return None
        spec = located.entry.contracts
        kind = cast(Literal["linear", "matmul", "convolution"], located.entry.kind)
        return ContractionSpec(kind, spec.input, spec.weight, spec.bias)

    def statistics(self, op: Any) -> Mapping[str, str]:
        """``mean`` and ``var`` mapped to the arguments that hold running statistics; empty for most ops."""
        located = self.entry(op)
        spec = located.entry.statistics if located else None
        return {"mean": spec.mean, "var": spec.var} if spec else {}

    def gains(self, op: Any) -> tuple[str, ...]:
        """The arguments of a norm that multiply its result elementwise, if they may be left out."""
        located = self.entry(op)
        return located.entry.gains if located else ()

    def offsets(self, op: Any) -> tuple[str, ...]:
        """The arguments that an op adds to the product with its gain."""
        located = self.entry(op)
        return located.entry.offsets if located else ()

    def stacked(self, op: Any) -> str | None:
        """The argument that holds one weight for each member of an axis, to which the op hands rows."""
        located = self.entry(op)
        return located.entry.stacked if located else None

    def keeps_index(self, op: Any) -> bool:
        """Whether the op copies or casts, so that integers still mean what they meant."""
        located = self.entry(op)
        spec = located.entry.pointwise if located else None
        return spec is not None and spec.index == "keep"


def atom_of(entry: Entry, rule: str) -> Atom:
    """The operator that an entry for a module asks for."""
    signature = entry.signature
    assert signature is not None, "the schema lets no module pass without one"
    operands = [operand for operand in signature.inputs if operand is not None]
    return Atom(
        name=entry.names[0].partition(".")[2],
        rule=rule,
        operands=tuple(operand.title for operand in operands),
        optional=frozenset(operand.title for operand in operands if operand.optional),
        outputs=len(signature.outputs),
    )


def _plain_elementwise(op: Any) -> Any:
    return elementwise(op, Elementwise())


def op_names(op: OpOverload) -> tuple[str, ...]:
    """The names under which a rule for an op may stand, the closest first."""
    namespace, name = op._schema.name.split("::")
    overload = op._schema.overload_name or "default"
    names = [f"{namespace}.{name}.{overload}", f"{namespace}.{name}"]
    functional = _functional_name(name)
    if functional and op._schema.is_mutable:
        names += [f"{namespace}.{functional}.{overload}", f"{namespace}.{functional}"]
    return tuple(names)


def _functional_name(name: str) -> str | None:
    """``add_`` -> ``add``, ``__iand__`` -> ``__and__``."""
    if name.startswith("__i") and name.endswith("__"):
        return "__" + name[3:]
    return name[:-1] if name.endswith("_") and not name.endswith("__") else None


def build(
    packs: Iterable[Pack], structural: Mapping[str, Rule] | None = None, tables: Iterable[Table] = ()
) -> RuleBook:
    """One rule book of packs and tables; a later one overrides an earlier one only where it says ``replace``.

    Raises
    ------
    RuleError
        When two entries are for the same op and neither says ``replace: true``; both are shown.
    """
    rules = STRUCTURAL if structural is None else structural
    entries: dict[str, Located] = {}
    for pack in packs:
        for entry in pack.entries:
            located = Located(entry, pack.file, compile_entry(entry) if entry.has_rule else None)
            for name in entry.names:
                old = entries.get(name)
                if old is not None and not entry.replace:
                    if not old.entry.replace or old.file == pack.file:
                        raise RuleError(_conflict(name, str(old), str(located)))
                    continue
                if name in rules and located.rule is not None and not entry.replace:
                    raise RuleError(_conflict(name, "graphfuse's own rule in Python", str(located)))
                entries[name] = located
    return RuleBook(*_with_tables(entries, rules, tables))


def _with_tables(
    entries: dict[str, Located], rules: Mapping[str, Rule], tables: Iterable[Table]
) -> tuple[dict[str, Located], dict[str, Rule]]:
    """A user's rules in Python beside the packs' and graphfuse's own."""
    merged, owners = dict(rules), dict.fromkeys(rules, "graphfuse's own rule in Python")
    for table in tables:
        for name, rule in table.items():
            where = f"{rule.__module__}.{rule.__qualname__}, in Python"
            located = entries.get(name)
            if located is not None and located.rule is not None:
                if not table.replace:
                    raise RuleError(_conflict(name, str(located), where))
                entries = {key: value for key, value in entries.items() if key != name}
            if name in owners and not table.replace:
                raise RuleError(_conflict(name, owners[name], where))
            merged[name], owners[name] = rule, where
    return entries, merged


def _conflict(name: str, first: str, second: str) -> str:
    return f"two rules for {name}:\n  {first}\n  {second}\nSay 'replace: true' in the entry that is to win."


Rules = str | Path | Pack | Table | RuleBook


def load_rules(rules: Iterable[Rules] | str | Path | Table = ()) -> RuleBook:
    """The built-in packs, those of installed distributions, and the user's own, as one rule book.

    Parameters
    ----------
    rules : paths of YAML packs, packs, or tables of rules in Python
        A single path or table may stand alone; ``module:name`` is a table to be imported; a single
        :class:`RuleBook` is returned as it is.

    Raises
    ------
    RuleError
        When a pack is malformed or contradicts another.
    """
    given = [rules] if isinstance(rules, str | Path | Table) else list(rules)
    if len(given) == 1 and isinstance(given[0], RuleBook):
        return given[0]
    own = [_read(rule) for rule in given]
    packs = [rule for rule in own if isinstance(rule, Pack)]
    return build([*builtin_packs(), *entry_point_packs(), *packs], tables=[t for t in own if isinstance(t, Table)])


def _read(rule: Rules) -> Pack | Table:
    if isinstance(rule, Pack | Table):
        return rule
    if isinstance(rule, RuleBook):
        raise RuleError("a rule book is complete: give it alone, or give the packs that it was made of")
    module, colon, name = str(rule).partition(":")
    if not colon or Path(rule).exists() or module.endswith((".yaml", ".yml")):
        return read_pack(rule)
    try:
        table = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise RuleError(f"rules {rule}: cannot be imported ({error})") from error
    if not isinstance(table, Table):
        raise RuleError(f"rules {rule}: is {type(table).__name__}, not a graphfuse.rulebook.Table")
    return table
