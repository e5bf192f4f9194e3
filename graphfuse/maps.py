"""A coupling along one axis between the target model A and another model B, or a family of them along its context.

One coupling T serves both sides of a layer, normalised in two ways (they agree for a permutation):

- ``rows``, R = diag(1/mu) T, for dims that are written (a layer's outputs, biases, gains, statistics): each A-unit is a
  convex combination of B-units;
- ``columns``, C = T diag(1/nu), for dims that are contracted away (a layer's inputs): each B-unit's outgoing weight is
  shared out in full.

So duplicating or merging equal units keeps the function. Source: Imfeld et al., Transformer Fusion with Optimal
Transport (arXiv 2310.05719), section 4, has one normalisation for both sides, which is right only for equal widths;
the two here generalise Net2Net (arXiv 1511.05641), section 2.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class AxisMap:
    """How the units of B along one axis correspond to those of A.

    One of ``index`` (a permutation: the B-unit of each A-unit), ``plan`` (a coupling of mass 1) and ``matrix`` (an
    invertible map and its inverse transpose, for the other side of a contraction) is given. All start with the same
    leading dims, one member of the family for each entry:

    - one for each axis of ``along``: fixed axes along which the map may differ, the same index in A and B;
    - one for each axis of ``context``, indexed in A, then one for each, indexed in B: free axes along which it may
      differ, so that there is a member for each pair, say (head of A, head of B).

    ``index`` goes on with (n_A,), ``plan`` with (n_A, n_B), ``matrix`` with (2, n_A, n_B).

    ``scales`` are positive factors of the units of A and of B, (\\*lead, n_A) and (\\*lead, n_B), that bring both to
    one scale: unit j of B is scaled by b_j / a_i where it plays unit i of A, by a_i / b_j on the other side of a
    contraction, and not at all where a tensor only multiplies data (a gain). An index or a plan may have them.
    """

    axis: int
    context: tuple[int, ...] = ()
    along: tuple[int, ...] = ()
    plan: Tensor | None = None
    index: Tensor | None = None
    matrix: Tensor | None = None
    scales: tuple[Tensor, Tensor] | None = None

    def __post_init__(self) -> None:
        if sum(values is not None for values in (self.plan, self.index, self.matrix)) != 1:
            raise ValueError("an axis map has one of a plan, an index and a matrix")
        if self.matrix is not None and self.scales is not None:
            raise ValueError("a matrix holds its scales itself")
        lead = len(self.along) + 2 * len(self.context)
        units = self.values.dim() - lead
        if units != self._units:
            raise ValueError(
                f"axis {self.axis}: a map of {self.values.dim()} dims, expected {lead + self._units}: one for each of "
                f"along {self.along}, two for each of context {self.context}, {self._units} for the units"
            )

    @property
    def _units(self) -> int:
        """How many dims follow those of the family."""
        return 1 if self.index is not None else 2 if self.plan is not None else 3

    @property
    def hard(self) -> bool:
        """Whether the map is a permutation in index form."""
        return self.index is not None

    @property
    def values(self) -> Tensor:
        """The index, the plan or the matrix, whichever is there."""
        found = next(values for values in (self.index, self.plan, self.matrix) if values is not None)
        return found

    @property
    def kind(self) -> str:
        """The name of the field that is given."""
        return "index" if self.index is not None else "plan" if self.plan is not None else "matrix"

    @property
    def lead(self) -> tuple[int, ...]:
        """Shape of the family."""
        return tuple(self.values.shape[: len(self.along) + 2 * len(self.context)])

    def coupling(self) -> Tensor:
        """The plan, shape (\\*lead, n_A, n_B): non-negative, of total mass 1. Of a rotation, its squares."""
        if self.index is not None:
            return _one_hot(self.index, torch.float32) / self.index.shape[-1]
        if self.matrix is not None:
            squares = self.matrix.prod(-3)
            return squares / squares.sum((-2, -1), keepdim=True)
        assert self.plan is not None
        return self.plan

    def acting(self, consumed: bool, dual: bool, dtype: torch.dtype = torch.float32) -> Tensor:
        """The matrix for a dim that is contracted away or not, of dual variance or not; (\\*lead, n_A, n_B)."""
        if self.matrix is not None:
            return self.matrix[..., int(dual), :, :].to(dtype)
        found = self.columns(dtype) if consumed else self.rows(dtype)
        if self.scales is None:
            return found
        a, b = (scale.to(found) for scale in self.scales)
        return found * (a.unsqueeze(-1) / b.unsqueeze(-2) if dual else b.unsqueeze(-2) / a.unsqueeze(-1))

    def factors(self, dual: bool) -> Tensor | None:
        """Of a permutation: what each unit is multiplied by after it was moved, (\\*lead, n_A); None: nothing."""
        if self.scales is None or self.index is None:
            return None
        a, b = self.scales
        found = b.expand(self.index.shape).gather(-1, self.index) / a
        return 1 / found if dual else found

    def unscaled(self) -> AxisMap:
        """The same map without its scales."""
        return self if self.scales is None else replace(self, scales=None)

    def rows(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """R = diag(1/mu) T, shape (\\*lead, n_A, n_B): for dims that are written."""
        if self.index is not None:
            return _one_hot(self.index, dtype)
        return _divided(self.coupling(), -1, dtype)

    def columns(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """C = T diag(1/nu), shape (\\*lead, n_A, n_B): for dims that are contracted away."""
        if self.index is not None:
            return _one_hot(self.index, dtype)
        return _divided(self.coupling(), -2, dtype)

    def to(self, device: torch.device | str) -> AxisMap:
        """The same map on another device."""
        scales = None if self.scales is None else (self.scales[0].to(device), self.scales[1].to(device))
        return replace(self, **{self.kind: self.values.to(device)}, scales=scales)


Maps = Mapping[int, AxisMap]
"""Axis number of the target -> its map; an axis without one keeps its order."""


def identity(
    axis: int, size: int, lead: Sequence[int] = (), context: Sequence[int] = (), along: Sequence[int] = ()
) -> AxisMap:
    """Unit i of A is unit i of B, in every context."""
    index = torch.arange(size).expand(*lead, size)
    return AxisMap(axis, tuple(context), tuple(along), index=index)


def proportional(
    axis: int, n: int, m: int, lead: Sequence[int] = (), context: Sequence[int] = (), along: Sequence[int] = ()
) -> AxisMap:
    """The coupling of uniform marginals that keeps the order; the identity when the sizes are equal."""
    if n == m:
        return identity(axis, n, lead, context, along)
    edges_a = torch.arange(n + 1, dtype=torch.float64) / n
    edges_b = torch.arange(m + 1, dtype=torch.float64) / m
    low = torch.maximum(edges_a[:-1, None], edges_b[None, :-1])
    high = torch.minimum(edges_a[1:, None], edges_b[None, 1:])
    plan = (high - low).clamp(min=0).float()
    return AxisMap(axis, tuple(context), tuple(along), plan=plan.expand(*lead, n, m))


def keeping_sum(rotation: Tensor) -> Tensor:
    """A rotation of n units that leaves their sum as it is, made of one of n - 1, shape (\\*lead, n - 1, n - 1).

    The rotation acts in the complement of the all-ones vector, whose basis is that of a Householder reflection.
    """
    n = rotation.shape[-1] + 1
    mirror = torch.ones(n, dtype=rotation.dtype, device=rotation.device) / n**0.5
    mirror[0] -= 1
    basis = torch.eye(n, dtype=rotation.dtype, device=rotation.device)
    if n > 1:
        basis = basis - 2 * torch.outer(mirror, mirror) / mirror.dot(mirror)
    inner = basis[:, 1:]
    return inner @ rotation @ inner.mT + 1 / n


def _one_hot(index: Tensor, dtype: torch.dtype) -> Tensor:
    n = index.shape[-1]
    return torch.zeros(*index.shape, n, dtype=dtype, device=index.device).scatter_(-1, index.unsqueeze(-1), 1)


def _divided(plan: Tensor, dim: int, dtype: torch.dtype) -> Tensor:
    """A plan divided by its sums along a dim; no second copy where it is of another dtype."""
    found = plan.to(dtype)
    sums = _nonzero(found.sum(dim, keepdim=True))
    return found / sums if found is plan else found.div_(sums)


def _nonzero(mass: Tensor) -> Tensor:
    """Marginals to divide by; a unit without mass maps to zero."""
    return torch.where(mass > 0, mass, 1.0)
