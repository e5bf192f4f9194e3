"""Trained networks kept between runs: one safetensors file each, named by a digest of all that decided its training."""

from __future__ import annotations

import functools
import hashlib
import inspect
import json
import os
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from graphfuse.demo import data, models, recipes
from graphfuse.demo.pairs import Parent
from graphfuse.errors import OutputError


@dataclass(frozen=True)
class Entry:
    """A network found in the cache, where, and how many seconds its training took."""

    model: nn.Module
    path: Path
    seconds: float


def default_folder() -> Path:
    """``$XDG_CACHE_HOME/graphfuse``, or ``~/.cache/graphfuse``."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "graphfuse"


def path_of(folder: Path, parent: Parent) -> Path:
    """Where a network is kept: the name changes with its seed, recipe, code, data and torch version."""
    decides = {
        "kind": parent.kind,
        "seed": parent.seed,
        "recipe": asdict(recipes.KINDS[parent.kind].recipe),
        "code": _code(),
        "data": data.load().digest,
        "torch": torch.__version__,
    }
    digest = hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()[:12]
    return folder / f"demo-{parent}-{digest}.safetensors"


def find(folder: Path, parent: Parent) -> tuple[Entry | None, str | None]:
    """A network from the cache, or why it is not usable (both None: it is simply not there)."""
    path = path_of(folder, parent)
    if not path.exists():
        return None, None
    model = recipes.build(parent.kind, parent.seed)
    try:
        with safe_open(path, framework="pt") as file:
            seconds = float((file.metadata() or {})["seconds"])
            model.load_state_dict({name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118
    except (OSError, SafetensorError, KeyError, ValueError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[0]
        return None, f"{path} was damaged ({reason}); {parent} was trained again"
    return Entry(model.eval(), path, seconds), None


def store(folder: Path, parent: Parent, model: nn.Module, seconds: float) -> Path:
    """Keep a network; the file appears whole or not at all.

    Raises
    ------
    OutputError
        The folder cannot be written.
    """
    path = path_of(folder, parent)
    state = {name: value.detach().contiguous() for name, value in model.state_dict().items()}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder, prefix=".writing-") as scratch:
            temporary = Path(scratch, path.name)
            save_file(state, temporary, metadata={"seconds": f"{seconds:.2f}"})
            temporary.replace(path)
    except OSError as error:
        raise OutputError(
            f"the demo's cache {folder} cannot be written: {error.strerror or error}; give another one with --cache"
        ) from error
    return path


@functools.cache
def _code() -> str:
    """Digest of the code that decides a training: the networks, the data, the optimisation."""
    deciding = (
        models, data.load, data.augment, recipes.Recipe, recipes.build, recipes.train, recipes.optimise,
        recipes.training_batches,
    )  # fmt: skip
    return hashlib.sha256("\n".join(map(inspect.getsource, deciding)).encode()).hexdigest()[:12]
