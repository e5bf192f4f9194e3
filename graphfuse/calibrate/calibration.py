"""One pass over the graph: statistics re-estimated, contractions solved, each seeing what was calibrated before it."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor

from graphfuse.aligned import Aligned, Alignment
from graphfuse.calibrate.fit import Evidence, fit
from graphfuse.calibrate.plan import Fit, Plan, plan_of
from graphfuse.calibrate.sensitivity import row_weights, sensitivities
from graphfuse.calibrate.walk import Lane, lanes_of
from graphfuse.config import CalibrateConfig
from graphfuse.prepared import Prepared
from graphfuse.symmetry import Statistics

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Solved:
    """What became of one contraction.

    ``before`` and ``after`` are the squared error on the held-out rows with the averaged and with the kept weight, as
    shares of the mean squared target; ``step`` is how far the weight went from the one to the other (0: it stayed).
    """

    node: str
    module: str
    weight: str
    step: float
    before: float
    after: float

    @property
    def kept(self) -> bool:
        """Whether the solved weight is used, wholly or in part."""
        return self.step > 0


@dataclass(frozen=True, eq=False)
class Calibration:
    """A calibrated state and the account of it.

    ``left`` has the weights and statistics that stay averaged, with the reason; ``inputs`` counts the inputs used.
    """

    state: Mapping[str, Tensor]
    nodes: tuple[Solved, ...]
    statistics: tuple[str, ...]
    left: tuple[tuple[str, str], ...]
    inputs: int
    seconds: float
    notes: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Plain values for programs."""
        return {
            "inputs": self.inputs,
            "seconds": round(self.seconds, 3),
            "solved": [asdict(node) for node in self.nodes],
            "statistics": list(self.statistics),
            "left": [{"tensor": name, "reason": reason} for name, reason in self.left],
            "notes": list(self.notes),
        }


@torch.no_grad()
def calibrate(
    prepared: Prepared,
    alignment: Alignment,
    state: Mapping[str, Tensor],
    shares: Sequence[float],
    progress: Progress | None = None,
) -> Calibration:
    """Calibrate averaged weights on unlabelled inputs, in closed form.

    Parameters
    ----------
    prepared : Prepared
        The parents, with the data (``prepared.data``) and the settings (``prepared.config.calibrate``).
    alignment : Alignment
        Maps from each parent into the target's coordinates.
    state :
        Canonical name -> averaged tensor, in the target's shapes. Left as it is.
    shares : sequence of float
        Each parent's weight in the mean of the outputs; they sum to one.
    progress : callable, optional
        Called with ("calibrate", done, total).

    Returns
    -------
    Calibration
        With a new state.

    Raises
    ------
    DataError
        A batch does not fit the models.
    """
    began = time.perf_counter()
    settings, lockstep = prepared.config.calibrate, prepared.lockstep
    fused = {name: tensor.clone() for name, tensor in state.items()}
    plan = plan_of(lockstep.correspondence.graph, settings)
    lanes = lanes_of(lockstep, prepared.states, prepared.data, shares, fused, alignment.nodes)
    work = _Work(plan, settings, lanes, fused, shares, alignment.models)
    weights, notes = _row_weights(plan, lanes, prepared)
    for done, name in enumerate(plan.stops, start=1):
        work.visit(name, weights.get(name))
        if progress is not None:
            progress("calibrate", done, len(plan.stops))
    return Calibration(
        state=fused,
        nodes=tuple(work.solved),
        statistics=tuple(work.estimated),
        left=(*plan.left, *work.left),
        inputs=sum(lane.batch.count for lane in lanes),
        seconds=time.perf_counter() - began,
        notes=tuple(dict.fromkeys([*notes, *lockstep.notes])),
    )


def _row_weights(plan: Plan, lanes: Sequence[Lane], prepared: Prepared) -> tuple[dict[str, list[Tensor]], list[str]]:
    """For each contraction the weights of its rows, by how much the target's outputs depend on them."""
    power = prepared.config.calibrate.sensitivity
    if power == 0 or not plan.fits:
        return {}, []
    found: dict[str, list[Tensor]] = {}
    for i, lane in enumerate(lanes):
        called = {lane.here(name): name for name in plan.fits}
        fits = {here: plan.fits[name].regression for here, name in called.items() if here is not None}
        state = prepared.states[lane.target]
        try:
            rows = sensitivities(lane.fitting.graph.captured, state, lane.batch, fits, prepared.config.seed + i)
        except (RuntimeError, NotImplementedError) as error:
            return {}, [f"all rows count the same in the least squares, as the graph has no gradient: {error}"]
        for here, values in rows.items():
            found.setdefault(called[here], []).append(values)
    weights = {name: row_weights(values, power) for name, values in found.items() if len(values) == len(lanes)}
    return {name: values for name, values in weights.items() if values is not None}, []


@dataclass(eq=False)
class _Work:
    """What is known while walking: values that later stops read, and what became of the stops so far."""

    plan: Plan
    settings: CalibrateConfig
    lanes: Sequence[Lane]
    state: dict[str, Tensor]
    shares: Sequence[float]
    models: Sequence[Aligned]
    operands: dict[str, list[Tensor]] = field(default_factory=dict)
    drifts: dict[str, list[Tensor]] = field(default_factory=dict)
    solved: list[Solved] = field(default_factory=list)
    estimated: list[str] = field(default_factory=list)
    left: list[tuple[str, str]] = field(default_factory=list)
    recent: tuple[tuple[str, tuple[int, ...]], list[list[Tensor]]] | None = None

    def visit(self, name: str, rows: Sequence[Tensor] | None) -> None:
        """Run all models on to a node, and do there what is due."""
        due = self.plan.fits.get(name)
        if any(lane.here(name) is None for lane in self.lanes):
            self._leave(due, "no counterpart in the graph of a batch of another shape")
            return
        values = [lane.at(name) for lane in self.lanes]
        if due is not None:
            having = self._having(due.contraction.weight)
            if len(having) == 1 and having != self._having():
                self._leave(due, "only one model has this layer")
            else:
                values = self._fit(due, values, self._means(name, having), rows)
        means = self._means(name, self._having()) if name in self.plan.skips else None
        if means is not None:
            self.drifts[name] = [mean - value for mean, value in zip(means, values, strict=True)]
        if name in self.plan.operands:
            self.operands[name] = values
        for found in self.plan.statistics.get(name, ()):
            self._estimate(found, name, values)
        for spent in self.plan.spent.get(name, ()):
            self.operands.pop(spent, None)
            self.drifts.pop(spent, None)

    def _having(self, tensor: str = "") -> list[int]:
        """The parents that have a share and a counterpart of a tensor of the target."""
        return [k for k, share in enumerate(self.shares) if share and tensor not in self.models[k].absent]

    def _parents(self, name: str, having: Sequence[int]) -> list[list[Tensor]] | None:
        """The values of these parents at a node, batch by batch; None where one has no counterpart of the node."""
        if not having or not all(lane.comparable(name, self.models, having) for lane in self.lanes):
            return None
        at = name, tuple(having)
        if self.recent is None or self.recent[0] != at:
            self.recent = at, [lane.aligned(name, self.models, having) for lane in self.lanes]
        return self.recent[1]

    def _means(self, name: str, having: Sequence[int]) -> list[Tensor] | None:
        parents = self._parents(name, having)
        return None if parents is None else [self._mean(each, having) for each in parents]

    def _leave(self, due: Fit | None, reason: str) -> None:
        if due is not None:
            self.left.append((due.contraction.weight, reason))

    def _fit(
        self, due: Fit, values: list[Tensor], means: list[Tensor] | None, rows: Sequence[Tensor] | None
    ) -> list[Tensor]:
        """Solve one contraction; returns its outputs with the weight that it then has."""
        found = due.contraction
        inputs, drifts = self.operands.get(found.operand), self.drifts.get(due.skip or "")
        if means is None or inputs is None:
            self._leave(due, "no counterpart in another model")
            return values
        if drifts is not None:
            means = [mean + drift for mean, drift in zip(means, drifts, strict=True)]
        evidence = Evidence(inputs, values, means, rows)
        fitted = fit(due.regression, evidence, self.settings.ridge, self.settings.holdout, found.bias is not None)
        self.solved.append(Solved(found.node, due.module, found.weight, fitted.step, fitted.before, fitted.after))
        if fitted.weight is None:
            return values
        self.state[found.weight] += fitted.weight.to(self.state[found.weight])
        if found.bias is not None and fitted.offset is not None:
            self.state[found.bias] += fitted.offset.to(self.state[found.bias])
        pairs = zip(self.lanes, inputs, strict=True)
        return [lane.again(found.node, found.operand, x, self.state) for lane, x in pairs]

    def _mean(self, values: Sequence[Tensor], having: Sequence[int]) -> Tensor:
        """The mean over parents, in their relative shares."""
        total = sum(self.shares[k] for k in having)
        return torch.stack([self.shares[k] / total * value for k, value in zip(having, values, strict=True)]).sum(0)

    def _estimate(self, found: Statistics, name: str, values: list[Tensor]) -> None:
        """Statistics of what a batch norm is about to read.

        They are the averaged ones, moved by as much as the fused model's activations differ from its parents' on these
        inputs, so that a model fused with itself stays what it is.
        """
        mean, var = _statistics(values)
        having = self._having(found.mean)
        parents = self._parents(name, having)
        if parents is not None:
            each = [_statistics(list(own)) for own in zip(*parents, strict=True)]
            mean = self.state[found.mean] + mean - self._mean([m for m, _ in each], having)
            usual = self._mean([v for _, v in each], having)
            var = torch.where(usual > 0, self.state[found.var] * var / usual, self.state[found.var].double())
        self.state[found.mean].copy_(mean)
        self.state[found.var].copy_(var)
        self.estimated.append(found.mean)


def _statistics(values: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Mean and variance of each channel over all inputs, in float64."""
    rows = [value.movedim(1, -1).flatten(0, -2) for value in values]
    count = sum(len(part) for part in rows)
    mean = torch.stack([part.sum(0, dtype=torch.float64) for part in rows]).sum(0) / count
    squares = torch.stack([(part.double() - mean).square().sum(0) for part in rows]).sum(0)
    return mean, squares / max(count - 1, 1)
