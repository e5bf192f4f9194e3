"""Align models of one architecture: from modules to maps, in four steps that can also be taken one by one."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

from graphfuse.aligned import Aligned, Alignment
from graphfuse.config import CostConfig
from graphfuse.correspond import Correspondence, correspond
from graphfuse.costs.evidence import Problem
from graphfuse.costs.magnitude import magnitudes
from graphfuse.costs.sites import sites
from graphfuse.costs.sources import Comparison, compared
from graphfuse.costs.weights import WeightEvidence
from graphfuse.errors import ConfigError, CorrespondenceError, DataError
from graphfuse.gauge import Elements, normal_forms, turned_back
from graphfuse.lockstep import Lockstep
from graphfuse.maps import identity
from graphfuse.prepared import Prepared, Progress, prepare
from graphfuse.scratch import Scratch
from graphfuse.symmetry import Axis, TensorLabel
from graphfuse.together import Together
from graphfuse.transport.circuit import wire
from graphfuse.transport.coordinate import Solution, coordinate, room_for
from graphfuse.transport.flow import flow, places_of
from graphfuse.transport.wires import Wire, Wiring

__all__ = ["Aligned", "Alignment", "Judge", "Prepared", "Progress", "frame", "match", "prepare"]

logger = logging.getLogger(__name__)

FLOWING = {"driver": "flow", "method": "activations", "solver": "sinkhorn"}
"""The settings of soft maps that flow along edges."""

Judge = Callable[[Alignment, Sequence[float]], float]
"""An alignment and the models' shares -> how bad their average is; the lower, the better."""


def match(prepared: Prepared, progress: Progress | None = None, judge: Judge | None = None) -> Alignment:
    """Solve the maps of every model onto the target.

    Where there are several solutions (method both), the one of the lowest ``judge`` is taken; without a judge the
    first, by weights from what activations found. Where widths differ, maps that flow are one of them.
    """
    found = _matched(prepared, progress, judge)
    if judge is None or not _flows_too(prepared):
        return found
    config = prepared.config.model_copy(update=FLOWING)
    flowing = _matched(replace(prepared, config=config, method="activations"), progress, None)
    options = found, replace(flowing, method=prepared.method)
    chosen = _best(options, judge, prepared.config.shares(len(prepared.models)), progress)
    logger.info("kept are %s", ("maps of axes", "maps that flow")[chosen])
    return options[chosen]


def _flows_too(prepared: Prepared) -> bool:
    """Whether the flow driver has a say: maps are couplings, not permutations, as widths differ."""
    relation, config = prepared.correspondence, prepared.config
    usual = config.driver == "default" and config.scheme == "anchor" and config.solver == "assignment"
    usual = usual and config.cost == CostConfig.model_validate({})  # whose costs were chosen with whole axes in mind
    own = relation.sizes[relation.target]
    differ = any(sizes.get(x.id, own[x.id]) != own[x.id] for sizes in relation.sizes for x in relation.free)
    return usual and not config.keeps and prepared.method == "both" and differ


def _matched(prepared: Prepared, progress: Progress | None, judge: Judge | None) -> Alignment:
    """The maps of every model onto the target, by one driver."""
    prepared, forms = normal_forms(prepared)
    task, notes = _Task.of(prepared, forms), list[str]()
    target, count = prepared.correspondence.target, len(prepared.models)
    solutions: dict[int, Solution] = {}
    for done, k in enumerate((k for k in range(count) if k != target), start=2):
        _check_still(prepared, task.still, k)
        with Scratch(room_for(task.problems[k])) as scratch:
            found = _solved(task, k, notes, progress, scratch)
        solutions[k] = found[0]
        if judge is not None and len(found) > 1:
            shares = [0.5 if i in (k, target) else 0.0 for i in range(count)]
            solutions[k] = found[_best([task.alignment({k: x}) for x in found], judge, shares, progress)]
        _log(task, k, solutions[k], found)
        if progress is not None:
            progress("match", done, count)
    if prepared.config.scheme != "anchor":
        solutions = _together(task, solutions)
    return task.alignment(solutions, notes)


def _log(task: _Task, k: int, chosen: Solution, found: Sequence[Solution]) -> None:
    which = f", number {found.index(chosen) + 1} of {len(found)} solutions" if len(found) > 1 else ""
    logger.info(
        "model %d matched with model %d in %d sweeps%s", k, task.prepared.correspondence.target, chosen.sweeps, which
    )
    for axis in task.problems[k].axes:
        if axis.id in chosen.agreement:
            logger.debug("model %d, %s: agreement %.3f", k, axis.name, chosen.agreement[axis.id].value)


def frame(prepared: Prepared, driver: str) -> Alignment:
    """All that an alignment of these models by a driver has but the maps: axes, layouts, folds and sizes."""
    if prepared.config.driver == "default":
        prepared = replace(prepared, config=prepared.config.model_copy(update={"driver": driver}))
    prepared, forms = normal_forms(prepared)
    return _Task.of(prepared, forms).alignment({})


@dataclass(frozen=True, eq=False)
class _Task:
    """What is matched: all wires, the axes that keep their order, each model's own wires and problem.

    ``forms`` is what was done to each model to bring it to the normal form that it has here.
    """

    prepared: Prepared
    wiring: Wiring
    still: Sequence[Axis]
    own: Sequence[Wiring]
    problems: Sequence[Problem]
    forms: Sequence[Elements]

    @classmethod
    def of(cls, prepared: Prepared, forms: Sequence[Elements]) -> _Task:
        relation, wiring = prepared.correspondence, _wiring(prepared)
        moving, labelled = {wire.axis.id for wire in wiring.wires}, wiring.labelled
        still = [axis for axis in relation.free if axis.id in labelled and axis.id not in moving]
        own = [wiring.without(relation.absent[k], relation.axes[k]) for k in range(len(prepared.models))]
        problems = [_problem(relation, wires, k) for k, wires in enumerate(own)]
        return cls(prepared, wiring, still, own, problems, forms)

    def alignment(self, solutions: Mapping[int, Solution], notes: Sequence[str] = ()) -> Alignment:
        """The solutions of models, by their numbers, as one alignment; a model without one keeps its order."""
        prepared, wiring, relation = self.prepared, self.wiring, self.prepared.correspondence
        models, remarks = [], list[str]()
        for k, problem in enumerate(self.problems):
            found = solutions.get(k, _NOTHING)
            rest = (wire.axis for wire in wiring.wires if wire.axis.id not in problem.moving)
            kept = {axis.id: identity(axis.id, axis.size) for axis in (*self.still, *rest)}
            turned = turned_back(found.maps, self.forms[k], self.forms[relation.target])
            maps = {**turned, **kept} if found.maps or k != relation.target else {}
            sizes, layers = wiring.sizes(relation.sizes[k]), prepared.forms[k].layers
            models.append(Aligned(sizes, maps, found.agreement, found.sweeps, relation.absent[k], layers))
            remarks += _remarks(models[-1], k, relation.target) if k != relation.target else []
        notes = [*prepared.notes, *relation.notes, *wiring.notes, *notes, *remarks, *prepared.lockstep.notes]
        flows = prepared.config.driver == "flow"
        return Alignment(
            target=relation.target,
            method=prepared.method,
            axes=(*(wire.axis for wire in wiring.wires), *self.still) if flows else relation.free,
            labels=dict(wiring.labels),
            aliases=dict(relation.graph.captured.aliases),
            models=tuple(models),
            folds=prepared.folds,
            notes=tuple(dict.fromkeys(notes)),
            nodes=wiring.nodes,
            driver="flow" if flows else "coordinate",
        )


_NOTHING = Solution({}, {}, 0, 0.0)


def _best(options: Sequence[Alignment], judge: Judge, shares: Sequence[float], progress: Progress | None) -> int:
    """Which alignment makes the best average, in these shares; the first where that cannot be told."""
    try:
        costs = list[float]()
        for option in options:
            costs.append(judge(option, shares))
            if progress is not None:
                progress("choose", len(costs), len(options))
        return costs.index(min(costs))
    except DataError:  # no outputs that could be compared
        return 0


def _together(task: _Task, anchored: Mapping[int, Solution]) -> dict[int, Solution]:
    """All models matched with each other, starting from their maps onto the target."""
    prepared, problems = task.prepared, task.problems
    relation, config = prepared.correspondence, prepared.config
    if any(relation.absent):
        raise ConfigError(
            f"config: scheme: {config.scheme} needs models of one depth.\n  what to do: use scheme anchor"
        )
    comparison = Comparison.of(config, prepared.method, prepared.lockstep, prepared.data)
    parameters, target = _parameters(prepared, task.wiring), relation.target
    joint = Together(problems, relation, prepared.states, prepared.lockstep, parameters, comparison)
    own = {axis.id: problems[target].start(axis) for axis in problems[target].axes}
    start = [own if k == target else anchored[k].maps for k in range(len(problems))]
    return dict(enumerate(joint.solve(start).solutions))


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


def _solved(task: _Task, k: int, notes: list[str], progress: Progress | None, scratch: Scratch) -> list[Solution]:
    """The maps of one model: one solution; of method both one for each start of the sweeps, and the first start."""
    prepared, problem, wiring = task.prepared, task.problems[k], task.own[k]
    config, target, method = prepared.config, prepared.correspondence.target, prepared.method
    flows = config.driver == "flow"
    spots = places_of(wiring, config) if flows else set()
    pair = None
    if method != "weights" or spots:
        _check_same_ops(prepared, k)
        pair = _pair(prepared, wiring, k, notes)
    rows = {wire.axis.id: wire.tensors for wire in wiring.wires} if flows else None
    parameters, states = _parameters(prepared, wiring, k), prepared.states
    weights = WeightEvidence(problem, parameters, states[target], states[k], rows)
    comparison = Comparison.of(config, method, pair, prepared.data, _shown(prepared, wiring, pair), progress)
    evidence, importance = comparison.evidence(problem, weights, pair, scratch)
    if flows:
        sizes = magnitudes(problem, pair, prepared.data, spots, states[target]) if pair is not None else {}
        return [flow(problem, wiring, evidence, config, config.metric_for(method), sizes, importance)]
    found = coordinate(problem, evidence, config, config.metric_for(method), importance)
    if method != "both":
        return [found]
    again = partial(coordinate, problem, weights, config, config.metric_for("weights"), importance)
    return [again(found.maps), again(), found]


def _shown(prepared: Prepared, wiring: Wiring, pair: Lockstep | None) -> Mapping[int, Sequence[str]] | None:
    """Where wires are looked at when maps flow along edges; None: as the cost says."""
    if pair is None or prepared.config.driver != "flow":
        return None
    site = prepared.config.cost.site
    known = sites(pair.correspondence.graph, site)
    return {wire.axis.id: wiring.sites(wire, known, site == "post") for wire in wiring.wires}


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
