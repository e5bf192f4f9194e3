"""Tables for the terminal: axes, why the rest is fixed, what verification and alignment found, and errors."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich import box
from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from graphfuse.aligned import Alignment
from graphfuse.report.grouping import grouped
from graphfuse.report.words import reasons, sizes_of, structure
from graphfuse.symmetry import Axis, SymmetryGraph
from graphfuse.verify import Verification

SHOWN = 3
GIVING_WAY = {"touches", "for example"}
FOLDED = {"parent"}
NUMBERS = {"count", "size", "axes", "agreement", "lowest", "before", "units moved", "parameters", "share"}


def graph_view(graph: SymmetryGraph, every: bool = False) -> RenderableType:
    """What was found in one model: a summary, its free axes, how they make it up, why the others are fixed, notes."""
    parts: list[RenderableType] = [_summary(graph), axes_table(graph, every)]
    if lines := structure(graph):
        parts.append(Text("in words", style="italic"))
        parts += [Text(f"  {line}") for line in lines]
        parts.append(Text())
    if graph.fixed:
        parts.append(fixed_table(graph))
    parts += [_note(note.message) for note in graph.notes]
    return Group(*parts)


def _summary(graph: SymmetryGraph) -> Text:
    text = Text()
    text.append(type(graph.model).__name__, style="bold")
    text.append(f": {len(graph.axes)} free axes, {graph.free_fraction:.1%} of the parameters move")
    seconds = ", ".join(f"{stage} {value:.1f} s" for stage, value in graph.seconds.items())
    return text.append(f"  ({graph.captured.method}{'; ' + seconds if seconds else ''})", style="dim")


def axes_table(graph: SymmetryGraph, every: bool = False) -> Table:
    """The free axes, one row for each group of alike ones (or for each axis)."""
    columns = ("axis", "count", "size", "class", "one for each", "touches")
    rows = []
    for group in grouped(graph, every):
        axis = group.axes[0]
        touches = ", ".join(group.pattern[:SHOWN])
        cells = (len(group.axes), axis.size, axis.symmetry, group.along, touches)
        rows.append((group.name, *map(str, cells)))
    return _table("free axes", columns, rows)


def fixed_table(graph: SymmetryGraph) -> Table:
    """Why axes are fixed, the commonest reason first."""
    rows = []
    for why, axes in reasons(graph):
        axis = axes[0]
        example = f"{axis.touches[0].tensor}[{axis.touches[0].dim}]" if axis.touches else axis.name
        rows.append((why, str(len(axes)), sizes_of(axes), f"{example}: {axis.reasons[0]}"))
    return _table("fixed axes", ("reason", "count", "sizes", "for example"), rows)


def verification_view(found: Verification) -> RenderableType:
    """The verdict of a verification in one panel; green when it holds."""
    text = Text(str(found))
    if found.blamed:
        rows = [
            (axis.name, str(axis.size), ", ".join(f"{touch.tensor}[{touch.dim}]" for touch in axis.touches[:SHOWN]))
            for axis in found.blamed
        ]
        table = _table("axes whose maps change the function", ("axis", "size", "touches"), rows)
        return Group(Panel(text, border_style="red", expand=False), table, *map(_note, found.notes))
    return Group(Panel(text, border_style="green" if found.ok else "yellow", expand=False), *map(_note, found.notes))


def alignment_view(alignment: Alignment) -> RenderableType:
    """How well each role is matched, model by model: the mean over its axes, and the worst of them."""
    rows = []
    for k, part in enumerate(alignment.models):
        roles: dict[str, list[Axis]] = {}
        for axis in alignment.axes:
            if axis.id in part.agreement:
                roles.setdefault(axis.role, []).append(axis)
        for role, axes in roles.items():
            found = [part.agreement[axis.id] for axis in axes]
            before = [one.before for one in found if one.before is not None]
            rows.append((
                str(k), role, str(len(axes)), f"{_mean(one.value for one in found):.3f}",
                f"{min(one.value for one in found):.3f}", f"{_mean(before):.3f}" if before else "-",
                f"{_mean(one.moved for one in found):.0%}",
            ))  # fmt: skip
    columns = ("model", "role", "axes", "agreement", "lowest", "before", "units moved")
    title = f"alignment onto model {alignment.target}, by {alignment.method}"
    return Group(_table(title, columns, rows), *map(_note, alignment.notes))


def fuse_view(report: Mapping[str, Any], alignment: Alignment) -> RenderableType:
    """What a fusion did: the models and their shares, how units were matched, what calibration solved, and seconds."""
    specs = report.get("specs") or [model["class"] for model in report["models"]]
    rows = []
    for k, (spec, model) in enumerate(zip(specs, report["models"], strict=True)):
        target = "the result has its shape" if model["target"] else ""
        rows.append((f"{k}  {spec}", f"{model['parameters']:,}", f"{model['share']:.0%}", target))
    models = _table("models", ("parent", "parameters", "share", ""), rows)
    parts: list[RenderableType] = [models, alignment_view(alignment)]
    if report["calibration"]:
        parts.append(_calibration(report["calibration"]))
    seconds = ", ".join(f"{stage.replace('_', ' ')} {value:.1f}" for stage, value in report["seconds"].items())
    parts.append(Text(f"seconds: {seconds}", style="dim"))
    shown = set(alignment.notes)
    return Group(*parts, *(_note(note) for note in report["notes"] if note not in shown))


def _calibration(found: Mapping[str, Any]) -> RenderableType:
    """One line of sums; a layer's error is its mean squared error on held-out inputs, as a share of the mean square."""
    solved, text = (
        found["solved"],
        Text(f"calibrated on {found['inputs']} inputs: {len(found['solved'])} layers solved"),
    )
    if solved:
        text.append(f", error on held-out inputs {_mean(one['before'] for one in solved):.3f} before and ")
        text.append(f"{_mean(one['after'] for one in solved):.3f} after (mean)")
    if found["statistics"]:
        text.append(f"; {len(found['statistics'])} batch norms re-estimated")
    if found["left"]:
        text.append(f"; {len(found['left'])} left as averaged")
    return text.append("\n")


def error_view(title: str, message: str) -> Panel:
    """An error as one red panel."""
    return Panel(Text(message), title=f"[bold]{title}", title_align="left", border_style="red")


def note_view(text: str) -> Text:
    """A remark."""
    return _note(text)


def _note(text: str) -> Text:
    return Text("note: ", style="yellow").append(text, style="not yellow default")


def _mean(values: Iterable[float]) -> float:
    found = list(values)
    return sum(found) / len(found)


def _table(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> Table:
    """Numbers to the right; one line for each row, but for names: where it is narrow, long lists give way."""
    rows = [list(row) for row in rows]
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    for i, column in enumerate(columns):
        gives_way = column in GIVING_WAY | FOLDED
        width = None if gives_way else max(len(text) for text in (column, *(row[i] for row in rows)))
        table.add_column(column, justify="right" if column in NUMBERS else "left", width=width)
    for row in rows:
        table.add_row(*map(_cell, columns, row))
    return table


def _cell(column: str, text: str) -> Text:
    return Text(text, overflow="fold") if column in FOLDED else Text(text, no_wrap=True, overflow="ellipsis")
