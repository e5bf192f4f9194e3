"""Second moments of the units of two models along one axis, and what they say about how alike two units are."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from graphfuse.carry import Labelled, in_source, in_target
from graphfuse.config import Measure

PIECE = 1 << 20  # elements of an operand that are copied at a time, or an eighth of what the table has


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

    @classmethod
    def none(cls, cross: Tensor) -> Moments:
        """Of no features at all, with these cross moments (zeros) of their own."""
        wide = _wide(cross)
        left, right = cross.new_zeros(cross.shape[-2], 1, dtype=wide), cross.new_zeros(1, cross.shape[-1], dtype=wide)
        return cls(0, left, right, left, right, cross)

    def with_features(self, other: Moments) -> Moments:
        """Moments over the features of both, where the products of the other's are part of ``cross`` already."""
        count = self.count + other.count
        share = other.count / count
        gap_a, gap_b = other.mean_a - self.mean_a, other.mean_b - self.mean_b
        common = self.count * share
        cross = self.cross.addcmul_(gap_a.to(self.cross), gap_b.to(self.cross), value=common) if common else self.cross
        return Moments(
            count,
            self.mean_a + share * gap_a,
            self.mean_b + share * gap_b,
            self.square_a + other.square_a + common * gap_a.square(),
            self.square_b + other.square_b + common * gap_b.square(),
            cross,
        )

    def units_of_a(self, start: int, cross: Tensor) -> Moments:
        """Of some units of A only, from ``start`` on, whose cross moments are these."""
        mean, square = (x.narrow(-2, start, cross.shape[-2]) for x in (self.mean_a, self.square_a))
        return replace(self, mean_a=mean, square_a=square, cross=cross)

    def units_of_b(self, start: int, cross: Tensor) -> Moments:
        """Of some units of B only, from ``start`` on, whose cross moments are these."""
        mean, square = (x.narrow(-1, start, cross.shape[-1]) for x in (self.mean_b, self.square_b))
        return replace(self, mean_b=mean, square_b=square, cross=cross)

    @staticmethod
    def joined(parts: Sequence[Moments], cross: Tensor) -> Moments:
        """Moments of all units, given those of some of A's (or of B's) at a time, and all cross moments."""

        def all_of(vectors: list[Tensor], dim: int) -> Tensor:
            return torch.cat(vectors, dim) if sum(x.shape[dim] for x in vectors) == cross.shape[dim] else vectors[0]

        mean_a, square_a = all_of([x.mean_a for x in parts], -2), all_of([x.square_a for x in parts], -2)
        mean_b, square_b = all_of([x.mean_b for x in parts], -1), all_of([x.square_b for x in parts], -1)
        return replace(parts[0], mean_a=mean_a, mean_b=mean_b, square_a=square_a, square_b=square_b, cross=cross)

    def copied(self) -> Moments:
        """With cross moments of its own."""
        return replace(self, cross=self.cross.clone())

    def at(self, index: Tensor, cross: Tensor | None = None) -> Moments:
        """Moments of matched pairs only: unit i of A with unit ``index[..., i]`` of B, for each member of a family.

        Every tensor of the result broadcasts against ``index``, whose shape is (\\*lead, n_A); ``cross`` are cross
        moments to be taken in place of its own.
        """
        lead, n, m = index.shape[:-1], index.shape[-1], self.mean_b.shape[-1]

        def partner(x: Tensor) -> Tensor:
            return x.squeeze(-2).expand(*lead, m).gather(-1, index)

        if cross is None:
            cross = self.cross.expand(*lead, n, m).gather(-1, index.unsqueeze(-1)).squeeze(-1)
        means, squares = (self.mean_a, self.mean_b), (self.square_a, self.square_b)
        (mean_a, mean_b), (square_a, square_b) = ((a.squeeze(-1), partner(b)) for a, b in (means, squares))
        return Moments(self.count, mean_a, mean_b, square_a, square_b, cross, self.weight)


def likeness(moments: Moments, measure: Measure, spend: bool = False) -> Tensor:
    """How alike each unit of A and each unit of B are, larger for more alike.

    Parameters
    ----------
    moments : Moments
    measure :
        ``correlation`` and ``cosine``: in [-1, 1], 0 for a unit that is constant (zero); ``squared`` and
        ``euclidean``: minus the (squared) distance of the units' features.
    spend : bool
        The moments are given up: the result takes the place of their cross moments.

    Returns
    -------
    Tensor, shape (\\*along, \\*context of A, \\*context of B, n_A, n_B)
        New, in the dtype of the cross moments.
    """
    cross = moments.cross if spend else moments.cross.clone()
    if measure == "correlation":
        return _cosine(moments.square_a, moments.square_b, cross)
    n, kind = moments.count, cross
    mean_a, mean_b = moments.mean_a.to(kind), moments.mean_b.to(kind)
    square_a = moments.square_a + n * moments.mean_a.square()
    square_b = moments.square_b + n * moments.mean_b.square()
    if measure == "cosine":
        return _cosine(square_a, square_b, cross.addcmul_(mean_a, mean_b, value=n))
    gain = cross.mul_(2).addcmul_(mean_a, mean_b, value=2 * n)
    gain.sub_(square_a.to(kind)).sub_(square_b.to(kind)).clamp_(max=0)
    return gain if measure == "squared" else gain.neg_().sqrt_().neg_()


def matched_correlation(moments: Moments, index: Tensor, alike: Tensor, measure: Measure) -> Tensor:
    """Correlations of matched pairs, read off their likeness, when their cross moments are spent.

    Parameters
    ----------
    moments : Moments
        Its cross moments are not looked at.
    index, alike : Tensor, shape (\\*lead, n_A)
        The unit of B that each unit of A is matched with, and what :func:`likeness` by this measure said of the two.
    """
    pair, n = moments.at(index, alike.double()), moments.count
    square_a, square_b = pair.square_a + n * pair.mean_a.square(), pair.square_b + n * pair.mean_b.square()
    if measure == "cosine":
        inner = pair.cross * (square_a * square_b).sqrt()
    else:
        inner = (square_a + square_b + (pair.cross if measure == "squared" else -pair.cross.square())) / 2
    return likeness(replace(pair, cross=inner - n * pair.mean_a * pair.mean_b), "correlation", spend=True)


def linear_likeness(moments: Moments, measure: Measure, spend: bool = False) -> Tensor:
    """Inner products of A's and B's units, of which a rotation can take the best sum (Procrustes).

    For ``correlation`` and ``cosine``, as shares of the units' mean squares; else twice the inner products, as
    distances have them. A new tensor, whatever is given up. Shape as of :func:`likeness`.
    """
    n = moments.count
    cross = moments.cross + n * moments.mean_a * moments.mean_b
    if measure in ("squared", "euclidean"):
        return 2 * cross
    square_a = (moments.square_a + n * moments.mean_a.square()).mean()
    square_b = (moments.square_b + n * moments.mean_b.square()).mean()
    scale = (square_a * square_b).sqrt()
    return cross / scale if scale > 0 else torch.zeros_like(cross)


@dataclass(frozen=True)
class Standard:
    """Mean and inverse deviation by which a tensor of A and one of B are standardised."""

    shift_a: float = 0.0
    scale_a: float = 1.0
    shift_b: float = 0.0
    scale_b: float = 1.0


def table_shape(lead: Sequence[int], contexts: int, n: int, m: int) -> tuple[int, ...]:
    """Shape in which a family's cross moments lie in memory: (\\*along, \\*context of A, n_A, \\*context of B, n_B)."""
    last = len(lead) - contexts
    return (*lead[:last], n, *lead[last:], m)


def as_family(table: Tensor, contexts: int) -> Tensor:
    """A view of a table of :func:`table_shape` with the units last, as :class:`Moments` have it."""
    return table.movedim(table.dim() - 2 - contexts, -2)


def gram(
    a: Tensor,
    b: Labelled,
    position: int,
    along: Sequence[int],
    context: Sequence[int],
    standard: Standard | None = None,
    total: Moments | None = None,
) -> Moments:
    """Moments along one position of a cell, over all that the cell's other positions run through.

    Parameters
    ----------
    a : Tensor
        A's view of the cell.
    b : Labelled
        B's view, carried into A's coordinates along all positions but ``position`` and ``context``.
    position, along, context :
        Where the axis stands, and the axes that its map depends on (fixed and free ones).
    standard : Standard, optional
        What both are standardised by.
    total : Moments, optional
        Moments of other features, with cross moments as :func:`as_family` gives them: given up, as these are added to
        them in place.

    Returns
    -------
    Moments
        Sums are made piece by piece, so that no copy of the whole operands is held; cross moments have the operands'
        dtype, at least single precision, the others are in float64.
    """
    std = standard or Standard()
    fixed, mine, others = (*map(in_target, along),), (*map(in_target, context),), (*map(in_source, context),)
    family = (*fixed, *mine, *others, in_target(position), in_source(position))
    left = Labelled(a, tuple(in_target(p) for p in range(a.dim())))
    features = [x for x in left.labels if x not in family]
    sizes = {**dict(zip(b.labels, b.value.shape, strict=True)), **dict(zip(left.labels, a.shape, strict=True))}
    batch = [x for x in (*fixed, *mine) if x in b.labels]  # in both, so that products are apart
    rows = [x for x in (*fixed, *mine, in_target(position)) if x not in batch]
    columns = [*others, in_source(position)]
    if total is None:
        kind = torch.promote_types(torch.promote_types(a.dtype, b.value.dtype), torch.float32)
        shape = [sizes[x] for x in (*fixed, *mine, in_target(position), *others, in_source(position))]
        total = Moments.none(as_family(a.new_zeros(shape, dtype=kind), len(context)))
    mean_a, mean_b = _mean(left, features), _mean(b, features)
    sums = total.cross.movedim(-2, len(fixed) + len(mine)).view(
        *(math.prod(sizes[x] for x in part) for part in (batch, rows, columns))
    )
    squares: list[Tensor] = []
    for one, two in _pieces(left, b, features, piece_of(sums.numel())):
        x = _matrix(_standardised(one, mean_a, std.scale_a), batch, rows, features).to(sums)
        y = _matrix(_standardised(two, mean_b, std.scale_b), batch, columns, features).to(sums)
        found = [_squares(x), _squares(y)]
        squares = found if not squares else [s.add_(f) for s, f in zip(squares, found, strict=True)]
        sums.baddbmm_(x, y.mT)
        del x, y

    def vector(labels: Sequence[int], value: Tensor) -> Tensor:
        rest = tuple(x for x in labels if x not in features)
        return _onto(Labelled(value.reshape([sizes[x] for x in rest]), rest), family).to(_wide(a))

    found = Moments(
        math.prod(sizes[x] for x in features),
        vector(left.labels, (mean_a - std.shift_a) * std.scale_a),
        vector(b.labels, (mean_b - std.shift_b) * std.scale_b),
        vector([*batch, *rows], squares[0]),
        vector([*batch, *columns], squares[1]),
        total.cross,
    )
    return total.with_features(found)


def _matrix(entry: Labelled, batch: Sequence[int], units: Sequence[int], features: Sequence[int]) -> Tensor:
    """A labelled tensor as one matrix, units by features, for each member of the batch."""
    value = entry.value.permute([entry.labels.index(x) for x in (*batch, *units, *features)])
    b, u = len(batch), len(batch) + len(units)
    return value.reshape(math.prod(value.shape[:b]), math.prod(value.shape[b:u]), math.prod(value.shape[u:]))


def _wide(like: Tensor) -> torch.dtype:
    return torch.float64 if like.device.type != "mps" else torch.float32


def _where(entry: Labelled, features: Sequence[int]) -> tuple[int, ...]:
    return tuple(entry.labels.index(x) for x in features)


def piece_of(table: int) -> int:
    """How many elements of an operand may be copied at a time for a table of this size."""
    return max(PIECE, table // 8)


def _pieces(a: Labelled, b: Labelled, features: Sequence[int], largest: int) -> Iterator[tuple[Labelled, Labelled]]:
    """Both tensors cut along their longest feature, so that no piece is much larger than this many elements."""
    if not features:
        yield a, b
        return
    cut = max(features, key=lambda x: a.value.shape[a.labels.index(x)])
    i, j = a.labels.index(cut), b.labels.index(cut)
    length = a.value.shape[i]
    step = max(1, length * largest // max(a.value.numel(), b.value.numel(), 1))
    for start in range(0, length, step):
        size = min(step, length - start)
        yield Labelled(a.value.narrow(i, start, size), a.labels), Labelled(b.value.narrow(j, start, size), b.labels)


def _mean(entry: Labelled, features: Sequence[int]) -> Tensor:
    """The mean over the features, these dims kept; the values themselves when there are none."""
    dims, kind = _where(entry, features), torch.promote_types(entry.value.dtype, torch.float32)
    return entry.value.mean(dims, keepdim=True, dtype=kind) if dims else entry.value.to(kind)


def _standardised(entry: Labelled, mean: Tensor, scale: float) -> Labelled:
    value = entry.value - mean
    return Labelled(value.mul_(scale) if scale != 1 else value, entry.labels)


def _squares(matrices: Tensor) -> Tensor:
    """Sums of squares of the rows; in one pass, without a copy, where the rows lie in a piece."""
    if matrices.is_contiguous():
        return torch.linalg.vector_norm(matrices, dim=-1).square()
    return matrices.square().sum(-1)


def _onto(entry: Labelled, family: Sequence[int]) -> Tensor:
    """A labelled tensor that broadcasts over the family."""
    value = entry.value.permute([entry.labels.index(x) for x in family if x in entry.labels])
    for d, x in enumerate(family):
        if x not in entry.labels:
            value = value.unsqueeze(d)
    return value


def summed(a: Tensor, b: Tensor) -> Tensor:
    """a + b, in a's place where it fits."""
    return a.add_(b) if torch.broadcast_shapes(a.shape, b.shape) == a.shape else a + b


def _cosine(square_a: Tensor, square_b: Tensor, cross: Tensor) -> Tensor:
    """The cross moments divided, in place, by the norms; 0 for units without any."""
    return cross.mul_(_inverse_norm(square_a).to(cross)).mul_(_inverse_norm(square_b).to(cross)).clamp_(-1, 1)


def _inverse_norm(square: Tensor) -> Tensor:
    still = square <= 1e-24 * square.amax() if square.numel() else square <= 0
    return torch.where(still, 0.0, torch.where(still, 1.0, square).rsqrt())
