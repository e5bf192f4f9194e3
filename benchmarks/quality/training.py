"""The benchmark's parents: one recipe for each kind, trained by one thread from a seed, kept in a folder.

``DATA-KIND-SEED.safetensors`` holds the weights, the ``.json`` beside it what made them and what they score.
"""

from __future__ import annotations

import functools
import json
import math
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from safetensors.torch import load_model, save_model
from torch import Tensor, nn

from graphfuse.demo.recipes import single_thread
from quality import data, models, molecules, pitches, proteins, voices
from quality.data import Data, Part


@dataclass(frozen=True)
class Recipe:
    """How a network is trained: the optimiser, a linear warm-up over a tenth of the steps, then half a cosine."""

    steps: int
    rate: float
    batch: int = 128
    decay: float = 0.05
    optimiser: Literal["adamw", "sgd"] = "adamw"


Metric = Literal["accuracy", "near", "loss", "r2"]
"""Accuracy in percent, also within two classes of the target; mean cross-entropy; percent of the variance explained."""


@dataclass(frozen=True)
class Kind:
    """A kind of network: its data, how it is built and trained, and which of two skewed shards it sees (-1: all).

    Of parents that others have ``published``, that gives the network of a folder and a number, and nothing is trained.
    """

    data: str
    build: Callable[[Data], nn.Module]
    recipe: Recipe
    shard: int = -1
    published: Callable[[Path, int], nn.Module] | None = None
    metric: Metric = "accuracy"


def _vit(width: int, depth: int, size: int = 28, channels: int = 1) -> Callable[[Data], nn.Module]:
    return lambda data: models.ViT(size, channels, data.classes, width, depth)


def _mlp(features: int, width: int) -> Callable[[Data], nn.Module]:
    return lambda data: models.MLP(features, data.classes, width)


def _published(data: str, load: Callable[[Path, int], nn.Module], metric: Metric, batch: int = 64) -> Kind:
    return Kind(data, lambda _: load(Path(), 0), Recipe(0, 0, batch), published=load, metric=metric)


MLP512 = _mlp(784, 512)
KINDS: dict[str, Kind] = {
    "vit128x4": Kind("fashion", _vit(128, 4), Recipe(1800, 2e-3, 32)),
    "llama128x4": Kind("text", lambda d: models.Llama(d.vocabulary, 128, 4), Recipe(900, 2e-3, 16), metric="loss"),
    "mlp512": Kind("fashion", MLP512, Recipe(3000, 1e-3)),
    "resnet20w2": Kind("fashion", lambda d: models.ResNet20(d.classes), Recipe(900, 0.1, 64, 5e-4, "sgd")),
    "gpt2-128x4": Kind("text", lambda d: models.GPT2(d.vocabulary, 64, 128, 4), Recipe(900, 2e-3, 16), metric="loss"),
    "vit64x4": Kind("fashion", _vit(64, 4), Recipe(1800, 3e-3, 32)),
    "mlp128": Kind("fashion", _mlp(784, 128), Recipe(1500, 1e-3)),
    "letters256": Kind("letters", _mlp(16, 256), Recipe(3000, 2e-3)),
    "shard-a512": Kind("fashion", MLP512, Recipe(1500, 1e-3), shard=0),
    "shard-b512": Kind("fashion", MLP512, Recipe(1500, 1e-3), shard=1),
    "bert128x2": Kind("glosses", lambda d: models.Bert(d.vocabulary, data.GLOSS, 41, 128, 2), Recipe(800, 1e-3, 64)),
    "vit128x6": Kind("fashion", _vit(128, 6), Recipe(1500, 2e-3, 32)),
    "cifar-vit128x4": Kind("cifar10", _vit(128, 4, 32, 3), Recipe(1200, 1e-3, 32)),
    "admet": _published("molecules", molecules.published, "r2"),
    "proteinmpnn": _published("proteins", proteins.published, "loss", batch=16),
    "crepe-tiny": _published("pitches", lambda folder, _: pitches.published(folder, "tiny"), "near"),
    "crepe-full": _published("pitches", lambda folder, _: pitches.published(folder, "full"), "near"),
    "voice": _published("voices", voices.published, "accuracy"),
}


@dataclass(frozen=True)
class Store:
    """Where data and trained networks are kept."""

    data: Path
    cache: Path

    def path(self, kind: str, seed: int) -> Path:
        """The weights of a parent."""
        return self.cache / f"{KINDS[kind].data}-{kind}-{seed}.safetensors"


def default_cache() -> Path:
    """``$XDG_CACHE_HOME/graphfuse/quality``, or ``~/.cache/graphfuse/quality``."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "graphfuse" / "quality"


LOADERS = {
    **data.LOADERS, "molecules": molecules.molecules, "proteins": proteins.proteins, "pitches": pitches.pitches,
    "voices": voices.voices,
}  # fmt: skip


@functools.cache
def load_data(name: str, folder: Path) -> Data:
    """A data set by name, read once."""
    return LOADERS[name](folder)


def build(kind: str, seed: int, data: Data) -> nn.Module:
    """An untrained network; its initial weights depend on nothing but the seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return KINDS[kind].build(data)


def loss_of(scores: Tensor, targets: Tensor) -> Tensor:
    """Mean cross-entropy of scores, shape (..., classes), at targets, shape (...)."""
    return F.cross_entropy(scores.flatten(0, -2), targets.flatten())


@torch.no_grad()
def scores_of(model: nn.Module, inputs: Tensor, size: int = 250) -> Iterator[Tensor]:
    """The outputs of a model in eval mode, batch by batch."""
    model.eval()
    for batch in inputs.split(size):
        yield model(batch)


def score(model: nn.Module, part: Part, metric: str) -> float:
    """Accuracy in percent, or mean loss, of a model on a part of the data."""
    return score_of(scores_of(model, part.inputs), part, metric)


def score_of(batches: Iterable[Tensor], part: Part, metric: str) -> float:
    """The same from outputs that come in batches."""
    if metric == "r2":
        errors = (torch.cat(list(batches)) - part.targets).square().sum(dim=0)
        spread = (part.targets - part.targets.mean(dim=0)).square().sum(dim=0)
        return 100 * (1 - errors / spread).mean().item()
    total, seen = 0.0, 0
    for scores in batches:
        targets = part.targets[seen : seen + len(scores)]
        seen += len(scores)
        near = (scores.argmax(-1) - targets).abs() <= (2 if metric == "near" else 0)
        mean = loss_of(scores, targets) if metric == "loss" else 100 * near.float().mean()
        total += mean.item() * len(scores)
    return total / seen


def optimise(model: nn.Module, part: Part, recipe: Recipe, seed: int) -> nn.Module:
    """Train a model in place; the seed decides the order of the data."""
    model.train()
    if recipe.optimiser == "sgd":
        optimiser: torch.optim.Optimizer = torch.optim.SGD(
            model.parameters(), recipe.rate, momentum=0.9, nesterov=True, weight_decay=recipe.decay
        )
    else:
        betas = (0.9, 0.99)
        optimiser = torch.optim.AdamW(model.parameters(), recipe.rate, betas, weight_decay=recipe.decay, fused=True)
    warm = max(1, recipe.steps // 10)

    def share(step: int) -> float:
        return min((step + 1) / warm, 0.5 + 0.5 * math.cos(math.pi * max(0, step - warm) / (recipe.steps - warm)))

    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, share)
    for chosen in orders(len(part), recipe.batch, recipe.steps, seed):
        batch = part.take(chosen)
        loss = loss_of(model(batch.inputs), batch.targets)
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0) if recipe.optimiser == "adamw" else None
        optimiser.step()
        schedule.step()
    return model.eval()


def orders(count: int, size: int, steps: int, seed: int) -> Iterator[Tensor]:
    """``steps`` batches of indices, epoch after epoch, each in an order of its own."""
    generator, order = torch.Generator().manual_seed(seed), torch.empty(0, dtype=torch.long)
    for _ in range(steps):
        if len(order) < size:
            order = torch.randperm(count, generator=generator)
        chosen, order = order[:size], order[size:]
        yield chosen


def seen_by(kind: str, seed: int, everything: Data) -> Part:
    """What a parent is trained on."""
    shard = KINDS[kind].shard
    return everything.train if shard < 0 else data.skewed(everything.train, seed)[shard]


def parent(kind: str, seed: int, store: Store) -> tuple[nn.Module, dict[str, Any]]:
    """A trained network and what is known of it: from the cache where its recipe is the same, else trained now."""
    spec, path = KINDS[kind], store.path(kind, seed)
    everything = load_data(spec.data, store.data)
    if spec.published:
        return spec.published(store.data, seed), {"kind": kind, "seed": seed}
    own = seed + 1000 * max(spec.shard, 0)  # parents of two shards of one split begin apart
    model = build(kind, own, everything)
    about = path.with_suffix(".json")
    if path.exists() and about.exists():
        known = json.loads(about.read_text())
        if known["recipe"] == asdict(spec.recipe):
            load_model(model, path)
            return model.eval(), known
    with single_thread():
        begin = time.perf_counter()
        if spec.recipe.optimiser == "sgd":
            model = model.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        optimise(model, seen_by(kind, seed, everything), spec.recipe, own)
        seconds = time.perf_counter() - begin
        model = model.to(memory_format=torch.contiguous_format)  # pyright: ignore[reportCallIssue]
        known = {
            "data": spec.data, "kind": kind, "seed": seed, "recipe": asdict(spec.recipe), "metric": spec.metric,
            "parameters": sum(p.numel() for p in model.parameters()), "val": score(model, everything.val, spec.metric),
            "test": score(model, everything.test, spec.metric), "seconds": round(seconds, 1),
            "torch": torch.__version__,
        }  # fmt: skip
    store.cache.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".part")
    save_model(model, str(partial))
    about.write_text(json.dumps(known, indent=1) + "\n")
    partial.replace(path)
    print(f"trained {path.stem}: val {known['val']:.3f} test {known['test']:.3f}, {seconds:.0f} s", file=sys.stderr)
    return model.eval(), known
