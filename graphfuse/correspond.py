"""Which axis and which node of one model corresponds to which of another, for models of one architecture.

Models correspond when they have the same parameters by name, with labels of the same structure; widths may differ.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from torch import fx

from graphfuse.axes import Case, Dim, Layout, Leaf, Sum
from graphfuse.errors import CorrespondenceError
from graphfuse.instep import node_pairs
from graphfuse.symmetry import Axis, SymmetryGraph, TensorLabel


@dataclass(frozen=True, eq=False)
class Correspondence:
    """How several models relate to the one that is the target.

    All mappings are keyed by the target's axis numbers and node names, and have one entry for each model (the target's
    own is the identity). ``free`` are the target's axes that are free in every model, with contexts that all share.
    ``nodes[k]`` has the nodes whose labels correspond; ``absent[k]`` the target's tensors that model k lacks (it is
    less deep), whose axes are left out of ``axes[k]``.
    """

    graphs: tuple[SymmetryGraph, ...]
    target: int
    axes: tuple[Mapping[int, int], ...]
    sizes: tuple[Mapping[int, int], ...]
    nodes: tuple[Mapping[str, str], ...]
    free: tuple[Axis, ...]
    absent: tuple[frozenset[str], ...]
    notes: tuple[str, ...] = ()

    @property
    def graph(self) -> SymmetryGraph:
        """The target's graph."""
        return self.graphs[self.target]


@dataclass
class _Match:
    """A growing bijection between the axes of two models."""

    forward: dict[int, Leaf] = field(default_factory=dict)
    backward: dict[int, int] = field(default_factory=dict)
    sizes: dict[int, int] = field(default_factory=dict)

    def clash(self, pairs: Sequence[tuple[Leaf, Leaf]]) -> tuple[Leaf, Leaf] | None:
        """The first pair that contradicts what is known or an earlier pair; None when all agree."""
        forward: dict[int, Leaf] = {}
        backward: dict[int, int] = {}
        for mine, other in pairs:
            known = self.forward.get(mine.id) or forward.setdefault(mine.id, other)
            back = self.backward.get(other.id)
            back = backward.setdefault(other.id, mine.id) if back is None else back
            if known != other or back != mine.id:
                return mine, other
        return None

    def add(self, pairs: Sequence[tuple[Leaf, Leaf]]) -> None:
        for mine, other in pairs:
            self.forward[mine.id] = other
            self.backward[other.id] = mine.id
            self.sizes[mine.id] = other.size


class _Unlike(Exception):
    """Two dims have another structure."""


def correspond(
    graphs: Sequence[SymmetryGraph], target: int = 0, absent: Sequence[Collection[str]] = ()
) -> Correspondence:
    """Relate models of one architecture to the target among them.

    Parameters
    ----------
    graphs :
        Symmetry graphs of the models; they may differ in width.
    target : int
        Index of the model that the others are related to.
    absent : sequence of collections of str, optional
        For each model, names of the target's tensors that it need not have.

    Raises
    ------
    CorrespondenceError
        The models are not of one architecture: names the first parameters or dims that differ, and both shapes.
    """
    reference = graphs[target]
    lacking = tuple(map(frozenset, absent)) or (frozenset(),) * len(graphs)
    matches = []
    for k, graph in enumerate(graphs):
        expect_same_names(reference, graph, target, k, lacking[k])
        matches.append(_match_tensors(reference, graph, target, k))
    free, notes = _common_freedom(reference, graphs, matches, target)
    moving = {axis.id for axis in free}
    for k, graph in enumerate(graphs):
        _same_fixed_sizes(reference, graph, matches[k], moving, target, k)
    nodes = tuple(_match_nodes(reference, graph, match) for graph, match in zip(graphs, matches, strict=True))
    own = {axis.id: axis.size for axis in (*reference.axes, *reference.fixed)}
    return Correspondence(
        graphs=tuple(graphs),
        target=target,
        axes=tuple({id: leaf.id for id, leaf in match.forward.items()} for match in matches),
        sizes=tuple({**own, **match.sizes} for match in matches),
        nodes=nodes,
        free=free,
        absent=lacking,
        notes=notes,
    )


# -------------------------------------------------------------------- tensors


def expect_same_names(a: SymmetryGraph, b: SymmetryGraph, i: int, k: int, absent: frozenset[str] = frozenset()) -> None:
    """Raise CorrespondenceError, with the parameters that only one has, unless both models have the same names."""
    missing = [name for name in a.tensors if name not in b.tensors and name not in absent]
    extra = [name for name in b.tensors if name not in a.tensors]
    if not missing and not extra:
        return
    lines = [f"model {k} ({_class(b)}) has other parameters than model {i} ({_class(a)})."]
    for owner, names, graph in ((i, missing, a), (k, extra, b)):
        if names:
            shown = ", ".join(f"{name} {tuple(graph.tensors[name].shape)}" for name in names[:3])
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            lines.append(f"  only model {owner} has: {shown}{more}")
    lines.append("  what to do: fuse models of one architecture and depth; their widths may differ")
    raise CorrespondenceError("\n".join(lines))


def _common(a: SymmetryGraph, b: SymmetryGraph) -> Iterator[tuple[str, TensorLabel, TensorLabel]]:
    return ((name, mine, b.tensors[name]) for name, mine in a.tensors.items() if name in b.tensors)


def _match_tensors(a: SymmetryGraph, b: SymmetryGraph, i: int, k: int) -> _Match:
    match = _Match()
    for name, mine, other in _common(a, b):
        if len(mine.dims) != len(other.dims):
            raise CorrespondenceError(
                f"{name!r} has {len(mine.shape)} dims in model {i} and {len(other.shape)} in model {k}.\n"
                f"  model {i}: {mine.shape}\n  model {k}: {other.shape}\n"
                "  what to do: fuse models of one architecture; only widths may differ"
            )
        for d, (left, right) in enumerate(zip(mine.dims, other.dims, strict=True)):
            try:
                pairs = list(_pairs(left, right))
            except _Unlike:
                raise _structure_error(a, b, name, d, i, k) from None
            clash = match.clash(pairs)
            if clash is not None:
                raise _clash_error(a, b, name, d, match, clash, i, k)
            match.add(pairs)
    return match


def _pairs(left: Dim, right: Dim) -> Iterator[tuple[Leaf, Leaf]]:
    """Corresponding leaves of two dims, those of case keys included."""
    if len(left) != len(right):
        raise _Unlike
    for mine, other in zip(left, right, strict=True):
        match mine, other:
            case Leaf(), Leaf():
                yield mine, other
            case Sum(), Sum() if len(mine.parts) == len(other.parts):
                for one, two in zip(mine.parts, other.parts, strict=True):
                    yield from _pairs(one, two)
            case Case(), Case() if len(mine.branches) == len(other.branches):
                for (key, one), (partner, two) in zip(mine.branches, other.branches, strict=True):
                    yield key, partner
                    yield from _pairs(one, two)
            case _:
                raise _Unlike


def _structure_error(a: SymmetryGraph, b: SymmetryGraph, name: str, d: int, i: int, k: int) -> CorrespondenceError:
    return CorrespondenceError(
        f"dim {d} of {name!r} has another structure in model {k} than in model {i}.\n"
        f"  model {i}: shape {a.tensors[name].shape}, dim {d} is {_words(a, a.tensors[name].dims[d])}\n"
        f"  model {k}: shape {b.tensors[name].shape}, dim {d} is {_words(b, b.tensors[name].dims[d])}\n"
        "  what to do: a part of size 1 (one head, one group) has no axis of its own, so it cannot be matched with "
        "several; use models whose parts correspond"
    )


def _clash_error(
    a: SymmetryGraph, b: SymmetryGraph, name: str, d: int, match: _Match, clash: tuple[Leaf, Leaf], i: int, k: int
) -> CorrespondenceError:
    mine, other = clash
    known = match.forward.get(mine.id)
    where = f"dim {d} of {name!r} (model {i}: {a.tensors[name].shape}, model {k}: {b.tensors[name].shape})"
    partner = f"elsewhere it corresponds to {_axis(b, known)}" if known else "that axis corresponds to another one"
    return CorrespondenceError(
        f"the axes of models {i} and {k} do not correspond.\n"
        f"  {where}: {_axis(a, mine)} against {_axis(b, other)}, but {partner}\n"
        "  what to do: fuse models of one architecture whose layers are tied to each other in the same way"
    )


def _same_fixed_sizes(a: SymmetryGraph, b: SymmetryGraph, match: _Match, moving: set[int], i: int, k: int) -> None:
    """Along an axis that may not move (inputs, outputs, positions) both models must have the same size."""
    for name, mine, other in _common(a, b):
        for d, (left, right) in enumerate(zip(mine.dims, other.dims, strict=True)):
            for one, two in _pairs(left, right):
                if one.id not in moving and one.size != two.size:
                    raise CorrespondenceError(
                        f"dim {d} of {name!r} differs along an axis that cannot be matched ({_axis(a, one)}).\n"
                        f"  model {i}: {mine.shape}\n  model {k}: {other.shape}\n"
                        f"  why: {_why(a, one) or _why(b, two)}\n"
                        "  what to do: only hidden widths may differ; inputs, outputs and positions must agree"
                    )


# -------------------------------------------------------------------- freedom


def _common_freedom(
    reference: SymmetryGraph, graphs: Sequence[SymmetryGraph], matches: Sequence[_Match], target: int
) -> tuple[tuple[Axis, ...], tuple[str, ...]]:
    """The target's axes that are free in all models, with the contexts that all share (a subgroup of each group)."""
    found, notes = [], []
    free = [{axis.id: axis for axis in graph.axes} for graph in graphs]
    for axis in reference.axes:
        known = {k: match.forward[axis.id].id for k, match in enumerate(matches) if axis.id in match.forward}
        partners = {k: free[k].get(id) for k, id in known.items()}
        held = [k for k, partner in partners.items() if partner is None]
        if held:
            notes.append(f"{axis.name} is fixed in model {held[0]}, so it is not matched")
            continue
        context = axis.context
        for k, partner in partners.items():
            if partner is not None:
                own = {matches[k].backward.get(key) for key in partner.context}
                context = tuple(key for key in context if key in own)
        if context != axis.context:
            notes.append(f"{axis.name} depends on fewer axes in another model than in model {target}")
        found.append(replace(axis, context=context))
    return tuple(found), tuple(notes)


# ---------------------------------------------------------------------- nodes


def _match_nodes(a: SymmetryGraph, b: SymmetryGraph, match: _Match) -> dict[str, str]:
    """Pair the nodes of two captured graphs; nodes whose labels do not correspond are left out."""
    mine, others = node_layouts(a), node_layouts(b)
    found: dict[str, str] = {}
    for name, other in node_pairs(a, b):
        left, right = mine[name], others[other]
        try:
            leaves = [pair for one, two in zip(left, right, strict=True) for pair in _layout_pairs(one, two)]
        except (_Unlike, ValueError):
            continue
        if match.clash(leaves) is None:
            match.add(leaves)
            found[name] = other
    return found


def node_layouts(graph: SymmetryGraph) -> dict[str, tuple[Layout | None, ...]]:
    """The labels of every node's values: one for a tensor, one for each part of a tuple."""
    return {node.name: _layouts(graph, node) for node in graph.captured.graph.nodes}


def _layouts(graph: SymmetryGraph, node: fx.Node) -> tuple[Layout | None, ...]:
    value: Any = graph.nodes.get(node.name)
    return tuple(value) if isinstance(node.meta.get("val"), list | tuple) and value is not None else (value,)


def _layout_pairs(left: Layout | None, right: Layout | None) -> Iterator[tuple[Leaf, Leaf]]:
    if left is None or right is None:
        if left is not right:
            raise _Unlike
        return
    if len(left) != len(right):
        raise _Unlike
    for one, two in zip(left, right, strict=True):
        match one, two:
            case (Leaf() as lone,), ():  # a batch of one input: its axis has no number of its own there
                yield lone, Leaf(-1 - lone.id, 1)
            case _:
                yield from _pairs(one, two)


# ------------------------------------------------------------------- messages


def _class(graph: SymmetryGraph) -> str:
    return type(graph.model).__name__


def _find(graph: SymmetryGraph, leaf: Leaf) -> Axis | None:
    return next((axis for axis in (*graph.axes, *graph.fixed) if axis.id == leaf.id), None)


def _axis(graph: SymmetryGraph, leaf: Leaf) -> str:
    axis = _find(graph, leaf)
    return f"{axis.name if axis else f'axis {leaf.id}'} of size {leaf.size}"


def _why(graph: SymmetryGraph, leaf: Leaf) -> str:
    axis = _find(graph, leaf)
    return ", ".join(str(reason) for reason in axis.reasons) if axis else ""


def _words(graph: SymmetryGraph, dim: Dim) -> str:
    """A dim in the names that people know its axes by."""
    words = []
    for factor in dim:
        match factor:
            case Leaf():
                words.append(_axis(graph, factor))
            case Sum():
                words.append("(" + " + ".join(_words(graph, part) for part in factor.parts) + ")")
            case Case():
                words.append("{" + " | ".join(_words(graph, branch) for _, branch in factor.branches) + "}")
    return " x ".join(words) or "of size 1"
