"""The pages in docs/ say what is so: their Python runs and prints what is shown, their commands succeed."""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from helpers import importable, needs

from graphfuse.cli import main

DOCS = Path(__file__).parents[1] / "docs"
OTHERS = {"cli.md", "config.md", "errors.md"}  # run by test_cli_docs.py and test_errors.py
PAGES = sorted({str(path.relative_to(DOCS)) for path in DOCS.rglob("*.md")} - OTHERS)
EXPECTED = {"graphfuse rules missing nets:net": 1}  # the exit code of a command that finds what the page is about
NEEDED = {"checkpoints.md": ("torchvision", "PIL", "transformers")}
FENCE = re.compile(r"^( *)```(\w*)\n(.*?)^\1```", re.DOTALL | re.MULTILINE)


def blocks_of(page: str) -> list[tuple[str, str]]:
    """(language, text) of the code blocks of a page."""
    return [(kind, text) for _, kind, text in FENCE.findall((DOCS / page).read_text(encoding="utf-8"))]


def commands_of(text: str) -> list[str]:
    """The commands of a console block, lines that go on put together."""
    return [line for line in text.replace("\\\n", " ").splitlines() if line.strip()]


@pytest.mark.parametrize("page", [page for page in PAGES if blocks_of(page)])
def test_the_blocks_of_a_page_run_and_print_what_they_show(
    page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Blocks that begin with a file's name are written there; text is what the Python or console block above prints."""
    if page in NEEDED:
        needs(*NEEDED[page]).logging.disable_progress_bar()
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    names: dict[str, object] = {"torch": torch}
    printed = ""
    with importable(tmp_path):
        for kind, text in blocks_of(page):
            name = re.match(r"# (\S+\.(py|yaml))\n", text)
            if name is not None:
                (tmp_path / name[1]).write_text(text)
            elif kind == "python":
                exec(compile(text, f"docs/{page}", "exec"), names)
                printed = capsys.readouterr().out
            elif kind == "console":
                printed = ""
                for line in commands_of(text):
                    program, *words = line.split()
                    assert program == "graphfuse", f"{page}: a console block runs graphfuse alone: {line}"
                    code = main(words)
                    found = capsys.readouterr()
                    assert code == EXPECTED.get(line, 0), f"{line}\n{found.out}{found.err}"
                    printed += found.out
            elif kind == "text":
                for line in text.strip().splitlines():
                    assert line in printed, f"{line}\n{printed}"
            elif kind == "toml":
                assert tomllib.loads(text)
            elif kind == "yaml":
                assert yaml.safe_load(text)
            else:
                raise AssertionError(f"{page}: a block of the kind {kind!r} that nothing checks")


def cells_of(notebook: Path) -> list[dict[str, Any]]:
    """The code cells of a notebook."""
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    return [cell for cell in cells if cell["cell_type"] == "code"]


QUICK = {"symmetry", "operator"}  # the others train networks
NOTEBOOKS = sorted((DOCS / "gallery").glob("*.ipynb"))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "notebook",
    [pytest.param(path, id=path.stem, marks=[] if path.stem in QUICK else [pytest.mark.zoo]) for path in NOTEBOOKS],
)
def test_a_notebook_runs(notebook: Path) -> None:
    names: dict[str, object] = {"__name__": notebook.stem}
    for number, cell in enumerate(cells_of(notebook), start=1):
        exec(compile("".join(cell["source"]), f"{notebook.name}[{number}]", "exec"), names)


def test_notebooks_were_run_from_top_to_bottom_and_kept_what_they_printed() -> None:
    assert len(NOTEBOOKS) == 5
    for notebook in NOTEBOOKS:
        cells = cells_of(notebook)
        assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1)), notebook
        assert not any(out["output_type"] == "error" for cell in cells for out in cell["outputs"]), notebook
        for cell in cells:
            if "print(" in "".join(cell["source"]):
                assert any(out.get("name") == "stdout" for out in cell["outputs"]), cell["source"]
