"""What a fusion came to, on a page: by a metric where labels are known, and by the outputs where they are not.

An *evaluation* is a dict that a report may have under ``evaluation``:

- ``metric`` : str, what was measured, with its unit: ``"accuracy, %"``;
- ``higher_is_better`` : bool;
- ``rows`` : ``parents`` (a list, one value for each model), ``ensemble``, ``plain`` (the average of the weights as
  they are), ``fused``, and whatever else was measured, by name; None is what does not exist;
- ``curve`` : optional; ``points`` (shares of the last model, 0 to 1), ``before`` and ``after`` alignment, each a list
  of values or None.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from graphfuse.report.charts import Line, Mark, chart, legend, rounded
from graphfuse.report.html import Cell, figures, table

Json = Mapping[str, Any]

NAMES = {"ensemble": "ensemble of the models", "plain": "plain average", "aligned": "aligned average", "fused": "fused"}
BEFORE, AFTER = "as they are", "aligned"


def outcome_words(report: Json) -> str:
    """The outcome in a sentence or two."""
    found = report.get("evaluation")
    if found:
        rows, name = found["rows"], found["metric"]
        parents = " and ".join(_figure(value) for value in rows["parents"])
        plain = f", their plain average {_figure(rows['plain'])}" if rows.get("plain") is not None else ""
        fused = _figure(rows.get("fused"))
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
    if not found or not found.get("curve"):
        return "".join(tables)
    return f'<div class="beside"><div>{"".join(tables)}</div>{_curve(found)}</div>'


def _evaluated(found: Json, specs: Sequence[str]) -> str:
    parents = [value for value in found["rows"]["parents"] if _finite(value)]
    mean = sum(parents) / len(parents) if parents else None
    named = [*zip(specs, found["rows"]["parents"], strict=False)]
    named += [(NAMES.get(key, key), value) for key, value in found["rows"].items() if key != "parents"]
    better = "the higher the better" if found["higher_is_better"] else "the lower the better"
    rows: list[list[Cell]] = [
        [name, value, None if value is None or mean is None else value - mean] for name, value in named
    ]
    head = ["", f"{found['metric']} ({better})", "against the models' mean"]
    return table(head, rows, strong=[1], digits=_digits(parents))


def _curve(found: Json) -> str:
    curve, rows = found["curve"], found["rows"]
    drawn = [(BEFORE, "a", curve.get("before")), (AFTER, "b", curve.get("after"))]
    lines = [
        Line(name, style, tuple((x, y) for x, y in zip(curve["points"], values, strict=True) if _finite(y)))
        for name, style, values in drawn
        if values
    ]
    marks = [Mark("fused", "c", (0.5, rows["fused"]))] if _finite(rows.get("fused")) else []
    values = [y for line in lines for _, y in line.points] + [mark.point[1] for mark in marks]
    picture = chart(
        f"{found['metric']} between the models", lines, marks,
        across=("share of the last model", 0.0, 1.0), up=(found["metric"], *rounded(values)), unit="",
        digits=_digits(values),
    )  # fmt: skip
    key = legend([(line.name, line.style, "line") for line in lines] + [(m.name, m.style, "diamond") for m in marks])
    words = "Along the straight line between the weights of the first model and those of the last."
    return figures([("From one model to the other", key + picture, words)])


def _specs(report: Json) -> list[str]:
    return [str(x) for x in report.get("specs") or (f"model {k}" for k in range(len(report["models"])))]


def _digits(values: Sequence[float]) -> int:
    """Decimals with which values are told apart: three digits in all, about."""
    largest = max((abs(value) for value in values), default=0.0)
    return 1 if largest >= 20 else 2 if largest >= 5 else 3 if largest >= 0.05 else 5


def _finite(value: float | None) -> bool:
    return value is not None and math.isfinite(value)


def _figure(value: float | None) -> str:
    return "–" if value is None else f"{value:.{_digits([value])}f}"
