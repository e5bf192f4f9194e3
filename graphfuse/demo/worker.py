"""A process that does jobs of the demo: reads one JSON object a line, answers in JSON lines.

Started by :mod:`graphfuse.demo.pool`. Answers are messages (progress), and last for each job ``{"result": ...}`` or
``{"error": name of the exception, "text": ...}``.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from graphfuse.demo import cache, data, training
from graphfuse.demo.evaluation import evaluate
from graphfuse.demo.graphs import describe_kind
from graphfuse.demo.pairs import Parent, find
from graphfuse.demo.recipes import train
from graphfuse.errors import GraphFuseError


def main() -> None:
    """Do what standard input asks for until it ends."""
    torch.set_num_threads(1)
    for line in sys.stdin:
        job = json.loads(line)
        try:
            _say(result=TASKS[job.pop("task")](**job))
        except GraphFuseError as error:
            _say(error=type(error).__name__, text=str(error))


def _train(kind: str, seed: int, folder: str) -> float:
    """Train one network and keep it; the seconds that took."""
    parent, began = Parent(kind, seed), time.monotonic()
    model = train(kind, seed, _progress)
    seconds = time.monotonic() - began
    cache.store(Path(folder), parent, model, seconds)
    return seconds


def _evaluate(pair: str, seed: int, folder: str) -> dict[str, Any]:
    """Fuse one pair in every way and measure it; its networks are in the cache."""
    models = training.parents(pair, seed=seed, folder=Path(folder))
    return evaluate(find(pair, seed), models, data.load(), progress=_progress).to_json()


def _describe(kind: str, seed: int, folder: str) -> dict[str, Any]:
    """The labelled graph of one kind of network, and whether its symmetries hold."""
    parent = Parent(kind, seed)
    model = training.trained_networks([parent], Path(folder))[parent].model
    return describe_kind(kind, model)


TASKS: dict[str, Callable[..., Any]] = {"train": _train, "evaluate": _evaluate, "describe": _describe}


def _progress(done: int, steps: int) -> None:
    _say(done=done, steps=steps)


def _say(**message: Any) -> None:
    print(json.dumps(message), flush=True)


if __name__ == "__main__":
    main()
