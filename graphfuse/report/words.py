"""What was found in a model, in sentences: streams added up, dims that are products or blocks, gates, gains."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence

from graphfuse.axes import Dim, Leaf, walk_leaves
from graphfuse.report.graphdata import describe, dims_json
from graphfuse.symmetry import Axis, SymmetryGraph, TensorLabel

MOST = 12


def starred(name: str) -> str:
    """A dotted name with ``*`` for the numbers of layers."""
    return re.sub(r"(?<![^.])\d+(?![^.])", "*", name)


def structure(graph: SymmetryGraph, most: int = MOST) -> list[str]:
    """Sentences about the structure of a graph; what is alike in several layers is said once, with its count.

    Parameters
    ----------
    graph : SymmetryGraph
    most : int
        Sentences at most; the last one says how many more there would be.
    """
    said: dict[str, int] = {}
    for line in (*_streams(graph), *_composed(graph), *_gates(graph), *_gains(graph)):
        said[line] = said.get(line, 0) + 1
    lines = [line + (f" ({count} times)" if count > 1 else "") for line, count in said.items()]
    return lines if len(lines) <= most else [*lines[: most - 1], f"... and {len(lines) - most + 1} more of this kind"]


def reasons(graph: SymmetryGraph) -> list[tuple[str, list[Axis]]]:
    """Why axes are fixed, with the axes that are, the commonest reason first."""
    groups: dict[str, list[Axis]] = {}
    for axis in graph.fixed:
        groups.setdefault(axis.reasons[0].why, []).append(axis)
    return sorted(groups.items(), key=lambda item: -len(item[1]))


def sizes_of(axes: Iterable[Axis], most: int = 6) -> str:
    """Sizes that axes have, each once."""
    sizes = sorted({axis.size for axis in axes})
    return ", ".join(map(str, sizes[:most])) + (", ..." if len(sizes) > most else "")


def _streams(graph: SymmetryGraph) -> Iterator[str]:
    for axis in _of_role(graph, "residual"):
        tensors = len({touch.tensor for touch in axis.touches})
        yield f"{axis.name}: values that are added up share one order of {axis.size} units, in {tensors} tensors"


def _composed(graph: SymmetryGraph) -> Iterator[str]:
    """Dims that are products (heads of so many units) or blocks (queries, keys and values in one weight)."""
    names = {axis.id: f"{axis.role} {axis.size}" for axis in graph.axes}
    for tensor in graph.tensors.values():
        for d, dim in enumerate(tensor.dims):
            if _is_composed(dim) and any(graph.axis(leaf.id).free for leaf in walk_leaves(dim) if leaf.size > 1):
                words = describe(dims_json((dim,)), [tensor.shape[d]], names)[1:-1]
                yield f"{starred(tensor.name)}[{d}]: {tensor.shape[d]} = {words}"


def _is_composed(dim: Dim) -> bool:
    leaves = [factor for factor in dim if isinstance(factor, Leaf)]
    return len(leaves) < len(dim) or sum(leaf.size > 1 for leaf in leaves) > 1


def _gates(graph: SymmetryGraph) -> Iterator[str]:
    for axis in _of_role(graph, "gate"):
        yield f"gate {axis.size}: two values are multiplied unit by unit, so both come in one order"


def _gains(graph: SymmetryGraph) -> Iterator[str]:
    for tensor in graph.tensors.values():
        for axis in _gained(graph, tensor):
            yield (
                f"{starred(tensor.name)}: a gain, scales {axis.role} {axis.size} unit by unit and moves with it; "
                "folded (--fold), it stands in the way of no rotation"
            )


def _gained(graph: SymmetryGraph, tensor: TensorLabel) -> Iterable[Axis]:
    for dim, gain in zip(tensor.dims, tensor.gains, strict=False):
        found = [graph.axis(leaf.id) for leaf in walk_leaves(dim) if leaf.size > 1] if gain else []
        yield from (axis for axis in found if axis.free)


def _of_role(graph: SymmetryGraph, role: str) -> Iterable[Axis]:
    return (axis for axis in graph.axes if axis.role == role)


def told_apart(specs: Sequence[str]) -> list[str]:
    """Names of models, without what they share: of one architecture, the files of the weights are left.

    >>> told_apart(["nets:net,width=8@a.safetensors", "nets:net,width=8@b.safetensors"])
    ['a.safetensors', 'b.safetensors']
    """
    heads, _, files = zip(*(spec.partition("@") for spec in specs), strict=True)
    return list(files) if len({*heads}) == 1 and len({*files}) == len(specs) > 1 else list(specs)
