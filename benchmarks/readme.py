"""Write the tables of the README and of docs/ from what was measured: the records of label.py, align.py,
coverage.py and quality.py, and the demo's demo.json where it is given.

python benchmarks/readme.py [demo-out/demo.json]
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import align
import coverage
import label
from quality import tasks
from quality.table import brief, show
from records import load, table

README = Path(__file__).parents[1] / "README.md"
QUALITY = README.parent / "docs" / "quality.md"
PUBLISHED = README.parent / "docs" / "published.md"
TRAINED = [task for task in tasks.TASKS if task not in tasks.PUBLISHED or task == "admet"]
HEAD = ["accuracy, %", "parents", "ensemble", "plain average", "plain, calibrated", "aligned", "hard", "soft"]


def demo_table(result: dict[str, Any]) -> str:
    """One row for each fusion of the demo."""
    return table(HEAD, [_row(pair) for pair in result["pairs"]])


def _row(pair: dict[str, Any]) -> list[str]:
    figures = [pair[key] for key in ("ensemble", "plain", "plain_calibrated", "aligned", "hard", "soft")]
    shown = ["-" if value is None else f"{value:.1f}" for value in figures]
    return [pair["title"], " / ".join(f"{value:.1f}" for value in pair["accuracies"]), *shown]


def filled(text: str, name: str, content: str) -> str:
    """The text with what stands between the markers of this name replaced."""
    begin, end = f"<!-- {name} -->", f"<!-- /{name} -->"
    pattern = re.compile(re.escape(begin) + ".*?" + re.escape(end), re.DOTALL)
    if not pattern.search(text):
        raise SystemExit(f"no markers {begin} ... {end}")
    return pattern.sub(lambda _: f"{begin}\n\n{content}\n\n{end}", text)


def main() -> None:
    """Fill all tables."""
    if len(sys.argv) > 2:
        raise SystemExit(__doc__)
    text = README.read_text()
    if len(sys.argv) == 2:
        text = filled(text, "demo", demo_table(json.loads(Path(sys.argv[1]).read_text())))
    text = filled(text, "label", label.show())
    text = filled(text, "align", align.show())
    text = filled(text, "coverage", coverage.counts())
    README.write_text(filled(text, "quality", brief(load("quality"), TRAINED)))
    coverage.DOCUMENT.write_text(coverage.document())
    PUBLISHED.write_text(filled(PUBLISHED.read_text(), "published", brief(load("quality"), tasks.PUBLISHED)))
    QUALITY.write_text(filled(QUALITY.read_text(), "quality", show(load("quality"))))


if __name__ == "__main__":
    main()
