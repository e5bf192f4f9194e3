"""How the demo's networks are trained and measured: one recipe for each kind, the same seed giving the same network.

Training is single-threaded so that its result does not depend on how many networks are trained side by side;
:mod:`graphfuse.demo.training` runs it in worker processes and keeps the results.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from graphfuse.demo import data, models

Progress = Callable[[int, int], None]
"""Called with (steps done, steps in all)."""


@dataclass(frozen=True)
class Recipe:
    """How a network is trained: AdamW, one-cycle learning rate, augmented batches."""

    epochs: int
    rate: float
    batch: int = 64
    decay: float = 0.05

    @property
    def steps(self) -> int:
        """Optimiser steps in all."""
        return self.epochs * (data.TRAIN // self.batch)


@dataclass(frozen=True)
class Kind:
    """A kind of network: how it is built and trained, and how long training takes, relative to others."""

    build: Callable[[], nn.Module]
    recipe: Recipe
    cost: float


KINDS: dict[str, Kind] = {
    "mlp": Kind(models.mlp, Recipe(epochs=15, rate=2e-3), cost=1),
    "resnet": Kind(models.resnet, Recipe(epochs=6, rate=1e-2), cost=5),
    "vit": Kind(models.vit, Recipe(epochs=20, rate=3e-3), cost=14),
    "vit_narrow": Kind(models.vit_narrow, Recipe(epochs=24, rate=4e-3), cost=9),
}


@contextmanager
def single_thread() -> Iterator[None]:
    """One torch thread inside, whatever it was outside."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def build(kind: str, seed: int) -> nn.Module:
    """An untrained network; its initial weights depend on nothing but the seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return KINDS[kind].build()


def train(kind: str, seed: int, progress: Progress | None = None) -> nn.Module:
    """A network trained from the seed, which decides its initial weights, the order of its data and their augmentation.

    Parameters
    ----------
    kind : str
        One of :data:`KINDS`.
    seed : int
    progress : callable, optional
        Called now and then with the steps done and the steps in all.

    Returns
    -------
    nn.Module
        In eval mode.
    """
    recipe, model = KINDS[kind].recipe, build(kind, seed)
    with single_thread():
        optimise(model, training_batches(recipe.steps, recipe.batch, seed), recipe, recipe.steps, progress)
    return model.eval()


def finetune(model: nn.Module, steps: int, rate: float, seed: int) -> nn.Module:
    """Train a model further, in place, on labelled batches that depend on the seed alone.

    Parameters
    ----------
    model : nn.Module
        Changed in place.
    steps : int
        Batches of 64 images.
    rate : float
        Highest learning rate of the one-cycle schedule.
    seed : int
        Decides which batches, so that every model tuned with the same seed sees the same ones.

    Returns
    -------
    nn.Module
        The same model, in eval mode.
    """
    recipe = Recipe(epochs=1, rate=rate)
    optimise(model, training_batches(steps, recipe.batch, seed), recipe, steps)
    return model.eval()


def accuracy(model: nn.Module, split: data.Split) -> float:
    """Share of images, in percent, whose class the model names."""
    return agreement(logits(model, split.images), split.labels)


def agreement(scores: Tensor, labels: Tensor) -> float:
    """Share of rows, in percent, whose highest score, shape (n, classes), is at the label, shape (n,)."""
    return 100 * (scores.argmax(dim=1) == labels).float().mean().item()


@torch.no_grad()
def logits(model: nn.Module, images: Tensor) -> Tensor:
    """The model's outputs in eval mode, shape (n, classes), computed in batches."""
    training = model.training
    model.eval()
    scores = torch.cat([model(batch) for batch in data.batches(images, 250)])
    model.train(training)
    return scores


def optimise(
    model: nn.Module,
    batches: Iterable[tuple[Tensor, Tensor]],
    recipe: Recipe,
    steps: int,
    progress: Progress | None = None,
) -> None:
    """Train a model in place on batches of (images, labels), with AdamW and a one-cycle learning rate."""
    optimiser = torch.optim.AdamW(model.parameters(), recipe.rate, weight_decay=recipe.decay, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, recipe.rate, total_steps=steps, pct_start=0.2)
    told = time.monotonic()
    model.train()
    for done, (images, labels) in enumerate(batches, start=1):
        loss = F.cross_entropy(model(images), labels)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
        if progress is not None and (done == steps or time.monotonic() - told > 0.25):
            told = time.monotonic()
            progress(done, steps)


def training_batches(steps: int, size: int, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    """``steps`` augmented batches of the training images, epoch after epoch, in an order that the seed decides."""
    train, generator = data.load().train, torch.Generator().manual_seed(seed)
    order = torch.empty(0, dtype=torch.long)
    for _ in range(steps):
        if len(order) < size:
            order = torch.randperm(len(train), generator=generator)
        chosen, order = order[:size], order[size:]
        yield data.augment(train.images[chosen], generator), train.labels[chosen]
