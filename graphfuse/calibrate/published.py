"""Calibrations of one contraction as others published them: REPAIR's rescaling, and the regressions of RegMean.

Sources: Jordan et al., REPAIR: REnormalizing Permuted Activations for Interpolation Repair (arXiv 2211.08403); Jin
et al., Dataless Knowledge Fusion by Merging Weights of Language Models (RegMean, arXiv 2212.09849).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from graphfuse.calibrate.fit import Fitted
from graphfuse.calibrate.regression import Regression

_STILL = 1e-6  # a unit whose deviation is less than this share of its parents' has none


def rescaled(
    regression: Regression,
    weight: Tensor,
    bias: Tensor | None,
    values: Sequence[Tensor],
    parents: Sequence[Sequence[Tensor]],
    shares: Sequence[float],
) -> Fitted:
    """The change of a weight by which each unit has the mean and the deviation of the parents' interpolated ones.

    Parameters
    ----------
    regression : Regression
        How tensors are made of rows.
    weight, bias : Tensor
        Of the averaged model. Without a bias, means stay as they are.
    values : sequence of Tensor
        The fused model's outputs, batch by batch.
    parents : sequence of sequences of Tensor
        For each batch the aligned outputs of each parent.
    shares : sequence of float
        Of the parents; they sum to one.

    Returns
    -------
    Fitted
        ``before`` and ``after`` are the squared errors of all means and deviations, as shares of the parents' squares.
    """
    mean, deviation = _moments(regression, values)
    each = [_moments(regression, own) for own in zip(*parents, strict=True)]
    wanted = torch.stack([share * found[0] for share, found in zip(shares, each, strict=True)]).sum(0)
    spread = torch.stack([share * found[1] for share, found in zip(shares, each, strict=True)]).sum(0)
    moves = deviation > _STILL * spread
    scale = torch.where(moves, spread / torch.where(moves, deviation, 1.0), 1.0)
    groups, outcomes = scale.shape
    change = (scale - 1)[:, None].expand(groups, weight.numel() // scale.numel(), outcomes)
    total = max(float(wanted.square().sum() + spread.square().sum()), 1e-300)
    before = float((mean - wanted).square().sum() + (deviation - spread).square().sum()) / total
    now = mean * scale if bias is None else wanted
    after = float((now - wanted).square().sum() + (deviation * scale - spread).square().sum()) / total
    offset = None if bias is None else (wanted - mean * scale).flatten() + bias.double() * (scale.flatten() - 1)
    return Fitted(weight.double() * regression.weight(change), offset, 1.0, before, after)


def _moments(regression: Regression, values: Iterable[Tensor]) -> tuple[Tensor, Tensor]:
    """Mean and deviation of each unit, shape (groups, outcomes), in float64."""
    rows = torch.cat([regression.outputs(value) for value in values], 1).double()
    return rows.mean(1), rows.std(1, correction=0)
