"""What several commands do: settle settings, load models and data, trace, show progress, print."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import rich.progress
import torch
import typer
from torch import nn
from torch.utils import _pytree as pytree

from graphfuse.cli import console
from graphfuse.config import RunConfig
from graphfuse.errors import ConfigError, DataError, OutputError
from graphfuse.io.batches import Batches, load_data
from graphfuse.io.models import LoadedModel, as_call, load_model
from graphfuse.io.precision import dtype_of
from graphfuse.report import terminal
from graphfuse.symmetry import SymmetryGraph, trace

BATCH = 2  # inputs that a graph is traced with


def settled(config: Path | None, **given: Any) -> tuple[RunConfig, tuple[str, ...]]:
    """The settings of a run: those of the file, then what the command line says; a note where both said something."""
    base = RunConfig.parse(config)
    said = {key: value for key, value in given.items() if value is not None and value != []}
    run = RunConfig.parse({**base.model_dump(exclude_unset=True), **said})
    changed = [key for key in said if key in base.model_fields_set and getattr(base, key) != getattr(run, key)]
    return run, tuple(
        f"{key} is {_shown(getattr(run, key))}, by the command line; {config} says {_shown(getattr(base, key))}"
        for key in changed
    )


def _shown(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, tuple) else str(value)


def expect_models(run: RunConfig) -> None:
    """Usage error when no models were named at all; how many are enough is said by what is done with them."""
    if not run.models:
        raise typer.BadParameter("name the models, or give a --config that has `models`", param_hint="MODEL...")


def load(spec: str, run: RunConfig) -> LoadedModel:
    """A model as the settings want it."""
    return load_model(spec, run.seed, dtype=dtype_of(run.dtype), allow=run.allow)


@dataclass(frozen=True, eq=False)
class Opened:
    """Models that were loaded, on their device, with example inputs and data."""

    loaded: Sequence[LoadedModel]
    nets: Sequence[nn.Module]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    data: Batches[Any] | None
    notes: tuple[str, ...]


def opened(run: RunConfig) -> Opened:
    """The models of a run and its data."""
    torch.manual_seed(run.seed)
    place = device_of(run.device)
    loaded = [load(spec, run) for spec in run.models]
    batches = None
    if run.data is not None:
        batches = load_data(run.data, run.batch_size, model=loaded[0], samples=run.reads, length=run.length)
    args, kwargs = moved(inputs(loaded, batches), place)
    fed = Batches(lambda: (moved(batch, place) for batch in batches)) if batches is not None else None
    notes = notes_of(*loaded, *([batches] if batches is not None else []))
    return Opened(loaded, [one.model.to(place) for one in loaded], args, kwargs, fed, notes)


def traced(
    spec: str,
    data: str | None,
    batch_size: int | None,
    rules: list[str] | None,
    device: str | None,
    seed: int | None,
    outputs: list[str] | None = None,
    dtype: str | None = None,
    allow: list[str] | None = None,
    length: int | None = None,
) -> tuple[SymmetryGraph, LoadedModel]:
    """One model and its symmetries."""
    torch.manual_seed(seed or 0)
    place = device_of(device or "cpu")
    loaded = load_model(spec, seed or 0, dtype=dtype_of(dtype), allow=allow or ())
    batches = load_data(data, batch_size or BATCH, model=loaded, length=length) if data is not None else None
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
    """The device of this name, which is there."""
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        reason = (str(error).splitlines() or [""])[0]
        raise ConfigError(f"the device {name!r} cannot be used: {reason}\n  what to do: try --device cpu") from error


def moved(inputs: Any, place: torch.device) -> Any:
    """Inputs with their tensors on a device."""
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


def notes_of(*loaded: LoadedModel | Batches[Any]) -> tuple[str, ...]:
    """What was remarked on when models and data were loaded, each once."""
    return tuple(dict.fromkeys(note for one in loaded for note in one.notes))


def print_notes(notes: Sequence[str]) -> None:
    """Remarks for people."""
    for note in dict.fromkeys(notes):
        console.out.print(terminal.note_view(note))


def print_written(*paths: Path) -> None:
    """Where the result is."""
    console.out.print(f"written: {', '.join(map(str, paths))}", soft_wrap=True, highlight=False)


def expect_new_file(file: Path) -> None:
    """OutputError when there is something already, or no directory to hold it."""
    if file.exists():
        raise OutputError(f"{file} exists already.\n  what to do: name a new file")
    if not file.absolute().parent.is_dir():
        raise OutputError(f"there is no directory {file.parent} for {file}.\n  what to do: make it, or name another")


def print_json(value: Any) -> None:
    """For programs."""
    sys.stdout.write(json.dumps(value, indent=2, default=str) + "\n")
