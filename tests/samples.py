"""Labelled graphs as plain data, for tests of what is drawn of them."""

from __future__ import annotations

from typing import Any


def node(id: str, op: str, inputs: tuple[str, ...] = (), dims: Any = None, shape: Any = None, **more: Any) -> dict:
    common = {"kind": "op", "module": "", "source": "", "tensors": []}
    return {**common, "id": id, "op": op, "inputs": list(inputs), "dims": dims, "shape": shape, **more}


def axis(id: int, role: str, size: int, touches: tuple[tuple[str, int], ...], **more: Any) -> dict:
    common = {"class": "permutation", "context": [], "free": True, "reasons": []}
    return {
        **common, "id": id, "name": f"{role}.{id}", "role": role, "size": size,
        "touches": [{"tensor": tensor, "dim": dim} for tensor, dim in touches], **more,
    }  # fmt: skip


def deep(layers: int) -> dict:
    """A chain of residual blocks of seven ops each, two of them with parameters."""
    axes, tensors, nodes = [], [], [node("x", "x", kind="input", dims=[[], [0]], shape=[1, 6])]
    stream = "x"
    for i in range(layers):
        h, names = i + 1, (f"layer.{i}.up.weight", f"layer.{i}.down.weight")
        axes.append(axis(h, "hidden", 9, ((names[0], 0), (names[1], 1))))
        tensors += [
            {"name": names[0], "shape": [9, 6], "dims": [[h], [0]]},
            {"name": names[1], "shape": [6, 9], "dims": [[0], [h]]},
        ]
        before = stream
        for op in ("norm", "up", "relu", "mul", "view", "down", "add"):
            inside = op in ("up", "relu", "mul", "view")
            inputs = (before, stream) if op == "add" else (before,)
            read = (names[op == "down"],) if op in ("up", "down") else ()
            module = f"layer.{i}" + (f".{op}" if read else "")
            dims, shape = [[], [h if inside else 0]], [1, 9 if inside else 6]
            nodes.append(node(f"{op}{i}", op, inputs, dims, shape, module=module, tensors=list(read)))
            before = f"{op}{i}"
        stream = before
    touches = tuple((name, d) for name, d in zip((t["name"] for t in tensors), (1, 0) * layers, strict=True))
    return {
        "name": "Deep", "parameters": 108 * layers, "free_fraction": 1.0, "method": "export", "notes": [],
        "axes": [axis(0, "residual", 6, touches), *axes], "tensors": tensors, "nodes": nodes,
    }  # fmt: skip
