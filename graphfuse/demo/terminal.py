"""The demo in a terminal: progress while it works, then one table for each pair."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from graphfuse.demo.results import DemoResult, PairResult


class Bars:
    """One progress bar for each piece of work; may be told of progress from any thread."""

    def __init__(self, progress: Progress) -> None:
        self._progress, self._lock = progress, threading.Lock()
        self._tasks: dict[str, int] = {}

    def tell(self, name: str, done: int, steps: int) -> None:
        """So much of the work of that name is done."""
        with self._lock:
            if name not in self._tasks:
                self._tasks[name] = self._progress.add_task(name, total=steps)
            self._progress.update(self._tasks[name], completed=done, total=steps)  # pyright: ignore[reportArgumentType]


@contextmanager
def bars(console: Console, heading: str) -> Iterator[Bars]:
    """Progress bars under a heading; gone when the work is done."""
    columns = (TextColumn("  {task.description}"), BarColumn(bar_width=28), MofNCompleteColumn(), TimeElapsedColumn())
    console.print(heading, highlight=False)
    with Progress(*columns, console=console, transient=True) as progress:
        yield Bars(progress)


def pair_view(pair: PairResult, steps: int) -> RenderableType:
    """One pair: every model with its accuracy, at once and after the same fine-tuning, and what that means."""
    table = Table(box=None, pad_edge=False, header_style="dim", title=pair.title, title_justify="left",
                  title_style="bold", padding=(0, 3, 0, 0))  # fmt: skip
    table.add_column("")
    table.add_column("accuracy, %", justify="right")
    table.add_column(f"after {steps} steps", justify="right")
    best = max(range(len(pair.accuracies)), key=pair.accuracies.__getitem__)
    for i, (name, accuracy) in enumerate(zip(pair.parents, pair.accuracies, strict=True)):
        table.add_row(f"parent {name}", *_numbers(accuracy, pair.tuned["parent"] if i == best else None))
    rows = (
        ("ensemble of the parents", pair.ensemble, None),
        ("plain average", pair.plain, pair.tuned["plain"]),
        ("plain average, batch norms re-estimated", pair.plain_statistics, None),
        ("plain average, calibrated", pair.plain_calibrated, None),
        ("aligned average", pair.aligned, None),
        ("fused, soft", pair.soft, None),
    )
    for name, accuracy, tuned in rows:
        if accuracy is not None or name == "plain average":
            table.add_row(name, *_numbers(accuracy, tuned))
    table.add_row("fused, hard", *_numbers(pair.hard, pair.tuned["fused"]), style="bold cyan")
    remarks = [Padding(Text(remark, style="dim"), (0, 0, 0, 2)) for remark in pair.remarks()]
    return Padding(Group(table, *remarks), (1, 0, 0, 0))


def summary_view(result: DemoResult) -> RenderableType:
    """The outcome of the whole demo."""
    lines: Iterable[str] = (result.summary(), *result.notes)
    return Padding(Group(*(Text(line) for line in lines)), (1, 0, 0, 0))


def _numbers(accuracy: float | None, tuned: float | None) -> tuple[str, str]:
    return ("-" if accuracy is None else f"{accuracy:.1f}"), ("" if tuned is None else f"{tuned:.1f}")
