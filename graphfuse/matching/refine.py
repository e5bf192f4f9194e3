"""Pair the uses of two models: colours refined until they tell the uses apart, then ties broken in a fixed order.

Source: colour refinement (Weisfeiler and Leman, 1968), with the order of the graph taken in: one round carries a colour
all the way forwards and all the way backwards. Axes have colours too, so that what shares an axis is told from what
does not (values from queries).
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass

from graphfuse.matching.skeleton import Use, Uses

Colours = list[int]


@dataclass(frozen=True, eq=False)
class Pairing:
    """Use of the target -> use of the other model; the colour of every axis; uses told apart by their order alone."""

    uses: Mapping[int, int]
    axes: tuple[Mapping[int, int], Mapping[int, int]]
    ties: tuple[tuple[int, int], ...]


@dataclass(frozen=True, eq=False)
class Unmatched(Exception):
    """No pairing: the first use of each model that has no partner (None: the model has no such use)."""

    mine: Use | None
    other: Use | None


class _Table:
    """Small numbers for colours, the same in both models."""

    def __init__(self) -> None:
        self._numbers: dict[Hashable, int] = {}

    def __call__(self, key: Hashable) -> int:
        return self._numbers.setdefault(key, len(self._numbers))


def pair(a: Uses, b: Uses, tags: tuple[Mapping[int, Hashable], Mapping[int, Hashable]] = ({}, {})) -> Pairing:
    """A bijection between the uses of two models.

    Parameters
    ----------
    a, b :
        Uses of the target and of the other model.
    tags :
        For each model, what the user said of its uses: only uses with equal tags are paired.

    Raises
    ------
    Unmatched
        The models do not do the same with their parameters.
    """
    table = _Table()
    both = (a, b)
    colours = [
        [table((use.kind, _rank(use), tag.get(i))) for i, use in enumerate(side.entries)]
        for side, tag in zip(both, tags, strict=True)
    ]
    ties: list[tuple[int, int]] = []
    while True:
        colours = _stable(both, colours, table)
        _expect_equal(both, colours, tags, table)
        groups = [_groups(side) for side in colours]
        open_groups = [(mine, groups[1][colour]) for colour, mine in groups[0].items() if len(mine) > 1]
        if not open_groups:
            break
        split = [_split(both, colours, mine, other, table) for mine, other in open_groups]  # all, not the first alone
        if not any(split):
            mine, other = _first_in_order(both, *open_groups[0])
            ties.append((mine, other))
            colours[0][mine] = colours[1][other] = table(("tie", len(ties)))
    back = {colour: i for i, colour in enumerate(colours[1])}
    axes = [_axis_colours(side, found, table) for side, found in zip(both, colours, strict=True)]
    return Pairing({i: back[colour] for i, colour in enumerate(colours[0])}, (axes[0], axes[1]), tuple(ties))


def _rank(use: Use) -> int:
    return len(use.block.places) if use.block else -1


# ----------------------------------------------------------------- refinement


def _stable(both: Sequence[Uses], colours: Sequence[Colours], table: _Table) -> list[Colours]:
    now = [list(side) for side in colours]
    while True:
        after = [_round(uses, side, table) for uses, side in zip(both, now, strict=True)]
        if [len(set(side)) for side in after] == [len(set(side)) for side in now]:
            return after
        now = after


def _round(uses: Uses, colours: Colours, table: _Table) -> Colours:
    axes = _axis_colours(uses, colours, table)
    base = [
        table((colour, tuple(sorted((axes[p.axis], p.consumed) for p in use.block.places)) if use.block else ()))
        for colour, use in zip(colours, uses.entries, strict=True)
    ]
    forward, backward = _forward(uses, base, table), _backward(uses, base, table)
    return [table((colour, f, b)) for colour, f, b in zip(base, forward, backward, strict=True)]


def _forward(uses: Uses, base: Colours, table: _Table) -> Colours:
    found: Colours = []
    for use, colour in zip(uses.entries, base, strict=True):
        found.append(table(("after", colour, tuple(sorted(found[i] for i in use.before)))))
    return found


def _backward(uses: Uses, base: Colours, table: _Table) -> Colours:
    after: dict[int, list[int]] = defaultdict(list)
    for k, output in enumerate(uses.outputs):
        for i in output:
            after[i].append(-1 - k)
    found = [0] * len(base)
    for i in reversed(range(len(base))):
        found[i] = table(("before", base[i], tuple(sorted(after[i]))))
        for j in uses.entries[i].before:
            after[j].append(found[i])
    return found


def _axis_colours(uses: Uses, colours: Colours, table: _Table) -> dict[int, int]:
    """An axis is known by what is done with the blocks that it runs along."""
    met: dict[int, set[tuple[int, bool]]] = defaultdict(set)
    for use, colour in zip(uses.entries, colours, strict=True):
        for place in use.block.places if use.block else ():
            met[place.axis].add((colour, place.consumed))
    return {axis: table(("axis", tuple(sorted(found)))) for axis, found in met.items()}


def _groups(colours: Colours) -> dict[int, list[int]]:
    found: dict[int, list[int]] = defaultdict(list)
    for i, colour in enumerate(colours):
        found[colour].append(i)
    return found


# ----------------------------------------------------------------------- ties


def _split(
    both: Sequence[Uses], colours: list[Colours], mine: Sequence[int], other: Sequence[int], table: _Table
) -> bool:
    """Tell the uses of one colour apart by a feature that has the same values in both models, if there is one."""
    for feature in (_operand_order, _bent, _sizes):
        keys = [[feature(side.entries[i]) for i in group] for side, group in zip(both, (mine, other), strict=True)]
        if len(set(keys[0])) > 1 and Counter(keys[0]) == Counter(keys[1]):
            for side, group, found in zip(colours, (mine, other), keys, strict=True):
                for i, key in zip(group, found, strict=True):
                    side[i] = table(("split", side[i], key))
            return True
    return False


def _operand_order(use: Use) -> Hashable:
    """Queries enter the scores of an attention before keys, however it is written."""
    return min(use.order, default=-1)


def _bent(use: Use) -> Hashable:
    """A gate goes through a function before it meets what it gates."""
    return bool(use.bent)


def _sizes(use: Use) -> Hashable:
    return tuple(sorted(place.size for place in use.block.places)) if use.block else ()


def _first_in_order(both: Sequence[Uses], mine: Sequence[int], other: Sequence[int]) -> tuple[int, int]:
    """The first uses of a group on both sides: by operand, by size (the larger first), then as the graph has them."""

    def key(side: Uses) -> Callable[[int], tuple[object, ...]]:
        def of(i: int) -> tuple[object, ...]:
            use = side.entries[i]
            numel = 1
            for place in use.block.places if use.block else ():
                numel *= place.size
            return min(use.order, default=-1), -numel, i

        return of

    return min(mine, key=key(both[0])), min(other, key=key(both[1]))


# --------------------------------------------------------------------- errors


def _expect_equal(
    both: tuple[Uses, Uses],
    colours: Sequence[Colours],
    tags: tuple[Mapping[int, Hashable], Mapping[int, Hashable]],
    table: _Table,
) -> None:
    if Counter(colours[0]) == Counter(colours[1]) and len(both[0].outputs) == len(both[1].outputs):
        return
    raise Unmatched(*_nearest(both, tags, table))


def _nearest(
    both: tuple[Uses, Uses], tags: tuple[Mapping[int, Hashable], Mapping[int, Hashable]], table: _Table
) -> tuple[Use | None, Use | None]:
    """Where two models part: the first uses that have no like in the other, looking forwards, then backwards."""
    base = [
        [table(("plain", use.kind, _rank(use), tag.get(i)))
         for i, use in enumerate(side.entries)]
        for side, tag in zip(both, tags, strict=True)
    ]  # fmt: skip
    for sweep in (_forward, _backward):
        found = [sweep(side, colour, table) for side, colour in zip(both, base, strict=True)]
        counts = [Counter(side) for side in found]
        lonely = [[i for i, colour in enumerate(side) if counts[0][colour] != counts[1][colour]] for side in found]
        if lonely[0] or lonely[1]:
            at = 0 if sweep is _forward else -1
            mine, other = (side.entries[group[at]] if group else None for side, group in zip(both, lonely, strict=True))
            return mine, other
    return next((use for use in both[0].entries if use.block), None), next(
        (use for use in both[1].entries if use.block), None
    )
