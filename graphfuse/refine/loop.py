"""Gradient descent with a budget that keeps the best point it has seen on held-out inputs."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

CHECKS = 10
"""How often the held-out loss is looked at, at most, besides the start."""
WARM = 0.1
"""Share of the steps in which the step size rises."""
BACK = 1 / 3
"""What the step size is multiplied by when steps have been taken back."""

Loss = Callable[[int], Tensor]
Judge = Callable[[], float]
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Descent:
    """What became of a descent: the loss at the start and at the step that was kept, steps taken, seconds."""

    before: float
    after: float
    kept: int
    steps: int
    seconds: float


@dataclass(frozen=True)
class Budget:
    """How long a descent may take."""

    steps: int
    seconds: float | None = None


def descend(
    groups: Sequence[tuple[Sequence[Tensor], float]],
    loss: Loss,
    judge: Judge | None,
    budget: Budget,
    progress: Progress | None = None,
    stage: str = "refine",
    limit: float = math.inf,
) -> Descent:
    """Minimise a loss by Adam with a warm start and cosine decay; the parameters end at the best point seen.

    Parameters
    ----------
    groups : sequence of (tensors, rate)
        Leaf tensors, changed in place, and their peak step size.
    loss : callable
        Step number -> the loss of some inputs, shape ().
    judge : callable or None
        The loss on held-out inputs, looked at before the first step and at most ten times after it. Without it the last
        step is kept, and the losses told are those of the first and of the last step.
    budget : Budget
    progress : callable, optional
        Called with (stage, done, total).
    limit : float
        Where the held-out loss is more than so many times that of the start, or no number, the descent goes back to the
        best point, and on from there in smaller steps.

    Notes
    -----
    Source: Kingma and Ba, Adam (arXiv 1412.6980); Loshchilov and Hutter, SGDR (arXiv 1608.03983), the schedule.
    """
    began = time.perf_counter()
    tensors = [tensor for some, _ in groups for tensor in some]
    optimiser = torch.optim.Adam([{"params": list(some), "lr": rate} for some, rate in groups], betas=(0.9, 0.99))
    best, peak, since = _Best(tensors, judge), 1.0, 0
    every, done, losses = max(1, budget.steps // CHECKS), 0, [0.0]
    for step in range(budget.steps):
        share = peak * peak_share(step, budget, time.perf_counter() - began, since)
        for group, (_, rate) in zip(optimiser.param_groups, groups, strict=True):
            group["lr"] = share * rate
        optimiser.zero_grad(set_to_none=True)
        with torch.enable_grad():
            value = loss(step)
            value.backward()
        torch.nn.utils.clip_grad_norm_(tensors, 1.0)
        optimiser.step()
        losses, done = [*losses[:1], float(value.detach())] if step else [float(value.detach())] * 2, step + 1
        late = budget.seconds is not None and time.perf_counter() - began > budget.seconds
        if done % every == 0 or done == budget.steps or late:
            now = best.look(done)
            if not math.isfinite(now) or now > limit * best.start:
                best.restore()
                optimiser.state.clear()
                peak, since = peak * BACK, done
        if progress is not None:
            progress(stage, done, budget.steps)
        if late:
            break
    best.restore()
    before, after = (best.start, best.value) if judge is not None else (losses[0], losses[-1])
    return Descent(before, after, best.step if judge is not None else done, done, time.perf_counter() - began)


class _Best:
    """The point of the least held-out loss so far."""

    def __init__(self, tensors: Sequence[Tensor], judge: Judge | None) -> None:
        self.tensors, self.judge, self.step = tensors, judge, 0
        self.start = self.value = judge() if judge is not None else math.inf
        self.chosen: list[Tensor] | None = self._copy() if judge is not None else None

    def look(self, step: int) -> float:
        """The held-out loss now; zero without a judge."""
        value = self.judge() if self.judge is not None else 0.0
        if self.judge is not None and value < self.value:
            self.value, self.step, self.chosen = value, step, self._copy()
        return value

    @torch.no_grad()
    def restore(self) -> None:
        for tensor, value in zip(self.tensors, self.chosen or (), strict=self.chosen is not None):
            tensor.copy_(value)

    def _copy(self) -> list[Tensor]:
        return [tensor.detach().clone() for tensor in self.tensors]


def peak_share(step: int, budget: Budget, seconds: float, since: int = 0) -> float:
    """The step size as a share of its peak: it rises from step ``since`` on, and falls until the end.

    Steps that will not fit into the time, as it went so far, do not count.
    """
    steps = budget.steps
    if budget.seconds is not None and step:
        steps = min(steps, max(step + 1, round(step * budget.seconds / max(seconds, 1e-9))))
    warm = max(1, round(WARM * steps))
    fall = 0.5 * (1 + math.cos(math.pi * max(0, step - warm) / max(1, steps - warm)))
    return min(1.0, (step - since + 1) / warm) * fall
