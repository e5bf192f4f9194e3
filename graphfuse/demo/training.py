"""The demo's trained networks: from the cache, or trained now, several side by side, one thread each."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from graphfuse.demo import cache
from graphfuse.demo.pairs import Parent, find
from graphfuse.demo.pool import run_jobs
from graphfuse.demo.recipes import KINDS
from graphfuse.errors import GraphFuseError, OutputError

Progress = Callable[[Parent, int, int], None]
"""Called with (network, steps done, steps in all), from any thread."""


@dataclass(frozen=True)
class Trained:
    """A trained network: where it is kept, how long its training took, whether that was now or earlier, remarks."""

    model: nn.Module
    path: Path
    seconds: float
    cached: bool
    remark: str | None = None


def parents(name: str, *, seed: int = 0, folder: Path | None = None) -> list[nn.Module]:
    """The trained networks of one of the demo's pairs, in eval mode, trained now if they are not in the cache.

    Parameters
    ----------
    name : str
        A name of :func:`graphfuse.demo.pairs.pairs`: ``mlp``, ``resnet``, ``vit``, ``vit-wide-to-narrow`` ...
    seed : int
        Another seed gives other networks.
    folder : Path, optional
        The cache; by default :func:`graphfuse.demo.cache.default_folder`.
    """
    wanted = find(name, seed).parents
    trained = trained_networks(wanted, folder or cache.default_folder())
    return [trained[parent].model for parent in wanted]


def trained_networks(
    wanted: Iterable[Parent],
    folder: Path,
    progress: Progress | None = None,
) -> dict[Parent, Trained]:
    """Networks by name: those in the cache as they are, the others trained now and kept.

    Raises
    ------
    OutputError
        The cache cannot be written.
    GraphFuseError
        A training process failed.
    """
    networks = list(dict.fromkeys(wanted))
    looked_up = {parent: cache.find(folder, parent) for parent in networks}
    missing = [parent for parent, (entry, _) in looked_up.items() if entry is None]
    if missing:
        _prepare(folder)
        _train_all(missing, folder, progress or (lambda *_: None))
    return {parent: _gather(folder, parent, *looked_up[parent]) for parent in networks}


def _gather(folder: Path, parent: Parent, entry: cache.Entry | None, damage: str | None) -> Trained:
    if entry is not None:
        return Trained(entry.model, entry.path, entry.seconds, cached=True)
    entry, reason = cache.find(folder, parent)
    if entry is None:
        raise GraphFuseError(f"{parent} was trained but cannot be read back: {reason or 'its file has vanished'}")
    return Trained(entry.model, entry.path, entry.seconds, cached=False, remark=damage)


def _prepare(folder: Path) -> None:
    """Find out that the cache cannot be written before minutes are spent on training."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        writable = os.access(folder, os.W_OK)
    except OSError as error:
        raise OutputError(
            f"the demo's cache {folder} cannot be made: {error.strerror}; give another with --cache"
        ) from error
    if not writable:
        raise OutputError(f"the demo's cache {folder} cannot be written; give another one with --cache")


def _train_all(missing: Iterable[Parent], folder: Path, progress: Progress) -> None:
    ordered = sorted(missing, key=lambda parent: -KINDS[parent.kind].cost)  # the longest first evens out the ends
    jobs = [{"task": "train", "kind": parent.kind, "seed": parent.seed, "folder": str(folder)} for parent in ordered]
    run_jobs(jobs, lambda i, message: progress(ordered[i], message["done"], message["steps"]))
