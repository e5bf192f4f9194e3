"""One mechanism to look at labelled tensors block by block.

A dim may be a product of axes, a concatenation of blocks, or a case that depends on a block of another dim. A *cell* is
a block of one or several tensors within which every dimension runs along exactly one axis. The cells of a layout cover
its tensor, each element once, and their views alias it: writing into a view writes the tensor.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from graphfuse.axes import Case, Dim, Factor, Layout, Leaf, Sum, render

Sizes = Mapping[int, int]
"""Axis number -> number of elements, for one model; an axis that is left out has the size of its leaf."""


@dataclass(frozen=True, eq=False)
class Cell:
    """A block of several tensors of one layout, with one axis along each dimension.

    ``views[k].dim() == len(axes)`` for every k; dimension j of each view runs along axis ``axes[j]`` and comes from
    dimension ``origin[j]`` of the tensors. Leaves of size 1 that stand alone in a block are dimensions like any other,
    so an axis that another one depends on is found among ``axes`` (``present`` is the same as a set). ``duals`` says
    where an axis occurs with inverse variance.
    """

    views: tuple[Tensor, ...]
    axes: tuple[int, ...]
    origin: tuple[int, ...]
    present: frozenset[int]
    duals: tuple[bool, ...] = ()

    def along(self, position: int, axis: int) -> int:
        """The dimension along ``axis`` that goes with dimension ``position``: in the same dim, else the only other."""
        places = [p for p, other in enumerate(self.axes) if other == axis and p != position]
        same = [p for p in places if self.origin[p] == self.origin[position]]
        return (same or places)[0]


@dataclass(frozen=True)
class _Open:
    """A cell on its way: what the views' dimensions still have to be split into."""

    views: tuple[Tensor, ...]
    dims: tuple[Dim, ...]
    origin: tuple[int, ...] = field(default=())


def cells(tensors: Sequence[Tensor], dims: Layout, sizes: Sequence[Sizes] | None = None) -> Iterator[Cell]:
    """Walk tensors of one layout in lockstep, block by block.

    Parameters
    ----------
    tensors :
        Tensors that share the layout; those of different models may have different sizes.
    dims :
        The layout.
    sizes : one mapping for each tensor, optional
        Axis number -> size in that tensor; by default, the sizes of the leaves.

    Yields
    ------
    Cell
        In row-major order of the blocks.

    Raises
    ------
    ValueError
        A tensor's shape is not that of the layout, or a case names no block that is present.

    Examples
    --------
    >>> import torch
    >>> from graphfuse.axes import Leaf, Sum
    >>> skip, up, row = Leaf(0, 1), Leaf(1, 2), Leaf(2, 3)
    >>> weight = torch.zeros(3, 3)
    >>> for cell in cells([weight], ((row,), (Sum(((skip,), (up,))),))):
    ...     _ = cell.views[0].fill_(cell.axes[1])
    >>> weight[0].tolist()
    [0.0, 1.0, 1.0]
    """
    every = tuple(sizes) if sizes is not None else ({},) * len(tensors)
    if len(every) != len(tensors):
        raise ValueError(f"cells: {len(tensors)} tensors, but sizes for {len(every)}")
    for tensor, known in zip(tensors, every, strict=True):
        if tuple(tensor.shape) != shape_of(dims, known):
            shown = ", ".join(render(dim) for dim in dims)
            raise ValueError(
                f"cells: a tensor of shape {tuple(tensor.shape)}, expected {shape_of(dims, known)} [{shown}]"
            )
    yield from _split(_Open(tuple(tensors), tuple(dims), tuple(range(len(dims)))), every)


def size_of(dim: Dim, sizes: Sizes) -> int:
    """Number of elements along a dim in the model that has these axis sizes."""
    total = 1
    for factor in dim:
        total *= _factor_size(factor, sizes)
    return total


def shape_of(dims: Layout, sizes: Sizes) -> tuple[int, ...]:
    """Shape that a tensor with this layout has in the model that has these axis sizes."""
    return tuple(size_of(dim, sizes) for dim in dims)


def _factor_size(factor: Factor, sizes: Sizes) -> int:
    match factor:
        case Leaf():
            return sizes.get(factor.id, factor.size)
        case Sum():
            return sum(size_of(part, sizes) for part in factor.parts)
        case Case():
            return size_of(factor.branches[0][1], sizes)


def _split(now: _Open, sizes: Sequence[Sizes]) -> Iterator[Cell]:
    """Split the first dimension that is not yet one axis; cases wait until the blocks they depend on are chosen."""
    waiting: list[int] = []
    for d, dim in enumerate(now.dims):
        match dim:
            case (Leaf(),):
                continue
            case (Case(),):
                waiting.append(d)
            case (Sum() as total,):
                yield from _blocks(now, d, total, sizes)
                return
            case ():
                yield from _split(_without(now, d), sizes)
                return
            case _:
                yield from _split(_factors(now, d, dim, sizes), sizes)
                return
    if waiting:
        yield from _split(_resolve(now, waiting), sizes)
        return
    leaves = [dim[0] for dim in now.dims if isinstance(dim[0], Leaf)]
    axes = tuple(leaf.id for leaf in leaves)
    yield Cell(now.views, axes, now.origin, frozenset(axes), tuple(leaf.dual for leaf in leaves))


def _without(now: _Open, d: int) -> _Open:
    """Drop a dimension of size 1."""
    views = tuple(view.squeeze(d) for view in now.views)
    return _Open(views, now.dims[:d] + now.dims[d + 1 :], now.origin[:d] + now.origin[d + 1 :])


def _factors(now: _Open, d: int, dim: Dim, sizes: Sequence[Sizes]) -> _Open:
    """Unflatten a product into its factors."""
    views = tuple(
        view.unflatten(d, tuple(_factor_size(factor, known) for factor in dim))
        for view, known in zip(now.views, sizes, strict=True)
    )
    dims = (*now.dims[:d], *((factor,) for factor in dim), *now.dims[d + 1 :])
    origin = (*now.origin[:d], *([now.origin[d]] * len(dim)), *now.origin[d + 1 :])
    return _Open(views, dims, origin)


def _blocks(now: _Open, d: int, total: Sum, sizes: Sequence[Sizes]) -> Iterator[Cell]:
    """The cells of each block of a concatenation."""
    starts = [0] * len(now.views)
    for part in total.parts:
        lengths = [size_of(part, known) for known in sizes]
        views = tuple(
            view.narrow(d, start, length) for view, start, length in zip(now.views, starts, lengths, strict=True)
        )
        yield from _split(_Open(views, (*now.dims[:d], part, *now.dims[d + 1 :]), now.origin), sizes)
        starts = [start + length for start, length in zip(starts, lengths, strict=True)]


def _resolve(now: _Open, waiting: Sequence[int]) -> _Open:
    """Replace a case by the branch whose key is among the blocks chosen so far."""
    present = {factor.id for dim in now.dims for factor in dim if isinstance(factor, Leaf)}
    for d in waiting:
        (case,) = now.dims[d]
        assert isinstance(case, Case)
        for key, branch in case.branches:
            if key.id in present:
                return _Open(now.views, (*now.dims[:d], branch, *now.dims[d + 1 :]), now.origin)
    shown = ", ".join(render(dim) for dim in now.dims)
    raise ValueError(f"cells: no case fits the block [{shown}]")
