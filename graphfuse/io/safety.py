"""What a ``.pt2`` file may hold: data, and a graph of known operators; nothing whose loading runs code.

``torch.export.load`` unpickles tensor subclasses, custom objects and odd example inputs, evaluates the expressions of
dynamic shapes, imports types that the file names, and writes names from the file into the code of ``forward``. So the
file is looked through before it is given to torch, and refused when anything in it is not of a short list of forms.
That what a graph calls is an operator is checked by torch itself.
"""

from __future__ import annotations

import io
import json
import pickle
import re
import zipfile
from collections import Counter
from collections.abc import Iterator
from typing import Any

import torch

PARTS = re.compile(
    r"(archive_format|archive_version|byteorder|version|\.data/\w+|models/model\.json|data/sample_inputs/model\.pt"
    r"|data/weights/(weight_\d+|model_weights_config\.json)|data/constants/(tensor_\d+|model_constants_config\.json))"
)
OPERATORS = re.compile(
    r"torch\.ops\.(aten|prims|higher_order|torchvision)\.\w+(\.\w+)?|_operator\.\w+|math\.\w+|torch\._?sym_\w+"
)
NAMED = ("name", "parameter_name", "buffer_name", "tensor_constant_name", "fqn", "forward_arg_names")
TREES = ("in_spec", "out_spec")
CONTAINERS = (None, "builtins.tuple", "builtins.list", "builtins.dict", "collections.OrderedDict")
SYMBOLIC = {
    "Symbol", "Integer", "Rational", "Add", "Mul", "Pow", "Max", "Min", "Mod", "PythonMod", "FloorDiv", "CleanDiv",
    "CeilDiv", "Eq", "Ne", "positive", "nonnegative", "integer", "True", "False", "int_oo", "oo",
}  # fmt: skip
FREE = ("stack_trace", "nn_module_stack", "torch_fn", "source_fn_stack", "from_node", "as_string", "as_strings")


def unsafe(file: zipfile.ZipFile) -> str | None:
    """What in a ``.pt2`` file could run code when it is loaded; None when nothing could.

    Raises
    ------
    ValueError
        The file is no program.
    KeyError
        A part is missing.
    """
    root = file.namelist()[0].partition("/")[0] + "/" if file.namelist() else ""
    odd = [name for name in file.namelist() if not PARTS.fullmatch(name.removeprefix(root))]
    if odd:
        return f"it holds {odd[0].removeprefix(root)}"
    twice = [name for name, count in Counter(file.namelist()).items() if count > 1]
    if twice:  # readers differ in which they take
        return f"it holds {twice[0].removeprefix(root)} twice"
    for kind in ("weights", "constants"):
        table = json.loads(file.read(f"{root}data/{kind}/model_{kind}_config.json"))["config"]
        pickled = [name for name, entry in table.items() if entry["use_pickle"] or not _raw(entry["path_name"])]
        if pickled:
            return f"the {kind[:-1]} {pickled[0]!r} is a pickle"
    try:
        torch.load(io.BytesIO(file.read(f"{root}data/sample_inputs/model.pt")), weights_only=True)
    except pickle.UnpicklingError:
        return "its example inputs are Python objects"
    return next(_odd(json.loads(file.read(f"{root}models/model.json"))), None)


def _raw(name: str) -> bool:
    return re.fullmatch(r"(weight|tensor)_\d+", name) is not None


def _odd(value: Any, key: str = "") -> Iterator[str]:
    """Texts of a serialised graph that are not of the form that their place asks for."""
    match value:
        case dict():
            for name, inner in value.items():
                if not re.fullmatch(r"[\w.]*", name) and not _is_symbolic(name):
                    yield f"it names something {name!r}"
                yield from _odd(inner, name)
        case list():
            for inner in value:
                yield from _odd(inner, key)
        case str() if not _is_plain(key, value):
            yield f"it has {value[:80]!r} as {key}"


def _is_plain(key: str, text: str) -> bool:
    if key == "target":
        return OPERATORS.fullmatch(text) is not None
    if key == "expr_str":
        return _is_symbolic(text)
    if key in TREES:
        return not text or all(map(_is_container, _nodes(json.loads(text)[1])))
    if key in FREE:
        return True
    if key == "guards_code":  # not used: the module is made without guards
        return True
    return re.fullmatch(r"[\w.+: ]*", text) is not None


def _is_symbolic(text: str) -> bool:
    """An expression of sizes: numbers, symbols (s0, u1), signs and functions of a list."""
    words = re.findall(r"[A-Za-z_]\w*", text)
    return re.fullmatch(r"[\w\s'(),=+*/<>-]*", text) is not None and all(
        word in SYMBOLIC or re.fullmatch(r"[su]\d+", word) for word in words
    )


def _nodes(tree: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield tree
    for child in tree["children_spec"]:
        yield from _nodes(child)


def _is_container(node: dict[str, Any]) -> bool:
    keys = json.loads(node["context"]) if node["context"] else None
    plain = keys is None or (isinstance(keys, list) and all(isinstance(key, str | int) for key in keys))
    return node["type"] in CONTAINERS and plain
