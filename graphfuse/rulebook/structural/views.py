"""Ops that only rearrange: reshapes, permutations, broadcasts."""

from __future__ import annotations

from dataclasses import replace

from graphfuse.axes import Dim, dim_size
from graphfuse.rulebook.op import Label, Op
from graphfuse.rulebook.structural.table import Table, first_tensor

VIEWS = Table()


@VIEWS(
    "view", "_unsafe_view", "reshape", "flatten", "unflatten", "view_as", "squeeze", "unsqueeze", "_reshape_alias",
    "reshape_as", "atleast_1d", "atleast_2d", "atleast_3d", "ravel",
)  # fmt: skip
def reshape(op: Op) -> Label:
    """Merge and split runs of dims."""
    x = first_tensor(op)
    return replace(x, dims=op.algebra.regroup(x.dims, op.shape), value=None)


@VIEWS("expand", "expand_as", "broadcast_to")
def expand(op: Op) -> Label:
    """A broadcast dim is a new axis: all its elements are equal, so any map along it is allowed, anywhere."""
    x = first_tensor(op)
    dims: list[Dim] = [()] * (len(op.shape) - x.rank) + list(x.dims)
    present = op.algebra.layout_leaves(dims)
    for d, size in enumerate(op.shape):
        if dim_size(dims[d]) != size:
            dims[d] = op.algebra.new(size, context=present)
    return replace(x, dims=tuple(dims), value=None)


@VIEWS("repeat", "tile")
def repeat(op: Op) -> Label:
    """Copies laid end to end: the copies are an outer factor of the dim."""
    x = first_tensor(op)
    repeats = list(op.args["repeats"] if "repeats" in op.args else op.args["dims"])
    dims: list[Dim] = [()] * (len(op.shape) - x.rank) + list(x.dims)
    repeats = [1] * (len(dims) - len(repeats)) + repeats
    present = op.algebra.layout_leaves(dims)
    copies = [op.algebra.new(count, context=present) for count in repeats]
    op.fix_values(x)
    return Label(tuple(copy + dim for copy, dim in zip(copies, dims, strict=True)), held=x.held)


@VIEWS("repeat_interleave")
def repeat_interleave(op: Op) -> Label:
    """Copies of each element side by side: the copies are an inner factor of the dim."""
    x = op.label("self")
    count, d = op.args["repeats"], op.axis_of("dim", x.rank)
    if not isinstance(count, int):
        raise NotImplementedError("repeats differ by element")
    inner = op.algebra.new(count, context=op.algebra.layout_leaves(x.dims))
    return Label(tuple(dim + inner if i == d else dim for i, dim in enumerate(x.dims)), x.points, x.held)


def _permuted(x: Label, order: list[int]) -> Label:
    return replace(x, dims=tuple(x.dims[i] for i in order), value=None)


@VIEWS("permute")
def permute(op: Op) -> Label:
    """Reorder the dims."""
    x = op.label("self")
    return _permuted(x, [d % x.rank for d in op.args["dims"]])


@VIEWS("transpose", "swapaxes", "swapdims", "t", "numpy_T", "mT", "adjoint", "matrix_H")
def transpose(op: Op) -> Label:
    """Swap two dims; without arguments the last two (``numpy_T`` reverses all)."""
    x = op.label("self")
    order = list(range(x.rank))
    if "numpy_T" in op.name:
        return _permuted(x, order[::-1])
    names = [name for name in ("dim0", "dim1", "axis0", "axis1") if name in op.args]
    a, b = (op.axis_of(name, x.rank) for name in names) if names else (x.rank - 2, x.rank - 1)
    if x.rank > 1:
        order[a], order[b] = order[b], order[a]
    return _permuted(x, order)


@VIEWS("movedim", "moveaxis")
def movedim(op: Op) -> Label:
    """Move some dims to given places, the others keep their order."""
    x = op.label("self")
    source, target = ([v] if isinstance(v, int) else list(v) for v in (op.args["source"], op.args["destination"]))
    placed = {b % x.rank: a % x.rank for a, b in zip(source, target, strict=True)}
    rest = iter([d for d in range(x.rank) if d not in placed.values()])
    return _permuted(x, [placed[d] if d in placed else next(rest) for d in range(x.rank)])


@VIEWS("pixel_shuffle", "pixel_unshuffle", "channel_shuffle", "native_channel_shuffle")
def shuffle(op: Op) -> Label:
    """Trade channels for space, or interleave groups of channels: split, permute, merge."""
    x = op.label("self")
    *lead, c, h, w = x.shape
    if "channel_shuffle" in op.name:
        *lead, c = x.shape[:2]
        groups, space = op.args["groups"], x.shape[2:]
        split, order = (*lead, groups, c // groups, *space), [0, 2, 1, *range(3, x.rank + 1)]
    else:
        r = op.args.get("upscale_factor") or op.args["downscale_factor"]
        k = len(lead)
        if "unshuffle" in op.name:
            split = (*lead, c, h // r, r, w // r, r)
            order = [*range(k), k, k + 2, k + 4, k + 1, k + 3]
        else:
            split = (*lead, c // r // r, r, r, h, w)
            order = [*range(k), k, k + 3, k + 1, k + 4, k + 2]
    parts = op.algebra.regroup(x.dims, split)
    return Label(op.algebra.regroup(tuple(parts[i] for i in order), op.shape), held=x.held)


@VIEWS("view_as_real")
def view_as_real(op: Op) -> Label:
    """A complex number becomes a last dim of size 2."""
    x = op.label("self")
    return Label((*x.dims, op.algebra.new(2, "complex")), held=x.held)


@VIEWS("view_as_complex")
def view_as_complex(op: Op) -> Label:
    """A last dim of size 2 becomes a complex number."""
    x = op.label("self")
    op.algebra.separate(x.dims, x.dims[-1])
    op.algebra.fix(x.dims[-1], "complex")
    return Label(x.dims[:-1], held=x.held)


@VIEWS("diagonal")
def diagonal(op: Op) -> Label:
    """Equal indices along two dims: both move as one."""
    x = op.label("self")
    a, b = op.axis_of("dim1", x.rank, 0), op.axis_of("dim2", x.rank, 1)
    rest = tuple(dim for i, dim in enumerate(x.dims) if i not in (a, b))
    if op.get("offset", 0) or x.shape[a] != x.shape[b]:
        op.algebra.separate(x.dims, x.dims[a] + x.dims[b])
        op.algebra.fix(x.dims[a] + x.dims[b], "order")
        return Label((*rest, op.algebra.new(op.shape[-1], "order")), held=x.held)
    op.algebra.unify(x.dims[a], x.dims[b])
    return Label((*rest, x.dims[a]), held=x.held)
