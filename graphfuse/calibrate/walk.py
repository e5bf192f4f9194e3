"""The fused model and its parents side by side: every batch of every model stands at the same node."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, fx

from graphfuse.aligned import Aligned
from graphfuse.axes import Layout
from graphfuse.capture import Captured
from graphfuse.carry import movable, transform
from graphfuse.correspond import Correspondence
from graphfuse.lockstep import Batch, Lockstep


class Run:
    """One run of a captured graph that stops where it is told to. It reads the state as it is when a node runs."""

    def __init__(self, captured: Captured, state: Mapping[str, Tensor], batch: Batch) -> None:
        self._steps = captured.steps(captured.bind(state, batch.args, batch.kwargs))
        self._last: tuple[str, Any] = ("", None)
        self.nodes = {node.name: node for node in captured.graph.nodes}
        self.names = {slot.node: slot.name for slot in captured.inputs}

    def to(self, name: str) -> Any:
        """Run on to a node, which must not come before the last one, and return its value."""
        if name != self._last[0]:
            self._last = name, next(value for node, value in self._steps if node.name == name)
        return self._last[1]

    def of(self, name: str, operand: str, x: Tensor, state: Mapping[str, Tensor]) -> Tensor:
        """What a node gives that reads this in place of one operand, and else the state as it is now."""

        def given(node: fx.Node) -> Tensor:
            return x if node.name == operand else state[self.names[node.name]]

        node = self.nodes[name]
        args: Any = fx.map_arg(node.args, given)
        kwargs: Any = fx.map_arg(node.kwargs, given)
        assert callable(node.target)
        value: Any = node.target(*args, **kwargs)
        return value

    def again(self, name: str, operand: str, x: Tensor, state: Mapping[str, Tensor]) -> Tensor:
        """Run the node where the run stands once more; it reads one operand, and the state as it is now."""
        value = self.of(name, operand, x, state)
        self._steps.send(value)
        self._last = name, value
        return value


@dataclass(frozen=True, eq=False)
class Lane:
    """One batch: the run of the fused model, those of its parents, and how their nodes are called and labelled."""

    batch: Batch
    fitting: Correspondence
    names: Correspondence
    target: int
    fused: Run
    parents: tuple[Run | None, ...]
    labels: Mapping[str, tuple[Layout | None, ...]]

    @property
    def sizes(self) -> Mapping[int, int]:
        """Sizes of the axes of the target's nodes on this batch."""
        return self.names.sizes[1 + self.target]

    def here(self, node: str) -> str | None:
        """What a node of the target's example graph is called in the target's graph for this batch."""
        return self.names.nodes[1 + self.target].get(node)

    def comparable(self, node: str, models: Sequence[Aligned], parents: Sequence[int]) -> bool:
        """Whether these parents have a node that corresponds to this one, with a value that their maps can move."""
        dims = self.labels[node][0]
        if dims is None:
            return False
        return all(node in self.names.nodes[1 + k] and movable(dims, models[k].maps) for k in parents)

    def at(self, node: str) -> Any:
        """The fused model's value at a node."""
        return self.fused.to(self._name(node))

    def again(self, node: str, operand: str, x: Tensor, state: Mapping[str, Tensor]) -> Tensor:
        """Run a contraction once more, with the weights that it has now."""
        return self.fused.again(self._name(node), self._name(operand), x, state)

    def of(self, node: str, operand: str, x: Tensor, state: Mapping[str, Tensor]) -> Tensor:
        """What a contraction gives on another operand; the run stays where it is."""
        return self.fused.of(self._name(node), self._name(operand), x, state)

    def outputs(self, models: Sequence[Aligned], parents: Sequence[int]) -> list[str]:
        """Nodes of the target's example graph that give its outputs, in order, where these parents have them too."""
        graph = self.names.graph.captured
        wanted = [node.name for node in graph.graph.nodes if node.name in graph.kept and node.op == "call_function"]
        return [name for name in wanted if self.here(name) is not None and self.comparable(name, models, parents)]

    def aligned(self, node: str, models: Sequence[Aligned], parents: Sequence[int]) -> list[Tensor]:
        """The value at a node of each of these parents, in the target's coordinates."""
        dims = self.labels[node][0]
        assert dims is not None
        consumed, found = (False,) * len(dims), []
        sizes = [{**model.sizes, **here} for model, here in zip(models, self.names.sizes[1:], strict=True)]
        for k in parents:
            run = self.parents[k]
            assert run is not None
            value = run.to(self.names.nodes[1 + k][node])
            found.append(transform(value, dims, consumed, models[k].maps, sizes[k], sizes[self.target]))
        return found

    def _name(self, node: str) -> str:
        name = self.here(node)
        assert name is not None
        return name


def lanes_of(
    lockstep: Lockstep,
    states: Sequence[Mapping[str, Tensor]],
    batches: Sequence[Batch],
    shares: Sequence[float],
    fused: Mapping[str, Tensor],
    labels: Mapping[str, tuple[Layout | None, ...]] | None = None,
) -> list[Lane]:
    """One lane for each batch that the models can be traced on; parents without a share are not run.

    ``labels`` are those of the target's nodes that the maps are for; by default its graph's own.
    """
    lanes, labels = [], labels or lockstep.layouts
    target = lockstep.correspondence.target
    for batch in batches:
        found = lockstep.graphs(batch)
        if found is None:
            continue
        fitting, names = found
        parents = tuple(
            Run(graph.captured, state, batch) if share else None
            for graph, state, share in zip(fitting.graphs, states, shares, strict=True)
        )
        run = Run(fitting.graph.captured, fused, batch)
        lanes.append(Lane(batch, fitting, names, target, run, parents, labels))
    return lanes
