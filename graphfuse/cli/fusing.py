"""``graphfuse align`` and ``fuse``: how models correspond, and one model made of them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from graphfuse.aligned import Alignment
from graphfuse.aligning import align as align_models
from graphfuse.cli import console
from graphfuse.cli.options import (
    AlignmentFile,
    Allow,
    BatchSize,
    Config,
    Data,
    Debug,
    Device,
    Dtype,
    Json,
    Length,
    Models,
    Rules,
    Samples,
    Seed,
    ShardSize,
    Verbose,
)
from graphfuse.cli.steps import (
    Opened,
    device_of,
    expect_models,
    expect_new_file,
    load,
    opened,
    print_json,
    print_notes,
    print_written,
    progress,
    settled,
)
from graphfuse.config import RunConfig
from graphfuse.fuse import FuseResult
from graphfuse.fuse import fuse as fuse_models
from graphfuse.io.cards import CARD, model_card
from graphfuse.io.models import LoadedModel, save_model
from graphfuse.io.sharding import bytes_of
from graphfuse.report import terminal
from graphfuse.report.pages import fuse_page
from graphfuse.symmetry import trace
from graphfuse.writing import ensure_new, new_directory


def align(
    models: Models = None,
    file: Annotated[
        Path | None, typer.Option("--out", "-o", metavar="FILE", help="A new file for the alignment (.safetensors).")
    ] = None,
    data: Data = None,
    samples: Samples = None,
    batch_size: BatchSize = None,
    length: Length = None,
    config: Config = None,
    rules: Rules = None,
    device: Device = None,
    dtype: Dtype = None,
    allow: Allow = None,
    seed: Seed = None,
    as_json: Json = False,
    verbose: Verbose = 0,
    debug: Debug = False,
) -> None:
    """Match the units of two or more trained models, and fuse nothing.

    The alignment shows how alike the models are; `graphfuse apply` moves any checkpoint of theirs by it, and
    `graphfuse fuse --alignment` uses it.
    """
    run, said = settled(
        config, models=models, data=data, samples=samples, batch_size=batch_size, length=length, rules=rules,
        device=device, dtype=dtype, allow=allow, seed=seed,
    )  # fmt: skip
    expect_models(run)
    if file is not None:
        expect_new_file(file)
    found = opened(run)
    with progress(as_json) as advance:
        alignment = align_models(
            found.nets, found.args, found.kwargs, data=found.data, config=run.settings, rules=run.rules,
            progress=advance,
        )  # fmt: skip
    if file is not None:
        alignment.save(file)
    if as_json:
        print_json({"specs": run.models, **alignment.to_json(), "notes": [*said, *found.notes, *alignment.notes]})
        return
    print_notes([*said, *found.notes])
    console.out.print(terminal.alignment_view(alignment))
    if file is not None:
        print_written(file)


def fuse(
    models: Models = None,
    folder: Annotated[
        Path | None, typer.Option("--out", "-o", metavar="OUT", help="A new directory for the fused model.")
    ] = None,
    data: Data = None,
    samples: Samples = None,
    batch_size: BatchSize = None,
    length: Length = None,
    config: Config = None,
    into: Annotated[
        str | None, typer.Option("--into", metavar="MODEL", help="A model whose widths, not weights, the result has.")
    ] = None,
    alignment: AlignmentFile = None,
    rules: Rules = None,
    device: Device = None,
    dtype: Dtype = None,
    allow: Allow = None,
    max_shard_size: ShardSize = None,
    seed: Seed = None,
    as_json: Json = False,
    verbose: Verbose = 0,
    debug: Debug = False,
) -> None:
    """Fuse two or more trained models of one architecture into one; with --into, one may be written into another width.

    With --data (a few hundred unlabelled inputs) units are matched by what they do and the result is calibrated;
    without, by their weights alone. OUT gets the model, the alignment, report.json and report.html, and config.yaml:
    everything that was set, with which `graphfuse fuse --config OUT/config.yaml -o OUT2` does the same again.
    """
    run, said = settled(
        config, models=models, out=_text(folder), data=data, samples=samples, batch_size=batch_size, length=length,
        into=into, alignment=_text(alignment), rules=rules, device=device, dtype=dtype, allow=allow,
        max_shard_size=max_shard_size, seed=seed,
    )  # fmt: skip
    expect_models(run)
    if run.out is None:
        raise typer.BadParameter("name a new directory, or give a --config that has `out`", param_hint="'--out' / '-o'")
    ensure_new(run.out)
    bytes_of(run.max_shard_size)
    found = opened(run)
    shape = load(run.into, run) if run.into is not None else None
    given = Alignment.load(run.alignment) if run.alignment is not None else None
    with new_directory(run.out) as work:
        with progress(as_json) as advance:
            result = fuse_models(
                found.nets, found.args, found.kwargs, data=found.data, config=run.settings, rules=run.rules,
                into=shape.model.to(device_of(run.device)) if shape is not None else None, alignment=given,
                progress=advance,
            )  # fmt: skip
        written = _Written(run, found, result, shape, said)
        report = written.write(work)
    if as_json:
        print_json(report)
        return
    print_notes([*said, *found.notes])
    console.out.print(terminal.fuse_view(report, result.alignment))
    print_written(*sorted(Path(run.out).iterdir()))


@dataclass(frozen=True, eq=False)
class _Written:
    """What a run of ``fuse`` leaves in its directory."""

    run: RunConfig
    opened: Opened
    result: FuseResult
    shape: LoadedModel | None
    said: tuple[str, ...]

    def write(self, folder: Path) -> dict[str, Any]:
        """All files; returns the report."""
        run, result, found = self.run, self.result, self.opened
        form = self.shape or found.loaded[run.target]
        save_model(form, result.model, folder, run.max_shard_size)
        result.alignment.save(folder / "alignment.safetensors")
        if result.resized is not None and result.resized is not result.alignment:
            result.resized.save(folder / "resized.safetensors")
        specs = [run.into, *run.models] if run.into is not None and len(run.models) == 1 else run.models
        report = {"specs": specs, **result.report, "notes": [*self.said, *result.report["notes"]]}
        (folder / "report.json").write_text(json.dumps(report, indent=2, default=str) + "\n", encoding="utf-8")
        (folder / CARD).write_text(model_card(form, specs, report), encoding="utf-8")
        (folder / "config.yaml").write_text(f"{AGAIN}{run.to_yaml()}", encoding="utf-8")
        graph = trace(result.model, found.args, found.kwargs, rules=run.rules, outputs=run.outputs)
        (folder / "report.html").write_text(fuse_page(graph, report, result.alignment), encoding="utf-8")
        return report


AGAIN = "# What this was fused with. The same again: graphfuse fuse --config THIS/config.yaml -o NEW\n"


def _text(path: Path | None) -> str | None:
    return str(path) if path is not None else None
