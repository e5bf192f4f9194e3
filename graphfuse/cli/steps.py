"""What several commands do: load and trace a model, find example inputs, show progress, print."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import rich.progress
import torch
from torch.utils import _pytree as pytree

from graphfuse.cli import console
from graphfuse.errors import ConfigError, DataError
from graphfuse.io.batches import Batches, load_data
from graphfuse.io.models import LoadedModel, as_call, load_model
from graphfuse.report import terminal
from graphfuse.symmetry import SymmetryGraph, trace


def traced(
    spec: str,
    data: str | None,
    batch_size: int,
    rules: list[str] | None,
    device: str,
    seed: int,
    outputs: list[str] | None = None,
) -> tuple[SymmetryGraph, LoadedModel]:
    torch.manual_seed(seed)
    place = device_of(device)
    loaded = load_model(spec, seed)
    batches = load_data(data, batch_size, model=loaded) if data is not None else None
    args, kwargs = moved(inputs([loaded], batches), place)
    with console.err.status("tracing"):
        return trace(loaded.model.to(place), args, kwargs, rules=rules or (), outputs=outputs or ()), loaded


def inputs(loaded: Sequence[LoadedModel], batches: Batches[Any] | None) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Example inputs: the first batch of the data, or those that a model's makers gave."""
    if batches is not None:
        return as_call(next(iter(batches)))
    for one in loaded:
        if one.example is not None:
            return one.example
    raise DataError(
        f"no example inputs for {loaded[0].spec.text}.\n"
        f"  what to do: define example_inputs() beside {loaded[0].spec.target}, or give --data"
    )


def device_of(name: str) -> torch.device:
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        reason = (str(error).splitlines() or [""])[0]
        raise ConfigError(f"the device {name!r} cannot be used: {reason}\n  what to do: try --device cpu") from error


def moved(inputs: Any, place: torch.device) -> Any:
    return pytree.tree_map_only(torch.Tensor, lambda tensor: tensor.to(place), inputs)


@contextlib.contextmanager
def progress(silent: bool) -> Iterator[Callable[[str, int, int], None]]:
    """A bar for each stage, on standard error; gone when all is done."""
    columns = (
        rich.progress.TextColumn("{task.description:<12}"),
        rich.progress.BarColumn(),
        rich.progress.MofNCompleteColumn(),
        rich.progress.TimeElapsedColumn(),
    )
    tasks: dict[str, rich.progress.TaskID] = {}
    with rich.progress.Progress(*columns, console=console.err, transient=True, disable=silent) as bars:

        def advance(stage: str, done: int, total: int) -> None:
            if stage not in tasks:
                tasks[stage] = bars.add_task(stage, total=total)
            bars.update(tasks[stage], completed=done, total=total)

        yield advance


def print_notes(*loaded: LoadedModel | Batches[Any]) -> None:
    for note in dict.fromkeys(note for one in loaded for note in one.notes):
        console.out.print(terminal.note_view(note))


def print_json(value: Any) -> None:
    sys.stdout.write(json.dumps(value, indent=2, default=str) + "\n")
