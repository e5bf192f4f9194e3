"""The algebra of single dims: how two of them are unified while a graph is labelled.

:mod:`graphfuse.normal` says how a dim is written, :mod:`graphfuse.refining` how one axis is split and cut.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from graphfuse.axes import Case, Dim, Factor, Leaf, Sum, dim_size, dualised, factor_size
from graphfuse.refining import Refinement
from graphfuse.store import Mismatch


class DimAlgebra(Refinement):
    """Relations between dims."""

    def unify_all(self, pairs: Iterable[tuple[Dim, Dim]]) -> None:
        """Make the two dims of each pair one, all pairs at once.

        Two axes that become one keep the contexts they have in common. Taken pair by pair, the axis ``o`` of ``w[g o]``
        and of ``b[g o]`` would lose ``g`` if it came before ``g`` itself: the two ``g`` would still look different. So
        contexts are compared modulo all of the pairs.
        """
        plain: list[tuple[Dim, Dim]] = []
        for a, b in sorted(pairs, key=lambda pair: self._weight(pair[0]) + self._weight(pair[1])):
            if self._leafwise(a, b) is None:
                self.unify(a, b)
            else:
                plain.append((a, b))
        leaves: list[tuple[Leaf, Leaf]] = []
        for a, b in plain:
            matched = self._leafwise(a, b)  # anew: what was unified since may have refined them
            if matched is None:
                self.unify(a, b)
            else:
                leaves += matched
        common = self._common_contexts(leaves)
        for f, g in leaves:
            self.unify((f,), (g,))
        for leaf, context in common.items():
            root = self.root(leaf)
            if not self.fact(root).reasons:
                self.depend(root, {self.root(key) for key in context} - {root})

    def _weight(self, dim: Dim) -> int:
        return sum(len(self.context(f)) if isinstance(f, Leaf) else 1000 for f in self.norm(dim))

    def _leafwise(self, a: Dim, b: Dim) -> list[tuple[Leaf, Leaf]] | None:
        """The pairs of axes, when both dims are products of axes of the same sizes."""
        a, b = self.norm(a), self.norm(b)
        if len(a) != len(b):
            return None
        matched = [(f, g) for f, g in zip(a, b, strict=True) if isinstance(f, Leaf) and isinstance(g, Leaf)]
        return matched if len(matched) == len(a) and all(f.size == g.size for f, g in matched) else None

    def _common_contexts(self, pairs: Sequence[tuple[Leaf, Leaf]]) -> dict[Leaf, frozenset[Leaf]]:
        """For each class of axes that the pairs make, the contexts that all of its axes share, modulo the pairs."""
        parent: dict[Leaf, Leaf] = {}

        def find(leaf: Leaf) -> Leaf:
            while leaf in parent:
                leaf = parent[leaf]
            return leaf

        for f, g in pairs:
            if find(f) != find(g):
                parent[find(g)] = find(f)
        common: dict[Leaf, frozenset[Leaf]] = {}
        for leaf in dict.fromkeys(leaf for pair in pairs for leaf in pair):
            context = frozenset(find(key) for key in self.context(leaf)) - {find(leaf)}
            common[find(leaf)] = common.get(find(leaf), context) & context
        return common

    def unify(self, a: Dim, b: Dim) -> None:
        """Make two dims one; what cannot be given one structure is fixed, with the reason ``mismatch``."""
        if dim_size(a) == 1 == dim_size(b):
            self._union(self._unit(a), self._unit(b))
            return
        a, b = self.norm(a), self.norm(b)
        if a == b:
            self.agree(a, b)
            return
        if dim_size(a) != dim_size(b):
            self._clash(a, b)
        elif len(a) == len(b) == 1 and isinstance(a[0], Leaf) and isinstance(b[0], Leaf):
            self._union(a[0], b[0])
        elif self.is_inert(a):
            self.fix(b, self.reason(a))
        elif self.is_inert(b):
            self.fix(a, self.reason(b))
        else:
            try:
                self._unify_factors(a, b)
            except Mismatch:
                self._clash(a, b)

    def _clash(self, a: Dim, b: Dim) -> None:
        self.fix(a, "mismatch")
        self.fix(b, "mismatch")

    def _unify_factors(self, a: Dim, b: Dim) -> None:
        """Walk two dims from the outside in, refining the coarser factor until the factors pair up."""
        while a and b:
            f, g = a[0], b[0]
            if factor_size(f) > factor_size(g):
                a, b, f, g = b, a, g, f
            if factor_size(f) == factor_size(g):
                a, b = a[1:], b[1:]
                self._unify_factor(f, g)
            elif isinstance(g, Leaf) and g.size % factor_size(f) == 0:
                self._split(g, (factor_size(f), g.size // factor_size(f)))
            elif isinstance(g, Sum) and isinstance(f, Leaf):
                inner, uneven = divmod(factor_size(g), f.size)
                sizes = [dim_size(part) for part in g.parts]
                if uneven or any(size % inner for size in sizes):
                    raise Mismatch
                self._cut(f, [size // inner for size in sizes])
            elif isinstance(g, Sum) and isinstance(f, Case):
                a = self.collapse(f) + a[1:]
            elif isinstance(g, Case):
                outer, inner_dim = self.take((g,), factor_size(f))
                b = outer + inner_dim + b[1:]
            else:
                raise Mismatch
            a, b = self.norm(a), self.norm(b)

    def _unify_factor(self, f: Factor, g: Factor) -> None:
        match f, g:
            case (Leaf(), _) | (_, Leaf()) if self.norm((f,)) != (f,) or self.norm((g,)) != (g,):
                self.unify((f,), (g,))
            case Leaf(), Leaf():
                self._union(f, g)
            case Leaf(), Case() if f in self.leaves((g,)) or not {key for key, _ in g.branches} <= self.context(f):
                self.unify((f,), self.collapse(g))
            case Leaf(), _:
                self._bind(f, (g,))
            case _, Leaf():
                self._unify_factor(g, f)
            case Case(), Case() if [key for key, _ in f.branches] == [key for key, _ in g.branches]:
                for (_, left), (_, right) in zip(f.branches, g.branches, strict=True):
                    self.unify(left, right)
            case Case(), _:
                self.unify(self.collapse(f), (g,))
            case _, Case():
                self.unify((f,), self.collapse(g))
            case Sum(), Sum():
                self._unify_blocks(list(f.parts), list(g.parts))

    def _unify_blocks(self, left: list[Dim], right: list[Dim]) -> None:
        while left:
            n, m = dim_size(left[0]), dim_size(right[0])
            if n == m:
                self.unify(left.pop(0), right.pop(0))
                continue
            longer, size, cut = (left, n, m) if n > m else (right, m, n)
            longer[0:1] = [self.slice(longer[0], 0, cut), self.slice(longer[0], cut, size)]

    def _bind(self, leaf: Leaf, dim: Dim) -> None:
        """Let an axis stand for an expression of other axes."""
        dim = self.norm(dim)
        if leaf in self.leaves(dim):
            self.fix(dim, "mismatch")
            return
        allowed = self.context(leaf) | self.leaves(dim)
        dim = self._collapse_outside(dim, allowed)
        fact = self.fact(leaf)
        for part in self.leaves(dim):
            self.drop_context(part, self.context(part) - allowed)
            self.fact(part).keyed |= fact.keyed
        self.meet(dim, fact.symmetry)
        self._bind_to(leaf, dualised(dim) if leaf.dual else dim)
        for reason in fact.reasons.values():
            for part in self.leaves(dim):
                self.fact(part).reasons.setdefault(reason.why, reason)
                self.fact(part).context = frozenset()

    def _collapse_outside(self, dim: Dim, allowed: frozenset[Leaf]) -> Dim:
        factors: list[Factor] = []
        for factor in dim:
            if isinstance(factor, Sum):
                factors.append(Sum(tuple(self._collapse_outside(part, allowed) or part for part in factor.parts)))
            elif isinstance(factor, Case) and not {key for key, _ in factor.branches} <= allowed:
                factors.extend(self.collapse(factor))
            else:
                factors.append(factor)
        return self.norm(tuple(factors))
