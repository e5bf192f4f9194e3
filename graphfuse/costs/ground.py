"""From moments to the cost of matching two units: what is done to features, and how tables of costs are scaled."""

from __future__ import annotations

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
    n = moments.count
    mean_a, mean_b = moments.mean_a, moments.mean_b
    # what is left of a constant after rounding is no likeness
    moves_a, moves_b = (
        moments.square_a > _ROUNDING * n * mean_a.square(),
        moments.square_b > _ROUNDING * n * mean_b.square(),
    )
    square_a, square_b = moments.square_a * moves_a / n, moments.square_b * moves_b / n
    if kind == "normalised":
        length_a, length_b = (square_a + mean_a.square()).sqrt(), (square_b + mean_b.square()).sqrt()
    elif kind == "standardised":
        length_a, length_b = square_a.sqrt(), square_b.sqrt()
    else:
        length_a = length_b = ((square_a.mean() + square_b.mean()) / 2).sqrt()
    scale_a, scale_b = _inverse(length_a), _inverse(length_b)
    if kind in ("centred", "standardised"):
        mean_a, mean_b = torch.zeros_like(mean_a), torch.zeros_like(mean_b)
    cross = moments.cross.mul_((moves_a * scale_a / n).to(moments.cross)).mul_((moves_b * scale_b).to(moments.cross))
    return Moments(
        1, mean_a * scale_a, mean_b * scale_b, square_a * scale_a.square(), square_b * scale_b.square(), cross
    )


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
