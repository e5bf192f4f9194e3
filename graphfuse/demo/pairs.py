"""What the demo fuses: which networks, trained from which seeds, into whose width."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Parent:
    """One network to train: a kind of :data:`graphfuse.demo.recipes.KINDS` and its seed."""

    kind: str
    seed: int

    def __str__(self) -> str:
        return f"{self.kind}-{self.seed}"


@dataclass(frozen=True)
class Pair:
    """Networks to fuse (two, or more); the result has the width of ``parents[target]``."""

    name: str
    title: str
    parents: tuple[Parent, ...]
    target: int = 0

    @property
    def same_kind(self) -> bool:
        """Whether all parents have the same shapes, so that their plain average exists."""
        return len({parent.kind for parent in self.parents}) == 1


def pairs(seed: int = 0) -> tuple[Pair, ...]:
    """The demo's pairs (and its triple); no two networks share a seed, and another ``seed`` gives other networks."""
    kinds = ("mlp", "mlp", "mlp", "resnet", "resnet", "vit", "vit", "vit_narrow")
    mlp0, mlp1, mlp2, resnet0, resnet1, vit0, vit1, narrow = (
        Parent(kind, len(kinds) * seed + i) for i, kind in enumerate(kinds)
    )
    return (
        Pair("mlp", "Two MLPs", (mlp0, mlp1)),
        Pair("mlp-triple", "Three MLPs", (mlp0, mlp1, mlp2)),
        Pair("resnet", "Two batch-norm ResNets", (resnet0, resnet1)),
        Pair("vit", "Two vision transformers", (vit0, vit1)),
        Pair("vit-wide-to-narrow", "Wide ViT into a narrow one", (narrow, vit0)),
        Pair("vit-narrow-to-wide", "Narrow ViT into a wide one", (vit0, narrow)),
    )


def find(name: str, seed: int = 0) -> Pair:
    """The pair of that name; KeyError with all names when there is none."""
    known = {pair.name: pair for pair in pairs(seed)}
    if name not in known:
        raise KeyError(f"no pair {name!r} in the demo; there are: {', '.join(known)}")
    return known[name]
