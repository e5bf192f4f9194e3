"""Align models of one architecture: from modules to maps, in four steps that can also be taken one by one."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from graphfuse.aligned import Aligned, Alignment
from graphfuse.config import FuseConfig
from graphfuse.correspond import Correspondence, correspond
from graphfuse.costs.evidence import Evidence, Problem
from graphfuse.costs.magnitude import magnitudes
from graphfuse.costs.moments import Measure
from graphfuse.costs.sites import sites
from graphfuse.costs.sources import Comparison, compared
from graphfuse.costs.weights import WeightEvidence
from graphfuse.errors import ConfigError, CorrespondenceError
from graphfuse.lockstep import Lockstep
from graphfuse.maps import identity
from graphfuse.prepared import Config, Prepared, Progress, prepare
from graphfuse.symmetry import Axis, TensorLabel
from graphfuse.together import Together
from graphfuse.transport.circuit import wire
from graphfuse.transport.coordinate import Solution, coordinate
from graphfuse.transport.flow import flow, places_of
from graphfuse.transport.wires import Wire, Wiring

__all__ = ["Aligned", "Alignment", "Prepared", "Progress", "align", "match", "prepare"]


def align(
    models: Sequence[nn.Module],
    args: tuple[Any, ...] | Tensor = (),
    kwargs: Mapping[str, Any] | None = None,
    *,
    data: Iterable[Any] | None = None,
    config: Config = None,
    rules: Iterable[Any] = (),
    progress: Progress | None = None,
) -> Alignment:
    """Find, for each model, which of its units play the roles of the target's units.

    Parameters
    ----------
    models : sequence of nn.Module
        Two or more that do the same computation; hidden widths may differ. Where names or layouts differ from those of
        the target, a model is first translated into them. They are left as they are.
    args, kwargs :
        Example inputs, as the models take them. With data they are not needed: its first batch is used.
    data : iterable of batches, optional
        Unlabelled inputs. A batch is a tensor, a tuple (positional arguments) or a dict (keyword arguments).
    config : FuseConfig, dict or path of a YAML file, optional
    rules :
        Further rule packs for tracing.
    progress : callable, optional
        Called with (stage, done, total).

    Returns
    -------
    Alignment
        ``print`` shows how well each axis is matched; ``apply`` moves a checkpoint, ``save`` and ``load`` keep it.

    Raises
    ------
    CorrespondenceError
        The models are not of one architecture.
    DataError
        There are fewer than two models, no inputs, or inputs that do not fit.
    CheckpointError
        A model holds values that are not finite.
    ConfigError
        A setting is unknown or cannot be used here.

    Examples
    --------
    >>> import torch
    >>> a, b = (torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2)) for _ in range(2))
    >>> sorted(align([a, b], torch.zeros(1, 4)).apply(b.state_dict(), model=1))
    ['0.bias', '0.weight', '2.bias', '2.weight']
    """
    return match(prepare(models, args, kwargs, data=data, config=config, rules=rules, progress=progress), progress)


def match(prepared: Prepared, progress: Progress | None = None) -> Alignment:
    """Solve the maps of every model onto the target."""
    relation, config = prepared.correspondence, prepared.config
    graph, target, count = relation.graph, relation.target, len(prepared.models)
    wiring = _wiring(prepared)
    notes = [*prepared.notes, *relation.notes, *wiring.notes]
    moving, labelled = {wire.axis.id for wire in wiring.wires}, wiring.labelled
    still = [axis for axis in relation.free if axis.id in labelled and axis.id not in moving]
    own = [wiring.without(relation.absent[k], relation.axes[k]) for k in range(count)]
    problems = [_problem(relation, wires, k) for k, wires in enumerate(own)]
    solutions = [Solution({}, {}, 0, 0.0)] * count
    for done, k in enumerate((k for k in range(count) if k != target), start=2):
        _check_still(prepared, still, k)
        solutions[k] = _solved(prepared, problems[k], own[k], k, notes, progress)
        if progress is not None:
            progress("match", done, count)
    if config.scheme != "anchor":
        solutions = _together(prepared, wiring, problems, solutions)
    models = []
    for k, (problem, found) in enumerate(zip(problems, solutions, strict=True)):
        rest = (wire.axis for wire in wiring.wires if wire.axis.id not in problem.moving)
        kept = {axis.id: identity(axis.id, axis.size) for axis in (*still, *rest)}
        maps = {**found.maps, **kept} if found.maps or k != target else {}
        sizes, layers = wiring.sizes(relation.sizes[k]), prepared.forms[k].layers
        models.append(Aligned(sizes, maps, found.agreement, found.sweeps, relation.absent[k], layers))
        notes += _remarks(models[-1], k, target) if k != target else []
    return Alignment(
        target=target,
        method=prepared.method,
        axes=(*(wire.axis for wire in wiring.wires), *still) if config.driver == "flow" else relation.free,
        labels=dict(wiring.labels),
        aliases=dict(graph.captured.aliases),
        models=tuple(models),
        folds=prepared.folds,
        notes=tuple(dict.fromkeys([*notes, *prepared.lockstep.notes])),
        nodes=wiring.nodes,
    )


def _together(
    prepared: Prepared, wiring: Wiring, problems: Sequence[Problem], anchored: Sequence[Solution]
) -> list[Solution]:
    """All models matched with each other, starting from their maps onto the target."""
    relation, config = prepared.correspondence, prepared.config
    if any(relation.absent):
        raise ConfigError(
            f"config: scheme: {config.scheme} needs models of one depth.\n  what to do: use scheme anchor"
        )
    compared_by = Comparison.of(config, prepared.method, prepared.lockstep, prepared.data)
    joint = Together(
        problems, relation, prepared.states, prepared.lockstep, _parameters(prepared, wiring), compared_by,
        _measure(config, prepared.method),
    )  # fmt: skip
    target = relation.target
    own = {axis.id: problems[target].start(axis) for axis in problems[target].axes}
    start = [own if k == target else found.maps for k, found in enumerate(anchored)]
    return list(joint.solve(start).solutions)


def _parameters(prepared: Prepared, wiring: Wiring, k: int | None = None) -> list[TensorLabel]:
    """The tensors that are compared: all that model ``k`` has."""
    relation = prepared.correspondence
    absent = relation.absent[k] if k is not None else ()
    return compared(relation.graph, wiring.labels, prepared.config, absent)


# ---------------------------------------------------------------------- steps


def _wiring(prepared: Prepared) -> Wiring:
    """The axes to be matched, and what stands in for them in the labels: themselves, unless maps flow along edges."""
    relation, config = prepared.correspondence, prepared.config
    axes = [axis for axis in relation.free if config.for_axis(axis.name, axis.role).align]
    if config.driver == "flow":
        return wire(relation.graph, axes, config.flow)
    wires = tuple(Wire(axis, (axis.id,)) for axis in axes)
    return Wiring(wires, relation.graph.tensors, prepared.lockstep.layouts)


def _problem(relation: Correspondence, wiring: Wiring, k: int) -> Problem:
    """The target's wires matched with those of one model."""
    axes = tuple(wire.axis for wire in wiring.wires)
    return Problem(axes, wiring.sizes(relation.sizes[relation.target]), wiring.sizes(relation.sizes[k]))


def _solved(
    prepared: Prepared, problem: Problem, wiring: Wiring, k: int, notes: list[str], progress: Progress | None
) -> Solution:
    """The maps of one model."""
    config, target = prepared.config, prepared.correspondence.target
    measure, flows = _measure(config, prepared.method), config.driver == "flow"
    spots = places_of(wiring, config) if flows else set()
    pair = None
    if prepared.method != "weights" or spots:
        _check_same_ops(prepared, k)
        pair = _pair(prepared, wiring, k, notes)
    evidence, importance = _evidence(prepared, problem, wiring, k, pair, progress)
    if not flows:
        return coordinate(problem, evidence, config, measure, importance)
    sizes = magnitudes(problem, pair, prepared.data, spots, prepared.states[target]) if pair is not None else {}
    return flow(problem, wiring, evidence, config, measure, sizes, importance)


def _evidence(
    prepared: Prepared, problem: Problem, wiring: Wiring, k: int, pair: Lockstep | None, progress: Progress | None
) -> tuple[Evidence, Evidence | None]:
    """Where likeness comes from, and the masses of units (None: all have the same)."""
    target, config = prepared.correspondence.target, prepared.config
    labels, flows = _parameters(prepared, wiring, k), config.driver == "flow"
    rows = {wire.axis.id: wire.tensors for wire in wiring.wires} if flows else None
    weights = WeightEvidence(problem, labels, prepared.states[target], prepared.states[k], rows)
    shown = None
    if flows and pair is not None:
        known = sites(pair.correspondence.graph, config.cost.site)
        shown = {wire.axis.id: wiring.sites(wire, known, config.cost.site == "post") for wire in wiring.wires}
    compared_by = Comparison.of(config, prepared.method, pair, prepared.data, shown, progress)
    return compared_by.evidence(problem, weights, pair)


def _pair(prepared: Prepared, wiring: Wiring, k: int, notes: list[str]) -> Lockstep:
    """The lockstep of the target and one other model."""
    lockstep, relation, states = prepared.lockstep, prepared.correspondence, prepared.states
    target = relation.target
    return Lockstep(
        [lockstep.models[target], lockstep.models[k]],
        correspond([relation.graphs[target], relation.graphs[k]], 0, [(), relation.absent[k]]),
        [states[target], states[k]],
        lockstep.retrace,
        notes,
        wiring.nodes,
        wiring.sizes,
    )


def _measure(config: FuseConfig, method: str) -> Measure:
    if config.metric == "auto" and method == "weights":
        return "squared"
    if config.metric == "auto":
        return "correlation" if config.cost.activations == "raw" else "euclidean"
    return config.metric


def _remarks(found: Aligned, k: int, target: int) -> list[str]:
    """What a person should know about a matching."""
    share = found.in_place
    if share is None or share < 0.9:
        return []
    return [
        f"the alignment of model {k} with model {target} is about the identity: {share:.1%} of the units stay in "
        "place, as with fine-tunes of one base"
    ]


# --------------------------------------------------------------------- checks


def _check_still(prepared: Prepared, still: Sequence[Axis], k: int) -> None:
    """Axes that keep their order must have one size."""
    relation, config = prepared.correspondence, prepared.config
    for axis in still:
        other = relation.sizes[k].get(axis.id, axis.size)
        if other != axis.size:
            kept = config.for_axis(axis.name, axis.role).align
            why = f"flow.heads: {config.flow.heads} keeps" if kept else "roles:"
            raise ConfigError(
                f"config: {why} {axis.name} {'in order' if kept else 'is not to be aligned'}, but its size is "
                f"{axis.size} in model {relation.target} and {other} in model {k}.\n"
                "  what to do: align it; only axes of equal size can be kept as they are"
            )


def _check_same_ops(prepared: Prepared, k: int) -> None:
    if not prepared.correspondence.nodes[k]:
        raise CorrespondenceError(
            f"models {prepared.correspondence.target} and {k} have the same parameters but run other ops, so their "
            "activations cannot be compared.\n  what to do: use method weights"
        )
