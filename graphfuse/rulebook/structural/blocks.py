"""Ops that cut tensors into blocks and join blocks: slice, select, split, cat, stack, pad."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from graphfuse.axes import Dim, Layout, dim_size
from graphfuse.rulebook.op import Label, Op
from graphfuse.rulebook.structural.table import Table, first_tensor

BLOCKS = Table()


def narrowed(op: Op, x: Label, d: int, start: int, stop: int) -> Label:
    """The label of a contiguous range of one dim."""
    return replace(x, dims=op.algebra.narrow(x.dims, d, start, stop), value=None)


def position_dim(op: Op, x: Label, d: int, size: int, why: str) -> Label:
    """Give up on one dim: its positions matter, and nothing else may differ along it."""
    op.algebra.separate(x.dims, x.dims[d])
    op.algebra.fix(x.dims[d], why)
    dim = x.dims[d] if x.shape[d] == size else op.algebra.new(size, why)
    return replace(x, dims=(*x.dims[:d], dim, *x.dims[d + 1 :]), value=None)


def slice_bounds(op: Op, size: int) -> tuple[int, int]:
    """Start and stop of a slice as Python counts them, clipped to the dim."""
    start, stop = op.get("start", 0), op.get("end", size)
    start = min(max(start + size if start < 0 else start, 0), size)
    return start, min(max(stop + size if stop < 0 else stop, start), size)


@BLOCKS("slice", "narrow")
def slice_(op: Op) -> Label:
    """A range of one dim; a stride that divides the dim takes one index of an inner factor."""
    x = op.label("self")
    d = op.axis_of("dim", x.rank, 0)
    size, step = x.shape[d], op.get("step", 1)
    bounds = [op.args.get(name) for name in ("start", "end", "length") if name in op.args]
    if not all(bound is None or isinstance(bound, int) for bound in bounds):
        return position_dim(op, x, d, op.shape[d], "dynamic slice")
    if "length" in op.args:
        start = op.args["start"] % size if op.args["start"] < 0 else op.args["start"]
        return narrowed(op, x, d, start, start + op.args["length"])
    start, stop = slice_bounds(op, size)
    if step == 1:
        return narrowed(op, x, d, start, stop)
    dims = strided(op, x, d, start, stop, step)
    return position_dim(op, x, d, op.shape[d], "stride") if dims is None else replace(x, dims=dims, value=None)


def strided(op: Op, x: Label, d: int, start: int, stop: int, step: int) -> Layout | None:
    """The label of every n-th position, where these are one index of an inner factor."""
    size = x.shape[d]
    if size % step or start >= step or stop <= size - step:
        return None
    split = op.algebra.regroup(x.dims, (*x.shape[:d], size // step, step, *x.shape[d + 1 :]))
    return op.algebra.select(split, d + 1, start)


@BLOCKS("select")
def select(op: Op) -> Label:
    """One index of one dim."""
    x = op.label("self")
    d, index = op.axis_of("dim", x.rank), op.args["index"]
    if not isinstance(index, int):
        fixed = position_dim(op, x, d, x.shape[d], "dynamic index")
        return replace(fixed, dims=fixed.dims[:d] + fixed.dims[d + 1 :])
    return replace(x, dims=op.algebra.select(x.dims, d, index % x.shape[d]), value=None)


def split_at(op: Op, x: Label, d: int, sizes: Sequence[int]) -> list[Label]:
    """The labels of consecutive ranges of one dim."""
    parts, offset = [], 0
    for size in sizes:
        parts.append(narrowed(op, x, d, offset, offset + size))
        offset += size
    return parts


@BLOCKS("split", "split_with_sizes", "chunk", "unsafe_split", "unsafe_chunk", "unsafe_split_with_sizes", "tensor_split")
def split(op: Op) -> list[Label]:
    """Consecutive ranges of one dim."""
    x = op.label("self")
    d = op.axis_of("dim", x.rank, 0)
    return split_at(op, x, d, [shape[d] for shape in op.shapes if shape is not None])


@BLOCKS("unbind")
def unbind(op: Op) -> list[Label]:
    """Every index of one dim."""
    x = op.label("self")
    d = op.axis_of("dim", x.rank, 0)
    return [replace(x, dims=op.algebra.select(x.dims, d, i), value=None) for i in range(x.shape[d])]


@BLOCKS("glu")
def glu(op: Op) -> Label:
    """Two halves of one dim, unit by unit: value times gate."""
    x = op.label("self")
    d = op.axis_of("dim", x.rank, -1)
    value, gate = split_at(op, x, d, [x.shape[d] // 2] * 2)
    op.permutes(value, gate)
    return Label(op.algebra.broadcast([value.dims, gate.dims]), held=x.held)


def joined(op: Op, parts: Sequence[Label], d: int) -> Label:
    """The label of tensors laid end to end; values that index one axis still do if all of them do."""
    parts = [part for part in parts if 0 not in part.shape and part.rank]
    points = parts[0].points
    if any(part.points is None or points is None or dim_size(part.points) != dim_size(points) for part in parts):
        op.fix_values(*parts)
        points = None
    else:
        for part in parts[1:]:
            op.algebra.unify(points or (), part.points or ())
    return Label(op.algebra.join([part.dims for part in parts], d), points)


@BLOCKS("cat", "concat", "concatenate")
def cat(op: Op) -> Label:
    """Blocks along one dim."""
    parts = list(op.labels())
    return joined(op, parts, op.axis_of("dim", len(op.shape), 0))


@BLOCKS("stack")
def stack(op: Op) -> Label:
    """Blocks of size one along a new dim."""
    d = op.axis_of("dim", len(op.shape), 0)
    return joined(op, [replace(x, dims=(*x.dims[:d], (), *x.dims[d:])) for x in op.labels()], d)


@BLOCKS("constant_pad_nd", "pad", "reflection_pad1d", "reflection_pad2d", "reflection_pad3d", "replication_pad1d",
        "replication_pad2d", "replication_pad3d", "_pad_circular", "_pad_enum")  # fmt: skip
def pad(op: Op) -> Label:
    """Constant padding adds fixed blocks at the ends; other modes copy elements by position."""
    x = op.label("self")
    op.fix_values(x)
    constant = op.name.startswith("aten.constant_pad") or op.get("mode", "constant") == "constant"
    constant = constant and "ion_pad" not in op.name and "circular" not in op.name
    if constant and op.get("value", 0) != 0:
        op.permutes(x)
    result, widths = replace(x, points=None, value=None), list(op.args.get("pad") or op.args["padding"])
    for i in range(len(widths) // 2):
        low, high = widths[2 * i : 2 * i + 2]
        d = x.rank - 1 - i
        if low == high == 0:
            continue
        if low < 0 or high < 0 or not constant or op.algebra.is_inert(result.dims[d]):
            result = position_dim(op, result, d, op.shape[d], "pad")
        else:
            result = replace(result, dims=_padded(op, result.dims, d, low, high))
    return result


def _padded(op: Op, dims: Layout, d: int, low: int, high: int) -> Layout:
    def block(size: int) -> Layout:
        return tuple(op.algebra.new(size, "pad") if i == d else dim for i, dim in enumerate(dims))

    parts = [block(low)] if low else []
    return op.algebra.join([*parts, dims, *([block(high)] if high else [])], d)


@BLOCKS("slice_scatter", "select_scatter")
def scatter_block(op: Op) -> Label:
    """Overwrite one range (or index) of a dim: inside it the new values and the old ones share a label."""
    x, source = op.label("self"), op.label("src")
    op.fix_values(x, source)
    d = op.axis_of("dim", x.rank, 0)
    whole = source.dims if "select" in op.name else source.dims[:d] + source.dims[d + 1 :]
    block = _written(op, x, d)
    if block is None:
        rows = position_dim(op, x, d, x.shape[d], "written by position")
        op.algebra.fix(source.dims[d] if source.rank == x.rank else (), "written by position")
        op.algebra.broadcast([rows.dims[:d] + rows.dims[d + 1 :], whole])
        return Label(rows.dims)
    op.algebra.broadcast([block, source.dims])
    return Label(op.algebra.norm_all(x.dims))


def _written(op: Op, x: Label, d: int) -> Layout | None:
    """The label of the positions that are overwritten; None where they are no block, or depend on data."""
    if not all(isinstance(op.get(name, 0), int) for name in ("start", "end", "index")):
        return None
    size, step = x.shape[d], op.get("step", 1)
    if "select" in op.name:
        return op.algebra.select(x.dims, d, op.args["index"] % size)
    if step == 1:
        return op.algebra.narrow(x.dims, d, *slice_bounds(op, size))
    return strided(op, x, d, *slice_bounds(op, size), step)


@BLOCKS("flip", "roll", "fft_fft", "fft_ifft", "fft_rfft", "fft_irfft", "fft_fft2", "fft_ifft2", "fft_rfft2",
        "fft_irfft2", "fft_fftn", "_fft_c2c", "_fft_r2c", "_fft_c2r", "cumsum", "cumprod", "cummax", "cummin",
        "logcumsumexp", "diff", "tril", "triu", "renorm", "rot90", "cumulative_trapezoid")  # fmt: skip
def ordered(op: Op) -> Label | list[Label]:
    """Ops for which positions along some dims matter; the other dims pass through."""
    x = first_tensor(op)
    op.fix_values(x)
    if x.counts is not None and x.rank == 1 and "cumsum" in op.name:
        return Label(x.dims, offsets=x.counts)
    if any(name in op.name for name in ("cumprod", "cummax", "cummin", "logcumsumexp", "renorm")):
        op.permutes(x)
    dims = list(x.dims)
    for d in _ordered_dims(op, x.rank):
        fixed = position_dim(op, Label(tuple(dims)), d, op.shape[d], "order")
        dims = list(fixed.dims)
    label = Label(tuple(dims), held=x.held)
    return [label] * len(op.shapes) if op.several else label


def _ordered_dims(op: Op, rank: int) -> list[int]:
    if "tril" in op.name or "triu" in op.name:
        return [rank - 2, rank - 1]
    value: int | Sequence[int] | None = next((op.args[n] for n in ("dims", "dim") if op.args.get(n) is not None), None)
    if value is None or value == []:
        last = 2 if "fft2" in op.name else 1
        return list(range(rank)) if "fftn" in op.name or "roll" in op.name else list(range(rank - last, rank))
    return [d % rank for d in ([value] if isinstance(value, int) else value)]


@BLOCKS("im2col")
def im2col(op: Op) -> Label:
    """Patches of an image as columns: channels x kernel positions."""
    x = op.label("self")
    kernel = op.args["kernel_size"]
    for dim in x.dims[-2:]:
        op.algebra.separate(x.dims, dim)
        op.algebra.fix(dim, "spatial")
    taps = op.algebra.new(kernel[0] * kernel[1], "spatial")
    return Label((*x.dims[:-3], x.dims[-3] + taps, op.algebra.new(op.shape[-1], "spatial")))


@BLOCKS("col2im")
def col2im(op: Op) -> Label:
    """Columns of patches summed back into an image."""
    x = op.label("self")
    channels, taps = op.algebra.take(x.dims[-2], op.shape[-3])
    op.algebra.separate(x.dims, taps + x.dims[-1])
    op.algebra.fix(taps + x.dims[-1], "spatial")
    space: list[Dim] = list(op.algebra.fresh(op.shape[-2:], "spatial"))
    return Label((*x.dims[:-2], channels, *space))


@BLOCKS("_pack_padded_sequence")
def packed(op: Op) -> list[Label]:
    """The steps of several sequences as rows, those of all sequences at one time together."""
    x = op.label("input")
    for dim in x.dims[:2]:
        op.algebra.separate(x.dims, dim)
        op.algebra.fix(dim, "packed")
    sizes = op.algebra.fresh(op.shapes[1] or (), "packed")
    return [Label((op.algebra.new(op.shape[0], "packed"), *x.dims[2:])), Label(sizes)]


@BLOCKS("unfold")
def unfold(op: Op) -> Label:
    """Sliding windows along one dim, as a new last dim."""
    x = op.label("self")
    d = op.axis_of("dimension", x.rank)
    windows = position_dim(op, x, d, op.shape[d], "spatial")
    return Label((*windows.dims, op.algebra.new(op.shape[-1], "spatial")))
