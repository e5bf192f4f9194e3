"""Matching holds little more than the largest table of costs, and what it does for that changes no result."""

from __future__ import annotations

import errno
import os
import tempfile
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from models import MLP, Decoder, ids
from test_align import planted, scaled
from torch import Tensor, nn
from torch.testing import assert_close
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from graphfuse.aligned import Alignment
from graphfuse.alignment import match, prepare
from graphfuse.carry import Labelled, in_source, in_target
from graphfuse.costs import moments
from graphfuse.costs.evidence import Problem
from graphfuse.costs.moments import Measure, gram, likeness, matched_correlation
from graphfuse.errors import DataError, OutputError
from graphfuse.scratch import Scratch
from graphfuse.transport import coordinate
from graphfuse.transport.softening import soften
from graphfuse.transport.solvers import assign, widened


class Held(TorchDispatchMode):
    """Counts the bytes of all storages that operators have made and that are still alive."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.most = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = {id(x.untyped_storage()) for x in pytree.tree_leaves((args, kwargs)) if isinstance(x, Tensor)}
        out = func(*args, **(kwargs or {}))
        for made in pytree.tree_leaves(out):
            if isinstance(made, Tensor) and made.device.type == "cpu" and id(made.untyped_storage()) not in given:
                size = made.untyped_storage().nbytes()
                self.now += size
                self.most = max(self.most, self.now)
                weakref.finalize(made.untyped_storage(), self._freed, size)
        return out

    def _freed(self, size: int) -> None:
        self.now -= size


def wide(seed: int) -> nn.Module:
    return scaled(MLP((5, 600, 3)), seed)


@pytest.mark.parametrize("sweeps", [1, 6])
def test_matching_by_weights_holds_little_more_than_the_largest_cost(sweeps: int, files: list[Any]) -> None:
    """A table in single precision beside one in double: one and a half; the double one is not there as a whole yet."""
    prepared = prepare([wide(1), wide(2)], torch.randn(2, 5), config={"sweeps": sweeps})
    with Held() as held:
        match(prepared)
    largest = 8 * 600**2
    assert largest < held.most < 1.75 * largest


def test_activations_are_matched_in_little_more_than_the_largest_cost(files: list[Any]) -> None:
    prepared = prepare([wide(1), wide(2)], data=[torch.randn(32, 5)])
    with Held() as held:
        match(prepared)
    largest = 8 * 600**2
    assert largest < held.most < 1.75 * largest


def maps(found: Alignment) -> list[Tensor]:
    return [entry.values for part in found.models for entry in part.maps.values()]


@pytest.fixture
def files(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """No table waits in memory; the files in which they do."""
    monkeypatch.setattr(coordinate, "ROOM", 0)
    monkeypatch.setattr(Problem, "largest", 0)
    made, real = list[Any](), tempfile.TemporaryFile

    def make(**options: Any) -> Any:
        made.append(real(**options))
        return made[-1]

    monkeypatch.setattr(tempfile, "TemporaryFile", make)
    return made


def deep(seed: int) -> nn.Module:
    return scaled(MLP((5, 300, 300, 300, 300, 3)), seed)


@pytest.mark.parametrize("method", ["weights", "activations"])
def test_tables_that_wait_are_not_in_memory(
    method: str, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    """Four axes: half a table of moments for each, or a quarter of a soft plan."""
    monkeypatch.setattr(moments, "PIECE", 1 << 13)
    x, largest, most = torch.randn(32, 5), 8 * 300**2, list[float]()
    config: dict[str, Any] = {"method": method, "sweeps": 4}
    prepared = prepare([deep(1), deep(2)], data=[x, 2 * x], config=config)
    for spills in (False, True):
        files = request.getfixturevalue("files") if spills else []
        with Held() as held:
            match(prepared)
        assert bool(files) == spills
        most.append(held.most / largest)
    assert most[1] < 1.75 < 2 < most[0]


@pytest.mark.parametrize(
    "config",
    [
        {"method": "weights"},
        {"method": "activations"},
        {"method": "activations", "metric": "euclidean", "solver": "sinkhorn"},
        {"method": "both"},
        {"method": "blend", "sweeps": 4},
        {"method": "activations", "driver": "flow"},
        {"method": "activations", "cost": {"importance": "activations"}},
        {"method": "both", "scheme": "cycle"},
    ],
    ids=str,
)
def test_tables_in_a_file_lead_to_the_same(config: dict[str, Any], request: pytest.FixtureRequest) -> None:
    models, x = [scaled(Decoder(16, 2, 2, 60), seed) for seed in (1, 2)], ids(8, vocabulary=31)
    prepared = prepare(models, data=[x, x.flip(0)], config=config)
    plain = match(prepared)
    files = request.getfixturevalue("files")
    found = match(prepared)
    assert files and all(file.closed for file in files)
    assert all(torch.equal(a, b) for a, b in zip(maps(found), maps(plain), strict=True))
    for id, agreement in found.models[1].agreement.items():
        assert agreement.value == pytest.approx(plain.models[1].agreement[id].value, abs=1e-6)


def test_the_file_is_gone_after_an_error(files: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    x = torch.randn(8, 5)
    prepared = prepare([deep(1), deep(2)], data=[x, x / 0], config={"method": "activations"})
    with pytest.raises(DataError, match="not finite"):
        match(prepared)
    assert [file.closed for file in files] == [True] and not list(tmp_path.iterdir())


def test_a_full_disk_is_an_error_that_says_where(
    files: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(**_: Any) -> Any:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(tempfile, "TemporaryFile", full)
    prepared = prepare([deep(1), deep(2)], data=[torch.randn(8, 5)], config={"method": "activations"})
    with pytest.raises(OutputError) as error:
        match(prepared)
    assert str(error.value) == (
        f"tables that matching needs later do not fit into {tmp_path}: No space left on device.\n"
        "  needed: 0.3 MiB so far\n"
        "  what to do: make room there, or let TMPDIR name a directory that has it"
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_a_table_is_read_as_it_was_written(dtype: torch.dtype) -> None:
    table = torch.randn(7, 3, 5).to(dtype)
    for room in (None, 0):
        with Scratch(room) as scratch:
            places = [scratch.place(table.shape, dtype) for _ in range(3)]
            assert not places[2].read().any()  # what was never written
            for k, place in enumerate(places):
                place.write(table + k)
            places[1].write(-table[2:4], 2)
            assert torch.equal(places[0].read(), table) and torch.equal(places[2].read(3, 5), table[3:5] + 2)
            assert torch.equal(places[1].read(1, 4), torch.cat([table[1:2] + 1, -table[2:4]]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_weights_compared_piece_by_piece_lead_to_the_same(monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype) -> None:
    model, x = scaled(Decoder(16, 2, 1, 60)).to(dtype), ids(8, vocabulary=31)
    prepared = prepare([model, planted(model, x)], x, config={"symmetry": "permutation"})
    whole = match(prepared)
    monkeypatch.setattr(moments, "PIECE", 50)
    cut = match(prepared)
    assert all(torch.equal(a, b) for a, b in zip(maps(whole), maps(cut), strict=True))
    for id, agreement in cut.models[1].agreement.items():
        assert agreement.value == pytest.approx(1, abs=1e-3)
        assert agreement.value == pytest.approx(whole.models[1].agreement[id].value, abs=1e-5)


@pytest.mark.parametrize("shape", [(7, 7), (2, 3, 5, 5), (1, 1), (600, 600), (0, 4, 4), (3, 9)])
def test_a_widened_table_is_the_same_in_double_precision(shape: tuple[int, ...]) -> None:
    table = torch.randn(shape)
    given = [table]
    found = widened(given)
    assert not given and found.dtype == torch.float64
    assert_close(found, table.double(), rtol=0, atol=0)


@pytest.mark.parametrize("measure", ["cosine", "squared", "euclidean"])
def test_correlations_are_read_off_the_table_that_took_the_place_of_the_moments(measure: Measure) -> None:
    a, b = torch.randn(50, 9) + torch.arange(9), 2 * torch.randn(50, 9) - 1
    b[:, 4] = 3  # constant: like nothing
    seen = gram(a, Labelled(b, (in_target(0), in_source(1))), 1, (), ())
    wanted = likeness(seen, "correlation")
    table = likeness(seen.copied(), measure, spend=True)
    assert_close(table, likeness(seen, measure), rtol=0, atol=0)
    index = assign(-table)
    found = matched_correlation(seen, index, table.gather(-1, index.unsqueeze(-1)).squeeze(-1), measure)
    assert_close(found.float(), wanted.gather(-1, index.unsqueeze(-1)).squeeze(-1), rtol=0, atol=1e-4)
    assert float(found.abs().max()) > 0.1


def test_costs_that_are_spent_give_the_same_coupling() -> None:
    cost = torch.randn(3, 8, 6)
    kept = cost.clone()
    wanted = soften(cost, 0.05)
    assert_close(cost, kept, rtol=0, atol=0)
    assert_close(soften(cost, 0.05, spend=True), wanted, rtol=0, atol=0)
    assert not torch.equal(cost, kept)
