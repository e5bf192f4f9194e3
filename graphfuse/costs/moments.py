"""Second moments of the units of two models along one axis, and what they say about how alike two units are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from graphfuse.carry import Labelled, in_source, in_target

Measure = Literal["correlation", "cosine", "euclidean", "squared"]


@dataclass(frozen=True, eq=False)
class Moments:
    """Centred second moments of A's and B's units over a number of common features (weights) or samples (activations).

    All tensors broadcast against ``cross``, whose shape is that of a map's family, (\\*along, \\*context of A,
    \\*context of B, n_A, n_B): one problem for each pair of contexts. Moments of more features are merged in, so that
    nothing but sums is ever held. ``weight`` is the share of this evidence among several. Source: Chan, Golub and
    LeVeque (1979), the parallel update of a covariance.
    """

    count: int
    mean_a: Tensor
    mean_b: Tensor
    square_a: Tensor
    square_b: Tensor
    cross: Tensor
    weight: float = 1.0

    def merge(self, other: Moments | None) -> Moments:
        """Moments over the features of both."""
        if other is None:
            return self
        count = self.count + other.count
        share = other.count / count
        gap_a, gap_b = other.mean_a - self.mean_a, other.mean_b - self.mean_b
        common = self.count * share
        return Moments(
            count,
            self.mean_a + share * gap_a,
            self.mean_b + share * gap_b,
            self.square_a + other.square_a + common * gap_a.square(),
            self.square_b + other.square_b + common * gap_b.square(),
            self.cross + other.cross + common * gap_a * gap_b,
        )

    def rescaled(self, shift_a: float, scale_a: float, shift_b: float, scale_b: float) -> Moments:
        """Moments of (x_A - shift_A) scale_A and (x_B - shift_B) scale_B."""
        return Moments(
            self.count,
            (self.mean_a - shift_a) * scale_a,
            (self.mean_b - shift_b) * scale_b,
            self.square_a * scale_a**2,
            self.square_b * scale_b**2,
            self.cross * (scale_a * scale_b),
        )


def likeness(moments: Moments, measure: Measure) -> Tensor:
    """How alike each unit of A and each unit of B are, larger for more alike.

    Parameters
    ----------
    moments : Moments
    measure :
        ``correlation`` and ``cosine``: in [-1, 1], 0 for a unit that is constant (zero); ``squared`` and
        ``euclidean``: minus the (squared) distance of the units' features.

    Returns
    -------
    Tensor, shape (\\*along, \\*context of A, \\*context of B, n_A, n_B)
    """
    if measure == "correlation":
        return _cosine(moments.square_a, moments.square_b, moments.cross)
    n = moments.count
    square_a = moments.square_a + n * moments.mean_a.square()
    square_b = moments.square_b + n * moments.mean_b.square()
    cross = moments.cross + n * moments.mean_a * moments.mean_b
    if measure == "cosine":
        return _cosine(square_a, square_b, cross)
    distance = (square_a + square_b - 2 * cross).clamp(min=0)
    return -distance if measure == "squared" else -distance.sqrt()


def linear_likeness(moments: Moments, measure: Measure) -> Tensor:
    """Inner products of A's and B's units, of which a rotation can take the best sum (Procrustes).

    For ``correlation`` and ``cosine``, as shares of the units' mean squares; else twice the inner products, as
    distances have them. Shape as of :func:`likeness`.
    """
    n = moments.count
    cross = moments.cross + n * moments.mean_a * moments.mean_b
    if measure in ("squared", "euclidean"):
        return 2 * cross
    square_a = (moments.square_a + n * moments.mean_a.square()).mean()
    square_b = (moments.square_b + n * moments.mean_b.square()).mean()
    scale = (square_a * square_b).sqrt()
    return cross / scale if scale > 0 else torch.zeros_like(cross)


def gram(a: Tensor, b: Labelled, position: int, along: Sequence[int], context: Sequence[int]) -> Moments:
    """Moments along one position of a cell, over all that the cell's other positions run through.

    Parameters
    ----------
    a : Tensor
        A's view of the cell.
    b : Labelled
        B's view, carried into A's coordinates along all positions but ``position`` and ``context``.
    position, along, context :
        Where the axis stands, and the axes that its map depends on (fixed and free ones).
    """
    lead = (*map(in_target, along), *map(in_target, context), *map(in_source, context))
    family = (*lead, in_target(position), in_source(position))
    left = Labelled(a, tuple(in_target(p) for p in range(a.dim())))
    features = [x for x in left.labels if x not in family]
    count = 1
    for x in features:
        count *= a.shape[x // 2]
    left, mean_a = _centred(left, features)
    right, mean_b = _centred(b, features)
    wide = torch.float64 if a.device.type != "mps" else torch.float32
    cross = torch.einsum(
        left.value, list(left.labels), right.value, list(right.labels), list(_present(family, left, right))
    )
    return Moments(
        count,
        _onto(mean_a, family).to(wide),
        _onto(mean_b, family).to(wide),
        _onto(_squares(left, features), family).to(wide),
        _onto(_squares(right, features), family).to(wide),
        _onto(Labelled(cross, _present(family, left, right)), family).to(wide),
    )


def _centred(entry: Labelled, features: Sequence[int]) -> tuple[Labelled, Labelled]:
    """The tensor less its mean over the features, and that mean."""
    dims = [entry.labels.index(x) for x in features]
    mean = entry.value.mean(dims, keepdim=True) if dims else entry.value
    rest = tuple(x for x in entry.labels if x not in features)
    return Labelled(entry.value - mean, entry.labels), Labelled(mean.squeeze(dims) if dims else mean, rest)


def _squares(entry: Labelled, features: Sequence[int]) -> Labelled:
    dims = [entry.labels.index(x) for x in features]
    value = entry.value.square()
    rest = tuple(x for x in entry.labels if x not in features)
    return Labelled(value.sum(dims) if dims else value, rest)


def _present(family: Sequence[int], left: Labelled, right: Labelled) -> tuple[int, ...]:
    return tuple(x for x in family if x in left.labels or x in right.labels)


def _onto(entry: Labelled, family: Sequence[int]) -> Tensor:
    """A labelled tensor that broadcasts over the family."""
    value = entry.value.permute([entry.labels.index(x) for x in family if x in entry.labels])
    for d, x in enumerate(family):
        if x not in entry.labels:
            value = value.unsqueeze(d)
    return value


def _cosine(square_a: Tensor, square_b: Tensor, cross: Tensor) -> Tensor:
    size = square_a * square_b
    scale = size.sqrt()
    still = scale <= 1e-12 * scale.amax() if scale.numel() else scale > 0
    return torch.where(still, 0.0, cross / torch.where(still, 1.0, scale)).clamp(-1, 1)
