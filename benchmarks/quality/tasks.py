"""What is fused: the kinds of the parents of each task, the first of which gives the result its shape."""

from __future__ import annotations

from dataclasses import dataclass

SEEDS = ((0, 1), (1, 2), (2, 0))


@dataclass(frozen=True)
class Task:
    """A row of the tables: its title, and the kinds of :data:`quality.training.KINDS` that are fused, in order."""

    title: str
    kinds: tuple[str, ...]
    pairs: tuple[tuple[int, ...], ...] = SEEDS


def _alike(title: str, kind: str) -> Task:
    return Task(title, (kind, kind))


PUBLISHED = ("admet", "admet-five", "proteinmpnn", "crepe-narrow", "crepe-wide", "voice")
"""Tasks whose parents others trained."""

TASKS: dict[str, Task] = {
    "mlp": _alike("MLP 512", "mlp512"),
    "shards": Task("MLP 512, skewed shards", ("shard-a512", "shard-b512"), ((0, 0), (1, 1), (2, 2))),
    "letters": _alike("letters MLP 256", "letters256"),
    "resnet": _alike("ResNet-20 w2", "resnet20w2"),
    "vit": _alike("ViT 128 x4", "vit128x4"),
    "cifar": _alike("ViT 128 x4, CIFAR-10", "cifar-vit128x4"),
    "bert": _alike("BERT 128 x2, post-norm", "bert128x2"),
    "llama": _alike("Llama 128 x4 (loss)", "llama128x4"),
    "gpt2": _alike("GPT-2 128 x4 (loss)", "gpt2-128x4"),
    "mlp-narrow": Task("MLP 128 <- 512", ("mlp128", "mlp512")),
    "mlp-wide": Task("MLP 512 <- 128", ("mlp512", "mlp128")),
    "vit-narrow": Task("ViT 64 <- 128", ("vit64x4", "vit128x4")),
    "vit-wide": Task("ViT 128 <- 64", ("vit128x4", "vit64x4")),
    "admet": Task("admet-ai regressors (R2, %)", ("admet", "admet"), ((0, 1), (1, 2), (2, 3))),
    "admet-five": Task("admet-ai, all five (R2, %)", ("admet",) * 5, ((0, 1, 2, 3, 4),)),
    "proteinmpnn": Task("ProteinMPNN (loss)", ("proteinmpnn", "proteinmpnn"), ((1, 2), (2, 3), (0, 1))),
    "crepe-narrow": Task("CREPE tiny <- full", ("crepe-tiny", "crepe-full"), ((0, 0),)),
    "crepe-wide": Task("CREPE full <- tiny", ("crepe-full", "crepe-tiny"), ((0, 0),)),
    "voice": Task("silero-vad 6 <- 5", ("voice", "voice"), ((1, 0),)),
    "vit-shallow": Task("ViT x4 <- x6", ("vit128x4", "vit128x6")),
}
