"""Results as objects: they survive pickle and deepcopy and show themselves in notebooks; logging and progress."""

from __future__ import annotations

import copy
import logging
import pickle
from html.parser import HTMLParser
from typing import Any

import pytest
import torch
from models import MLP, Decoder, ids
from torch import Tensor, nn

import graphfuse
from graphfuse.tables import Table


class Branching(nn.Module):
    """Cannot be exported, as it asks for a value."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(5, 7), nn.Linear(7, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.up(x)
        return self.down(h.relu() if h.sum() != 0 else h)


MODELS: dict[str, tuple[Any, Any]] = {
    "perceptron": (MLP, lambda: torch.randn(16, 5)),
    "decoder": (lambda: Decoder(depth=1), lambda: ids(vocabulary=31)),
    "made by make_fx": (Branching, lambda: torch.randn(16, 5)),
}


def through_pickle(value: Any) -> Any:
    return pickle.loads(pickle.dumps(value))


@pytest.fixture(params=MODELS, scope="module")
def results(request: pytest.FixtureRequest) -> dict[str, Any]:
    torch.manual_seed(0)
    build, inputs = MODELS[request.param]
    a, b, x = build().eval(), build().eval(), inputs()
    graph = graphfuse.trace(a, (x,))
    fused = graphfuse.fuse([a, b], data=[x])
    found = {"graph": graph, "verification": graphfuse.verify(graph, 1), "fused": fused, "alignment": fused.alignment}
    found["comparison"] = graphfuse.compare(a, b, [x])
    if x.is_floating_point():
        found["evaluation"] = graphfuse.evaluate([a, b], fused, [(x, torch.arange(16) % 3)], points=3)
    return found


def test_results_survive_pickle_and_deepcopy(results: dict[str, Any]) -> None:
    for again in (through_pickle, copy.deepcopy):
        for name, value in results.items():
            found = again(value)
            assert type(found) is type(value) and str(found) == str(value), name
            assert found._repr_html_() == value._repr_html_()
        graph, fused = again(results["graph"]), again(results["fused"])
        assert graphfuse.verify(graph, 1) == results["verification"]
        assert graphfuse.fold_gains(graph).folds == graphfuse.fold_gains(results["graph"]).folds
        state, own = results["graph"].model.state_dict(), fused.alignment.apply(fused.model.state_dict(), 1)
        assert own.keys() == state.keys()
        for name, tensor in results["fused"].alignment.apply(fused.model.state_dict(), 1).items():
            assert torch.equal(own[name], tensor)


class Balanced(HTMLParser):
    """Fails where a tag is not closed; keeps the text."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.text: list[str] = []

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def test_results_show_themselves_in_notebooks(results: dict[str, Any]) -> None:
    shown = {"graph": "free axes", "verification": "verified: ", "fused": "fused of 2 models", "alignment": "agreement",
             "comparison": "linear CKA", "evaluation": "plain average"}  # fmt: skip
    for name, value in results.items():
        page = Balanced()
        page.feed(value._repr_html_())
        assert not page.open and shown[name] in " ".join(page.text)


def test_tables_are_lined_up_and_escaped() -> None:
    table = Table("a <title>", ("x", "longer"), (("1", "&"), ("234", "<b>")), ("a note",))
    assert str(table) == "a <title>\nx    longer\n1    &\n234  <b>\nnote: a note"
    assert "<b>" not in table.html() and "&lt;b&gt;" in table.html() and "&amp;" in table.html()


class Kept(logging.Handler):
    def __init__(self, records: list[logging.LogRecord]) -> None:
        super().__init__()
        self.records = records

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)


def test_stages_choices_and_notes_are_logged_and_nothing_is_configured() -> None:
    logger, records = logging.getLogger("graphfuse"), list[logging.LogRecord]()
    assert not logger.handlers and logger.level == logging.NOTSET
    handler = Kept(records)
    logger.addHandler(handler)
    logger.setLevel(logging.DEBUG)
    try:
        result = graphfuse.fuse([MLP(), MLP()], data=[torch.randn(32, 5)])
        graphfuse.verify(graphfuse.trace(result.model, (torch.randn(1, 5),)), 1)
    finally:
        logger.removeHandler(handler)
        logger.setLevel(logging.NOTSET)
    said = [(record.levelname, record.getMessage()) for record in records]
    text = "\n".join(message for _, message in said)
    for words in (
        "tracing 2 models, to be matched by both",
        "model 1 matched with model 0",
        "calibrated: 3 layers solved",
        "match: ",
        "verified: 2 free axes",
    ):
        assert words in text
    assert {level for level, _ in said} == {"INFO", "DEBUG"}
    assert all(record.name.startswith("graphfuse.") for record in records)


def test_progress_is_one_callback_everywhere() -> None:
    told: list[tuple[str, int, int]] = []

    def progress(stage: str, done: int, total: int) -> None:
        told.append((stage, done, total))

    a, b, x = MLP(), MLP(), torch.randn(32, 5)
    graphfuse.verify(graphfuse.trace(a, x), 2, progress=progress)
    graphfuse.align([a, b], data=[x], progress=progress)
    graphfuse.fuse([a, b], data=[x], config={"method": "auto", "budget": 0.1}, progress=progress)
    graphfuse.compare(a, b, [x], progress=progress)
    graphfuse.evaluate([a], None, [(x, torch.arange(32) % 3)], progress=progress)
    graphfuse.finetune(a, [x], lambda model, batch: model(batch).square().mean(), steps=2, progress=progress)
    stages = {stage for stage, _, _ in told}
    assert stages >= {"verify", "trace", "match", "activations", "calibrate", "search", "compare", "evaluate"}
    assert all(0 <= done <= total for _, done, total in told)
