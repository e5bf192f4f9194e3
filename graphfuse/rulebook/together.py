"""Unify the dims of one op all at once.

Two axes that become one keep the contexts they have in common. Taken pair by pair, the axis ``o`` of ``w[g o]`` and
of ``b[g o]`` would lose ``g`` if it came before ``g`` itself: the two ``g`` still look different. Here contexts are
compared after all pairs are known, so that no order of the pairs loses anything.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from graphfuse.algebra import Algebra
from graphfuse.axes import Dim, Layout, Leaf, dim_size

Pair = tuple[Dim, Dim]


def unify_together(algebra: Algebra, pairs: Iterable[Pair]) -> None:
    """Make the two dims of each pair one, contexts compared modulo all of the pairs."""
    structured: list[Pair] = []
    plain: list[Pair] = []
    for pair in pairs:
        (plain if _leafwise(algebra, pair) is not None else structured).append(pair)
    algebra.unify_all(structured)
    leaves: list[tuple[Leaf, Leaf]] = []
    for pair in plain:
        matched = _leafwise(algebra, pair)
        if matched is None:
            algebra.unify(*pair)
        else:
            leaves += matched
    common = _common_contexts(algebra, leaves)
    for a, b in leaves:
        algebra.unify((a,), (b,))
    for leaf, context in common.items():
        root = algebra.root(leaf)
        if not algebra.reasons(root):
            algebra.depend(root, {algebra.root(key) for key in context} - {root})


def _leafwise(algebra: Algebra, pair: Pair) -> list[tuple[Leaf, Leaf]] | None:
    """The pairs of axes, when both dims are products of axes with the same sizes."""
    a, b = map(algebra.norm, pair)
    if len(a) != len(b):
        return None
    matched = [(f, g) for f, g in zip(a, b, strict=True) if isinstance(f, Leaf) and isinstance(g, Leaf)]
    return matched if len(matched) == len(a) and all(f.size == g.size for f, g in matched) else None


def _common_contexts(algebra: Algebra, pairs: Sequence[tuple[Leaf, Leaf]]) -> dict[Leaf, set[Leaf]]:
    """For one axis of each class that the pairs make: the contexts that all of its axes share, by class."""
    parent: dict[Leaf, Leaf] = {}

    def find(leaf: Leaf) -> Leaf:
        while leaf in parent:
            leaf = parent[leaf]
        return leaf

    for a, b in pairs:
        if find(a) != find(b):
            parent[find(b)] = find(a)
    common: dict[Leaf, set[Leaf]] = {}
    for leaf in dict.fromkeys(leaf for pair in pairs for leaf in pair):
        context = {find(key) for key in algebra.context(leaf)} - {find(leaf)}
        common[find(leaf)] = common.get(find(leaf), context) & context
    return common


def broadcast(algebra: Algebra, layouts: Sequence[Layout]) -> Layout:
    """Unify tensors from the right as numpy broadcasting does; the layout of the result."""
    result, pairs = broadcast_pairs(layouts)
    unify_together(algebra, pairs)
    return result


def broadcast_pairs(layouts: Sequence[Layout]) -> tuple[Layout, list[Pair]]:
    """The layout of tensors broadcast against each other, and the pairs of dims that this makes one."""
    rank = max(map(len, layouts), default=0)
    result: list[Dim] = []
    pairs: list[Pair] = []
    for position in range(-rank, 0):
        dims = [layout[position] for layout in layouts if len(layout) >= -position]
        size = next((dim_size(dim) for dim in dims if dim_size(dim) != 1), 1)
        full = [dim for dim in dims if dim_size(dim) == size]
        result.append(full[0] if size != 1 else ())
        pairs += [(full[0], other) for other in full[1:]] if size != 1 else []
    return tuple(result), pairs
