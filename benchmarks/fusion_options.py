"""What is done beside and after matching, by name: calibrations, scales, bases, extra width; one record for each trial.

    python benchmarks/fusion_options.py --tasks mlp,letters --pairs 1
    python benchmarks/fusion_options.py --table          # from the records alone

Parents, data and scores are those of benchmarks/quality.py. The test score of each trial is shown; nothing is chosen.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from pathlib import Path
from typing import Any

import torch
from quality import methods, training
from quality.tasks import TASKS
from quality.training import KINDS, Store
from records import append, context, load, table

NAME = "fusion_options"
PAGE = Path(__file__).parents[1] / "docs" / "transport.md"
SEEN = {"method": "activations"}
BARE = {**SEEN, "calibrate": {"method": "batch_norm"}}
WEIGHTS = {"method": "weights"}

TRIALS: dict[str, dict[str, Any]] = {
    "activations": BARE,
    "activations, scaling": {**BARE, "scaling": True},
    "activations, linear": {**BARE, "linear": True},
    "weights": {**BARE, **WEIGHTS},
    "weights, scaling": {**BARE, **WEIGHTS, "scaling": True},
    "weights, linear": {**BARE, **WEIGHTS, "linear": True},
    "calibrate repair": {**SEEN, "calibrate": {"method": "repair"}},
    "calibrate regmean": {**SEEN, "calibrate": {"method": "regmean"}},
    "calibrate least_squares (the default)": {**SEEN},
    "keep 0.1": {**BARE, "keep": 0.1},
    "keep 0.25": {**BARE, "keep": 0.25},
    "keep 0.5": {**BARE, "keep": 0.5},
    "keep 1": {**BARE, "keep": 1.0},
    "keep 0.25, calibrate least_squares": {**SEEN, "keep": 0.25},
}
"""Name -> config."""

WIDE = ("channels",)
"""Roles that grow, too, where a task has no hidden layers (residual networks of convolutions)."""


def useful(title: str, name: str) -> bool:
    """Whether a trial can differ from the default on a task: scales need a ReLU, bases need heads."""
    attends = not any(word in name for word in ("mlp", "letters", "shards", "resnet"))
    plain = any(word in name for word in ("mlp", "letters", "shards"))
    return (not title.endswith("scaling") or plain) and (not title.endswith("linear") or attends)


def measure(tasks: list[str], pairs: int, store: Store, only: list[str]) -> None:
    """Run every trial on every pair and append one record for each."""
    for name in tasks:
        for seeds in TASKS[name].pairs[:pairs]:
            bench = methods.bench_of(TASKS[name], seeds, store)
            for title, config in TRIALS.items():
                if not useful(title, name) or (only and not any(word in title for word in only)):
                    continue
                if "keep" in config and name == "resnet":
                    config = {**config, "roles": {role: {"keep": config["keep"]} for role in WIDE}}
                result, seconds = methods._fused(bench, config)
                size = sum(p.numel() for p in result.model.parameters())
                append(NAME, {"task": name, "pair": "-".join(map(str, seeds)), "trial": title, "config": config,
                              "metric": bench.metric, **bench.scores(result.model), "seconds": round(seconds, 1),
                              "parameters": size, **context()})  # fmt: skip
                print(name, seeds, title, round(bench.scores(result.model)["test"], 3), flush=True)


def report() -> str:
    """Means over pairs, one row for each trial, the newest record of each."""
    newest = {(r["trial"], r["task"], r["pair"]): r for r in load(NAME)}
    cells: dict[tuple[str, str], list[float]] = defaultdict(list)
    for (title, task, _), record in newest.items():
        cells[title, task].append(record["test"])
    tasks = [task for task in TASKS if any(task == known for _, known in cells)]

    def shown(values: list[float], task: str) -> str:
        mean = sum(values) / len(values) if values else 0.0
        digits = 3 if KINDS[TASKS[task].kinds[0]].metric == "loss" else 1
        return f"{mean:.{digits}f}" if values else "-"

    rows = [[title, *(shown(cells[title, task], task) for task in tasks)]
            for title in TRIALS if any(cells[title, task] for task in tasks)]  # fmt: skip
    heads = [f"{TASKS[task].title} ({len({p for _, t, p in newest if t == task})})" for task in tasks]
    return table(["test score (pairs)", *heads], rows)


def main() -> None:
    """Measure, then write the table made from all records into docs/transport.md."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", default="mlp,letters,shards,resnet,vit,bert,llama")
    parser.add_argument("--pairs", type=int, default=1)
    parser.add_argument("--cache", type=Path, default=training.default_cache(), help="folder of the trained parents")
    parser.add_argument("--data", type=Path, help="folder of the data; by default CACHE/data")
    parser.add_argument("--only", nargs="+", default=[], help="trials whose name has one of these in it")
    parser.add_argument("--table", action="store_true", help="only make the table")
    given = parser.parse_args()
    torch.set_num_threads(1)
    if not given.table:
        measure(given.tasks.split(","), given.pairs, Store(given.data or given.cache / "data", given.cache), given.only)
    page, begin, end = PAGE.read_text(), f"<!-- {NAME} -->", f"<!-- /{NAME} -->"
    PAGE.write_text(page[: page.index(begin)] + f"{begin}\n\n{report()}\n\n" + page[page.index(end) :])


if __name__ == "__main__":
    main()
