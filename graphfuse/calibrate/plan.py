"""Where a calibration stops, and what it does there, read off the target's symmetry graph."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import fx

from graphfuse.calibrate.regression import Regression, regression_of
from graphfuse.config import CalibrateConfig
from graphfuse.symmetry import Contraction, Statistics, SymmetryGraph

ATEN = torch.ops.aten
PASSING = {ATEN.clone.default, ATEN.alias.default, ATEN.detach.default, ATEN.contiguous.default, ATEN.dropout.default}
"""Ops that hand on their first argument as it is, in eval mode."""


@dataclass(frozen=True, eq=False)
class Fit:
    """A contraction to be solved. ``skip`` is the other operand of the sum that its output goes into, if any."""

    contraction: Contraction
    regression: Regression
    module: str
    skip: str | None


@dataclass(frozen=True, eq=False)
class Plan:
    """Nodes in the order in which they are visited, and what is due at each."""

    stops: tuple[str, ...]
    fits: Mapping[str, Fit]
    statistics: Mapping[str, tuple[Statistics, ...]]
    operands: frozenset[str]
    skips: frozenset[str]
    spent: Mapping[str, frozenset[str]]
    left: tuple[tuple[str, str], ...]


def plan_of(graph: SymmetryGraph, config: CalibrateConfig) -> Plan:
    """What to do at which node.

    ``operands`` and ``skips`` are nodes whose value, or whose drift, a later stop reads; ``spent`` maps a stop to those
    that none reads after it. ``left`` pairs weights and statistics that stay averaged with the reason.
    """
    nodes = {node.name: node for node in graph.captured.graph.nodes}
    order = {name: i for i, name in enumerate(nodes)}
    fits: dict[str, Fit] = {}
    solved = config.method != "batch_norm"
    left = _shared(graph) if solved else []
    for found in graph.contractions if solved else ():
        regression = regression_of(nodes[found.node], found)
        if regression is None:
            left.append((found.weight, "not a plain matrix product"))
        elif found.operand not in graph.nodes or graph.nodes.get(found.node) is None:
            left.append((found.weight, "no label"))
        else:
            skip = _skip(nodes[found.node]) if config.drift and config.method == "least_squares" else None
            known = skip is not None and order[skip.name] < order[found.node] and graph.nodes.get(skip.name) is not None
            module = graph.captured.site(nodes[found.node]).module
            fits[found.node] = Fit(found, regression, module, skip.name if skip is not None and known else None)
    statistics: dict[str, tuple[Statistics, ...]] = {}
    times = Counter(found.mean for found in graph.statistics)
    for found in graph.statistics if config.batch_norm else ():
        if times[found.mean] > 1:
            left.append((found.mean, "used by several nodes"))
        else:
            statistics[found.operand] = (*statistics.get(found.operand, ()), found)
    last: dict[str, str] = {}
    for name in sorted(fits, key=order.__getitem__):
        last |= dict.fromkeys([fits[name].contraction.operand, fits[name].skip or ""], name)
    return Plan(
        stops=tuple(sorted({*fits, *statistics, *last} - {""}, key=order.__getitem__)),
        fits=fits,
        statistics=statistics,
        operands=frozenset(fit.contraction.operand for fit in fits.values()),
        skips=frozenset(fit.skip for fit in fits.values() if fit.skip is not None),
        spent={name: frozenset(key for key, end in last.items() if end == name) for name in set(last.values())},
        left=tuple(dict.fromkeys(left)),
    )


def _shared(graph: SymmetryGraph) -> list[tuple[str, str]]:
    """Matrices that several nodes read: there is no one output that they should give."""
    names = {slot.node: slot.name for slot in graph.captured.inputs if slot.kind == "parameter"}
    return [
        (names[node.name], "used by several nodes")
        for node in graph.captured.graph.find_nodes(op="placeholder")
        if node.name in names and len(node.users) > 1 and len(node.meta["val"].shape) > 1
    ]


def _skip(node: fx.Node) -> fx.Node | None:
    """When all that becomes of a node is a term of a plain sum: the other term, of the same shape."""
    shape = node.meta["val"].shape
    while len(node.users) == 1:
        (user,) = node.users
        if user.target == ATEN.add.Tensor:
            others = [term for term in user.args if isinstance(term, fx.Node) and term is not node]
            plain = not user.kwargs and len(others) == 1 and others[0].op == "call_function"
            return others[0] if plain and others[0].meta["val"].shape == shape else None
        if user.target not in PASSING or user.args[0] is not node:
            return None
        node = user
    return None
