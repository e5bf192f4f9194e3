"""Which tools know a model's symmetry: side by side, on the same models, checked by the same brute force.

    python benchmarks/coverage.py                              # the rows of published comparisons, all tools
    python benchmarks/coverage.py --list zoo --tools graphfuse,torch-pruning
    python benchmarks/coverage.py --table                      # tables of the latest records

Every cell runs in a process of its own with a time limit. Weights, gains, biases and statistics get random values in
float64, the tool permutes the model at random, and the outputs must stay (relative change below 1e-6). The peers are
installed with pip, each in a folder of its own (two of them are both called ``rebasin``). Needs ``graphfuse[zoo]``.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from coverage_models import LISTS, Case
from coverage_tools import TOOLS, NotReadable
from records import append, context, load, table
from torch import Tensor
from torch.utils import _pytree as pytree

from graphfuse.verify import randomised

CACHE = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "graphfuse" / "peers"
TOLERANCE = 1e-6
STATUSES = ("ok", "wrong", "nothing", "n/a", "error", "timeout")
ALSO = {
    "rebasin": ["torchview", "tqdm", "graphviz"],
    "torch-pruning": ["tqdm"],
    "sinkhorn-rebasin": ["torchviz", "graphviz"],
}


def measure(tool: str, case: Case, seed: int = 0) -> dict[str, Any]:
    """One cell: ok, wrong, nothing or error, seconds of the tool alone, share of the parameters in moved tensors."""
    torch.manual_seed(seed)
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(seed)
    model, args, kwargs = case.build()
    model = model.double().eval()
    args, kwargs = pytree.tree_map_only(Tensor, lambda t: t.double() if t.is_floating_point() else t, (args, kwargs))
    with torch.no_grad():
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
            if name.endswith(("weight", "bias", "running_mean", "running_var")) or isinstance(
                tensor, torch.nn.Parameter
            ):
                tensor.copy_(randomised(tensor, generator, name.endswith("running_var")))
        before = {name: p.detach().clone() for name, p in model.named_parameters()}
        outputs = _outputs(model(*args, **kwargs))
    record: dict[str, Any] = {"tool": tool, "model": case.name, "seed": seed}
    start = time.perf_counter()
    try:
        moved = TOOLS[tool][1](model, (args, kwargs), case.heads, generator)
    except NotReadable as error:
        return record | {"status": "n/a", "seconds": time.perf_counter() - start, "why": str(error)}
    except Exception as error:
        why = f"{type(error).__name__}: {str(error)[:200]}"
        return record | {"status": "error", "seconds": time.perf_counter() - start, "why": why}
    record["seconds"] = time.perf_counter() - start
    try:
        with torch.no_grad():
            after = _outputs(moved.double().eval()(*args, **kwargs))
    except Exception as error:
        return record | {"status": "wrong", "why": f"the permuted model does not run: {type(error).__name__}"}
    scale = max(float(t.abs().max()) for t in outputs)
    change = max(float((a - b).abs().max()) for a, b in zip(outputs, after, strict=True)) / scale
    now = dict(moved.named_parameters())
    changed = [name for name, old in before.items() if not torch.equal(old, now[name].detach().to(old.dtype))]
    share = sum(before[name].numel() for name in changed) / sum(p.numel() for p in before.values())
    status = "wrong" if not change <= TOLERANCE else "ok" if changed else "nothing"
    return record | {"status": status, "change": change, "share": share}


def _outputs(result: Any) -> list[Tensor]:
    return [t.detach() for t in pytree.tree_leaves(result) if isinstance(t, Tensor) and t.is_floating_point()]


def run_cell(tool: str, which: str, name: str, limit: float) -> dict[str, Any]:
    """A cell in a process of its own."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(_folder(tool) or "")}
    command = [sys.executable, "-W", "ignore", __file__, "--list", which, "--cell", tool, name]
    start = time.perf_counter()
    try:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=limit)
        answer = done.stdout.rpartition("RECORD ")[2]
        record = json.loads(answer) if "RECORD " in done.stdout else None
        if record is None:
            lines = done.stderr.strip().splitlines() or ["killed"]
            seconds = time.perf_counter() - start
            record = {"tool": tool, "model": name, "status": "error", "seconds": seconds, "why": lines[-1][:200]}
    except subprocess.TimeoutExpired:
        record = {"tool": tool, "model": name, "status": "timeout", "seconds": limit}
    return {**context(), "list": which, "limit": limit, **record}


def _folder(tool: str) -> Path | None:
    """Where a peer is installed, alone; None for graphfuse itself."""
    wanted = TOOLS[tool][0]
    if wanted is None:
        return None
    folder = CACHE / wanted
    if not folder.exists():
        packages = [wanted, *ALSO.get(tool, [])]
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(folder), *packages]
        subprocess.run(command, check=True)
    return folder


def show(which: str) -> str:
    """The latest record of each cell of a list: a row for each model (for ``field``), or a summary of all."""
    latest = {(r["tool"], r["model"]): r for r in load("coverage") if r["list"] == which}
    tools = [tool for tool in TOOLS if any(key[0] == tool for key in latest)]
    models = list(dict.fromkeys(model for _, model in latest))
    if which == "field":
        rows = [[model, *(_cell(latest.get((tool, model))) for tool in tools)] for model in models]
        return table(["model", *tools], rows)
    rows = []
    for tool in tools:
        mine = [r for (one, _), r in latest.items() if one == tool]
        counts = [str(sum(r["status"] == status for r in mine)) for status in STATUSES]
        seconds = sorted(r["seconds"] for r in mine)[len(mine) // 2]
        shares = sorted(r["share"] for r in mine if r["status"] == "ok")
        rows.append(
            [tool, str(len(mine)), *counts, f"{seconds:.1f}", f"{shares[len(shares) // 2]:.0%}" if shares else "-"]
        )
    head = [
        "tool",
        "models",
        "ok",
        "wrong",
        "nothing moved",
        "n/a",
        "error",
        "timeout",
        "median s",
        "median share moved",
    ]
    return table(head, rows)


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
    parser.add_argument("--again", action="store_true", help="measure cells again that have a record")
    parser.add_argument("--table", action="store_true", help="only print the table of the latest records")
    parser.add_argument("--cell", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.cell:
        tool, name = options.cell
        case = next(case for case in LISTS[options.list]() if case.name == name)
        print("RECORD " + json.dumps(measure(tool, case)))
        return
    if not options.table:
        known = {(r["tool"], r["model"]) for r in load("coverage") if r["list"] == options.list}
        for case in LISTS[options.list]():
            for tool in options.tools.split(","):
                if options.again or (tool, case.name) not in known:
                    record = run_cell(tool, options.list, case.name, options.limit)
                    append("coverage", record)
                    print(f"{case.name}: {tool}: {_cell(record)}", file=sys.stderr, flush=True)
    print(show(options.list))


if __name__ == "__main__":
    main()
