"""Settings of the calibration."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from graphfuse.config.base import Settings

Pull = Annotated[float, Field(gt=0)]
Calibrated = Literal["batch_norm", "repair", "regmean", "least_squares"]


class CalibrateConfig(Settings):
    """What is done with unlabelled inputs after the weights have been averaged."""

    method: Calibrated = Field(
        "least_squares",
        description="batch_norm: nothing but the statistics of batch norms. repair: each unit that a linear or "
        "convolution writes is scaled and shifted so that its mean and deviation are the mean of the aligned parents' "
        "(Jordan et al., REPAIR, arXiv 2211.08403). regmean: each of these weights is re-solved so that, on each "
        "aligned parent's own inputs to it, it gives that parent's outputs (Jin et al., RegMean, arXiv 2212.09849). "
        "least_squares: so that, on the fused model's own inputs to it, it gives the mean of the aligned parents' "
        "outputs, one after the other (Nasery et al., PLeaS, arXiv 2407.02447).",
    )
    batch_norm: bool = Field(True, description="Re-estimate the statistics of batch norms, whatever the method.")
    ridge: Pull | Annotated[tuple[Pull, ...], Field(min_length=1)] = Field(
        (1e-2, 1e-3, 1e-4, 1e-5),
        description="Methods regmean and least_squares: pull towards the averaged weight, relative to the Gram "
        "matrix's mean diagonal. Of several each layer takes the one that is best on the rows that it holds out, and "
        "the first where there are none.",
    )
    holdout: float = Field(
        0.2, ge=0, lt=1,
        description="Share of the inputs kept aside to decide how far each weight goes from the averaged one towards "
        "the solved one; with repair and regmean also how far the whole model goes, by its outputs. 0: all the way.",
    )  # fmt: skip
    drift: bool = Field(
        True,
        description="Method least_squares: where a layer's output is added to a skip, let it also make up for what the "
        "skip is off by.",
    )
    sensitivity: float = Field(
        0.5, ge=0, le=1,
        description="Method least_squares: how much a row counts, the squared gradient of the target model's outputs "
        "to this power. 0: all rows count the same, and no gradient is computed. Source: the diagonal of the "
        "Gauss-Newton matrix (Martens, New insights and perspectives on the natural gradient method, JMLR 2020).",
    )  # fmt: skip

    @property
    def aim(self) -> Literal["squared", "correlation"]:
        """What averages are compared by, against their parents' mean outputs. Where no calibration fits outputs,
        averages shrink them, and what is nearest to the mean may be what varies least (docs/transport.md)."""
        return "squared" if self.method == "least_squares" else "correlation"

    @property
    def ridges(self) -> tuple[float, ...]:
        """The pulls to choose from."""
        return self.ridge if isinstance(self.ridge, tuple) else (self.ridge,)
