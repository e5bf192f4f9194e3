"""``graphfuse apply``: a saved alignment, applied to another checkpoint or to what a training added to one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
import typer
from torch import Tensor

from graphfuse.aligned import Alignment
from graphfuse.cli.options import Allow, Debug, Json, Seed, Verbose
from graphfuse.cli.steps import expect_new_file, notes_of, print_json, print_notes, print_written
from graphfuse.errors import OutputError
from graphfuse.io.checkpoints import Checkpoint, load_state, save_state
from graphfuse.io.fitting import load_into
from graphfuse.io.models import LoadedModel, load_model, save_model
from graphfuse.tasks import add_task_vector, task_vector
from graphfuse.writing import ensure_new, new_directory

FILES = (".safetensors", ".pt", ".pth", ".bin", ".ckpt")
CHECKPOINT = "FILE of weights, or a MODEL by name."


def apply(
    alignment: Annotated[Path, typer.Argument(metavar="ALIGNMENT", help="What `graphfuse align` or `fuse` saved.")],
    checkpoint: Annotated[str, typer.Argument(metavar="CHECKPOINT", help=CHECKPOINT)],
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", metavar="OUT", help="FILE.safetensors; with --like a new directory, too."),
    ] = None,
    model: Annotated[
        int, typer.Option("--model", min=0, metavar="K", help="Which model of the alignment the checkpoint is of.")
    ] = 1,
    base: Annotated[
        str | None,
        typer.Option("--base", metavar="CHECKPOINT", help="Carry what training added to this one: the task vector."),
    ] = None,
    target: Annotated[
        str | None,
        typer.Option(
            "--add-to",
            metavar="CHECKPOINT",
            help="With --base: add the task vector to this one, which is like the alignment's target.",
        ),
    ] = None,
    scale: Annotated[float, typer.Option("--scale", help="How much of the task vector is added.")] = 1.0,
    like: Annotated[
        str | None,
        typer.Option("--like", metavar="MODEL", help="Write OUT as a directory in the form of this model."),
    ] = None,
    allow: Allow = None,
    seed: Seed = None,
    as_json: Json = False,
    verbose: Verbose = 0,
    debug: Debug = False,
) -> None:
    """Write a checkpoint in the coordinates of an alignment's target: a later step of a model that was aligned, say.

    With --base, what training added to that base is carried instead; --add-to adds it to another model. Both hold for
    every alignment, also where gains of norms were folded into the layers that read them.
    """
    if out is None:
        raise typer.BadParameter("name a new file, FILE.safetensors", param_hint="'--out' / '-o'")
    if target is not None and base is None:
        raise typer.BadParameter("needs --base: without it there is no task vector", param_hint="'--add-to'")
    _expect_place(out, like)
    found = Alignment.load(alignment)
    given = {name: _Given.of(spec, seed or 0, allow) for name, spec in
             (("checkpoint", checkpoint), ("base", base), ("target", target)) if spec is not None}  # fmt: skip
    form = load_model(like, seed or 0, allow=allow or ()) if like is not None else None
    state = given["checkpoint"].state
    if base is None:
        state = found.apply(state, model)
    else:
        state = task_vector(found, state, given["base"].state, model)
        if target is not None:
            state = add_task_vector(found, given["target"].state, state, scale)
    _write(out, state, form)
    notes = tuple(dict.fromkeys(note for one in given.values() for note in one.notes))
    if as_json:
        what = "checkpoint" if base is None else "task vector" if target is None else "model with the task vector"
        print_json({"written": str(out), "what": what, "tensors": len(state), "notes": notes})
        return
    print_notes(notes)
    print_written(out)


@dataclass(frozen=True, eq=False)
class _Given:
    """Weights, from a file or from a model by name."""

    state: Mapping[str, Tensor]
    notes: tuple[str, ...]

    @classmethod
    def of(cls, spec: str, seed: int, allow: list[str] | None) -> _Given:
        if Path(spec).suffix in FILES and "@" not in spec:
            found = load_state(spec)
            return cls(found.state, found.notes)
        torch.manual_seed(seed)
        loaded = load_model(spec, seed, allow=allow or ())
        return cls(loaded.model.state_dict(), notes_of(loaded))


def _expect_place(out: Path, like: str | None) -> None:
    if like is not None:
        ensure_new(out)
        return
    if out.suffix != ".safetensors":
        raise OutputError(
            f"{out} is no name of a .safetensors file.\n"
            "  what to do: name one, or give --like MODEL for a directory in the form of that model"
        )
    expect_new_file(out)


def _write(out: Path, state: Mapping[str, Tensor], form: LoadedModel | None) -> None:
    if form is None:
        save_state(out, state)
        return
    load_into(form.model, Checkpoint(out, state))
    with new_directory(out) as work:
        save_model(form, form.model, work)
