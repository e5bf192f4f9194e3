"""Indexing by tensors: embeddings, gathers, scatters.

Integers that point into an axis move with it (top-k over experts); integers known when tracing cut the axis into the
blocks that they name; all others (token ids) fix it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from graphfuse.axes import Dim, Leaf, dim_size
from graphfuse.rulebook.op import Label, Op
from graphfuse.rulebook.structural.blocks import joined, narrowed, position_dim
from graphfuse.rulebook.structural.table import Table
from graphfuse.store import Held

INDEXING = Table()

MAX_BLOCKS = 64


def indexed(op: Op, dim: Dim, index: Label) -> dict[Leaf, Held]:
    """A dim is addressed by the values of ``index``; the axes that stay in scope through the gathered rows."""
    if index.points is not None and dim_size(index.points) == dim_size(dim):
        op.algebra.unify(dim, index.points)
        rows = op.algebra.layout_leaves(index.dims)
        token = -1 - id(index) if index.token is None else index.token
        return {leaf: Held(token, rows) for leaf in op.algebra.leaves(dim)}
    op.algebra.fix(dim, "index")
    op.fix_values(index)
    return {}


def blocks_of(op: Op, x: Label, d: int, value: torch.Tensor) -> Label:
    """Indices known when tracing: runs of neighbours are slices, joined in the order in which they are named."""
    size = x.shape[d]
    runs: list[list[int]] = []
    for index in (value % size).tolist():
        if runs and runs[-1][1] == index:
            runs[-1][1] += 1
        else:
            runs.append([index, index + 1])
    if len(runs) > MAX_BLOCKS:
        return position_dim(op, x, d, value.numel(), "index")
    parts = [narrowed(op, x, d, start, stop) for start, stop in runs]
    return joined(op, [replace(part, dims=op.algebra.norm_all(part.dims)) for part in parts], d)


def is_static(index: Label) -> bool:
    """Whether the index is a list of positions known when tracing."""
    value = index.value
    return index.points is None and value is not None and value.dim() == 1 and not value.dtype.is_floating_point


@INDEXING("embedding")
def embedding(op: Op) -> Label:
    """Rows of a table."""
    weight, indices = op.label("weight"), op.label("indices")
    held = indexed(op, weight.dims[0], indices)
    return Label((*indices.dims, weight.dims[1]), held=held)


@INDEXING("index_select")
def index_select(op: Op) -> Label:
    """Positions of one dim."""
    x, index = op.label("self"), op.label("index")
    d = op.axis_of("dim", x.rank)
    if is_static(index) and index.value is not None:
        return blocks_of(op, x, d, index.value)
    held = indexed(op, x.dims[d], index)
    return Label((*x.dims[:d], *(index.dims or ((),)), *x.dims[d + 1 :]), x.points, held)


def _places(indices: Sequence[Any]) -> tuple[list[int], int]:
    """Which dims are indexed, and where the broadcast index dims stand in the result."""
    at = [d for d, index in enumerate(indices) if isinstance(index, Label)]
    adjacent = at == list(range(at[0], at[-1] + 1))
    return at, at[0] if adjacent else 0


@INDEXING("index", "_unsafe_index")
def index(op: Op) -> Label:
    """numpy's advanced indexing."""
    x = op.label("self")
    indices = [*op.args["indices"], *[None] * (x.rank - len(op.args["indices"]))]
    at, place = _places(indices)
    tensors: list[Label] = [indices[d] for d in at]
    rest = [x.dims[d] for d in range(x.rank) if indices[d] is None]
    if len(tensors) == 1 and is_static(tensors[0]):
        value = tensors[0].value
        if value is not None:
            chosen = value.nonzero()[:, 0] if value.dtype == torch.bool else value
            return blocks_of(op, x, at[0], chosen)
    if any(label.is_mask for label in tensors):
        return _masked(op, x, tensors, at[0])
    held: dict[Leaf, Held] = {}
    for d, label in zip(at, tensors, strict=True):
        held.update(indexed(op, x.dims[d], label))
    middle = op.algebra.broadcast([label.dims for label in tensors])
    return Label((*rest[:place], *middle, *rest[place:]), x.points, held)


def _masked(op: Op, x: Label, tensors: list[Label], d: int) -> Label:
    if len(tensors) != 1:
        raise NotImplementedError("a boolean mask beside other indices")
    mask = tensors[0]
    op.algebra.broadcast([x.dims[d : d + mask.rank], mask.dims])
    for dim in mask.dims:
        op.algebra.separate(x.dims, dim)
        op.algebra.fix(dim, "mask")
    return Label((*x.dims[:d], op.algebra.new(op.shape[d], "mask"), *x.dims[d + mask.rank :]))


def _same_elsewhere(op: Op, x: Label, others: Sequence[Label], d: int) -> None:
    """Along every dim but one the tensors are addressed in parallel."""
    for other in others:
        for i, (a, b) in enumerate(zip(x.dims, other.dims, strict=True)):
            if i == d:
                continue
            if dim_size(a) == dim_size(b):
                op.algebra.unify(a, b)
            else:
                op.algebra.fix(a, "gather")
                op.algebra.fix(b, "gather")


@INDEXING("gather", "take_along_dim")
def gather(op: Op) -> Label:
    """Along one dim, take the elements that the index names, position by position of the other dims."""
    x, indices = op.label("self"), op.label("index" if "index" in op.args else "indices")
    d = op.axis_of("dim", x.rank)
    op.algebra.separate(x.dims, x.dims[d])
    indexed(op, x.dims[d], indices)
    _same_elsewhere(op, x, [indices], d)
    return Label(indices.dims, x.points)


@INDEXING("scatter", "scatter_add", "scatter_reduce")
def scatter(op: Op) -> Label:
    """Along one dim, write to the elements that the index names."""
    x, indices = op.label("self"), op.label("index")
    d = op.axis_of("dim", x.rank)
    op.fix_values(x)
    if "reduce" in op.name:
        op.permutes(*op.labels())
    op.algebra.separate(x.dims, x.dims[d])
    indexed(op, x.dims[d], indices)
    source = op.args.get("src")
    sources = [source] if isinstance(source, Label) else []
    _same_elsewhere(op, x, [indices, *sources], d)
    for label in sources:
        if label.shape[d] == indices.shape[d]:
            op.algebra.unify(indices.dims[d], label.dims[d])
        else:
            op.algebra.fix(indices.dims[d], "gather")
            op.algebra.fix(label.dims[d], "gather")
    return Label(x.dims)


@INDEXING("index_add", "index_copy", "index_fill", "index_reduce")
def index_write(op: Op) -> Label:
    """Write whole rows at the positions that the index names."""
    x, indices = op.label("self"), op.label("index")
    d = op.axis_of("dim", x.rank)
    op.fix_values(x)
    if "reduce" in op.name:
        op.permutes(*op.labels())
    op.algebra.separate(x.dims, x.dims[d])
    indexed(op, x.dims[d], indices)
    source = op.args.get("source")
    if isinstance(source, Label) and source.rank:
        row = indices.dims[0] if indices.dims else ()
        pairs = [(a, b) for i, (a, b) in enumerate(zip(x.dims, source.dims, strict=True)) if i != d]
        op.algebra.unify_all([*pairs, (row, source.dims[d])])
        op.algebra.separate(source.dims, source.dims[d])
    return Label(x.dims)


@INDEXING("index_put", "_unsafe_index_put")
def index_put(op: Op) -> Label:
    """Write at positions named along several dims."""
    x, values = op.label("self"), op.label("values")
    indices = [*op.args["indices"], *[None] * (x.rank - len(op.args["indices"]))]
    at, place = _places(indices)
    tensors: list[Label] = [indices[d] for d in at]
    if any(label.is_mask for label in tensors):
        rows = _masked(op, x, tensors, at[0])
        op.fix_values(x, values)
        op.algebra.broadcast([rows.dims, values.dims])
        return Label(x.dims)
    if _inverts(x, tensors, values):
        op.algebra.unify(values.dims[0], tensors[0].dims[0])
        return Label((tensors[0].points or (),), values.points, bijection=True)  # nothing is left of what x was
    op.fix_values(x, values)
    for d, label in zip(at, tensors, strict=True):
        op.algebra.separate(x.dims, x.dims[d])
        indexed(op, x.dims[d], label)
    rest = tuple(x.dims[d] for d in range(x.rank) if indices[d] is None)
    middle = op.algebra.broadcast([label.dims for label in tensors])
    written = (*rest[:place], *middle, *rest[place:])
    for dim in middle:
        op.algebra.separate(written, dim)
    op.algebra.broadcast([written, values.dims])
    return Label(x.dims)


@INDEXING("masked_scatter")
def masked_scatter(op: Op) -> Label:
    """Where the mask says so, the next elements of the source, counted along all of its dims.

    Along its last dims, if the mask is equal along them and the source has the same ones, whole rows are written.
    """
    x, mask, source = op.label("self"), op.label("mask"), op.label("source")
    op.fix_values(x, source)
    equal, same = op.algebra.leaves(tuple(mask.uniform)), 0
    for a, m, b in zip(reversed(x.dims), reversed(mask.dims), reversed(source.dims), strict=False):
        if dim_size(a) != dim_size(b) or not op.algebra.leaves(m) <= equal:
            break
        same += 1
    pairs = list(zip(x.dims[x.rank - same :], source.dims[source.rank - same :], strict=True))
    for label, kept in ((x, same), (source, same), (mask, 0)):
        for dim in label.dims[: label.rank - kept]:
            op.algebra.separate(label.dims, dim)
            op.algebra.fix(dim, "mask")
    op.algebra.unify_all(pairs)
    return Label(op.algebra.norm_all(x.dims))


def _inverts(x: Label, tensors: list[Label], values: Label) -> bool:
    """Whether positions are written to all places of a vector: the inverse of a permutation."""
    (index, *others) = tensors
    return (
        not others and index.bijection and index.points is not None and values.points is not None
        and x.shape == values.shape == index.shape == (dim_size(index.points),)
    )  # fmt: skip


@INDEXING("embedding_bag", "_embedding_bag", "_embedding_bag_forward_only")
def embedding_bag(op: Op) -> list[Label]:
    """Sums of rows of a table."""
    weight = op.label("weight")
    indexed(op, weight.dims[0], op.label("indices"))
    op.fix_values(*op.labels())
    if op.get("mode", 0) == 2:  # the largest of the rows
        op.permutes(weight)
    rows = op.algebra.new(op.shape[0], "index")
    others = [Label(op.algebra.fresh(shape, "index")) for shape in op.shapes[1:] if shape is not None]
    return [Label((rows, weight.dims[1])), *others]


@INDEXING("one_hot")
def one_hot(op: Op) -> Label:
    """One-hot rows of an index run along the axis that it points into."""
    x = op.label("self")
    if x.points is not None and dim_size(x.points) == op.shape[-1]:
        return Label((*x.dims, x.points))
    op.fix_values(x)
    return Label((*x.dims, op.algebra.new(op.shape[-1], "index")))


@INDEXING("nonzero", "nonzero_static", "masked_select", "searchsorted", "bucketize", "unique", "_unique2")
def positions(op: Op) -> Label | list[Label]:
    """Results that list positions: everything that they look at is fixed."""
    for label in op.labels():
        op.fix_values(label)
        for dim in label.dims:
            op.algebra.separate(label.dims, dim)
            op.algebra.fix(dim, "positions")
    results = [Label(op.algebra.fresh(shape, "positions")) for shape in op.shapes if shape is not None]
    return results if op.several else results[0]
