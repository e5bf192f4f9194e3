"""What a model does with its parameters, as a value: the events, in order, and what each output is made of."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from graphfuse.matching.blocks import Block
from graphfuse.symmetry import SymmetryGraph


@dataclass(frozen=True, eq=False)
class Use:
    """One use of a block of a parameter, or (``block`` None) one input of the user.

    ``order`` says at which operand its result first enters a product of activations (queries before keys), ``bent`` is
    not empty where a function is applied to its result before it meets another (a gate).
    """

    kind: str
    block: Block | None
    node: str
    before: frozenset[int]
    order: list[int] = field(default_factory=list)
    bent: list[bool] = field(default_factory=list)


@dataclass(frozen=True, eq=False)
class Uses:
    """The uses of a model in the order of its graph, and those that each output is made of."""

    graph: SymmetryGraph
    blocks: Mapping[str, tuple[Block, ...]]
    entries: tuple[Use, ...]
    outputs: tuple[frozenset[int], ...]

    def where(self, use: Use) -> str:
        """A use in the words of the model: the op, its module, the parameter and its shape."""
        node = next(n for n in self.graph.captured.graph.nodes if n.name == use.node)
        if use.block is None:
            return f"the input {use.node!r} {tuple(node.meta['val'].shape)}"
        label, parts = self.graph.tensors[use.block.tensor], len(self.blocks[use.block.tensor])
        part = f" (part {use.block.index + 1} of {parts})" if parts > 1 else ""
        return f"{label.name!r}{part} {tuple(label.shape)}, {use.kind} by {self.graph.captured.site(node)}"
