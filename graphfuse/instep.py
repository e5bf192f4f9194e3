"""Which node of one captured graph is which of another that does the same, layer by layer."""

from __future__ import annotations

from bisect import bisect, insort
from collections.abc import Mapping, Sequence
from difflib import SequenceMatcher

from torch import fx

from graphfuse.symmetry import SymmetryGraph


def node_pairs(a: SymmetryGraph, b: SymmetryGraph) -> list[tuple[str, str]]:
    """Nodes by position, inputs by name; of models of one depth none when the graphs run other ops."""
    calls = [[n for n in g.captured.graph.nodes if n.op == "call_function"] for g in (a, b)]
    inputs = {(slot.kind, slot.name): slot.node for slot in b.captured.inputs}
    shared = [
        (slot.node, inputs[slot.kind, slot.name]) for slot in a.captured.inputs if (slot.kind, slot.name) in inputs
    ]
    if [n.target for n in calls[0]] == [n.target for n in calls[1]]:
        return shared + [(one.name, two.name) for one, two in zip(*calls, strict=True)]
    parameters = [{slot.name for slot in g.captured.inputs if slot.kind == "parameter"} for g in (a, b)]
    if parameters[0] == parameters[1]:
        return []
    return shared + [(one.name, two.name) for one, two in _in_step(calls[0], calls[1], _anchors(a), _anchors(b))]


def _anchors(graph: SymmetryGraph) -> dict[str, str]:
    """Placeholder -> name of the parameter or buffer in it."""
    return {slot.node: slot.name for slot in graph.captured.inputs if slot.kind in ("parameter", "buffer")}


def _in_step(
    mine: Sequence[fx.Node], others: Sequence[fx.Node], names_a: Mapping[str, str], names_b: Mapping[str, str]
) -> list[tuple[fx.Node, fx.Node]]:
    """Pair the nodes of models of different depth in order: equal ops that read tensors of equal names.

    Where a layer without partner comes in between, what the next one reads is that layer's output in one model and its
    input in the other; these are paired too, so that a node of the less deep model may occur twice, in a row.
    """
    tokens = [
        [(n.target, *(names.get(operand.name, "") for operand in n.all_input_nodes)) for n in nodes]
        for nodes, names in ((mine, names_a), (others, names_b))
    ]
    blocks = SequenceMatcher(None, *tokens, autojunk=False).get_matching_blocks()
    places = {block.a + i: block.b + i for block in blocks for i in range(block.size)}
    orders = [{node: i for i, node in enumerate(nodes)} for nodes in (mine, others)]
    known = sorted(places)
    for i in tuple(known):
        for left, right in zip(mine[i].all_input_nodes, others[places[i]].all_input_nodes, strict=True):
            place, other = orders[0].get(left), orders[1].get(right)
            if place is None or other is None or place in places:
                continue
            at = bisect(known, place)
            if (at == 0 or places[known[at - 1]] <= other) and other <= places[known[at]]:
                places[place] = other
                insort(known, place)
    return [(mine[i], others[k]) for i, k in sorted(places.items())]
