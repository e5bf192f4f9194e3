"""Reductions, softmax and sorting: ops that mix along some dims while the others pass through."""

from __future__ import annotations

from dataclasses import replace

from graphfuse.axes import Dim, SymmetryClass, dim_size
from graphfuse.rulebook.op import Label, Op
from graphfuse.rulebook.structural.table import Table, dim_list, first_tensor

REDUCTIONS = Table()


def reduced(op: Op, x: Label, dims: list[int]) -> tuple[Dim, ...]:
    """The dims that are left, with size-one dims in place of the reduced ones where the op keeps them."""
    if len(op.shape) == x.rank:
        return tuple(() if i in dims else dim for i, dim in enumerate(x.dims))
    return tuple(dim for i, dim in enumerate(x.dims) if i not in dims)


@REDUCTIONS("sum", "mean", "nansum")
def linear_reduction(op: Op) -> Label:
    """Sums along some dims: any permutation of what is summed, any linear map of the rest; of squares, any rotation."""
    x = first_tensor(op)
    op.fix_values(x)
    dims = dim_list(op, x.rank, "dim")
    for d, dim in enumerate(x.dims):
        if d in dims:
            op.algebra.meet(dim, SymmetryClass.ORTHOGONAL if x.squared else SymmetryClass.CENTRED)
        elif x.squared:
            op.algebra.meet(dim, SymmetryClass.PERMUTATION)
    return Label(reduced(op, x, dims), held=x.held)


@REDUCTIONS("amax", "amin", "any", "all", "prod", "logsumexp", "var", "std", "var_mean", "std_mean", "norm", "median",
            "linalg_vector_norm", "count_nonzero", "frobenius_norm", "argmax", "argmin", "max", "min", "aminmax",
            "nanmedian", "nanmean")  # fmt: skip
def reduction(op: Op) -> Label | list[Label]:
    """Reductions whose value does not depend on the order; an arg-reduction's values index the reduced axis."""
    x = first_tensor(op)
    if op.args.get("other") is not None:  # the binary overloads of max and min are pointwise
        op.fix_values(*op.labels())
        return Label(op.algebra.broadcast([label.dims for label in op.labels()]))
    op.fix_values(x)
    dims = dim_list(op, x.rank, "dim")
    op.algebra.meet(tuple(f for dim in x.dims for f in dim), SymmetryClass.PERMUTATION)
    left = reduced(op, x, dims)
    if "argm" in op.name:
        return Label(left, op.ranked(x, dims[0]) if len(dims) == 1 else _unranked(op, x))
    if not op.several:
        return Label(left, held=x.held)
    names = any(word in op.name for word in (".max.", ".min.", "median"))
    return [Label(left), *(Label(left, op.ranked(x, dims[0]) if names else None) for _ in op.shapes[1:])]


def _unranked(op: Op, x: Label) -> None:
    """An index into the flattened tensor counts positions along every dim."""
    for dim in x.dims:
        op.algebra.fix(dim, "order")


@REDUCTIONS("softmax", "log_softmax", "_softmax", "_log_softmax", "_safe_softmax", "softmin", "gumbel_softmax")
def softmax(op: Op) -> Label:
    """Normalise along one dim: its own order does not matter, but nothing else may differ along it."""
    x = first_tensor(op)
    op.fix_values(x)
    d = op.axis_of("dim", x.rank)
    op.algebra.separate(x.dims, x.dims[d])
    op.algebra.meet(tuple(f for dim in x.dims for f in dim), SymmetryClass.PERMUTATION)
    return Label(x.dims, held=x.held)


@REDUCTIONS("topk", "sort", "argsort", "msort", "kthvalue")
def ranked(op: Op) -> Label | list[Label]:
    """Order along one dim by value: ranks are new fixed positions, indices point into the ranked axis."""
    x = first_tensor(op)
    dispatching = x.rank == 1 and x.points is not None and not op.algebra.is_fixed(x.points) and "sort" in op.name
    if dispatching and x.points is not None and x.token is not None:
        return _dispatched(op, x, x.points, x.token)
    op.fix_values(x)
    d = op.axis_of("dim", x.rank, -1) if "msort" not in op.name else 0
    op.algebra.separate(x.dims, x.dims[d])
    op.algebra.meet(tuple(f for dim in x.dims for f in dim), SymmetryClass.PERMUTATION)
    if len(op.shape) < x.rank:  # kthvalue
        dims = x.dims[:d] + x.dims[d + 1 :]
    else:
        dims = (*x.dims[:d], op.algebra.new(op.shape[d], "rank"), *x.dims[d + 1 :])
    indices = Label(dims, op.ranked(x, d))
    indices = replace(indices, bijection=len(op.shape) == 1 == x.rank and "sort" in op.name)
    return [Label(dims), indices] if op.several else indices if "argsort" in op.name else Label(dims)


def _dispatched(op: Op, x: Label, by: Dim, token: int) -> Label | list[Label]:
    """Rows sorted by the member of an axis that they point to: their order follows that axis, and nothing else."""
    rows = op.algebra.sorted_rows(x.shape[0], by, token)
    order = Label((rows,), x.dims[0], bijection=True)
    if op.several:
        return [Label((rows,), by, token=token), order]
    return order if "argsort" in op.name else Label((rows,), by, token=token)


@REDUCTIONS("histc", "bincount")
def histogram(op: Op) -> Label:
    """How many values point to each element of an axis; of other values, numbers of fixed bins."""
    x = first_tensor(op)
    indices = x.points is not None and x.token is not None and op.args.get("weights") is None
    if x.points is not None and indices and op.shape == (dim_size(x.points),):
        return Label((x.points,), counts=x.token)
    op.fix_values(*op.labels())
    for dim in x.dims:
        op.algebra.meet(dim, SymmetryClass.PERMUTATION)
    return Label(op.algebra.fresh(op.shape, "bins"))


@REDUCTIONS("_weight_norm", "_weight_norm_interface")
def weight_norm(op: Op) -> Label | list[Label]:
    """v * g / |v|, the norm over all dims but one: the kept dim moves with the gain."""
    v, g, d = op.label("v"), op.label("g"), op.axis_of("dim", op.label("v").rank, 0)
    kept = tuple(dim if i == d else () for i, dim in enumerate(v.dims))
    op.permutes(Label(kept))
    op.algebra.meet(tuple(f for i, dim in enumerate(v.dims) if i != d for f in dim), SymmetryClass.ORTHOGONAL)
    op.algebra.broadcast([kept, g.dims])
    op.algebra.limit(kept)
    result = Label(v.dims)
    return [result, Label(kept)] if op.several else result
