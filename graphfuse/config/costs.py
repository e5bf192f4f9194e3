"""Settings of the ground costs: what of a unit is compared, how costs are scaled, and which inputs and tokens count."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, Literal, Self

from pydantic import Field, PlainSerializer, ValidationError, WithJsonSchema, field_validator, model_validator

from graphfuse.config.base import Settings, nearest

Measure = Literal["correlation", "cosine", "euclidean", "squared"]
Metric = Literal["auto"] | Measure
Activations = Literal["raw", "centred", "standardised", "normalised"]
Normalize = Literal["none", "max", "mean", "median", "log"]
Importance = Literal["uniform", "activations", "weights"]

Score = Annotated[
    Callable[[Any], Any],
    PlainSerializer(lambda score: getattr(score, "__qualname__", repr(score)), return_type=str),
    WithJsonSchema({"type": "string", "description": "a function, from Python only"}),
]


class CostConfig(Settings):
    """What it costs to match a unit of one model with one of another."""

    activations: Activations = Field(
        "raw",
        description="What is done to each unit's activations before they are compared: nothing; their mean taken off; "
        "and divided by their deviation (z-scores); or scaled to length 1. Metric correlation does not change with "
        "it. Source: Imfeld et al. (arXiv 2310.05719), section 5: 200 samples, z-scored.",
    )
    site: Literal["pre", "post"] = Field(
        "pre",
        description="Where activations are compared: where a layer writes them, or after the elementwise nonlinearity "
        "that follows, if one does. Source: Singh and Jaggi, Model Fusion via Optimal Transport (arXiv 1910.05653).",
    )
    bias: bool = Field(
        True,
        description="Whether the biases of layers and norms count when weights are compared. Source: Singh and Jaggi "
        "(arXiv 1910.05653), section 4; Git Re-Basin (arXiv 2209.04836) has them.",
    )
    gains: bool = Field(
        True,
        description="Whether gains (parameters that only multiply data, one for each unit: those of norms) count when "
        "weights are compared. Source: Imfeld et al. (arXiv 2310.05719), section 4.3.",
    )
    clip: float | None = Field(
        None, gt=0, lt=1,
        description="Costs above this quantile of a table of costs are lowered to it, before they are normalised: what "
        "cannot be matched should not decide how the rest is. A quantile, so that it holds for every metric and width. "
        "Source: Singh and Jaggi's code (ground metric clipping); Pele and Werman, Fast and Robust EMD (ICCV 2009).",
    )  # fmt: skip
    normalize: Normalize = Field(
        "none",
        description="How a table of costs is scaled before tables of several sources (nodes, activations and weights) "
        "are added: not at all; divided by its maximum, mean or median; or log: log(1 + cost). Matters where there are "
        "several sources, for log, and with scale absolute. Source: Singh and Jaggi (arXiv 1910.05653) and its code.",
    )
    importance: Importance = Field(
        "uniform",
        description="Mass of the units (the marginals of the transport): all the same, or in proportion to the norm of "
        "their activations or of their weights, but at least a thousandth of the mean. Other than uniform, maps are "
        "plans, also those of solver assignment. Source: Singh and Jaggi (arXiv 1910.05653), section 4.2.",
    )


class Window(Settings):
    """Which tokens are compared: those of a range of places, or those of the middle of the image."""

    start: int = Field(0, ge=0, description="First place of a range of tokens, counted from 0.")
    stop: int | None = Field(None, ge=1, description="Place after the last one of a range; by default up to the end.")
    centre: int | None = Field(None, ge=1, description="Side n of the window of the n x n patches in the middle.")

    @model_validator(mode="after")
    def _is_a_window(self) -> Self:
        if self.centre is not None and (self.start or self.stop is not None):
            raise ValueError("give either centre or start and stop")
        if self.stop is not None and self.stop <= self.start:
            raise ValueError(f"no token is from {self.start} to before {self.stop}")
        return self


class LossFilter(Settings):
    """Only inputs of which the models are sure enough; needs no labels. Source: see filter.loss."""

    below: float = Field(
        gt=0, le=1, description="Share of the inputs that is kept: those of the lowest score, averaged over the models."
    )
    score: Literal["entropy"] | Score = Field(
        "entropy",
        description="What is low for good inputs. entropy: that of the class probabilities, for outputs of shape "
        "(inputs, classes); else a function of a model's outputs that returns one number for each input.",
    )


class FilterConfig(Settings):
    """Which activations are compared. Axes that hold tokens and inputs are known from their labels, not from names."""

    tokens: Literal["all", "first"] | Window = Field(
        "all",
        description="Which tokens count: all, the first (a class token), a range {start, stop} or the middle of the "
        "image {centre: n}. What has no token axis counts in full. Source: Imfeld et al. (arXiv 2310.05719), appendix: "
        "class token only, window of the 6 x 6 patches in the middle.",
    )
    mask: str | None = Field(
        None,
        description="Name of the model's argument (positional or keyword) that is the padding mask: its tokens that "
        "are false or zero do not count (a leading ~ turns that round). Source: Imfeld et al. (arXiv 2310.05719), "
        "section 5, text.",
    )
    loss: LossFilter | None = Field(
        None,
        description="Only inputs of low loss, judged without labels: {below: share}. Source: Imfeld et al. (arXiv "
        "2310.05719), code: samples above a loss threshold are left out; entropy for loss, after Grandvalet and "
        "Bengio, Semi-supervised Learning by Entropy Minimization (NeurIPS 2004).",
    )

    @field_validator("tokens", mode="before")
    @classmethod
    def _tokens_are_known(cls, value: Any) -> Any:
        valid = ["all", "first", *Window.model_fields]
        if isinstance(value, dict):
            unknown = [str(key) for key in value if key not in Window.model_fields]
            if unknown:
                raise ValueError(f"unknown key {unknown[0]!r}; {nearest(unknown[0], list(Window.model_fields))}")
            try:
                return Window.model_validate(value)
            except ValidationError as error:
                raise ValueError("; ".join(detail["msg"] for detail in error.errors())) from None
        if isinstance(value, str) and value not in valid[:2]:
            raise ValueError(f"unknown tokens; {nearest(value, valid)}")
        return value
