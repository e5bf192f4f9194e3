"""Settings of the whole suite: one thread, a fixed seed for each test, quick and repeatable hypothesis."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from helpers import BARE, NETS, Run, importable
from hypothesis import HealthCheck, settings
from rich.console import Console

torch.set_num_threads(1)
settings.register_profile("suite", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("suite")


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Run]:
    """The command line in an empty folder that has two modules with models, cli_nets and cli_bare."""
    from graphfuse.cli import main

    (tmp_path / "cli_nets.py").write_text(NETS)
    (tmp_path / "cli_bare.py").write_text(BARE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("graphfuse.cli.console.out", Console(width=200))
    monkeypatch.setattr("graphfuse.cli.console.err", Console(width=200, stderr=True))

    def call(*words: str) -> tuple[int, str, str]:
        capsys.readouterr()
        code = main(words)
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    with importable(tmp_path):
        yield call


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)
