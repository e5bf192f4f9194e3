"""A model written in the names and layouts of another: an instance of the target's class that computes the same."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from graphfuse.capture import canonical_names, duplicate, state_of
from graphfuse.errors import CorrespondenceError, kind_of
from graphfuse.matching.naming import Names, tags_of
from graphfuse.matching.recipes import HAND, Renaming, renaming_of
from graphfuse.matching.refine import Pairing, Unmatched, pair
from graphfuse.matching.skeleton import Uses
from graphfuse.matching.sources import MOVING, op_name
from graphfuse.matching.tables import offsets_of
from graphfuse.matching.uses import uses_of
from graphfuse.rulebook import RuleBook, load_rules
from graphfuse.symmetry import SymmetryGraph, trace

SAME, CLOSE = 1e-4, 0.05
"""Relative differences of outputs up to which models are called the same, or alike (another epsilon, another GELU)."""
STEPS = 4


@dataclass(frozen=True, eq=False)
class Translation:
    """A model of the target's class with the other's function.

    ``pairs`` names, for each of the target's tensors, the other's that it was made of; ``error`` is the largest
    difference of the two models' outputs on the example inputs, relative to their root mean square;
    ``kept`` are parameters that no output depends on, which stay the target's own.
    """

    model: nn.Module
    pairs: Mapping[str, tuple[str, ...]]
    error: float
    kept: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def translate(
    target: nn.Module | SymmetryGraph,
    other: nn.Module | SymmetryGraph,
    args: tuple[Any, ...] | Tensor = (),
    kwargs: Mapping[str, Any] | None = None,
    *,
    names: Names | None = None,
    rules: Iterable[Any] | RuleBook = (),
    progress: Callable[[str, int, int], None] | None = None,
) -> Translation:
    """Write a model in the names and layouts of another that does the same computation.

    Parameters
    ----------
    target, other :
        Modules, or graphs that were traced before (each on inputs of its own). Both are left as they are.
    args, kwargs :
        Example inputs as the target takes them; the other gets them under its own names, in order.
    names :
        What the user knows: {parameter or module path of the target: that of the other}; a fused parameter has the
        list of its parts. The rest is found.
    rules :
        Further rule packs for tracing.
    progress : callable, optional
        Called with ("translate", done, total): both models traced, their parameters paired, the results compared.

    Returns
    -------
    Translation
        ``.model`` is new, in eval mode.

    Raises
    ------
    CorrespondenceError
        The models do not do the same with their parameters (shows where they part), or their outputs differ.
    ConfigError
        ``names`` has a name that its model has not.
    """
    book = rules if isinstance(rules, RuleBook) else load_rules(rules)
    args = (args,) if isinstance(args, Tensor) else tuple(args)
    tell = progress or (lambda stage, done, total: None)
    a = target if isinstance(target, SymmetryGraph) else trace(target, args, kwargs, rules=book)
    tell("translate", 1, STEPS)
    if isinstance(other, SymmetryGraph):
        b = other
    else:
        b = trace(other, *call_of(a.model, other, args, kwargs or {}), rules=book)
    tell("translate", 2, STEPS)
    found, pairing = _renaming(a, b, names or {}, book)
    tell("translate", 3, STEPS)
    state = found.translate(state_of(b.model), state_of(a.model))
    model = _with_state(a, state)
    difference = _difference(a, b, model, found)
    if pairing.ties and not _resized(a, model):
        difference = max(difference, _difference_when_shaken(a, b, found))
    _expect_alike(found, pairing, difference)
    tell("translate", STEPS, STEPS)
    return Translation(model, found.pairs(), difference, found.kept, _notes(found, pairing, difference))


def call_of(
    target: nn.Module, other: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Inputs of the target as another model takes them: by the same names if it has them, else by position."""
    known = inspect.signature(other.forward).parameters
    if all(name in known for name in kwargs):
        return tuple(args), dict(kwargs)
    order = [name for name in inspect.signature(target.forward).parameters if name in kwargs]
    rest = [name for name in kwargs if name not in order]
    return (*args, *(kwargs[name] for name in [*order, *rest])), {}


def same_program(a: SymmetryGraph, b: SymmetryGraph) -> bool:
    """Whether two models have parameters of the same names, and are of one class or run the same ops."""
    if set(a.tensors) != set(b.tensors):
        return False
    ops = [[node.target for node in g.captured.graph.nodes if node.op == "call_function"] for g in (a, b)]
    return type(a.model) is type(b.model) or ops[0] == ops[1]


def _renaming(a: SymmetryGraph, b: SymmetryGraph, names: Names, book: RuleBook) -> tuple[Renaming, Pairing]:
    mine, other = uses_of(a, book), uses_of(b, book)
    try:
        pairing = pair(mine, other, tags_of(names, mine, other))
    except Unmatched as found:
        raise _parted(mine, other, found) from None
    return renaming_of(mine, other, pairing, offsets_of(mine, other, pairing)), pairing


# ------------------------------------------------------------------- modules


def _with_state(graph: SymmetryGraph, state: Mapping[str, Tensor]) -> nn.Module:
    """A copy of the graph's model with another state, whose tensors may have other shapes."""
    model = duplicate(graph.model).eval()
    canonical = canonical_names(model)
    tied: dict[str, Tensor] = {}
    for name, first in canonical.items():
        path, _, last = name.rpartition(".")
        module = model.get_submodule(path)
        own = getattr(module, last)
        if own.shape == state[first].shape:
            with torch.no_grad():
                own.copy_(state[first])
            continue
        if first not in tied:
            tied[first] = nn.Parameter(state[first].clone(), own.requires_grad) if isinstance(own, nn.Parameter) else (
                state[first].clone()
            )  # fmt: skip
        setattr(module, last, tied[first])
        if isinstance(module, nn.LayerNorm | nn.RMSNorm):
            module.normalized_shape = tuple(state[first].shape)
    return model


def _difference(a: SymmetryGraph, b: SymmetryGraph, model: nn.Module, found: Renaming) -> float:
    """How much the outputs of the translated model differ from those of the one it was made of."""
    resized = _resized(a, model)
    with torch.no_grad():
        wanted = b.captured.run(state_of(b.model), b.args, b.kwargs)
        try:
            got = model(*a.args, **a.kwargs) if resized else a.captured.run(state_of(model), a.args, a.kwargs)
        except Exception as error:
            if not resized:
                raise
            sizes = [f"{axis.name}: {axis.size} and {found.sizes[axis.id]}" for axis in a.axes
                     if found.sizes.get(axis.id, axis.size) != axis.size]  # fmt: skip
            raise CorrespondenceError(
                f"{type(a.model).__name__} does not run with the widths of the other model ({', '.join(sizes[:3])}): "
                f"{error}\n  what to do: build {kind_of(a.model)} of the other's widths, translate onto that "
                "with graphfuse.matching.translate, and fuse the result, name for name"
            ) from error
    return _apart(got, wanted)


def _resized(graph: SymmetryGraph, model: nn.Module) -> bool:
    own = state_of(graph.model)
    return any(tensor.shape != own[name].shape for name, tensor in state_of(model).items())


def _difference_when_shaken(a: SymmetryGraph, b: SymmetryGraph, found: Renaming) -> float:
    """The difference with noise on all of the other's weights, so that fresh ones (equal, zero) hide no wrong pair."""
    generator = torch.Generator().manual_seed(0)
    variances = {entry.var for entry in b.statistics}
    state = dict(state_of(b.model))
    for name in b.tensors:
        if state[name].is_floating_point():
            value = state[name].double().cpu()
            scale = max(float(value.std()), 0.1) if value.numel() > 1 else 0.1
            value = value + scale * torch.randn(value.shape, generator=generator, dtype=torch.float64)
            state[name] = (value.abs() + 0.1 if name in variances else value).to(state[name])
    wanted = b.captured.run(state, b.args, b.kwargs)
    return _apart(a.captured.run(found.translate(state, state_of(a.model)), a.args, a.kwargs), wanted)


def _apart(got: Any, wanted: Any) -> float:
    worst = 0.0
    pairs = [
        (x, y)
        for x, y in zip(_tensors(got), _tensors(wanted), strict=False)
        if x.shape == y.shape and y.is_floating_point()
    ]
    for x, y in pairs:
        scale = float(y.double().square().mean().sqrt())
        worst = max(worst, float((x.double() - y.double()).abs().max()) / max(scale, 1e-12))
    return worst if pairs else float("inf")


def _tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in pytree.tree_leaves(tree) if isinstance(leaf, Tensor)]


# ------------------------------------------------------------------- messages


def _parted(a: Uses, b: Uses, found: Unmatched) -> CorrespondenceError:
    classes = type(a.graph.model).__name__, type(b.graph.model).__name__
    lines = [f"{classes[1]} does not do the same as {classes[0]} with its parameters; the nearest that differ are"]
    for whose, uses, use in (("target", a, found.mine), ("other", b, found.other)):
        lines.append(f"  {whose}: {uses.where(use) if use else 'nothing like it'}")
    lines.append(f"  what to do: {HAND}; for models of another depth, layers={{target's layer: other's layer}}")
    return CorrespondenceError("\n".join(lines))


def _expect_alike(found: Renaming, pairing: Pairing, difference: float) -> None:
    if difference <= CLOSE:
        return
    a, b = found.target, found.source
    classes = type(a.graph.model).__name__, type(b.graph.model).__name__
    lines = [
        f"the parameters of {classes[1]} correspond to those of {classes[0]}, but the outputs differ by "
        f"{difference:.3g} of their size."
    ]
    for i, k in pairing.ties[:1]:
        lines.append("  these could not be told apart by what is done with them, only by their order:")
        lines.append(f"  target: {a.where(a.entries[i])}\n  other: {b.where(b.entries[k])}")
    ops = [sorted(_functions(mine) - _functions(other)) for mine, other in ((a, b), (b, a))]
    for whose, only in zip(("target", "other"), ops, strict=True):
        if only:
            lines.append(f"  only the {whose} uses: {', '.join(only)}")
    lines.append(f"  what to do: {HAND}; or use models with the same activation functions and settings")
    raise CorrespondenceError("\n".join(lines))


def _functions(uses: Uses) -> set[str]:
    return {op_name(n) for n in uses.graph.captured.graph.nodes if n.op == "call_function"} - MOVING


def _notes(found: Renaming, pairing: Pairing, difference: float) -> tuple[str, ...]:
    classes = type(found.source.graph.model).__name__, type(found.target.graph.model).__name__
    renamed = sum((name,) != others for name, others in found.pairs().items())
    notes = [
        f"{classes[0]} was written in the names of {classes[1]}: {len(found.copies)} tensors, {renamed} of them under "
        f"other names; outputs differ by {difference:.1e} of their size"
    ]
    if difference > SAME:
        notes.append(f"{classes[0]} in the form of {classes[1]} is not exactly the same function (another epsilon?)")
    if pairing.ties:
        notes.append(f"{len(pairing.ties)} parameters were told apart by their order alone")
    for name, rows in found.shifted.items():
        notes.append(f"{name} is read {rows} rows further on in {classes[0]}; rows that it lacks are the target's own")
    if found.kept:
        notes.append(f"nothing corresponds to {', '.join(found.kept[:3])}, which no output depends on")
    if found.unused:
        notes.append(f"left out, as no output depends on it: {', '.join(found.unused[:3])}")
    return tuple(notes)
