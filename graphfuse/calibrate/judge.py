"""What an alignment is worth: how near the calibrated average comes to the models' mean outputs, on held-out inputs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from graphfuse.aligned import Alignment
from graphfuse.alignment import Judge
from graphfuse.average import average
from graphfuse.calibrate.calibration import calibrate
from graphfuse.lockstep import parted
from graphfuse.prepared import Prepared
from graphfuse.teacher import Teacher

HOLDOUT = 0.2
"""Share of the inputs that the calibration does not see, and that it is judged on."""


def judge_of(prepared: Prepared) -> Judge | None:
    """A judge of alignments of these models; None where there is one solution only.

    A map that suits the weights of the average best need not suit what calibration makes of it, so each solution is
    calibrated as the result will be, on the other inputs.
    """
    if prepared.method != "both":
        return None
    seen, held = parted(prepared.data, HOLDOUT)
    some, target = replace(prepared, data=tuple(seen)), prepared.models[prepared.correspondence.target]

    @torch.no_grad()
    def distance(alignment: Alignment, shares: Sequence[float]) -> float:
        teacher = Teacher.of(prepared.models, shares, held, prepared.config.calibrate.aim)
        plain = average(prepared, alignment, shares)
        return teacher.distance(target, calibrate(some, alignment, plain, shares).state)

    return distance
