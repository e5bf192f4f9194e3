"""The pages on the command line and the config: their commands succeed, their Python runs, every key is there.

``python tests/test_cli_docs.py`` writes the keys of docs/config.md anew.
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch
import typer
from helpers import importable

from graphfuse.cli import main
from graphfuse.cli.commands import app
from graphfuse.config.starter import reference
from graphfuse.io.checkpoints import save_state
from graphfuse.io.models import load_model

DOCS = Path(__file__).parents[1] / "docs"
KEYS = re.compile(r"<!-- keys -->\n.*<!-- /keys -->", re.DOTALL)


def text_of(page: str) -> str:
    return (DOCS / page).read_text(encoding="utf-8")


def keys_in(page: str) -> str:
    return KEYS.sub(lambda _: f"<!-- keys -->\n\n{reference()}\n\n<!-- /keys -->", page)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What the pages say is there."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "nets.py").write_text(
        next(iter(re.findall(r"```python\n# nets.py\n(.*?)```", text_of("cli.md"), re.DOTALL)))
    )
    with importable(tmp_path):
        for name in "ab":
            save_state(tmp_path / f"{name}.safetensors", load_model("nets:net").model.state_dict())
    x = np.random.default_rng(0).normal(size=(96, 12)).astype("float32")
    np.savez(tmp_path / "inputs.npz", x=x)
    np.savez(tmp_path / "test.npz", x=x, labels=(x[:, 0] > 0).astype("int64"))
    return tmp_path


@pytest.mark.parametrize(("page", "commands"), [("cli.md", 15), ("config.md", 3)])
def test_the_commands_of_a_page_succeed_and_its_python_runs(
    page: str, commands: int, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ran = 0
    with importable(folder):
        for kind, text in re.findall(r"```(\w+)\n(.*?)```", text_of(page), re.DOTALL):
            if kind == "yaml":
                (folder / "run.yaml").write_text(text)
            elif kind == "python" and not text.startswith("# nets.py"):
                torch.manual_seed(0)
                exec(compile(text, f"docs/{page}", "exec"), {})
            elif kind == "console":
                for line in text.strip().splitlines():
                    code = main(line.split()[1:])
                    printed = capsys.readouterr()
                    assert code == 0, f"{line}\n{printed.out}{printed.err}"
                    ran += 1
    assert ran == commands


def test_the_page_on_the_config_has_every_key() -> None:
    assert keys_in(text_of("config.md")) == text_of("config.md"), "python tests/test_cli_docs.py writes it anew"


def test_the_page_on_the_command_line_has_every_command() -> None:
    page = text_of("cli.md")
    for name in set(typer.main.get_command(app).commands) - {"demo"}:  # pyright: ignore[reportAttributeAccessIssue]
        assert f"graphfuse {name}" in page, name


def options(command: object) -> dict[str, tuple[str, ...]]:
    """Option -> its help and metavar."""
    found = {}
    for parameter in command.params:  # pyright: ignore[reportAttributeAccessIssue]
        for name in parameter.opts:
            if name.startswith("--"):
                found[name] = (str(parameter.help), str(parameter.metavar))
    return found


def test_flags_mean_the_same_in_every_command() -> None:
    own = {"--out", "--model", "--output", "--data", "--metric"}  # these say what the command makes of them
    seen: dict[str, tuple[str, ...]] = {}
    root = typer.main.get_command(app).commands  # pyright: ignore[reportAttributeAccessIssue]
    for name, group in root.items():
        for command in getattr(group, "commands", {name: group}).values():
            found = options(command)
            assert {"--json", "--debug"} <= set(found), name
            for flag, said in found.items():
                assert flag in own or seen.setdefault(flag, said) == said, (name, flag)


if __name__ == "__main__":
    (DOCS / "config.md").write_text(keys_in(text_of("config.md")), encoding="utf-8")
