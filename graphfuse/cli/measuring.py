"""``graphfuse evaluate`` and ``compare``: how good models are on labelled data, and how alike two of them are."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from torch import Tensor

from graphfuse.aligned import Alignment
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
    Verbose,
)
from graphfuse.cli.steps import (
    device_of,
    expect_models,
    load,
    moved,
    notes_of,
    opened,
    print_json,
    print_notes,
    progress,
    settled,
)
from graphfuse.cli.views import tables_view
from graphfuse.comparison import compare as compare_models
from graphfuse.config import RunConfig
from graphfuse.errors import ConfigError, DataError, kind_of
from graphfuse.evaluation import Metric
from graphfuse.evaluation import evaluate as evaluate_models
from graphfuse.evaluation.tokens import next_tokens
from graphfuse.io.batches import load_data, load_labelled
from graphfuse.io.models import LoadedModel, parse_spec
from graphfuse.io.specs import find, looks_like_reference
from graphfuse.lockstep import Batch, as_batch


def evaluate(
    models: Models = None,
    data: Annotated[
        str | None,
        typer.Option(
            "--data",
            metavar="DATA",
            help="Labelled inputs, which fusing has not seen; or text, for models that predict the next token.",
        ),
    ] = None,
    fused: Annotated[
        str | None, typer.Option("--fused", metavar="MODEL", help="What was made of the models, to be measured, too.")
    ] = None,
    alignment: AlignmentFile = None,
    folder: Annotated[
        Path | None,
        typer.Option("--run", metavar="OUT", help="What `graphfuse fuse` wrote: models, alignment, fused model."),
    ] = None,
    metric: Annotated[
        list[str] | None,
        typer.Option(
            "--metric",
            metavar="METRIC",
            help="accuracy, loss, perplexity, mse or package.module:function of "
            "outputs and targets; may be repeated; by default what suits them.",
        ),
    ] = None,
    lower: Annotated[
        bool, typer.Option("--lower-is-better", help="Of a metric that is package.module:function.")
    ] = False,
    output: Annotated[
        str | None,
        typer.Option("--output", metavar="NAME", help="Which output is judged; by default logits, or the first."),
    ] = None,
    samples: Samples = None,
    batch_size: BatchSize = None,
    length: Length = None,
    device: Device = None,
    dtype: Dtype = None,
    allow: Allow = None,
    seed: Seed = None,
    as_json: Json = False,
    verbose: Verbose = 0,
    debug: Debug = False,
) -> None:
    """Measure models, their ensemble, their plain average, what was fused of them, and the line between two of them.

    The line goes from the first model's weights to the second's, before alignment and after; its barrier says how much
    worse its worst point is than the straight line between its ends.
    """
    run, said = settled(
        folder / "config.yaml" if folder is not None else None, models=models, batch_size=batch_size, length=length,
        alignment=str(alignment) if alignment is not None else None, device=device, dtype=dtype, allow=allow, seed=seed,
    )  # fmt: skip
    expect_models(run)
    if data is None:
        raise typer.BadParameter("name labelled data", param_hint="'--data'")
    result = fused if fused is not None else fused_spec(run, folder) if folder is not None else None
    loaded = [load(spec, run) for spec in run.models]
    whole = load(result, run) if result is not None else None
    place = device_of(run.device)
    nets = [one.model.to(place) for one in loaded]
    found = alignment_of(run, folder)
    with progress(as_json) as advance:
        evaluation = evaluate_models(
            nets, whole.model.to(place) if whole is not None else None,
            labelled(data, run, loaded[0], samples, output), metrics_of(metric, lower),
            alignment=found if len(nets) > 1 else None, weights=run.weights, output=output, progress=advance,
        )  # fmt: skip
    if as_json:
        print_json({"specs": run.models, "fused_spec": result, **evaluation.to_json()})
        return
    print_notes([*said, *notes_of(*loaded, *([whole] if whole is not None else []))])
    console.out.print(tables_view(evaluation.table, evaluation.curves))


def compare(
    models: Models = None,
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
    """Compare two models on the same inputs: how alike their layers are, and how well their units can be matched.

    Layers are compared by linear CKA, which does not depend on the order of units or on their basis; an axis by the
    mean agreement of its units, each with that of its own index (before) and with its partner (after).
    """
    run, said = settled(
        config, models=models, data=data, samples=samples, batch_size=batch_size, length=length, rules=rules,
        device=device, dtype=dtype, allow=allow, seed=seed,
    )  # fmt: skip
    expect_models(run)
    if len(run.models) != 2:
        raise DataError(f"compare takes two models, got {len(run.models)}")
    found = opened(run)
    if found.data is None:
        raise DataError(
            "compare runs both models on the same inputs.\n  what to do: give --data, a few batches are enough"
        )
    with progress(as_json) as advance:
        result = compare_models(
            found.nets[0], found.nets[1], found.data, config=run.settings, rules=run.rules, progress=advance
        )
    if as_json:
        print_json({"specs": run.models, **result.to_json()})
        return
    print_notes([*said, *found.notes])
    console.out.print(tables_view(*result.tables))


def fused_spec(run: RunConfig, folder: Path) -> str:
    """The name of the model in a directory that ``fuse`` wrote."""
    form = parse_spec(run.into or run.models[run.target])
    if form.kind == "transformers":
        return str(folder)
    return f"{form.text.partition('@')[0]}@{folder / 'model.safetensors'}"


def alignment_of(run: RunConfig, folder: Path | None) -> Alignment | None:
    if run.alignment is not None:
        return Alignment.load(run.alignment)
    return Alignment.load(folder / "alignment.safetensors") if folder is not None else None


def labelled(
    spec: str, run: RunConfig, model: LoadedModel, samples: int | None, output: str | None
) -> Iterator[tuple[Batch, Tensor]]:
    """Labelled batches; those of a text are its tokens, each with the next one."""
    place = device_of(run.device)
    how: Any = {"model": model, "samples": samples, "length": run.length}
    if Path(spec).suffix == ".txt":
        pairs = next_tokens(
            model.model,
            (_on(as_batch(x), place) for x in load_data(spec, run.batch_size, **how)),
            output,
        )
    else:
        found = load_labelled(spec, run.batch_size, **how)
        pairs = ((as_batch(one.inputs), one.labels) for one in found)
    for batch, targets in pairs:
        yield _on(batch, place), targets.to(place)


def _on(batch: Batch, place: torch.device) -> Batch:
    return Batch(moved(batch.args, place), moved(batch.kwargs, place))


def metrics_of(names: list[str] | None, lower: bool) -> list[str | Metric] | None:
    """Metrics by name; a reference is a function of outputs and targets.

    Raises
    ------
    ConfigError
        A reference leads to nothing that can be called.
    """
    return [_metric(name, lower) for name in names] if names else None


def _metric(name: str, lower: bool) -> str | Metric:
    if not looks_like_reference(name):
        return name
    function = find(name, ConfigError)
    if not callable(function):
        raise ConfigError(f"--metric {name} is {kind_of(function)}, not a function of outputs and targets")
    return Metric.of(function, higher=not lower, name=name.rpartition(":")[2])
