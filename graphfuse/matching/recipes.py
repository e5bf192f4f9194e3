"""What a pairing means for tensors: every block of the target is one of the other model, its dimensions reordered."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from graphfuse.cells import shape_of
from graphfuse.errors import CorrespondenceError
from graphfuse.matching.blocks import Block, Place, views_of
from graphfuse.matching.refine import Pairing
from graphfuse.matching.skeleton import Uses

HAND = "give names={target's parameter: other model's parameter} to say by hand what corresponds"


@dataclass(frozen=True, slots=True)
class Copy:
    """One block of the target is one of the other model's; ``order[p]`` is the other's dimension for the target's p."""

    target: Block
    source: Block
    order: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Renaming:
    """The state of one model in the names and layouts of another.

    ``sizes`` has the other model's size of each of the target's axes; ``unused`` the other's parameters that nothing
    is made of, ``kept`` the target's that nothing was found for; ``shifted`` tables that the other model reads so many
    rows further on.
    """

    target: Uses
    source: Uses
    copies: Mapping[str, tuple[Copy, ...]]
    sizes: Mapping[int, int]
    kept: tuple[str, ...]
    unused: tuple[str, ...]
    shifted: Mapping[str, int] = field(default_factory=dict)

    def pairs(self) -> dict[str, tuple[str, ...]]:
        """Target's tensor -> the other model's tensors that it is made of."""
        return {
            name: tuple(dict.fromkeys(copy.source.tensor for copy in copies)) for name, copies in self.copies.items()
        }

    @torch.no_grad()
    def translate(self, state: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """A state of the other model as one of the target; what nothing was found for is the target's own.

        Parameters
        ----------
        state :
            The other model's canonical state.
        own :
            The target's, for dtypes, and for what has no counterpart.
        """
        source_labels, labels = self.source.graph.tensors, self.target.graph.tensors
        views: dict[str, list[Tensor]] = {}
        result = {name: tensor.clone() for name, tensor in own.items()}
        for name, copies in self.copies.items():
            made = own[name].clone() if name in self.shifted else own[name].new_empty(
                shape_of(labels[name].dims, self.sizes)
            )  # fmt: skip
            into = views_of(made, labels[name], self.sizes)
            for copy in copies:
                source = copy.source.tensor
                if source not in views:
                    views[source] = views_of(state[source], source_labels[source])
                pair = into[copy.target.index], views[source][copy.source.index].permute(copy.order)
                if name in self.shifted:
                    pair = _rows_in_common(*pair, self.shifted[name])
                pair[0].copy_(pair[1])
            result[name] = made
        return result


def _rows_in_common(into: Tensor, source: Tensor, further: int) -> tuple[Tensor, Tensor]:
    """The rows of a table that both models have, when the other's are so many rows further on."""
    first, last = max(0, -further), min(len(into), len(source) - further)
    return into[first:last], source[first + further : last + further]


@dataclass
class _Axes:
    """A growing bijection between the axes of two models."""

    forward: dict[int, Place] = field(default_factory=dict)
    backward: dict[int, int] = field(default_factory=dict)

    def join(self, mine: Place, other: Place) -> bool:
        known = self.forward.setdefault(mine.axis, other)
        back = self.backward.setdefault(other.axis, mine.axis)
        return known.axis == other.axis and back == mine.axis


def renaming_of(a: Uses, b: Uses, pairing: Pairing, offsets: Mapping[str, int]) -> Renaming:
    """Check a pairing of uses block by block and axis by axis, and turn it into recipes.

    ``offsets`` says of tables by how many rows the other model's are further on (0: they are read alike).

    Raises
    ------
    CorrespondenceError
        A block would have to be two, axes do not correspond, or sizes differ along an axis that is fixed.
    """
    axes = _Axes()
    sources: dict[Block, Copy] = {}
    for i, k in sorted(pairing.uses.items()):
        mine, other = a.entries[i].block, b.entries[k].block
        if mine is None or other is None:
            continue
        order = _order(mine.places, other.places, pairing)
        if order is None or not all(axes.join(p, other.places[j]) for p, j in zip(mine.places, order, strict=True)):
            raise _other_axes(a, b, i, k)
        found = sources.setdefault(mine, Copy(mine, other, order))
        if (found.source, found.order) != (other, order):
            raise CorrespondenceError(
                f"{mine.tensor!r} is used several times, where the other model has several parameters.\n"
                f"  target: {a.where(a.entries[i])}\n  other: {found.source.tensor!r} and {other.tensor!r}\n"
                "  what to do: let the model whose parameters are not tied be the target"
            )
    shifted = {name: rows for name, rows in offsets.items() if _is_shifted(a, sources, name, rows)}
    _expect_sizes(a, b, sources, shifted)
    found = _renaming(a, b, sources, axes)
    rows = {block.places[0].axis: block.places[0].size for name in shifted for block in a.blocks[name]}
    return replace(found, shifted=shifted, sizes={**found.sizes, **rows})


def _is_shifted(a: Uses, sources: Mapping[Block, Copy], name: str, rows: int) -> bool:
    """Whether a table of one block has other rows in the other model, along an axis that is its alone."""
    blocks = a.blocks[name]
    if len(blocks) != 1 or blocks[0] not in sources or not blocks[0].places:
        return False
    row, found = blocks[0].places[0], sources[blocks[0]]
    others = {place.axis for other, parts in a.blocks.items() if other != name for b in parts for place in b.places}
    alike = rows == 0 and row.size == found.source.places[found.order[0]].size
    return row.axis not in others and not alike


def _renaming(a: Uses, b: Uses, sources: Mapping[Block, Copy], axes: _Axes) -> Renaming:
    copies: dict[str, tuple[Copy, ...]] = {}
    for name, blocks in a.blocks.items():
        if all(block in sources for block in blocks):
            copies[name] = tuple(sources[block] for block in blocks)
    taken = {copy.source.tensor for found in copies.values() for copy in found}
    return Renaming(
        target=a,
        source=b,
        copies=copies,
        sizes={axis: place.size for axis, place in axes.forward.items()},
        kept=tuple(name for name in a.blocks if name not in copies),
        unused=tuple(name for name in b.blocks if name not in taken),
    )


def _order(mine: Sequence[Place], other: Sequence[Place], pairing: Pairing) -> tuple[int, ...] | None:
    """For each dimension of the target's block that of the other's: of equal colour, in order where several are."""
    colours_a, colours_b = pairing.axes
    waiting: dict[tuple[int, bool], list[int]] = defaultdict(list)
    for j, place in enumerate(other):
        waiting[colours_b[place.axis], place.consumed].append(j)
    order = []
    for place in mine:
        queue = waiting.get((colours_a[place.axis], place.consumed))
        if not queue:
            return None
        order.append(queue.pop(0))
    return tuple(order)


def _expect_sizes(a: Uses, b: Uses, sources: Mapping[Block, Copy], shifted: Mapping[str, int]) -> None:
    free = [{axis.id for axis in side.graph.axes} for side in (a, b)]
    for copy in sources.values():
        for p, (place, j) in enumerate(zip(copy.target.places, copy.order, strict=True)):
            other = copy.source.places[j]
            if copy.target.tensor in shifted and p == 0:
                continue
            if place.size != other.size and not (place.axis in free[0] and other.axis in free[1]):
                shapes = (a.graph.tensors[copy.target.tensor].shape, b.graph.tensors[copy.source.tensor].shape)
                raise CorrespondenceError(
                    "the models differ along an axis that cannot be matched.\n"
                    f"  target: {copy.target.tensor!r} {tuple(shapes[0])}, {place.size} long there\n"
                    f"  other: {copy.source.tensor!r} {tuple(shapes[1])}, {other.size} long there\n"
                    "  what to do: only hidden widths may differ; inputs, outputs and positions must agree"
                )


def _other_axes(a: Uses, b: Uses, i: int, k: int) -> CorrespondenceError:
    return CorrespondenceError(
        "the axes of the models do not correspond.\n"
        f"  target: {a.where(a.entries[i])}\n  other: {b.where(b.entries[k])}\n"
        f"  what to do: {HAND}; models whose layers are tied in another way cannot be fused"
    )
