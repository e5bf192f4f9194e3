"""Settings of the transport: solvers, measures, and what is said of single roles or axes."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from graphfuse.config.base import Settings

Solver = Literal["assignment", "emd", "sinkhorn"]
Metric = Literal["auto", "correlation", "cosine", "euclidean", "squared"]


class RoleConfig(Settings):
    """How the axes of one role (``residual``, ``heads``, ...) or one axis (``residual.0``) are treated."""

    align: bool = Field(True, description="Whether these axes are matched; if not, unit i is paired with unit i.")
    solver: Solver | None = Field(None, description="Solver for these axes; by default that of the whole config.")
    regularization: float | None = Field(
        None, gt=0, description="Entropic regularisation for these axes; by default that of the whole config."
    )
