"""What is done at each stop on the way through the graph, with all models at the same node."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from graphfuse.aligned import Aligned
from graphfuse.average import uncovered
from graphfuse.axes import Layout
from graphfuse.calibrate.fit import Evidence, Fitted, fit
from graphfuse.calibrate.plan import Fit, Plan
from graphfuse.calibrate.published import rescaled
from graphfuse.calibrate.walk import Lane
from graphfuse.config import CalibrateConfig
from graphfuse.symmetry import Statistics


@dataclass(frozen=True)
class Solved:
    """What became of one contraction.

    ``before`` and ``after`` are the squared error on the held-out rows with the averaged and with the kept weight, as
    shares of the mean squared target (of method repair those of the units' means and deviations, on all rows); ``step``
    is how far the weight went from the one to the other (0: it stayed), and ``ridge`` what pulled at it.
    """

    node: str
    module: str
    weight: str
    step: float
    before: float
    after: float
    ridge: float | None = None

    @property
    def kept(self) -> bool:
        """Whether the solved weight is used, wholly or in part."""
        return self.step > 0


@dataclass(eq=False)
class Work:
    """What is known while walking: values that later stops read, and what became of the stops so far."""

    plan: Plan
    settings: CalibrateConfig
    lanes: Sequence[Lane]
    state: dict[str, Tensor]
    shares: Sequence[float]
    models: Sequence[Aligned]
    operands: dict[str, list[Tensor]] = field(default_factory=dict)
    covered: Mapping[int, Tensor] = field(default_factory=dict)
    drifts: dict[str, list[Tensor]] = field(default_factory=dict)
    sources: dict[str, dict[int, list[Tensor]]] = field(default_factory=dict)
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
                values = self._fit(due, values, having, rows)
        means = self._means(name, self._having()) if name in self.plan.skips else None
        if means is not None:
            self.drifts[name] = [mean - value for mean, value in zip(means, values, strict=True)]
        if name in self.plan.operands:
            self.operands[name] = values
            if self.settings.method == "regmean":
                each = {k: self._parents(name, [k]) for k in self._having()}
                self.sources[name] = {k: [value for (value,) in own] for k, own in each.items() if own is not None}
        for found in self.plan.statistics.get(name, ()):
            self._estimate(found, name, values)
        for spent in self.plan.spent.get(name, ()):
            for values_of in (self.operands, self.drifts, self.sources):
                values_of.pop(spent, None)

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
        if parents is None:
            return None
        pairs = zip(self.lanes, parents, strict=True)
        return [self._mean(each, having, lane.labels[name][0] or (), lane.sizes) for lane, each in pairs]

    def _leave(self, due: Fit | None, reason: str) -> None:
        if due is not None:
            self.left.append((due.contraction.weight, reason))

    def _fit(
        self, due: Fit, values: list[Tensor], having: Sequence[int], rows: Sequence[Tensor] | None
    ) -> list[Tensor]:
        """Solve one contraction; returns its outputs with the weight that it then has."""
        found, inputs = due.contraction, self.operands.get(due.contraction.operand)
        parents = self._parents(found.node, having)
        fitted = None if parents is None or inputs is None else self._solve(due, inputs, values, parents, having, rows)
        if fitted is None or inputs is None:
            self._leave(due, "no counterpart in another model")
            return values
        figures = fitted.step, fitted.before, fitted.after, fitted.ridge
        self.solved.append(Solved(found.node, due.module, found.weight, *figures))
        if fitted.weight is None:
            return values
        self.state[found.weight] += fitted.weight.to(self.state[found.weight])
        if found.bias is not None and fitted.offset is not None:
            self.state[found.bias] += fitted.offset.to(self.state[found.bias])
        pairs = zip(self.lanes, inputs, strict=True)
        return [lane.again(found.node, found.operand, x, self.state) for lane, x in pairs]

    def _solve(
        self, due: Fit, inputs: list[Tensor], values: list[Tensor], parents: list[list[Tensor]],
        having: Sequence[int], rows: Sequence[Tensor] | None,
    ) -> Fitted | None:  # fmt: skip
        """The change of one contraction's weight by the method; None where a parent lacks what it needs."""
        found, settings, shares = due.contraction, self.settings, self._shares(having)
        bias = self.state[found.bias] if found.bias is not None else None
        if settings.method == "repair":
            return rescaled(due.regression, self.state[found.weight], bias, values, parents, shares)
        evidence = []
        if settings.method == "least_squares":
            means, drifts = self._means(found.node, having) or [], self.drifts.get(due.skip or "")
            if drifts is not None:
                means = [mean + drift for mean, drift in zip(means, drifts, strict=True)]
            evidence.append(Evidence(inputs, values, means, rows))
        else:
            sources = self.sources.get(found.operand, {})
            if not all(k in sources for k in having):
                return None
            for i, (k, share) in enumerate(zip(having, shares, strict=True)):
                own = list(zip(self.lanes, sources[k], strict=True))
                outputs = [lane.of(found.node, found.operand, x, self.state) for lane, x in own]
                evidence.append(Evidence(sources[k], outputs, [each[i] for each in parents], share=share))
        return fit(due.regression, evidence, settings.ridges, settings.holdout, bias is not None)

    def _shares(self, having: Sequence[int]) -> list[float]:
        """The parents' relative shares."""
        total = sum(self.shares[k] for k in having)
        return [self.shares[k] / total for k in having]

    def _mean(
        self, values: Sequence[Tensor], having: Sequence[int], dims: Layout, sizes: Mapping[int, int] | None = None
    ) -> Tensor:
        """The mean over parents, in their relative shares, of values with these labels."""
        mean = torch.stack([share * value for share, value in zip(self._shares(having), values, strict=True)]).sum(0)
        return uncovered(mean, dims, (False,) * len(dims), self.covered, sizes)

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
            dims = (self.lanes[0].labels[name][0] or ())[1:2]
            mean = self.state[found.mean] + mean - self._mean([m for m, _ in each], having, dims)
            usual = self._mean([v for _, v in each], having, dims)
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
