"""Settings of the transport: solvers, and what is said of single roles or axes."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from graphfuse.config.base import Settings

Solver = Literal["assignment", "emd", "sinkhorn", "unbalanced", "partial"]
Scale = Literal["range", "absolute", "entropy"]


class RoleConfig(Settings):
    """How the axes of one role (``residual``, ``heads``, ...) or one axis (``residual.0``) are treated."""

    align: bool = Field(True, description="Whether these axes are matched; if not, unit i is paired with unit i.")
    solver: Solver | None = Field(None, description="Solver for these axes; by default that of the whole config.")
    regularization: float | None = Field(
        None, gt=0, description="Entropic regularisation for these axes; by default that of the whole config."
    )
    scale: Scale | None = Field(
        None, description="What the regularisation of these axes is relative to; by default as in the whole config."
    )
    mass: float | None = Field(
        None, gt=0, description="Solver unbalanced: penalty of the marginals; by default that of the whole config."
    )
    share: float | None = Field(
        None, gt=0, le=1, description="Solver partial: mass that is matched; by default that of the whole config."
    )
    keep: float | None = Field(
        None, ge=0, description="Extra width of these axes for units that are kept apart; see keep of the whole config."
    )


def expect_share(regularization: float) -> None:
    """Entropies are relative to the largest one there is; ValueError for one that is none."""
    if not regularization < 1:
        raise ValueError(
            f"with scale entropy, regularization is the entropy aimed at, between 0 and 1, and not {regularization}"
        )
