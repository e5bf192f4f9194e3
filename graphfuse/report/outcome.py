"""What a fusion came to, on a page: by metrics where labels are known, and by the outputs where they are not.

An *evaluation* is a dict that a report may have under ``evaluation``, all of it plain values:

- ``metrics`` : names of what was measured, the first being that of the curves; ``inputs`` : on how many;
- ``parents`` : a list, for each model a dict of values by metric; ``ensemble``, ``plain`` (the average of the weights
  as they are), ``fused`` : such dicts, or None for what does not exist;
- ``before``, ``after`` : None, or the curve along the line from the target to another model, as they are and aligned:
  ``metric``, ``values`` at even steps, and ``barrier``, how much worse the worst of them is than the line between the
  ends.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from graphfuse.report.charts import Line, Mark, chart, legend, rounded
from graphfuse.report.html import Cell, figures, table
from graphfuse.report.words import told_apart

Json = Mapping[str, Any]

NAMES = {"ensemble": "ensemble of the models", "plain": "plain average", "fused": "fused"}
CURVES = {"before": ("as they are", "a"), "after": ("aligned", "b")}


def outcome_words(report: Json) -> str:
    """The outcome in a sentence or two."""
    found = report.get("evaluation")
    if found and found.get("fused"):
        name = found["metrics"][0]
        parents = " and ".join(_figure(values[name]) for values in found["parents"])
        plain = f", their plain average {_figure(found['plain'][name])}" if found.get("plain") else ""
        fused = _figure(found["fused"][name])
        return f"{name[:1].upper()}{name[1:]}: the fused model reaches {fused}, the models {parents}{plain}."
    apart = report.get("outputs")
    if apart:
        return (
            f"On {apart['inputs']} unlabelled inputs the fused model's outputs are {_figure(apart['fused'])} from the "
            f"models' mean outputs, the aligned average's {_figure(apart['average'])} (squared distance, as a share of "
            "the outputs' variance)."
        )
    return ""


def outcome(report: Json) -> str:
    """Tables and a curve of all that is known about the result; empty when nothing is."""
    found, apart, specs = report.get("evaluation"), report.get("outputs"), _specs(report)
    tables = [_evaluated(found, specs)] if found else []
    if apart:
        rows: list[list[Cell]] = [[spec, gap] for spec, gap in zip(specs, apart["models"], strict=False)]
        rows += [["aligned average", apart["average"]], ["fused", apart["fused"]]]
        tables.append(table(["", "distance from the models' mean outputs"], rows, strong=[1], digits=4))
    drawn = _curve(found) if found else ""
    return f'<div class="beside"><div>{"".join(tables)}</div>{drawn}</div>' if drawn else "".join(tables)


def _evaluated(found: Json, specs: Sequence[str]) -> str:
    named = [*zip(specs, found["parents"], strict=False)]
    named += [(words, found[key]) for key, words in NAMES.items() if found.get(key)]
    rows: list[list[Cell]] = [[name, *(values.get(metric) for metric in found["metrics"])] for name, values in named]
    digits = max(_digits([values[metric] for values in found["parents"]]) for metric in found["metrics"])
    return table([f"on {found['inputs']} inputs", *found["metrics"]], rows, strong=[1], digits=digits)


def _curve(found: Json) -> str:
    metric = found["metrics"][0]
    lines, marks = [], []
    for key, (name, style) in CURVES.items():
        if found.get(key):
            values = found[key]["values"]
            points = [(i / (len(values) - 1), y) for i, y in enumerate(values) if _finite(y)]
            lines.append(Line(f"{name}, barrier {_figure(found[key]['barrier'])}", style, tuple(points)))
    if not lines:
        return ""
    if found.get("fused") and _finite(found["fused"][metric]):
        marks.append(Mark("fused", "c", (0.5, found["fused"][metric])))
    seen = [y for line in lines for _, y in line.points] + [mark.point[1] for mark in marks]
    picture = chart(
        f"{metric} between the models", lines, marks, across=("share of the other model", 0.0, 1.0),
        up=(metric, *rounded(seen)), unit="", digits=_digits(seen),
    )  # fmt: skip
    key = legend([(line.name, line.style, "line") for line in lines] + [(m.name, m.style, "diamond") for m in marks])
    words = "Along the straight line from the target's weights to those of another model."
    return figures([("From one model to another", key + picture, words)])


def _specs(report: Json) -> list[str]:
    return told_apart([str(x) for x in report.get("specs") or (f"model {k}" for k in range(len(report["models"])))])


def _digits(values: Sequence[float]) -> int:
    """Decimals with which values are told apart: three digits in all, about."""
    largest = max((abs(value) for value in values), default=0.0)
    return 1 if largest >= 20 else 2 if largest >= 5 else 3 if largest >= 0.05 else 5


def _finite(value: float | None) -> bool:
    return value is not None and math.isfinite(value)


def _figure(value: float | None) -> str:
    return "–" if value is None else f"{value:.{_digits([value])}f}"
