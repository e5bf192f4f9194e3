"""The axis algebra over whole tensors: the interface that rules call while a graph is labelled.

A permutation that moves along a graph must be consistent with every op on its way. Rules say so by relating dims, and
the algebra turns each relation into a refinement of the axes involved (:mod:`graphfuse.dims`,
:mod:`graphfuse.store`). Here are the relations that concern all dims of a tensor at once: its contexts, its reshapes,
its blocks.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Sequence

from graphfuse.axes import Case, Dim, Layout, Leaf, Sum, dim_size
from graphfuse.dims import DimAlgebra
from graphfuse.store import Held, Mismatch, Reason

__all__ = ["Algebra", "Held", "Mismatch", "Reason"]


class Algebra(DimAlgebra):
    """Relations between the dims of tensors."""

    def __init__(self) -> None:
        super().__init__()
        self._sorted: dict[Leaf, tuple[Dim, int]] = {}

    # ---------------------------------------------------------------- rows sorted by where they point

    def sorted_rows(self, size: int, by: Dim, token: int) -> Dim:
        """A new dim of rows in the order of the indices into ``by`` that belong to them (a set called ``token``).

        When ``by`` is permuted its rows are too, in a way that depends on data; no parameter can follow that.
        """
        rows = self.new(size)
        self._sorted |= {leaf: (by, token) for leaf in self.leaves(rows)}
        return rows

    def sorted_by(self, rows: Dim) -> int | None:
        """By which set of indices a dim's rows are sorted; None when they are not."""
        known = {root: token for leaf, (_, token) in self._sorted.items() for root in self.leaves((leaf,))}
        return next((known[leaf] for leaf in self.leaves(rows) if leaf in known), None)

    def settle_sorted(self, layouts: Iterable[Layout]) -> None:
        """Fix rows that did not stay free or met a parameter, and what they were sorted by."""
        parameters = self.layout_leaves(dim for layout in layouts for dim in layout)
        for leaf, (by, _) in self._sorted.items():
            now = self.leaves((leaf,))
            if now != {self.root(leaf)} or now & parameters or self.reasons(leaf):
                self.fix((leaf, *by), "rows sorted by it are used by position")

    # ---------------------------------------------------------------- contexts

    def limit(self, layout: Iterable[Dim], held: Collection[Leaf] = ()) -> Layout:
        """A tensor with this layout exists: drop contexts along axes that it does not have; its normal form.

        ``held`` names further axes in scope, from which the tensor's rows were gathered.
        """
        dims = self.norm_all(layout)
        own = [self.leaves(dim) for dim in dims]
        places = Counter(leaf for leaves in own for leaf in leaves)
        always = self.layout_leaves((leaf,) for leaf in held)
        for dim, leaves in zip(dims, own, strict=True):
            if any(not isinstance(factor, Leaf) or self.context(factor) for factor in dim):
                elsewhere = frozenset(leaf for leaf, count in places.items() if count - (leaf in leaves) == 1)
                self._limit(dim, always | elsewhere)
        dims = self.norm_all(dims)
        cases = [factor for dim in dims for factor in dim if isinstance(factor, Case)]
        for key in dict.fromkeys(key for case in cases for key, _ in case.branches):
            self.limit((self._in_block(dim, key) for dim in dims), held)  # only what that block has is there
        return self.norm_all(dims)

    def _in_block(self, dim: Dim, key: Leaf) -> Dim:
        """A dim where only the block ``key`` of a concatenation is looked at."""
        factors = self._within(dim, key)
        last = factors[-1] if factors else None
        if isinstance(last, Sum):
            part = next((part for part in last.parts if key in self.leaves(part)), None)
            return factors if part is None else (*factors[:-1], *part)
        return factors

    def _limit(self, dim: Dim, outside: frozenset[Leaf]) -> None:
        """``outside`` are the axes that exactly one other dim has: with two, it is open which of them is meant."""
        inside = Counter(leaf for factor in dim if not isinstance(factor, Sum) for leaf in self.leaves((factor,)))
        blocks = self.layout_leaves((factor,) for factor in dim if isinstance(factor, Sum))
        here = (outside - inside.keys()) | {leaf for leaf, count in inside.items() if count == 1}
        for factor in dim:
            match factor:
                case Leaf():
                    self.drop_context(factor, self.context(factor) - here - blocks)
                case Sum():
                    for part in factor.parts:
                        self._limit(part, here)
                case Case() if not {key for key, _ in factor.branches} <= here | blocks:
                    self.collapse(factor)
                case Case():
                    for _, branch in factor.branches:
                        self._limit(branch, here)

    def separate(self, layout: Iterable[Dim], over: Dim) -> None:
        """An op mixes elements along ``over`` while the rest passes through: nothing may differ along it."""
        gone = self.leaves(over)
        if any(self.fact(leaf).keyed for leaf in gone):
            for dim in self.norm_all(layout):
                self._forget(dim, gone)

    def _forget(self, dim: Dim, gone: frozenset[Leaf]) -> None:
        for factor in dim:
            match factor:
                case Leaf():
                    if factor not in gone:
                        self.drop_context(factor, gone)
                case Sum():
                    for part in factor.parts:
                        self._forget(part, gone)
                case Case() if any(key in gone for key, _ in factor.branches):
                    self._forget(self.collapse(factor), gone)
                case Case():
                    for _, branch in factor.branches:
                        self._forget(branch, gone)

    def definite(self, layout: Layout) -> Layout:
        """Where a dim is cut into blocks, give the other dims one label for each block along which they may differ."""
        for i, dim in enumerate(self.norm_all(layout)):
            for total in self._sums(dim):
                keys = self.leaves((total,))
                for part in total.parts:
                    keep = self.leaves(part)
                    for j, other in enumerate(layout):
                        if j != i:
                            self.restrict(other, keys, keep)
        return self.norm_all(layout)

    def _sums(self, dim: Dim) -> list[Sum]:
        found: list[Sum] = []
        for factor in dim:
            if isinstance(factor, Sum):
                found += [factor, *(inner for part in factor.parts for inner in self._sums(part))]
            elif isinstance(factor, Case):
                found += [inner for _, branch in factor.branches for inner in self._sums(branch)]
        return found

    def order_contexts(self, leaves: Iterable[Leaf]) -> None:
        """Break cycles of contexts: of two axes that each may differ along the other, the smaller is the outer one."""
        ordered = sorted(leaves, key=lambda leaf: (leaf.size, leaf.id))
        present = frozenset(ordered)
        rank = {leaf: i for i, leaf in enumerate(ordered)}
        for leaf in ordered:
            context = self.context(leaf)
            gone = {key for key in context if key not in present}
            gone |= {key for key in context - gone if leaf in self.context(key) and rank[key] > rank[leaf]}
            self.drop_context(leaf, frozenset(gone))
        self._break_cycles(ordered)

    def _break_cycles(self, leaves: Sequence[Leaf]) -> None:
        done: set[Leaf] = set()
        for start in leaves:
            path: list[Leaf] = []
            stack: list[tuple[Leaf, bool]] = [(start, False)]
            while stack:
                leaf, leaving = stack.pop()
                if leaving:
                    done.add(path.pop())
                elif leaf in path:
                    self.drop_context(path[-1], frozenset({leaf}))
                elif leaf not in done:
                    path.append(leaf)
                    stack.append((leaf, True))
                    stack += [(key, False) for key in self.context(leaf)]

    # ---------------------------------------------------------------- shapes

    def broadcast(self, layouts: Sequence[Layout]) -> Layout:
        """Unify tensors from the right as numpy broadcasting does; the layout of the result."""
        result, pairs = broadcast_pairs(layouts)
        self.unify_all(pairs)
        return result

    def regroup(self, layout: Layout, shape: Sequence[int]) -> Layout:
        """The label of a reshape: runs of dims with equal products are merged and split anew."""
        sizes = [dim_size(dim) for dim in layout]
        if 0 in shape:
            return self.fresh(shape, "empty")
        result: list[Dim] = []
        i = j = 0
        while i < len(sizes) or j < len(shape):
            if i < len(sizes) and j < len(shape) and sizes[i] == shape[j]:
                result.append(layout[i])
                i, j = i + 1, j + 1
            elif j < len(shape) and shape[j] == 1:
                result.append(())
                j += 1
            elif i < len(sizes) and sizes[i] == 1:
                i += 1
            else:
                first_in, first_out, merged, split = i, j, 1, 1
                while merged != split or merged == 1:
                    if merged <= split:
                        merged, i = merged * sizes[i], i + 1
                    else:
                        split, j = split * shape[j], j + 1
                result.extend(self._resplit(layout[first_in:i], shape[first_out:j]))
        return tuple(result)

    def _resplit(self, dims: Layout, sizes: Sequence[int]) -> list[Dim]:
        merged = self.norm(tuple(factor for dim in dims for factor in dim))
        if not self.is_inert(merged):
            result: list[Dim] = []
            try:
                for size in sizes[:-1]:
                    head, merged = self.take(merged, size)
                    result.append(head)
            except Mismatch:
                for dim in dims:
                    self.fix(dim, "view")
            else:
                return [*result, merged]
        return list(self.fresh(sizes, self.reason(tuple(factor for dim in dims for factor in dim))))

    # ---------------------------------------------------------------- blocks

    def narrow(self, layout: Layout, d: int, start: int, stop: int) -> Layout:
        """The label of ``x.narrow(d, start, stop - start)``: other dims keep only what holds in those blocks."""
        dim = self.norm(layout[d])
        if (start, stop) == (0, dim_size(dim)):
            return layout
        kept = self.slice(dim, start, stop) if dim else ()
        keys, keep = self.leaves(dim), self.leaves(kept)
        return tuple(kept if i == d else self.restrict(other, keys, keep) for i, other in enumerate(layout))

    def select(self, layout: Layout, d: int, index: int) -> Layout:
        """The label of ``x.select(d, index)``."""
        narrowed = self.narrow(layout, d, index, index + 1)
        return narrowed[:d] + narrowed[d + 1 :]

    def join(self, layouts: Sequence[Layout], d: int) -> Layout:
        """The label of ``torch.cat(tensors, d)``: blocks along ``d``; other dims may hold another label in each."""
        parts = [self.norm(layout[d]) or (self._unit(layout[d]),) for layout in layouts]
        if len(parts) == 1:
            return tuple(layouts[0])
        keys = [self.leaves(part) for part in parts]
        return tuple(
            (Sum(tuple(parts)),) if i == d else self._joined([layout[i] for layout in layouts], keys)
            for i in range(len(layouts[0]))
        )

    def _joined(self, dims: list[Dim], keys: list[frozenset[Leaf]]) -> Dim:
        normal = [self.norm(dim) for dim in dims]
        if len(set(normal)) == 1:
            for dim in normal[1:]:
                self.agree(normal[0], dim)
            return normal[0]
        branches: dict[Leaf, Dim] = {}
        for dim, own in zip(normal, keys, strict=True):
            for key in sorted(own, key=lambda key: key.id):
                self.fact(key).keyed = True
                if key in branches:
                    self.unify(branches[key], dim)
                branches[key] = dim
        return self.norm((Case(tuple(branches.items())),))


def broadcast_pairs(layouts: Sequence[Layout]) -> tuple[Layout, list[tuple[Dim, Dim]]]:
    """The layout of tensors broadcast against each other, and the pairs of dims that this makes one."""
    rank = max(map(len, layouts), default=0)
    result: list[Dim] = []
    pairs: list[tuple[Dim, Dim]] = []
    for position in range(-rank, 0):
        dims = [layout[position] for layout in layouts if len(layout) >= -position]
        size = next((dim_size(dim) for dim in dims if dim_size(dim) != 1), 1)
        full = [dim for dim in dims if dim_size(dim) == size]
        result.append(full[0] if size != 1 else ())
        pairs += [(full[0], other) for other in full[1:]] if size != 1 else []
    return tuple(result), pairs
