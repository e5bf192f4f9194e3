"""Which ground cost and which solver fuse best: options measured on validation images, one record for each trial.

    python benchmarks/transport_options.py                  # mlp, resnet, vit of the demo; a few minutes on one core
    python benchmarks/transport_options.py --pairs vit --only sinkhorn --calibrate
    python benchmarks/transport_options.py --table          # from the records alone

Parents are the demo's (trained once, then cached). They are fused on the demo's unlabelled images and judged on 1,000
labelled images of its training set, which the parents have seen but fusing has not; the test images are not looked at.
``aligned`` is the accuracy of the average of the aligned weights (batch norms re-estimated), ``fused`` that after the
default calibration (with --calibrate).
"""

from __future__ import annotations

import argparse
import copy
import time
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import ot
import torch
from records import append, context, load, table
from torch import Tensor

from graphfuse.alignment import Prepared, match, prepare
from graphfuse.calibrate import calibrate
from graphfuse.capture import state_of
from graphfuse.config import FuseConfig
from graphfuse.demo import recipes
from graphfuse.demo.data import Split, Splits, batches
from graphfuse.demo.data import load as load_data
from graphfuse.demo.training import parents
from graphfuse.evaluation.states import restated
from graphfuse.fuse import average, shares_of
from graphfuse.lockstep import as_batch
from graphfuse.transport.sinkhorn import balanced

NAME = "transport_options"
PAGE = Path(__file__).parents[1] / "docs" / "transport.md"
VALIDATION = 1000
UNALIGNED = "not aligned"

TRIALS: dict[str, dict[str, Any]] = {
    "assignment, correlation (the default)": {},
    "assignment, cosine": {"metric": "cosine"},
    "assignment, euclidean raw": {"metric": "euclidean"},
    "assignment, euclidean centred": {"metric": "euclidean", "cost": {"activations": "centred"}},
    "assignment, euclidean z-scored": {"metric": "euclidean", "cost": {"activations": "standardised"}},
    "assignment, squared raw": {"metric": "squared"},
    "assignment, after the nonlinearity": {"cost": {"site": "post"}},
    "assignment, normalize max": {"cost": {"normalize": "max"}},
    "assignment, normalize mean": {"cost": {"normalize": "mean"}},
    "assignment, normalize log": {"cost": {"normalize": "log"}},
    "assignment, clip 0.5": {"cost": {"clip": 0.5}},
    "emd, importance activations": {"solver": "emd", "cost": {"importance": "activations"}},
    "emd, importance weights": {"solver": "emd", "cost": {"importance": "weights"}},
    "sinkhorn 0.1": {"solver": "sinkhorn", "regularization": 0.1},
    "sinkhorn 0.05": {"solver": "sinkhorn", "regularization": 0.05},
    "sinkhorn 0.02": {"solver": "sinkhorn", "regularization": 0.02},
    "sinkhorn 0.01": {"solver": "sinkhorn", "regularization": 0.01},
    "sinkhorn 0.003": {"solver": "sinkhorn", "regularization": 0.003},
    "sinkhorn entropy 0.1": {"solver": "sinkhorn", "scale": "entropy", "regularization": 0.1},
    "sinkhorn entropy 0.3": {"solver": "sinkhorn", "scale": "entropy", "regularization": 0.3},
    "sinkhorn absolute 0.08, z-scored, max (the paper's)": {
        "solver": "sinkhorn", "scale": "absolute", "regularization": 0.08, "metric": "euclidean",
        "cost": {"activations": "standardised", "normalize": "max"},
    },
    "unbalanced 0.02, mass 0.3": {"solver": "unbalanced", "regularization": 0.02, "mass": 0.3},
    "partial 0.9": {"solver": "partial", "share": 0.9},
    "partial 0.7": {"solver": "partial", "share": 0.7},
    "weights, assignment": {"method": "weights"},
    "weights, without biases": {"method": "weights", "cost": {"bias": False}},
    "weights, without gains": {"method": "weights", "cost": {"gains": False}},
    "blend, assignment": {"method": "blend"},
    "blend, normalize mean": {"method": "blend", "cost": {"normalize": "mean"}},
    UNALIGNED: {},
}  # fmt: skip
"""Name -> config."""


def validation(splits: Splits) -> Split:
    """Labelled images that fusing does not see."""
    return Split(splits.train.images[-VALIDATION:], splits.train.labels[-VALIDATION:])


def trial(
    prepared: Prepared, config: dict[str, Any], judged: Split, images: Tensor, calibrated: bool
) -> dict[str, Any]:
    """Accuracies of one setting before and, if asked for, after calibration, and the seconds that matching took."""
    settings = FuseConfig.parse(config)
    method = "activations" if settings.method == "auto" else settings.method
    prepared = replace(prepared, config=settings, method=method)
    began = time.perf_counter()
    alignment = match(prepared)
    seconds = time.perf_counter() - began
    shares = shares_of(prepared)
    state = average(prepared, alignment, shares)
    found = {"aligned": score(prepared, state, judged, images), "fused": None, "match_seconds": round(seconds, 3)}
    if calibrated:
        found["fused"] = score(prepared, calibrate(prepared, alignment, state, shares).state, judged, None)
    return found


def score(prepared: Prepared, state: Mapping[str, Tensor], judged: Split, images: Tensor | None) -> float:
    """Accuracy of the target with other weights; with images, the batch norms' statistics are those of the images."""
    model = copy.deepcopy(prepared.models[0])
    with torch.no_grad():
        for name, tensor in state_of(model).items():
            tensor.copy_(state[name])
    return recipes.accuracy(restated(model, map(as_batch, batches(images)) if images is not None else ()), judged)


def measure(names: list[str], seeds: list[int], folder: Path | None, only: list[str], calibrated: bool) -> None:
    """Run every trial on every pair and append one record for each."""
    splits = load_data()
    inputs, judged = batches(splits.unlabelled), validation(splits)
    for name in names:
        for seed in seeds:
            models = parents(name, seed=seed, folder=folder)
            prepared = prepare(models, data=inputs)
            accuracies = [round(recipes.accuracy(model, judged), 2) for model in models]
            for title, config in TRIALS.items():
                if only and not any(word in title for word in only):
                    continue
                roles = {axis.role: {"align": False} for axis in prepared.correspondence.free}
                given = {"roles": roles} if title == UNALIGNED else config
                found = trial(prepared, given, judged, splits.unlabelled, calibrated)
                append(NAME, {"pair": name, "seed": seed, "trial": title, "config": given, "parents": accuracies,
                              **found, "inputs": sum(map(len, inputs)), **context()})  # fmt: skip
                print(f"{name:8} {seed} {title:52} {shown(found)}", flush=True)


def shown(found: Mapping[str, Any]) -> str:
    """Figures of one trial, or of the mean of several."""
    fused = "-" if found["fused"] is None else f"{found['fused']:.1f}"
    return f"{found['aligned']:.1f} / {fused} / {found['match_seconds']:.1f} s"


def report() -> str:
    """Means over seeds, one row for each trial, the newest record of each."""
    newest = {(r["trial"], r["pair"], r["seed"]): r for r in load(NAME)}
    cells: dict[tuple[str, str], list[dict[str, Any]]] = defaultdict(list)
    for (title, pair, _), record in newest.items():
        cells[title, pair].append(record)
    pairs = list(dict.fromkeys(pair for _, pair in cells))
    rows = []
    for title in dict.fromkeys(title for title, _ in cells):
        row = [title]
        for pair in pairs:
            found = cells[title, pair]
            means = {key: [r[key] for r in found] for key in ("aligned", "fused", "match_seconds")}
            row.append(
                shown({key: None if None in x else sum(x) / len(x) for key, x in means.items()}) if found else "-"
            )
        rows.append(row)
    seeds = len({seed for _, _, seed in newest})
    return table([f"aligned / fused / matching, mean of {seeds}", *pairs], rows)


def sinkhorn(sizes: tuple[int, ...] = (128, 512), strengths: tuple[float, ...] = (0.05, 0.01, 0.003, 0.001)) -> None:
    """Processor seconds of a problem, here and by POT's log-domain rounds (2,000 at most); one record each."""
    for n in sizes:
        points = torch.randn(2, n, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(n))
        cost = torch.cdist(points[0], points[1]).square()
        cost = (cost - cost.min()) / (cost.max() - cost.min())
        even = cost.new_full((n,), 1 / n)
        for strength in strengths:
            began = time.process_time()
            ours = balanced(cost[None], cost.new_full((1,), strength), even[None], even[None], 1e-8)[0]
            middle = time.process_time()
            theirs = ot.sinkhorn(even, even, cost, strength, method="sinkhorn_log", numItermax=2000, stopThr=1e-8,
                                 warn=False)  # fmt: skip
            ended = time.process_time()
            found = {"seconds": middle - began, "pot_seconds": ended - middle}
            off = {key: float((plan.sum(0) - even).abs().sum())
                   for key, plan in (("error", ours), ("pot_error", torch.as_tensor(theirs)))}  # fmt: skip
            append(f"{NAME}_sinkhorn", {"size": n, "regularization": strength, **found, **off, **context()})


def sinkhorn_report() -> str:
    """The newest record of each size and regularisation."""
    newest = {(r["size"], r["regularization"]): r for r in load(f"{NAME}_sinkhorn")}
    rows = [[f"{n} x {n}", f"{strength}", f"{r['seconds']:.2f} s, {r['error']:.0e}",
             f"{r['pot_seconds']:.2f} s, {r['pot_error']:.0e}"] for (n, strength), r in newest.items()]  # fmt: skip
    return table(["problem", "regularisation", "here: seconds, mass misplaced", "2,000 log-domain rounds of POT"], rows)


def main() -> None:
    """Measure, then print the tables made from all records and write them into docs/transport.md."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", nargs="+", default=["mlp", "resnet", "vit"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--cache", type=Path, help="where trained parents are kept; by default the demo's cache")
    parser.add_argument("--only", nargs="+", default=[], help="trials whose name has one of these in it")
    parser.add_argument("--calibrate", action="store_true", help="also measure them after the default calibration")
    parser.add_argument("--sinkhorn", action="store_true", help="instead time the entropic solver")
    parser.add_argument("--table", action="store_true", help="only make the table")
    given = parser.parse_args()
    torch.set_num_threads(1)
    if given.sinkhorn:
        sinkhorn()
    elif not given.table:
        measure(given.pairs, given.seeds, given.cache, given.only, given.calibrate)
    print(report(), sinkhorn_report(), sep="\n\n")
    page = PAGE.read_text()
    for name, content in (("options", report()), ("sinkhorn", sinkhorn_report())):
        begin, end = f"<!-- {name} -->", f"<!-- /{name} -->"
        page = page[: page.index(begin)] + f"{begin}\n\n{content}\n\n" + page[page.index(end) :]
    PAGE.write_text(page)


if __name__ == "__main__":
    main()
