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
    "refined": "After refinement by gradient, without labels",
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


def show(records: Sequence[Record]) -> str:
    """All tables that have a cell, in Markdown."""
    cells = latest(records)
    shown = []
    for stage, title in TITLES.items():
        rows = [row for task in TASKS if (row := _row(cells, task, stage))]
        if rows:
            columns = [name for name in METHODS if any(key[2] == name and key[3] == stage for key in cells)]
            head = ["task", "pairs", *(METHODS[name].title for name in columns)]
            shown.append(f"{title}:\n\n" + table(head, [_row(cells, row[0], stage, columns) for row in rows]))
    return "\n\n".join(shown)


def _row(cells: Mapping[Key, Record], task: str, stage: str, columns: Sequence[str] = ()) -> list[str]:
    """One task's means; without columns, its name alone if it has a cell that is filled."""
    here = {key: r for key, r in cells.items() if key[0] == task and key[3] == stage}
    if not columns:
        return [task] if any("test" in record for record in here.values()) else []
    counts = {len([r for key, r in here.items() if key[2] == name and "test" in r]) for name in columns} - {0}
    pairs = "-".join(map(str, sorted({min(counts), max(counts)})))
    return [TASKS[task].title, pairs, *(_cell([r for key, r in here.items() if key[2] == name]) for name in columns)]


def _cell(records: Sequence[Record]) -> str:
    """The mean over pairs; of the parents one mean for each."""
    filled = [record for record in records if "test" in record]
    if not filled:
        return "-"
    digits = 3 if filled[0]["metric"] == "loss" or filled[0]["stage"] == "barrier" else 1
    if "each" in filled[0]:
        sides = zip(*([one["test"] for one in record["each"]] for record in filled), strict=True)
        return " / ".join(f"{mean(side):.{digits}f}" for side in sides)
    return f"{mean(record['test'] for record in filled):.{digits}f}"
