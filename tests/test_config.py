"""Configs: what is accepted, and what the errors say."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from graphfuse.config import CalibrateConfig, FuseConfig, RoleConfig
from graphfuse.errors import ConfigError


def test_none_means_the_defaults() -> None:
    config = FuseConfig.parse(None)
    assert (config.method, config.solver, config.target, config.weights) == ("default", "assignment", 0, None)
    assert config.calibrate.least_squares


def test_a_dict_a_file_and_a_config_give_the_same(tmp_path: Path) -> None:
    given = {"solver": "sinkhorn", "weights": [1, 3], "roles": {"heads": {"align": False}}}
    path = tmp_path / "fuse.yaml"
    path.write_text("solver: sinkhorn\nweights: [1, 3]\nroles: {heads: {align: false}}\n")
    config = FuseConfig.parse(given)
    assert FuseConfig.parse(path) == FuseConfig.parse(str(path)) == FuseConfig.parse(config) == config


def test_an_empty_file_means_the_defaults(tmp_path: Path) -> None:
    (tmp_path / "empty.yaml").write_text("")
    assert FuseConfig.parse(tmp_path / "empty.yaml") == FuseConfig.parse(None)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"solvr": "emd"}, ["unknown key 'solvr'", "did you mean 'solver'?"]),
        ({"calibrate": {"ridg": 1}}, ["unknown key 'calibrate.ridg'", "did you mean 'ridge'?"]),
        ({"roles": {"heads": {"algn": True}}}, ["unknown key 'roles.heads.algn'", "did you mean 'align'?"]),
        ({"ridge": 1}, ["unknown key 'ridge'", "did you mean 'calibrate.ridge'?"]),
        ({"xyzzy": 1}, ["unknown key 'xyzzy'", "valid: anneal, blend, budget"]),
        ({"solver": "em"}, ["solver", "'assignment', 'emd' or 'sinkhorn'", "got 'em'"]),
        ({"weights": [0, 0]}, ["weights must not all be zero"]),
        ({"weights": [-1, 2]}, ["weights.0", "greater than or equal to 0", "got -1"]),
        ({"regularization": 0}, ["regularization", "greater than 0"]),
        ({"samples": 0, "seed": -1}, ["samples", "seed"]),
        ([1, 2], ["expected a mapping of settings, got list"]),
    ],
)
def test_errors_name_the_key_and_the_nearest_valid_one(given: Any, words: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        FuseConfig.parse(given)
    for word in words:
        assert word in str(caught.value)


def test_a_bad_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"missing\.yaml: cannot be read"):
        FuseConfig.parse(tmp_path / "missing.yaml")
    (tmp_path / "bad.yaml").write_text("a: [1")
    with pytest.raises(ConfigError, match=r"bad\.yaml: is not valid YAML"):
        FuseConfig.parse(tmp_path / "bad.yaml")


def test_an_axis_takes_settings_by_its_name_then_its_role_then_the_whole() -> None:
    roles = {"heads": {"solver": "emd"}, "heads.1": {"align": False}}
    config = FuseConfig.parse({"solver": "sinkhorn", "regularization": 0.2, "roles": roles})
    assert config.for_axis("heads.0", "heads") == RoleConfig(align=True, solver="emd", regularization=0.2)
    assert config.for_axis("heads.1", "heads") == RoleConfig(align=False, solver="sinkhorn", regularization=0.2)
    assert config.for_axis("hidden.0", "hidden") == RoleConfig(align=True, solver="sinkhorn", regularization=0.2)


@pytest.mark.parametrize("model", [FuseConfig, RoleConfig, CalibrateConfig])
def test_every_setting_is_described(model: type[FuseConfig]) -> None:
    for name, entry in model.model_json_schema()["properties"].items():
        assert len(entry.get("description", "")) > 15, name
