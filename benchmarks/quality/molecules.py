"""Parents that others trained: the five regressors of admet-ai, message-passing networks on molecules.

The data folder holds the wheel (``pip download --no-deps admet-ai==2.0.1 -d FOLDER``); features need rdkit.
Source: Swanson et al. 2024, ADMET-AI; Heid et al. 2024, Chemprop (features "v2", directed message passing).
"""

from __future__ import annotations

import csv
import io
import pickle
import zipfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from quality.data import Data, Part, Source, Unavailable, found

WHEEL = Source(("admet_ai-2.0.1-py3-none-any.whl",), None)
ATOMS, BONDS = 40, 88  # molecules with more (directed) bonds are left out
ATOM, BOND, TASKS = 72, 14, 10
TRAIN, VALIDATION, TEST = 600, 300, 600
SAFE = {
    ("torch._utils", "_rebuild_tensor_v2"), ("torch._utils", "_rebuild_parameter"), ("collections", "OrderedDict"),
    ("torch", "FloatStorage"), ("torch", "BoolStorage"), ("torch", "LongStorage"),
}  # fmt: skip


class MessagePassing(nn.Module):
    """Chemprop's network on molecules of padded size, packed by :func:`packed`; its output is in natural units."""

    def __init__(self, width: int = 300) -> None:
        super().__init__()
        self.W_i = nn.Linear(ATOM + BOND, width, bias=False)
        self.W_h = nn.Linear(width, width, bias=False)
        self.W_o = nn.Linear(ATOM + width, width)
        self.hidden = nn.Linear(width, width)
        self.out = nn.Linear(width, TASKS)

    def forward(self, x: Tensor) -> Tensor:
        bonds, flows = x[:, :BONDS, : ATOM + BOND], x[:, :BONDS, ATOM + BOND : ATOM + BOND + BONDS]
        atoms, arrivals = x[:, BONDS:, :ATOM], x[:, BONDS:, ATOM + BOND : ATOM + BOND + BONDS]
        first = self.W_i(bonds)
        state = F.relu(first)
        for _ in range(2):
            state = F.relu(first + self.W_h(flows @ state))
        nodes = F.relu(self.W_o(torch.cat([atoms, arrivals @ state], dim=-1)))
        there = x[:, BONDS:, -1:]
        return self.out(F.relu(self.hidden((nodes * there).sum(dim=1) / 100)))


def packed(molecule: Any) -> Tensor:
    """A molecule as one table, shape (bonds + atoms, 72 + 14 + bonds + 1).

    Rows of bonds: features of the atom it leaves and its own; which bonds flow into it. Rows of atoms: features; which
    bonds arrive; 1 where there is an atom.
    """
    table = torch.zeros(BONDS + ATOMS, ATOM + BOND + BONDS + 1)
    atoms = torch.stack([_atom(atom) for atom in molecule.GetAtoms()])
    ends = [(b.GetBeginAtomIdx(), b.GetEndAtomIdx()) for b in molecule.GetBonds()]
    source = [i for pair in ends for i in pair]
    target = [i for pair in ends for i in reversed(pair)]
    features = [f for bond in molecule.GetBonds() for f in [_bond(bond)] * 2]
    for k, (u, v) in enumerate(zip(source, target, strict=True)):
        table[k, :ATOM], table[k, ATOM : ATOM + BOND] = atoms[u], features[k]
        table[BONDS + v, ATOM + BOND + k] = 1
        for other, arrives in enumerate(target):
            if arrives == u and other != k ^ 1:  # the reverse of a bond stands beside it
                table[k, ATOM + BOND + other] = 1
    table[BONDS : BONDS + len(atoms), :ATOM] = atoms
    table[BONDS : BONDS + len(atoms), -1] = 1
    return table


def _one_hot(value: Any, choices: list[Any], other: bool = True) -> list[float]:
    hot = [float(value == choice) for choice in choices]
    return [*hot, float(value not in choices)] if other else hot


def _atom(atom: Any) -> Tensor:
    kinds = _rdkit().Chem.HybridizationType
    hybrids = [kinds.S, kinds.SP, kinds.SP2, kinds.SP2D, kinds.SP3, kinds.SP3D, kinds.SP3D2]
    return torch.tensor([
        *_one_hot(atom.GetAtomicNum(), [*range(1, 37), 53]), *_one_hot(atom.GetTotalDegree(), [*range(6)]),
        *_one_hot(atom.GetFormalCharge(), [-1, -2, 1, 2, 0]), *_one_hot(int(atom.GetChiralTag()), [*range(4)]),
        *_one_hot(atom.GetTotalNumHs(), [*range(5)]), *_one_hot(atom.GetHybridization(), hybrids),
        float(atom.GetIsAromatic()), 0.01 * atom.GetMass(),
    ])  # fmt: skip


def _bond(bond: Any) -> Tensor:
    kinds = _rdkit().Chem.BondType
    types = [kinds.SINGLE, kinds.DOUBLE, kinds.TRIPLE, kinds.AROMATIC]
    return torch.tensor([
        0.0, *_one_hot(bond.GetBondType(), types, other=False), float(bond.GetIsConjugated()), float(bond.IsInRing()),
        *_one_hot(int(bond.GetStereo()), [*range(6)]),
    ])  # fmt: skip


def _rdkit() -> SimpleNamespace:
    try:
        from rdkit import Chem  # pyright: ignore[reportMissingImports]
        from rdkit.Chem import rdchem  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise Unavailable(f"molecules need rdkit ({error}): pip install rdkit") from error
    return SimpleNamespace(MolFromSmiles=Chem.MolFromSmiles, Chem=rdchem)


def molecules(folder: Path) -> Data:
    """Approved drugs of at most 40 atoms; targets are the means of the five published networks' outputs."""
    smiles = [row["smiles"] for row in _csv(folder)]
    parsed = [m for s in smiles if (m := _rdkit().MolFromSmiles(s)) is not None]
    fits = [m for m in parsed if 0 < m.GetNumAtoms() <= ATOMS and 0 < 2 * m.GetNumBonds() <= BONDS]
    order = torch.randperm(len(fits), generator=torch.Generator().manual_seed(0)).tolist()
    inputs = torch.stack([packed(fits[i]) for i in order[: TRAIN + VALIDATION + TEST]])
    with torch.no_grad():
        outputs = torch.stack([torch.cat([published(folder, k)(x) for x in inputs.split(100)]) for k in range(5)])
    everything = Part(inputs, outputs.mean(dim=0))
    train, rest = TRAIN, TRAIN + VALIDATION
    return Data(
        everything.take(slice(train)), everything.take(slice(train, rest)), everything.take(slice(rest, None)), 0
    )


def _csv(folder: Path) -> list[dict[str, str]]:
    with zipfile.ZipFile(found(folder, WHEEL)) as wheel:
        lines = wheel.read("admet_ai/resources/data/drugbank_approved.csv").decode().splitlines()
    return list(csv.DictReader(lines))


def published(folder: Path, index: int) -> MessagePassing:
    """One of the five regressors; the scale of its outputs is folded into its last layer."""
    with zipfile.ZipFile(found(folder, WHEEL)) as wheel:
        raw = wheel.read(f"admet_ai/resources/models/admet_regression/model_{index}.pt")
    reader = SimpleNamespace(__name__="reader", Unpickler=_Weights, load=lambda file, **k: _Weights(file, **k).load())
    state = torch.load(io.BytesIO(raw), map_location="cpu", pickle_module=reader, weights_only=False)["state_dict"]
    scale, mean = state["predictor.output_transform.scale"][0], state["predictor.output_transform.mean"][0]
    model = MessagePassing()
    model.load_state_dict({
        **{f"{name}.weight": state[f"message_passing.{name}.weight"] for name in ("W_i", "W_h", "W_o")},
        "W_o.bias": state["message_passing.W_o.bias"],
        **{f"hidden.{key}": state[f"predictor.ffn.0.0.{key}"] for key in ("weight", "bias")},
        "out.weight": scale[:, None] * state["predictor.ffn.1.2.weight"],
        "out.bias": scale * state["predictor.ffn.1.2.bias"] + mean,
    })  # fmt: skip
    return model.eval()


class _Weights(pickle.Unpickler):
    """Reads tensors and containers; whatever else a checkpoint names becomes an empty dict and runs nothing."""

    def find_class(self, module_name: str, global_name: str, /) -> Any:
        if (module_name, global_name) in SAFE:
            return super().find_class(module_name, global_name)
        return type(global_name, (_Ignored,), {})


class _Ignored(dict):
    def __init__(self, *_: Any, **__: Any) -> None:
        super().__init__()

    def __setstate__(self, _: Any) -> None:
        pass
