"""One pass over the graph: statistics re-estimated, contractions solved, each seeing what was calibrated before it."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor

from graphfuse.aligned import Alignment
from graphfuse.average import coverage
from graphfuse.calibrate.guard import held_back
from graphfuse.calibrate.plan import Plan, plan_of
from graphfuse.calibrate.sensitivity import row_weights, sensitivities
from graphfuse.calibrate.walk import Lane, lanes_of
from graphfuse.calibrate.work import Solved, Work
from graphfuse.config import CalibrateConfig
from graphfuse.lockstep import parted
from graphfuse.prepared import Prepared

logger = logging.getLogger(__name__)

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, eq=False)
class Calibration:
    """A calibrated state and the account of it.

    ``left`` has the weights and statistics that stay averaged, with the reason; ``inputs`` counts the inputs used.
    ``step`` is how far the whole model went from the averaged to the calibrated weights (see :mod:`.guard`).
    """

    state: Mapping[str, Tensor]
    nodes: tuple[Solved, ...]
    statistics: tuple[str, ...]
    left: tuple[tuple[str, str], ...]
    inputs: int
    seconds: float
    notes: tuple[str, ...] = ()
    step: float = 1.0

    def to_json(self) -> dict[str, Any]:
        """Plain values for programs."""
        return {
            "inputs": self.inputs,
            "seconds": round(self.seconds, 3),
            "step": self.step,
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
    began, settings = time.perf_counter(), prepared.config.calibrate
    if settings.method in ("batch_norm", "least_squares") or not settings.holdout:
        found = _pass(prepared, settings, alignment, state, shares, progress)
        return replace(found, seconds=time.perf_counter() - began)
    seen, held = parted(prepared.data, settings.holdout)
    some, bare = replace(prepared, data=tuple(seen)), settings.model_copy(update={"method": "batch_norm"})
    start = _pass(some, bare, alignment, state, shares).state
    found = _pass(some, settings, alignment, state, shares, progress)
    kept, step = held_back(prepared, alignment, shares, start, found.state, held)
    count, seconds = sum(batch.count for batch in prepared.data), time.perf_counter() - began
    return replace(found, state=kept, step=step, inputs=count, seconds=seconds)


def _pass(
    prepared: Prepared,
    settings: CalibrateConfig,
    alignment: Alignment,
    state: Mapping[str, Tensor],
    shares: Sequence[float],
    progress: Progress | None = None,
) -> Calibration:
    """One way through the graph on all inputs."""
    lockstep, fused = prepared.lockstep, {name: tensor.clone() for name, tensor in state.items()}
    plan = plan_of(lockstep.correspondence.graph, settings)
    lanes = lanes_of(lockstep, prepared.states, prepared.data, shares, fused, alignment.nodes)
    covered = coverage(alignment.models, shares)
    work = Work(plan, settings, lanes, fused, shares, alignment.models, covered=covered)
    weights, notes = _row_weights(plan, lanes, prepared)
    for done, name in enumerate(plan.stops, start=1):
        work.visit(name, weights.get(name))
        if progress is not None:
            progress("calibrate", done, len(plan.stops))
    for solved in work.solved:
        logger.debug("%s: error %.3g before, %.3g after", solved.weight, solved.before, solved.after)
    logger.info("calibrated: %d layers solved, %d batch norms", len(work.solved), len(work.estimated))
    return Calibration(
        state=fused,
        nodes=tuple(work.solved),
        statistics=tuple(work.estimated),
        left=(*plan.left, *work.left),
        inputs=sum(lane.batch.count for lane in lanes),
        seconds=0.0,
        notes=tuple(dict.fromkeys([*notes, *lockstep.notes])),
    )


def _row_weights(plan: Plan, lanes: Sequence[Lane], prepared: Prepared) -> tuple[dict[str, list[Tensor]], list[str]]:
    """For each contraction the weights of its rows, by how much the target's outputs depend on them."""
    power, method = prepared.config.calibrate.sensitivity, prepared.config.calibrate.method
    if power == 0 or not plan.fits or method != "least_squares":
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
