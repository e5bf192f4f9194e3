"""Seconds and peak memory of capture, labelling and verification, from ResNet-50 to a 70B Llama shape.

    python benchmarks/label.py                 # every model, each in a process of its own
    python benchmarks/label.py gpt2-12 gpt2-48 # some of them
    python benchmarks/label.py --table         # the table of the latest records

Needs ``pip install graphfuse[zoo]`` for the architectures; all weights are random, nothing is downloaded.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from records import append, context, load, table
from torch import Tensor, nn

import graphfuse
from graphfuse.io.importing import import_library

Built = tuple[nn.Module, dict[str, Tensor]]


def _pixels(size: int = 224) -> dict[str, Tensor]:
    return {"pixel_values": torch.randn(1, 3, size, size)}


def _ids(length: int = 64) -> dict[str, Tensor]:
    return {"input_ids": torch.arange(length)[None] % 100}


def _from_config(auto: str, kind: str, inputs: Callable[[], dict[str, Tensor]], **options: Any) -> Callable[[], Built]:
    def build() -> Built:
        transformers = import_library("transformers")
        config = transformers.AutoConfig.for_model(kind, **options)
        return getattr(transformers, auto).from_config(config).eval(), inputs()

    return build


def _on_meta(build: Callable[[], Built]) -> Callable[[], Built]:
    def built() -> Built:
        with torch.device("meta"):
            model, inputs = build()
        return model, {name: value.to("meta") for name, value in inputs.items()}

    return built


def _gpt2(layers: int) -> Callable[[], Built]:
    return _from_config("AutoModelForCausalLM", "gpt2", _ids, n_layer=layers, use_cache=False)


LLAMA = dict(
    hidden_size=4096, intermediate_size=14336, num_hidden_layers=32, num_attention_heads=32, num_key_value_heads=8,
    vocab_size=128256, use_cache=False,
)  # fmt: skip
LARGE = dict(LLAMA, hidden_size=8192, intermediate_size=28672, num_hidden_layers=80, num_attention_heads=64)
MODELS: dict[str, Callable[[], Built]] = {
    "resnet-50": _from_config("AutoModelForImageClassification", "resnet", _pixels),
    "vit-b/16": _from_config("AutoModelForImageClassification", "vit", _pixels),
    "bert-base": _from_config("AutoModelForMaskedLM", "bert", _ids),
    "gpt2-12": _gpt2(12),
    "gpt2-24": _gpt2(24),
    "gpt2-48": _gpt2(48),
    "gpt2-100 (meta)": _on_meta(_gpt2(100)),
    "llama-32 (meta)": _on_meta(_from_config("AutoModelForCausalLM", "llama", _ids, **LLAMA)),
    "llama-80 (meta)": _on_meta(_from_config("AutoModelForCausalLM", "llama", _ids, **LARGE)),
}


def peak() -> int:
    """Peak resident bytes of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def measure(name: str) -> dict[str, Any]:
    """One record: build, trace, verify."""
    torch.manual_seed(0)
    model, inputs = MODELS[name]()
    before = peak()
    graph = graphfuse.trace(model, (), inputs)
    traced = peak()
    record = {
        "model": name, "seed": 0, **context(), "parameters": sum(p.numel() for p in model.parameters()),
        "nodes": len(graph.nodes), "free_axes": len(graph.axes), "free_fraction": graph.free_fraction,
        "capture_s": graph.seconds["capture"], "label_s": graph.seconds["label"],
        "peak_before_trace": before, "peak_after_trace": traced,
    }  # fmt: skip
    if not any(p.is_meta for p in model.parameters()):
        start = time.perf_counter()
        result = graphfuse.verify(graph, trials=1)
        record |= {"verify_s": time.perf_counter() - start, "ok": result.ok, "max_error": result.max_error}
        record["peak_after_verify"] = peak()
    return record


def show() -> str:
    """The latest record of each model, as a table."""
    latest = {record["model"]: record for record in load("label")}
    rows = [_row(latest[name]) for name in MODELS if name in latest]
    head = ["model", "parameters", "nodes", "free axes", "free share", "capture s", "label s", "label / capture",
            "us per node", "verify s", "verified", "trace MiB", "verify MiB"]  # fmt: skip
    return table(head, rows)


def _row(r: dict[str, Any]) -> list[str]:
    mib = 1 << 20
    return [
        r["model"], f"{r['parameters'] / 1e6:.0f}M", str(r["nodes"]), str(r["free_axes"]), f"{r['free_fraction']:.1%}",
        f"{r['capture_s']:.2f}", f"{r['label_s']:.2f}", f"{r['label_s'] / r['capture_s']:.2f}",
        f"{1e6 * r['label_s'] / r['nodes']:.0f}", f"{r['verify_s']:.1f}" if "verify_s" in r else "-",
        {True: "yes", False: "NO", None: "-"}[r.get("ok")],
        f"{(r['peak_after_trace'] - r['peak_before_trace']) / mib:.0f}",
        f"{r['peak_after_verify'] / mib:.0f}" if "verify_s" in r else "-",
    ]  # fmt: skip


def main() -> None:
    """Measure each model in a process of its own, so that peaks are its own, then print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", help=", ".join(MODELS))
    parser.add_argument("--table", action="store_true", help="only print the table of the latest records")
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.here:
        append("label", measure(options.models[0]))
        return
    if not options.table:
        for name in options.models or MODELS:
            print(f"measuring {name} ...", file=sys.stderr, flush=True)
            subprocess.run([sys.executable, __file__, "--here", name], check=True)
    print(show())


if __name__ == "__main__":
    main()
