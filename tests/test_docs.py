"""The pages in docs/ say what is so: their Python runs, their rules prove themselves, their commands succeed."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
import torch
from helpers import importable

from graphfuse.cli import main
from graphfuse.io.pretrained import import_transformers


def blocks_of(page: str) -> list[tuple[str, str]]:
    """(language, text) of the code blocks of a page."""
    text = (Path(__file__).parents[1] / "docs" / page).read_text(encoding="utf-8")
    return re.findall(r"```(\w+)\n(.*?)```", text, re.DOTALL)


EXPECTED = {"graphfuse rules missing nets:net": 1}  # the exit code of a command that finds what the page is about


def test_the_page_on_rules_from_the_note_to_the_passing_check(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    ran = 0
    with importable(tmp_path):
        for kind, text in blocks_of("rules.md"):
            name = re.match(r"# (\S+\.(py|yaml))\n", text)
            if name is not None:
                (tmp_path / name[1]).write_text(text)
            elif kind == "python":
                exec(compile(text, "docs/rules.md", "exec"), {"torch": torch})
            elif kind == "console":
                for line in text.strip().splitlines():
                    code = main(line.split()[1:])
                    printed = capsys.readouterr()
                    assert code == EXPECTED.get(line, 0), f"{line}\n{printed.out}{printed.err}"
                    ran += 1
                    if "missing" in line:
                        assert "mine.soft_scale.default: no rule" in printed.out
                        assert 'signature: "x[' in printed.out
            else:
                assert kind == "toml" and tomllib.loads(text)
    assert ran == 5


@pytest.mark.parametrize(("page", "lines"), [("correspondence.md", 14), ("flow.md", 1), ("report.md", 3)])
def test_pages_print_what_they_show(
    page: str, lines: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    printed, shown = "", 0
    for kind, text in blocks_of(page):
        if kind == "python":
            exec(compile(text, f"docs/{page}", "exec"), names)
            printed = capsys.readouterr().out
            continue
        for line in text.strip().splitlines():
            assert line in printed, f"{line}\n{printed}"
            shown += 1
    assert shown == lines


def test_the_page_on_checkpoints_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for library in ("torchvision", "transformers", "PIL"):
        pytest.importorskip(library, exc_type=ImportError)
    import_transformers().logging.disable_progress_bar()
    monkeypatch.chdir(tmp_path)
    ran, names = 0, dict[str, object]()
    with importable(tmp_path):
        for kind, text in blocks_of("checkpoints.md"):
            name = re.match(r"# (\S+\.py)\n", text)
            if name is not None:
                (tmp_path / name[1]).write_text(text)
            elif kind == "python":
                exec(compile(text, "docs/checkpoints.md", "exec"), names)
            else:
                assert kind == "console"
                for line in text.strip().splitlines():
                    code = main(line.split()[1:])
                    printed = capsys.readouterr()
                    assert code == 0, f"{line}\n{printed.out}{printed.err}"
                    ran += 1
    assert ran == 11
