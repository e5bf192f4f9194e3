"""Tables that two models read at other rows: positions that count from 0 in one and from 2 in the other."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, fx

from graphfuse.capture import state_of
from graphfuse.matching.refine import Pairing
from graphfuse.matching.skeleton import Uses


def offsets_of(a: Uses, b: Uses, pairing: Pairing) -> dict[str, int]:
    """Target's table -> how many rows further on the other model reads its own, on the example inputs.

    Only tables that one op reads, by whole numbers, and at the same distance throughout.
    """
    pairs = dict(_tables(a, b, pairing))
    if not pairs:
        return {}
    mine = _rows(a, {node for node, _ in pairs.values()})
    other = _rows(b, {node for _, node in pairs.values()})
    found = {}
    for name, (left, right) in pairs.items():
        first, second = mine.get(left), other.get(right)
        if first is not None and second is not None and (apart := _apart(first, second)) is not None:
            found[name] = apart
    return found


def _apart(first: Tensor, second: Tensor) -> int | None:
    try:
        difference = (second - first).unique()
    except RuntimeError:  # indices of shapes that do not go together
        return None
    return int(difference) if len(difference) == 1 else None


def _tables(a: Uses, b: Uses, pairing: Pairing) -> Iterator[tuple[str, tuple[str, str]]]:
    """Tables that correspond, each with the op that reads it in either model."""
    for i, k in pairing.uses.items():
        mine, other = a.entries[i], b.entries[k]
        if mine.kind == "looked up" and mine.block is not None and other.block is not None:
            yield mine.block.tensor, (mine.node, other.node)


def _rows(uses: Uses, nodes: set[str]) -> Mapping[str, Tensor]:
    """The row numbers that some ops look up, on the model's example inputs."""
    graph = uses.graph
    wanted: dict[str, list[str]] = {}
    for node in graph.captured.graph.nodes:
        if node.name in nodes and len(node.args) > 1 and isinstance(node.args[1], fx.Node):
            wanted.setdefault(node.args[1].name, []).append(node.name)
    found: dict[str, Tensor] = {}
    with torch.no_grad():
        for node, value in graph.captured.steps(graph.captured.bind(state_of(graph.model), graph.args, graph.kwargs)):
            for reader in wanted.get(node.name, ()):
                if isinstance(value, Tensor) and not value.is_floating_point():
                    found[reader] = value
    return found
