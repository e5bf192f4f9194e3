"""Rules prove themselves: an entry's examples are run, and its claims about them tested both ways.

*Sound*: random permutations of every free axis, nested ones included, commute with the op. *Complete*: no dim that the
rule fixes or ties to others could be permuted without them. *Class*: each free axis admits the stated class of maps;
that a larger one would hold too is reported as a finding.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch._ops import OpOverload

from graphfuse.axes import Leaf, SymmetryClass
from graphfuse.config import nearest
from graphfuse.errors import RuleError
from graphfuse.rulebook.actions import (
    LabelledCall,
    Place,
    is_output,
    labelled,
    matrix,
    nested,
    permute,
    sample,
    shuffle,
    transform,
)
from graphfuse.rulebook.compile import check_arguments, compile_entry
from graphfuse.rulebook.examples import Call, calls, module_calls
from graphfuse.rulebook.op import Rule
from graphfuse.rulebook.packs import Pack, read_pack
from graphfuse.rulebook.schema import Entry

MAX_PLACES = 10  # of equal size; all subsets of them are tried
CLASSES = (SymmetryClass.SIGNED, SymmetryClass.SCALING, SymmetryClass.MONOMIAL, SymmetryClass.CENTRED,
           SymmetryClass.ORTHOGONAL,
           SymmetryClass.LINEAR)  # fmt: skip


@dataclass(frozen=True)
class Problem:
    """A claim that does not hold, or a symmetry that the rule misses."""

    kind: Literal["unsound", "incomplete", "class", "error"]
    op: str
    message: str

    def __str__(self) -> str:
        return f"{self.kind}: {self.op}: {self.message}"


@dataclass(frozen=True)
class CheckResult:
    """What the self-check found about one entry; ``calls`` counts the examples that were run."""

    ops: tuple[str, ...]
    file: str
    problems: tuple[Problem, ...]
    findings: tuple[str, ...]
    calls: int

    @property
    def ok(self) -> bool:
        """Whether every claim holds and none is missing."""
        return not self.problems

    def __str__(self) -> str:
        head = f"{'ok  ' if self.ok else 'FAIL'} {', '.join(self.ops)} ({self.calls} calls)"
        lines = [f"  {problem}" for problem in self.problems] + [f"  note: {finding}" for finding in self.findings]
        return "\n".join([head, *lines])


def check_pack(pack: str | Path | Pack, *, seed: int = 0) -> tuple[CheckResult, ...]:
    """Check every entry of a pack that has a rule.

    Raises
    ------
    RuleError
        When the pack cannot be read.
    """
    pack = pack if isinstance(pack, Pack) else read_pack(pack)
    return tuple(check_entry(entry, file=pack.file, seed=seed) for entry in pack.entries if entry.has_rule)


def check_entry(entry: Entry, *, file: str = "", trials: int = 3, seed: int = 0) -> CheckResult:
    """Run an entry's examples (or made-up ones) and test what its rule says about them.

    Parameters
    ----------
    entry : Entry
        Must have a rule (a signature, or ``pointwise``).
    trials : int
        Random elements drawn for each claim.
    """
    generator = torch.Generator().manual_seed(seed)
    problems: list[Problem] = []
    findings: list[str] = []
    count = 0
    rule = compile_entry(entry)
    titles = (entry.title,) if entry.module else entry.names
    for name, title in zip(entry.names, titles, strict=True):
        try:
            for drawn in _calls_of(entry, name, generator, findings):
                count += 1
                problems += _check_call(entry, drawn, rule, generator, trials, findings)
        except NotImplementedError as error:
            findings.append(f"{title}: does not run on this machine: {str(error).splitlines()[0][:100]}")
        except Exception as error:  # whatever an op or a rule raises is the finding
            problems.append(Problem("error", title, f"{type(error).__name__}: {error}"))
    if not count and not problems:
        problems.append(Problem("error", ", ".join(entry.names), "none of the entry's examples is for its ops"))
    return CheckResult(titles, file, tuple(dict.fromkeys(problems)), tuple(dict.fromkeys(findings)), count)


def _calls_of(entry: Entry, name: str, generator: torch.Generator, findings: list[str]) -> Iterator[tuple[Call, Call]]:
    """Each example of each op, with its random tensors drawn twice."""
    if entry.module:
        yield from zip(module_calls(entry, generator), module_calls(entry, generator), strict=True)
        return
    for op in overloads(name):
        check_arguments(entry, op)
        drawn = list(zip(calls(entry, op, generator), calls(entry, op, generator), strict=True))
        if not drawn:
            findings.append(f"{op}: not checked, no example is for it")
        yield from drawn


def overloads(name: str) -> list[OpOverload]:
    """The overloads that an entry's name stands for: those that take and return tensors and write none.

    Raises
    ------
    RuleError
        When torch knows no such op.
    """
    namespace, word, *overload = name.split(".")
    packet = getattr(getattr(torch.ops, namespace), word, None)
    if packet is None:
        raise RuleError(f"torch knows no op {name}; import the library that registers it")
    if overload:
        if overload[0] not in packet.overloads():
            hint = nearest(overload[0], packet.overloads())
            raise RuleError(f"{namespace}.{word} has no overload {overload[0]!r}; {hint}")
        return [getattr(packet, overload[0])]
    found = [getattr(packet, each) for each in packet.overloads()]
    return [op for op in found if _is_functional(op)]


def _is_functional(op: OpOverload) -> bool:
    schema = op._schema
    takes = any("Tensor" in str(argument.type) for argument in schema.arguments)
    gives = any("Tensor" in str(result.type) for result in schema.returns)
    return takes and gives and not any(argument.is_out for argument in schema.arguments)


def _check_call(
    entry: Entry, drawn: tuple[Call, Call], rule: Rule, generator: torch.Generator, trials: int, findings: list[str]
) -> list[Problem]:
    found = labelled(drawn[0], rule)
    op = str(drawn[0].op)
    unsound = list(_unsound(found, generator, trials))
    if unsound:
        return [Problem("unsound", op, message) for message in unsound]
    problems: list[Problem] = []
    missed = _missing(found, entry, generator, trials)
    if missed:  # a second drawing tells a symmetry of the op from one of the values that were drawn first
        again = _missing(labelled(drawn[1], rule), entry, generator, trials)
        problems = [Problem("incomplete", op, message) for message in missed if message in again]
    for leaf in found.free():
        message, finding = _class(found, leaf, generator, trials)
        problems += [Problem("class", op, message)] if message else []
        findings += [f"{op}: {finding}"] if finding else []
    return problems


# -------------------------------------------------------------------- sound


def _unsound(call: LabelledCall, generator: torch.Generator, trials: int) -> Iterator[str]:
    """Free axes whose permutation the op does not commute with, each tried alone when all together fail."""
    free = call.free()
    for leaf in free:
        for place in call.at(leaf):
            context = {key for key in call.algebra.context(leaf) if key.size > 1}
            if not context <= set(call.leaves[place.tensor]):
                yield f"{place} may differ along an axis that {place.tensor} does not have"
                return

    def holds(leaves: list[Leaf]) -> bool:
        drawn = (maps for _ in range(trials) for maps in sample(call, leaves, generator))
        return all(call.commutes(permute(call, maps)) for maps in drawn)

    if holds(free):
        return
    guilty = [leaf for leaf in free if not holds([leaf])]
    for leaf in guilty or free:
        yield f"permuting {_words(call.at(leaf))} does not commute with the op, but the rule leaves it free"


# -------------------------------------------------------------------- complete


def _missing(call: LabelledCall, entry: Entry, generator: torch.Generator, trials: int) -> list[str]:
    return [*_incomplete(call, set(entry.fixed_because)), *_separated(call, generator, trials)]


def _incomplete(call: LabelledCall, excused: set[str]) -> Iterator[str]:
    """Sets of places that could be permuted together although the rule fixes them or ties them to others."""
    for size in sorted({place.leaf.size for place in call.places} - {0}):
        places = [place for place in call.places if place.leaf.size == size]
        known = [call.at(leaf) for leaf in call.free() if leaf.size == size]
        for chosen in _subsets(places, known):
            if all(call.commutes(shuffle(call, chosen, order)) for order in _generators(size)):
                known.append(chosen)
                if not excused & {_operand(place) for place in chosen}:
                    yield _missed(call, chosen)


def _subsets(places: list[Place], known: list[frozenset[Place]]) -> Iterator[frozenset[Place]]:
    """Subsets, small ones first, that do not follow from the known ones (which grow meanwhile)."""
    largest = len(places) if len(places) <= MAX_PLACES else 2
    for count in range(1, largest + 1):
        for chosen in map(frozenset, itertools.combinations(places, count)):
            composed = any(each <= chosen or (each > chosen and each - chosen in known) for each in known)
            if not composed:
                yield chosen


def _generators(size: int) -> list[torch.Tensor]:
    """An exchange and a cycle: what commutes with both commutes with every permutation."""
    exchange = torch.arange(size)
    exchange[:2] = torch.tensor([1, 0])
    return [exchange] if size == 2 else [exchange, torch.arange(size).roll(1)]


def _missed(call: LabelledCall, chosen: frozenset[Place]) -> str:
    fixed = any(call.algebra.reasons(place.leaf) for place in chosen)
    why = "the rule fixes them" if fixed else "the rule ties them to others"
    return f"{_words(chosen)} can be permuted without harm, but {why}"


def _operand(place: Place) -> str:
    return "output" if is_output(place.tensor) else place.tensor


def _separated(call: LabelledCall, generator: torch.Generator, trials: int) -> Iterator[str]:
    """Pairs of axes of which one could differ along the other although the rule says no."""
    for inner, outer in itertools.permutations(call.axes(), 2):
        if call.algebra.reasons(inner) or outer in call.algebra.context(inner) or inner in call.algebra.context(outer):
            continue
        together = all(outer in call.leaves[place.tensor] for place in call.at(inner))
        maps = ({inner: nested(inner, [outer], generator)} for _ in range(trials))
        if together and all(call.commutes(permute(call, each)) for each in maps):
            yield f"{_words(call.at(inner))} could be permuted differently along {_words(call.at(outer))}"


# -------------------------------------------------------------------- class


def _class(call: LabelledCall, leaf: Leaf, generator: torch.Generator, trials: int) -> tuple[str, str]:
    """What is wrong with the stated class of an axis, and what larger class would hold."""
    places = call.at(leaf)
    inputs = [call.tensors[place.tensor] for place in places if not is_output(place.tensor)]
    if not any(tensor.is_floating_point() or tensor.is_complex() for tensor in inputs):
        return "", ""
    plain = all(tensor.is_floating_point() or tensor.is_complex() for tensor in inputs)
    stated = call.algebra.symmetry(leaf)
    holding = [
        symmetry
        for symmetry in CLASSES
        if (plain or not symmetry & SymmetryClass.CENTRED)
        and (leaf.size > 2 or symmetry != SymmetryClass.CENTRED)  # of two units, these are permutations
        and all(
            call.commutes(transform(call, leaf, matrix(symmetry, leaf.size, generator)), equal_nan=False)
            for _ in range(trials)
        )
    ]
    if stated != SymmetryClass.PERMUTATION and stated not in holding:
        return f"{_words(places)}: class {stated} does not hold; {_listed(holding)}", ""
    larger = [symmetry for symmetry in holding if symmetry & stated == stated and symmetry != stated]
    return "", f"{_words(places)}: class {max(larger)} would hold too, {stated} is stated" if larger else ""


def _listed(classes: Iterable[SymmetryClass]) -> str:
    return ", ".join(map(str, classes)) + " would" if classes else "only permutations do"


def _words(places: Iterable[Place]) -> str:
    return ", ".join(sorted(str(place) for place in places))
