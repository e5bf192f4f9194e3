"""Settings of the refinement by gradient."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from graphfuse.config.base import Settings

Refined = Literal["default", "none", "maps", "weights", "both"]


class RefineConfig(Settings):
    """What is optimised by gradient on unlabelled inputs, towards the parents' mean outputs, and for how long."""

    what: Refined = Field(
        "default",
        description="default: weights with method auto, else none; none; maps: the couplings, by straight-through "
        "Sinkhorn, and the rotations, before averaging; weights: the calibrated weights themselves; both: one after "
        "the other. Source: Mena et al., Gumbel-Sinkhorn (arXiv 1802.08665), and Pena et al., "
        "Re-basin via implicit Sinkhorn differentiation (arXiv 2212.12042), for maps; Hinton et al., Distilling the "
        "knowledge in a neural network (arXiv 1503.02531), for weights.",
    )
    samples: int | None = Field(
        None,
        ge=1,
        description="Inputs that are learnt from, those of the alignment among them; by default these alone. Gradients "
        "want thousands where an alignment wants hundreds.",
    )
    steps: int = Field(200, ge=1, description="Steps of gradient descent for each of maps and weights.")
    seconds: float | None = Field(None, gt=0, description="Stop after this many seconds each; by default no limit.")
    rate: float = Field(
        1e-2,
        gt=0,
        description="Peak step size of Adam for weights, relative to each tensor's root mean square; a third "
        "of it, and again, where the held-out loss has tripled.",
    )
    maps_rate: float = Field(0.1, gt=0, description="Peak step size of Adam for the parameters of maps.")
    batch: int = Field(64, ge=1, description="Inputs in one step, drawn anew each time.")
    loss: Literal["squared", "divergence"] = Field(
        "squared",
        description="squared: error of the outputs relative to their variance; divergence: Kullback-Leibler, for "
        "outputs that are logits over their last dim. Source: Ba and Caruana (arXiv 1312.6184), section 2; Hinton et "
        "al. (arXiv 1503.02531), section 2.",
    )
    straight_through: bool = Field(
        True,
        description="Maps run as permutations and learn as couplings; if not, they run as couplings, too. Source: Git "
        "Re-Basin (arXiv 2209.04836), section 3.3.",
    )
    temperature: float = Field(0.1, gt=0, description="Entropic regularisation of the couplings while maps learn.")
    holdout: float = Field(
        0.2, ge=0, lt=1, description="Share of the inputs kept aside; the step with the least loss on them is kept."
    )
