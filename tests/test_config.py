"""Configs: what is accepted, and what the errors say."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from graphfuse.config import (
    CalibrateConfig,
    CostConfig,
    FilterConfig,
    FuseConfig,
    LossFilter,
    RoleConfig,
    RunConfig,
    Window,
)
from graphfuse.config.base import RUN_KEYS, Settings
from graphfuse.config.reading import problems, read
from graphfuse.config.starter import schema, starter
from graphfuse.errors import ConfigError


def test_none_means_the_defaults() -> None:
    config = FuseConfig.parse(None)
    assert (config.method, config.solver, config.target, config.weights) == ("default", "assignment", 0, None)
    assert config.calibrate.method == "least_squares"


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
        ({"solver": "em"}, ["solver", "'assignment', 'emd', 'sinkhorn', ", "got 'em'"]),
        ({"weights": [0, 0]}, ["weights must not all be zero"]),
        ({"weights": [-1, 2]}, ["weights.0", "greater than or equal to 0", "got -1"]),
        ({"regularization": 0}, ["regularization", "greater than 0"]),
        ({"samples": 0, "seed": -1}, ["samples", "seed"]),
        ({"cost": {"normalise": "max"}}, ["unknown key 'cost.normalise'", "did you mean 'normalize'?"]),
        ({"clip": 0.9}, ["unknown key 'clip'", "did you mean 'cost.clip'?"]),
        ({"cost": {"clip": 1.5}}, ["cost.clip", "less than 1"]),
        ({"cost": {"activations": "centered"}}, ["cost.activations", "'centred'", "got 'centered'"]),
        ({"filter": {"token": "first"}}, ["unknown key 'filter.token'", "did you mean 'tokens'?"]),
        ({"filter": {"tokens": "frist"}}, ["filter.tokens", "did you mean 'first'?"]),
        ({"filter": {"tokens": {"strt": 1}}}, ["filter.tokens", "unknown key 'strt'; did you mean 'start'?"]),
        ({"filter": {"tokens": {"centre": 2, "start": 1}}}, ["give either centre or start and stop"]),
        ({"filter": {"tokens": {"start": 3, "stop": 2}}}, ["no token is from 3 to before 2"]),
        ({"filter": {"loss": {"belw": 0.5}}}, ["unknown key 'filter.loss.belw'", "did you mean 'below'?"]),
        ({"filter": {"loss": {"below": 1.5}}}, ["filter.loss.below", "less than or equal to 1"]),
        ({"scale": "entropy", "regularization": 2}, ["the entropy aimed at, between 0 and 1, and not 2.0"]),
        ({"roles": {"heads": {"scale": "entropy", "regularization": 3}}}, ["between 0 and 1, and not 3.0"]),
        ({"share": 0}, ["share", "greater than 0"]),
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
    with pytest.raises(ConfigError, match=r"bad\.yaml: line 1, column \d+: is not valid YAML: expected"):
        FuseConfig.parse(tmp_path / "bad.yaml")


def test_an_axis_takes_settings_by_its_name_then_its_role_then_the_whole() -> None:
    roles = {"heads": {"solver": "emd"}, "heads.1": {"align": False}}
    config = FuseConfig.parse({"solver": "sinkhorn", "regularization": 0.2, "roles": roles})
    for name, role, expected in (
        ("heads.0", "heads", {"solver": "emd", "regularization": 0.2}),
        ("heads.1", "heads", {"align": False, "solver": "sinkhorn", "regularization": 0.2}),
        ("hidden.0", "hidden", {"solver": "sinkhorn", "regularization": 0.2}),
    ):
        rest = {"scale": "range", "mass": 1.0, "share": 0.9, "keep": 0.0}
        assert config.for_axis(name, role) == RoleConfig.model_validate({**rest, **expected})


def test_an_axis_has_its_own_scale_mass_and_share() -> None:
    own = {"scale": "entropy", "regularization": 0.3, "mass": 2.0, "share": 0.5}
    config = FuseConfig.parse({"roles": {"hidden": own}})
    assert config.for_axis("hidden.0", "hidden").model_dump(include=set(own)) == own
    assert config.for_axis("heads.0", "heads").scale == "range"


def test_a_function_may_score_inputs_and_is_named_in_reports() -> None:
    config = FuseConfig.parse({"filter": {"loss": {"below": 0.5, "score": len}}})
    assert config.filter.loss is not None
    assert config.filter.loss.score is len
    assert config.model_dump(mode="json")["filter"]["loss"]["score"] == "len"


@pytest.mark.parametrize(
    "model", [FuseConfig, RunConfig, RoleConfig, CalibrateConfig, CostConfig, FilterConfig, LossFilter, Window]
)
def test_every_setting_is_described(model: type[Settings]) -> None:
    for name, entry in model.model_json_schema()["properties"].items():
        assert len(entry.get("description", "")) > 15, name


# ------------------------------------------------------------------ the file of a whole run

RUN = """\
models: [a, b]
data: inputs.npz
batchsize: 16          # line 3
solver: em             # line 4
calibrate:
  ridge: low           # line 6
  metod: repair        # line 7
roles:
  heads:
    algn: false        # line 10
weights: [1, -1]       # line 11
"""


def test_all_errors_of_a_file_are_said_with_their_lines(tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text(RUN)
    found = problems(RunConfig, read(tmp_path / "run.yaml"))
    assert isinstance(found, tuple)
    assert [(problem.line, problem.key) for problem in found] == [
        (3, "batchsize"), (4, "solver"), (6, "calibrate.ridge"), (7, "calibrate.metod"), (10, "roles.heads.algn"),
        (11, "weights.1"),
    ]  # fmt: skip
    texts = [str(problem) for problem in found]
    assert texts[0] == "line 3: unknown key 'batchsize'; did you mean 'batch_size'?"
    assert texts[3] == "line 7: unknown key 'calibrate.metod'; did you mean 'method'?"
    assert texts[4] == "line 10: unknown key 'roles.heads.algn'; did you mean 'align'?"
    with pytest.raises(ConfigError) as caught:
        RunConfig.parse(tmp_path / "run.yaml")
    assert len(str(caught.value).splitlines()) == 6 and "run.yaml: line 11: weights.1: " in str(caught.value)


def test_a_key_that_is_said_twice_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text("solver: emd\nseed: 1\nsolver: sinkhorn\n")
    with pytest.raises(ConfigError, match=r"line 3: the key 'solver' was given before, on line 1"):
        FuseConfig.parse(tmp_path / "run.yaml")


def test_anchors_merges_and_circles_are_read(tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text("roles:\n  heads: &one {align: false}\n  gate: {<<: *one, keep: 0.5}\n")
    config = FuseConfig.parse(tmp_path / "run.yaml")
    assert not config.roles["gate"].align and config.roles["gate"].keep == 0.5
    (tmp_path / "circle.yaml").write_text("roles: &r\n  heads: *r\n")
    with pytest.raises(ConfigError, match="roles"):
        FuseConfig.parse(tmp_path / "circle.yaml")


def test_the_file_of_a_run_also_does_for_the_api(tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text("models: [a, b]\nsolver: emd\ndevice: cpu\n")
    run = RunConfig.parse(tmp_path / "run.yaml")
    assert run.models == ("a", "b")
    assert run.settings == FuseConfig.parse(tmp_path / "run.yaml") == FuseConfig.parse({"solver": "emd"})
    assert set(RUN_KEYS) == set(RunConfig.model_fields) - set(FuseConfig.model_fields)
    assert RunConfig.parse(run.settings).settings == run.settings


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"filter": {"tokens": {"centre": 6}, "loss": {"below": 0.5}}, "layers": {0: 1, "a.1": "b.2"}},
        {"models": ["a", "b"], "calibrate": {"ridge": 1e-5}, "weights": [0.1, 0.9], "roles": {"heads.0": {"keep": 0}}},
    ],
)
def test_what_is_written_is_read_again(given: dict[str, Any], tmp_path: Path) -> None:
    run = RunConfig.parse(given)
    (tmp_path / "config.yaml").write_text(run.to_yaml())
    again = RunConfig.parse(tmp_path / "config.yaml")
    assert again.to_yaml() == run.to_yaml()
    assert again.model_copy(update={"layers": {}}) == run.model_copy(update={"layers": {}})
    assert {str(key): value for key, value in run.layers.items()} == again.layers


@pytest.mark.parametrize("full", [False, True])
def test_the_starter_is_a_valid_file_of_defaults(full: bool) -> None:
    text = starter(full, "here.json")
    assert text.startswith("# yaml-language-server: $schema=here.json\n")
    value = yaml.safe_load(text)
    run = RunConfig.parse(value)
    assert run.settings == FuseConfig.parse(None)
    assert run.models and run.data and run.out
    assert (set(value) == set(RunConfig.model_fields)) is full
    jsonschema.validate(value, schema())


def test_the_schema_refuses_what_the_settings_refuse() -> None:
    jsonschema.Draft202012Validator.check_schema(schema())
    for given in ({"solvr": "emd"}, {"solver": "em"}, {"roles": {"heads": {"algn": True}}}, {"models": "a"}):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(given, schema())
        with pytest.raises(ConfigError):
            RunConfig.parse(given)
