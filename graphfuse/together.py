"""More than one model onto the target at once: what the schemes of :mod:`graphfuse.transport.schemes` work on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from graphfuse.config import FuseConfig
from graphfuse.correspond import Correspondence
from graphfuse.costs.evidence import Problem
from graphfuse.costs.reference import MeanLockstep, mean_weights
from graphfuse.costs.sources import Comparison
from graphfuse.costs.weights import WeightEvidence
from graphfuse.errors import ConfigError
from graphfuse.lockstep import Lockstep
from graphfuse.maps import Maps
from graphfuse.relative import relative
from graphfuse.scratch import Scratch
from graphfuse.symmetry import TensorLabel
from graphfuse.transport.coordinate import Solution, coordinate, room_for
from graphfuse.transport.schemes import Joint, jointly


@dataclass(frozen=True, eq=False)
class Together:
    """Several models, the problem of matching each with the target, and what they are compared by."""

    problems: Sequence[Problem]
    relation: Correspondence
    states: Sequence[Mapping[str, Tensor]]
    lockstep: Lockstep
    labels: Sequence[TensorLabel]
    comparison: Comparison

    @property
    def config(self) -> FuseConfig:
        """The settings."""
        return self.comparison.config

    def solve(self, start: Sequence[Maps]) -> Joint:
        """Match all models with each other, given the maps of each onto the target.

        Raises
        ------
        ConfigError
            The scheme is cycle and the models' widths differ.
        """
        if self.config.scheme == "cycle":
            self._check_sizes()
        shares, sizes = self.config.shares(len(self.states)), self.relation.sizes
        joint = jointly(start, shares, self.realign, self.config.rounds, self.config.tolerance)
        maps = [found.maps for found in joint.solutions]
        if not all(found.hard for each in maps for found in each.values()):
            return joint
        target = self.relation.target
        moving = self.problems[target].moving
        turned = [relative(maps[target], each, moving, sizes[target]) for each in maps]
        turned[target] = {}
        return replace(joint, solutions=tuple(replace(s, maps=m) for s, m in zip(joint.solutions, turned, strict=True)))

    def realign(self, k: int, maps: Sequence[Maps], shares: Sequence[float]) -> Solution:
        """Match one model with the mean of all, starting from its own maps."""
        relation, problem, method = self.relation, self.problems[k], self.comparison.method
        mean = mean_weights(self.labels, self.states, maps, shares, relation.sizes, relation.target)
        weights = WeightEvidence(problem, self.labels, mean, self.states[k], standard=True)
        lockstep = MeanLockstep(
            self.lockstep.models, relation, self.states, self.lockstep.retrace, self.lockstep.notes,
            known=self.lockstep.known, maps=maps, shares=shares, other=k,
        )  # fmt: skip
        with Scratch(room_for(problem)) as scratch:
            evidence, importance = self.comparison.evidence(problem, weights, lockstep, scratch)
            found = coordinate(problem, evidence, self.config, self.config.metric_for(method), importance, maps[k])
        if method != "both":
            return found
        return coordinate(problem, weights, self.config, self.config.metric_for("weights"), importance, found.maps)

    def _check_sizes(self) -> None:
        for k, problem in enumerate(self.problems):
            for axis in problem.axes:
                if problem.sizes_a[axis.id] != problem.sizes_b[axis.id]:
                    raise ConfigError(
                        f"config: scheme: cycle needs models of one width, but {axis.name} has size "
                        f"{problem.sizes_a[axis.id]} in model {self.relation.target} and {problem.sizes_b[axis.id]} "
                        f"in model {k}.\n  what to do: use scheme barycenter"
                    )
