"""The public face: what the package exports, and that no architecture is named in it."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import graphfuse
from graphfuse.alignment import prepare

PACKAGE = Path(graphfuse.__file__).parent
ARCHITECTURES = r"\b(vit|resnet\w*|bert|gpt\w*|llama\w*|swin|unet|convnext|mixtral|mamba|t5|vgg\w*|densenet)\b"


def test_everything_exported_exists_and_is_documented() -> None:
    assert sorted(graphfuse.__all__) == graphfuse.__all__
    for name in graphfuse.__all__:
        assert getattr(graphfuse, name).__doc__


def test_align_takes_what_prepare_takes() -> None:
    """One signature, written once; each parameter is documented."""
    own, source = inspect.signature(graphfuse.align), inspect.signature(prepare)
    assert own.parameters == source.parameters
    assert own.return_annotation == "Alignment"
    for name in own.parameters:
        assert re.search(rf"^    (.*, )?{name}\b.* :", graphfuse.align.__doc__ or "", re.MULTILINE), name


def test_no_architecture_is_named_outside_the_demo() -> None:
    """A special case for one model is a rule that is missing."""
    named = [
        f"{path.relative_to(PACKAGE)}:{number}: {line.strip()}"
        for path in sorted(PACKAGE.rglob("*.py"))
        if "demo" not in path.parts
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if re.search(ARCHITECTURES, line, re.IGNORECASE)
    ]
    assert not named, "\n".join(named)
