"""Gradient descent on weights: a fused model's, towards its parents' mean outputs; or any model's, towards a loss."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from graphfuse.capture import duplicate
from graphfuse.config import RefineConfig
from graphfuse.errors import DataError
from graphfuse.lockstep import Batch
from graphfuse.refine.loop import Budget, Descent, Progress, descend
from graphfuse.teacher import Teacher, held_out, run_model

LIMIT = 3.0
"""How many times that of the start the held-out loss may be before steps are made smaller: weights that were fitted
layer by layer tolerate less than others."""
FLOOR = 1e-2
"""Least scale of a tensor, to which its step size is relative."""


def refine_weights(
    model: nn.Module,
    parents: Sequence[nn.Module],
    shares: Sequence[float],
    data: Sequence[Batch],
    held: Sequence[Batch],
    config: RefineConfig,
    seed: int = 0,
    progress: Progress | None = None,
) -> Descent:
    """Optimise a fused model in place so that its outputs come near the mean of its parents' outputs.

    Parameters
    ----------
    model : nn.Module
        In eval mode: statistics and dropout stay still.
    parents, shares :
        Whose outputs are averaged, with one weight each.
    data, held : sequence of Batch
        Unlabelled inputs to learn from, and those that choose the step that is kept.
    config : RefineConfig
    seed : int
        Of the order of the inputs.

    Notes
    -----
    Source: Hinton, Vinyals and Dean, Distilling the knowledge in a neural network (arXiv 1503.02531), section 2.1, with
    the parents as the ensemble and the fused model as the warm start.
    """
    teacher, judge = (Teacher.of(parents, shares, some, config.loss) for some in (data, held))
    generator = torch.Generator().manual_seed(seed)

    def loss(step: int) -> Tensor:
        i, rows, batch = teacher.draw(config.batch, generator)
        return teacher.measure(run_model(model, None, batch), i, rows)

    def judged() -> float:
        return held_out(judge, lambda batch: run_model(model, None, batch))

    with _learning(model) as tensors:
        groups = [([tensor], config.rate * _scale(tensor)) for tensor in tensors]
        return descend(groups, loss, judged, Budget(config.steps, config.seconds), progress, "refine weights", LIMIT)


def finetune(
    model: nn.Module,
    data: Iterable[Any],
    loss: Callable[[nn.Module, Any], Tensor],
    *,
    steps: int = 200,
    seconds: float | None = None,
    rate: float = 1e-3,
    progress: Progress | None = None,
) -> tuple[nn.Module, Descent]:
    """Train a copy of a model for a short while: the last step of the paper's recipe, with a budget.

    Parameters
    ----------
    model : nn.Module
        Left as it is.
    data : iterable
        Labelled batches, of any kind that ``loss`` takes; gone through again and again.
    loss : callable
        ``loss(model, batch)`` -> tensor of shape ().
    steps : int
        Steps of Adam, with a warm start and cosine decay.
    seconds : float, optional
        Stop after this time.
    rate : float
        Peak step size, relative to each tensor's root mean square.

    Returns
    -------
    (nn.Module, Descent)
        The trained copy, in eval mode; the losses are those of the first and of the last step.

    Raises
    ------
    DataError
        The data yields nothing.

    Notes
    -----
    Source: Imfeld et al., Transformer Fusion with Optimal Transport (arXiv 2310.05719), section 5. Compare the result
    with a parent that got the same training.
    """
    batches = list(data)
    if not batches:
        raise DataError("there is nothing to train on: the data yields no batch")
    copied = duplicate(model)
    with _learning(copied, training=True) as tensors:
        groups = [([tensor], rate * _scale(tensor)) for tensor in tensors]
        found = descend(groups, lambda step: loss(copied, batches[step % len(batches)]), None,
                        Budget(steps, seconds), progress, "finetune")  # fmt: skip
    return copied.eval(), found


class _learning:
    """Parameters of a model, each tied one once, that take gradients inside; as they were afterwards."""

    def __init__(self, model: nn.Module, training: bool = False) -> None:
        self.model, self.training = model, training

    def __enter__(self) -> list[nn.Parameter]:
        self.before = [(p, p.requires_grad) for p in self.model.parameters()]
        self.model.train(self.training)
        for p, _ in self.before:
            p.requires_grad_(p.is_floating_point())
        return [p for p, _ in self.before if p.is_floating_point() and p.numel()]

    def __exit__(self, *error: object) -> None:
        for p, given in self.before:
            p.grad = None
            p.requires_grad_(given)
        self.model.eval()


def _scale(tensor: Tensor) -> float:
    return max(float(tensor.detach().double().square().mean().sqrt()), FLOOR)
