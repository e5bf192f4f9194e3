"""One axis refined: split into a product or cut into blocks, so that a part of a dim can be taken."""

from __future__ import annotations

from collections.abc import Sequence

from graphfuse.axes import Case, Dim, Factor, Leaf, Sum, dim_size, factor_size
from graphfuse.normal import NormalForm
from graphfuse.store import Mismatch


class Refinement(NormalForm):
    """Axes as products and as blocks of smaller ones."""

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
                kept = self.slice(part, low, high)  # () where one position is cut out of a product
                parts.append(kept or (self._unit(part) if size == 1 else self.leaf(1),))
        return self.norm((Sum(tuple(parts)),)) or (self._unit(parts[0]),)
