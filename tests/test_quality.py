"""The quality benchmark: parents are trained once, every cell leaves one record, tables come from the records."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch

sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))  # last: it has a module called coverage

from quality import data, methods, models, tasks, training
from quality.data import Data, Part
from quality.methods import Method
from quality.training import Kind, Recipe, Store

SEEDS = [(0, 1)]


def clouds(folder: Path) -> Data:
    """Three classes of points around three centres."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 3, (900,), generator=generator)
    points = torch.randn(900, 6, generator=generator) + 3 * torch.eye(3, 6)[labels]
    everything = Part(points, labels)
    train, val, test = (everything.take(slice(300 * i, 300 * (i + 1))) for i in range(3))
    return Data(train, val, test, 3)


def small(width: int) -> Kind:
    return Kind("clouds", lambda d: models.MLP(6, d.classes, width, 2), Recipe(60, 1e-2, 32))


@pytest.fixture(autouse=True)
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    """One small task, and one whose parents differ in width."""
    monkeypatch.setitem(training.LOADERS, "clouds", clouds)
    monkeypatch.setitem(training.KINDS, "small", small(16))
    monkeypatch.setitem(training.KINDS, "narrow", small(8))
    monkeypatch.setitem(tasks.TASKS, "clouds", tasks.Task("clouds", ("small", "small")))
    monkeypatch.setitem(tasks.TASKS, "widths", tasks.Task("narrow <- small", ("narrow", "small")))
    monkeypatch.setattr(methods, "STEPS", 5)
    monkeypatch.setattr(methods, "REFINE", {"refined": (128, 3), "longer": (256, 4)})


@pytest.fixture
def entry():
    """The script, which has the name of its package."""
    import importlib.util

    path = Path(__file__).parents[1] / "benchmarks" / "quality.py"
    spec = importlib.util.spec_from_file_location("quality_script", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def measured(entry, folder: Path, *options: str) -> list[dict]:
    entry.main(["--cache", str(folder), "--records", str(folder / "r.jsonl"), "--pairs", "1", *options])
    return [json.loads(line) for line in (folder / "r.jsonl").read_text().splitlines()]


def test_every_cell_leaves_a_record_and_stands_in_a_table(entry, tmp_path: Path, capsys) -> None:
    records = measured(entry, tmp_path, "--tasks", "clouds", "--methods", "parents,ensemble,plain,weights")
    cells = {(r["method"], r["stage"]): r for r in records}
    assert len(cells) == len(records)
    fused = {(method, stage) for method in ("plain", "weights") for stage in methods.STAGES}
    own = {("parents", stage) for stage in ("oneshot", "longer", "tuned")}
    assert set(cells) == fused | own | {("ensemble", "oneshot")}
    assert all(("test" in r) != ("skipped" in r) for r in records)
    assert all({"task", "pair", "seeds", "commit", "torch", "time"} <= set(r) for r in records)
    first, second = (one["test"] for one in cells["parents", "oneshot"]["each"])
    assert min(first, second) > 80
    losses = cells["weights", "barrier"]["losses"]
    assert len(losses) == methods.POINTS
    assert cells["weights", "barrier"]["test"] >= 0
    shown = capsys.readouterr().out
    assert f"{first:.1f} / {second:.1f}" in shown
    assert f"{cells['weights', 'oneshot']['test']:.1f}" in shown


def test_what_has_a_record_is_not_measured_again(entry, tmp_path: Path) -> None:
    options = ("--tasks", "clouds", "--methods", "parents,weights", "--stages", "oneshot")
    first = measured(entry, tmp_path, *options)
    assert measured(entry, tmp_path, *options) == first
    assert len(measured(entry, tmp_path, *options, "--again")) == 2 * len(first)


def test_auto_has_every_stage_and_refines_only_when_it_may(entry, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(methods, "METHODS", {"auto": Method("auto", ({"method": "auto", "budget": 1e-3},))})
    records = measured(entry, tmp_path, "--tasks", "clouds", "--methods", "auto", "--stages", "oneshot,refined")
    assert [r["config"]["refine"]["what"] for r in records] == ["none", "default"]
    assert records[0]["config"]["calibrate"] == methods.BARE and "calibrate" not in records[1]["config"]
    assert [r["samples"] for r in records] == [512, 128]


def test_widths_have_no_plain_average_and_say_so(entry, tmp_path: Path) -> None:
    records = measured(entry, tmp_path, "--tasks", "widths", "--methods", "plain,weights", "--stages", "oneshot")
    plain, weights = records
    assert "no plain average" in plain["skipped"]
    assert weights["test"] > 50


def test_a_parent_is_trained_once_and_the_same_seed_gives_the_same(tmp_path: Path) -> None:
    store = Store(tmp_path, tmp_path / "a")
    trained, known = training.parent("small", 3, store)
    again, about = training.parent("small", 3, store)
    assert known == about
    assert known["test"] == training.score(again, clouds(tmp_path).test, "accuracy")
    other, _ = training.parent("small", 3, Store(tmp_path, tmp_path / "b"))
    for a, b, c in zip(trained.parameters(), again.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b)
        assert torch.equal(a, c)


def test_another_recipe_trains_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(tmp_path, tmp_path)
    trained, _ = training.parent("small", 3, store)
    monkeypatch.setitem(training.KINDS, "small", Kind("clouds", training.KINDS["small"].build, Recipe(30, 1e-2, 32)))
    other, known = training.parent("small", 3, store)
    assert known["recipe"]["steps"] == 30
    assert not torch.equal(next(trained.parameters()), next(other.parameters()))


def test_shards_are_disjoint_skewed_and_all_of_it() -> None:
    part = Part(torch.arange(10_000.0), torch.arange(10_000) % 10)
    first, second = data.skewed(part, 0)
    assert sorted([*first.inputs.tolist(), *second.inputs.tolist()]) == part.inputs.tolist()
    counts = torch.stack([shard.targets.bincount(minlength=10) for shard in (first, second)])
    assert int((counts[0] > 850).sum()) == 5
    assert int((counts[1] > 850).sum()) == 5


def test_a_word_that_the_vocabulary_lacks_is_spelt() -> None:
    words = data.Vocabulary.of("the cat and the dog and the hen", 2)
    ids = words.encode(" the hen")
    names = {i: token for token, i in words.ids.items()}
    assert [names[i] for i in ids] == [" the", " ", "h", "e", "n"]


def test_a_file_that_is_nowhere_is_asked_for(tmp_path: Path) -> None:
    with pytest.raises(data.Unavailable, match=r"no file data\.noun; put it there"):
        data.found(tmp_path, data.NOUN)
