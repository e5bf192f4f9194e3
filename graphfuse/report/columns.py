"""How the cards of a picture are shared out over columns: one for each module of a manageable size, in order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby, takewhile

from graphfuse.report.cards import Card

LARGEST = 18  # cards in a column
SMALLEST = 4


@dataclass(frozen=True)
class Column:
    """A run of cards that stand together, and the module path that they share (empty: the top)."""

    title: str
    path: str
    cards: tuple[Card, ...]


def columns_of(cards: Sequence[Card]) -> list[Column]:
    """Columns in order of execution: modules are opened until they are small enough, and small neighbours joined."""
    groups = _groups(cards)
    runs = [(key, list(run)) for key, run in groupby(cards, key=lambda card: groups[card.id])]
    return [_column(keys, run) for keys, run in _join(runs)]


def _groups(cards: Sequence[Card]) -> dict[str, str]:
    """For each card the outermost module around it that holds no more than :data:`LARGEST` cards."""
    if len(cards) <= LARGEST:
        return {card.id: "" for card in cards}
    found: dict[str, str] = {}

    def split(prefix: str, members: Sequence[Card]) -> None:
        below: dict[str, list[Card]] = {}
        for card in members:
            below.setdefault(_child(prefix, card.module), []).append(card)
        for path, inside in below.items():
            if path == prefix or len(inside) <= LARGEST:
                found.update((card.id, path) for card in inside)
            else:
                split(path, inside)

    split("", cards)
    return found


def _child(prefix: str, module: str) -> str:
    """The module path one level below a prefix; the prefix itself for what stands directly in it."""
    rest = module[len(prefix) + 1 if prefix else 0 :]
    return ".".join(filter(None, [prefix, rest.split(".")[0]]))


def _join(runs: list[tuple[str, list[Card]]]) -> list[tuple[list[str], list[Card]]]:
    """Runs of few cards join the column before them while it stays manageable and is not one module of its own."""
    joined: list[tuple[list[str], list[Card]]] = []
    for key, run in runs:
        keys, before = joined[-1] if joined else ([], [])
        welcome = bool(before) and (key == "" or not _is_whole(keys, before))
        if welcome and len(run) < SMALLEST and len(before) + len(run) <= LARGEST:
            joined[-1] = ([*keys, key], [*before, *run])
        else:
            joined.append(([key], run))
    return joined


def _is_whole(keys: list[str], cards: Sequence[Card]) -> bool:
    """Whether a column is one module of its own, which strangers should not join."""
    return len(set(keys) - {""}) == 1 and len(cards) >= SMALLEST


def _column(keys: list[str], cards: list[Card]) -> Column:
    names = list(dict.fromkeys(key for key in keys if key))
    path = ".".join(_shared([name.split(".") for name in names]))
    if len(names) <= 1:
        return Column(path, path, tuple(cards))
    tails = [name[len(path) :].lstrip(".") or name for name in names]
    shown = tails if len(tails) <= 3 else [tails[0], "…", tails[-1]]
    return Column(f"{path + ': ' if path else ''}{', '.join(shown)}", path, tuple(cards))


def _shared(paths: Sequence[Sequence[str]]) -> list[str]:
    """What all paths begin with."""
    return [words[0] for words in takewhile(lambda words: len(set(words)) == 1, zip(*paths, strict=False))]
