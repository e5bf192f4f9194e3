"""How good fused models are: every method on parents that are trained here, one record for each cell.

    python benchmarks/quality.py --tasks vit,llama --pairs 1 --stages oneshot,calibrated
    python benchmarks/quality.py --train          # only train the parents, and keep them
    python benchmarks/quality.py --table          # the tables of the latest records

Parents are trained by one thread and kept in ``--cache``. ``--data`` is a folder with the data, searched by name at any
depth; what is not there is downloaded into it, where it has a public address. Cells that have a record are not measured
again unless ``--again``.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import records
from quality import methods, table, training
from quality.data import Unavailable
from quality.tasks import TASKS
from quality.training import Store


def missing(done: set[table.Key], task: str, pair: str, method: str, stages: list[str]) -> list[str]:
    """Stages of a column that have no record yet and that the column has at all."""
    has = {"ensemble": ("oneshot",), "parents": ("oneshot", "longer", "tuned")}.get(method, methods.STAGES)
    return [stage for stage in stages if stage in has and (task, pair, method, stage) not in done]


def run(options: argparse.Namespace, store: Store) -> None:
    """Measure every cell asked for that has no record yet."""
    done = set() if options.again else set(table.latest(read(options.records)))
    for name in options.tasks:
        for seeds in TASKS[name].pairs[: options.pairs]:
            pair = "-".join(map(str, seeds))
            todo = {m: s for m in options.methods if (s := missing(done, name, pair, m, options.stages))}
            if not todo:
                continue
            try:
                bench = methods.bench_of(TASKS[name], seeds, store)
            except Unavailable as error:
                print(f"{name} is left out: {error}", file=sys.stderr)
                break
            for method, stages in todo.items():
                found = methods.cells(method, bench, stages)
                for stage in stages:
                    record = {"task": name, "pair": pair, "method": method, "stage": stage, "metric": bench.metric}
                    write(options.records, {**record, "seeds": seeds, **found[stage], **records.context()})


def write(path: Path, record: dict[str, Any]) -> None:
    """Add a record to a file of them, and say so."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        file.write(json.dumps(record) + "\n")
    figure = record.get("skipped") or f"{record['test']:.3f} ({record['seconds']:.0f} s)"
    print(*(record[key] for key in ("task", "pair", "method", "stage")), figure, file=sys.stderr, flush=True)


def read(path: Path) -> list[dict[str, Any]]:
    """Every record of a file, oldest first."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def listed(known: dict[str, Any] | tuple[str, ...], what: str) -> Any:
    """A parser of comma-separated names."""

    def parse(text: str) -> list[str]:
        names = text.split(",")
        if unknown := [name for name in names if name not in known]:
            raise argparse.ArgumentTypeError(f"no {what} {unknown[0]!r}; there are: {', '.join(known)}")
        return names

    return parse


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", type=listed(TASKS, "task"), default=list(TASKS), help=", ".join(TASKS))
    parser.add_argument("--pairs", type=int, default=3, help="how many pairs of each task (3)")
    parser.add_argument("--methods", type=listed(methods.METHODS, "method"), default=list(methods.METHODS))
    parser.add_argument("--stages", type=listed(methods.STAGES, "stage"), default=list(methods.STAGES))
    parser.add_argument("--cache", type=Path, default=training.default_cache(), help="folder of the trained parents")
    parser.add_argument("--data", type=Path, help="folder of the data; by default CACHE/data")
    parser.add_argument("--records", type=Path, default=records.RESULTS / "quality.jsonl")
    parser.add_argument("--again", action="store_true", help="measure cells again that have a record")
    parser.add_argument("--train", action="store_true", help="only train the parents")
    parser.add_argument("--table", action="store_true", help="only print the tables")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    """Train, measure, print the tables."""
    options = parse(arguments)
    store = Store(options.data or options.cache / "data", options.cache)
    if options.train:
        wanted = {(kind, seed): None for name in options.tasks for pair in TASKS[name].pairs[: options.pairs]
                  for kind, seed in zip(TASKS[name].kinds, pair, strict=True)}  # fmt: skip
        for kind, seed in wanted:
            try:
                training.parent(kind, seed, store)
            except Unavailable as error:
                print(f"{kind} is left out: {error}", file=sys.stderr)
        return
    if not options.table:
        run(options, store)
    print(table.show(read(options.records)))


if __name__ == "__main__":
    main()
