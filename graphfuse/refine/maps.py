"""Gradient descent on maps: couplings by differentiable Sinkhorn, straight through permutations; rotations by their
exponential. Each step carries the parents' weights, averages them, and runs the average.

Sources: Mena et al., Learning latent permutations with Gumbel-Sinkhorn networks (arXiv 1802.08665); Ainsworth et al.,
Git Re-Basin (arXiv 2209.04836), section 3.3, the straight-through estimator; Pena et al., Re-basin via implicit
Sinkhorn differentiation (arXiv 2212.12042); Lezcano-Casado, Trivializations for gradient-based optimization on
manifolds (arXiv 1909.09501).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from graphfuse.aligned import Aligned, Alignment
from graphfuse.average import average
from graphfuse.axes import SymmetryClass
from graphfuse.config import RefineConfig
from graphfuse.lockstep import parted
from graphfuse.maps import AxisMap
from graphfuse.prepared import Prepared
from graphfuse.refine.loop import Budget, Descent, Progress, descend
from graphfuse.teacher import Teacher, held_out, run_model
from graphfuse.transport.solvers import assign, differentiable


def refine_maps(
    prepared: Prepared,
    alignment: Alignment,
    shares: Sequence[float],
    config: RefineConfig,
    progress: Progress | None = None,
) -> tuple[Alignment, Descent]:
    """Optimise the maps of an alignment so that the average's outputs come near the mean of the parents' outputs.

    Parameters
    ----------
    prepared, alignment :
        The models with their data, and the maps to start from.
    shares : sequence of float
        Each model's weight in the average.
    config : RefineConfig
    progress : callable, optional
        Called with (stage, done, total).

    Returns
    -------
    (Alignment, Descent)
        With the maps of the least held-out loss: permutations stay permutations with ``straight_through``.
    """
    seen, held = parted(prepared.data, config.holdout) if config.holdout else (prepared.data, prepared.data)
    teacher, judge = (Teacher.of(prepared.models, shares, some, config.loss) for some in (seen, held))
    model = prepared.models[alignment.target]
    symmetry = {axis.id: axis.symmetry for axis in alignment.axes}
    latents = [
        {id: _latent(found, symmetry[id], config) for id, found in part.maps.items()} for part in alignment.models
    ]
    tensors = [latent.value for part in latents for latent in part.values()]
    if not tensors:
        return alignment, Descent(0.0, 0.0, 0, 0, 0.0)
    generator = torch.Generator().manual_seed(prepared.config.seed)
    buffers = {name for name, _ in model.named_buffers()}

    def state() -> Mapping[str, Tensor]:
        moved = average(prepared, replace(alignment, models=_moved(alignment.models, latents, final=False)), shares)
        # batch norms have no derivative by their statistics
        return {name: tensor.detach() if name in buffers else tensor for name, tensor in moved.items()}

    def loss(step: int) -> Tensor:
        i, rows, batch = teacher.draw(config.batch, generator)
        return teacher.measure(run_model(model, state(), batch), i, rows)

    def judged() -> float:
        with torch.no_grad():
            now = state()
            return held_out(judge, lambda batch: run_model(model, now, batch))

    budget = Budget(config.steps, config.seconds)
    descent = descend([(tensors, config.maps_rate)], loss, judged, budget, progress, "refine maps")
    if descent.kept == 0:
        return alignment, descent
    with torch.no_grad():
        return replace(alignment, models=_moved(alignment.models, latents, final=True)), descent


def _moved(models: Sequence[Aligned], latents: Sequence[Mapping[int, _Latent]], final: bool) -> tuple[Aligned, ...]:
    return tuple(
        replace(part, maps={**part.maps, **{id: latent.map(final) for id, latent in own.items()}})
        for part, own in zip(models, latents, strict=True)
    )


@dataclass(frozen=True, eq=False)
class _Latent:
    """The parameters of one map: scores of a coupling, or the generator of a rotation to follow the one there was."""

    start: AxisMap
    value: Tensor
    temperature: float
    hard: bool
    keeps_sum: bool

    def map(self, final: bool) -> AxisMap:
        """The map as it is now; a permutation in index form if it is the final one."""
        start = self.start
        if start.matrix is not None:
            turn = torch.linalg.matrix_exp(self._generator()).unsqueeze(-3)
            return replace(start, matrix=turn @ start.matrix)
        plan = differentiable(self.value, self.temperature)
        if not self.hard:
            return replace(start, plan=plan, index=None)
        index = assign(-self.value.detach())
        if final:
            return replace(start, plan=None, index=index)
        one = torch.zeros_like(plan).scatter_(-1, index.unsqueeze(-1), 1 / plan.shape[-1])
        return replace(start, plan=plan + (one - plan).detach(), index=None)

    def _generator(self) -> Tensor:
        free = self.value - self.value.mT
        if self.keeps_sum:  # rows and columns without their means: the all-ones vector stays
            free = free - free.mean(-1, keepdim=True)
            free = free - free.mean(-2, keepdim=True)
        return free


def _latent(found: AxisMap, symmetry: SymmetryClass, config: RefineConfig) -> _Latent:
    if found.matrix is not None:
        n = found.matrix.shape[-2]
        value = found.matrix.new_zeros(*found.lead, n, n)
        return _Latent(found, value.requires_grad_(), 1.0, False, symmetry == SymmetryClass.CENTRED)
    if found.hard:
        value = found.coupling().clone() * found.coupling().shape[-1]
    else:
        value = config.temperature * (found.coupling().clone().clamp(min=1e-12) * found.coupling().shape[-2]).log()
        value = value.clamp(min=-1.0)
    square = value.shape[-1] == value.shape[-2]
    return _Latent(found, value.requires_grad_(), config.temperature, config.straight_through and square, False)
