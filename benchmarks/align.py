"""Seconds and memory of an alignment, beside the matrix products and assignments that it cannot avoid.

    python benchmarks/align.py                              # every model but the largest, by weights and by activations
    python benchmarks/align.py vit-b/16 --method weights    # one of them
    python benchmarks/align.py llama-1.1b --sweeps 1        # 22 layers in bfloat16: some 6 GiB and many minutes
    python benchmarks/align.py --table                      # the table of the latest records

Two models of one shape with random weights, each measurement in a process of its own, in CPU seconds of one thread, so
that other work on the machine matters little. The matching is run twice in it: as it is, for its seconds, and then with
its products (matrix products, convolutions and attention of more than a vector) and assignments timed where it makes
them, as watching every operator takes seconds, too; vector products, as Sinkhorn's scalings make them, are told apart
and not called unavoidable. The ratio is of the matching; tracing, once for each model, is a column of its own. Memory
is what is resident at the peak in a second process, in which freed blocks are given back at once (slow, and without it
the peak is that of the allocator's leftovers), with four sweeps at most, two of them soft, after a small alignment (the
libraries' own pages are not of the models' size); beside it, by activations, what running both models side by side on
one batch takes by itself. The memory ratio is of two models and all beyond them to two models, the largest table of
costs and the batch.
Needs ``pip install graphfuse[zoo]``.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from label import MODELS as TRACED
from label import Built, _from_config, _ids, _pixels
from records import append, context, load, table
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from graphfuse.alignment import Prepared, match, prepare
from graphfuse.costs.sites import sites
from graphfuse.transport import solvers

LLAMA = dict(
    hidden_size=2048, intermediate_size=5632, num_hidden_layers=22, num_attention_heads=32, num_key_value_heads=4,
    vocab_size=32000, use_cache=False, dtype=torch.bfloat16,
)  # fmt: skip
MODELS: dict[str, Callable[[], Built]] = {
    "resnet-50": TRACED["resnet-50"],
    "vit-b/16": TRACED["vit-b/16"],
    "gpt2-12": TRACED["gpt2-12"],
    "llama-1.1b, 2 layers": _from_config("AutoModelForCausalLM", "llama", _ids, **{**LLAMA, "num_hidden_layers": 2}),
    "llama-1.1b": _from_config("AutoModelForCausalLM", "llama", _ids, **LLAMA),
}
METHODS = ("weights", "activations")
IN_PLACE = {torch.ops.aten.baddbmm_: flop_registry[torch.ops.aten.baddbmm]}
GIVING_BACK = {"MALLOC_MMAP_THRESHOLD_": str(1 << 20), "THP_MEM_ALLOC_ENABLE": "1"}  # of glibc and of torch


class Products(TorchDispatchMode):
    """Times every operator that multiplies matrices while it is active."""

    def __init__(self) -> None:
        super().__init__()
        self.seconds = {"products": 0.0, "vectors": 0.0}
        self.flops = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the operator; where it is a product, add what it took."""
        counter = flop_registry.get(func._overloadpacket) or IN_PLACE.get(func._overloadpacket)
        began = time.process_time()
        out = func(*args, **(kwargs or {}))
        if counter is not None:
            kind = "vectors" if self._is_vector(func, args) else "products"
            self.seconds[kind] += time.process_time() - began
            self.flops += counter(*args, **(kwargs or {}), out_val=out) if kind == "products" else 0
        return out

    @staticmethod
    def _is_vector(func: Any, args: Any) -> bool:
        matrices = [x for x in args if isinstance(x, torch.Tensor) and x.dim() >= 2][-2:]
        named = func._overloadpacket in (torch.ops.aten.mm, torch.ops.aten.bmm, torch.ops.aten.baddbmm_)
        return named and (matrices[0].shape[-2] == 1 or matrices[1].shape[-1] == 1)


@contextmanager
def timed_assignments() -> Iterator[dict[str, float]]:
    """Times every assignment made while it is open."""
    found, real = {"seconds": 0.0}, solvers.linear_sum_assignment

    def timed(*args: Any, **kwargs: Any) -> Any:
        began = time.process_time()
        result = real(*args, **kwargs)
        found["seconds"] += time.process_time() - began
        return result

    solvers.linear_sum_assignment = timed
    try:
        yield found
    finally:
        solvers.linear_sum_assignment = real


def resident(what: str) -> int:
    """``VmRSS`` (now) or ``VmHWM`` (the peak since the last reset), in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(what))


def inputs_of(name: str, samples: int) -> list[dict[str, torch.Tensor]]:
    """Random inputs, in batches of eight."""
    one = _pixels() if name in ("resnet-50", "vit-b/16") else _ids()
    repeated = {key: value.expand(8, *value.shape[1:]) for key, value in one.items()}
    noisy = [
        {
            key: torch.randn_like(x) if x.is_floating_point() else torch.randint_like(x, 100)
            for key, x in repeated.items()
        }
        for _ in range(samples // 8)
    ]
    return noisy


def batch_bytes(prepared: Prepared) -> int:
    """What both models take, side by side on the first batch, beyond themselves."""
    shown = {node for nodes in sites(prepared.correspondence.graph).values() for node in nodes}
    before = _reset()
    for moment in prepared.lockstep.run(prepared.data[0], shown) if prepared.data else ():
        del moment
    return resident("VmHWM") - before if prepared.data else 0


def _reset() -> int:
    """Let the peak count from now; what is resident."""
    Path("/proc/self/clear_refs").write_text("5")
    return resident("VmRSS")


def warm_up(method: str) -> None:
    """A small alignment, after which all code that one needs is resident."""
    layer = nn.TransformerEncoderLayer(256, 4, 512, dropout=0.0, batch_first=True, norm_first=True)
    small = [nn.Sequential(nn.Linear(64, 256), copy.deepcopy(layer), nn.Linear(256, 8)) for _ in range(2)]
    data = [torch.randn(8, 16, 64)] if method == "activations" else None
    match(prepare(small, (torch.randn(8, 16, 64),), data=data, config={"method": method, "sweeps": 4}))


def measure(name: str, method: str, sweeps: int, samples: int, held: bool) -> dict[str, Any]:
    """Two models built, traced and aligned: the seconds of that, or the bytes ``held`` beyond the models."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    warm_up(method)
    (model, example), (other, _) = MODELS[name](), MODELS[name]()
    data = inputs_of(name, samples) if method == "activations" else None
    began = time.process_time()
    config = {"method": method, "sweeps": sweeps, "samples": samples}
    prepared = prepare([model, other], (), example, data=data, config=config)
    traced = time.process_time() - began
    if held:
        batch, before = batch_bytes(prepared), _reset()
        match(prepared)
        return {"batch_bytes": batch, "extra_bytes": resident("VmHWM") - before}
    began = time.process_time()
    found = match(prepared)
    matched = time.process_time() - began
    with timed_assignments() as assignments, Products() as products:
        match(prepared)
    largest, needed = max(axis.size for axis in found.axes), products.seconds["products"] + assignments["seconds"]
    return {
        "model": name, "method": method, "seed": 0, **context(),
        "parameters": sum(p.numel() for p in model.parameters()), "sweeps": found.models[1].sweeps, "samples": samples,
        "trace_s": traced, "match_s": matched, "products_s": products.seconds["products"],
        "vectors_s": products.seconds["vectors"], "assignments_s": assignments["seconds"],
        "teraflops": products.flops / 1e12, "ratio": matched / needed,
        "models_bytes": 2 * sum(x.numel() * x.element_size() for x in prepared.states[0].values()),
        "largest_cost_bytes": 8 * largest**2,
    }  # fmt: skip


def measured(name: str, method: str, sweeps: int, samples: int) -> dict[str, Any]:
    """One record: the seconds of a process, and the memory of another one that gives freed blocks back."""
    timed = _apart(name, method, sweeps, samples, held=False)
    return {**timed, **_apart(name, method, min(sweeps, 4), samples, held=True)}


def _apart(name: str, method: str, sweeps: int, samples: int, held: bool) -> dict[str, Any]:
    options = [f"--method={method}", f"--sweeps={sweeps}", f"--samples={samples}", *(["--held"] if held else [])]
    command = [sys.executable, __file__, "--here", name, *options]
    environment = {**os.environ, **(GIVING_BACK if held else {})}
    done = subprocess.run(command, check=True, env=environment, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def show() -> str:
    """The latest record of each model and method, as a table."""
    latest = {(record["model"], record["method"]): record for record in load("align")}
    rows = [_row(latest[key]) for key in ((m, w) for m in MODELS for w in METHODS) if key in latest]
    head = ["model", "by", "parameters", "sweeps", "trace s", "match s", "products s", "assignments s", "time ratio",
            "two models MiB", "largest cost MiB", "one batch MiB", "beyond the models MiB", "memory ratio"]  # fmt: skip
    return table(head, rows)


def _row(r: dict[str, Any]) -> list[str]:
    sizes = ("models_bytes", "largest_cost_bytes", "batch_bytes", "extra_bytes")
    mib = [f"{r[key] / (1 << 20):.0f}" if r.get(key) else "-" for key in sizes]
    seconds = [f"{r[key]:.1f}" for key in ("trace_s", "match_s", "products_s", "assignments_s")]
    return [
        r["model"],
        r["method"],
        f"{r['parameters'] / 1e6:.0f}M",
        str(r["sweeps"]),
        *seconds,
        f"{r['ratio']:.2f}",
        *mib,
        f"{(r['models_bytes'] + r['extra_bytes']) / sum(r.get(key) or 0 for key in sizes[:3]):.2f}",
    ]


def main() -> None:
    """Measure each model in a process of its own, then print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", help=", ".join(MODELS))
    parser.add_argument("--method", choices=METHODS, action="append", help="by default both")
    parser.add_argument("--sweeps", type=int, default=20, help="upper bound, half of them soft")
    parser.add_argument("--samples", type=int, default=32)
    parser.add_argument("--table", action="store_true", help="only print the table of the latest records")
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--held", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    methods = options.method or METHODS
    if options.here:
        print(json.dumps(measure(options.models[0], methods[0], options.sweeps, options.samples, options.held)))
        return
    if not options.table:
        for name in options.models or [name for name in MODELS if not name.startswith("llama")]:
            for method in methods:
                print(f"measuring {name} by {method} ...", file=sys.stderr, flush=True)
                append("align", measured(name, method, options.sweeps, options.samples))
    print(show())


if __name__ == "__main__":
    main()
