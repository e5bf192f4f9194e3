"""What surrounds a trace: the model's mode and memory, silence, module names, and the user's source lines."""

from __future__ import annotations

import contextlib
import copy
import io
import logging
import os
import re
import traceback
import warnings
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.fx.traceback as node_meta
from torch import nn
from torch.overrides import TorchFunctionMode

TORCH_ROOT = str(Path(torch.__file__).parent) + os.sep
PACKAGE_ROOT = str(Path(__file__).parents[1]) + os.sep


def source_of(trace: Any) -> str:
    """The user's line in a traceback, as ``file:line: code``: the deepest one outside torch and graphfuse."""
    frames = [(f.filename, f.lineno, f.line) for f in traceback.extract_tb(trace)]
    return _deepest(frames)


def source_in(stack_trace: str) -> str:
    """The same for the text that a graph node carries in ``meta["stack_trace"]``."""
    found = re.findall(r'File "([^"]+)", line (\d+), in [^\n]*\n?([^\n]*)', stack_trace)
    return _deepest([(name, int(line), code.strip()) for name, line, code in found])


def where(error: Exception) -> str:
    line = source_of(error.__traceback__)
    return f"    at {line}\n" if line else ""


def headline(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__


def _deepest(frames: Sequence[tuple[str, int | None, str | None]]) -> str:
    def ours(name: str) -> bool:
        return not name.startswith((TORCH_ROOT, PACKAGE_ROOT, "<"))

    outside = [frame for frame in frames if ours(frame[0])]
    own = [frame for frame in outside if "site-packages" not in frame[0]]
    if not outside:
        return ""
    name, line, code = (own or outside)[-1]
    return f"{name}:{line}: {code}" if code else f"{name}:{line}"


def dotted(path: str) -> str:
    """A module path as the state dict has it: ``L['self'].blocks['0'].x@1`` -> ``blocks.0.x``."""
    path = re.sub(r"@\d+", "", path).removeprefix("L['self']")
    path = re.sub(r"\[['\"]?(\w+)['\"]?\]", r".\1", path)
    return path.lstrip(".")


class Reads(TorchFunctionMode):
    """Notes the user's lines, below the function ``entry``, at which a tensor's value leaves for Python or numpy.

    ``tensors`` are those of several elements: what is computed of them outside has no node in the graph. (A single
    number has no axis.) What is written to a tensor's ``data`` is written to the tensor, where a trace can see it.
    """

    names = ("numpy", "tolist", "item", "__array__", "__bool__", "__float__", "__int__", "__index__")

    def __init__(self, entry: str) -> None:
        super().__init__()
        self.entry = entry
        self.lines: set[str] = set()
        self.tensors: list[torch.Tensor] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(func, "__self__", None) is torch.Tensor.data:
            x, *written = args
            if not written:
                return x.detach()
            return None if written[0].untyped_storage()._cdata == x.untyped_storage()._cdata else x.copy_(written[0])
        if getattr(func, "__name__", "") in self.names:
            frames = traceback.extract_stack()
            start = max((i for i, frame in enumerate(frames) if frame.name == self.entry), default=0)
            known = {id(x) for x in self.tensors}
            self.tensors += [x for x in args[:1] if x.numel() > 1 and id(x) not in known]
            self.lines.add(_deepest([(f.filename, f.lineno, f.line) for f in frames[start:-1]]))
        return func(*args, **(kwargs or {}))


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Symmetries are those of the function in eval mode; every module gets its own flag back."""
    flags = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, flag in flags:
            module.training = flag


KEPT = (dict, OrderedDict, list)  # caches of modules, and their hooks


@contextlib.contextmanager
def restoring(model: nn.Module) -> Iterator[None]:
    """A forward that keeps things on its modules (caches, counters) must not keep traced tensors there."""
    saved = [(module, dict(vars(module)), dict(module._buffers)) for module in model.modules()]
    caches = [value for _, attributes, _ in saved for value in attributes.values() if type(value) in KEPT]
    contents = [(cache, copy.copy(cache)) for cache in caches]
    buffers = [buffer for buffer in model.buffers() if not buffer.is_inference()]
    values = [(buffer, buffer._version, buffer.clone()) for buffer in buffers]
    try:
        yield
    finally:
        for module, attributes, own in saved:
            vars(module).clear()
            vars(module).update(attributes)
            module._buffers.clear()
            module._buffers.update(own)
        for cache, content in contents:
            cache.clear()
            cache.update(content) if isinstance(cache, dict) else cache.extend(content)
        for buffer, version, value in values:
            if buffer._version != version:
                buffer.copy_(value)


@contextlib.contextmanager
def module_names(model: nn.Module) -> Iterator[None]:
    """While this is open, traced nodes carry the path of the module that made them, as exported ones do."""
    names = {module: name for name, module in model.named_modules()}
    stack: list[nn.Module] = []

    def mark() -> None:
        node_meta.current_meta["nn_module_stack"] = {names[m]: (names[m], type(m)) for m in stack}

    def enter(module: nn.Module, _args: Any) -> None:
        if module in names:
            stack.append(module)
            mark()

    def leave(module: nn.Module, _args: Any, _out: Any) -> None:
        if module in names:
            stack.pop()
            mark()

    handles = [
        nn.modules.module.register_module_forward_pre_hook(enter),
        nn.modules.module.register_module_forward_hook(leave),
    ]
    try:
        with node_meta.preserve_node_meta():
            yield
    finally:
        for handle in handles:
            handle.remove()


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """torch's capture warns, logs and prints about its own affairs; what matters is in the exception."""
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
