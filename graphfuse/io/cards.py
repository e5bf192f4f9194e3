"""Model cards: what a fused model is made of, how, and how it is loaded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from graphfuse.config import FuseConfig
from graphfuse.io.models import LoadedModel

CARD = "README.md"


def model_card(
    loaded: LoadedModel, specs: Sequence[str], report: Mapping[str, Any], metrics: Mapping[str, float] | None = None
) -> str:
    """The text of a ``README.md`` for a fused model, with the head that model hubs read.

    Parameters
    ----------
    loaded :
        The model whose form the result has.
    specs :
        The parents' names.
    report :
        As :func:`graphfuse.fuse` gives it.
    metrics :
        What was measured of the result, by name; left out where nothing was.
    """
    transformers = loaded.spec.kind == "transformers"
    head = {"library_name": "transformers" if transformers else "pytorch", "tags": ["graphfuse", "merge"]}
    parents = [
        f"| {_cell(spec)} | {one['class']} | {one['parameters']:,} | {one['share']:.3g} | "
        + ("yes |" if one["target"] else "|")
        for spec, one in zip(specs, report["models"], strict=False)
    ]
    config = report["config"]
    return "\n".join(
        [
            "---",
            yaml.safe_dump(head, sort_keys=False).strip(),
            "---",
            "",
            f"# {report['models'][0]['class']}, fused of {len(parents)}",
            "",
            "Made by graphfuse: the units of the models below were matched, their weights aligned and averaged"
            + (", and the result calibrated." if report.get("calibration") else "."),
            "",
            "| parent | class | parameters | share | target |",
            "| --- | --- | --- | --- | --- |",
            *parents,
            "",
            "## Method",
            "",
            *_method(config, report),
            "",
            *_metrics(metrics or {}),
            "## Loading",
            "",
            "```python",
            *_loading(loaded, report["models"][0]["class"]),
            "```",
            "",
            "## Settings",
            "",
            "```yaml",
            yaml.safe_dump(_chosen(config, FuseConfig.parse(None).model_dump(mode="json")), sort_keys=False).strip(),
            "```",
            "",
            "All others have their defaults; `report.json` has them all.",
            "",
        ]
    )


def _method(config: Mapping[str, Any], report: Mapping[str, Any]) -> list[str]:
    calibration = config.get("calibrate", {}).get("method", "none") if report.get("calibration") else "none"
    return [
        f"- solver {config.get('solver')}, scheme {config.get('scheme')}, symmetry {config.get('symmetry')}, "
        f"calibration {calibration}, seed {config.get('seed')}",
        f"- {report['inputs']} unlabelled inputs" if report.get("inputs") else "- no data: matched by weights alone",
        f"- {report['free_fraction']:.1%} of the parameters can be permuted",
        *(f"- {note}" for note in report.get("notes", ())),
    ]


def _chosen(config: Mapping[str, Any], usual: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that are not the defaults, and the seed."""
    found = {}
    for key, value in config.items():
        inner = usual.get(key)
        if isinstance(value, Mapping) and isinstance(inner, Mapping) and inner:
            value, inner = _chosen(value, inner), {}
        if value != inner or key == "seed":
            found[key] = value
    return found


def _metrics(metrics: Mapping[str, float]) -> list[str]:
    if not metrics:
        return []
    return ["## Metrics", "", *(f"- {name}: {value:.4g}" for name, value in metrics.items()), ""]


def _loading(loaded: LoadedModel, cls: str) -> list[str]:
    match loaded.spec.kind:
        case "transformers":
            return [f"from transformers import {cls}", "", f"model = {cls}.from_pretrained(FOLDER)  # this folder"]
        case "program":
            return [
                "import torch",
                "",
                'model = torch.export.load(f"{FOLDER}/model.pt2").module()  # FOLDER: this folder',
            ]
        case _:
            name = loaded.spec.text.removesuffix(f"@{loaded.spec.checkpoint}")
            return [
                "from graphfuse.io.models import load_model",
                "",
                f'model = load_model(f"{name}@{{FOLDER}}").model  # FOLDER: this folder',
            ]


def _cell(text: str) -> str:
    return f"`{text}`".replace("|", "\\|")
