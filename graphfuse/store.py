"""What labelling knows about each axis: a union-find with bindings, contexts, fixing reasons and symmetry classes.

The store is the one mutable value of labelling. It lives as long as one labelling does and everything done to it
*refines*: two axes become one, an axis is bound to an expression of smaller ones, is fixed, loses a context or part of
its symmetry class. Each step shrinks the group of claimed symmetries, so a step too many loses freedom, nothing else.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from graphfuse.axes import Case, Dim, Layout, Leaf, Sum, SymmetryClass, walk_leaves


class Mismatch(Exception):
    """Two dims cannot be given one structure; the caller fixes what is involved."""


@dataclass(frozen=True, slots=True)
class Reason:
    """Why an axis is fixed: what happened, and at which graph node (op, module path, the user's source line)."""

    why: str
    op: str = ""
    node: str = ""
    module: str = ""
    source: str = ""

    def __str__(self) -> str:
        where = f" at {self.op}" if self.op else ""
        return f"{self.why}{where}" + (f" in {self.module}" if self.module else "")


@dataclass(frozen=True, slots=True)
class Held:
    """A tensor whose rows were gathered from an axis: by which index (token), and the axes that the index runs over."""

    token: int
    rows: frozenset[Leaf]


@dataclass(slots=True)
class _Fact:
    """What is known about one axis; ``keyed`` says that another label may depend on its index.

    ``normal`` and ``parts`` remember, for one version of the store, that the term is in normal form, and its axes.
    """

    size: int
    symmetry: SymmetryClass = SymmetryClass.LINEAR
    parent: Leaf | None = None
    term: Dim | None = None
    reasons: dict[str, Reason] = field(default_factory=dict)
    context: frozenset[Leaf] = frozenset()
    keyed: bool = False
    normal: int = -1
    parts: tuple[int, frozenset[Leaf]] = (-1, frozenset())


class Store:
    """Facts about axes, by axis number."""

    def __init__(self) -> None:
        self._facts: list[_Fact] = []
        self._version = 0  # grows when two axes become one or an axis is bound, so that what was derived is stale
        self.site = Reason("")

    def fact(self, leaf: Leaf) -> _Fact:
        """The mutable record of an axis' representative."""
        return self._facts[self.root(leaf).id]

    def root(self, leaf: Leaf) -> Leaf:
        """The representative of the axes that were unified with this one, with the variance that it has here."""
        path: list[tuple[_Fact, bool]] = []
        dual = leaf.dual
        while (parent := self._facts[leaf.id].parent) is not None:
            path.append((self._facts[leaf.id], dual))
            dual ^= parent.dual
            leaf = parent
        if leaf.dual != dual:
            leaf = Leaf(leaf.id, leaf.size, dual)
        for fact, before in path[:-1]:
            fact.parent = Leaf(leaf.id, leaf.size, dual ^ before)
        return leaf

    # ---------------------------------------------------------------- making axes

    def leaf(self, size: int, context: Iterable[Leaf] = (), like: Leaf | None = None) -> Leaf:
        """A new axis; ``like`` passes on reasons, class and being a key of the axis that it refines."""
        leaf = Leaf(len(self._facts), int(size))
        fact = _Fact(leaf.size)
        if like is not None:
            old = self.fact(like)
            fact.reasons, fact.symmetry, fact.keyed = dict(old.reasons), old.symmetry, old.keyed
        self._facts.append(fact)
        if not fact.reasons:
            self.depend(leaf, context)
        return leaf

    def new(self, size: int, why: str | None = None, context: Iterable[Leaf] = ()) -> Dim:
        """A dim of one new axis, fixed when ``why`` is given; a dim of size 1 has no axis."""
        if size == 1:
            return ()
        leaf = self.leaf(size, context)
        if why is not None or size == 0:
            self._fix_leaf(leaf, why or "empty")
        return (leaf,)

    def fresh(self, shape: Iterable[int], why: str | None = None) -> Layout:
        """The label of a new tensor: one axis for each dim, each of which may differ along all the others."""
        layout = tuple(self.new(size, why) for size in shape)
        if why is None:
            leaves = [dim[0] for dim in layout if dim and isinstance(dim[0], Leaf)]
            for leaf in leaves:
                if not self.fact(leaf).reasons:
                    self.depend(leaf, (other for other in leaves if other is not leaf))
        return layout

    def depend(self, leaf: Leaf, context: Iterable[Leaf]) -> None:
        """Let the maps of an axis differ along the axes of ``context`` (only ever done while an axis is new)."""
        fact = self.fact(leaf)
        fact.context = frozenset(context)
        for key in fact.context:
            self.fact(key).keyed = True

    # ---------------------------------------------------------------- reading

    def leaves(self, dim: Dim) -> frozenset[Leaf]:
        """The unbound axes that a dim is made of, those of size 1 included."""
        found: set[Leaf] = set()
        for factor in dim:
            match factor:
                case Leaf():
                    found |= self._parts(self.root(factor))
                case Sum():
                    for part in factor.parts:
                        found |= self.leaves(part)
                case Case():
                    for _, branch in factor.branches:
                        found |= self.leaves(branch)
        return frozenset(found)

    def _parts(self, root: Leaf) -> frozenset[Leaf]:
        fact = self._facts[root.id]
        if fact.term is None:
            return frozenset((root,))
        version, parts = fact.parts
        if version != self._version:
            parts = self.leaves(fact.term)
            fact.parts = self._version, parts
        return parts

    def layout_leaves(self, layout: Iterable[Dim]) -> frozenset[Leaf]:
        """The unbound axes of a whole tensor."""
        return frozenset().union(*(self.leaves(dim) for dim in layout))

    def context(self, leaf: Leaf) -> frozenset[Leaf]:
        """The unbound axes along which the map of an axis may differ."""
        fact = self.fact(leaf)
        if fact.context:
            fact.context = self.leaves(tuple(fact.context)) - {self.root(leaf)}
        return fact.context

    def is_fixed(self, dim: Dim) -> bool:
        """Whether no axis of the dim may move."""
        return all(leaf.size == 1 or self.fact(leaf).reasons for leaf in self.leaves(dim))

    def is_inert(self, dim: Dim) -> bool:
        """Whether the dim is fixed and nothing depends on its index, so that its structure does not matter."""
        return self.is_fixed(dim) and not any(self.fact(leaf).keyed for leaf in self.leaves(dim))

    def reason(self, dim: Dim) -> str:
        """One reason why a dim is fixed, to pass on to what is derived from it."""
        return next((why for leaf in sorted(self.leaves(dim), key=_by_id) for why in self.fact(leaf).reasons), "fixed")

    def reasons(self, leaf: Leaf) -> tuple[Reason, ...]:
        """Every reason why an axis is fixed; empty for a free one."""
        return tuple(self.fact(leaf).reasons.values())

    def symmetry(self, leaf: Leaf) -> SymmetryClass:
        """The largest class that all ops seen so far allow."""
        return self.fact(leaf).symmetry

    # ---------------------------------------------------------------- refining

    def fix(self, dim: Dim, why: str) -> None:
        """Fix every axis of a dim, remembering why and where."""
        for leaf in self.leaves(dim):
            self._fix_leaf(leaf, why)

    def meet(self, dim: Dim, symmetry: SymmetryClass) -> None:
        """Let the axes of a dim admit at most ``symmetry``."""
        for leaf in self.leaves(dim):
            self.fact(leaf).symmetry &= symmetry

    def agree(self, a: Dim, b: Dim) -> None:
        """Two equal dims are one: an axis that is dual in one of them only must be moved by rotations, if not less."""
        for f, g in zip(walk_leaves(a), walk_leaves(b), strict=True):
            if f.dual != g.dual:
                self.meet((f,), SymmetryClass.ORTHOGONAL)

    def drop_context(self, leaf: Leaf, gone: frozenset[Leaf]) -> None:
        """Let the map of an axis no longer differ along ``gone``."""
        context = self.context(leaf)
        if context & gone:
            self.fact(leaf).context = context - gone

    def _fix_leaf(self, leaf: Leaf, why: str) -> None:
        fact = self.fact(leaf)
        if why not in fact.reasons:
            site = self.site
            fact.reasons[why] = Reason(why, site.op, site.node, site.module, site.source)
        fact.context = frozenset()

    def _bind_to(self, leaf: Leaf, term: Dim) -> None:
        """From now on the axis stands for an expression of others."""
        self.fact(leaf).term = term
        self._version += 1

    def _union(self, a: Leaf, b: Leaf) -> None:
        a, b = self.root(a), self.root(b)
        if a == b:
            self.agree((a,), (b,))
            return
        context = (self.context(a) - {b}) & (self.context(b) - {a})
        kept, gone = self._facts[a.id], self._facts[b.id]
        gone.parent = Leaf(a.id, a.size, a.dual ^ b.dual)
        self._version += 1
        for why, reason in gone.reasons.items():
            kept.reasons.setdefault(why, reason)
        kept.symmetry &= gone.symmetry
        kept.keyed |= gone.keyed
        kept.context = frozenset() if kept.reasons else context


def _by_id(leaf: Leaf) -> int:
    return leaf.id
