"""Settings of the refinement by gradient."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from graphfuse.config.base import Settings

Refined = Literal["none", "maps", "weights", "both"]


class RefineConfig(Settings):
    """What is optimised by gradient on unlabelled inputs, towards the parents' mean outputs, and for how long."""

    what: Refined = Field(
        "none",
        description="none; maps: the couplings, by straight-through Sinkhorn, and the rotations, before averaging; "
        "weights: the calibrated weights themselves; both: one after the other.",
    )
    steps: int = Field(200, ge=1, description="Steps of gradient descent for each of maps and weights.")
    seconds: float | None = Field(None, gt=0, description="Stop after this many seconds each; by default no limit.")
    rate: float = Field(
        1e-2, gt=0, description="Peak step size of Adam for weights, relative to each tensor's root mean square."
    )
    maps_rate: float = Field(0.1, gt=0, description="Peak step size of Adam for the parameters of maps.")
    batch: int = Field(64, ge=1, description="Inputs in one step, drawn anew each time.")
    loss: Literal["squared", "divergence"] = Field(
        "squared",
        description="squared: error of the outputs relative to their variance; divergence: Kullback-Leibler, for "
        "outputs that are logits over their last dim.",
    )
    straight_through: bool = Field(
        True, description="Maps run as permutations and learn as couplings; if not, they run as couplings, too."
    )
    temperature: float = Field(0.1, gt=0, description="Entropic regularisation of the couplings while maps learn.")
    holdout: float = Field(
        0.2, ge=0, lt=1, description="Share of the inputs kept aside; the step with the least loss on them is kept."
    )
