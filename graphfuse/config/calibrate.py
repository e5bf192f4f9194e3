"""Settings of the calibration."""

from __future__ import annotations

from pydantic import Field

from graphfuse.config.base import Settings


class CalibrateConfig(Settings):
    """What is done with unlabelled inputs after the weights have been averaged."""

    batch_norm: bool = Field(True, description="Re-estimate the statistics of batch norms.")
    least_squares: bool = Field(
        True, description="Re-solve each linear and convolution towards the mean of the aligned parents' outputs."
    )
    ridge: float = Field(
        1e-2, gt=0, description="Pull towards the averaged weight, relative to the Gram matrix's mean diagonal."
    )
    holdout: float = Field(
        0.2, ge=0, lt=1, description="Share of the inputs kept aside to decide whether the calibration is kept."
    )
    drift: bool = Field(
        True, description="Where a layer's output is added to a skip, let it also make up for what the skip is off by."
    )
    sensitivity: float = Field(
        0.5, ge=0, le=1,
        description="How much a row counts in the least squares: the squared gradient of the target model's outputs, "
        "to this power. 0: all rows count the same, and no gradient is computed.",
    )  # fmt: skip
