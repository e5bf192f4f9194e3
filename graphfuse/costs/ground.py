"""From moments to the cost of matching two units: what is done to features, and how tables of costs are scaled."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from graphfuse.config import Activations, CostConfig, Measure, Normalize
from graphfuse.costs.moments import Moments, likeness

_ROUNDING = 1e-12  # variance of a constant in single precision, relative to its square


def evened(moments: Moments, kind: Activations = "raw") -> Moments:
    """Moments of activations after what the config says is done to them, for a count of one.

    The given ones are given up, as their cross moments are scaled in place. Raw and centred ones are divided by one
    common scale (the mean over the units of both models has variance 1), so that nodes of large values do not outvote
    the others.
    """
    (moves_a, scale_a), (moves_b, scale_b) = _scales(moments, kind)
    n, cross = moments.count, moments.cross
    cross = cross.mul_((moves_a * scale_a / n).to(cross)).mul_((moves_b * scale_b).to(cross))
    return replace(evened_units(moments, kind), cross=cross)


def evened_units(moments: Moments, kind: Activations = "raw") -> Moments:
    """As :func:`evened`, the cross moments left as they are."""
    n, mean_a, mean_b = moments.count, moments.mean_a, moments.mean_b
    (moves_a, scale_a), (moves_b, scale_b) = _scales(moments, kind)
    if kind in ("centred", "standardised"):
        mean_a, mean_b = torch.zeros_like(mean_a), torch.zeros_like(mean_b)
    return Moments(
        1,
        mean_a * scale_a,
        mean_b * scale_b,
        moments.square_a * moves_a / n * scale_a.square(),
        moments.square_b * moves_b / n * scale_b.square(),
        moments.cross,
    )


def _scales(moments: Moments, kind: Activations) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Of each model: which units vary, and what they are multiplied by."""
    n, means, squares = moments.count, (moments.mean_a, moments.mean_b), (moments.square_a, moments.square_b)
    # what is left of a constant after rounding is no likeness
    moves = [square > _ROUNDING * n * mean.square() for mean, square in zip(means, squares, strict=True)]
    variances = [square * moved / n for square, moved in zip(squares, moves, strict=True)]
    if kind == "normalised":
        lengths = [(variance + mean.square()).sqrt() for mean, variance in zip(means, variances, strict=True)]
    elif kind == "standardised":
        lengths = [variance.sqrt() for variance in variances]
    else:
        lengths = [((variances[0].mean() + variances[1].mean()) / 2).sqrt()] * 2
    return (moves[0], _inverse(lengths[0])), (moves[1], _inverse(lengths[1]))


def gains(moments: Moments, measure: Measure, config: CostConfig, spend: bool = False) -> Tensor:
    """What matching two units gains: minus the cost, clipped and normalised as the config says.

    Shape as that of :func:`graphfuse.costs.moments.likeness`, which this is when nothing is clipped nor normalised;
    else costs count from 0, that of units that are quite alike. All members of a family share one scale. ``spend`` as
    there.
    """
    alike = likeness(moments, measure, spend)
    if plain(config):
        return alike
    cost = (1.0 if measure in ("correlation", "cosine") else 0.0) - alike
    if config.clip is not None:
        cost = cost.clamp(max=_quantile(cost, config.clip))
    return -_normalised(cost, config.normalize)


def plain(config: CostConfig) -> bool:
    """Whether costs are neither clipped nor normalised: gains are then likeness itself."""
    return config.clip is None and config.normalize == "none"


def _normalised(cost: Tensor, how: Normalize) -> Tensor:
    if how == "none" or not cost.numel():
        return cost
    if how == "log":
        return cost.log1p()
    scale = {"max": cost.amax, "mean": cost.mean, "median": lambda: _quantile(cost, 0.5)}[how]()
    return cost * _inverse(scale)


def _quantile(table: Tensor, share: float) -> Tensor:
    """The smallest value that at least this share of the table does not exceed (tables of any size)."""
    return table.flatten().kthvalue(max(1, -int(-share * table.numel() // 1))).values if table.numel() else table.sum()


def _inverse(scale: Tensor) -> Tensor:
    return torch.where(scale > 0, 1 / torch.where(scale > 0, scale, 1.0), 0.0)
