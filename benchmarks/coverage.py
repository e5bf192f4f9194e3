"""Which tools know a model's symmetry: side by side, on the same models, checked by the same brute force.

    python benchmarks/coverage.py                              # the rows of published comparisons, all tools
    python benchmarks/coverage.py --list zoo --tools graphfuse,torch-pruning
    python benchmarks/coverage.py --table                      # tables of the latest records

A model is built once for all tools, its weights, gains, biases and statistics drawn at random in float64; each tool
gets it in a forked process of its own, permutes it at random, and the outputs must stay: relative change below 1e-6, or
below three times what rounding its weights to float32 changes, as some models compute in float32 whatever their weights
are (at most 1e-4); 1e-3 in float32, above 700M parameters, to save memory, and where kernels know no float64.
Seconds are those of one core, without imports; so is the limit. What is recorded for the same version of a tool is not
measured again. The peers are installed with pip, each in a folder of its own (two of them are both called ``rebasin``).
Needs ``graphfuse[zoo]`` and a system that can fork.
"""

from __future__ import annotations

import argparse
import copy
import hashlib
import importlib
import multiprocessing
import os
import re
import resource
import signal
import subprocess
import sys
import time
import warnings
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median
from typing import Any

os.environ.update(OMP_NUM_THREADS="1", HF_HUB_OFFLINE="1")

import torch
from coverage_models import LISTS, Case
from coverage_tools import TOOLS, NotReadable
from records import append, context, load, table
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from graphfuse.verify import randomised

CACHE = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "graphfuse" / "peers"
TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-3}
MOST = 1e-4
LARGE = 700e6
STATUSES = ("ok", "wrong", "nothing", "n/a", "error", "timeout")
MEMORY = 20 << 30
DOCUMENT = Path(__file__).parents[1] / "docs" / "coverage.md"
TITLES = {
    "field": "Published comparisons",
    "zoo": "The project's zoo",
    "torchvision": "Torch-Pruning's list of torchvision",
    "torchvision-rest": "The rest of torchvision",
}


@dataclass(frozen=True)
class Ready:
    """A model with random values, and what it computes."""

    model: nn.Module
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    outputs: list[Tensor]
    dtype: torch.dtype
    tolerance: float


def prepared(case: Case, seed: int) -> Ready:
    """The case's model in eval mode, everything learned or gathered drawn at random, in float64 where it runs so."""
    try:
        return _drawn(case, seed, torch.float64)
    except RuntimeError:  # some kernels, as of grouped products, know no float64
        return _drawn(case, seed, torch.float32)


def _drawn(case: Case, seed: int, widest: torch.dtype) -> Ready:
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    model, args, kwargs = case.build()
    dtype = torch.float32 if sum(p.numel() for p in model.parameters()) > LARGE else widest
    model = model.to(dtype).eval()
    args, kwargs = pytree.tree_map_only(Tensor, lambda t: t.to(dtype) if t.is_floating_point() else t, (args, kwargs))
    with torch.no_grad():
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
            learned = isinstance(tensor, nn.Parameter)
            if learned or name.endswith(("weight", "bias", "running_mean", "running_var")):
                tensor.copy_(randomised(tensor, generator, name.endswith("running_var")))
        outputs = _outputs(model(*args, **kwargs))
        tolerance = TOLERANCE[dtype]
        if dtype == torch.float64:  # parts of some models compute in float32 whatever their weights are
            rounded = copy.deepcopy(model).float().double()
            tolerance = min(max(tolerance, 3 * _change(outputs, _outputs(rounded(*args, **kwargs)))), MOST)
        return Ready(model, args, kwargs, outputs, dtype, tolerance)


def measure(tool: str, ready: Ready, seed: int) -> dict[str, Any]:
    """One cell: ok, wrong, nothing or error, seconds of the tool alone, share of the parameters in moved tensors."""
    model = ready.model
    importlib.import_module(TOOLS[tool][1])
    before = {name: (_digest(p), p.numel()) for name, p in model.named_parameters()}
    start = time.process_time()
    try:
        moved = TOOLS[tool][2](model, (ready.args, ready.kwargs), torch.Generator().manual_seed(seed))
    except NotReadable as error:
        return {"status": "n/a", "seconds": time.process_time() - start, "why": str(error)}
    except Exception as error:
        why = f"{type(error).__name__}: {str(error)[:200]}"
        return {"status": "error", "seconds": time.process_time() - start, "why": why}
    seconds = time.process_time() - start
    try:
        with torch.no_grad():
            after = _outputs(moved.to(ready.dtype).eval()(*ready.args, **ready.kwargs))
    except Exception as error:
        why = f"the permuted model does not run: {type(error).__name__}"
        return {"status": "wrong", "seconds": seconds, "why": why}
    change = _change(ready.outputs, after)
    now = dict(moved.named_parameters())
    changed = [size for name, (digest, size) in before.items() if _digest(now[name]) != digest]
    share = sum(changed) / sum(size for _, size in before.values())
    status = "wrong" if not change <= ready.tolerance else "ok" if changed else "nothing"
    return {"status": status, "seconds": seconds, "change": change, "share": share}


def _change(before: list[Tensor], after: list[Tensor]) -> float:
    scale = max(float(t.abs().max()) for t in before)
    return max(float((a - b).abs().max()) for a, b in zip(before, after, strict=True)) / scale


def _digest(tensor: Tensor) -> bytes:
    return hashlib.blake2b(tensor.detach().reshape(-1).numpy().data).digest()


def _outputs(result: Any) -> list[Tensor]:
    return [t.detach() for t in pytree.tree_leaves(result) if isinstance(t, Tensor) and t.is_floating_point()]


def run_cell(tool: str, ready: Ready, seed: int, limit: float) -> dict[str, Any]:
    """A cell in a forked process, which the system ends when it has used its seconds or its memory."""
    forks = multiprocessing.get_context("fork")
    receive, send = forks.Pipe(duplex=False)
    process = forks.Process(target=_child, args=(send, tool, ready, seed, limit))
    process.start()
    send.close()
    try:
        record = receive.recv() if receive.poll(20 * limit) else None
    except EOFError:
        record = None
    if record is None and process.is_alive():
        process.kill()
    process.join()
    if record is not None:
        return record
    if process.exitcode in (-signal.SIGXCPU, -signal.SIGKILL):
        return {"status": "timeout", "seconds": limit}
    return {"status": "error", "seconds": 0.0, "why": f"the process ended with {process.exitcode}"}


def _child(send: Connection, tool: str, ready: Ready, seed: int, limit: float) -> None:
    warnings.simplefilter("ignore")
    seconds = int(limit)
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 5))
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    silence = os.open(os.devnull, os.O_WRONLY)
    for stream in (1, 2):
        os.dup2(silence, stream)
    if TOOLS[tool][0]:
        sys.path.insert(0, str(_folder(tool)))
    send.send(measure(tool, ready, seed))


def _folder(tool: str) -> Path:
    """Where a peer is installed, alone."""
    packages = TOOLS[tool][0]
    folder = CACHE / packages[0]
    if not folder.exists():
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(folder), *packages]
        subprocess.run(command, check=True)
    return folder


def version(tool: str) -> str:
    """What a record is of: the peer's release, or the state of graphfuse's own sources."""
    if TOOLS[tool][0]:
        return TOOLS[tool][0][0]
    command = ["git", "rev-parse", "HEAD:graphfuse", "HEAD:rules"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=DOCUMENT.parents[1], check=False)
    return "graphfuse " + "+".join(part[:8] for part in done.stdout.split())


def run_list(which: str, tools: list[str], limit: float, again: bool, only: str = "", seed: int = 0) -> None:
    """Measure the cells of a list that have no record yet, of models whose name has ``only`` (a pattern) in it."""
    known = {(r["tool"], r["model"], r.get("version")) for r in load("coverage") if r["list"] == which and not again}
    for case in LISTS[which]():
        todo = [tool for tool in tools if (tool, case.name, version(tool)) not in known]
        if not todo or not re.search(only, case.name):
            continue
        try:
            ready = prepared(case, seed)
        except Exception as error:
            print(f"{case.name}: does not run: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
            continue
        for tool in todo:
            about = {"list": which, "limit": limit, "tool": tool, "version": version(tool), "model": case.name}
            record = {**context(), **about, "seed": seed, **run_cell(tool, ready, seed, limit)}
            append("coverage", record)
            print(f"{case.name}: {tool}: {_cell(record)}", file=sys.stderr, flush=True)


# ------------------------------------------------------------------ tables of the latest records


def latest(which: str) -> dict[tuple[str, str], dict[str, Any]]:
    """(tool, model) -> the latest record, of a list."""
    return {(r["tool"], r["model"]): r for r in load("coverage") if r["list"] == which}


def cells(which: str) -> str:
    """A row for each model of a list, a column for each tool."""
    records = latest(which)
    tools = [tool for tool in TOOLS if any(key[0] == tool for key in records)]
    models = sorted({model for _, model in records}, key=[case.name for case in LISTS[which]()].index)
    rows = [[model, *(_cell(records.get((tool, model))) for tool in tools)] for model in models]
    return table(["model", *tools], rows)


def counts() -> str:
    """A row for each list and tool: how many models it was right on, wrong on, and so on."""
    head = ["models", "tool", "measured", *STATUSES, "median share moved", "median s"]
    rows = []
    for which, title in TITLES.items():
        records, size = latest(which), len(LISTS[which]())
        for tool in TOOLS:
            mine = [r for (one, _), r in records.items() if one == tool]
            if not mine:
                continue
            numbers = [str(sum(r["status"] == status for r in mine)) for status in STATUSES]
            shares = [r["share"] for r in mine if r["status"] == "ok"]
            share = f"{median(shares):.1%}" if shares else "-"
            seconds = f"{median(r['seconds'] for r in mine):.1f}"
            rows.append([title, tool, f"{len(mine)} of {size}", *numbers, share, seconds])
    return table(head, rows)


def document() -> str:
    """docs/coverage.md: every cell of every list."""
    parts = ["# What each tool made of each model"]
    parts.append(
        "Written by `benchmarks/readme.py` from `benchmarks/results/coverage.jsonl`. *ok* with the share of the "
        "parameters in tensors that moved, and seconds of one core; *wrong* with the relative change of the outputs; "
        "*nothing*: no parameter moved; *n/a*: the tool takes no such inputs, or no permutation can be read from what "
        "it finds; *error*: an exception, in the tool or in reading a permutation off what it gives (the record says "
        "which); *timeout*: 60 s of one core; *-*: not measured. Each tool is told what its "
        "user may say: Torch-Pruning 1.6.1 the output layers and the heads of each projection; its groups of channels "
        "are permuted in place of being pruned."
    )
    for which, title in TITLES.items():
        if latest(which):
            parts += [f"## {title}", cells(which)]
    return "\n\n".join(parts) + "\n"


def _cell(record: dict[str, Any] | None) -> str:
    if record is None:
        return "-"
    if record["status"] == "ok":
        return f"ok, {record['share']:.0%}, {record['seconds']:.1f} s"
    if record["status"] == "wrong":
        return f"**wrong** {record['change']:.0e}" if "change" in record else "**wrong** (shapes)"
    return "n/a" if record["status"] == "n/a" else f"{record['status']}, {record['seconds']:.0f} s"


def main() -> None:
    """Measure the cells of a list that have no record yet, then print its table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--list", choices=LISTS, default="field")
    parser.add_argument("--tools", default=",".join(TOOLS), help="of: " + ", ".join(TOOLS))
    parser.add_argument("--limit", type=float, default=60.0, help="seconds for each cell")
    parser.add_argument("--only", default="", metavar="PATTERN", help="models whose name has this in it")
    parser.add_argument("--again", action="store_true", help="measure cells again that have a record")
    parser.add_argument("--table", action="store_true", help="only print the table of the latest records")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if not options.table:
        for tool in options.tools.split(","):
            if TOOLS[tool][0]:
                _folder(tool)
        run_list(options.list, options.tools.split(","), options.limit, options.again, options.only)
    print(cells(options.list))


if __name__ == "__main__":
    main()
