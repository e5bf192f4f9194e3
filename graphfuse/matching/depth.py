"""Models of one kind and different depth: which layer of one plays the part of which layer of the other.

Layers are matched by what they compute on the same inputs: linear centred kernel alignment (Kornblith et al. 2019,
arXiv 1905.00414, equation 5) of their outputs and of what they add to their inputs, for all pairs, then the monotone
matching of the largest sum, by dynamic programming. What a layer adds tells it from one that hardly does anything.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from graphfuse.capture import state_of
from graphfuse.errors import CorrespondenceError
from graphfuse.lockstep import Batch, as_batch
from graphfuse.matching.similarity import ROWS, grams_of, likeness, monotone
from graphfuse.matching.stacks import Stack, outline, renamed, stacks_of, unequal
from graphfuse.symmetry import SymmetryGraph

SAME, CLOSE = 1e-6, 0.02
"""How much better the best matching must be than one with another partner for a layer: else an error, or a note."""

Layers = Mapping[int | str, int | str]


@dataclass(frozen=True, eq=False)
class DepthMatch:
    """Which layer of the target is which of the other model; layers are module paths.

    ``layers`` maps a layer of the target to one of the other. The target's ``alone`` have no partner, the other's
    ``dropped`` neither. ``similarity`` has for every list of layers that was matched by activations the likeness of
    each pair, shape (target's layers, other's layers).
    """

    layers: Mapping[str, str]
    alone: tuple[str, ...]
    dropped: tuple[str, ...]
    similarity: Mapping[str, Tensor]
    notes: tuple[str, ...] = ()

    @property
    def names(self) -> dict[str, str | None]:
        """What each layer of the other model is called in the target; None for those that are left out."""
        return {other: mine for mine, other in self.layers.items()} | dict.fromkeys(self.dropped)

    def state(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """A state of the other model under the target's names; what is left out has names that no model has."""
        return {self._called(name): tensor for name, tensor in state.items()}

    def graph(self, graph: SymmetryGraph) -> SymmetryGraph:
        """A graph of the other model under the target's names, for the states that :meth:`state` makes."""
        kept = {name: self._called(name) for name in graph.tensors if renamed(name, self.names) is not None}
        slots = tuple(
            replace(slot, name=self._called(slot.name)) if slot.kind in ("parameter", "buffer") else slot
            for slot in graph.captured.inputs
        )
        return replace(
            graph,
            captured=replace(graph.captured, inputs=slots),
            tensors={new: replace(graph.tensors[old], name=new) for old, new in kept.items()},
        )

    def _called(self, name: str) -> str:
        return renamed(name, self.names) or f"(left out) {name}"


def match_depth(
    target: nn.Module,
    other: nn.Module,
    data: Iterable[Any] = (),
    *,
    layers: Layers | None = None,
    progress: Callable[[str, int, int], None] | None = None,
) -> DepthMatch:
    """Match the layers of two models that differ in the number of their layers only.

    Parameters
    ----------
    target, other : nn.Module
        With tensors of the same names, but for lists of layers of different length; widths may differ.
    data : iterable of batches
        Unlabelled inputs, as for ``fuse``; not needed with ``layers``.
    layers : mapping, optional
        Target's layer -> other's layer, by hand, both increasing: numbers within the only list that differs, or module
        paths.
    progress : callable, optional
        Called with ("match depth", batches done, batches), those of both models.

    Raises
    ------
    CorrespondenceError
        The models differ in more than depth, there is nothing to match layers by, the mapping by hand is not monotone,
        or two matchings are equally good.
    """
    pairs = unequal(target, other)
    if not pairs:
        raise _other_difference(target, other)
    alike = [[[_alike(target, other, i, j) for j in their.layers] for i in mine.layers] for mine, their in pairs]
    if layers:
        return _by_hand(pairs, alike, layers)
    items = [data] if isinstance(data, Tensor) else data
    given = [item if isinstance(item, Batch) else as_batch(item) for item in items]
    if not given:
        raise _nothing_to_match_by(pairs)
    return _by_activations(target, other, pairs, alike, given, progress)


def _result(
    pairs: Sequence[tuple[Stack, Stack]],
    layers: Mapping[str, str],
    similarity: Mapping[str, Tensor],
    notes: Sequence[str] = (),
) -> DepthMatch:
    taken = set(layers.values())
    alone = tuple(layer for mine, _ in pairs for layer in mine.layers if layer not in layers)
    dropped = tuple(layer for _, their in pairs for layer in their.layers if layer not in taken)
    words = [
        f"{their} were matched with {mine}: {', '.join(f'{i} <- {layers[i]}' for i in mine.layers if i in layers)}"
        for mine, their in pairs
    ]
    if alone:
        words.append(f"the target's own where there is no partner: {', '.join(alone)}")
    if dropped:
        words.append(f"left out, as nothing corresponds to it: {', '.join(dropped)}")
    return DepthMatch(dict(layers), alone, dropped, similarity, (*words, *notes))


def _alike(target: nn.Module, other: nn.Module, mine: str, their: str) -> bool:
    """Whether two layers hold tensors of the same names."""
    return outline(target.get_submodule(mine)) == outline(other.get_submodule(their))


# -------------------------------------------------------------------- by hand


def _by_hand(pairs: Sequence[tuple[Stack, Stack]], alike: Sequence[list[list[bool]]], layers: Layers) -> DepthMatch:
    found: dict[str, str] = {}
    for mine, other in layers.items():
        found[_path(mine, pairs, 0)] = _path(other, pairs, 1)
    for (ours, theirs), fits in zip(pairs, alike, strict=True):
        chosen = [(ours.layers.index(i), found[i]) for i in ours.layers if i in found]
        for (i, a), (j, b) in itertools.pairwise(chosen):
            inside = a in theirs.layers and b in theirs.layers
            if not inside or theirs.layers.index(a) >= theirs.layers.index(b):
                raise CorrespondenceError(
                    f"layers: the mapping by hand is not monotone, or leads from one list into another.\n"
                    f"  {ours.layers[i]!r} (target) is {a!r}, {ours.layers[j]!r} is {b!r}\n"
                    "  what to do: map layers of the target to layers of the other, both increasing"
                )
        for i, a in chosen:
            if a not in theirs.layers or not fits[i][theirs.layers.index(a)]:
                raise CorrespondenceError(
                    f"layers: {ours.layers[i]!r} (target) and {a!r} (other) are no layers of one kind.\n"
                    f"  target: {ours}\n  other: {theirs}\n  what to do: pair layers that hold the same parameters"
                )
    return _result(pairs, found, {})


def _path(word: int | str, pairs: Sequence[tuple[Stack, Stack]], side: int) -> str:
    """The path of a layer that a number or a path stands for."""
    stacks = [pair[side] for pair in pairs]
    if str(word).isdigit() and len(stacks) == 1:
        word = f"{stacks[0].path}.{word}" if stacks[0].path else str(word)
    if not any(word in stack.layers for stack in stacks):
        raise CorrespondenceError(
            f"layers: there is no layer {word!r} in the {('target', 'other model')[side]}.\n"
            f"  it has: {'; '.join(map(str, stacks))}, from {stacks[0].layers[0]!r} to {stacks[0].layers[-1]!r}\n"
            "  what to do: give numbers from 0 within the only list that differs, or module paths"
        )
    return str(word)


# -------------------------------------------------------------------- by activations


def _by_activations(
    target: nn.Module,
    other: nn.Module,
    pairs: Sequence[tuple[Stack, Stack]],
    alike: Sequence[list[list[bool]]],
    data: Sequence[Batch],
    progress: Callable[[str, int, int], None] | None,
) -> DepthMatch:
    def watched(side: int) -> Iterator[Batch]:
        for i, batch in enumerate(data, 1):
            yield batch
            if progress is not None:
                progress("match depth", side * len(data) + i, 2 * len(data))

    grams = [
        grams_of(model, [layer for pair in pairs for layer in pair[side].layers], watched(side), ROWS // len(data))
        for side, model in enumerate((target, other))
    ]
    layers, similarity, notes = dict[str, str](), dict[str, Tensor](), list[str]()
    for (mine, their), fits in zip(pairs, alike, strict=True):
        table = torch.tensor([
            [likeness(grams[0][i], grams[1][j]) if fits[p][q] else -torch.inf for q, j in enumerate(their.layers)]
            for p, i in enumerate(mine.layers)
        ], dtype=torch.float64)  # fmt: skip
        chosen = monotone(table)
        if chosen is None:
            raise CorrespondenceError(
                f"the models differ in more than depth: the layers in {mine.path!r} are not of the same kinds in order."
                f"\n  target: {mine}\n  other: {their}\n  what to do: use models whose layers hold the same parameters"
            )
        notes += _doubts(table, chosen, mine, their)
        similarity[mine.path] = table
        layers |= {mine.layers[i]: their.layers[j] for i, j in chosen.items()}
    return _result(pairs, layers, similarity, notes)


def _doubts(table: Tensor, chosen: Mapping[int, int], mine: Stack, their: Stack) -> list[str]:
    """A note on the layer whose partner is least certain; an error when another one is as good."""
    rivals = []
    for i, j in chosen.items():
        without = table.clone()
        without[i, j] = -torch.inf
        second = monotone(without)
        if second is not None:
            best, rest = (sum(float(table[p, q]) for p, q in found.items()) for found in (chosen, second))
            rivals.append((best - rest, (i, j), next(pair for pair in second.items() if i == pair[0] or j == pair[1])))
    if not rivals:
        return []
    gap, *nearest = min(rivals)
    seen, rival = (
        f"{mine.layers[i]!r} and {their.layers[j]!r} (likeness {float(table[i, j]):.3f})" for i, j in nearest
    )
    if gap <= SAME:
        raise CorrespondenceError(
            "layers could not be told apart by their activations: two matchings are equally good.\n"
            f"  either: {seen}\n  or: {rival}\n  target: {mine}\n  other: {their}\n"
            "  what to do: give layers={target's layer: other's layer}, or more data"
        )
    if gap < CLOSE:
        return [f"layers {seen} were matched, but {rival} would do nearly as well; layers={{...}} says it by hand"]
    return []


# -------------------------------------------------------------------- messages


def _other_difference(target: nn.Module, other: nn.Module) -> CorrespondenceError:
    mine, theirs = (outline(model) for model in (target, other))
    only = [next((name for name in one if name not in two), None) for one, two in ((mine, theirs), (theirs, mine))]
    lists = [max(stacks_of(model).values(), key=lambda s: len(s.layers), default=None) for model in (target, other)]
    lines = ["the models differ in something else than the length of a list of layers."]
    for whose, model, name, stack in zip(("target", "other"), (target, other), only, lists, strict=True):
        shape = tuple(state_of(model)[name].shape) if name in state_of(model) else ""
        lines.append(f"  {whose}: {f'only it has {name!r} {shape}' if name else 'has nothing of its own'}, {stack}")
    lines.append("  what to do: fuse models of one kind whose layers are members of one nn.ModuleList or nn.Sequential")
    return CorrespondenceError("\n".join(lines))


def _nothing_to_match_by(pairs: Sequence[tuple[Stack, Stack]]) -> CorrespondenceError:
    mine, their = pairs[0]
    shallow = min(len(mine.layers), len(their.layers))
    last = [f"{stack} ({stack.layers[min(shallow, len(stack.layers) - 1)]!r})" for stack in (mine, their)]
    return CorrespondenceError(
        "layers of models of different depth are matched by their activations, and there is no data.\n"
        f"  target: {last[0]}\n  other: {last[1]}\n"
        "  what to do: give data (a few batches), or layers={target's layer: other's layer}"
    )
