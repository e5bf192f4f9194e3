"""How far a whole calibrated model is from its parents' mean outputs, and how far towards it the average should go."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from graphfuse.aligned import Alignment
from graphfuse.calibrate.walk import Lane, lanes_of
from graphfuse.lockstep import Batch
from graphfuse.prepared import Prepared

STEPS = (0.0, 0.25, 0.5, 0.75, 1.0)


def held_back(
    prepared: Prepared,
    alignment: Alignment,
    shares: Sequence[float],
    average: Mapping[str, Tensor],
    calibrated: Mapping[str, Tensor],
    held: Sequence[Batch],
) -> tuple[dict[str, Tensor], float]:
    """The state between two whose outputs are nearest to the parents' mean outputs on inputs that neither saw.

    Parameters
    ----------
    prepared, alignment :
        The parents, and their maps.
    shares : sequence of float
        Each parent's weight in the mean of the outputs.
    average, calibrated : mapping
        Canonical name -> tensor: where to start, and where the whole step leads.
    held : sequence of Batch

    Returns
    -------
    dict, float
        The state and the step, one of ``STEPS``; 1 where no output can be compared.
    """
    having = [k for k, share in enumerate(shares) if share]
    lanes = lanes_of(prepared.lockstep, prepared.states, held, shares, average, alignment.nodes)
    wanted = [_means(lane, alignment, shares, having) for lane in lanes]
    if not any(wanted):
        return dict(calibrated), 1.0
    none, errors = (0.0,) * len(shares), dict[float, float]()
    for step in STEPS:
        state = _between(average, calibrated, step)
        lanes = lanes_of(prepared.lockstep, prepared.states, held, none, state, alignment.nodes)
        gaps = [lane.at(name) - mean for lane, means in zip(lanes, wanted, strict=True) for name, mean in means.items()]
        errors[step] = sum(float(gap.double().abs().square().sum()) for gap in gaps)
    best = min(STEPS, key=lambda step: (not errors[step] < float("inf"), errors[step]))
    return _between(average, calibrated, best), best


def _between(a: Mapping[str, Tensor], b: Mapping[str, Tensor], step: float) -> dict[str, Tensor]:
    return {
        name: torch.lerp(value, b[name], step) if value.is_floating_point() or value.is_complex() else b[name]
        for name, value in a.items()
    }


def _means(lane: Lane, alignment: Alignment, shares: Sequence[float], having: Sequence[int]) -> dict[str, Tensor]:
    """The mean of the parents' outputs on a batch, by node, in the order of the graph."""
    found = {}
    for name in lane.outputs(alignment.models, having):
        values = lane.aligned(name, alignment.models, having)
        if values[0].is_floating_point():
            found[name] = torch.stack([shares[k] * value for k, value in zip(having, values, strict=True)]).sum(0)
    return found
