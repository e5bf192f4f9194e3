"""Every error that a wrong path, name, key, shape, dtype or architecture raises, as docs/errors.md has it.

``python tests/test_errors.py`` writes the messages of the page anew; look at the difference.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import importable
from torch import nn

from graphfuse.cli import main
from graphfuse.io.checkpoints import save_state
from graphfuse.io.models import load_model

PAGE = Path(__file__).parents[1] / "docs" / "errors.md"
CASE = re.compile(r"```console\n(?P<command>.*?)\n```\n\n```text\n(?P<message>.*?)\n```", re.DOTALL)
NETS = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, width=12):
        super().__init__()
        self.up, self.norm, self.down = nn.Linear(5, width), nn.LayerNorm(width), nn.Linear(width, 3)

    def forward(self, x):
        return self.down(torch.relu(self.norm(self.up(x))))

class Deep(nn.Module):
    def __init__(self, depth):
        super().__init__()
        self.up, self.layers = nn.Linear(5, 12), nn.Sequential(*(nn.Linear(12, 12) for _ in range(depth)))
        self.down = nn.Linear(12, 3)

    def forward(self, x):
        return self.down(self.layers(self.up(x)))

class Words(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.head = nn.Embedding(7, 4), nn.Linear(4, 7)

    def forward(self, ids):
        return self.head(self.embed(ids))

class Flipping(Net):
    def forward(self, x):
        return super().forward(x) * torch.rand(())

def net(width=12):
    return Net(width)

def deep():
    return Deep(4)

def shallow():
    return Deep(2)

def other():
    return nn.Sequential(nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 3))

def convolution():
    return nn.Conv2d(3, 4, 3)

def words():
    return Words()

def flipping():
    return Flipping()

def broken():
    raise RuntimeError("no such size")

def number():
    return 7

three = 3

def example_inputs():
    return torch.ones(2, 5)

def batches():
    return [torch.randn(16, 5, generator=torch.Generator().manual_seed(0)) for _ in range(4)]

def empty():
    return []

def strings():
    return ["cat.png"]

def one():
    return 1
"""
BARE = "from torch import nn\n\ndef net():\n    return nn.Linear(4, 2)\n"
RUN = "models: [nets:net@a.safetensors, nets:net@b.safetensors]\nbatchsize: 8\nsolver: em\ncalibrate:\n  rigde: 1\n"
PACK = (
    'version: 1\nrules:\n  - op: aten.linear.default\n    signature: "x[... i], w[o i] -> [... o"\n    source: a test\n'
)


def furnish(folder: Path) -> None:
    """The files that the page speaks of."""
    texts = {"nets.py": NETS, "bare.py": BARE, "run.yaml": RUN, "pack.yaml": PACK, "syntax.yaml": "solver: [emd\n",
             "twice.yaml": "seed: 1\nseed: 2\n", "list.yaml": "- emd\n", "full/theirs": "", "empty/keep": "",
             "broken.py": "import nothing_of_this_name\n", "notes.txt": "a text\n"}  # fmt: skip
    for name, text in texts.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text)
    torch.manual_seed(0)
    for name in ("a", "b"):
        save_state(folder / f"{name}.safetensors", load_model("nets:net").model.state_dict())
    state = dict(load_model("nets:net@a.safetensors").model.state_dict())
    save_state(folder / "wide.safetensors", load_model("nets:net,width=20").model.state_dict())
    save_state(folder / "short.safetensors", {name: value for name, value in state.items() if name != "up.bias"})
    save_state(folder / "more.safetensors", state | {"head.weight": torch.zeros(2)})
    save_state(folder / "nan.safetensors", state | {"up.bias": torch.full((12,), float("nan"))})
    (folder / "damaged.safetensors").write_bytes((folder / "a.safetensors").read_bytes()[:200])
    (folder / "text.pt").write_text("no weights")
    torch.save(nn.Linear(2, 2), folder / "pickle.pt")
    torch.save({"epoch": 3, "lr": 0.1}, folder / "progress.pt")
    rng = np.random.default_rng(0)
    np.savez(folder / "inputs.npz", x=rng.normal(size=(40, 5)).astype("float32"))
    np.savez(folder / "seven.npz", x=np.ones((4, 7), "float32"))
    np.savez(folder / "whole.npz", x=np.ones((4, 5), "int64"))
    np.savez(folder / "ids.npz", x=np.full((4, 3), 9, "int64"))
    np.savez(folder / "ragged.npz", x=np.ones((4, 5)), mask=np.ones(3))
    np.savez(folder / "names.npz", pixels=np.ones((4, 5)), mask=np.ones((4, 5)))
    np.savez(folder / "none.npz", x=np.ones((0, 5)))
    np.savez(folder / "objects.npz", x=np.array([{"a": 1}]))
    np.savez(folder / "hole.npz", x=np.full((4, 5), np.nan))
    np.savez(folder / "test.npz", x=np.ones((4, 5), "float32"), labels=np.ones((4, 2), "int64"))
    main(["align", "nets:net@a.safetensors", "nets:net@b.safetensors", "-o", "ab.safetensors", "--json"])


@contextlib.contextmanager
def here(folder: Path) -> Iterator[None]:
    before = Path.cwd()
    os.chdir(folder)
    try:
        with importable(folder), contextlib.redirect_stdout(io.StringIO()):
            furnish(folder)
            yield
    finally:
        os.chdir(before)


def failure(command: str, folder: Path) -> tuple[int, str, str]:
    """Exit code, the error as the page has it, and what was said to a person."""
    words = shlex.split(command)[1:]
    said, shown = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(shown):
        code = main([*words, "--json"])
    found: Any = json.loads(said.getvalue())
    error = found.get("error", {"type": "no error", "message": ""})
    return code, f"{error['type']}: {error['message']}".replace(str(folder), "/here"), shown.getvalue()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    found = tmp_path_factory.mktemp("errors").resolve()
    with here(found):
        yield found


def sections() -> dict[str, list[tuple[str, str]]]:
    parts = re.split(r"\n## ", PAGE.read_text(encoding="utf-8"))[1:]
    return {part.partition("\n")[0]: [(m["command"], m["message"]) for m in CASE.finditer(part)] for part in parts}


@pytest.mark.parametrize("section", sections())
def test_every_error_is_the_message_on_the_page_and_leaves_nothing_behind(section: str, folder: Path) -> None:
    cases = sections()[section]
    assert cases
    before = {path for path in folder.rglob("*") if "__pycache__" not in str(path)}
    for command, message in cases:
        code, found, shown = failure(command, folder)
        assert found == message, command
        assert code == (2 if found.startswith("UsageError") else 1), command
        assert "Traceback" not in shown and "defect" not in found, command
        assert {path for path in folder.rglob("*") if "__pycache__" not in str(path)} == before, command


def test_a_person_sees_one_panel_and_no_traceback(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", "nowhere/at/all"]) == 1
    said = capsys.readouterr()
    assert not said.out and "Traceback" not in said.err and "ModelSpecError" in said.err
    assert main(["inspect", "nowhere/at/all", "--debug"]) == 1
    assert "Traceback (most recent call last)" in capsys.readouterr().err


if __name__ == "__main__":
    import tempfile

    with tempfile.TemporaryDirectory() as name:
        place = Path(name).resolve()
        with here(place):
            page = CASE.sub(
                lambda m: f"```console\n{m['command']}\n```\n\n```text\n{failure(m['command'], place)[1]}\n```",
                PAGE.read_text(encoding="utf-8"),
            )
    PAGE.write_text(page, encoding="utf-8")
    sys.exit(0)
