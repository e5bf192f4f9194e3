"""Models measured on labelled data, and how good the models on the line between two of them are."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from graphfuse.aligned import Alignment
from graphfuse.capture import state_of
from graphfuse.config import FuseConfig
from graphfuse.errors import DataError, GraphFuseError
from graphfuse.evaluation.metrics import Metric, Named, metrics_for, scores_of
from graphfuse.evaluation.states import State, alike, at, batch_norms, line, mean_state, restated
from graphfuse.fuse import FuseResult
from graphfuse.lockstep import Batch, as_batch
from graphfuse.prepared import Progress
from graphfuse.tables import Table
from graphfuse.teacher import run_model

POINTS = 11

logger = logging.getLogger(__name__)

Values = Mapping[str, float]


@dataclass(frozen=True)
class Curve:
    """A metric at evenly spaced points of the straight line from the target's weights to another model's.

    ``barrier`` is how far it is worse than the line between its own ends, where it is worst: 0 at best.
    """

    metric: str
    values: tuple[float, ...]
    barrier: float

    @classmethod
    def of(cls, metric: Metric, values: Sequence[float]) -> Curve:
        """With the barrier of these values."""
        first, last, steps = values[0], values[-1], len(values) - 1
        straight = [first + (last - first) * i / steps for i in range(steps + 1)]
        worse = [(a - b) if metric.higher else (b - a) for a, b in zip(straight, values, strict=True)]
        return cls(metric.name, tuple(values), max(0.0, *worse))


@dataclass(frozen=True)
class Evaluation:
    """Metric by name -> value for each model; None for what could not be made (``notes`` says why) or was not given.

    ``ensemble`` is the mean of the parents' outputs, ``plain`` the mean of their weights as they are. ``before`` and
    ``after`` are the lines between two parents, without and with alignment.
    """

    metrics: tuple[str, ...]
    inputs: int
    parents: tuple[Values, ...]
    ensemble: Values | None = None
    plain: Values | None = None
    fused: Values | None = None
    before: Curve | None = None
    after: Curve | None = None
    notes: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Plain values for programs."""
        return asdict(self)

    @property
    def table(self) -> Table:
        """One row for each model that was measured."""
        found = [(f"parent {k}", values) for k, values in enumerate(self.parents)]
        found += [("ensemble", self.ensemble), ("plain average", self.plain), ("fused", self.fused)]
        rows = [(name, *(f"{values[m]:.4f}" for m in self.metrics)) for name, values in found if values is not None]
        return Table(f"on {self.inputs} inputs", ("model", *self.metrics), tuple(rows), self.notes)

    @property
    def curves(self) -> Table | None:
        """The lines between two parents; None where there is none."""
        found = {name: one for name, one in (("before", self.before), ("after", self.after)) if one is not None}
        if not found:
            return None
        values = [one.values for one in found.values()]
        points = [(f"{i / (len(values[0]) - 1):.2f}", *(f"{v[i]:.4f}" for v in values)) for i in range(len(values[0]))]
        barrier = ("barrier", *(f"{one.barrier:.4f}" for one in found.values()))
        title = f"{self.metrics[0]} on the way from one parent to another, before and after alignment"
        return Table(title, ("share of the other", *found), (*points, barrier))

    def __str__(self) -> str:
        return "\n".join(str(table) for table in (self.curves, self.table) if table is not None)

    def _repr_html_(self) -> str:
        return "".join(table.html() for table in (self.table, self.curves) if table is not None)


def evaluate(
    models: Sequence[nn.Module],
    fused: FuseResult | nn.Module | None,
    data: Iterable[tuple[Any, Tensor]],
    metric: Named | Sequence[Named] | None = None,
    *,
    alignment: Alignment | None = None,
    weights: Sequence[float] | None = None,
    output: str | None = None,
    inputs: Iterable[Any] | None = None,
    points: int = POINTS,
    progress: Progress | None = None,
) -> Evaluation:
    """Measure parents, their ensemble, their plain average, what was fused of them, and the line between two of them.

    Parameters
    ----------
    models : sequence of nn.Module
        The parents; they are left as they are.
    fused : FuseResult, nn.Module or None
        What :func:`graphfuse.fuse` made of them.
    data : iterable of (inputs, targets)
        Labelled batches that fusing has not seen. Inputs as for ``fuse``; targets are classes (integers, in the shape
        of the outputs without their dim of classes; -100 does not count) or numbers in the outputs' shape.
    metric : str, Metric, callable, or several, optional
        ``accuracy``, ``loss`` (cross entropy), ``perplexity``, ``mse``, or a function of all outputs and all targets,
        of which more is better (:meth:`Metric.of` says otherwise). The first is that of the curves. By default what
        suits outputs and targets.
    alignment : Alignment, optional
        Of the models; by default that of the ``FuseResult``. Without, there is no line after alignment.
    weights : sequence of float, optional
        Shares of the models in ensemble and average; by default equal.
    output : str, optional
        Which output is judged, by default ``logits`` or the first.
    inputs : iterable of batches, optional
        On which the batch norms of averages are re-estimated; by default the inputs of the data, without labels.
    points : int
        On each line, both ends included.
    progress : callable, optional
        Called with ("evaluate", done, total).

    Raises
    ------
    DataError
        There are no models or no batches, or targets do not fit the outputs.
    ConfigError
        No metric or output has such a name.

    Examples
    --------
    >>> a, b = (nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)) for _ in range(2))
    >>> found = evaluate([a, b], None, [(torch.randn(20, 4), torch.arange(20) % 3)])
    >>> found.metrics, len(found.before.values)
    (('accuracy', 'loss'), 11)
    """
    if not models or points < 2:
        raise DataError("nothing to evaluate.\n  what to do: give one or more models, and at least two points")
    pairs = [(as_batch(one), targets) for one, targets in data]
    if not pairs:
        raise DataError("the data yields no batch.\n  what to do: give batches (inputs, targets)")
    shares = FuseConfig.parse({"weights": weights}).shares(len(models)) if weights else (1 / len(models),) * len(models)
    first = scores_of(_first_run(models[0], pairs[0][0]), output)
    chosen = metrics_for(metric, first, pairs[0][1])
    found = [as_batch(one) for one in inputs] if inputs is not None else [batch for batch, _ in pairs]
    run = _Run(tuple(models), pairs, chosen, shares, output, found, points, progress)
    if isinstance(fused, FuseResult):
        return run.evaluation(fused.model, alignment or fused.alignment)
    return run.evaluation(fused, alignment)


@torch.no_grad()
def _first_run(model: nn.Module, batch: Batch) -> Any:
    try:
        return run_model(model, None, batch)
    except Exception as error:
        raise DataError(
            f"{type(model).__name__} does not run on the first batch: {type(error).__name__}: {error}\n"
            "  what to do: give inputs as the models take them, of their dtypes and within their range of ids"
        ) from error


@dataclass(frozen=True, eq=False)
class _Run:
    """One evaluation: what is run on what."""

    models: tuple[nn.Module, ...]
    pairs: Sequence[tuple[Batch, Tensor]]
    metrics: tuple[Metric, ...]
    shares: Sequence[float]
    output: str | None
    inputs: Sequence[Batch]
    points: int
    progress: Progress | None

    def evaluation(self, fused: nn.Module | None, alignment: Alignment | None) -> Evaluation:
        states, notes = [state_of(model) for model in self.models], list[str]()
        many, same = len(self.models) > 1, alike(states)
        ends = _ends(states, alignment, notes) if many and alignment is not None else None
        lines = self.points * ((many and same) + (ends is not None))
        step = _Steps(1 + (many and same) + (fused is not None) + lines, self.progress)
        parents, ensemble = self._parents(notes)
        step()
        plain = before = after = None
        if many and same:
            plain = self._values(restated(at(self.models[0], mean_state(states, self.shares)), self.inputs))
            step()
            a, b = _two(alignment)
            before = self._curve(self.models[a], states[a], states[b], step)
        elif many:
            notes.append(
                "no plain average, and no line before alignment: the models' tensors differ in names or shapes"
            )
        result = self._values(fused) if fused is not None else None
        if fused is not None:
            step()
        if ends is not None and alignment is not None:
            after = self._curve(self.models[alignment.target], *ends, step)
        if (plain or after) and batch_norms(self.models[0]):
            notes.append("the batch norms of averages, and between the ends of a line, were re-estimated on the inputs")
        names = tuple(metric.name for metric in self.metrics)
        count = sum(batch.count for batch, _ in self.pairs)
        logger.info("evaluated %d models on %d inputs by %s", len(self.models), count, ", ".join(names))
        return Evaluation(names, count, parents, ensemble, plain, result, before, after, tuple(notes))

    @torch.no_grad()
    def _parents(self, notes: list[str]) -> tuple[tuple[Values, ...], Values | None]:
        """Each parent's values, and those of the mean of their outputs, in one pass."""
        parts: list[list[list[Any]]] = [[[] for _ in self.metrics] for _ in range(len(self.models) + 1)]
        joint = len(self.models) > 1
        for batch, targets in self.pairs:
            outputs = [scores_of(run_model(model, None, batch), self.output) for model in self.models]
            joint = joint and all(one.shape == outputs[0].shape for one in outputs)
            mean = [sum(s * one for s, one in zip(self.shares, outputs, strict=True))] if joint else []
            for place, value in zip(parts, [*outputs, *mean], strict=False):
                self._keep(place, value, targets)  # pyright: ignore[reportArgumentType]
        if not joint and len(self.models) > 1:
            notes.append("no ensemble: the parents' outputs have different shapes")
        values = [self._totals(place) for place in parts[: len(self.models) + joint]]
        return tuple(values[: len(self.models)]), values[-1] if joint else None

    @torch.no_grad()
    def _values(self, model: nn.Module) -> Values:
        parts: list[list[Any]] = [[] for _ in self.metrics]
        for batch, targets in self.pairs:
            self._keep(parts, scores_of(run_model(model, None, batch), self.output), targets)
        return self._totals(parts)

    def _keep(self, parts: list[list[Any]], outputs: Tensor, targets: Tensor) -> None:
        for place, metric in zip(parts, self.metrics, strict=True):
            place.append(metric.part(outputs, targets.to(outputs.device)))

    def _totals(self, parts: list[list[Any]]) -> Values:
        return {metric.name: metric.total(place) for metric, place in zip(self.metrics, parts, strict=True)}

    def _curve(self, model: nn.Module, first: State, last: State, step: Callable[[], None]) -> Curve:
        values = []
        for _, point in line(model, first, last, self.points, self.inputs):
            values.append(self._values(point)[self.metrics[0].name])
            step()
        return Curve.of(self.metrics[0], values)


class _Steps:
    """Counts what was measured."""

    def __init__(self, total: int, progress: Progress | None) -> None:
        self.done, self.total, self.progress = 0, total, progress

    def __call__(self) -> None:
        self.done += 1
        if self.progress is not None:
            self.progress("evaluate", self.done, self.total)


def _two(alignment: Alignment | None) -> tuple[int, int]:
    """The target, and the first other model."""
    target = alignment.target if alignment is not None else 0
    return target, 0 if target else 1


def _ends(states: Sequence[State], alignment: Alignment, notes: list[str]) -> tuple[State, State] | None:
    """Two parents' states in the target's coordinates; None, and a note, where they cannot be moved there."""
    if len(alignment.models) != len(states):
        raise DataError(f"the alignment is of {len(alignment.models)} models, not of {len(states)}")
    a, b = _two(alignment)
    try:
        moved = [alignment.apply(states[k], k) for k in (a, b)]
    except GraphFuseError as error:
        notes.append(f"no line after alignment: {str(error).splitlines()[0]}")
        return None
    if alignment.models[b].absent:
        notes.append(f"no line after alignment: model {b} lacks layers of the target")
        return None
    return moved[0], {**moved[0], **moved[1]}
