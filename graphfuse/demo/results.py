"""What the demo measured, as plain values; every sentence about it is computed from them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from statistics import mean
from typing import Any

CLOSE = 3.0
"""Points of accuracy below the mean of its parents within which a fused model counts as close to them."""


@dataclass(frozen=True)
class PairResult:
    """One fusion, by accuracies in percent on the test images; None is what does not exist for models of two widths.

    ``plain`` is the average of the weights as they are; ``plain_statistics`` the same with its batch norms re-estimated
    (None without batch norm); ``plain_calibrated`` the same calibrated just as the fused models are, so that what
    remains between it and ``hard`` is owed to the alignment; ``aligned`` the average after alignment and before
    calibration. ``tuned`` holds what the same fine-tuning makes of the best parent, the plain average and the fused
    model. Curves have eleven points, from the first parent to the last.
    """

    name: str
    title: str
    parents: tuple[str, ...]
    accuracies: tuple[float, ...]
    ensemble: float
    plain: float | None
    plain_statistics: float | None
    plain_calibrated: float | None
    aligned: float
    hard: float
    soft: float
    tuned: Mapping[str, float | None]
    plain_curve: tuple[float, ...] | None
    aligned_curve: tuple[float, ...]
    seconds: float
    report: Mapping[str, Any] = field(default_factory=dict)

    @property
    def parents_mean(self) -> float:
        """Mean accuracy of the parents."""
        return mean(self.accuracies)

    def gap(self, accuracy: float) -> float:
        """By how many points an accuracy is below the mean of the parents."""
        return self.parents_mean - accuracy

    @property
    def close(self) -> bool:
        """Whether fusing as it is by default (hard) comes close to the parents."""
        return round(self.gap(self.hard), 1) <= CLOSE

    def remarks(self) -> list[str]:
        """What the numbers say, good and bad, in plain words."""
        return [*_against_parents(self), *_against_plain(self), *_after_tuning(self)]

    def to_json(self) -> dict[str, Any]:
        """The fields, as data that ``json.dumps`` takes."""
        return asdict(self)

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> PairResult:
        """The inverse of :meth:`to_json`."""
        given: dict[str, Any] = {key: tuple(x) if isinstance(x, list) else x for key, x in fields.items()}
        return cls(**given)


@dataclass(frozen=True)
class DemoResult:
    """The whole demo: its pairs, the labelled graph of each kind of network, and how it was made."""

    pairs: tuple[PairResult, ...]
    graphs: Mapping[str, Mapping[str, Any]]
    networks: tuple[Mapping[str, Any], ...]
    seed: int
    steps: int
    test_size: int
    unlabelled: int
    seconds: Mapping[str, float]
    versions: Mapping[str, str]
    notes: tuple[str, ...] = ()

    def summary(self) -> str:
        """The outcome in two or three sentences."""
        close = [pair for pair in self.pairs if pair.close]
        words = [
            f"{len(self.pairs)} fusions of networks trained apart, on {self.unlabelled} unlabelled images and with no "
            f"line of code that knows their architecture: {_count(len(close), len(self.pairs))} within {CLOSE:.0f} "
            "points of the mean accuracy of their parents in one shot."
        ]
        far = [f"{pair.title} ({pair.gap(pair.hard):.1f} below)" for pair in self.pairs if not pair.close]
        if far:
            words.append(f"{'The exception' if len(far) == 1 else 'Exceptions'}: {', '.join(far)}.")
        plain = [pair.plain for pair in self.pairs if pair.plain is not None]
        if plain:
            words.append(f"Averaging the weights as they are gives {min(plain):.1f} to {max(plain):.1f}%.")
        return " ".join(words)

    def to_json(self) -> dict[str, Any]:
        """Everything, as data that ``json.dumps`` takes."""
        return {**asdict(self), "pairs": [pair.to_json() for pair in self.pairs]}


def _count(some: int, every: int) -> str:
    return f"all {every} come" if some == every else f"{some or 'none'} of {every} come{'s' * (some == 1)}"


def _against_parents(pair: PairResult) -> list[str]:
    def clause(accuracy: float) -> str:
        gap = round(pair.gap(accuracy), 1)
        place = f"{gap:.1f} points below" if gap > 0 else f"{-gap:.1f} points above"
        return f"{place} the mean of the parents" if gap else "just at the mean of the parents"

    gaps = [round(pair.gap(accuracy), 1) for accuracy in (pair.hard, pair.soft)]
    words = f"Fused in one shot: hard {clause(pair.hard)}, soft {clause(pair.soft)}"
    if max(gaps) <= CLOSE:
        verdict = f"both within {CLOSE:.0f} points."
    elif min(gaps) > CLOSE:
        verdict = f"neither is within {CLOSE:.0f} points."
    else:
        verdict = f"only {'hard' if gaps[0] < gaps[1] else 'soft'} is within {CLOSE:.0f} points."
    best = max(pair.accuracies)
    beyond = best - max(pair.hard, pair.soft)
    against = f"The better of them is {beyond:.1f} below the best parent." if beyond > 0.05 else (
        "The better of them reaches the best parent."
    )  # fmt: skip
    return [f"{words}; {verdict} {against}"]


def _against_plain(pair: PairResult) -> list[str]:
    if pair.plain is None or pair.plain_calibrated is None:
        return ["The widths differ, so there is no plain average."]
    remarks = []
    if pair.plain_statistics is not None:
        remarks.append(
            f"The plain average of {pair.plain:.1f}% becomes {pair.plain_statistics:.1f}% when its batch norms are "
            "re-estimated on the same images."
        )
    gain = pair.hard - pair.plain_calibrated
    if gain > 1:
        remarks.append(f"Of the calibrated models the aligned one is {gain:.1f} points better: that is the alignment.")
    else:
        remarks.append(
            f"Calibration without alignment reaches {pair.plain_calibrated:.1f}%: here alignment adds "
            f"{'little' if gain > 0 else 'nothing'} to it."
        )
    return remarks


def _after_tuning(pair: PairResult) -> list[str]:
    fused, parent = pair.tuned["fused"], pair.tuned["parent"]
    if fused is None or parent is None:
        return []
    ahead = round(fused - parent, 1)
    words = "level with" if not ahead else f"{abs(ahead):.1f} points {'ahead of' if ahead > 0 else 'behind'}"
    return [f"After the same fine-tuning the fused model is {words} the best parent."]
