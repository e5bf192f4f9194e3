"""The tables, made from the records: one for each stage, rows are tasks, columns methods, means over pairs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import mean
from typing import Any

from records import table

from quality.methods import METHODS
from quality.tasks import TASKS

TITLES = {
    "oneshot": "One shot: aligned and averaged, batch norms re-estimated, nothing else calibrated",
    "calibrated": "After calibration on at most 512 unlabelled inputs",
    "refined": "After refinement by gradient for 400 steps, without labels",
    "longer": "The same for 1,000 steps; of parents each one, refined towards the mean of both",
    "tuned": "After the same short fine-tuning with labels, of the best stage on validation data",
    "barrier": "Loss barrier between the first parent and the aligned second, one shot",
}
Record = Mapping[str, Any]
Key = tuple[str, str, str, str]


def key(record: Record) -> Key:
    """Which cell a record fills."""
    return record["task"], record["pair"], record["method"], record["stage"]


def latest(records: Sequence[Record]) -> dict[Key, Record]:
    """The newest record of each cell."""
    return {key(record): record for record in records}


def brief(records: Sequence[Record], tasks: Sequence[str] = tuple(TASKS)) -> str:
    """One table: of each fusion the means one shot / calibrated / refined."""
    cells = {key: record for key, record in latest(records).items() if key[0] in tasks}
    tasks = [task for task in tasks if any(key[0] == task for key in cells)]
    columns = [name for name in METHODS if any(key[2] == name for key in cells)]
    rows = [[TASKS[task].title, *(_stages(cells, task, name) for name in columns)] for task in tasks]
    return table(["task", *(METHODS[name].title for name in columns)], rows)


def _stages(cells: Mapping[Key, Record], task: str, method: str) -> str:
    if not METHODS[method].configs:
        return _cell(_of(cells, task, method, "oneshot"))
    return " / ".join(_cell(_of(cells, task, method, stage)) for stage in ("oneshot", "calibrated", "refined"))


def show(records: Sequence[Record]) -> str:
    """All tables that have a cell, in Markdown: one for each stage, then seconds and inputs."""
    cells = latest(records)
    shown = []
    for stage, title in TITLES.items():
        tasks = [task for task in TASKS if any(key[0] == task and key[3] == stage and "test" in r
                 for key, r in cells.items())]  # fmt: skip
        columns = [name for name in METHODS if any(key[2] == name and key[3] == stage for key in cells)]
        rows = [
            [TASKS[task].title, _pairs(cells, task, stage)] + [_cell(_of(cells, task, name, stage)) for name in columns]
            for task in tasks
        ]
        if rows:
            shown.append(f"{title}:\n\n" + table(["task", "pairs", *(METHODS[n].title for n in columns)], rows))
    if rows := _costs(cells):
        shown.append("What the fusions took, means over tasks and pairs:\n\n"
                     + table(["method", "stage", "seconds", "inputs"], rows))  # fmt: skip
    if reasons := _reasons(cells):
        shown.append("Cells left empty, and why:\n\n" + "\n".join(reasons))
    return "\n\n".join(shown)


def _of(cells: Mapping[Key, Record], task: str, method: str, stage: str) -> list[Record]:
    """The records of one cell of a table, one for each pair that has a figure."""
    return [r for key, r in cells.items() if (key[0], key[2], key[3]) == (task, method, stage) and "test" in r]


def _pairs(cells: Mapping[Key, Record], task: str, stage: str) -> str:
    """How many pairs the means of a row are of."""
    counts = {len(_of(cells, task, method, stage)) for method in METHODS} - {0}
    return "-".join(map(str, sorted({min(counts), max(counts)})))


def _costs(cells: Mapping[Key, Record]) -> list[list[str]]:
    rows = []
    for method, about in METHODS.items():
        for stage in ("oneshot", "calibrated", "refined", "longer"):
            found = [r for key, r in cells.items() if key[2:] == (method, stage) and "test" in r]
            if found and about.configs:
                seconds, samples = mean(r["seconds"] for r in found), max(r["samples"] for r in found)
                rows.append([about.title, stage, f"{seconds:.1f}", str(samples)])
    return rows


def _reasons(cells: Mapping[Key, Record]) -> list[str]:
    """One line for each column, stage and reason."""
    found: dict[tuple[str, str, str], list[str]] = {}
    for (task, _, method, stage), record in cells.items():
        if "skipped" in record:
            tasks = found.setdefault((method, stage, record["skipped"]), [])
            if task not in tasks:
                tasks.append(task)
    return [f"- {METHODS[m].title}, {stage} ({', '.join(tasks)}): {why}" for (m, stage, why), tasks in found.items()]


def _cell(filled: Sequence[Record]) -> str:
    """The mean over pairs; of the parents one mean for each."""
    if not filled:
        return "-"
    digits = 3 if filled[0]["metric"] == "loss" or filled[0]["stage"] == "barrier" else 1
    if "each" in filled[0]:
        sides = zip(*([one["test"] for one in record["each"]] for record in filled), strict=True)
        return " / ".join(f"{mean(side):.{digits}f}" for side in sides)
    return f"{mean(record['test'] for record in filled):.{digits}f}"
