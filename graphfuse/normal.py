"""The normal form of dims: bound axes followed, size-1 factors dropped, and a :class:`~graphfuse.axes.Sum` only as the
last factor.

A product distributes over the sum on its left: ``(q + k + v) x heads`` becomes ``q x heads_q + k x heads_k +
v x heads_v`` wherever the maps of ``heads`` may differ between the blocks.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable

from graphfuse.axes import Case, Dim, Factor, Layout, Leaf, Sum, dim_size, dualised
from graphfuse.store import Store


class NormalForm(Store, ABC):
    """Dims as all that was learnt about their axes says they are."""

    @abstractmethod
    def unify(self, a: Dim, b: Dim) -> None:
        """Make two dims one: branches of a case that turn out to be of one block."""

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
