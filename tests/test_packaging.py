"""The rule packs, which stand at the top of the repository, are found however graphfuse is installed."""

from __future__ import annotations

import json
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKS = {path.name: path.read_text(encoding="utf-8") for path in (ROOT / "rules").glob("*.yaml")}
PROBE = """
import importlib.resources, json, sys
import graphfuse, graphfuse.rules
from graphfuse.rulebook import load_rules
folder = importlib.resources.files("graphfuse.rules")
packs = {p.name: p.read_text(encoding="utf-8") for p in folder.iterdir() if p.name.endswith(".yaml")}
load_rules()
print(json.dumps({"at": graphfuse.__file__, "rules": graphfuse.rules.__file__, "packs": packs}))
"""


def run(*command: str, cwd: Path, **environment: str) -> str:
    done = subprocess.run(
        command, cwd=cwd, env={"PATH": "/usr/bin:/bin", **environment}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the sdist of this tree, and the wheel that is built from the sdist."""
    out = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", str(out), str(ROOT), cwd=out)
    return out


def probe(site: Path, away: Path) -> dict[str, str]:
    """Import graphfuse from ``site`` alone; ``-P`` and the folder keep this repository out of the path."""
    code = f"import sys; sys.meta_path = [f for f in sys.meta_path if 'editable' not in repr(f).lower()]\n{PROBE}"
    return json.loads(run(sys.executable, "-P", "-c", code, cwd=away, PYTHONPATH=str(site)))


def test_wheel_installs_the_packs(built: Path, tmp_path: Path) -> None:
    (wheel,) = built.glob("*.whl")
    site = tmp_path / "site"
    run(sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(site), str(wheel), cwd=tmp_path)
    found = probe(site, tmp_path)
    assert Path(found["at"]).is_relative_to(site) and Path(found["rules"]).is_relative_to(site)
    assert found["packs"] == PACKS and PACKS
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    assert "graphfuse/py.typed" in names
    assert not [name for name in names if name.startswith(("tests", "rules", "benchmarks"))]
    assert any(name.endswith("licenses/LICENSE") for name in names)


def test_sdist_carries_the_packs(built: Path, tmp_path: Path) -> None:
    (sdist,) = built.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        archive.extractall(tmp_path, filter="data")
    (tree,) = tmp_path.glob("graphfuse-*")
    assert {path.name: path.read_text(encoding="utf-8") for path in (tree / "rules").glob("*.yaml")} == PACKS


def test_the_source_tree_finds_its_own_packs(tmp_path: Path) -> None:
    found = json.loads(run(sys.executable, "-c", PROBE, cwd=tmp_path))
    assert found["packs"] == PACKS
    assert Path(found["rules"]).parent == ROOT / "rules"


def test_every_package_is_listed() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    folders = {path.parent for path in (ROOT / "graphfuse").rglob("*.py")}
    packages = {".".join(folder.relative_to(ROOT).parts) for folder in folders} | {"graphfuse.rules"}
    assert set(project["tool"]["setuptools"]["packages"]) == packages
    assert not [folder for folder in folders if not (folder / "__init__.py").exists()]


def test_the_constraints_pin_every_dependency() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pinned = {line.partition("==")[0].lower() for line in lines if not line.startswith("#")}
    wanted = project["dependencies"] + [name for extra in project["optional-dependencies"].values() for name in extra]
    names = {name.partition(">")[0].partition("[")[0].lower() for name in wanted} - {"graphfuse"}
    assert names <= pinned
