"""What two models are compared by, as the config says: the one way to it, for every driver, scheme and other width."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

from graphfuse.config import FuseConfig
from graphfuse.costs.activations import ActivationEvidence, Progress
from graphfuse.costs.blend import BlendEvidence
from graphfuse.costs.evidence import Evidence, Problem
from graphfuse.costs.filters import Selection, selection
from graphfuse.costs.sites import sites
from graphfuse.costs.weights import WeightEvidence, left_out
from graphfuse.lockstep import Batch, Lockstep
from graphfuse.scratch import Scratch
from graphfuse.symmetry import SymmetryGraph, TensorLabel


@dataclass(frozen=True, eq=False)
class Comparison:
    """Where activations are looked at (axis number -> nodes), on which data, and what of it counts."""

    config: FuseConfig
    method: str
    data: Sequence[Batch] = ()
    shown: Mapping[int, Sequence[str]] = field(default_factory=dict)
    selection: Selection | None = None
    progress: Progress | None = None

    @classmethod
    def of(
        cls,
        config: FuseConfig,
        method: str,
        lockstep: Lockstep | None,
        data: Sequence[Batch],
        shown: Mapping[int, Sequence[str]] | None = None,
        progress: Progress | None = None,
    ) -> Comparison:
        """The config made ready for models that run side by side (None: only weights are compared).

        ``shown`` says at which nodes axes are looked at, by default as ``cost.site`` says.
        """
        if method == "weights" or lockstep is None:
            return cls(config, "weights")
        shown = sites(lockstep.correspondence.graph, config.cost.site) if shown is None else shown
        counted = selection(config.filter, lockstep, data, {name for names in shown.values() for name in names})
        return cls(config, method, data, shown, counted, progress)

    def evidence(
        self, problem: Problem, weights: WeightEvidence, lockstep: Lockstep | None, scratch: Scratch
    ) -> tuple[Evidence, Evidence | None]:
        """Where likeness comes from, and the masses of units (None: all have the same).

        Tables that wait lie in ``scratch``.
        """
        cost = self.config.cost
        if self.method == "weights" or lockstep is None:
            return weights, weights if cost.importance == "weights" else None
        blend = self.method == "blend"
        activations = ActivationEvidence(
            problem, lockstep, self.data, weights, self.progress, cost, self.selection, self.shown,
            keep=blend or cost.importance == "activations", scratch=scratch,
        )  # fmt: skip
        evidence = BlendEvidence(activations, weights, self.config.blend) if blend else activations
        return evidence, {"uniform": None, "activations": activations, "weights": weights}[cost.importance]


def compared(
    graph: SymmetryGraph, labels: Mapping[str, TensorLabel], config: FuseConfig, absent: Collection[str] = ()
) -> list[TensorLabel]:
    """The tensors that are compared: parameters that a model has, but for biases and gains that are not to count."""
    parameters = {slot.name for slot in graph.captured.inputs if slot.kind == "parameter"}
    wanted = parameters - set(absent) - left_out(graph, config.cost)
    return [label for name, label in labels.items() if name in wanted]
