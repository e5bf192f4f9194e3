"""Weighted ridge regression from streamed second moments, and how far a held-out part says to go.

The regression is on what the averaged weight leaves over, so that zero is the averaged weight, and the ridge pulls
towards it. Source: RegMean (Jin et al., arXiv 2212.09849), equation 2, with the fused model's own inputs instead of
each parent's; PLeaS (arXiv 2407.02447), section 4.2.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

ROUNDING = 1e-5
"""Ridge that outweighs the rounding of sums in single precision, when the given one does not."""


@dataclass(frozen=True, eq=False)
class Rows:
    """Some rows of the regressions.

    Parameters
    ----------
    x : Tensor, shape (groups, rows, features)
    r, t : Tensor, shape (groups, rows, outcomes)
        What the averaged weight leaves over of the targets, and the targets.
    weight : Tensor, shape (rows,), optional
        How much each row counts.
    """

    x: Tensor
    r: Tensor
    t: Tensor
    weight: Tensor | None = None

    def take(self, start: int, stop: int) -> Rows:
        """The rows from ``start`` up to ``stop``."""
        weight = self.weight[start:stop] if self.weight is not None else None
        return Rows(self.x[:, start:stop], self.r[:, start:stop], self.t[:, start:stop], weight)

    def __len__(self) -> int:
        return self.x.shape[1]


@dataclass(frozen=True, eq=False)
class Moments:
    """Sums over weighted rows, in float64: X'X, X'R, and the squared sums of R and of the targets.

    Parameters
    ----------
    xx : Tensor, shape (groups, features, features)
    xr : Tensor, shape (groups, features, outcomes)
    rr, tt : Tensor, shape ()
    """

    xx: Tensor
    xr: Tensor
    rr: Tensor
    tt: Tensor

    @classmethod
    def of(cls, rows: Rows, offset: bool) -> Moments:
        """Moments of some rows; with ``offset``, a feature that is always one is added last."""
        kind = torch.promote_types(rows.x.dtype, torch.float32)
        x, r, t = (value.to(kind) for value in (rows.x, rows.r, rows.t))
        if offset:
            x = torch.cat([x, x.new_ones(*x.shape[:-1], 1)], -1)
        if rows.weight is not None:
            root = rows.weight.to(kind).sqrt()[:, None]
            x, r, t = x * root, r * root, t * root
        squares = (value.square().sum(dtype=torch.float64) for value in (r, t))
        return cls((x.mT @ x).double(), (x.mT @ r).double(), *squares)

    def __add__(self, other: Moments) -> Moments:
        return Moments(self.xx + other.xx, self.xr + other.xr, self.rr + other.rr, self.tt + other.tt)

    def solve(self, ridge: float, offset: bool) -> Tensor | None:
        """The ridge solution, shape (groups, features, outcomes); None when there is none (values not finite).

        The ridge is relative to the mean diagonal of the Gram matrix; it does not pull at the offset, the last feature.
        """
        if not offset:
            solution = _ridge(self.xx, self.xr, ridge)
        else:
            mass = self.xx[:, -1:, -1:].clamp(min=torch.finfo(self.xx.dtype).tiny)
            mean, shift = self.xx[:, -1:, :-1] / mass, self.xr[:, -1:] / mass
            gram = self.xx[:, :-1, :-1] - mass * (mean.mT @ mean)
            solution = _ridge(gram, self.xr[:, :-1] - mass * (mean.mT @ shift), ridge)
            solution = torch.cat([solution, shift - mean @ solution], -2)
        return solution if bool(torch.isfinite(solution).all()) else None

    def error(self, solution: Tensor, step: float) -> float:
        """Squared error left over by ``step`` times a solution."""
        linear, square = self._terms(solution)
        return max(0.0, float(self.rr - 2 * step * linear + step * step * square))

    def step(self, solution: Tensor) -> float:
        """How far towards a solution, from 0 to 1, these rows' error is least."""
        linear, square = self._terms(solution)
        return float((linear / square).clamp(0, 1)) if float(square) > 0 else 0.0

    def _terms(self, solution: Tensor) -> tuple[Tensor, Tensor]:
        return (solution * self.xr).sum(), (solution * (self.xx @ solution)).sum()


def _ridge(gram: Tensor, cross: Tensor, ridge: float) -> Tensor:
    """Solve (gram + pull) solution = cross; NaN where the matrix is not positive definite."""
    scale = gram.diagonal(dim1=-2, dim2=-1).mean(-1)
    scale = torch.where(scale > 0, scale, 1.0)  # an operand that never varies tells nothing: the solution is zero
    eye = torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device)
    for pull in (ridge, max(ridge, ROUNDING)):
        factor, failed = torch.linalg.cholesky_ex(gram + pull * scale[:, None, None] * eye)
        if not bool(failed.any()):
            return torch.cholesky_solve(cross, factor)
    return torch.full_like(cross, torch.nan)
