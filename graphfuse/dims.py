"""The algebra of single dims: how they are unified, split and cut into blocks while a graph is labelled.

Normal form of a dim: bound axes followed, size-1 factors dropped, and a :class:`~graphfuse.axes.Sum` only as the last
factor, because a product distributes over the sum on its left: ``(q + k + v) x heads`` becomes
``q x heads_q + k x heads_k + v x heads_v`` wherever the maps of ``heads`` may differ between the blocks.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from graphfuse.axes import Case, Dim, Factor, Layout, Leaf, Sum, dim_size, dualised, factor_size
from graphfuse.store import Mismatch, Store


class DimAlgebra(Store):
    """Relations between dims."""

    # ---------------------------------------------------------------- normal form

    def norm(self, dim: Dim) -> Dim:
        """The normal form of a dim, following all that was learnt about its axes."""
        factors: list[Factor] = []
        for factor in dim:
            match factor:
                case Leaf():
                    factors.extend(self._norm_leaf(factor))
                case Sum():
                    factors.extend(self._norm_sum(factor))
                case Case():
                    factors.extend(self._norm_case(factor))
        for i, factor in enumerate(factors[:-1]):
            if isinstance(factor, Sum):
                return self.norm((*factors[:i], self._distribute(factor, tuple(factors[i + 1 :]))))
        return tuple(factors)

    def norm_all(self, layout: Iterable[Dim]) -> Layout:
        """The normal form of every dim of a tensor."""
        return tuple(self.norm(dim) for dim in layout)

    def size(self, dim: Dim) -> int:
        """Number of elements along a dim."""
        return dim_size(dim)

    def _norm_leaf(self, leaf: Leaf) -> Dim:
        root = self.root(leaf)
        fact = self.fact(root)
        if fact.term is not None:
            if fact.normal != self._version:
                version = self._version
                fact.term = self.norm(fact.term)
                fact.normal = version  # stale at once if normalising has refined anything
            return dualised(fact.term) if root.dual else fact.term
        return () if root.size == 1 else (root,)

    def _norm_sum(self, factor: Sum) -> Dim:
        parts: list[Dim] = []
        for part in factor.parts:
            normal = self.norm(part) or (self._unit(part),)
            parts.extend(normal[0].parts if len(normal) == 1 and isinstance(normal[0], Sum) else [normal])
        if len(parts) > 1:
            return (Sum(tuple(parts)),)
        return () if dim_size(parts[0]) == 1 else parts[0]

    def _norm_case(self, factor: Case) -> Dim:
        branches: dict[Leaf, Dim] = {}
        for key, branch in factor.branches:
            for leaf in self.leaves((key,)):
                if leaf in branches:
                    self.unify(branches[leaf], branch)
                branches[leaf] = branch
        normal = {key: self._within(self.norm(branch), key) for key, branch in branches.items()}
        first, *rest = normal.values()
        if all(branch == first for branch in rest):
            for branch in rest:
                self.agree(first, branch)
            return first
        return (Case(tuple(sorted(normal.items(), key=lambda item: item[0].id))),)

    def _within(self, dim: Dim, key: Leaf) -> Dim:
        """A dim inside the block ``key``: a case on the blocks that it is one of is decided."""
        factors: list[Factor] = []
        for factor in dim:
            chosen = dict(factor.branches).get(key) if isinstance(factor, Case) else None
            factors.extend((factor,) if chosen is None else self._within(chosen, key))
        return tuple(factors)

    def _distribute(self, total: Sum, rest: Dim) -> Sum:
        keys = self.leaves((total,))
        parts = []
        for part in total.parts:
            tail = self.restrict(rest, keys, self.leaves(part))
            parts.append(part if dim_size(rest) == 1 else tail if dim_size(part) == 1 else part + tail)
        return Sum(tuple(parts))

    def _unit(self, dim: Dim) -> Leaf:
        """The axis of size 1 that stands for a dim of size 1, so that it can be the key of a case."""
        return min(self.leaves(dim), key=lambda leaf: leaf.id, default=None) or self.leaf(1)

    # ---------------------------------------------------------------- blocks

    def restrict(self, dim: Dim, keys: frozenset[Leaf], keep: frozenset[Leaf]) -> Dim:
        """The label of a dim where only the blocks ``keep``, out of the blocks ``keys`` of another dim, are present."""
        if not any(self.fact(key).keyed for key in keys):
            return self.norm(dim)
        factors: list[Factor] = []
        for factor in self.norm(dim):
            if isinstance(factor, Leaf):
                inside = self.context(factor) & keys
                if inside and not inside <= keep:
                    factors.extend(self._restrict_case(self._differ(factor, inside), keys, keep))
                else:
                    factors.append(factor)
            elif isinstance(factor, Sum):
                factors.append(Sum(tuple(self.restrict(part, keys, keep) or part for part in factor.parts)))
            else:
                factors.extend(self._restrict_case(factor, keys, keep))
        return self.norm(tuple(factors))

    def _differ(self, leaf: Leaf, keys: frozenset[Leaf]) -> Case:
        """Replace an axis whose maps may differ along ``keys`` by one axis for each key."""
        outside = self.context(leaf) - keys
        branches = []
        for key in sorted(keys, key=lambda key: key.id):
            context = outside | {key} if key.size > 1 else outside
            branches.append((key, (self.leaf(leaf.size, context, like=leaf),)))
        case = Case(tuple(branches))
        self._bind_to(leaf, (case,))
        return Case(tuple((key, dualised(branch)) for key, branch in branches)) if leaf.dual else case

    def _restrict_case(self, case: Case, keys: frozenset[Leaf], keep: frozenset[Leaf]) -> Dim:
        hit = [(key, branch) for key, branch in case.branches if key in keep]
        if hit:
            inner = [(key, self.restrict(branch, keys, keep & self.leaves((key,)))) for key, branch in hit]
            return (Case(tuple(inner)),)
        if any(key in keys for key, _ in case.branches):
            return self.collapse(case)
        return (Case(tuple((key, self.restrict(branch, keys, keep)) for key, branch in case.branches)),)

    def collapse(self, case: Case) -> Dim:
        """Make all branches of a case one."""
        first, *rest = (branch for _, branch in case.branches)
        for branch in rest:
            self.unify(first, branch)
        return self.norm(first)

    # ---------------------------------------------------------------- unification

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

    # ---------------------------------------------------------------- refining one axis

    def _split(self, leaf: Leaf, sizes: Sequence[int]) -> None:
        """Refine an axis into a product; until an op decides which is inner, each may differ along the others."""
        context = self.context(leaf)
        parts = [self.leaf(size, like=leaf) for size in sizes]
        for part in parts:
            if not self.fact(part).reasons:
                self.depend(part, context | (set(parts) - {part}))
        self._bind_to(leaf, tuple(parts))

    def _cut(self, leaf: Leaf, sizes: Sequence[int]) -> None:
        """Refine an axis into blocks; of two axes that depend on each other the older one becomes the outer one.

        An axis from which single elements are taken is always the outer one, as these have nothing to move.
        """
        context: set[Leaf] = set()
        for key in self.context(leaf):
            if leaf not in self.context(key):
                context.add(key)
            elif key.id < leaf.id and 1 not in sizes:
                context.add(key)
                self.drop_context(key, frozenset({leaf}))
        parts = tuple((self.leaf(size, context, like=leaf),) for size in sizes)
        self._bind_to(leaf, (Sum(parts),))

    def take(self, dim: Dim, outer: int) -> tuple[Dim, Dim]:
        """Split a dim into an outer dim of the given size and what is left; Mismatch when no refinement does so."""
        dim = self.norm(dim)
        taken: list[Factor] = []
        while outer > 1:
            if not dim:
                raise Mismatch
            first, size = dim[0], factor_size(dim[0])
            if outer % size == 0:
                taken.append(first)
                dim, outer = dim[1:], outer // size
            elif size % outer:
                raise Mismatch
            elif isinstance(first, Leaf):
                self._split(first, (outer, size // outer))
                dim = self.norm(dim)
            else:
                head, tail = self._take_blocks(first, outer)
                taken.append(head)
                dim, outer = (tail, *dim[1:]), 1
        return self.norm(tuple(taken)), self.norm(dim)

    def _take_blocks(self, factor: Sum | Case, outer: int) -> tuple[Factor, Factor]:
        if isinstance(factor, Case):
            halves = [(key, self.take(branch, outer)) for key, branch in factor.branches]
            return Case(tuple((k, head) for k, (head, _) in halves)), Case(tuple((k, tail) for k, (_, tail) in halves))
        inner = factor_size(factor) // outer
        if any(dim_size(part) % inner for part in factor.parts):
            raise Mismatch
        heads: list[Dim] = []
        tails: dict[Leaf, Dim] = {}
        for part in factor.parts:
            head, tail = self.take(part, dim_size(part) // inner)
            head = head or (self.leaf(1),)
            heads.append(head)
            for key in self.leaves(head):
                self.fact(key).keyed = True
                if key in tails:
                    self.unify(tails[key], tail)
                tails[key] = tail
        return Sum(tuple(heads)), Case(tuple(tails.items()))

    def slice(self, dim: Dim, start: int, stop: int) -> Dim:
        """The label of positions ``start`` to ``stop`` of a dim."""
        dim = self.norm(dim)
        if (start, stop) == (0, dim_size(dim)):
            return dim
        if start == stop:
            return self.new(0, "empty")
        if self.is_inert(dim):
            return self.new(stop - start, self.reason(dim))
        first, inner = dim[0], dim_size(dim[1:])
        if isinstance(first, Sum):
            return self._slice_sum(first, start, stop)
        if start % inner or stop % inner:
            self.fix(dim, "cut")
            return self.new(stop - start, "cut")
        if isinstance(first, Leaf):
            a, b = start // inner, stop // inner
            self._cut(first, [size for size in (a, b - a, first.size - b) if size])
            return self.slice(dim, start, stop)
        a, b = start // inner, stop // inner
        cut = Case(tuple((key, self.slice(branch, a, b)) for key, branch in first.branches))
        return self.norm((cut, *dim[1:]))

    def _slice_sum(self, total: Sum, start: int, stop: int) -> Dim:
        parts: list[Dim] = []
        offset = 0
        for part in total.parts:
            size = dim_size(part)
            low, high = max(start - offset, 0), min(stop - offset, size)
            offset += size
            if low < high:
                parts.append(self.slice(part, low, high) or (self._unit(part),))
        return self.norm((Sum(tuple(parts)),)) or (self._unit(parts[0]),)
