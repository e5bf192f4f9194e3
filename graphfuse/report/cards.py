"""From the nodes of a graph to the cards of its picture: fewer, each a step that a person would name.

A chain of ops without parameters joins the op before it; ops that only reshape what one of several readers gets, and
ops that only prepare parameters, join their reader. Works on the plain data of :mod:`graphfuse.report.graphdata`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from graphfuse.report.graphdata import Json

SHAPING = frozenset((
    "getitem", "view", "reshape", "permute", "transpose", "t", "unsqueeze", "squeeze", "expand", "expand_as", "clone",
    "contiguous", "slice", "select", "flatten", "unflatten", "to", "to_copy", "alias", "detach", "dropout",
))  # fmt: skip
"""Ops that move values without changing them."""


@dataclass
class Card:
    """One step: the ops it stands for, the tensors it reads, and where its values come from.

    ``inputs`` pairs the card that a value comes from with that value's label (nested lists, or None).
    """

    id: str
    kind: str
    module: str
    ops: list[str]
    tensors: list[str]
    inputs: list[tuple[str, Any]]
    dims: Any = None
    shape: list[int] | None = None
    source: str = ""
    nodes: list[str] = field(default_factory=list)


def cards_of(nodes: Iterable[Json]) -> list[Card]:
    """The cards of a graph's nodes, in order of execution."""
    listed = [
        Card(node["id"], node["kind"], node["module"], [node["op"]], list(node["tensors"]), [], node["dims"],
             node["shape"], node["source"], [node["id"]])
        for node in nodes
    ]  # fmt: skip
    by_id = {card.id: card for card in listed}
    for node, card in zip(nodes, listed, strict=True):
        card.inputs = [(name, by_id[name].dims) for name in dict.fromkeys(node["inputs"]) if name in by_id]
    listed = _fold_preparations(listed)
    listed = _fold_shaping(listed)
    return _fold_chains(listed)


def _readers(cards: Iterable[Card]) -> dict[str, list[Card]]:
    readers: dict[str, list[Card]] = {}
    for card in cards:
        for name, _ in card.inputs:
            readers.setdefault(name, []).append(card)
    return readers


def _fold_preparations(cards: list[Card]) -> list[Card]:
    """Ops on parameters alone join their first reader; ops on nothing (constants) vanish."""
    readers, gone = _readers(cards), set()
    for card in cards:  # in order of execution, so that what a preparation was given is handed on
        if card.kind != "op" or card.inputs:
            continue
        gone.add(card.id)
        for i, reader in enumerate(readers.get(card.id, [])):
            reader.inputs = [edge for edge in reader.inputs if edge[0] != card.id]
            if i == 0:
                reader.tensors = [*card.tensors, *reader.tensors]
                reader.nodes = [*card.nodes, *reader.nodes]
    return [card for card in cards if card.id not in gone]


def _fold_shaping(cards: list[Card]) -> list[Card]:
    """Where a value forks, ops that only reshape what one reader gets vanish into the wire to that reader."""
    readers, by_id, gone = _readers(cards), {card.id: card for card in cards}, set()
    for card in cards:
        after = readers.get(card.id, [])
        if card.kind != "op" or card.tensors or len(card.inputs) != 1 or card.ops[0] not in SHAPING or not after:
            continue
        before = card.inputs[0][0]
        forks = len(readers[before]) > 1 or by_id[before].kind == "input"
        if not forks and card.ops[0] != "getitem":
            continue
        gone.add(card.id)
        readers[before].remove(card)
        for reader in after:
            reader.inputs = [(before, dims) if name == card.id else (name, dims) for name, dims in reader.inputs]
            readers[before].append(reader)
    return [card for card in cards if card.id not in gone]


def _fold_chains(cards: list[Card]) -> list[Card]:
    """An op without parameters that alone reads the card before it joins that card."""
    readers, by_id, kept = _readers(cards), {card.id: card for card in cards}, []
    for card in cards:
        before = by_id[card.inputs[0][0]] if len(card.inputs) == 1 else None
        if (
            before is None or card.kind != "op" or card.tensors or before.kind != "op"
            or len({reader.id for reader in readers[card.inputs[0][0]]}) > 1
        ):  # fmt: skip
            kept.append(card)
            continue
        before.ops += card.ops
        before.nodes += card.nodes
        before.dims, before.shape = card.dims, card.shape
        by_id[card.id] = before
    for card in kept:
        card.inputs = [(by_id[name].id, dims) for name, dims in card.inputs]
    return kept
