"""Settings of the flow driver."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from graphfuse.config.base import Settings

Residual = Literal["shared", "mean", "weighted_scalar", "weighted_matrix", "only_residual", "no_residual"]
QK = Literal["separate", "joint", "tied"]
Heads = Literal["nested", "within", "free"]


class FlowConfig(Settings):
    """How maps flow along the edges of the graph when ``driver`` is ``flow``.

    Source: Imfeld et al., Transformer Fusion with Optimal Transport (arXiv 2310.05719), section 4.
    """

    residual: Residual = Field(
        "mean",
        description="The map after a sum of a skip and a branch (section 4.2.1). shared: one map for both, from the "
        "evidence of all that is summed; mean: of the two maps; weighted_scalar: weighted by the target's mean "
        "absolute activation of each operand; weighted_matrix: the same for each unit; only_residual: the skip's; "
        "no_residual: the branch's. All but shared leave what was summed before in other bases, as the paper does.",
    )
    qk: QK = Field(
        "joint",
        description="Queries and keys (section 4.2.2). separate: a map each, which attention then drops; joint: one "
        "map from the evidence of both; tied: one map, the mean of the two. Scores stay as they are under joint and "
        "tied alone.",
    )
    heads: Heads = Field(
        "nested",
        description="nested: heads are matched, and units inside each pair of heads; within: head to head by index, "
        "units inside; free: one map over all heads and units together, as the paper has it (section 4.2.2), which "
        "attention is not invariant to unless it happens to keep heads together.",
    )
    embeddings: Literal["own", "follow"] = Field(
        "own",
        description="Parameters that join the data by a sum or a concatenation: positions, class tokens (section "
        "4.2.3). own: a map each, from their own values; combined by the residual policy after a sum, dropped after a "
        "concatenation. follow: the map of what they join.",
    )

    @property
    def weighs(self) -> bool:
        """Whether a sum's operands are weighed by how large the target's activations are."""
        return self.residual in ("weighted_scalar", "weighted_matrix")
